"""uvicorn's WebSocket protocol with bounds where a client who does not read, or never finishes, would fill memory."""

import asyncio
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

_FRAGMENTS = 256  # of a message; each costs memory, an empty one too
_FAREWELL = 5.0  # seconds that a client has to read what it was sent last


class HardenedProtocol(WebSocketsSansIOProtocol):
    """Drops pongs that nobody reads, refuses messages in countless fragments, and cuts off who does not let go."""

    def handle_ping(self) -> None:
        """Answer a ping, unless answers pile up."""
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()

    def handle_cont(self, event: Any) -> None:
        """Take a fragment of a message."""
        if len(self.frames) >= _FRAGMENTS:
            self.transport.abort()
            return
        super().handle_cont(event)

    async def run_asgi(self) -> None:
        """Run the application; after it the connection does not outlive the farewell."""
        try:
            await super().run_asgi()
        finally:
            asyncio.get_running_loop().call_later(_FAREWELL, self.transport.abort)
