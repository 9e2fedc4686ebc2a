"""Memory and time of `mambavox transcribe` on long recordings, each in a process of its own."""

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import soundfile
import torch
from rich.console import Console

from mambavox.benchmarks.machine import machine_facts
from mambavox.benchmarks.random_recognizer import save_random_recognizer
from mambavox.benchmarks.report import Report, in_words
from mambavox.data import SAMPLING_RATE, Waveform, read_audio
from mambavox.data.audio import READABLE_SUFFIXES
from mambavox.data.class_folders import audio_files
from mambavox.errors import BackendError, DataError

LENGTHS = (600.0, 10_800.0)
"""Seconds of the recordings: ten minutes and three hours."""

_MIB = 1 << 20
_COMMAND = "from mambavox.cli import app; app()"


@dataclass(frozen=True)
class Run:
    """One transcription.

    Attributes:
        seconds: of the recording.
        peak_bytes: most memory that the process had, with Python, torch and the model.
        wall: seconds from its start to its end.
    """

    seconds: float
    peak_bytes: int
    wall: float


@dataclass(frozen=True)
class LongFormReport(Report):
    """All figures.

    Attributes:
        facts: the machine and the settings, by name.
        runs: from the shortest recording to the longest.
    """

    name = "long_form"

    facts: Mapping[str, Any]
    runs: Sequence[Run]

    def markdown(self) -> str:
        """A table."""
        lines = [
            "# long_form",
            "",
            in_words(self.facts),
            "",
            "| recording | peak memory | more than the first | time, with the start | real-time factor |",
            "|---|---|---|---|---|",
        ]
        for run in self.runs:
            lines.append(
                f"| {run.seconds / 60:g} min | {run.peak_bytes / _MIB:.0f} MiB "
                f"| {(run.peak_bytes - self.runs[0].peak_bytes) / _MIB:+.0f} MiB "
                f"| {run.wall:.1f} s | {run.wall / run.seconds:.4f} |"
            )
        return "\n".join(lines) + "\n"

    def to_mapping(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measure_long_form(
    data: Path,
    *,
    model: str | None = None,
    encoder: str = "mamba",
    lengths: Sequence[float] = LENGTHS,
    threads: int = 1,
    device: str = "cpu",
    console: Console | None = None,
) -> LongFormReport:
    """Transcribe recordings joined from clips, and measure the processes that do.

    Args:
        data: folder with clips, at any depth; they are joined in order, again and again.
        model: run folder; default a nano Mamba-HuBERT with random weights, which change neither memory nor time.
        encoder: kind of the layers of that model.
        lengths: seconds of the recordings.
        threads: that work.
        device: cpu or cuda.
        console: where progress is told.

    Raises:
        BackendError: the system does not tell the memory of a process.
        DataError: there are no clips, or a transcription failed.
    """
    if not hasattr(os, "wait4"):
        raise BackendError("the peak memory of a process is told by Linux and macOS only")
    folder = data.expanduser()
    clips = audio_files(folder) if folder.is_dir() else []
    if not clips:
        raise DataError(f"{data}: holds no clips; expected files that end in {', '.join(sorted(READABLE_SUFFIXES))}")
    runs = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if model is None:
            save_random_recognizer(folder / "model", encoder)
        for seconds in sorted(lengths):
            recording = folder / f"{seconds:g}.flac"
            if console is not None:
                console.print(f"{seconds / 60:g} minutes", markup=False)
            write_recording(recording, clips, seconds)
            runs.append(_transcribe(recording, model or str(folder / "model"), seconds, threads, device))
            recording.unlink()
    facts = machine_facts(torch.device(device), torch.float32) | {"threads": threads}
    facts["model"] = model or f"nano {encoder}, random weights"
    return LongFormReport(facts, runs)


def write_recording(path: Path, clips: Sequence[Path], seconds: float) -> None:
    """Join clips to a FLAC file of some length.

    Args:
        path: of the file.
        clips: in order; again and again until it is long enough.
        seconds: its length.

    Raises:
        AudioError: a clip cannot be read.
    """
    left = round(seconds * SAMPLING_RATE)
    with soundfile.SoundFile(path, "w", SAMPLING_RATE, 1, "PCM_16", format="FLAC") as file:
        for waveform in _waveforms(clips):
            file.write(waveform[:left])
            left -= len(waveform)
            if left <= 0:
                return


def _waveforms(clips: Sequence[Path]) -> Iterator[Waveform]:
    return (read_audio(clip) for clip in itertools.cycle(clips))


def _transcribe(recording: Path, model: str, seconds: float, threads: int, device: str) -> Run:
    arguments = ["transcribe", str(recording), "--model", model, "--format", "json,srt", "--device", device]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=errors, env=environment
        )
        # The usage of this process alone, and not of all that have ended.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - start
        if process.returncode:
            errors.seek(0)
            last = (errors.read().decode(errors="replace").strip().splitlines() or ["no message"])[-1]
            raise DataError(f"the transcription of {seconds:g} s ended with {process.returncode}: {last}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Run(seconds, peak, wall)
