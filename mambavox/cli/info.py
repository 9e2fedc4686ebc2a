"""``mambavox info``: what is installed and what can be used."""

import inspect
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer
from rich.table import Table

from mambavox.cli.console import OUT, print_json
from mambavox.runs.learning_rates import TASK_RATES, default_learning_rate

_METHODS = "methods, with the peak learning rate that each task takes where none is given"
_LIBRARIES = ("mambavox", "torch", "transformers", "peft", "accelerate", "datasets", "soundfile", "espeakng-loader")


def info_command(
    method: Annotated[str | None, typer.Option(help="List the options of this method instead.")] = None,
    models: Annotated[bool, typer.Option("--models", help="List the sizes and kinds of Mamba-HuBERT instead.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print versions, backbones, methods, embedded models, and the scan backends with the reason for the choice."""
    if method is not None:
        _print_options(method, as_json)
        return
    if models:
        _print_models(as_json)
        return
    facts = collect()
    if as_json:
        print_json(facts)
        return
    OUT.print("  ".join(f"{name} {number}" for name, number in facts["versions"].items()), markup=False)
    OUT.print(f"device: {facts['device']}", markup=False)
    OUT.print(f"backbones: {facts['backbones']}", markup=False)
    OUT.print(f"embedded models: {', '.join(facts['embedded_models']) or 'none'}", markup=False)
    methods = Table("method", *TASK_RATES, "what it trains", header_style="bold", title=_METHODS, title_justify="left")
    for name, row in facts["methods"].items():
        methods.add_row(name, *(f"{rate:g}" for rate in row["learning_rates"].values()), row["summary"])
    OUT.print(methods)
    backends = Table("scan backend", "available", "why", header_style="bold")
    for row in facts["backends"]:
        backends.add_row(row["name"], "yes" if row["available"] else "no", row["reason"])
    OUT.print(backends)
    OUT.print("options of a method: mambavox info --method NAME; sizes of Mamba-HuBERT: mambavox info --models")


def collect() -> dict[str, Any]:
    """What ``mambavox info`` says, for JSON."""
    import torch

    from mambavox import assets
    from mambavox.adapters import METHODS
    from mambavox.adapters.hosts import HOSTS
    from mambavox.ops.backends import backend_report, selected_backend

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _LIBRARIES}},
        "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "backbones": HOSTS,
        "embedded_models": assets.names(),
        "methods": {
            name: {
                "learning_rates": {task: default_learning_rate(task, name) for task in TASK_RATES},
                "summary": method.summary,
                "options": method.options(),
            }
            for name, method in METHODS.items()
        },
        "selected_backend": selected_backend(device),
        "backends": [status._asdict() for status in backend_report(device)],
    }


def collect_models() -> list[dict[str, Any]]:
    """The sizes and kinds of Mamba-HuBERT, with their numbers of parameters for pre-training (500 units)."""
    import torch

    from mambavox.hubert import ENCODER_KINDS, SIZES, MambaHubertConfig, MambaHubertForPreTraining

    rows = []
    for size in SIZES:
        for encoder in ENCODER_KINDS:
            config = getattr(MambaHubertConfig, size)(encoder=encoder)
            # Shapes without memory.
            with torch.device("meta"):
                model = MambaHubertForPreTraining(config)
            rows.append(
                {
                    "size": size,
                    "encoder": encoder,
                    "layers": config.num_hidden_layers,
                    "hidden_size": config.hidden_size,
                    "causal": config.causal,
                    "parameters": sum(parameter.numel() for parameter in model.parameters()),
                }
            )
    return rows


def _print_models(as_json: bool) -> None:
    rows = collect_models()
    if as_json:
        print_json(rows)
        return
    table = Table("size", "encoder", "layers", "hidden size", "causal", "parameters", header_style="bold")
    for row in rows:
        millions = f"{row['parameters'] / 1e6:.2f} M"
        causal = "yes" if row["causal"] else "no"
        table.add_row(row["size"], row["encoder"], str(row["layers"]), str(row["hidden_size"]), causal, millions)
    OUT.print(table)
    OUT.print("parameters with the pre-training head (500 units), as published counts have them")


def _print_options(method: str, as_json: bool) -> None:
    from dataclasses import MISSING, fields

    from mambavox.adapters import METHODS

    if method not in METHODS:
        raise typer.BadParameter(f"--method {method}; expected {', '.join(METHODS)}")
    chosen = METHODS[method]
    meanings = _attributes(chosen.config)
    rows = [
        {
            "option": spec.name,
            "default": None if spec.default is MISSING else spec.default,
            "meaning": spec.metadata.get("help") or meanings.get(spec.name, ""),
        }
        for spec in (fields(chosen.config) if chosen.config else ())
        if spec.name in chosen.options()
    ]
    if as_json:
        print_json(rows)
        return
    OUT.print(f"{method}: {chosen.summary}", markup=False)
    table = Table("option", "default", "meaning", header_style="bold")
    for row in rows:
        flag = "--" + str(row["option"]).replace("_", "-")
        table.add_row(flag, str(row["default"]).lower(), " ".join(str(row["meaning"]).split()))
    OUT.print(table if rows else "it takes no options")


def _attributes(kind: type | None) -> dict[str, str]:
    """Meanings of a class's attributes, from the docstrings of the class and its bases."""
    meanings: dict[str, str] = {}
    for base in reversed(inspect.getmro(kind) if kind else ()):
        section = re.search(r"^Attributes:\n((?: {4}.*\n|\n)+)", inspect.cleandoc(base.__doc__ or "") + "\n", re.M)
        if section:
            found = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", section[1], re.M)
            meanings.update({name: " ".join(text.replace("``", "").split()) for name, text in found})
    return meanings


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
