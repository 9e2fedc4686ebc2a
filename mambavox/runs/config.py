"""Configurations of runs: checked fields, flat keys in YAML, the same names on the command line.

Every field is written once: here where several tasks share it, in the ``config.py`` of a task where one has it.
"""

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_type_hints

import yaml

from mambavox.errors import ConfigError
from mambavox.runs.fields import check_bounds, coerced, nearest, option, plain, read_yaml, unknown_key
from mambavox.runs.learning_rates import METHOD_NAMES, default_learning_rate

RUN_FILE = "run.yaml"
"""Name of the configuration inside a run folder."""
TASK_KEY = "task"
"""Key under which a configuration names its task."""
TASKS = ("classify", "ctc", "whisper", "pretrain")
"""Names of the tasks."""

_Config = TypeVar("_Config", bound="RunConfig")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Configuration of a run: a dataclass each of whose fields is one key of YAML and one flag.

    A task's class gives shared fields other defaults by keywords, ``class CtcConfig(TranscriptConfig, epochs=30)``. It
    may have one field of further keys, which something that it names defines: a method's options, a model's fields.

    Attributes:
        task: name of the task.
        command: the command that runs it.
        further_keys: name of the field of further keys.

    Raises:
        ConfigError: a value has the wrong type or lies outside its range.
    """

    task: ClassVar[str]
    command: ClassVar[str]
    further_keys: ClassVar[str]

    data: str | None = option(
        None,
        "Recordings: a manifest, a corpus, a folder, shards:PATTERN.tar, saved datasets or hf:owner/name.",
        group="Data",
    )
    output: str | None = option(None, "Run folder to write.", group="Running", unset="a name under runs/", free=True)
    audio_column: str | None = option(None, "Column of the recordings.", group="Data", unset="found by its name")
    on_error: Literal["raise", "skip"] = option(
        "raise", "What to do about recordings that cannot be used: raise an error, or skip them.", group="Data"
    )
    min_seconds: float = option(0.0, "Shorter recordings are left out, in seconds.", group="Data", at_least=0)
    drop_splits: str | None = option(
        None,
        "Values of the split column whose recordings are left out, by commas, such as smoke.",
        group="Splits",
        unset="none",
    )
    valid_fraction: float = option(
        0.1,
        "Share of the recordings drawn for validation where no column gives a split.",
        group="Splits",
        at_least=0,
        below=1,
    )
    split_seed: int = option(
        0, "Seed of the draw of splits; its own, so that runs can be compared on one split.", group="Splits", at_least=0
    )

    learning_rate: float | None = option(
        None, "Peak learning rate.", group="Training", unset="that of the task and method", above=0
    )
    warmup_ratio: float = option(
        0.0, "Share of the updates during which the learning rate rises.", group="Training", at_least=0, below=1
    )
    weight_decay: float = option(
        0.01,
        "AdamW's weight decay; never acts on norms, biases, scales, A_log and D.",
        group="Training",
        at_least=0,
    )
    max_grad_norm: float = option(
        1.0, "Gradients are clipped to this norm; 0 turns clipping off.", group="Training", at_least=0
    )
    seed: int = option(0, "Seed of initialisation, data order, dropout and masks.", group="Training", at_least=0)
    precision: Literal["auto", "float32", "bfloat16"] = option(
        "auto",
        "Precision of matrix products; auto is bfloat16 where a GPU supports it (in pre-training also a CPU).",
        group="Training",
    )
    gradient_checkpointing: bool = option(
        False, "Compute layers again in the backward pass: less memory, more time.", group="Training"
    )
    device: Literal["auto", "cpu", "cuda"] = option(
        "auto", "Where to train; auto takes a GPU if there is one.", group="Running", free=True
    )
    num_workers: int = option(0, "Processes that load data.", group="Running", at_least=0, free=True)
    tensorboard: bool = option(True, "Write TensorBoard logs into the run folder.", group="Running", free=True)
    plots: bool = option(
        True,
        "Draw the learning curve and what became of the recordings into the run folder.",
        group="Running",
        free=True,
    )

    def __init_subclass__(cls, **defaults: Any) -> None:
        """Give shared fields the defaults of a task."""
        super().__init_subclass__()
        for name, default in defaults.items():
            # The dataclass decorator, which comes next, reads both and keeps the place of the field.
            shared = next(base.__dict__["__dataclass_fields__"][name] for base in cls.__mro__[1:] if _has(base, name))
            cls.__annotations__ = {**inspect.get_annotations(cls), name: shared.type}
            setattr(cls, name, field(default=default, metadata=shared.metadata))

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for spec in fields(self):
            value = coerced(spec.name, getattr(self, spec.name), hints[spec.name])
            object.__setattr__(self, spec.name, value)
            check_bounds(spec, value)

    def known_further_keys(self) -> tuple[list[str], str]:
        """The further keys there are, and what defines them in words.

        Raises:
            ConfigError: what defines them is unknown.
        """
        raise NotImplementedError

    @property
    def peak_learning_rate(self) -> float:
        """Peak learning rate, by ``mambavox.runs.learning_rates`` where none is given."""
        raise NotImplementedError

    @classmethod
    def free_fields(cls) -> frozenset[str]:
        """Fields that may differ when a run is resumed, because they change nothing that is learned."""
        return frozenset(spec.name for spec in fields(cls) if spec.metadata.get("free"))

    @classmethod
    def from_mapping(cls: type[_Config], mapping: Mapping[str, Any], source: str = "the configuration") -> _Config:
        """Build a configuration from flat keys: this class's own, and further ones.

        Args:
            mapping: key -> value; a key ``task``, if there is one, must be this task's name.
            source: what error messages call the mapping.

        Raises:
            ConfigError: a key is unknown (with the nearest ones), or a value is wrong.
        """
        content = dict(mapping)
        task = content.pop(TASK_KEY, cls.task)
        if task != cls.task:
            raise ConfigError(f"{source}: its task is {task!r}; expected {cls.task!r}")
        own = [spec.name for spec in fields(cls) if spec.name != cls.further_keys]
        config = cls(**{key: value for key, value in content.items() if key in own})
        further = {key: value for key, value in content.items() if key not in own}
        if further:
            known, definer = config.known_further_keys()
            for key in further:
                if key not in known:
                    raise ConfigError(f"{source}: {unknown_key(str(key), [*own, *known])} ({definer})")
        return config.replace(**{cls.further_keys: {key: plain(value) for key, value in further.items()}})

    @classmethod
    def load(cls: type[_Config], path: str | Path, overrides: Mapping[str, Any] | None = None) -> _Config:
        """Read a YAML file of flat keys.

        Args:
            path: the file.
            overrides: keys that replace the file's.

        Raises:
            ConfigError: there is no such file, it is no YAML mapping, or a key or value is wrong.
        """
        return cls.from_mapping({**read_yaml(path), **(overrides or {})}, str(path))

    def to_mapping(self) -> dict[str, Any]:
        """The flat keys that ``from_mapping`` reads: the task, every field, then the further keys."""
        own = {spec.name: getattr(self, spec.name) for spec in fields(self) if spec.name != self.further_keys}
        return {TASK_KEY: self.task, **own, **getattr(self, self.further_keys)}

    def to_yaml(self) -> str:
        """YAML that ``load`` reads."""
        return yaml.safe_dump(self.to_mapping(), sort_keys=False, allow_unicode=True)

    def replace(self: _Config, **changes: Any) -> _Config:
        """A copy with other values.

        Raises:
            ConfigError: a value is wrong.
        """
        return type(self)(**{**{spec.name: getattr(self, spec.name) for spec in fields(self)}, **changes})

    @property
    def output_path(self) -> Path:
        """The run folder.

        Raises:
            ConfigError: there is nothing to name it after.
        """
        if self.output is not None:
            return Path(self.output).expanduser()
        return Path("runs") / "-".join(filter(None, self.name_parts()))

    def name_parts(self) -> list[str | None]:
        """Words of which the run folder's name is made where ``output`` is not given.

        Raises:
            ConfigError: no data are given.
        """
        return [data_name(self.given_data)]

    @property
    def given_data(self) -> str:
        """``data``, which must be given.

        Raises:
            ConfigError: it is not.
        """
        if self.data is None:
            raise ConfigError("no data given; expected a manifest, a corpus, a folder or hf:owner/name: --data PATH")
        return self.data


@dataclass(frozen=True, kw_only=True)
class AdaptConfig(RunConfig):
    """What all tasks share that adapt a pre-trained backbone.

    Raises:
        ConfigError: a value has the wrong type or lies outside its range, or two values contradict each other.
    """

    command: ClassVar[str] = "adapt"
    further_keys: ClassVar[str] = "method_options"

    backbone: str | None = option(
        None, "Pre-trained model: an embedded name, a Hugging Face name or a folder.", group="Model", unset="none"
    )
    method: str = option("mambadapter", "How to adapt it; `mambavox info` describes the methods.", group="Model")
    method_options: Mapping[str, Any] = field(
        default_factory=dict, metadata={"help": "Options of the method, such as bottleneck_dim.", "group": "Model"}
    )
    split_column: str | None = option(
        None, "Column that names the split: train, valid, test.", group="Splits", unset="split, if there is one"
    )
    group_column: str | None = option(
        None, "Column, such as speaker, no value of which may occur in two splits.", group="Splits", unset="none"
    )
    test_fraction: float | None = option(
        None, "Share drawn for testing.", group="Splits", unset="0.1, or 0 beside a split column", at_least=0, below=1
    )
    epochs: int = option(20, "Passes over the training split.", group="Training", at_least=1)
    batch_size: int = option(32, "Recordings a step and device.", group="Training", at_least=1)
    gradient_accumulation: int = option(
        1, "Steps whose gradients are added up before an update.", group="Training", at_least=1
    )
    length_buckets: bool = option(False, "Put recordings of similar length into one batch.", group="Training")
    patience: int | None = option(
        None, "Stop after this many epochs without a better validation score.", group="Training", unset="never", above=0
    )
    eval_batch_size: int | None = option(
        None, "Recordings at a time in evaluation.", group="Evaluation", unset="as batch_size", at_least=1, free=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        known = method_names()
        if self.method not in known:
            raise ConfigError(f"method={self.method}; {nearest(self.method, known)}")

    @property
    def given_backbone(self) -> str:
        """``backbone``, which must be given.

        Raises:
            ConfigError: it is not.
        """
        if self.backbone is None:
            raise ConfigError("no backbone given; expected a pre-trained model's name or folder: --backbone MODEL")
        return self.backbone

    @property
    def peak_learning_rate(self) -> float:
        """Peak learning rate, by ``mambavox.runs.learning_rates`` where none is given."""
        return self.learning_rate or default_learning_rate(self.task, self.method)

    @property
    def evaluation_batch(self) -> int:
        """Recordings at a time in evaluation."""
        return self.eval_batch_size or self.batch_size

    def known_further_keys(self) -> tuple[list[str], str]:
        """The options of the method."""
        from mambavox.adapters.methods import METHODS  # not at the top: `--help` must not wait for torch

        return METHODS[self.method].options(), f"method: {self.method}"

    @classmethod
    def load(cls: type[_Config], path: str | Path, overrides: Mapping[str, Any] | None = None) -> _Config:
        """Read a YAML file of flat keys.

        Args:
            path: the file.
            overrides: keys that replace the file's. Another ``method`` drops the file's options of the old one.

        Raises:
            ConfigError: there is no such file, it is no YAML mapping, or a key or value is wrong.
        """
        overrides, content = overrides or {}, read_yaml(path)
        if overrides.get("method", content.get("method")) != content.get("method"):
            own = {*cls.__dataclass_fields__, TASK_KEY}
            content = {key: value for key, value in content.items() if key in own}
        return cls.from_mapping({**content, **overrides}, str(path))


@dataclass(frozen=True, kw_only=True)
class TranscriptConfig(AdaptConfig):
    """What the tasks of speech recognition share.

    Raises:
        ConfigError: a value has the wrong type or lies outside its range, or two values contradict each other.
    """

    text_column: str | None = option(
        None, "Column of the transcripts.", group="Data", unset="text, sentence, transcript, ..."
    )
    language: str | None = option(
        None,
        "Code of the language, such as ckb, by which transcripts are normalised.",
        group="Data",
        unset="none",
    )
    language_column: str | None = option(
        None, "Column of language codes; rows of other languages are left out.", group="Data", unset="none"
    )
    normalize: bool = option(
        True, "Learn transcripts without case and punctuation; scores never count them.", group="Data"
    )
    drop_longer_than: float | None = option(
        None, "Longer training recordings are left out, in seconds.", group="Data", unset="Whisper's window", above=0
    )
    drop_eval_longer_than: float | None = option(
        None, "Longer recordings of the other splits are left out, in seconds.", group="Data", unset="none", above=0
    )
    train_split: str | None = option(
        None,
        "Values of the split column that train, by commas.",
        group="Splits",
        unset="train",
    )
    valid_split: str | None = option(None, "Values that validate, by commas.", group="Splits", unset="valid")
    test_split: str | None = option(None, "Values that are tested, each on its own.", group="Splits", unset="test")
    train_seconds: float | None = option(
        None, "Seconds to train on at most, drawn with split_seed.", group="Splits", unset="all", above=0
    )
    valid_seconds: float | None = option(None, "Seconds to validate on at most.", group="Splits", unset="all", above=0)
    test_seconds: float | None = option(None, "Seconds to test on at most.", group="Splits", unset="all", above=0)
    metric_for_best_model: Literal["wer", "cer", "loss"] = option(
        "wer",
        "Figure of the valid split by which the best epoch is kept: word error rate; character error rate, which says "
        "more while hardly a word is right; or loss, for which a Whisper transcribes nothing until training has ended.",
        group="Evaluation",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.valid_split or self.test_split) and not self.train_split:
            raise ConfigError("valid_split or test_split is given without train_split; name the values that train")
        if self.language_column is not None and self.language is None:
            raise ConfigError(
                f"language_column={self.language_column} says where codes of languages stand; say which with --language"
            )


def method_names() -> list[str]:
    """Names of the methods: the package's and, where they are loaded, those that a user has added to ``METHODS``."""
    loaded = sys.modules.get("mambavox.adapters.methods")
    return list(METHOD_NAMES) if loaded is None else list(loaded.METHODS)


def _has(kind: type, name: str) -> bool:
    return name in kind.__dict__.get("__dataclass_fields__", {})


def data_name(data: str) -> str:
    """What a run is named after: a corpus, or the folder that data lie in."""
    from mambavox.data.sources import split_scheme  # not at the top: `--help` must not wait for it

    corpus, rest = split_scheme(data)
    path = Path(rest.removeprefix("hf:")).expanduser()
    # A manifest is named like every other manifest; its folder is what tells data sets apart.
    return corpus or (path.resolve().parent.name if path.is_file() else path.resolve().name)
