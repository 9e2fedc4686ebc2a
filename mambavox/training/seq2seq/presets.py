"""The MambAdapter paper's settings for Whisper-small in five languages, and a grid that is the same for all methods."""

from collections.abc import Callable
from typing import Any

from mambavox.errors import ConfigError
from mambavox.training.seq2seq.config import Seq2SeqConfig

LANGUAGES = ("ab", "ckb", "eo", "kab", "rw")
"""Abkhaz, Central Kurdish, Esperanto, Kabyle and Kinyarwanda: Whisper has a token for none of them."""
LEARNING_RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
"""Peak rates for every method alike, from those of a whole Whisper to those of a small adapter; the paper's differ from
method to method."""

_SHARED: dict[str, Any] = {
    "backbone": "openai/whisper-small",
    "epochs": 15,
    "batch_size": 6,
    "eval_batch_size": 16,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "max_seconds": 10.0,
    "train_seconds": 36_000.0,
    "max_new_tokens": 80,
}


def mambadapter(**changes: Any) -> Seq2SeqConfig:
    """MambAdapter of rank 104 beside the encoder's feed-forward sublayers: 1,121,588 parameters, norms not trained.

    The rank is printed; ``d_conv=8``, ``d_state=16`` and ``expand=2`` are the ones that give the printed 1.1 million
    and stand in the authors' file for the encoder.

    Args:
        changes: fields of the configuration, such as ``data``, ``language`` and ``seed``.
    """
    options = {"bottleneck_dim": 104, "d_state": 16, "d_conv": 8, "expand": 2, "train_norms": False}
    return _config("mambadapter", options, 1e-3, 2e-5, changes)


def bottleneck(**changes: Any) -> Seq2SeqConfig:
    """Bottleneck adapter of 64: 1,189,632 parameters. The authors' stands behind the sublayer, with a swish.

    Args:
        changes: as :func:`mambadapter`.
    """
    options = {"bottleneck_dim": 64, "insertion": "sequential", "train_norms": False}
    return _config("bottleneck", options, 1e-3, 5e-5, changes)


def conformer(**changes: Any) -> Seq2SeqConfig:
    """Conformer adapter of 48; the width of its convolution is not published, here 31. Its learning rate is a tenth.

    Args:
        changes: as :func:`mambadapter`.
    """
    return _config("conformer", {"bottleneck_dim": 48, "kernel_size": 31, "train_norms": False}, 1e-4, 3e-5, changes)


def lora(**changes: Any) -> Seq2SeqConfig:
    """LoRA of rank 32 on the queries and values of the encoder: 1,179,648 parameters, as printed.

    The authors' deleted file has rank 12, which would be 442,368; its alpha, 16, is kept.

    Args:
        changes: as :func:`mambadapter`.
    """
    return _config("lora", {"r": 32, "lora_alpha": 16}, 1e-3, 5e-5, changes)


def full(**changes: Any) -> Seq2SeqConfig:
    """Every tensor. The authors lower the rate when the valid loss stalls (NewBob); here it falls linearly to zero.

    Args:
        changes: as :func:`mambadapter`.
    """
    return _config("full", {}, 1e-4, 0.0, changes)


PRESETS: dict[str, Callable[..., Seq2SeqConfig]] = {
    function.__name__: function for function in (full, lora, bottleneck, conformer, mambadapter)
}
"""The rows of the paper's Table 2, by method."""


def same_grid(**changes: Any) -> list[Seq2SeqConfig]:
    """Every row of the table with every rate of ``LEARNING_RATES``, falling to a fiftieth: the same for all methods.

    Args:
        changes: as :func:`mambadapter`.
    """
    rates = [{"learning_rate": rate, "final_learning_rate": rate / 50} for rate in LEARNING_RATES]
    return [preset(**{**changes, **rate}) for preset in PRESETS.values() for rate in rates]


def _config(method: str, options: dict[str, Any], peak: float, final: float, changes: dict[str, Any]) -> Seq2SeqConfig:
    own = {"method": method, "method_options": options, "learning_rate": peak, "final_learning_rate": final}
    unknown = set(changes) - set(Seq2SeqConfig.__dataclass_fields__)
    if unknown:
        raise ConfigError(f"{', '.join(sorted(unknown))}: no field of Seq2SeqConfig; method_options holds a method's")
    return Seq2SeqConfig(**{**_SHARED, **own, **changes})
