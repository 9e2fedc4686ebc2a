"""The folds that a task's result is the mean of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mambavox.data import Example, find_corpus
from mambavox.data.splits import part_led_by
from mambavox.errors import DataError
from mambavox.runs.config import AdaptConfig
from mambavox.training.classify.config import ClassifyConfig
from mambavox.training.classify.data import natural_order


@dataclass(frozen=True)
class Fold:
    """One division of a task's recordings.

    Attributes:
        name: what tells it from the task's other folds; ``None`` where there is one division only.
        settings: the fields of ``ClassifyConfig`` that ask for it.
    """

    name: str | None
    settings: Mapping[str, str]


def find_folds(examples: Sequence[Example], config: AdaptConfig, names: Sequence[str] | None) -> tuple[Fold, ...]:
    """The folds that a task is tested on in turn: all of its corpus's protocol, or of its column of folds.

    Args:
        examples: the recordings.
        config: of one of the task's runs.
        names: of the folds to take; ``None`` takes all.

    Returns:
        The folds in natural order; a single one without settings where the corpus is published divided, or the data
        have parts of their own, or none at all and they are drawn.

    Raises:
        DataError: the corpus has no such protocol or fold, or the task has no folds.
    """
    if not isinstance(config, ClassifyConfig):
        if names is not None:
            raise DataError(f"folds={','.join(names)}: only classification has folds; leave them out")
        return (Fold(None, {}),)
    corpus = None if config.divided_by else find_corpus(config.data)
    if corpus is not None:
        protocol = corpus[0].protocol(config.protocol)
        if names is None:
            names = [fold.name for fold in protocol.folds] if len(protocol.folds) > 1 else []
        return tuple(Fold(protocol.fold(name).name, {"fold": name}) for name in names) or (Fold(None, {}),)
    if names is None:
        names = _fold_names(examples, config)
    return tuple(Fold(name, {"test_fold": name}) for name in names) or (Fold(None, {}),)


def _fold_names(examples: Sequence[Example], config: ClassifyConfig) -> list[str]:
    if config.split_column is not None:
        return []
    if config.fold_column is None:
        parts = {part_led_by(example.fields.get("split")) for example in examples}
        if None not in parts and len(parts) > 1:
            return []
    folds = {example.fields.get(config.fold_column or "fold") for example in examples} - {None}
    return natural_order({str(fold) for fold in folds})
