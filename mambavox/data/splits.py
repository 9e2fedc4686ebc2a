"""Divide examples into train, valid and test splits: by a column, by folds, or at random."""

import re
import warnings
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from mambavox.data.audio import AudioSegment
from mambavox.data.columns import listed
from mambavox.data.example import Example
from mambavox.errors import DataError

Part: TypeAlias = Literal["train", "valid", "test"]

_WORDS: dict[str, Part] = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
    "heldout": "test",
}

_LEADING = re.compile(rf"({'|'.join(sorted(_WORDS, key=len, reverse=True))})(?:[._-].*)?")

NO_COLUMN = "none"
"""As ``split_column``: divide at random, whatever columns there are."""


def part_named(word: object) -> Part | None:
    """The split that a word of a split column, or a folder's name, stands for; ``None`` where it is no such word."""
    return _WORDS.get(str(word).strip().lower())


def part_led_by(name: object) -> Part | None:
    """The split that a name begins with: ``train.clean.100``, ``dev-other``, ``test_1``; ``None`` where it is no word.

    Args:
        name: of a data set's split, or of a tar.
    """
    found = _LEADING.fullmatch(str(name).strip().lower())
    return _WORDS[found[1]] if found else None


def parts_by_split(examples: Sequence[Example]) -> list[Part] | None:
    """The split of each recording that its column ``split`` names; ``None`` where no recording has the column.

    Args:
        examples: the recordings.

    Raises:
        DataError: the column holds words that begin with no part's, or some recordings have none.
    """
    words = [str(example.fields.get("split") or "") for example in examples]
    if not any(words):
        return None
    part_of = {word: part_led_by(word) for word in dict.fromkeys(words)}
    unknown = [repr(word) for word, part in part_of.items() if part is None]
    if unknown:
        known = ", ".join(word for word, part in part_of.items() if part is not None)
        raise DataError(
            f"column split holds {listed(unknown)}, so that nobody knows which split these recordings are of"
            + (f" (it also holds {known})" if known else "")
            + "; expected words that begin with train, valid or test in all rows: rename them, leave the recordings "
            "out (--drop-splits), or take the column away"
        )
    return [part for part in map(part_of.get, words) if part is not None]


def drop_splits(
    examples: Sequence[Example], dropped: str | None, columns: Sequence[str] = ("split",)
) -> tuple[list[Example], list[str]]:
    """Leave out the recordings of some splits.

    Args:
        examples: the recordings.
        dropped: values of the columns, by commas; ``None`` leaves out none.
        columns: in which the values are looked for.

    Returns:
        The others, in their order, and a sentence for the user where some are left out.

    Raises:
        DataError: there is no such value, or nothing is left.
    """
    names = [word.strip() for word in (dropped or "").split(",") if word.strip()]
    if not names:
        return list(examples), []
    values = [{str(item.fields[column]) for column in columns if column in item.fields} for item in examples]
    there = dict.fromkeys(value for found in values for value in sorted(found))
    missing = [name for name in names if name not in there]
    if missing:
        holds = f"{' or '.join(columns)} holds {listed(list(there)) or 'nothing'}"
        raise DataError(f"drop_splits names {listed(missing)}, but {holds}: --drop-splits")
    kept = [example for example, found in zip(examples, values, strict=True) if not found & set(names)]
    if not kept:
        raise DataError(
            f"drop_splits={dropped} leaves out all of {len(examples)} recordings; name fewer: --drop-splits"
        )
    return kept, [f"{len(examples) - len(kept)} recordings are left out by --drop-splits {','.join(names)}"]


@dataclass(frozen=True)
class Splits:
    """Examples divided into splits that share no recording.

    Attributes:
        train: to fit on.
        valid: to choose on.
        test: to report on; may be empty.
        notes: sentences for the user: how the parts came about, and what could not be done.
        selects_on_test: the protocol chooses the best epoch on the test split, which makes the score optimistic.
    """

    train: list[Example]
    valid: list[Example]
    test: list[Example]
    notes: list[str] = field(default_factory=list)
    selects_on_test: bool = False


