"""Models that ship inside the package, all trained by recipes of this project."""

from pathlib import Path

from mambavox.errors import ConfigError

RECOGNISER = "nano-mamba-ctc"
"""The causal English recogniser, which ``mambavox transcribe`` and ``serve`` take where no model is named."""

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Names of the embedded models."""
    return sorted(p.name for p in _FOLDER.iterdir() if (p / "config.json").is_file())


def path(name: str) -> str:
    """Folder of an embedded model, for ``from_pretrained``.

    Args:
        name: for example ``"nano-ast"``; ``names()`` lists them.

    Raises:
        ConfigError: no embedded model has that name.
    """
    if name not in names():
        raise ConfigError(f"no embedded model is called {name!r}; there are: {', '.join(names()) or 'none'}")
    return str(_FOLDER / name)


def locate(name: str) -> str:
    """Where transformers finds a model: an embedded one's folder, a folder, or the name on the Hub as it is.

    Args:
        name: of the model.

    Raises:
        ConfigError: the name can be that of a folder alone, and there is none.
    """
    if name in names():
        return path(name)
    folder = Path(name).expanduser()
    if not folder.is_dir() and (name[:1] in (".", "/", "~") or name.count("/") > 1):
        raise ConfigError(
            f"{name}: there is no such folder; expected a model's folder, its name on the Hugging Face Hub, or one of "
            f"the embedded models: {', '.join(names())}"
        )
    return str(folder) if name[:1] == "~" else name
