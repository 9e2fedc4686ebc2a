"""IEMOCAP as published: ``Session1`` to ``Session5``, each with ``sentences/wav`` and ``dialog/EmoEvaluation``."""

import re
from collections.abc import Iterator
from pathlib import Path

from mambavox.data.datasets.corpus import Corpus, check_listed
from mambavox.data.example import Example
from mambavox.data.protocol import cross_validation
from mambavox.errors import DataError

_CLASSES = {"ang": "angry", "hap": "happy", "exc": "happy", "neu": "neutral", "sad": "sad"}
# [start - end] <tab> utterance <tab> emotion <tab> [valence, activation, dominance]
_TURN = re.compile(r"\[([\d.]+) - ([\d.]+)\]\s+(\w+_([FM])\w*)\s+(\w+)\s+\[([\d.]+), ([\d.]+), ([\d.]+)\]")
_MEASURES = ("valence", "activation", "dominance")


def read_iemocap(folder: Path) -> list[Example]:
    """Read acted emotions: 5531 utterances of 4 classes, 10 speakers, 5 sessions of two speakers each.

    The classes are those of most papers: angry, happy (with excited), neutral, sad. Utterances of other emotions, or
    whose judges did not agree, are left out.

    Args:
        folder: the folder of the corpus, ``IEMOCAP_full_release``.

    Returns:
        Examples labelled by class, with the fields ``session`` ("1" to "5"), ``speaker`` ("Ses01F"), ``dialogue``,
        ``emotion`` (the corpus's own word), ``valence``, ``activation`` and ``dominance`` (1 to 5).

    Raises:
        DataError: an evaluation is malformed, or names a file that is missing or named twice.

    Source:
        Busso et al. 2008, IEMOCAP: interactive emotional dyadic motion capture database.
    """
    files: list[tuple[str, Path]] = []
    examples = []
    for session in range(1, 6):
        home = folder / f"Session{session}"
        # The archive also holds files of macOS, whose names begin with a dot.
        for evaluation in sorted((home / "dialog" / "EmoEvaluation").glob("Ses*.txt")):
            for place, turn in _turns(evaluation):
                _, _, utterance, gender, emotion, *measures = turn
                if emotion not in _CLASSES:
                    continue
                file = home / "sentences" / "wav" / evaluation.stem / f"{utterance}.wav"
                files.append((place, file))
                fields = {
                    "session": str(session),
                    # The letter in a dialogue's name is who wears the markers, not who speaks.
                    "speaker": f"Ses{session:02d}{gender}",
                    "dialogue": evaluation.stem,
                    "emotion": emotion,
                    **dict(zip(_MEASURES, map(float, measures), strict=True)),
                }
                examples.append(Example(file, _CLASSES[emotion], fields))
    check_listed(files)
    return examples


def _turns(evaluation: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Place and values of each summary line; the judges' own lines follow each one."""
    # Judges' remarks are free text; what they hold of other encodings is not read.
    for number, line in enumerate(evaluation.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if line.startswith("["):
            turn = _TURN.fullmatch(line.strip())
            if turn is None:
                raise DataError(
                    f"{evaluation}, line {number}: is {line.strip()!r}; expected [start - end], an utterance, its "
                    "emotion and [valence, activation, dominance]"
                )
            yield f"{evaluation}, line {number}", turn.groups()


IEMOCAP = Corpus(
    name="iemocap",
    title="IEMOCAP (4 classes)",
    source="sail.usc.edu/iemocap",
    num_clips=5531,
    layout=("Session1/dialog/EmoEvaluation", "Session1/sentences/wav"),
    reader=read_iemocap,
    # The next session validates: neither a speaker nor a conversation is in two splits.
    protocols=(cross_validation("sessions", "session", num_folds=5, valid_offset=1),),
)
