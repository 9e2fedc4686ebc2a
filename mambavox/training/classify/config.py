"""What one run of ``mambavox adapt --task classify`` does."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from mambavox.errors import ConfigError
from mambavox.runs.config import AdaptConfig, data_name
from mambavox.runs.fields import option


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(AdaptConfig, backbone="nano-ast", warmup_ratio=0.05):
    """Configuration of one adaptation to a classification task.

    Raises:
        ConfigError: a value has the wrong type or lies outside its range, or two values contradict each other.
    """

    task: ClassVar[str] = "classify"

    pooling: Literal["backbone", "mean"] = option(
        "backbone",
        "What the head reads: what the backbone's own head reads, or the mean of all tokens (AST only).",
        group="Model",
    )
    position_embeddings: Literal["kept", "zero"] = option(
        "kept",
        "AST's: kept, cropped or stretched to the clips, or zero, as the MambAdapter paper's code leaves them.",
        group="Model",
    )
    label_column: str = option("label", "Column of the class.", group="Data")
    crop_seconds: float | None = option(
        None,
        "Recordings are cut at this length, in seconds.",
        group="Data",
        unset="so that 98 % fit",
        above=0,
    )
    spec_augment: bool = option(
        False, "Mask random frames and mel bands in training (backbones that hear spectrograms).", group="Training"
    )
    class_balance: Literal["none", "weights", "sampling"] = option(
        "none",
        "What is done where classes have different numbers of training recordings: nothing; weights in the loss, so "
        "that each class counts the same; or sampling, which draws each class equally often.",
        group="Training",
    )
    metric_for_best_model: Literal["accuracy", "macro_f1", "loss"] = option(
        "accuracy",
        "Validation figure by which the best epoch is kept: accuracy, macro_f1 (F1 averaged over the classes, each of "
        "which counts the same), or the loss.",
        group="Evaluation",
    )
    cache_features: bool = option(
        False,
        "Run what lies before the first trained layer once for each clip, not once an epoch; takes disk space.",
        group="Training",
    )
    protocol: str | None = option(
        None, "How a corpus is divided, such as paper.", group="Splits", unset="the corpus's first protocol"
    )
    fold: str | None = option(
        None, "Fold of the corpus's protocol, named after its test fold.", group="Splits", unset="the first"
    )
    fold_column: str | None = option(
        None, "Column that numbers the folds.", group="Splits", unset="fold, if there is one"
    )
    test_fold: str | None = option(None, "Fold of the test split.", group="Splits", unset="the last")
    valid_fold: str | None = option(
        None, "Fold of the valid split.", group="Splits", unset="the one before the test fold"
    )
    shots: int | None = option(
        None, "Training recordings of each class, drawn with split_seed.", group="Splits", unset="all", above=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop_seconds is not None and self.crop_seconds < self.min_seconds:
            raise ConfigError(f"crop_seconds={self.crop_seconds:g} is below min_seconds={self.min_seconds:g}")
        if self.cache_features and self.spec_augment:
            raise ConfigError(
                "cache_features: spec_augment masks every clip anew each epoch, so that nothing can be kept; leave out "
                "one of them (--no-cache-features, --no-spec-augment)"
            )
        asked = self.asked_of_a_corpus
        if asked and self.divided_by:
            raise ConfigError(
                f"{asked} divides a corpus as it is published, {', '.join(self.divided_by)} in another way; leave out "
                "one or the other"
            )

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

    def name_parts(self) -> list[str | None]:
        """The data, and the protocol and fold where they are given."""
        fold = None if self.fold is None else f"fold{self.fold}"
        return [data_name(self.given_data), self.protocol, fold]
