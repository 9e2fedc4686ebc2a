"""What one adaptation run does: the same names in Python, in YAML and on the command line."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from mambavox.errors import ConfigError
from mambavox.training.run_config import RunConfig, option, read_yaml, require


@dataclass(frozen=True)
class AdaptConfig(RunConfig):
    """Configuration of one adaptation run.

    Every field carries its one line of documentation, which ``mambavox adapt --help`` prints, and ``unset``: what is
    done where it is left at ``None``.

    Raises:
        ConfigError: a value has the wrong type or lies outside its range, or two values contradict each other.
    """

    command: ClassVar[str] = "adapt"
    further_keys: ClassVar[str] = "method_options"
    free: ClassVar[frozenset[str]] = frozenset({"output", "device", "num_workers", "tensorboard"})

    data: str | None = option(None, "recordings: manifest, corpus, folder per class, saved datasets, hf:owner/name")
    output: str | None = option(None, "run folder to write", unset="runs/ and the name of the data")
    backbone: str = option("nano-ast", "embedded name, Hugging Face name or folder of the pre-trained model")
    method: str = option("mambadapter", "how to adapt it; `mambavox info` lists the methods and their options")
    method_options: Mapping[str, Any] = field(
        default_factory=dict, metadata={"help": "options of the method, such as bottleneck_dim"}
    )

    pooling: Literal["host", "mean"] = option(
        "host",
        "what the head reads: as the backbone's own does, or mean: one linear layer on the mean of all tokens (AST)",
    )
    position_embeddings: Literal["kept", "zero"] = option(
        "kept", "AST's: kept, cropped or stretched to the clips, or zero, as the MambAdapter paper's code leaves them"
    )

    label_column: str = option("label", "column of the class")
    audio_column: str | None = option(None, "column of the recordings", unset="found by its name")
    protocol: str | None = option(None, "how a corpus is divided, such as paper", unset="the corpus's first")
    fold: str | None = option(None, "fold of the corpus's protocol, named after its test fold", unset="the first")
    split_column: str | None = option(None, "column that names the part: train, valid, test", unset="split, if any")
    fold_column: str | None = option(None, "column that numbers the fold", unset="fold, if any")
    test_fold: str | None = option(None, "fold of the test part", unset="the last")
    valid_fold: str | None = option(None, "fold of the valid part", unset="the one before the test fold")
    group_column: str | None = option(None, "column, such as speaker, whose values must not straddle parts")
    valid_fraction: float = option(0.1, "share of the recordings drawn for validation where no column gives them")
    test_fraction: float | None = option(None, "share drawn for testing", unset="0.1, or 0 beside a split column")
    shots: int | None = option(None, "training recordings of each class, drawn with split_seed", unset="all")
    on_error: Literal["raise", "skip"] = option(
        "raise", "about recordings that cannot be used: raise an error, or skip them"
    )
    min_seconds: float = option(0.0, "shortest usable recording, in seconds")
    max_seconds: float | None = option(None, "longer recordings are cut", unset="98 % of the training clips fit")

    epochs: int = option(20, "passes over the training part")
    batch_size: int = option(32, "recordings a step and device")
    gradient_accumulation: int = option(1, "steps whose gradients are added up before an update")
    learning_rate: float | None = option(None, "peak learning rate", unset="the method's")
    weight_decay: float = option(0.01, "AdamW's weight decay; none on norms, biases, scales, A_log and D")
    warmup_ratio: float = option(0.05, "share of the updates with a rising learning rate; a cosine to zero follows")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm; 0 clips nothing")
    spec_augment: bool = option(False, "mask random frames and mel bands in training (spectrogram backbones only)")
    cache_features: bool = option(
        False, "run what lies before the first trained layer once for each clip, not once an epoch; takes disk space"
    )
    length_buckets: bool = option(
        False, "batches of clips of like length (backbones that are padded to the longest clip of a batch only)"
    )
    patience: int | None = option(None, "stop after so many epochs without a better valid accuracy", unset="never")
    seed: int = option(0, "of the initialisation, the order of the data, dropout and masks")
    split_seed: int = option(0, "of the draw of parts; its own, so that seeds can be compared on the same parts")
    bf16: bool | None = option(None, "bfloat16 autocast", unset="on where a GPU supports it")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to train: cpu, cuda, or auto: a GPU if there is one")
    num_workers: int = option(0, "processes that load data; features are kept in memory, so 0 is rarely too few")
    tensorboard: bool = option(True, "write TensorBoard logs into the run folder")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "batch_size", "gradient_accumulation"):
            require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("weight_decay", "max_grad_norm", "min_seconds", "num_workers", "seed", "split_seed"):
            require(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        for name in ("valid_fraction", "warmup_ratio", "test_fraction"):
            value = getattr(self, name)
            require(name, value, value is None or 0 <= value < 1, "at least 0 and below 1")
        for name in ("learning_rate", "max_seconds", "patience", "shots"):
            value = getattr(self, name)
            require(name, value, value is None or value > 0, "above 0")
        if self.max_seconds is not None and self.max_seconds < self.min_seconds:
            raise ConfigError(f"max_seconds={self.max_seconds:g} is below min_seconds={self.min_seconds:g}")
        asked = self.asked_of_a_corpus
        if asked and self.divided_by:
            raise ConfigError(
                f"{asked} divides a corpus as it is published, {', '.join(self.divided_by)} in another way; leave out "
                "one or the other"
            )

    def known_further_keys(self) -> tuple[list[str], str]:
        """The options of the method."""
        return _method_options(self.method), f"method: {self.method}"

    @classmethod
    def load(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> "AdaptConfig":
        """Read a YAML file of flat keys.

        Args:
            path: the file.
            overrides: keys that replace the file's. Another ``method`` drops the file's options of the old one.

        Raises:
            ConfigError: there is no such file, it is no YAML mapping, or a key or value is wrong.
        """
        overrides, content = overrides or {}, read_yaml(path)
        config = cls.from_mapping(content, str(path))
        if overrides.get("method", config.method) != config.method:
            content = {key: value for key, value in content.items() if key not in config.method_options}
        return cls.from_mapping({**content, **overrides}, str(path))

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


def _method_options(method: str) -> list[str]:
    from mambavox.adapters.methods import METHODS  # not at the top: `--help` must not wait for torch

    if method not in METHODS:
        raise ConfigError(f"method={method}; expected one of {', '.join(METHODS)}")
    return METHODS[method].options()
