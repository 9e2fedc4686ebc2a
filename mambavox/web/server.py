"""The application: the page, the WebSocket and the status, and who may talk to them."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import Scope
from starlette.websockets import WebSocket

from mambavox.asr.live import LiveRecognizer
from mambavox.errors import ConfigError
from mambavox.web.batcher import Batcher
from mambavox.web.connection import Connection
from mambavox.web.hardened import HardenedProtocol
from mambavox.web.limits import Limits
from mambavox.web.protocol import tokens_agree

_PAGE = Path(__file__).parent / "static"
_LOOPBACK = ("localhost", "127.0.0.1", "::1", "[::1]")
_WAITING_ROOM = 16
"""Connections beyond twice the sessions that may be open, so that whoever is refused can be told why."""
_GRACE = 5.0  # seconds that sessions have to end in when the server shuts down
_HEADERS = {
    # The page loads nothing from elsewhere and talks to its own server only.
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Permissions-Policy": "microphone=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class Access:
    """Who may talk to the server.

    Attributes:
        host: address that it listens at.
        token: that clients must offer, if any.
        origins: of pages of other servers that may, such as ``https://example.org``.

    Raises:
        ConfigError: without a token the server would listen to other machines, or the token is empty.
    """

    host: str = "127.0.0.1"
    token: str | None = None
    origins: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.token is not None and not self.token:
            raise ConfigError("the token is empty; expected a text that cannot be guessed, or none")
        if self.token is None and self.host not in _LOOPBACK:
            raise ConfigError(
                f"host {self.host} lets other machines in; expected a token as well, which their clients send: "
                "--token or the environment variable MAMBAVOX_TOKEN"
            )
        for origin in self.origins:
            parts = urlsplit(origin)
            if not parts.scheme or not parts.netloc or parts.path:
                raise ConfigError(f"origin {origin!r}; expected scheme and host, such as https://example.org")

    @property
    def hosts(self) -> list[str]:
        """Names under which the server may be asked for.

        Without a token these are names of this machine: a page of a name that its owner points at this machine
        (DNS rebinding) is of the same origin as the server in the eyes of a browser.
        """
        return list(_LOOPBACK) if self.token is None else ["*"]

    def allows(self, origin: str | None, host: str | None) -> bool:
        """Whether a page may open a WebSocket; browsers send its origin, other programs need not.

        Args:
            origin: header of the request.
            host: header of the request.
        """
        return origin is None or origin in self.origins or (host is not None and urlsplit(origin).netloc == host)


class _Page(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(_HEADERS)
        return response


def make_application(live: LiveRecognizer, limits: Limits, access: Access, name: str = "") -> Starlette:
    """The ASGI application.

    Args:
        live: the recognizer, which no one else may use meanwhile.
        limits: of sessions.
        access: who may talk to it.
        name: of the model, for the status.
    """
    batcher = Batcher(live, limits)
    connections: set[Connection] = set()  # those that have not begun a session among them

    @contextlib.asynccontextmanager
    async def lifespan(application: Starlette) -> AsyncIterator[None]:
        batcher.start()
        yield
        await batcher.stop()

    async def listen(websocket: WebSocket) -> None:
        if not access.allows(websocket.headers.get("origin"), websocket.headers.get("host")):
            await websocket.close()  # before it is accepted: HTTP 403
            return
        if len(connections) >= 2 * limits.max_sessions + _WAITING_ROOM:
            await websocket.close()
            return
        connection = Connection(websocket, batcher, access.token)
        connections.add(connection)
        try:
            await connection.serve()
        finally:
            connections.remove(connection)

    async def end_sessions() -> None:
        batcher.dismiss()
        while any(connection.begun for connection in connections):
            await asyncio.sleep(0.02)

    async def status(request: Request) -> JSONResponse:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if not tokens_agree(access.token, given if scheme.lower() == "bearer" else None):
            return JSONResponse(
                {"error": "expected the header Authorization: Bearer TOKEN"},
                status_code=401,
                headers={"WWW-Authenticate": "Bearer"},
            )
        return JSONResponse({"model": name, **batcher.status()})

    application = Starlette(
        routes=[
            WebSocketRoute("/listen", listen),
            Route("/status", status),
            Route("/{path:path}", _Page(directory=_PAGE, html=True)),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=access.hosts, www_redirect=False)],
        lifespan=lifespan,
    )
    application.state.end_sessions = end_sessions
    return application


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: address or name.
        port: 0 takes a free one.

    Raises:
        ConfigError: the address is not this machine's, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), port), family=family, backlog=128)
    except OSError as error:
        raise ConfigError(
            f"cannot listen at {host} port {port} ({error.strerror or error}); expected an address of this machine and "
            "a free port: --port 0 takes any"
        ) from error


def address_of(listening: socket.socket) -> str:
    """Where the page is, such as ``http://127.0.0.1:8765``."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """Ends the sessions before it closes their connections, so that each client gets its text and the reason."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut down."""
        for server in self.servers:
            server.close()  # no connections come any more
        application: Any = self.config.app
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(application.state.end_sessions(), _GRACE)
        await super().shutdown(sockets)


def make_server(application: Starlette, limits: Limits) -> uvicorn.Server:
    """The server; ``run(sockets=[bind(...)])`` serves until it is interrupted.

    Args:
        application: of :func:`make_application`.
        limits: of sessions.
    """
    settings: dict[str, Any] = {
        "ws": HardenedProtocol,
        "ws_max_size": limits.max_message_bytes,
        # A small compressed message can be a large one, and speech does not shrink.
        "ws_per_message_deflate": False,
        # Pongs wait behind the samples that a busy server leaves unread, so that their lateness says nothing; limits of
        # idleness and of time end what is dead.
        "ws_ping_interval": None,
        "limit_concurrency": 4 * limits.max_sessions + 64,
        "timeout_graceful_shutdown": round(_GRACE),
        "server_header": False,
        "access_log": False,
        "log_level": "warning",
    }
    return _Server(uvicorn.Config(application, **settings))
