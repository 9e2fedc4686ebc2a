"""TED-LIUM 3 as published: ``legacy/train/stm/*.stm`` and ``legacy/train/sph/*.sph``; utterances or whole talks."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mambavox.data.audio import AudioSegment
from mambavox.data.datasets.corpus import Corpus, check_listed
from mambavox.data.example import Example
from mambavox.data.protocol import OFFICIAL_LISTS
from mambavox.errors import DataError

_PARTS = {"train": "train", "dev": "valid", "test": "test"}
_IGNORED = "ignore_time_segment_in_scoring"
# Words that could not be made out, noises, and numbers of pronunciations.
_MARKS = re.compile(r"<unk>|\{[^}]*\}|\[[^\]]*\]|\(\d+\)")
# The tokenisation sets apart what follows an apostrophe: it 's.
_APART = re.compile(r" (?='(?:s|t|m|re|ve|ll|d)\b)")


class _Segment(NamedTuple):
    place: str
    talk: str
    speaker: str
    start: float
    end: float
    text: str


def read_tedlium3(folder: Path) -> list[Example]:
    """Read talks cut into utterances.

    Args:
        folder: of the corpus, ``TEDLIUM_release-3``.

    Returns:
        Examples with the fields ``text``, ``subset`` (train, dev, test), ``split``, ``speaker``, ``talk``, ``start``
        and ``end`` (seconds in the talk) and ``language``. Segments without words are left out.

    Raises:
        DataError: an stm file is malformed, or its talk is missing.

    Source:
        Hernandez et al. 2018 (arXiv 1805.04699), the legacy division, whose dev and test are those of release 2.
    """
    return [
        Example(
            AudioSegment(audio, segment.start, segment.end),
            None,
            {
                **_fields(subset, segment),
                "text": segment.text,
                "start": segment.start,
                "end": segment.end,
            },
            f"{audio} {segment.start:.2f}-{segment.end:.2f} s",
        )
        for subset, audio, segments in _talks(folder)
        for segment in segments
    ]


def read_tedlium3_talks(folder: Path) -> list[Example]:
    """Read whole talks, with all their words in order; arguments are those of :func:`read_tedlium3`."""
    return [
        Example(audio, None, {**_fields(subset, segments[0]), "text": " ".join(segment.text for segment in segments)})
        for subset, audio, segments in _talks(folder)
        if segments
    ]


def _fields(subset: str, segment: _Segment) -> dict[str, str]:
    return {
        "subset": subset,
        "split": _PARTS[subset],
        "speaker": segment.speaker,
        "talk": segment.talk,
        "language": "en",
    }


def _talks(folder: Path) -> Iterator[tuple[str, Path, list[_Segment]]]:
    """Subset, recording, and segments in order of time, of each talk."""
    found = []
    for subset in _PARTS:
        home = folder / "legacy" / subset
        for list_file in sorted((home / "stm").glob("*.stm")):
            found.append((subset, home / "sph" / f"{list_file.stem}.sph", sorted(_segments(list_file), key=_start)))
    check_listed([(str(audio.with_suffix(".stm").name), audio) for _, audio, _ in found])
    yield from found


def _start(segment: _Segment) -> float:
    return segment.start


def _segments(list_file: Path) -> Iterator[_Segment]:
    for number, line in enumerate(list_file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith(";;"):
            continue
        place = f"{list_file}, line {number}"
        values = line.split(maxsplit=6)
        try:
            start, end = float(values[3]), float(values[4])
        except (IndexError, ValueError) as error:
            raise DataError(
                f"{place}: is {line.strip()[:80]!r}; expected talk, channel, speaker, start, end, <label> and text"
            ) from error
        if not 0 <= start < end:
            raise DataError(f"{place}: goes from {start:g} to {end:g} s; expected a start before its end")
        text = values[6] if len(values) > 6 else ""
        if _IGNORED in text:
            continue
        text = " ".join(_APART.sub("", " ".join(_MARKS.sub(" ", text).split())).split())
        if text:
            yield _Segment(place, values[0], values[2], start, end, text)


TEDLIUM3 = Corpus(
    name="tedlium3",
    title="TED-LIUM 3",
    source="openslr.org/51",
    num_clips=None,
    layout=(),
    any_of=("legacy/train/stm", "legacy/dev/stm", "legacy/test/stm"),
    reader=read_tedlium3,
    protocols=(OFFICIAL_LISTS,),
)
TEDLIUM3_TALKS = Corpus(
    name="tedlium3_talks",
    title="TED-LIUM 3, whole talks",
    source="openslr.org/51",
    num_clips=None,
    layout=(),
    any_of=("legacy/train/stm", "legacy/dev/stm", "legacy/test/stm"),
    reader=read_tedlium3_talks,
    protocols=(OFFICIAL_LISTS,),
    by_name=True,
)
