"""Ready-made grids: the MambAdapter paper's tables and figures, and what else is asked of a method."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mambavox.adapters.mambadapter import RESIDUAL
from mambavox.errors import ConfigError
from mambavox.evaluation.compare.grid import Grid, Task, Variant
from mambavox.runs.learning_rates import WHISPER_GRID
from mambavox.training.whisper.presets import PRESETS as WHISPER_PRESETS

PAPER_BACKBONE = "MIT/ast-finetuned-audioset-10-10-0.4593"
"""The paper's: AST with 12 layers of width 768, a default ``ASTConfig``."""

# The paper's sizes on AST.
_MAMBADAPTER: Mapping[str, Any] = {"bottleneck_dim": 12, "d_state": 8, "d_conv": 24, "expand": 2}
_BOTTLENECK: Mapping[str, Any] = {"bottleneck_dim": 12}
_CONFORMER: Mapping[str, Any] = {"bottleneck_dim": 8, "kernel_size": 31}
_LORA: Mapping[str, Any] = {"r": 7, "lora_alpha": 16}

_WIDTHS: Mapping[str, Sequence[int]] = {
    "bottleneck": (2, 3, 4, 6, 8, 12, 16, 21, 24, 32, 38, 48),
    "conformer": (2, 3, 4, 6, 8, 12, 16, 21, 24, 32),
    "mambadapter": (12, 16, 21, 24, 32, 38, 48, 64, 77, 96),
}
_SHOTS = (1, 2, 4, 8, 16)


def table1(tasks: Sequence[Task]) -> Grid:
    """Every row of the paper's table 1, and the linear probe.

    Args:
        tasks: the columns.

    Source:
        MambAdapter (arXiv 2606.15638), table 1; sizes that it does not print follow from its parameter counts, and
        those of prompts and prefixes are its predecessor's (arXiv 2312.03694).
    """
    rows: list[tuple[str, str, Mapping[str, Any]]] = [
        ("full fine-tuning", "full", {}),
        ("linear probe", "linear", {}),
        ("BitFit", "bitfit", {}),
        ("deep prompts", "prompt", {"depth": "deep", "num_tokens": 25}),
        ("prefixes", "prefix", {"num_tokens": 12}),
        ("LoRA", "lora", _LORA),
    ]
    for placement in ("ffn", "both"):
        rows += [
            (f"bottleneck, {placement}", "bottleneck", {**_BOTTLENECK, "placement": placement}),
            (f"conformer, {placement}", "conformer", {**_CONFORMER, "placement": placement}),
            (f"MambAdapter, {placement}", "mambadapter", {**_MAMBADAPTER, "placement": placement}),
        ]
    return _grid("table1", [Variant(name, method, options, line=method) for name, method, options in rows], tasks)


def scaling(tasks: Sequence[Task]) -> Grid:
    """The 32 points of the paper's figure 2: accuracy against parameters for three adapters.

    Args:
        tasks: the paper's is Speech Commands.

    Source:
        MambAdapter (arXiv 2606.15638), figure 2, and the data of the plot in the authors' repository.
    """
    sizes: dict[str, Mapping[str, Any]] = {
        "bottleneck": {},
        "conformer": {"kernel_size": 31},
        "mambadapter": {key: value for key, value in _MAMBADAPTER.items() if key != "bottleneck_dim"},
    }
    variants = [
        Variant(f"{method} {width}", method, {"bottleneck_dim": width, **sizes[method]}, line=method)
        for method, widths in _WIDTHS.items()
        for width in widths
    ]
    return _grid("scaling", variants, tasks)


def ablation(tasks: Sequence[Task]) -> Grid:
    """MambAdapter with one thing changed at a time; all are compared with the whole.

    Args:
        tasks: the columns.

    Source:
        MambAdapter (arXiv 2606.15638), table 3 and figure 3.
    """
    changes: list[tuple[str, Mapping[str, Any]]] = [
        ("MambAdapter", {}),
        ("no Mamba", {"mixer": "none"}),
        ("no sharing", {"sharing": "none"}),
        ("no scale", {"gate": "none"}),
        ("no trained norms", {"train_norms": False}),
        ("the paper's initialisation", {"init": "paper"}),
        *((f"gate={gate}", {"gate": gate}) for gate in ("channel", "token")),
        *((f"mixer={mixer}", {"mixer": mixer}) for mixer in ("bimamba", "mamba2")),
        *((f"d_conv={width}", {"d_conv": width}) for width in (2, 4, 8, 16, 32)),
        *((f"d_state={size}", {"d_state": size}) for size in (16, 32, 64)),
        *((f"expand={factor}", {"expand": factor}) for factor in (1, 3, 4)),
    ]
    variants = [Variant(name, "mambadapter", {**_MAMBADAPTER, **change}) for name, change in changes]
    return replace(_grid("ablation", variants, tasks), reference="MambAdapter")


