"""The command line, one file a command."""

from mambavox.cli.application import app

__all__ = ["app"]
