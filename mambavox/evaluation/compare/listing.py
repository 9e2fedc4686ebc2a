"""What a comparison would do: its cells and how many parameters each trains, before anything is trained."""

from dataclasses import replace
from typing import Any

from transformers import ASTConfig, PretrainedConfig

from mambavox.adapters.budget import count_parameters, fit_budget, size_option
from mambavox.errors import RunError
from mambavox.evaluation.compare.cell import Cell, CellStore
from mambavox.evaluation.compare.grid import Grid, Task, Variant
from mambavox.evaluation.compare.plan import Plan
from mambavox.evaluation.compare.presets import PAPER_BACKBONE
from mambavox.evaluation.compare.summary import choose_rate
from mambavox.hub import load_config, quiet_transformers


def list_variants(grid: Grid) -> list[dict[str, Any]]:
    """A row for each variant of a grid: its name, method, options and trained parameters.

    Neither data nor weights are read.

    Args:
        grid: what is compared.

    Returns:
        Rows with ``variant``, ``method``, ``bottleneck_dim`` (``None`` where it has none), ``options`` and
        ``parameters``: trained norms counted, head not.

    Raises:
        ConfigError: the backbone cannot be found, or an option does not fit.
        HostError: the backbone is no known host.
    """
    config = host_config(_shown_backbone(grid))
    return [_row(variant, config) for variant in grid.variants]


def list_cells(plan: Plan, store: CellStore) -> list[dict[str, Any]]:
    """A row for each cell of a grid: those of ``list_variants`` and what tells the cell.

    Args:
        plan: of the grid.
        store: of the results that are there already.

    Returns:
        Rows with, beyond those of ``list_variants``, ``stage`` (``search`` chooses the learning rate, ``final`` is
        reported), ``task``, ``fold``, ``seed``, ``learning_rate`` (``None``: still to be chosen) and ``done``.

    Raises:
        ConfigError: the backbone cannot be found, or an option does not fit.
        HostError: the backbone is no known host.
    """
    rows = []
    variants = {row["variant"]: row for row in list_variants(plan.grid)}
    for task, variant in plan.pairs():
        searched = plan.search_cells(task, variant)
        stages: list[tuple[str, list[Cell], bool]] = [("search", searched, True)]
        done = all(_is_done(store, cell) for cell in searched)
        best = choose_rate(plan, store, task, variant).best if done else None
        stages.append(
            ("final", plan.final_cells(task, variant, best or plan.grid.rates(variant, task)[0]), best is not None)
        )
        for stage, cells, known in stages:
            rows += [
                {
                    **variants[variant.name],
                    "stage": stage,
                    "task": task.name,
                    "fold": cell.fold,
                    "seed": cell.config.seed,
                    "learning_rate": cell.config.learning_rate if known else None,
                    "done": known and _is_done(store, cell),
                }
                for cell in cells
            ]
    return rows


def fit_variants(grid: Grid, budgets: list[int]) -> Grid:
    """Size each variant to numbers of trained parameters; those without a size, or with one given, stay as they are.

    Args:
        grid: what is compared.
        budgets: trained parameters, the head not counted.

    Raises:
        ConfigError: the backbone cannot be found, or an option does not fit.
        HostError: the backbone is no known host.
    """
    config = host_config(_shown_backbone(grid))
    variants = []
    for variant in grid.variants:
        size = size_option(variant.method)
        if size is None or size in variant.options:
            variants.append(variant)
            continue
        for budget in budgets:
            with quiet_transformers():
                options = fit_budget(config, variant.method, variant.options, budget)
            name = f"{variant.name} {size}={options[size]}"
            variants.append(replace(variant, name=name, options=options))
    return replace(grid, variants=tuple({variant.name: variant for variant in variants}.values()))


def _shown_backbone(grid: Grid) -> str:
    """The backbone whose adapters are counted: that of the first task, or of the grid."""
    return grid.backbone_of(grid.tasks[0] if grid.tasks else Task("", ""))


def host_config(backbone: str) -> PretrainedConfig:
    """Configuration of a backbone; that of the paper's is known without fetching it.

    Args:
        backbone: embedded name, folder or Hugging Face name.

    Raises:
        ConfigError: there is no such model, or it cannot be fetched.
    """
    return ASTConfig() if backbone == PAPER_BACKBONE else load_config(backbone)


def _row(variant: Variant, config: PretrainedConfig) -> dict[str, Any]:
    with quiet_transformers():
        counts = count_parameters(config, variant.method, variant.options)
    return {
        "variant": variant.name,
        "method": variant.method,
        "bottleneck_dim": variant.options.get("bottleneck_dim"),
        "options": dict(variant.options),
        "parameters": counts["adapter"],
    }


def _is_done(store: CellStore, cell: Cell) -> bool:
    try:
        return store.read(cell) is not None
    except RunError:
        return False