def make_splits(
    examples: Sequence[Example],
    *,
    split_column: str | None = None,
    fold_column: str | None = None,
    test_fold: int | str | None = None,
    valid_fold: int | str | None = None,
    group_column: str | None = None,
    valid_fraction: float = 0.1,
    test_fraction: float | None = None,
    seed: int = 0,
) -> Splits:
    """Divide examples into train, valid and test splits.

    The first of these that applies decides:

    1. ``split_column``, or a column ``split`` that names at least two parts (train, training; valid, validation,
       val, dev; test, testing, heldout; or words that begin so, as ``train.clean.100``). A valid split that it lacks
       is drawn from train; a test split only when ``test_fraction`` asks for one.
    2. ``fold_column``, or a column ``fold``: ``test_fold`` is the test split, ``valid_fold`` the valid split, the
       other folds train. Asking for a fold puts this before a column ``split``.
    3. A draw, stratified by label: each class gives each part its fraction, rounded, but at least one recording,
       and keeps at least one for train. A class too small for that stays in train first, and a note says so.

    With ``group_column`` whatever is drawn, is drawn by whole groups (speakers, say), which makes the fractions
    approximate and at most a half; parts given by a column or by folds must not share a group either.

    Args:
        examples: with labels, or all without.
        split_column: column that names the split; ``"none"`` ignores the columns ``split`` and ``fold``.
        fold_column: column that numbers the fold.
        test_fold: fold of the test split; default the last.
        valid_fold: fold of the valid split; default the one before the test fold, cyclically.
        group_column: column whose values must not straddle parts.
        valid_fraction: share of the examples to draw from that becomes the valid split; 0 draws none.
        test_fraction: the same for test; default 0.1 for a draw and 0 beside a split column. A part that the source
            has is taken as it is, whatever the fractions.
        seed: of the draw; the same examples and seed give the same parts.

    Returns:
        The parts, each in the order of ``examples``.

    Raises:
        DataError: a column is missing or holds unknown words, a fold does not exist, a part that was asked for
            would be empty, a recording or group is in two parts, or valid or test has a label that train lacks.
    """
    _check_fractions(valid_fraction, test_fraction or 0.0)
    folds_asked = not (fold_column is None and test_fold is None and valid_fold is None)
    if split_column is not None and folds_asked:
        raise DataError(f"both a split column ({split_column!r}) and folds are asked for; choose one of them")
    draw = _Draw(group_column, seed)
    if not folds_asked and _use_split_column(examples, split_column):
        column = split_column or "split"
        parts = _by_column(examples, column)
        draw.notes.append(f"splits as column {column!r} says")
        test_fraction = test_fraction or 0.0
    elif folds_asked or (split_column is None and _has(examples, "fold")):
        parts, note = _by_fold(examples, fold_column or "fold", test_fold, valid_fold)
        draw.notes.append(note)
    else:
        parts = {"train": list(examples), "valid": [], "test": []}
        test_fraction = 0.1 if test_fraction is None else test_fraction

    pool = max(len(parts["train"]), 1)  # the fractions are shares of what there is to draw from
    if not parts["test"] and test_fraction:
        parts["train"], parts["test"] = draw.take(parts["train"], test_fraction, "test")
    if not parts["valid"] and valid_fraction:
        share = valid_fraction * pool / max(len(parts["train"]), 1)
        parts["train"], parts["valid"] = draw.take(parts["train"], share, "valid")
    check_parts(parts, group_column)
    if not parts["test"]:
        draw.notes.append("no test split: the source has none, and none was asked for (--test-fraction)")
    return Splits(parts["train"], parts["valid"], parts["test"], draw.notes)


def draw_part(
    examples: Sequence[Example], part: Part, fraction: float, *, group_column: str | None = None, seed: int = 0
) -> tuple[list[Example], list[Example], list[str]]:
    """Draw one split from the training recordings.

    Args:
        examples: to draw from.
        part: that is drawn, for messages.
        fraction: share of them, above 0 and below 1.
        group_column: column whose values must not straddle both.
        seed: of the draw.

    Returns:
        What train keeps and what is drawn, each in the order given, and notes.

    Raises:
        DataError: there are too few recordings or groups, or the column is missing.
    """
    draw = _Draw(group_column, seed)
    kept, drawn = draw.take(list(examples), fraction, part)
    return kept, drawn, draw.notes


