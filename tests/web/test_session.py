"""What waits for the model and for the client is bounded; who does not read is let go."""

import asyncio
import json

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the extra serve is not installed")

from serving import RATE, new_recognizer, noise
from starlette.websockets import WebSocketDisconnect

from mambavox.asr.live import LiveRecognizer, LiveSegment
from mambavox.asr.transcript import Word
from mambavox.errors import ConfigError
from mambavox.web.batcher import Batcher
from mambavox.web.connection import Connection
from mambavox.web.limits import Limits
from mambavox.web.protocol import Refusal, to_text
from mambavox.web.session import Outbox, Session


def partial(text):
    return {"type": "partial", "text": text}


def final(text):
    return {"type": "final", "text": text}


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 20))


class TestOutbox:
    def test_only_the_newest_partial_text_waits_and_none_that_is_older_than_a_final_one(self):
        async def use():
            outbox = Outbox(3)
            for event in (partial("a"), partial("ab"), final("abc"), partial("d"), partial("de")):
                outbox.put(event)
            assert (len(outbox), outbox.dropped) == (2, 3)
            return [await outbox.get(), await outbox.get()]

        assert run(use()) == [final("abc"), partial("de")]

    def test_too_many_final_texts_are_a_slow_reader(self):
        async def use():
            outbox = Outbox(2)
            for _ in range(1000):
                outbox.put(partial("a"))
            outbox.put(final("a"))
            outbox.put(final("b"))
            with pytest.raises(Refusal, match="2 events are not read") as refused:
                outbox.put(final("c"))
            assert refused.value.reason == "slow_reader"

        run(use())

    def test_get_waits(self):
        async def use():
            outbox = Outbox(2)
            waiting = asyncio.create_task(outbox.get())
            await asyncio.sleep(0.01)
            assert not waiting.done()
            outbox.put(final("a"))
            return await waiting

        assert run(use()) == final("a")


