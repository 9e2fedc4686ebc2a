"""Many clients of ``mambavox serve`` at the pace of speech: how long after it was spoken each word is there.

The server runs in a process of its own, as users start it; the clients share the machine with it. First alone, then
with a client that does all that it may not.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.request import urlopen

import numpy as np
import torch
from rich.console import Console

from mambavox.asr.decoding import greedy_search
from mambavox.asr.model import ctc_log_probs
from mambavox.asr.recognizer import SpeechRecognizer
from mambavox.asr.transcript import Word
from mambavox.assets import RECOGNISER
from mambavox.benchmarks.machine import machine_facts
from mambavox.benchmarks.report import Report, in_words
from mambavox.data import SAMPLING_RATE, Waveform, read_audio
from mambavox.data.audio import dequantise, quantise
from mambavox.data.class_folders import audio_files
from mambavox.errors import BackendError, ConfigError

MESSAGE = 0.04
"""Seconds of audio in a message, as the page sends them."""
_GAP = 0.3  # seconds of silence between recordings of a stream
_PATIENCE = 30.0  # seconds after its last sample in which a stream must have ended


@dataclass(frozen=True)
class Heard:
    """What came of one stream.

    Attributes:
        words: of the final texts, joined.
        delays: of each word, seconds from its end to the event that first showed all of it.
        server_delays: of each event, seconds from the arrival of its last sample to its text.
        ended: whether the server ended it in the regular way.
        problem: what went wrong otherwise.
    """

    words: list[str] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)
    server_delays: list[float] = field(default_factory=list)
    ended: bool = False
    problem: str = ""


@dataclass(frozen=True)
class Round:
    """The figures of one round of streams.

    Attributes:
        name: alone or with the hostile client.
        streams: at the same time.
        dropped: streams that were not ended in the regular way.
        as_whole: streams whose text is that of the whole recording, recognised alone.
        words: of all streams.
        word_delays: seconds, median, 95 % and the longest.
        server_delays: the same of events, inside the server.
        server_cores: processor time of the server by the clock's.
        attacks: what the hostile client did, by kind.
        problems: of dropped streams.
    """

    name: str
    streams: int
    dropped: int
    as_whole: int
    words: int
    word_delays: tuple[float, float, float]
    server_delays: tuple[float, float, float]
    server_cores: float
    attacks: dict[str, int]
    problems: list[str]


@dataclass(frozen=True)
class ServingReport(Report):
    """All figures.

    Attributes:
        facts: the machine and the settings, by name.
        rounds: in the order in which they were measured.
        steps: the last ones of the model, from the server's status.
        server_mib: the most memory that it held.
    """

    name = "serve"

    facts: dict[str, Any]
    rounds: Sequence[Round]
    steps: dict[str, Any]
    server_mib: float

    def markdown(self) -> str:
        """A table with a row for each round."""
        lines = [
            "# serve",
            "",
            in_words(self.facts)
            + ". Word delay: from the end of a word in the recording to the event that first shows all of it, at the "
            "client, messages of "
            f"{1e3 * MESSAGE:.0f} ms; server delay: from the arrival of an event's last sample. The last "
            f"{self.steps['remembered']} steps of the model took {self.steps['median_ms']} ms (median; 95 %: "
            f"{self.steps['p95_ms']} ms) for {self.steps['mean_rows']} streams each. The server held "
            f"{self.server_mib:,.0f} MiB at most.",
            "",
            "| round | streams | dropped | text as of the whole | words | word delay, ms: median, 95 %, longest "
            "| server delay, ms | cores of the server |",
            "|---|--:|--:|--:|--:|--:|--:|--:|",
        ]
        for row in self.rounds:
            words, server = (
                ", ".join(f"{1e3 * seconds:.0f}" for seconds in delays)
                for delays in (row.word_delays, row.server_delays)
            )
            lines.append(
                f"| {row.name} | {row.streams} | {row.dropped} | {row.as_whole} | {row.words} | {words} | {server} "
                f"| {row.server_cores:.2f} |"
            )
        for row in self.rounds:
            if row.attacks:
                done = ", ".join(f"{count} x {name}" for name, count in row.attacks.items())
                lines += ["", f"Hostile client: {done}."]
            lines += [f"- {row.name}: {problem}" for problem in row.problems[:5]]
        return "\n".join(lines) + "\n"

    def to_mapping(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measure_serving(
    data: str | Path,
    model: str | Path = RECOGNISER,
    streams: int = 50,
    seconds: float = 20.0,
    threads: int = 1,
    hostile: bool = True,
    console: Console | None = None,
) -> ServingReport:
    """Measure a server with many clients.

    Args:
        data: folder of recordings; a stream plays some, one after another.
        model: run folder of a causal recogniser.
        streams: clients at a time.
        seconds: that each of them speaks.
        threads: of the model.
        hostile: whether to measure again beside a hostile client.
        console: where progress goes; ``None`` is silent.

    Raises:
        ConfigError: no recordings, or a number out of range.
        BackendError: the server did not start.
    """
    if streams < 1 or seconds < 1 or threads < 1:
        raise ConfigError(f"streams={streams}, seconds={seconds}, threads={threads}; expected at least 1 of each")
    waveforms = read_streams(data, streams, seconds)
    say: Callable[[str], Any] = (lambda line: None) if console is None else console.print
    rounds = []
    with running_server(model, threads, streams) as (address, process):
        for name, attack in (("alone", False), ("with a hostile client", True))[: 2 if hostile else 1]:
            say(f"{name}: {streams} streams for {seconds:g} s")
            before, began = _processor_seconds(process), perf_counter()
            heard, attacks = asyncio.run(_play(address, waveforms, attack))
            cores = (_processor_seconds(process) - before) / (perf_counter() - began)
            rounds.append((name, heard, cores, attacks))
        most = _peak_mib(process)
        with urlopen(f"{address}/status", timeout=30) as response:
            steps = json.load(response)["steps"]
    say("recognising the recordings as a whole")
    recognizer = SpeechRecognizer.from_pretrained(model, device="cpu")
    log_probs = ctc_log_probs(recognizer.model, recognizer.extractor, waveforms)
    vocabulary = recognizer.vocabulary
    whole = [vocabulary.text(greedy_search(frames, vocabulary.blank)) for frames in log_probs]
    facts = {
        **machine_facts(torch.device("cpu"), torch.float32),
        "model": str(model),
        "threads of the model": threads,
        "seconds of each stream": seconds,
    }
    facts.pop("threads")
    return ServingReport(facts, [_summarise(*figures, whole) for figures in rounds], steps, most)


def read_streams(data: str | Path, streams: int, seconds: float) -> list[Waveform]:
    """What the clients say: recordings one after another, each client beginning with others.

    Args:
        data: folder of recordings.
        streams: number of clients.
        seconds: that each of them speaks.

    Raises:
        ConfigError: there are no recordings.
    """
    folder = Path(data)
    files = audio_files(folder) if folder.is_dir() else []
    if not files:
        raise ConfigError(f"data={data}: no recordings are there; expected a folder with some")
    order = np.random.default_rng(0).permutation(len(files))
    wanted, place = round(seconds * SAMPLING_RATE), 0
    spoken = []
    for _ in range(streams):
        pieces: list[Waveform] = []
        while sum(map(len, pieces)) < wanted:
            pieces += [read_audio(files[order[place % len(files)]]), np.zeros(round(_GAP * SAMPLING_RATE), np.float32)]
            place += 1
        # As 16-bit samples carry it.
        spoken.append(dequantise(quantise(np.concatenate(pieces)[:wanted])))
    return spoken


@contextlib.contextmanager
def running_server(model: str | Path, threads: int, streams: int) -> Iterator[tuple[str, int]]:
    """A server in a process of its own.

    Args:
        model: folder, or an embedded model.
        threads: of the model.
        streams: that it must take; there is room for a few more.

    Yields:
        Its address and the number of its process.

    Raises:
        BackendError: it did not start.
    """
    command = [sys.executable, "-m", "mambavox", "serve", "--model", str(model), "--device", "cpu", "--port", "0"]
    command += ["--threads", str(threads), "--max-sessions", str(streams + 8)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr is not None
            lines = []
            for line in process.stderr:
                lines.append(line)
                if " listens at " in line:
                    yield line.partition(" listens at ")[2].split()[0], process.pid
                    break
            else:
                raise BackendError(f"the server did not start: {''.join(lines[-5:]).strip()}")
        finally:
            process.terminate()


async def _play(address: str, waveforms: Sequence[Waveform], attack: bool) -> tuple[list[Heard], dict[str, int]]:
    from websockets.asyncio.client import connect

    socket = address.replace("http", "ws") + "/listen"
    attacks: dict[str, int] = {}
    over = asyncio.Event()
    hostile = [asyncio.create_task(_attack(socket, attacks, over))] if attack else []
    begins = np.random.default_rng(1).uniform(0, 1, len(waveforms))

    async def speak(waveform: Waveform, begin: float) -> Heard:
        await asyncio.sleep(begin)  # people do not speak in step
        try:
            async with connect(socket, compression=None, open_timeout=30) as client:
                return await _speak(client, waveform)
        except Exception as error:  # whatever it is, the stream is lost
            return Heard(problem=f"{type(error).__name__}: {error}")

    heard = await asyncio.gather(*map(speak, waveforms, begins))
    over.set()
    await asyncio.gather(*hostile)
    return heard, attacks


async def _speak(client: Any, waveform: Waveform) -> Heard:
    """One stream at the pace of speech."""
    clock = asyncio.get_running_loop().time
    await client.send(json.dumps({"type": "start", "sampling_rate": SAMPLING_RATE}))
    ready = json.loads(await client.recv())
    if ready["type"] != "ready":
        return Heard(problem=str(ready))
    pcm = quantise(waveform).astype("<i2").tobytes()
    size = 2 * round(MESSAGE * SAMPLING_RATE)
    began = clock()

    async def send() -> None:
        for first in range(0, len(pcm), size):
            piece = pcm[first : first + size]
            # A message goes out when its last sample has been spoken.
            await asyncio.sleep(began + (first + len(piece)) / 2 / SAMPLING_RATE - clock())
            await client.send(piece)
        await client.send('{"type": "end"}')

    sending = asyncio.create_task(send())
    shown: list[tuple[float, list[str]]] = []  # when, and the words of the segment that goes on
    words: list[str] = []
    delays: list[float] = []
    server: list[float] = []
    try:
        while True:
            event = json.loads(await asyncio.wait_for(client.recv(), len(waveform) / SAMPLING_RATE + _PATIENCE))
            if event["type"] == "ended":
                await sending
                return Heard(words, delays, server, ended=True)
            if event["type"] == "error":
                return Heard(words, delays, server, problem=event["message"])
            now = clock() - began
            server.append(event["delay"])
            shown.append((now, event["text"].split()))
            if event["type"] == "final":
                said = [Word(**word) for word in event["words"]]
                words += [word.text for word in said]
                delays += _delays(said, shown)
                shown.clear()
    finally:
        sending.cancel()


def _delays(said: Sequence[Word], shown: Sequence[tuple[float, list[str]]]) -> list[float]:
    """From the end of each word to the first event that showed all of it."""
    found = []
    for place, word in enumerate(said):
        when = next(when for when, part in shown if part[place : place + 1] == [word.text])
        found.append(when - word.end)
    return found


async def _attack(socket: str, done: dict[str, int], over: asyncio.Event) -> None:
    """Do all that a client may not, again and again."""
    from websockets.asyncio.client import connect
    from websockets.exceptions import WebSocketException

    start = json.dumps({"type": "start", "sampling_rate": SAMPLING_RATE})
    random = np.random.default_rng(2)

    async def huge(client: Any) -> None:
        await client.send(start)
        await client.send(b"\0" * (4 << 20))
        await client.recv()
        await client.recv()

    async def garbage(client: Any) -> None:
        await client.send(random.bytes(999))
        await client.recv()
        await client.recv()

    async def no_json(client: Any) -> None:
        await client.send(start)
        await client.send("{" * 4000)
        for _ in range(3):
            await client.recv()

    async def never_reads(client: Any) -> None:
        await client.send(start)
        client.transport.pause_reading()
        for _ in range(50):
            await client.send(random.bytes(32_000))
            await client.ping()

    async def vanishes(client: Any) -> None:
        await client.send(start)
        await client.send(random.bytes(6400))
        client.transport.abort()

    while not over.is_set():
        for act in (huge, garbage, no_json, never_reads, vanishes):
            with contextlib.suppress(WebSocketException, OSError, asyncio.TimeoutError):
                async with connect(socket, compression=None, close_timeout=0.2) as client:
                    done[act.__name__] = done.get(act.__name__, 0) + 1
                    await asyncio.wait_for(act(client), 3)
            await asyncio.sleep(0.1)


def _summarise(name: str, heard: Sequence[Heard], cores: float, attacks: dict[str, int], whole: Sequence[str]) -> Round:
    delays = [delay for stream in heard for delay in stream.delays]
    # Joined without spaces: a word that is longer than a segment is cut.
    same = sum(
        stream.ended and "".join(stream.words) == text.replace(" ", "")
        for stream, text in zip(heard, whole, strict=True)
    )
    return Round(
        name=name,
        streams=len(heard),
        dropped=sum(not stream.ended for stream in heard),
        as_whole=same,
        words=len(delays),
        word_delays=_spread(delays),
        server_delays=_spread([delay for stream in heard for delay in stream.server_delays]),
        server_cores=cores,
        attacks=attacks,
        problems=[stream.problem for stream in heard if not stream.ended],
    )


def _processor_seconds(process: int) -> float:
    """Processor time of a process so far, where the system tells."""
    file = Path(f"/proc/{process}/stat")
    if not file.exists():
        return float("nan")
    user, system = file.read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _peak_mib(process: int) -> float:
    """The most memory that a process has held, where the system tells."""
    file = Path(f"/proc/{process}/status")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), float("nan"))


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    if not values:
        return (float("nan"),) * 3
    median, most = np.quantile(values, [0.5, 0.95])
    return float(median), float(most), max(values)