def take_shots(splits: Splits, shots: int, seed: int = 0) -> Splits:
    """Keep a few training recordings of each class; valid and test stay as they are.

    Args:
        splits: the parts.
        shots: how many of each class.
        seed: of the draw. With one seed fewer shots are among the more.

    Returns:
        The parts, with train in its order.

    Raises:
        DataError: ``shots`` is below 1, or a class has fewer training recordings.
    """
    if shots < 1:
        raise DataError(f"shots is {shots}; expected at least 1 of each class: --shots")
    rows_of: dict[str | None, list[int]] = defaultdict(list)
    for row, example in enumerate(splits.train):
        rows_of[example.label].append(row)
    few = [f"{label} ({len(rows)})" for label, rows in rows_of.items() if len(rows) < shots]
    if few:
        raise DataError(
            f"shots is {shots}, but train has fewer of {listed(few)}; ask for fewer with --shots, or add recordings"
        )
    generator = np.random.default_rng(seed)
    chosen = {row for rows in rows_of.values() for row in generator.permutation(rows)[:shots].tolist()}
    note = f"train: {shots} of each class, {len(chosen)} of {len(splits.train)} recordings, drawn with seed {seed}"
    train = [example for row, example in enumerate(splits.train) if row in chosen]
    return replace(splits, train=train, notes=[*splits.notes, note])


def _check_fractions(valid_fraction: float, test_fraction: float) -> None:
    if min(valid_fraction, test_fraction) < 0 or valid_fraction + test_fraction >= 1:
        raise DataError(
            f"valid_fraction is {valid_fraction} and test_fraction {test_fraction}; expected at least 0 each, "
            "and less than 1 together"
        )


def _has(examples: Sequence[Example], column: str) -> bool:
    return any(example.fields.get(column) is not None for example in examples)


def _column(examples: Sequence[Example], column: str, flag: str) -> list[str]:
    """A column's values as text; every example must have one."""
    if not _has(examples, column):
        present = list(dict.fromkeys(key for example in examples for key in example.fields))
        raise DataError(f"no column {column!r} among {listed(present) or 'no columns'}; name the right one with {flag}")
    missing = [example.name for example in examples if example.fields.get(column) in (None, "")]
    if missing:
        raise DataError(f"column {column!r} ({flag}) is empty for {listed(missing)}")
    return [str(example.fields[column]) for example in examples]


def _use_split_column(examples: Sequence[Example], split_column: str | None) -> bool:
    """Whether the split column decides; the default one only where it does divide."""
    if split_column is not None:
        return split_column != NO_COLUMN
    if not _has(examples, "split"):
        return False
    parts = {part_led_by(example.fields.get("split")) for example in examples}
    return not _has(examples, "fold") if None in parts else len(parts) > 1


def _by_column(examples: Sequence[Example], column: str) -> dict[Part, list[Example]]:
    parts: dict[Part, list[Example]] = {"train": [], "valid": [], "test": []}
    values = _column(examples, column, "--split-column")
    words = {value: part_led_by(value) for value in sorted(set(values))}
    unknown = [value for value, part in words.items() if part is None]
    if unknown:
        raise DataError(
            f"column {column!r} holds {listed(unknown)}; expected {', '.join(_WORDS)}. Rename them, leave their "
            f"recordings out with --drop-splits {','.join(unknown)}, name another column with --split-column or "
            "--fold-column, or draw the splits at random with --split-column none"
        )
    for example, value in zip(examples, values, strict=True):
        if (part := words[value]) is not None:
            parts[part].append(example)
    if not parts["train"]:
        raise DataError(f"column {column!r} holds {listed(sorted(set(values)))}, but no train split")
    return parts


def _by_fold(
    examples: Sequence[Example], column: str, test_fold: int | str | None, valid_fold: int | str | None
) -> tuple[dict[Part, list[Example]], str]:
    values = _column(examples, column, "--fold-column")
    folds = sorted(set(values), key=_natural)
    if len(folds) < 2:
        raise DataError(f"column {column!r} has one fold ({folds[0]}); expected at least 2")
    test = folds[-1] if test_fold is None else str(test_fold)
    valid = None if valid_fold is None else str(valid_fold)
    for name, fold in (("test_fold", test), ("valid_fold", valid)):
        if fold is not None and fold not in folds:
            raise DataError(f"{name} is {fold}; column {column!r} has the folds {listed(folds)}")
    if valid is None and len(folds) > 2:
        valid = folds[folds.index(test) - 1]
    if valid == test:
        raise DataError(f"test_fold and valid_fold are both {test}; choose two of {listed(folds)}")
    parts: dict[Part, list[Example]] = {"train": [], "valid": [], "test": []}
    for example, value in zip(examples, values, strict=True):
        parts["test" if value == test else "valid" if value == valid else "train"].append(example)
    if not parts["train"]:
        raise DataError(f"folds {test} and {valid} of column {column!r} leave none to train on")
    return parts, f"column {column!r}: test is fold {test}, valid is " + (
        f"fold {valid}" if valid else "drawn from train"
    )


