"""What one adaptation run does: the same names in Python, in YAML and on the command line."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from mambavox.errors import ConfigError

RUN_FILE = "run.yaml"
"""Name of the configuration inside a run folder."""


def _field(default: Any, meaning: str, unset: str = "") -> Any:
    """A field with the line that documents it here and in ``--help``, and what leaving it at ``None`` means."""
    return field(default=default, metadata={"help": meaning, "unset": unset})


@dataclass(frozen=True)
class AdaptConfig:
    """Configuration of one adaptation run.

    Every field carries its one line of documentation, which ``mambavox adapt --help`` prints, and ``unset``: what is
    done where it is left at ``None``.

    Raises:
        ConfigError: a value has the wrong type or lies outside its range, or two values contradict each other.
    """

    data: str | None = _field(None, "recordings: manifest, corpus, folder per class, saved datasets, hf:owner/name")
    output: str | None = _field(None, "run folder to write", unset="runs/ and the name of the data")
    backbone: str = _field("nano-ast", "embedded name, Hugging Face name or folder of the pre-trained model")
    method: str = _field("mambadapter", "how to adapt it; `mambavox info` lists the methods and their options")
    method_options: Mapping[str, Any] = field(
        default_factory=dict, metadata={"help": "options of the method, such as bottleneck_dim"}
    )

    pooling: Literal["host", "mean"] = _field(
        "host",
        "what the head reads: as the backbone's own does, or mean: one linear layer on the mean of all tokens (AST)",
    )
    position_embeddings: Literal["kept", "zero"] = _field(
        "kept", "AST's: kept, cropped or stretched to the clips, or zero, as the MambAdapter paper's code leaves them"
    )

    label_column: str = _field("label", "column of the class")
    audio_column: str | None = _field(None, "column of the recordings", unset="found by its name")
    protocol: str | None = _field(None, "how a corpus is divided, such as paper", unset="the corpus's first")
    fold: str | None = _field(None, "fold of the corpus's protocol, named after its test fold", unset="the first")
    split_column: str | None = _field(None, "column that names the part: train, valid, test", unset="split, if any")
    fold_column: str | None = _field(None, "column that numbers the fold", unset="fold, if any")
    test_fold: str | None = _field(None, "fold of the test part", unset="the last")
    valid_fold: str | None = _field(None, "fold of the valid part", unset="the one before the test fold")
    group_column: str | None = _field(None, "column, such as speaker, whose values must not straddle parts")
    valid_fraction: float = _field(0.1, "share of the recordings drawn for validation where no column gives them")
    test_fraction: float | None = _field(None, "share drawn for testing", unset="0.1, or 0 beside a split column")
    shots: int | None = _field(None, "training recordings of each class, drawn with split_seed", unset="all")
    on_error: Literal["raise", "skip"] = _field(
        "raise", "about recordings that cannot be used: raise an error, or skip them"
    )
    min_seconds: float = _field(0.0, "shortest usable recording, in seconds")
    max_seconds: float | None = _field(None, "longer recordings are cut", unset="98 % of the training clips fit")

    epochs: int = _field(20, "passes over the training part")
    batch_size: int = _field(32, "recordings a step and device")
    gradient_accumulation: int = _field(1, "steps whose gradients are added up before an update")
    learning_rate: float | None = _field(None, "peak learning rate", unset="the method's")
    weight_decay: float = _field(0.01, "AdamW's weight decay; none on norms, biases, scales, A_log and D")
    warmup_ratio: float = _field(0.05, "share of the updates with a rising learning rate; a cosine to zero follows")
    max_grad_norm: float = _field(1.0, "gradients are clipped to this norm; 0 clips nothing")
    spec_augment: bool = _field(False, "mask random frames and mel bands in training (spectrogram backbones only)")
    cache_features: bool = _field(
        False, "run what lies before the first trained layer once for each clip, not once an epoch; takes disk space"
    )
    length_buckets: bool = _field(
        False, "batches of clips of like length (backbones that are padded to the longest clip of a batch only)"
    )
    patience: int | None = _field(None, "stop after so many epochs without a better valid accuracy", unset="never")
    seed: int = _field(0, "of the initialisation, the order of the data, dropout and masks")
    split_seed: int = _field(0, "of the draw of parts; its own, so that seeds can be compared on the same parts")
    bf16: bool | None = _field(None, "bfloat16 autocast", unset="on where a GPU supports it")
    device: Literal["auto", "cpu", "cuda"] = _field("auto", "where to train: cpu, cuda, or auto: a GPU if there is one")
    num_workers: int = _field(0, "processes that load data; features are kept in memory, so 0 is rarely too few")
    tensorboard: bool = _field(True, "write TensorBoard logs into the run folder")

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for spec in fields(self):
            value = _coerced(spec.name, getattr(self, spec.name), hints[spec.name])
            object.__setattr__(self, spec.name, value)
        for name in ("epochs", "batch_size", "gradient_accumulation"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("weight_decay", "max_grad_norm", "min_seconds", "num_workers", "seed", "split_seed"):
            _require(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        for name in ("valid_fraction", "warmup_ratio", "test_fraction"):
            value = getattr(self, name)
            _require(name, value, value is None or 0 <= value < 1, "at least 0 and below 1")
        for name in ("learning_rate", "max_seconds", "patience", "shots"):
            value = getattr(self, name)
            _require(name, value, value is None or value > 0, "above 0")
        if self.max_seconds is not None and self.max_seconds < self.min_seconds:
            raise ConfigError(f"max_seconds={self.max_seconds:g} is below min_seconds={self.min_seconds:g}")
        asked = self.asked_of_a_corpus
        if asked and self.divided_by:
            raise ConfigError(
                f"{asked} divides a corpus as it is published, {', '.join(self.divided_by)} in another way; leave out "
                "one or the other"
            )

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], source: str = "the configuration") -> "AdaptConfig":
        """Build a configuration from flat keys: this class's own, and the options of its method.

        Args:
            mapping: key -> value. A key that is no field here is an option of ``method``.
            source: what error messages call the mapping.

        Raises:
            ConfigError: a key is neither a field nor an option of the method (with the nearest ones), or a value is
                wrong.
        """
        own = [spec.name for spec in fields(cls) if spec.name != "method_options"]
        values = {key: value for key, value in mapping.items() if key in own}
        options = {key: value for key, value in mapping.items() if key not in own}
        config = cls(**values)
        known = _method_options(config.method)
        for key in options:
            if key not in known:
                raise ConfigError(f"{source}: {unknown_key(str(key), [*own, *known])} (method: {config.method})")
        return config.replace(method_options={key: _plain(value) for key, value in options.items()})

    @classmethod
    def load(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> "AdaptConfig":
        """Read a YAML file of flat keys.

        Args:
            path: the file.
            overrides: keys that replace the file's. Another ``method`` drops the file's options of the old one.

        Raises:
            ConfigError: there is no such file, it is no YAML mapping, or a key or value is wrong.
        """
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror}); expected a YAML configuration") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: is not YAML ({error})") from error
        if not isinstance(content, dict):
            raise ConfigError(f"{path}: expected keys and values, one a line, such as `epochs: 20`")
        overrides = overrides or {}
        config = cls.from_mapping(content, str(path))
        if overrides.get("method", config.method) != config.method:
            content = {key: value for key, value in content.items() if key not in config.method_options}
        return cls.from_mapping({**content, **overrides}, str(path))

    def to_mapping(self) -> dict[str, Any]:
        """The flat keys that ``from_mapping`` reads: every field, then the options of the method."""
        own = {spec.name: getattr(self, spec.name) for spec in fields(self) if spec.name != "method_options"}
        return {**own, **self.method_options}

    def to_yaml(self) -> str:
        """YAML that ``load`` reads."""
        return yaml.safe_dump(self.to_mapping(), sort_keys=False, allow_unicode=True)

    def replace(self, **changes: Any) -> "AdaptConfig":
        """A copy with other values.

        Raises:
            ConfigError: a value is wrong.
        """
        return type(self)(**{**{spec.name: getattr(self, spec.name) for spec in fields(self)}, **changes})

    @property
    def divided_by(self) -> list[str]:
        """The fields set that divide recordings of any source; with one, a corpus's protocol is not followed."""
        names = ("split_column", "fold_column", "test_fold", "valid_fold", "group_column", "test_fraction")
        return [name for name in names if getattr(self, name) is not None]

    @property
    def asked_of_a_corpus(self) -> str:
        """The protocol and fold asked for, in words; empty where neither is."""
        asked = {"protocol": self.protocol, "fold": self.fold}
        return " and ".join(f"{name}={value}" for name, value in asked.items() if value is not None)

    @property
    def output_path(self) -> Path:
        """The run folder.

        Raises:
            ConfigError: neither output nor data is given.
        """
        if self.output is not None:
            return Path(self.output).expanduser()
        if self.data is None:
            raise ConfigError("no data given; expected a manifest, a folder or hf:owner/name: --data PATH")
        from mambavox.data.sources import split_scheme  # not at the top: `--help` must not wait for it

        corpus, rest = split_scheme(self.data)
        path = Path(rest.removeprefix("hf:")).expanduser()
        # A manifest is named like every other manifest; its folder is what tells data sets apart.
        name = corpus or (path.resolve().parent.name if path.is_file() else path.resolve().name)
        fold = None if self.fold is None else f"fold{self.fold}"
        return Path("runs") / "-".join(filter(None, (name, self.protocol, fold)))


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Sentence about an unknown key, with the keys that look like it."""
    near = difflib.get_close_matches(key.replace("-", "_"), list(known), n=3, cutoff=0.6)
    return f"unknown key {key!r}; " + (f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}")


def _method_options(method: str) -> list[str]:
    from mambavox.adapters.methods import METHODS  # not at the top: `--help` must not wait for torch

    if method not in METHODS:
        raise ConfigError(f"method={method}; expected one of {', '.join(METHODS)}")
    return METHODS[method].options()


def _require(name: str, value: Any, holds: bool, expected: str) -> None:
    if not holds:
        raise ConfigError(f"{name}={value}; expected {expected}")


def _plain(value: Any) -> Any:
    """A command line's or a YAML file's text as the number it writes; YAML 1.1 takes 1e-3 for text."""
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                pass
    return value


def _coerced(name: str, value: Any, hint: Any) -> Any:
    """A value as its field's type, where nothing is lost.

    Raises:
        ConfigError: the value is no such thing.
    """
    optional = type(None) in get_args(hint)
    if value is None and optional:
        return None
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ConfigError(f"{name}={value}; expected {' or '.join(map(str, get_args(hint)))}")
        return value
    kind = next(kind for kind in get_args(hint) if kind is not type(None)) if optional else hint
    if kind in (int, float):
        number = _plain(value)
        # True is an int to Python, but `epochs: yes` is a mistake.
        if not isinstance(number, bool) and isinstance(number, (int, float)) and number == kind(number):
            return kind(number)
        raise ConfigError(f"{name}={value!r}; expected {'a whole number' if kind is int else 'a number'}")
    if kind is bool and not isinstance(value, bool):
        raise ConfigError(f"{name}={value!r}; expected true or false")
    if kind is str:
        if isinstance(value, (str, int)) and not isinstance(value, bool):  # folds are often numbers
            return str(value)
        raise ConfigError(f"{name}={value!r}; expected text")
    if get_origin(kind) is not None:
        if isinstance(value, Mapping):
            return dict(value)
        raise ConfigError(f"{name}={value!r}; expected keys and values")
    return value
