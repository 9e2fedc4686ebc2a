"""The model's side: steps of all streams that have something new, one after another in a thread of their own."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median, median_low
from time import perf_counter
from typing import Any

from mambavox.asr.live import LiveRecognizer, LiveSegment
from mambavox.errors import MambavoxError
from mambavox.web.limits import Limits
from mambavox.web.protocol import SAMPLE_BYTES, Close, Refusal, to_waveform
from mambavox.web.session import Session

_LOG = logging.getLogger(__name__)
_REMEMBERED = 500  # steps of which the status tells


@dataclass(frozen=True)
class Step:
    """A step of the model that was made.

    Attributes:
        seconds: that it took.
        rows: streams in it.
        audio: seconds of new audio of all of them.
    """

    seconds: float
    rows: int
    audio: float


class Batcher:
    """Recognises the sessions together.

    A step takes all streams that have a block of new samples, or their last. While it runs in its thread, samples for
    the next one gather: under load steps grow, and cost less for each stream. No stream brings more to a step than
    most of the others have, so that one that sends faster than it speaks does not make the others wait.

    Args:
        live: which this alone may use.
        limits: of the server.
    """

    def __init__(self, live: LiveRecognizer, limits: Limits) -> None:
        self.live = live
        self.limits = limits
        self.steps: deque[Step] = deque(maxlen=_REMEMBERED)
        self.audio = 0.0  # seconds that were recognised
        self.finished = 0  # sessions
        self._sessions: set[Session] = set()
        self._left: list[int] = []  # streams of sessions that are gone
        self._wake = asyncio.Event()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="mambavox-model")
        self._task: asyncio.Task[None] | None = None
        self._closing: Refusal | None = None

    def __len__(self) -> int:
        return len(self._sessions)

    def start(self) -> None:
        """Begin to make steps."""
        self._task = asyncio.create_task(self._run())

    def dismiss(self) -> None:
        """Let no session in any more; those that are there are told so once what they have sent is recognised."""
        self._closing = Refusal(Close.GOING_AWAY, "shutdown", "the server shuts down; try again later")
        for session in self._sessions:
            if not session.ending:
                session.dismiss(self._closing)

    async def stop(self) -> None:
        """Make no more steps; sessions that are still there are told so."""
        self.dismiss()
        assert self._closing is not None
        for session in self._sessions:
            session.refuse(self._closing)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._worker.shutdown(wait=True)

    def add(self) -> Session:
        """A new session.

        Raises:
            Refusal: there are as many as are allowed, or the server shuts down.
        """
        if self._closing is not None:
            raise self._closing
        if len(self._sessions) >= self.limits.max_sessions:
            raise Refusal(
                Close.TRY_LATER, "full", f"{len(self._sessions)} sessions are open, as many as may be; try again later"
            )
        session = Session(self.limits, self.live.sampling_rate, self._wake)
        self._sessions.add(session)
        return session

    def remove(self, session: Session) -> None:
        """Forget a session, finished or not."""
        if session in self._sessions:
            self._sessions.remove(session)
            self.finished += 1
            session.done.set()
            self._leave(session)

    def _leave(self, session: Session) -> None:
        if session.key is not None:
            self._left.append(session.key)
            session.key = None
            self._wake.set()

    def status(self) -> dict[str, Any]:
        """Figures of the sessions and of the last steps, for people and programs."""
        seconds = sorted(step.seconds for step in self.steps)
        rate = self.live.sampling_rate
        return {
            "sessions": len(self._sessions),
            "max_sessions": self.limits.max_sessions,
            "finished_sessions": self.finished,
            "audio_seconds": round(self.audio, 3),
            "waiting_seconds": round(sum(session.waiting for session in self._sessions) / rate, 3),
            "state_bytes": self.live.nbytes,
            "steps": {
                "remembered": len(seconds),
                "median_ms": _milliseconds(median(seconds)) if seconds else None,
                "p95_ms": _milliseconds(seconds[int(0.95 * (len(seconds) - 1))]) if seconds else None,
                "longest_ms": _milliseconds(seconds[-1]) if seconds else None,
                "mean_rows": round(sum(step.rows for step in self.steps) / len(seconds), 2) if seconds else None,
                "audio_per_second": round(sum(step.audio for step in self.steps) / sum(seconds), 2)
                if seconds
                else None,
            },
        }

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while await self._step():
                pass

    async def _step(self) -> bool:
        """Make a step, if there is something to do."""
        sessions = [session for session in self._sessions if session.ready]
        left, self._left = self._left, []
        if not sessions and not left:
            return False
        most = self._most([session.waiting for session in sessions]) if sessions else 0
        taken = {session: session.take(most) for session in sessions}
        before = perf_counter()
        try:
            keys, found = await asyncio.get_running_loop().run_in_executor(
                self._worker,
                self._recognize,
                {session: (session.key, data, last) for session, (data, last, _) in taken.items()},
                left,
            )
        except Exception as error:
            # A step that fails must not end the server: its streams are lost, the next ones may do better.
            _LOG.exception("a step of the model failed")
            reason = str(error) if isinstance(error, MambavoxError) else type(error).__name__
            for session in sessions:
                session.refuse(Refusal(Close.BROKEN, "model", f"the model failed: {reason}"))
            return True
        for session, (_, last, arrived) in taken.items():
            if session.done.is_set():  # it has gone meanwhile
                if not last:
                    self._left.append(keys[session])
                continue
            session.key = None if last else keys[session]
            session.deliver(found[keys[session]], arrived, last)
        audio = sum(len(data) for data, _, _ in taken.values()) / SAMPLE_BYTES / self.live.sampling_rate
        self.audio += audio
        if taken:
            self.steps.append(Step(perf_counter() - before, len(taken), audio))
        return True

    def _most(self, waiting: Sequence[int]) -> int:
        """Samples that a stream may bring to a step, where so many wait of those in it."""
        limits, rate = self.limits, self.live.sampling_rate
        block = max(1, round(limits.block * rate))
        share = max(block, round(limits.step_seconds / len(waiting) * rate))
        return min(max(median_low(waiting), block), share, round(limits.longest_piece * rate))

    def _recognize(
        self, pieces: Mapping[Session, tuple[int | None, bytes, bool]], left: list[int]
    ) -> tuple[dict[Session, int], dict[int, list[LiveSegment]]]:
        """In the thread of the model: streams that are gone are closed, new ones opened, the others go on."""
        self.live.close(*left)
        keys = {session: self.live.open() if key is None else key for session, (key, _, _) in pieces.items()}
        try:
            found = self.live.feed(
                {keys[session]: to_waveform(data) for session, (_, data, _) in pieces.items()},
                [keys[session] for session, (_, _, last) in pieces.items() if last],
            )
        except BaseException:
            self.live.close(*keys.values())
            raise
        return keys, found


def _milliseconds(seconds: float) -> float:
    return round(1e3 * seconds, 2)