class TestSession:
    def test_a_client_that_is_faster_than_the_model_waits(self):
        async def use():
            session = Session(Limits(buffer_seconds=1.0), RATE, asyncio.Event())
            for _ in range(10):
                await session.put(noise(0.1))
            assert session.waiting == RATE
            more = asyncio.create_task(session.put(noise(0.1)))
            await asyncio.sleep(0.01)
            assert not more.done()
            session.take(RATE // 20)
            await asyncio.sleep(0.01)
            assert not more.done()  # half of the room that it needs
            session.take(RATE // 20)
            await more
            assert session.waiting == RATE
            assert session.received == pytest.approx(1.1)
            assert session.heard == pytest.approx(0.1)

        run(use())

    def test_pieces_are_the_samples_in_their_order_and_the_last_one_says_so(self):
        async def use():
            session = Session(Limits(), RATE, asyncio.Event())
            pcm = noise(0.5)
            for begin in range(0, len(pcm), 1000):
                await session.put(pcm[begin : begin + 1000])
            session.end()
            pieces = []
            while not pieces or not pieces[-1][1]:
                pieces.append(session.take(3000))
            assert b"".join(data for data, _, _ in pieces) == pcm
            assert [last for _, last, _ in pieces] == [False, False, True]

        run(use())

    def test_it_is_known_when_the_last_sample_of_a_piece_came(self):
        async def use():
            session, clock = Session(Limits(), RATE, asyncio.Event()), asyncio.get_running_loop().time
            await session.put(noise(0.1))
            first = clock()
            await asyncio.sleep(0.05)
            await session.put(noise(0.1))
            assert session.take(RATE // 20)[2] <= first  # the first message
            assert session.take(RATE // 10)[2] >= first + 0.05  # some of the second one, too

        run(use())

    def test_tiny_messages_do_not_fill_the_memory_with_times(self):
        async def use():
            session = Session(Limits(), RATE, asyncio.Event())
            for _ in range(5000):
                await session.put(b"\0\0")
                await session.put(b"")
            assert session.waiting == 5000
            assert len(session._arrivals) < 500

        run(use())

    def test_it_takes_part_in_a_step_with_a_block_or_its_end(self):
        async def use():
            wake = asyncio.Event()
            session = Session(Limits(block=0.16), RATE, wake)
            await session.put(noise(0.15))
            assert not session.ready
            assert not wake.is_set()
            await session.put(noise(0.01))
            assert session.ready
            assert wake.is_set()
            session.take(RATE)
            assert not session.ready
            session.end()
            assert session.ready

        run(use())

    def test_a_client_that_reads_no_final_texts_is_refused(self):
        async def use():
            session = Session(Limits(unread_events=2), RATE, asyncio.Event())
            segments = [LiveSegment(number, (Word("a", 0.0, 0.1, 0.5),), final=True) for number in range(3)]
            session.deliver(segments, 0.0, last=False)
            assert session.refusal.result().reason == "slow_reader"
            assert session.done.is_set()

        run(use())


class TestBatcher:
    def test_no_stream_brings_more_than_most_of_the_others_have(self):
        async def use():
            steps = []

            class Watched(LiveRecognizer):
                def feed(self, pieces, last=()):
                    steps.append(sorted(len(piece) for piece in pieces.values()))
                    return super().feed(pieces, last)

            batcher = Batcher(Watched(new_recognizer()), Limits(block=0.1, longest_piece=0.5, buffer_seconds=4.0))
            slow, fast, alone = batcher.add(), batcher.add(), batcher.add()
            await slow.put(noise(0.1))
            await fast.put(noise(2.0))
            await alone.put(noise(0.05))
            batcher.start()
            while sum(map(sum, steps)) < 1600 + 2 * RATE:
                await asyncio.sleep(0.01)
            # With the slow one a block; then by itself as much as a stream may bring; less than a block waits.
            assert steps == [[1600, 1600], [8000], [8000], [8000], [6400]]
            await batcher.stop()
            assert slow.refusal.result().reason == "shutdown"

        run(use())

    def test_many_streams_share_the_audio_of_a_step(self):
        async def use():
            limits = Limits(block=0.1, longest_piece=0.5, buffer_seconds=4.0, step_seconds=1.0)
            batcher = Batcher(LiveRecognizer(new_recognizer()), limits)
            assert batcher._most([RATE]) == RATE // 2
            assert batcher._most([RATE] * 4) == RATE // 4
            assert batcher._most([RATE] * 50) == RATE // 10
            assert batcher._most([0, 100, RATE]) == RATE // 10

        run(use())


class Mute:
    """A WebSocket whose client sends samples and never reads: sending blocks for ever once the first has gone."""

    def __init__(self, messages):
        self.messages = list(messages)
        self.sent = []
        self.closed = None

    async def accept(self):
        pass

    async def receive(self):
        if self.messages:
            return {"type": "websocket.receive", **self.messages.pop(0)}
        await asyncio.Event().wait()

    async def send_text(self, text):
        if self.sent:
            await asyncio.Event().wait()
        self.sent.append(json.loads(text))

    async def close(self, code, reason):
        self.closed = code


class TestConnection:
    def test_a_client_that_never_reads_is_let_go(self):
        async def use():
            live = LiveRecognizer(new_recognizer())
            batcher = Batcher(live, Limits(send_seconds=0.2))
            batcher.start()
            start = {"text": json.dumps({"type": "start", "sampling_rate": RATE})}
            socket = Mute([start, *({"bytes": noise(0.4)} for _ in range(20))])
            await Connection(socket, batcher, None).serve()
            assert [event["type"] for event in socket.sent] == ["ready"]
            assert len(batcher) == 0
            while live.streams:
                await asyncio.sleep(0.01)
            await batcher.stop()

        run(use())

    def test_a_client_that_is_gone_when_it_is_told_is_no_error(self):
        class Gone(Mute):
            async def send_text(self, text):
                raise WebSocketDisconnect(1006)

        async def use():
            batcher = Batcher(LiveRecognizer(new_recognizer()), Limits())
            await Connection(Gone([{"text": "nonsense"}]), batcher, None).serve()
            assert len(batcher) == 0

        run(use())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_sessions": 0}, "max_sessions=0; expected a number above 0"),
        ({"send_seconds": float("nan")}, "send_seconds=nan"),
        ({"block": 1.0, "longest_piece": 0.5}, "expected each to be at most the next one"),
    ],
)
def test_limits_are_checked(values, message):
    with pytest.raises(ConfigError, match=message):
        Limits(**values)


def test_numbers_are_short():
    assert to_text({"type": "x", "a": [0.123456, {"b": 1 / 3}], "n": 3}) == (
        '{"type": "x", "a": [0.1235, {"b": 0.3333}], "n": 3}'
    )
    assert json.loads(to_text({"type": "x", "confidence": float(np.float32(0.5))}))["confidence"] == 0.5
