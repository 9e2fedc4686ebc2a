"""The preset ``latency`` of ``mambavox compare``: what methods cost on large hosts."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer

from mambavox.cli.console import ERR, OUT, print_json


def _lengths(text: Any) -> tuple[float, ...]:
    return tuple(float(word) for word in str(text).split(","))


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


_FLAGS: Mapping[str, Callable[[Any], Any]] = {
    "device": str,
    "repeats": int,
    "threads": int,
    "batch_size": int,
    "train_seconds": float,
    "seconds": _lengths,
    "bf16": _switch,
    "memory": _switch,
}


def print_latency(
    backbone: str | None,
    methods: str | None,
    budgets: str | None,
    flags: Mapping[str, Any],
    output: Path,
    as_json: bool,
) -> None:
    """Measure and print.

    Args:
        backbone: the host; whisper-small and ast-base where not given.
        methods: in words, separated by commas.
        budgets: one number of trained parameters.
        flags: how to measure: fields of ``Load``, and ``memory``.
        output: folder of ``latency.md`` and ``latency.json``.
        as_json: print JSON.

    Raises:
        typer.BadParameter: a flag is none of this preset's, or its value does not fit.
    """
    from mambavox.benchmarks.latency import SHAPES, Adapted, Load, measure_latency
    from mambavox.evaluation.compare.grid import parse_variant

    given = {key: _read(key, value) for key, value in flags.items()}
    memory = given.pop("memory", True)
    chosen = [parse_variant(words) for words in (methods or "").split(",") if words.strip()]
    report = measure_latency(
        tuple(SHAPES) if backbone is None else (backbone,),
        [Adapted(variant.name, variant.method, variant.options) for variant in chosen] or None,
        load=Load(**given),
        memory=memory,
        console=ERR,
        **({} if budgets is None else {"budget": _read("budgets", budgets)}),
    )
    report.write(output)
    if as_json:
        print_json(report.to_mapping())
    else:
        OUT.print(report.markdown(), markup=False)


def _read(key: str, value: Any) -> Any:
    kind = int if key == "budgets" else _FLAGS.get(key)
    flag = f"--{key.replace('_', '-')}"
    if kind is None:
        known = ", ".join(f"--{name.replace('_', '-')}" for name in _FLAGS)
        raise typer.BadParameter(f"{flag} is no flag of --preset latency; expected {known}")
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise typer.BadParameter(f"{flag} {value}; --preset latency expects another kind of value") from None
