"""What one adaptation of Whisper does: the same names in Python, in YAML and on the command line."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from mambavox.errors import ConfigError
from mambavox.training.run_config import RUN_FILE, RunConfig, option, read_yaml, require


@dataclass(frozen=True)
class Seq2SeqConfig(RunConfig):
    """Configuration of one adaptation of Whisper to transcribed recordings, ``mambavox adapt --task asr``.

    Every field carries its one line of documentation, and ``unset``: what is done where it is left at ``None``.

    Raises:
        ConfigError: a value has the wrong type or lies outside its range, or two values contradict each other.
    """

    command: ClassVar[str] = "adapt --task asr"
    further_keys: ClassVar[str] = "method_options"
    free: ClassVar[frozenset[str]] = frozenset({"output", "device", "num_workers", "tensorboard", "eval_batch_size"})

    task: Literal["asr"] = option("asr", "asr: speech recognition with a Whisper")
    data: str | None = option(None, "transcribed recordings: manifest, saved datasets, hf:owner/name")
    output: str | None = option(None, "run folder to write", unset="runs/ and the names of the data and the language")
    backbone: str = option("openai/whisper-small", "Hugging Face name or folder of a Whisper")
    language: str | None = option(
        None, "code of the language, such as ckb; a new token where Whisper lacks it", unset="for English-only models"
    )
    language_like: str | None = option(
        None, "language that the new token starts as", unset="the mean of all that the model knows"
    )
    method: str = option("mambadapter", "how to adapt it; `mambavox info` lists the methods and their options")
    method_options: Mapping[str, Any] = field(
        default_factory=dict, metadata={"help": "options of the method, such as where and bottleneck_dim"}
    )

    text_column: str | None = option(None, "column of the transcripts", unset="text, sentence or transcription")
    audio_column: str | None = option(None, "column of the recordings", unset="found by its name")
    language_column: str | None = option(
        None, "keep the rows alone in whose column, such as language, the code of the language stands", unset="all rows"
    )
    normalize: bool = option(True, "learn transcripts without case and punctuation; scores are always without them")
    split_column: str | None = option(None, "column that names the part: train, valid, test", unset="split, if any")
    group_column: str | None = option(None, "column, such as speaker, whose values must not straddle parts")
    valid_fraction: float = option(0.1, "share of the recordings drawn for validation where no column gives them")
    test_fraction: float | None = option(None, "share drawn for testing", unset="0.1, or 0 beside a split column")
    on_error: Literal["raise", "skip"] = option(
        "raise", "about recordings that cannot be used: raise an error, or skip them"
    )
    min_seconds: float = option(0.0, "shortest usable recording, in seconds")
    max_seconds: float | None = option(None, "longer recordings are left out", unset="Whisper's window, 30 s")
    train_seconds: float | None = option(None, "seconds to train on at most, drawn with split_seed", unset="all")
    valid_seconds: float | None = option(None, "seconds to validate on at most", unset="all")
    test_seconds: float | None = option(None, "seconds to test on at most", unset="all")
    trim_encoder: bool = option(False, "encode no more than the longest clip of a batch: faster, not what Whisper does")

    epochs: int = option(15, "passes over the training part")
    batch_size: int = option(6, "recordings a step and device")
    eval_batch_size: int = option(16, "recordings at a time in evaluation")
    gradient_accumulation: int = option(1, "steps whose gradients are added up before an update")
    learning_rate: float | None = option(None, "peak learning rate", unset="1e-3, 1e-4 for full")
    final_learning_rate: float = option(0.0, "learning rate at the end, to which it falls linearly")
    weight_decay: float = option(0.01, "AdamW's weight decay; none on norms, biases, scales, A_log and D")
    warmup_ratio: float = option(0.0, "share of the updates with a rising learning rate")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm; 0 clips nothing")
    max_new_tokens: int | None = option(
        None,
        "tokens that are generated for a recording at most",
        unset="half as many again as the longest transcript has",
    )
    num_beams: int = option(1, "beams of the search; 1 is greedy")
    gradient_checkpointing: bool = option(False, "compute layers again in the backward pass: less memory, more time")
    metric_for_best_model: Literal["wer", "cer"] = option(
        "wer",
        "error rate of the valid part by which the best epoch is kept: of words, or of characters, which says more "
        "where hardly a word is right",
    )
    patience: int | None = option(None, "stop after so many epochs without a lower valid error rate", unset="never")
    seed: int = option(0, "of the initialisation, the order of the data and dropout")
    split_seed: int = option(0, "of the draw of parts; its own, so that seeds can be compared on the same parts")
    bf16: bool | None = option(None, "bfloat16 autocast", unset="on where a GPU supports it")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to train: cpu, cuda, or auto: a GPU if there is one")
    num_workers: int = option(0, "processes that load data; features are kept in memory, so 0 is rarely too few")
    tensorboard: bool = option(True, "write TensorBoard logs into the run folder")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "batch_size", "eval_batch_size", "gradient_accumulation", "max_new_tokens", "num_beams"):
            value = getattr(self, name)
            require(name, value, value is None or value >= 1, "at least 1")
        for name in (
            *("weight_decay", "max_grad_norm", "min_seconds", "num_workers", "seed", "split_seed"),
            "final_learning_rate",
        ):
            require(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        for name in ("valid_fraction", "warmup_ratio", "test_fraction"):
            value = getattr(self, name)
            require(name, value, value is None or 0 <= value < 1, "at least 0 and below 1")
        seconds = ("max_seconds", "train_seconds", "valid_seconds", "test_seconds")
        for name in ("learning_rate", "patience", *seconds):
            value = getattr(self, name)
            require(name, value, value is None or value > 0, "above 0")
        if self.max_seconds is not None and self.max_seconds < self.min_seconds:
            raise ConfigError(f"max_seconds={self.max_seconds:g} is below min_seconds={self.min_seconds:g}")
        if self.final_learning_rate >= self.peak_learning_rate:
            raise ConfigError(
                f"final_learning_rate={self.final_learning_rate:g} is not below learning_rate="
                f"{self.peak_learning_rate:g}"
            )
        if self.language_like is not None and self.language is None:
            raise ConfigError(
                f"language_like={self.language_like} says how a new language starts; give --language, too"
            )
        if self.language_column is not None and self.language is None:
            raise ConfigError(f"language_column={self.language_column} says where the language stands; give --language")

    @property
    def peak_learning_rate(self) -> float:
        """The paper's, where none is given: 1e-3 for whatever is added, 1e-4 for full fine-tuning."""
        return self.learning_rate or (1e-4 if self.method == "full" else 1e-3)

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
            raise ConfigError("no data given; expected a manifest or hf:owner/name: --data PATH")
        path = Path(self.data.removeprefix("hf:")).expanduser()
        name = path.resolve().parent.name if path.is_file() else path.resolve().name
        return Path("runs") / "-".join(filter(None, (name, self.language, self.method)))


def is_whisper_run(run: Path) -> bool:
    """Whether a folder holds a run of ``mambavox adapt --task asr``."""
    try:
        return bool(read_yaml(run.expanduser() / RUN_FILE).get("task") == "asr")
    except ConfigError:
        return False
