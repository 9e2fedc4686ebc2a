"""Live recognition of many clients over WebSockets, and the page that does it in a browser (extra ``serve``)."""
