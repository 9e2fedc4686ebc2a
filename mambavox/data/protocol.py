"""How the results of a corpus are obtained: which recordings train, which choose, which are reported on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mambavox.data.columns import listed
from mambavox.data.example import Example
from mambavox.data.splits import Part, Splits, check_parts
from mambavox.errors import DataError


@dataclass(frozen=True)
class Fold:
    """One division of a corpus, as values of its protocol's column.

    Attributes:
        name: how it is asked for; in cross-validation the fold that is tested.
        train: values of the training split.
        valid: values of the valid split; empty where the test split chooses.
        test: values of the test split.
    """

    name: str
    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...]

    def parts(self) -> Iterator[tuple[Part, tuple[str, ...]]]:
        """Each split and its values."""
        yield "train", self.train
        yield "valid", self.valid
        yield "test", self.test


@dataclass(frozen=True)
class Protocol:
    """The divisions that a corpus's results are averaged over.

    Attributes:
        name: how it is asked for.
        column: field of the examples that the divisions go by.
        folds: the divisions; the mean of their test scores is what is reported.
    """

    name: str
    column: str
    folds: tuple[Fold, ...]

    @property
    def selects_on_test(self) -> bool:
        """Whether the best epoch is chosen on the split that is reported, which makes the score optimistic."""
        return not all(fold.valid for fold in self.folds)

    def fold(self, name: int | str | None = None) -> Fold:
        """A division by its name; ``None`` is the first.

        Raises:
            DataError: there is none of that name.
        """
        if name is None:
            return self.folds[0]
        for fold in self.folds:
            if fold.name == str(name):
                return fold
        raise DataError(
            f"fold is {name}; protocol {self.name} has {listed([fold.name for fold in self.folds])}: "
            "choose one of them with --fold"
        )


OFFICIAL_LISTS = Protocol("official", "split", (Fold("1", ("train",), ("valid",), ("test",)),))
"""Of a corpus that is published divided."""


def cross_validation(name: str, column: str, num_folds: int, valid_offset: int | None) -> Protocol:
    """A protocol that tests each fold of 1 to ``num_folds`` in turn.

    Args:
        name: of the protocol.
        column: field that numbers the fold.
        num_folds: how many there are.
        valid_offset: how far behind the test fold the valid fold lies, cyclically; ``None``: there is no valid fold,
            and the test split chooses.
    """
    numbers = range(1, num_folds + 1)
    folds = []
    for test in numbers:
        valid = None if valid_offset is None else (test - 1 + valid_offset) % num_folds + 1
        folds.append(
            Fold(
                name=str(test),
                train=tuple(str(number) for number in numbers if number not in (test, valid)),
                valid=() if valid is None else (str(valid),),
                test=(str(test),),
            )
        )
    return Protocol(name, column, tuple(folds))


def split_by_protocol(examples: Sequence[Example], protocol: Protocol, fold: int | str | None = None) -> Splits:
    """Divide the recordings of a corpus as one fold of its protocol says.

    Args:
        examples: the recordings, with the protocol's column among their fields.
        protocol: of the corpus.
        fold: name of the division; default the first.

    Returns:
        The parts, each in the order of ``examples``; ``selects_on_test`` is the protocol's.

    Raises:
        DataError: there is no such fold, a part of it has no recordings, a value of the column belongs to no part,
            or valid or test has a label that train lacks.
    """
    chosen = protocol.fold(fold)
    part_of = {value: part for part, values in chosen.parts() for value in values}
    parts: dict[Part, list[Example]] = {"train": [], "valid": [], "test": []}
    for example in examples:
        value = str(example.fields.get(protocol.column))
        if value not in part_of:
            raise DataError(
                f"{example.name}: its {protocol.column} is {value}; protocol {protocol.name} knows {listed([*part_of])}"
            )
        parts[part_of[value]].append(example)
    for part, values in chosen.parts():
        if values and not parts[part]:
            raise DataError(
                f"the {part} split of fold {chosen.name}, {protocol.column} {listed(values)}, has no recordings: "
                "the corpus is incomplete; get the rest of it, or choose another --fold"
            )
    check_parts(parts)
    notes = [_describe(protocol, chosen, by_default=fold is None)]
    if protocol.selects_on_test:
        notes.append(
            f"OPTIMISTIC: protocol {protocol.name} chooses the best epoch on the test split, and reports that split"
        )
    return Splits(parts["train"], parts["valid"], parts["test"], notes, protocol.selects_on_test)


def _describe(protocol: Protocol, fold: Fold, *, by_default: bool) -> str:
    if len(protocol.folds) == 1:
        return f"protocol {protocol.name}: splits as the corpus's lists say"
    parts = [f"{part} is {protocol.column} {', '.join(values)}" for part, values in fold.parts() if values]
    first = ", the first, for want of --fold" if by_default else ""
    return f"protocol {protocol.name}, fold {fold.name} of {len(protocol.folds)}{first}: {'; '.join(parts)}"
