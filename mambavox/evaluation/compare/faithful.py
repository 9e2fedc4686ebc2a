"""The MambAdapter paper's own settings, for those who want its figures and not a corrected comparison."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mambavox.adapters import METHODS
from mambavox.errors import ConfigError
from mambavox.evaluation.compare.grid import Grid, Task, Variant

SEEDS = (10, 3768427010, 3721728231, 2148699938, 3169696615)
"""Of the authors' scripts."""

SETTINGS: Mapping[str, Any] = {
    "weight_decay": 0.1,
    "warmup_ratio": 0.0,
    "max_grad_norm": 0.0,
    "pooling": "mean",
    "position_embeddings": "zero",
}
"""For every task; AdamW's betas (0.9, 0.98), its epsilon 1e-6 and the cosine to zero are mambavox's own, too."""

DEVIATIONS = (
    "Weight decay 0.1 acts on matrices only; the paper's code decays every tensor, A_log, D, scales and biases "
    "included. (Its scripts pass 0.01, which one version of the code ignores.)",
    "The bottleneck adapter starts with its up projection at zero; the predecessor's code sets every tensor to zero.",
    "The Conformer adapter applies its layer norm, which the paper's code computes and goes on without, and its other "
    "norm takes each recording by itself, where the paper's takes the batch. Its kernel is 31 on every task, the "
    "released default; the predecessor has 8 on environmental sounds.",
    "LoRA has rank 7, which gives the printed 0.26 M; the paper's code reads its rank 6 as a reduction rate. No norm "
    "is trained beside it.",
    "MambAdapter starts as the authors' released code writes it (init=paper). Their code creates adapters inside "
    "from_pretrained, which overwrites part of that, and the figures may come from an earlier version whose scale "
    "starts at 1.",
    "Shared projections belong to one run; in the paper's code they are class attributes and leak from fold to fold.",
    "SpecAugment masks at most 16 % of the frames; the paper's code at most 80 frames, which is 20 % on UrbanSound8K.",
    "Frames that no patch of the paper's model covers are left out: 396 of 400, 496 of 500 and 96 of 100 are heard.",
)
"""What is known to differ from the paper's code all the same."""

# Frames beyond the last patch are not heard by the paper's model either; so its 400 frames are 396, 3.975 s.
_SECONDS = {396: 3.975, 496: 4.975, 96: 0.975, 796: 7.975}


@dataclass(frozen=True)
class Recipe:
    """The paper's settings for one corpus.

    Attributes:
        frames: that its patches cover.
        epochs: passes over the training split.
        batch_size: recordings a step.
        spec_augment: whether bands and frames are masked.
        more: further settings.
    """

    frames: int
    epochs: int
    batch_size: int
    spec_augment: bool
    more: tuple[tuple[str, Any], ...] = ()

    def settings(self) -> dict[str, Any]:
        """Fields of ``ClassifyConfig``."""
        return {
            "crop_seconds": _SECONDS[self.frames],
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "spec_augment": self.spec_augment,
            **dict(self.more),
        }


RECIPES: Mapping[str, Recipe] = {
    "esc50": Recipe(496, epochs=50, batch_size=32, spec_augment=True),
    "urbansound8k": Recipe(396, epochs=30, batch_size=32, spec_augment=True, more=(("protocol", "paper"),)),
    "speech_commands": Recipe(96, epochs=75, batch_size=128, spec_augment=False),
    "fluent_speech_commands": Recipe(396, epochs=75, batch_size=32, spec_augment=False),
    "iemocap": Recipe(796, epochs=20, batch_size=32, spec_augment=False),
}
"""By the name of the corpus, which is the task's name."""


def make_faithful(grid: Grid) -> Grid:
    """Give a grid the paper's settings; what differs all the same is among its remarks.

    Args:
        grid: whose tasks are named after the paper's corpora; the settings that it states itself are kept.

    Raises:
        ConfigError: a task is none of the paper's.

    Source:
        MambAdapter (arXiv 2606.15638) and the authors' code and scripts.
    """
    settings = {**SETTINGS, **grid.settings}
    named = [f"{key} = {value}" for key, value in settings.items()]
    tasks = [_faithful_task(task, grid.settings) for task in grid.tasks]
    variants = [_faithful_variant(row) for row in grid.variants]
    for task in tasks:
        named.append(f"{task.name}: " + ", ".join(f"{key} = {value}" for key, value in task.settings.items()))
    named.append(
        "learning rates: " + ", ".join(dict.fromkeys(f"{row.method} {row.learning_rate:g}" for row in variants))
    )
    remarks = (
        "The paper's settings: " + "; ".join(named) + ".",
        *(f"Deviation from the paper's code: {deviation}" for deviation in DEVIATIONS),
    )
    return replace(
        grid,
        name=f"{grid.name}, the paper's settings",
        variants=tuple(variants),
        tasks=tuple(tasks),
        settings=settings,
        remarks=(*grid.remarks, *remarks),
    )


def _faithful_task(task: Task, settings: Mapping[str, Any]) -> Task:
    recipe = RECIPES.get(task.name)
    if recipe is None:
        raise ConfigError(
            f"task {task.name}: the paper has no such corpus; expected tasks named {', '.join(RECIPES)}, or leave out "
            "--faithful"
        )
    own = {key: value for key, value in recipe.settings().items() if key not in settings}
    return replace(task, settings={**own, **task.settings})


def _faithful_variant(variant: Variant) -> Variant:
    options = dict(variant.options)
    if variant.method == "mambadapter":
        options.setdefault("init", "paper")
    return replace(variant, options=options, learning_rate=METHODS[variant.method].learning_rate)