def surface(tasks: Sequence[Task]) -> Grid:
    """MambAdapter over kernel width and state size, and over kernel width and expansion: the paper's figure 3.

    Args:
        tasks: the paper's is speech recognition; here any task of classification.

    Source:
        MambAdapter (arXiv 2606.15638), figure 3.
    """
    planes = [("d_state", value) for value in (8, 16, 24, 32, 64)] + [("expand", value) for value in (3, 4)]
    variants = [
        Variant(f"d_conv={width} {option}={value}", "mambadapter", {**_MAMBADAPTER, "d_conv": width, option: value})
        for option, value in planes
        for width in (4, 8, 16, 24, 32)
    ]
    return _grid("surface", variants, tasks)


def few_shot(tasks: Sequence[Task]) -> Grid:
    """The paper's adapters, LoRA and the linear probe with 1, 2, 4, 8 and 16 training recordings of each class.

    Args:
        tasks: each becomes one column for each number of recordings.
    """
    rows: list[tuple[str, Mapping[str, Any]]] = [
        ("linear", {}),
        ("lora", _LORA),
        ("bottleneck", _BOTTLENECK),
        ("conformer", _CONFORMER),
        ("mambadapter", _MAMBADAPTER),
    ]
    columns = [
        replace(task, name=f"{task.name}, {shots} per class", settings={**task.settings, "shots": shots})
        for task in tasks
        for shots in _SHOTS
    ]
    return _grid("few-shot", [Variant(method, method, options) for method, options in rows], columns)


def table2(tasks: Sequence[Task]) -> Grid:
    """The rows of the paper's table 2, speech recognition with Whisper-small, on one grid of rates for all.

    Args:
        tasks: of kind ``whisper``; the paper's are five languages that Whisper does not know.

    Source:
        MambAdapter (arXiv 2606.15638), table 2; sizes as ``mambavox.training.whisper.presets`` explains them.
    """
    variants = []
    for name, preset in WHISPER_PRESETS.items():
        variants.append(Variant(name, name, dict(preset().method_options)))
    grid = Grid("table2", tuple(variants), tuple(tasks), learning_rates=WHISPER_GRID)
    return replace(grid, remarks=("The rates fall to zero; the paper's fall to different small ones.",))


def whisper_base(tasks: Sequence[Task]) -> Grid:
    """Table 2's question on Whisper base with twelve minutes of speech a language, which two CPU cores can answer.

    The adapters have at most 1 % of the model's parameters (728,772; the bottleneck adapter's), and the two forms of
    MambAdapter no more than any; one more row has a third of them. The rates are those with the lowest loss on
    Upper Sorbian's valid split out of three or more, with none at an edge (``docs/results/adapter-study.md``).

    Args:
        tasks: of kind ``whisper``, one a language.

    Raises:
        ConfigError: a task is of another kind.
    """
    for task in tasks:
        if task.kind != "whisper":
            raise ConfigError(f"task {task.name} is of kind {task.kind}; expected {task.name}=whisper:{task.data}")
    own = {**RESIDUAL, "train_norms": False}
    paper = {"bottleneck_dim": 117, "d_state": 16, "d_conv": 8, "expand": 2, "train_norms": False}
    variants = (
        Variant("full fine-tuning", "full", {}, 1e-4),
        Variant("LoRA", "lora", {"r": 59, "lora_alpha": 118}, 3e-3),
        Variant("bottleneck", "bottleneck", {"bottleneck_dim": 118, "train_norms": False}, 3e-3),
        Variant("conformer", "conformer", {"bottleneck_dim": 76, "kernel_size": 31, "train_norms": False}, 3e-3),
        Variant("MambAdapter, paper", "mambadapter", paper, 1e-3),
        Variant("MambAdapter, residual", "mambadapter", {**own, "bottleneck_dim": 115}, 3e-3),
        Variant("MambAdapter, residual, a third", "mambadapter", {**own, "bottleneck_dim": 36}, 3e-3),
    )
    settings = {
        "train_seconds": 720.0,
        "epochs": 5,
        "batch_size": 4,
        "length_buckets": True,
        "trim_encoder": True,
        "metric_for_best_model": "loss",
        "precision": "float32",
    }
    return Grid("whisper-base", variants, tuple(tasks), "openai/whisper-base", settings=settings)


PRESETS: Mapping[str, Callable[[Sequence[Task]], Grid]] = {
    "table1": table1,
    "table2": table2,
    "whisper-base": whisper_base,
    "scaling": scaling,
    "ablation": ablation,
    "surface": surface,
    "few-shot": few_shot,
}
"""By the name that ``mambavox compare --preset`` takes."""


def choose_variants(grid: Grid, wanted: Sequence[Variant]) -> Grid:
    """Restrict a grid to some methods.

    Args:
        grid: of a preset.
        wanted: one without options stands for the grid's variants of that method, where it has any.

    Returns:
        The grid with these variants, in the order wanted.
    """
    chosen: dict[str, Variant] = {}
    for variant in wanted:
        own = [] if variant.options else [row for row in grid.variants if row.method == variant.method]
        chosen.update({row.name: row for row in own or [variant]})
    reference = grid.reference if grid.reference in chosen else None
    return replace(grid, variants=tuple(chosen.values()), reference=reference)


def _grid(name: str, variants: Sequence[Variant], tasks: Sequence[Task]) -> Grid:
    return Grid(name, tuple(variants), tuple(tasks), backbone=PAPER_BACKBONE)
