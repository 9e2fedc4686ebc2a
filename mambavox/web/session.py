"""One client: the samples that wait for the model, and the events that wait for the client."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

from mambavox.asr.live import LiveSegment
from mambavox.web.limits import Limits
from mambavox.web.protocol import SAMPLE_BYTES, Close, Refusal, segment_event

_TOGETHER = 0.01
"""Seconds within which messages count as one: a client of tiny messages must not fill the memory with times."""


class Outbox:
    """Events that wait to be sent: all but partial texts, of which only the newest is kept.

    Args:
        limit: events that may wait.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._events: deque[dict[str, Any]] = deque()
        self._partial: dict[str, Any] | None = None
        self._there = asyncio.Event()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._events) + (self._partial is not None)

    def put(self, event: dict[str, Any]) -> None:
        """Add an event.

        Raises:
            Refusal: too many wait.
        """
        # Whatever comes after a partial text says more than it.
        self.dropped += self._partial is not None
        self._partial = None
        if event["type"] == "partial":
            self._partial = event
        elif len(self._events) < self._limit:
            self._events.append(event)
        else:
            raise Refusal(
                Close.REFUSED, "slow_reader", f"{len(self._events)} events are not read; expected a client that reads"
            )
        self._there.set()

    async def get(self) -> dict[str, Any]:
        """The next event, as soon as there is one."""
        while not self._events and self._partial is None:
            self._there.clear()
            await self._there.wait()
        if self._events:
            return self._events.popleft()
        event, self._partial = self._partial, None
        assert event is not None
        return event


class Session:
    """A stream of samples on its way to the model, and what became of it.

    The client's side awaits ``put`` and ``outbox.get``; the model's side takes pieces and delivers segments. Both run
    in the event loop.

    Args:
        limits: of the server.
        sampling_rate: of the samples.
        wake: set when there is something to do for the model.
    """

    def __init__(self, limits: Limits, sampling_rate: int, wake: asyncio.Event) -> None:
        self.limits = limits
        self.sampling_rate = sampling_rate
        self.outbox = Outbox(limits.unread_events)
        self.key: int | None = None  # of the stream in the model, once it takes part
        self.refusal: asyncio.Future[Refusal] = asyncio.get_running_loop().create_future()
        self.done = asyncio.Event()  # the last samples have been recognised
        self.ending = False
        self.segments = 0
        self._wake = wake
        self._buffer = bytearray()
        self._arrivals: deque[tuple[int, float]] = deque()  # samples of the stream up to here, and when they came
        self._received = 0
        self._taken = 0
        self._room = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Samples that wait for the model."""
        return len(self._buffer) // SAMPLE_BYTES

    @property
    def received(self) -> float:
        """Seconds of audio that have come."""
        return self._received / self.sampling_rate

    @property
    def heard(self) -> float:
        """Seconds of audio that the model has been given."""
        return self._taken / self.sampling_rate

    async def put(self, data: bytes) -> None:
        """Add samples, as soon as there is room for them.

        Args:
            data: of a checked binary message.

        Raises:
            Refusal: the session is longer than is allowed.
        """
        if self.ending:
            raise Refusal(Close.MALFORMED, "order", "samples come after end; expected none")
        if self.received + len(data) / SAMPLE_BYTES / self.sampling_rate > self.limits.max_seconds:
            raise Refusal(
                Close.REFUSED, "session_length", f"a session may hold {self.limits.max_seconds:g} s; begin a new one"
            )
        room = max(0, round(self.limits.buffer_seconds * self.sampling_rate) * SAMPLE_BYTES - len(data))
        while len(self._buffer) > room:
            self._room.clear()
            await self._room.wait()
        if not data:
            return
        self._buffer += data
        self._received += len(data) // SAMPLE_BYTES
        now = asyncio.get_running_loop().time()
        if self._arrivals and now - self._arrivals[-1][1] < _TOGETHER:
            self._arrivals.pop()
        self._arrivals.append((self._received, now))
        if self.ready:
            self._wake.set()

    def end(self) -> None:
        """Say that no samples come any more."""
        self.ending = True
        self._wake.set()

    @property
    def ready(self) -> bool:
        """Whether it takes part in the next step."""
        return not self.done.is_set() and (
            self.ending or self.waiting >= max(1, round(self.limits.block * self.sampling_rate))
        )

    def take(self, samples: int) -> tuple[bytes, bool, float]:
        """The next samples for the model.

        Args:
            samples: at most so many.

        Returns:
            The samples, whether they are the last, and when the last of them arrived.
        """
        data = bytes(self._buffer[: samples * SAMPLE_BYTES])
        del self._buffer[: len(data)]
        self._room.set()
        self._taken += len(data) // SAMPLE_BYTES
        arrived = asyncio.get_running_loop().time()
        while self._arrivals:
            upto, arrived = self._arrivals[0]
            if upto > self._taken:
                break
            self._arrivals.popleft()
        return data, self.ending and not self._buffer, arrived

    def deliver(self, segments: Sequence[LiveSegment], arrived: float, last: bool) -> None:
        """Put what was recognised into the outbox.

        Args:
            segments: in their order.
            arrived: when the last samples came that they are made of.
            last: whether the stream has ended.
        """
        delay = asyncio.get_running_loop().time() - arrived
        try:
            for segment in segments:
                self.outbox.put(segment_event(segment, self.heard, delay))
                self.segments += segment.final
            if last:
                self.outbox.put({"type": "ended", "seconds": self.heard, "segments": self.segments})
        except Refusal as refusal:
            self.refuse(refusal)
        if last:
            self.done.set()

    def refuse(self, refusal: Refusal) -> None:
        """End the session with an error."""
        self.dismiss(refusal)
        self.done.set()

    def dismiss(self, refusal: Refusal) -> None:
        """End the session with an error, once what has come is recognised."""
        if not self.refusal.done():
            self.refusal.set_result(refusal)
