"""The MambAdapter paper's settings for Whisper-small in five languages, and a grid that is the same for all methods."""

from collections.abc import Callable
from typing import Any

from mambavox.errors import ConfigError
from mambavox.runs.learning_rates import WHISPER_GRID
from mambavox.training.whisper.config import WhisperConfig

LANGUAGES = ("ab", "ckb", "eo", "kab", "rw")
"""Abkhaz, Central Kurdish, Esperanto, Kabyle and Kinyarwanda: Whisper has a token for none of them."""
_SHARED: dict[str, Any] = {
    "backbone": "openai/whisper-small",
    "epochs": 15,
    "batch_size": 6,
    "eval_batch_size": 16,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "drop_longer_than": 10.0,
    "drop_eval_longer_than": 10.0,
    "train_seconds": 36_000.0,
    "max_new_tokens": 80,
}


def mambadapter(**changes: Any) -> WhisperConfig:
    """MambAdapter of rank 104 beside the encoder's feed-forward sublayers: 1,121,588 parameters, norms not trained.

    The rank is printed; ``d_conv=8``, ``d_state=16`` and ``expand=2`` are the ones that give the printed 1.1 million
    and stand in the authors' file for the encoder.

    Args:
        changes: fields of the configuration, such as ``data``, ``language`` and ``seed``.
    """
    options = {"bottleneck_dim": 104, "d_state": 16, "d_conv": 8, "expand": 2, "train_norms": False}
    return _config("mambadapter", options, 1e-3, 2e-5, changes)


def bottleneck(**changes: Any) -> WhisperConfig:
    """Bottleneck adapter of 64: 1,189,632 parameters. The authors' stands behind the sublayer, with a swish.

    Args:
        changes: as :func:`mambadapter`.
    """
    options = {"bottleneck_dim": 64, "insertion": "sequential", "train_norms": False}
    return _config("bottleneck", options, 1e-3, 5e-5, changes)


def conformer(**changes: Any) -> WhisperConfig:
    """Conformer adapter of 48; the width of its convolution is not published, here 31. Its learning rate is a tenth.

    Args:
        changes: as :func:`mambadapter`.
    """
    return _config("conformer", {"bottleneck_dim": 48, "kernel_size": 31, "train_norms": False}, 1e-4, 3e-5, changes)


def lora(**changes: Any) -> WhisperConfig:
    """LoRA of rank 32 on the queries and values of the encoder: 1,179,648 parameters, as printed.

    The authors' deleted file has rank 12, which would be 442,368; its alpha, 16, is kept.

    Args:
        changes: as :func:`mambadapter`.
    """
    return _config("lora", {"r": 32, "lora_alpha": 16}, 1e-3, 5e-5, changes)


def full(**changes: Any) -> WhisperConfig:
    """Every tensor. The authors lower the rate when the valid loss stalls (NewBob); here it falls linearly to zero.

    Args:
        changes: as :func:`mambadapter`.
    """
    return _config("full", {}, 1e-4, 0.0, changes)


PRESETS: dict[str, Callable[..., WhisperConfig]] = {
    function.__name__: function for function in (full, lora, bottleneck, conformer, mambadapter)
}
"""The rows of the paper's Table 2, by method."""


def same_grid(**changes: Any) -> list[WhisperConfig]:
    """Every row of the table with every rate of ``WHISPER_GRID``, falling to a fiftieth: the same for all methods.

    Args:
        changes: as :func:`mambadapter`.
    """
    rates = [{"learning_rate": rate, "final_learning_rate": rate / 50} for rate in WHISPER_GRID]
    return [preset(**{**changes, **rate}) for preset in PRESETS.values() for rate in rates]


def _config(method: str, options: dict[str, Any], peak: float, final: float, changes: dict[str, Any]) -> WhisperConfig:
    own = {"method": method, "method_options": options, "learning_rate": peak, "final_learning_rate": final}
    unknown = set(changes) - set(WhisperConfig.__dataclass_fields__)
    if unknown:
        raise ConfigError(f"{', '.join(sorted(unknown))}: no field of WhisperConfig; method_options holds a method's")
    return WhisperConfig(**{**_SHARED, **own, **changes})
