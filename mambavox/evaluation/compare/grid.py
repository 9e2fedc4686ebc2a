"""What is compared with what: methods with their options, tasks, seeds, learning rates."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mambavox.errors import ConfigError
from mambavox.runs.config import AdaptConfig
from mambavox.runs.fields import unknown_key
from mambavox.runs.learning_rates import RATE_FACTORS, default_learning_rate
from mambavox.training.configs import ADAPT_TASKS, config_class

# Every other field of a task's configuration can be set for a grid or a task; a task can name its backbone, too.
_OWNED = (
    "data",
    "output",
    "backbone",
    "method",
    "method_options",
    "learning_rate",
    "seed",
    "fold",
    "test_fold",
    "tensorboard",
    "plots",
)


@dataclass(frozen=True)
class Variant:
    """A method with its options: one row of the tables.

    Attributes:
        name: what the tables call it.
        method: a key of ``METHODS``.
        options: of the method.
        learning_rate: taken as it is; without it the rate is chosen on the valid split.
        line: name of the line that joins it with others in the plot of accuracy against parameters.
    """

    name: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float | None = None
    line: str = ""


@dataclass(frozen=True)
class Task:
    """A data set and how its parts come about.

    Attributes:
        name: what the tables call it.
        data: what a configuration's ``data`` takes.
        kind: name of the kind of task: ``classify``, ``ctc`` or ``whisper``.
        folds: those to test in turn; ``None``: all that the data have, or their own splits where they have no folds.
        settings: fields of the configuration for this task, such as ``backbone``, ``epochs`` or ``group_column``. The
            language of a ``whisper`` task is its name where none is set.
    """

    name: str
    data: str
    kind: str = "classify"
    folds: tuple[str, ...] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """A comparison: every variant on every task with every seed and fold.

    Attributes:
        name: of the preset, say.
        variants: the rows.
        tasks: the columns.
        backbone: embedded name, folder or Hugging Face name; ``None``: what each kind of task has by default.
        seeds: of the runs; the first one also chooses the learning rates.
        settings: fields of the configuration for every run; a task's own come before them.
        learning_rates: one grid of rates for all methods; empty: ``rate_factors`` says them.
        rate_factors: rates in multiples of each method's own.
        reference: name of the variant that the others are compared with; ``None``: the best baseline, which is the
            variant of another method than MambAdapter with the highest mean test accuracy.
        remarks: sentences that the report repeats, such as deviations from a paper.

    Raises:
        ConfigError: there is nothing to compare, a name occurs twice, or a key or value is wrong.
    """

    name: str
    variants: tuple[Variant, ...]
    tasks: tuple[Task, ...]
    backbone: str | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    settings: Mapping[str, Any] = field(default_factory=dict)
    learning_rates: tuple[float, ...] = ()
    rate_factors: tuple[float, ...] = RATE_FACTORS
    reference: str | None = None
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        listed: tuple[tuple[str, list[Any]], ...] = (
            ("variants", [variant.name for variant in self.variants]),
            ("tasks", [task.name for task in self.tasks]),
            ("seeds", list(self.seeds)),
            ("learning_rates", list(self.learning_rates)),
            ("rate_factors", list(self.rate_factors)),
        )
        for what, names in listed:
            twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
            if twice:
                raise ConfigError(f"{what}: {twice[0]} is there twice; expected each once")
        if not self.variants or not self.seeds or not (self.learning_rates or self.rate_factors):
            raise ConfigError("nothing to compare; expected at least one method, one seed and one learning rate")
        if not all(rate > 0 for rate in (*self.learning_rates, *self.rate_factors)):
            raise ConfigError("a learning rate, or a factor of one, is not above 0; expected such as 1e-3, or x0.3")
        self._check_settings()
        if self.reference is not None and self.reference not in {variant.name for variant in self.variants}:
            raise ConfigError(f"reference is {self.reference!r}; expected the name of one of the variants")
        for variant in self.variants:
            for kind in {task.kind for task in self.tasks} or {"classify"}:
                self._base(variant, kind)

    def _check_settings(self) -> None:
        kinds = list(dict.fromkeys(task.kind for task in self.tasks)) or list(ADAPT_TASKS)
        checked: list[tuple[str, Iterable[str], list[str]]] = [("every task", self.settings, kinds)]
        checked += [(task.name, task.settings.keys() - {"backbone"}, [task.kind]) for task in self.tasks]
        for where, settings, kinds in checked:
            known = list(dict.fromkeys(key for kind in kinds for key in _settable(kind)))
            for key in settings:
                if key in _OWNED:
                    raise ConfigError(f"{where}: {key} is set by the comparison itself; leave it out")
                if key not in known:
                    raise ConfigError(f"{where}: {unknown_key(key, known)} (of a task {' or '.join(kinds)})")

    def backbone_of(self, task: Task) -> str:
        """The backbone of a task's runs.

        Raises:
            ConfigError: none is given, and the kind of task has none by default.
        """
        own = task.settings.get("backbone") or self.backbone
        return str(own) if own else self._base(self.variants[0], task.kind).given_backbone

    def config(self, variant: Variant, task: Task, seed: int, learning_rate: float) -> AdaptConfig:
        """Configuration of one run, but for its fold and its output folder.

        Raises:
            ConfigError: a value does not fit.
        """
        shared = {key: value for key, value in self.settings.items() if key in _settable(task.kind)}
        settings = {**shared, **task.settings}
        if task.kind == "whisper":
            settings.setdefault("language", task.name)
        changes = {"data": task.data, "seed": seed, "learning_rate": learning_rate, "backbone": self.backbone_of(task)}
        return self._base(variant, task.kind).replace(**{**settings, **changes})

    def rates(self, variant: Variant, task: Task | None = None) -> tuple[float, ...]:
        """The learning rates that are tried for a variant on a task, in ascending order."""
        if variant.learning_rate is not None:
            return (variant.learning_rate,)
        own = default_learning_rate("classify" if task is None else task.kind, variant.method)
        # Rounded, because a rate is part of a cell's name.
        return tuple(sorted(self.learning_rates or (float(f"{own * factor:.4g}") for factor in self.rate_factors)))

    def _base(self, variant: Variant, kind: str) -> AdaptConfig:
        values = {"method": variant.method, "tensorboard": False, "plots": False, **variant.options}
        config = config_class(kind).from_mapping(values, variant.name)
        assert isinstance(config, AdaptConfig)
        return config


def _settable(kind: str) -> list[str]:
    """The fields of a kind of task that a grid or a task may set."""
    return [key for key in config_class(kind).__dataclass_fields__ if key not in _OWNED]


def parse_variant(text: str) -> Variant:
    """Read a variant from words.

    Args:
        text: a method and its options, such as ``"mambadapter bottleneck_dim=12 init=paper"``.

    Raises:
        ConfigError: a word is no option, or the method or option is unknown.
    """
    method, *words = text.split()
    variant = Variant(" ".join([method, *words]), method, _assignments(text, words))
    config = config_class("classify").from_mapping({"method": method, **variant.options}, text)
    assert isinstance(config, AdaptConfig)
    options = config.method_options
    return Variant(variant.name, method, options, line=method)


def parse_task(text: str) -> Task:
    """Read a task from words.

    Args:
        text: name, kind and data, then settings, such as ``"esc10=/data/esc10 epochs=12 folds=1,2,3"`` or
            ``"hsb=whisper:/data/hsb.jsonl"``; without a kind it is classification.

    Raises:
        ConfigError: there is no name, or a word is no setting.
    """
    head, *words = shlex.split(text)
    name, equals, data = head.partition("=")
    if not equals or not name or not data:
        raise ConfigError(f"task {text!r}; expected its name and its data, such as esc10=/data/esc10")
    settings: dict[str, Any] = _assignments(text, words)
    folds = settings.pop("folds", None)
    kind, colon, rest = data.partition(":")
    if not colon or kind not in ADAPT_TASKS:
        kind, rest = "classify", data
    return Task(name, rest, kind, None if folds is None else tuple(folds.split(",")), settings)


def _assignments(text: str, words: Iterable[str]) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    wrong = [key for key, equals, value in pairs if not equals or not value]
    if wrong:
        raise ConfigError(f"{text!r}: {wrong[0]!r} is no setting; expected words such as epochs=12")
    return {key.replace("-", "_"): value for key, _, value in pairs}
