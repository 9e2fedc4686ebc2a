"""Find the recordings that cannot be used, before training starts."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from mambavox.data.audio import decode_audio
from mambavox.data.example import Example
from mambavox.errors import AudioError, DataError


@dataclass(frozen=True)
class AudioProblem:
    """A recording that cannot be used.

    Attributes:
        name: the recording.
        reason: why, in the words of an error message (which begins with the name).
    """

    name: str
    reason: str


def check_audio(
    examples: Sequence[Example],
    *,
    min_seconds: float = 0.0,
    on_error: Literal["raise", "skip"] = "raise",
    progress: Callable[[int, int], None] | None = None,
    num_workers: int | None = None,
) -> tuple[list[Example], list[AudioProblem]]:
    """Decode every recording once and find those that are corrupt, cut off, empty, NaN or too short.

    Args:
        examples: what to check.
        min_seconds: shortest length that is long enough.
        on_error: ``"raise"`` reports all problems in one error, ``"skip"`` leaves those recordings out.
        progress: called with the numbers of recordings done and in all, after each.
        num_workers: threads; default one a core, at most 8.

    Returns:
        The usable examples in their order, and the problems found.

    Raises:
        AudioError: there are problems and ``on_error`` is ``"raise"``; the message names every recording.
        DataError: no example is usable.
    """

    def problem_of(example: Example) -> AudioProblem | None:
        try:
            waveform, rate = decode_audio(example.source, name=example.name)
        except AudioError as error:
            return AudioProblem(example.name, str(error))
        seconds = len(waveform) / rate
        if seconds < min_seconds:
            reason = f"{example.name}: is {seconds:.3f} s long; expected at least {min_seconds:g} s"
            return AudioProblem(example.name, reason)
        return None

    usable: list[Example] = []
    problems: list[AudioProblem] = []
    with ThreadPoolExecutor(num_workers or min(os.cpu_count() or 1, 8)) as pool:
        for done, (example, problem) in enumerate(zip(examples, pool.map(problem_of, examples), strict=True), start=1):
            if problem is None:
                usable.append(example)
            else:
                problems.append(problem)
            if progress is not None:
                progress(done, len(examples))
    reasons = "\n".join(f"  {problem.reason}" for problem in problems)
    if problems and on_error == "raise":
        raise AudioError(
            f"{len(problems)} of {len(examples)} recordings cannot be used:\n{reasons}\n"
            "Mend them or take them out, or leave them out with --on-error skip"
        )
    if not usable:
        raise DataError(f"none of {len(examples)} recordings can be used:\n{reasons}")
    return usable, problems
