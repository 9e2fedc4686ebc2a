"""What one run of `mambavox finetune` does."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from mambavox.errors import ConfigError
from mambavox.training.run_config import RunConfig, option, require


@dataclass(frozen=True)
class RecognitionConfig(RunConfig):
    """Configuration of one CTC training; every field carries its one line of documentation.

    Raises:
        ConfigError: a value has the wrong type or lies outside its range.
    """

    command: ClassVar[str] = "finetune"
    further_keys: ClassVar[str] = "method_options"
    free: ClassVar[frozenset[str]] = frozenset({"output", "device", "num_workers", "tensorboard"})

    data: str | None = option(None, "recordings with transcripts: manifest, corpus, saved datasets, hf:owner/name")
    output: str | None = option(None, "run folder to write", unset="runs/ctc- and the name of the data")
    model: str | None = option(None, "pre-trained Mamba-HuBERT, wav2vec2, HuBERT or WavLM: folder or Hub name")
    method: str = option("full", "full, linear (the head alone), or an adapter of `mambavox info`")
    method_options: Mapping[str, Any] = field(
        default_factory=dict, metadata={"help": "options of the method, such as bottleneck_dim"}
    )

    text_column: str | None = option(None, "column of the transcript", unset="text, sentence, transcript, ...")
    audio_column: str | None = option(None, "column of the recordings", unset="found by its name")
    language: str | None = option(None, "code such as ckb or zh, by which transcripts are normalised and words counted")
    normalize: bool = option(True, "lower-case, without punctuation, one spelling for one letter")
    vocabulary: Literal["characters", "bpe"] = option("characters", "tokens: characters, or pieces of words (bpe)")
    vocabulary_size: int = option(500, "tokens of a bpe vocabulary")
    train_split: str | None = option(None, "values of the split column that train, such as train-clean-100")
    valid_split: str | None = option(None, "values of the split column that validate, separated by commas")
    test_split: str | None = option(None, "values of the split column that are tested, each for itself")
    split_column: str | None = option(None, "column that names the part", unset="subset or split, if any")
    group_column: str | None = option(None, "column, such as speaker, whose values must not straddle parts")
    valid_fraction: float = option(0.1, "share drawn for validation where no valid part is given; 0: none")
    test_fraction: float | None = option(None, "share drawn for testing", unset="0.1, or 0 beside a split column")
    on_error: Literal["raise", "skip"] = option("raise", "about recordings that cannot be used: raise, or skip them")
    min_seconds: float = option(0.0, "shortest usable recording, in seconds")
    max_seconds: float = option(20.0, "longer training recordings are left out")
    max_eval_seconds: float | None = option(None, "longer recordings of valid and test are left out", unset="never")
    train_seconds: float | None = option(None, "seconds to train on at most, drawn with split_seed", unset="all")
    valid_seconds: float | None = option(None, "seconds to validate on at most", unset="all")
    test_seconds: float | None = option(None, "seconds to test on at most", unset="all")

    epochs: int = option(30, "passes over the training part")
    batch_size: int = option(8, "recordings a step and device, of like length")
    gradient_accumulation: int = option(1, "steps whose gradients are added up before an update")
    learning_rate: float | None = option(None, "peak learning rate", unset="5e-5 for full, the method's otherwise")
    weight_decay: float = option(0.01, "AdamW's weight decay; none on norms, biases, scales, A_log and D")
    warmup_ratio: float = option(0.1, "share of the updates with a rising learning rate")
    hold_ratio: float = option(0.4, "share of the updates at the peak; an exponential decay to 5 % follows")
    frozen_ratio: float = option(0.0, "share of the updates, at the start, in which the head alone is trained (full)")
    train_front: bool = option(False, "train the convolutional feature extractor, too (full)")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm; 0 clips nothing")
    mask_prob: float = option(0.5, "share of frames that masked spans would cover without overlaps")
    mask_length: int = option(10, "frames of a masked span")
    mask_channel_prob: float = option(0.1, "the same for channels")
    mask_channel_length: int = option(64, "channels of a masked span")
    patience: int | None = option(None, "stop after so many epochs without a better valid WER", unset="never")
    seed: int = option(0, "of the initialisation, the order of the data, dropout and masks")
    split_seed: int = option(0, "of the draw of parts and of the seconds kept")
    bf16: bool | None = option(None, "bfloat16 autocast", unset="on where a GPU supports it")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to train: cpu, cuda, or auto: a GPU if there is one")
    num_workers: int = option(0, "processes that load data")
    tensorboard: bool = option(True, "write TensorBoard logs into the run folder")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "batch_size", "gradient_accumulation", "mask_length", "mask_channel_length"):
            require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("weight_decay", "max_grad_norm", "min_seconds", "num_workers", "seed", "split_seed"):
            require(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        for name in ("valid_fraction", "test_fraction", "frozen_ratio", "warmup_ratio", "hold_ratio"):
            value = getattr(self, name)
            require(name, value, value is None or 0 <= value < 1, "at least 0 and below 1")
        for name in ("mask_prob", "mask_channel_prob"):
            require(name, getattr(self, name), 0 <= getattr(self, name) <= 1, "a probability, 0 to 1")
        for name in ("learning_rate", "max_seconds", "max_eval_seconds", "patience", "train_seconds", "valid_seconds"):
            value = getattr(self, name)
            require(name, value, value is None or value > 0, "above 0")
        if self.warmup_ratio + self.hold_ratio >= 1:
            raise ConfigError(
                f"warmup_ratio={self.warmup_ratio:g} and hold_ratio={self.hold_ratio:g}; expected less than 1 together"
            )
        if self.method != "full" and (self.frozen_ratio or self.train_front):
            raise ConfigError(f"frozen_ratio and train_front are of method full; method={self.method}: leave them out")
        given = [self.train_split, self.valid_split, self.test_split]
        if any(given) and not self.train_split:
            raise ConfigError("valid_split or test_split is given without train_split; name the part that trains")

    def known_further_keys(self) -> tuple[list[str], str]:
        """The options of the method."""
        from mambavox.adapters.methods import METHODS  # not at the top: `--help` must not wait for torch

        if self.method not in METHODS:
            raise ConfigError(f"method={self.method}; expected one of {', '.join(METHODS)}")
        return METHODS[self.method].options(), f"method: {self.method}"

    @property
    def output_path(self) -> Path:
        """The run folder.

        Raises:
            ConfigError: neither output nor data is given.
        """
        if self.output is not None:
            return Path(self.output).expanduser()
        if self.data is None:
            raise ConfigError("no data given; expected a manifest, a corpus or hf:owner/name: --data PATH")
        from mambavox.data.sources import split_scheme

        corpus, rest = split_scheme(self.data)
        path = Path(rest.removeprefix("hf:")).expanduser()
        return Path("runs") / f"ctc-{corpus or (path.resolve().parent.name if path.is_file() else path.resolve().name)}"
