"""One WebSocket from its first message to its last, whatever the client does."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.websockets import WebSocket, WebSocketDisconnect

from mambavox.web.batcher import Batcher
from mambavox.web.protocol import (
    Close,
    Refusal,
    check_samples,
    read_json,
    read_start,
    refusal_event,
    to_text,
    tokens_agree,
)
from mambavox.web.session import Session

_Result = TypeVar("_Result")

_MILD = ("session_length", "idle", "shutdown")
"""Errors after which a client still gets the text of what it has sent."""


class Connection:
    """A client.

    Args:
        websocket: not accepted yet.
        batcher: that recognises its stream.
        token: that it must offer, if any.

    Attributes:
        begun: whether it has been let in.
    """

    def __init__(self, websocket: WebSocket, batcher: Batcher, token: str | None) -> None:
        self._websocket = websocket
        self._batcher = batcher
        self._limits = batcher.limits
        self._token = token
        self.begun = False

    async def serve(self) -> None:
        """Talk to the client until one of both ends it."""
        await self._websocket.accept()
        try:
            try:
                session = await self._begin()
                try:
                    await self._go_on(session)
                finally:
                    self._batcher.remove(session)
            except Refusal as refusal:
                await self._close(refusal)
            else:
                await self._close(None)
        except WebSocketDisconnect:
            pass

    async def _begin(self) -> Session:
        message = await self._receive()
        if not isinstance(message, str):
            raise Refusal(Close.MALFORMED, "order", "samples come before start; expected a text message of type start")
        start = read_start(message, self._batcher.live.sampling_rate)
        if not tokens_agree(self._token, start.token):
            raise Refusal(Close.REFUSED, "token", "the token is missing or wrong; expected the server's --token")
        session = self._batcher.add()
        self.begun = True
        session.outbox.put(
            {
                "type": "ready",
                "sampling_rate": session.sampling_rate,
                "max_seconds": self._limits.max_seconds,
                "max_message_bytes": self._limits.max_message_bytes,
            }
        )
        return session

    async def _go_on(self, session: Session) -> None:
        reading = asyncio.create_task(self._read(session))
        writing = asyncio.create_task(self._write(session))
        # By the clock: samples that trickle would keep a session open for ever.
        longest = asyncio.create_task(asyncio.sleep(self._limits.max_seconds + self._limits.idle_seconds))
        everything: set[asyncio.Future[Any]] = {reading, writing, longest, session.refusal}
        try:
            done, _ = await asyncio.wait(everything, return_when=asyncio.FIRST_COMPLETED)
            try:
                for future in (writing, reading, longest):
                    if future in done:
                        await future
                if session.refusal in done:
                    raise session.refusal.result()
                if longest in done:
                    raise Refusal(
                        Close.REFUSED,
                        "session_length",
                        f"a session may last {self._limits.max_seconds:g} s; begin a new one",
                    )
            except Refusal as refusal:
                if refusal.reason not in _MILD:
                    raise
                reading.cancel()
                session.end()
                await asyncio.wait({writing}, timeout=self._limits.send_seconds + self._limits.buffer_seconds)
                raise
        finally:
            for future in (reading, writing, longest):
                future.cancel()
            await asyncio.gather(reading, writing, longest, return_exceptions=True)

    async def _read(self, session: Session) -> None:
        """Take messages for ever; the session ends with what the writer sends."""
        while True:
            message = await self._receive(patient=session.ending)
            if isinstance(message, bytes):
                check_samples(message, self._limits.max_message_bytes)
                await session.put(message)
                continue
            kind = read_json(message)["type"]
            if kind != "end" or session.ending:
                raise Refusal(
                    Close.MALFORMED, "order", f"a message of type {kind[:20]!r}; expected samples, then one end"
                )
            session.end()

    async def _write(self, session: Session) -> None:
        while True:
            event = await session.outbox.get()
            await self._send(event)
            if event["type"] == "ended":
                return

    async def _receive(self, patient: bool = False) -> str | bytes:
        try:
            message = await within(self._websocket.receive(), None if patient else self._limits.idle_seconds)
        except asyncio.TimeoutError:
            raise Refusal(
                Close.REFUSED, "idle", f"nothing came for {self._limits.idle_seconds:g} s; expected samples or end"
            ) from None
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        text: str | None = message.get("text")
        return text if text is not None else message["bytes"]

    async def _send(self, event: dict[str, Any]) -> None:
        try:
            await within(self._websocket.send_text(to_text(event)), self._limits.send_seconds)
        except asyncio.TimeoutError:
            raise Refusal(
                Close.REFUSED,
                "slow_reader",
                f"an event was not read for {self._limits.send_seconds:g} s; expected a client that reads",
            ) from None

    async def _close(self, refusal: Refusal | None) -> None:
        """Say why and close; what a client does not read of it is given up by the protocol."""
        code, reason = (Close.DONE, "") if refusal is None else (refusal.code, refusal.close_reason)

        async def say() -> None:
            if refusal is not None:
                await self._websocket.send_text(to_text(refusal_event(refusal)))
            await self._websocket.close(code, reason)

        with contextlib.suppress(asyncio.TimeoutError, RuntimeError):
            await within(say(), 1.0)


async def within(work: Coroutine[Any, Any, _Result], seconds: float | None) -> _Result:
    """A result that must come in time.

    ``asyncio.wait_for`` before Python 3.12 forgets that it was cancelled when the result comes at the same moment; a
    reader would then go on for ever.

    Args:
        work: that gives it; it is cancelled where it is late, or where the waiting is.
        seconds: at most; none waits for ever.

    Raises:
        asyncio.TimeoutError: it is late.
    """
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
        if not done:
            raise asyncio.TimeoutError
        return task.result()
    finally:
        task.cancel()
