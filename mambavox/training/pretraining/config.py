"""What one pre-training does: the same names in Python, in YAML and on the command line."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from mambavox.errors import ConfigError
from mambavox.runs.config import RunConfig
from mambavox.runs.fields import option

if TYPE_CHECKING:
    from mambavox.hubert.configuration import MambaHubertConfig

MFCC = "mfcc"
"""Targets of the first iteration."""


class Recipe(NamedTuple):
    """What a size of model is trained with where the configuration leaves it open.

    Attributes:
        steps: updates, with MFCC targets.
        steps_on_layers: updates, with targets from a model's layer.
        learning_rate: peak.
        bidirectional_learning_rate: peak of a model with bidirectional Mamba layers.
        batch_seconds: of speech an update.
        device_batch_seconds: of speech that one device takes at a time.
        save_every: updates between checkpoints, and between evaluations.
    """

    steps: int
    steps_on_layers: int
    learning_rate: float
    bidirectional_learning_rate: float
    batch_seconds: float
    device_batch_seconds: float
    save_every: int


# The paper's for base (and small, of which it says nothing else): 11.2 million samples an update. Nano is ours.
_PAPER = Recipe(250_000, 400_000, 5e-4, 5e-5, 700.0, 87.5, 5000)
RECIPES = {"nano": Recipe(10_000, 10_000, 1e-3, 1e-3, 60.0, 30.0, 200), "small": _PAPER, "base": _PAPER}
"""By size."""
# DistilHuBERT's: 24 utterances an update, which are about 300 s. Nano is ours.
_DISTILLED = Recipe(200_000, 200_000, 2e-4, 2e-4, 300.0, 75.0, 5000)
TEACHER_RECIPES = {"nano": RECIPES["nano"], "small": _DISTILLED, "base": _DISTILLED}
"""By size, of a student."""
CLUSTERS = {True: 100, False: 500}
"""Units of MFCC and of layers."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunConfig, valid_fraction=0.02, warmup_ratio=0.08, max_grad_norm=10.0):
    """Configuration of one pre-training.

    Any key that is no field here is a field of ``MambaHubertConfig`` and overrides the preset's.

    Raises:
        ConfigError: a value has the wrong type or lies outside its range, or two values contradict each other.

    Source:
        Mamba-based HuBERT (arXiv 2506.12606) and its released configurations; with a teacher, DistilHuBERT
        (arXiv 2110.01900) and its code.
    """

    task: ClassVar[str] = "pretrain"
    command: ClassVar[str] = "pretrain"
    further_keys: ClassVar[str] = "model_options"

    preset: str = option(
        "mamba-base",
        "Kind of encoder and size, such as mamba-base, ext-bimamba-nano, transformer-small.",
        group="Model",
    )
    model_options: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={"help": "Fields of MambaHubertConfig that differ from the preset.", "group": "Model"},
    )
    targets: str = option(MFCC, "Units to predict: mfcc, or MODEL:LAYER, such as runs/it1:6.", group="Model")
    num_clusters: int | None = option(
        None, "Number of units.", group="Model", unset="100 of mfcc, 500 of a layer", at_least=1
    )
    cluster_fraction: float = option(
        0.1, "Share of the frames from which units are made.", group="Model", above=0, at_most=1
    )
    teacher: str | None = option(
        None, "Speech model whose layers to predict in place of units.", group="Model", unset="none"
    )
    teacher_layers: str | None = option(
        None,
        "Layers of the teacher to predict, such as 4,8,12.",
        group="Model",
        unset="those at one third, two thirds and the end",
    )
    student_layers: str | None = option(
        None,
        "Layers that predict the teacher's: one for each, or one for all.",
        group="Model",
        unset="those at the same depth, and the last for the deepest",
    )
    teacher_front_end: bool = option(
        False, "Begin with the teacher's convolutions, which must be of the same shapes.", group="Model"
    )
    crop_seconds: float = option(
        15.6, "Longer recordings are cropped at random, anew each epoch, in seconds.", group="Data", above=0
    )
    shuffle_shards: int = option(
        8, "Shards whose recordings are mixed; memory should hold twice as many.", group="Data", at_least=1
    )
    cache_gb: float = option(
        4.0,
        "Memory for decoded recordings, 0.115 GB an hour; the others are read each time.",
        group="Running",
        at_least=0,
        free=True,
    )
    steps: int | None = option(
        None, "Updates.", group="Training", unset="250k, 400k on layers, 200k with a teacher; nano 10k", at_least=1
    )
    batch_seconds: float | None = option(
        None,
        "Speech an update, over all devices, in seconds.",
        group="Training",
        unset="700, with a teacher 300; nano 60",
        above=0,
    )
    device_batch_seconds: float | None = option(
        None,
        "Speech that a device takes at a time, in seconds.",
        group="Training",
        unset="87.5, with a teacher 75; nano 30",
        above=0,
    )
    log_every: int = option(20, "Updates between lines of figures.", group="Running", at_least=1, free=True)
    eval_every: int | None = option(
        None, "Updates between evaluations.", group="Running", unset="as save_every", at_least=1, free=True
    )
    save_every: int | None = option(
        None, "Updates between checkpoints.", group="Running", unset="5000; nano 200", at_least=1, free=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.encoder_and_size()
        self._check_teacher()
        if self.targets != MFCC and not self.targets.rpartition(":")[2].isdecimal():
            raise ConfigError(f"targets={self.targets}; expected mfcc, or a model and its layer, such as runs/it1:6")
        if self.crop_seconds < self.min_seconds:
            raise ConfigError(f"crop_seconds={self.crop_seconds:g} is below min_seconds={self.min_seconds:g}")
        if self.seconds_a_device < self.crop_seconds:
            raise ConfigError(
                f"device_batch_seconds={self.seconds_a_device:g} is below crop_seconds={self.crop_seconds:g}; "
                "a batch must hold the longest crop"
            )
        batches = self.seconds_a_step / self.seconds_a_device
        if round(batches) < 1 or abs(batches - round(batches)) > 1e-6:
            raise ConfigError(
                f"batch_seconds={self.seconds_a_step:g} is {batches:.3g} times device_batch_seconds="
                f"{self.seconds_a_device:g}; expected a whole number of times, "
                f"such as --batch-seconds {max(round(batches), 1) * self.seconds_a_device:g}"
            )

    def _check_teacher(self) -> None:
        for name in ("teacher_layers", "student_layers"):
            layer_numbers(name, getattr(self, name))
        if self.teacher is None:
            for name in ("teacher_layers", "student_layers", "teacher_front_end"):
                if getattr(self, name):
                    raise ConfigError(f"{name}={getattr(self, name)}, but there is no teacher: --teacher MODEL")
        elif self.targets != MFCC or self.num_clusters is not None:
            name = "targets" if self.targets != MFCC else "num_clusters"
            raise ConfigError(
                f"{name}={getattr(self, name)} and teacher={self.teacher}; expected units to predict or a teacher, "
                "not both: leave out one of them"
            )

    def known_further_keys(self) -> tuple[list[str], str]:
        """The fields of the model."""
        from dataclasses import fields

        from mambavox.hubert.configuration import MambaHubertConfig  # not at the top: `--help` must not wait for it

        ours = {"num_clusters"}
        names = [spec.name for spec in fields(MambaHubertConfig) if spec.name in MambaHubertConfig.__annotations__]
        return [name for name in names if name not in ours], "of a model"

    def encoder_and_size(self) -> tuple[str, str]:
        """What the preset names.

        Raises:
            ConfigError: there is no such preset.
        """
        from mambavox.hubert.configuration import ENCODER_KINDS, SIZES

        encoder, _, size = self.preset.rpartition("-")
        if encoder not in ENCODER_KINDS or size not in SIZES:
            presets = [f"{kind}-{size}" for kind in ENCODER_KINDS for size in SIZES]
            near = difflib.get_close_matches(self.preset, presets, n=3, cutoff=0.4)
            raise ConfigError(
                f"preset={self.preset}; expected a kind ({', '.join(ENCODER_KINDS)}) and a size ({', '.join(SIZES)})"
                + (f"; did you mean {' or '.join(near)}?" if near else "")
            )
        return encoder, size

    def model_config(self) -> "MambaHubertConfig":
        """Configuration of the model.

        Raises:
            ConfigError: an override does not fit.
        """
        from mambavox.hubert.configuration import MambaHubertConfig

        rate = self.model_options.get("sampling_rate", MambaHubertConfig.sampling_rate)
        if rate != MambaHubertConfig.sampling_rate:
            raise ConfigError(
                f"sampling_rate={rate}: recordings of any rate are read at {MambaHubertConfig.sampling_rate} Hz, which "
                "is what the model hears; leave it out"
            )
        encoder, size = self.encoder_and_size()
        options = {"encoder": encoder, **self.model_options}
        if self.teacher is None:
            options["num_clusters"] = self.units
        else:
            # DistilHuBERT's: a layer that LayerDrop leaves out has nothing to learn from its teacher.
            options.setdefault("layerdrop", 0.0)
        return getattr(MambaHubertConfig, size)(**options)

    @property
    def recipe(self) -> Recipe:
        """What the size is trained with where nothing is given."""
        return (RECIPES if self.teacher is None else TEACHER_RECIPES)[self.encoder_and_size()[1]]

    @property
    def units(self) -> int:
        """Number of units."""
        return self.num_clusters or CLUSTERS[self.targets == MFCC]

    @property
    def num_steps(self) -> int:
        """Updates."""
        return self.steps or (self.recipe.steps if self.targets == MFCC else self.recipe.steps_on_layers)

    @property
    def seconds_a_step(self) -> float:
        """Speech an update, over all devices."""
        return self.batch_seconds or self.recipe.batch_seconds

    @property
    def seconds_a_device(self) -> float:
        """Speech a device takes at a time."""
        return self.device_batch_seconds or self.recipe.device_batch_seconds

    @property
    def batches_a_step(self) -> int:
        """Batches of one device whose gradients make an update, over all devices."""
        return round(self.seconds_a_step / self.seconds_a_device)

    @property
    def peak_learning_rate(self) -> float:
        """Peak learning rate."""
        if self.learning_rate is not None:
            return self.learning_rate
        bidirectional = "bimamba" in str(self.model_options.get("encoder", self.preset))
        return self.recipe.bidirectional_learning_rate if bidirectional else self.recipe.learning_rate

    @property
    def steps_between_saves(self) -> int:
        """Updates between checkpoints."""
        return self.save_every or self.recipe.save_every

    @property
    def steps_between_evaluations(self) -> int:
        """Updates between evaluations."""
        return self.eval_every or self.steps_between_saves

    def name_parts(self) -> list[str | None]:
        """The preset."""
        return [self.preset]


def layer_numbers(name: str, text: str | None) -> list[int]:
    """Numbers of layers as ``"4,8,12"`` writes them; none where nothing is written.

    Raises:
        ConfigError: it is none of that.
    """
    words = [word.strip() for word in text.split(",")] if text is not None else []
    if not all(word.isdecimal() for word in words):
        raise ConfigError(f"{name}={text}; expected numbers of layers, such as 4,8,12")
    if name == "teacher_layers" and len(set(words)) < len(words):
        raise ConfigError(f"{name}={text}; expected each layer once")
    return [int(word) for word in words]