def _natural(text: str) -> list[Any]:
    """Sort key under which fold 2 comes before fold 10."""
    return [(0, int(piece), "") if piece.isdigit() else (1, 0, piece) for piece in re.split(r"(\d+)", text)]


class _Draw:
    """Seeded stratified draws, and notes on what they could not do."""

    def __init__(self, group_column: str | None, seed: int) -> None:
        self.group_column = group_column
        self.seed = seed
        self.generator = np.random.default_rng(seed)
        self.notes: list[str] = []

    def take(self, examples: list[Example], fraction: float, part: Part) -> tuple[list[Example], list[Example]]:
        """Examples that stay and examples taken, each in the order given."""
        chosen = (
            self._rows(examples, fraction, part)
            if self.group_column is None
            else self._group_rows(examples, self.group_column, fraction, part)
        )
        if not chosen:
            raise DataError(
                f"{len(examples)} recordings are too few to draw a {part} split without emptying train; "
                f"add recordings, or ask for none with --{part}-fraction 0"
            )
        self.notes.append(f"{part}: {len(chosen)} of {len(examples)} training recordings, drawn with seed {self.seed}")
        kept = [example for row, example in enumerate(examples) if row not in chosen]
        return kept, [examples[row] for row in sorted(chosen)]

    def _rows(self, examples: list[Example], fraction: float, part: Part) -> set[int]:
        rows_of: dict[str | None, list[int]] = defaultdict(list)
        for row, example in enumerate(examples):
            rows_of[example.label].append(row)
        chosen: set[int] = set()
        small = []
        for label, rows in rows_of.items():
            count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
            if not count:
                small.append(label)
            chosen.update(self.generator.permutation(rows)[:count].tolist())
        if small:
            self.notes.append(f"{part} lacks {listed(small)}: one recording each, which train keeps")
        return chosen

    def _group_rows(self, examples: list[Example], column: str, fraction: float, part: Part) -> set[int]:
        from sklearn.model_selection import StratifiedGroupKFold  # takes two seconds to import

        groups = _column(examples, column, "--group-column")
        num_groups = len(set(groups))
        if num_groups < 2:
            raise DataError(f"column {column!r} has one group ({groups[0]}); {part} needs one of its own")
        labels = np.array([str(example.label) for example in examples])
        largest_class = int(np.unique(labels, return_counts=True)[1].max())
        num_folds = min(max(round(1 / fraction), 2), num_groups, largest_class)
        candidates = []
        if num_folds > 1:
            folds = StratifiedGroupKFold(n_splits=num_folds, shuffle=True, random_state=self.seed)
            with warnings.catch_warnings():
                # A class with fewer recordings than folds is in some folds only: one fold is all we take.
                warnings.simplefilter("ignore", UserWarning)
                pairs = list(folds.split(np.zeros(len(labels)), labels, groups))
            candidates = [held for train, held in pairs if len(held) and set(labels[held]) <= set(labels[train])]
        if not candidates:
            raise DataError(
                f"no group of column {column!r} can be held out for {part}: each has a label of its own "
                "that train would lack; name another column with --group-column, or give a split column"
            )
        best = min(candidates, key=lambda held: abs(len(held) - fraction * len(labels)))
        return {int(row) for row in best}


def check_parts(parts: dict[Part, list[Example]], group_column: str | None = None) -> None:
    """Check that splits share nothing and that train has every label.

    Args:
        parts: the examples of each part.
        group_column: column whose values must not straddle parts.

    Raises:
        DataError: a recording or group is in two parts, or valid or test has a label that train lacks.
    """
    every = [(part, example) for part, examples in parts.items() for example in examples]
    recordings = [
        str(example.audio) if isinstance(example.audio, (Path, AudioSegment)) else id(example) for _, example in every
    ]
    _check_disjoint("the recording", recordings, [part for part, _ in every])
    if group_column is not None:
        groups = _column([example for _, example in every], group_column, "--group-column")
        _check_disjoint(f"the group {group_column} =", groups, [part for part, _ in every])
    known = {example.label for example in parts["train"]}
    for part, example in every:
        if example.label not in known:
            raise DataError(f"{example.name}: its label is {example.label!r} and it is in {part}; train has none such")


def _check_disjoint(what: str, values: Sequence[Hashable], parts: Sequence[Part]) -> None:
    part_of: dict[Hashable, Part] = {}
    for value, part in zip(values, parts, strict=True):
        if part_of.setdefault(value, part) != part:
            raise DataError(
                f"{what} {value} is in {part_of[value]} and in {part}; take it out of one of them, or draw splits "
                "that share none with --split-column none"
            )
