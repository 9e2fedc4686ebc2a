"""Find the recordings that cannot be used, before training starts."""

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from mambavox.data.audio import decode_audio
from mambavox.data.example import Example
from mambavox.errors import AudioError, DataError, DataWarning

_LENGTHS_DIFFER = 0.1  # seconds, or the share below, between what a manifest states and what is read
_SHARE_DIFFERS = 0.02


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

    Warns:
        DataWarning: recordings have not the length that their source states.
    """
    seconds_of: dict[int, float] = {}

    def problem_of(example: Example) -> AudioProblem | None:
        try:
            waveform, rate = decode_audio(example.source, name=example.name)
        except AudioError as error:
            return AudioProblem(example.name, str(error))
        seconds_of[id(example)] = seconds = len(waveform) / rate
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
    warn_of_lengths(usable, [seconds_of[id(example)] for example in usable])
    return usable, problems


def warn_of_lengths(examples: Sequence[Example], seconds: Sequence[float]) -> None:
    """Tell when a column ``duration`` states other lengths than those of the files, all of which are heard.

    Args:
        examples: the recordings.
        seconds: length of each.

    Warns:
        DataWarning: some differ.
    """
    differing = [
        (example, read)
        for example, read in zip(examples, seconds, strict=True)
        if example.stated_seconds is not None
        and not abs(example.stated_seconds - read) <= max(_LENGTHS_DIFFER, _SHARE_DIFFERS * read)
    ]
    if differing:
        example, read = differing[0]
        warnings.warn(
            f"{len(differing)} of {len(examples)} recordings have not the length that the column duration states, such "
            f"as {example.name}: {read:.2f} s, not {example.stated_seconds:g} s; all of each file is heard. Add a "
            "column offset to hear no more than the duration",
            DataWarning,
            stacklevel=3,
        )
