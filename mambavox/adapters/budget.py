"""How many parameters a method trains on a host, known without weights, and the size that meets a budget."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import AutoModelForAudioClassification, PretrainedConfig

from mambavox.adapters.hosts import HOSTS
from mambavox.adapters.methods import METHODS, ParameterCounts, apply_method, trainable_parameters
from mambavox.errors import ConfigError, HostError

SIZE_OPTIONS = ("bottleneck_dim", "r", "num_tokens")
"""What the methods call the option that sizes them."""

_ALPHA_OF_R = 2  # LoRA's default here: r=8, lora_alpha=16


def count_parameters(config: PretrainedConfig, method: str, options: Mapping[str, Any]) -> ParameterCounts:
    """What a method would train on a host of some configuration; no weight is made.

    Args:
        config: the host's.
        method: a key of ``METHODS``.
        options: of the method.

    Raises:
        ConfigError: an unknown method or option, or a value that does not fit.
        HostError: the configuration is no known host's.
    """
    with torch.device("meta"):
        try:
            model = AutoModelForAudioClassification.from_config(config)
        except ValueError as error:
            raise HostError(f"a {config.model_type} does not classify audio; expected one of {HOSTS}") from error
        return trainable_parameters(apply_method(model, method, options, check=False))


def size_option(method: str) -> str | None:
    """The option that sizes a method, such as ``bottleneck_dim``; ``None`` where it has none.

    Args:
        method: a key of ``METHODS``.
    """
    return next((name for name in SIZE_OPTIONS if name in METHODS[method].options()), None)


def fit_budget(config: PretrainedConfig, method: str, options: Mapping[str, Any], parameters: int) -> dict[str, Any]:
    """Size a method so that it trains as nearly as possible a number of parameters, the head not counted.

    Args:
        config: the host's configuration.
        method: a key of ``METHODS``.
        options: its other options.
        parameters: the budget.

    Returns:
        The options with the size; for LoRA ``lora_alpha`` is twice ``r`` unless it is given.

    Raises:
        ConfigError: the method has no size, or the options already say it.
        HostError: the configuration is no known host's.
    """
    name = size_option(method)
    if name is None:
        raise ConfigError(f"{method} has no size to fit to {parameters:,} parameters; leave it out of the budgets")
    if name in options:
        raise ConfigError(f"{method}: both {name}={options[name]} and a budget of {parameters:,}; choose one of them")

    def sized(size: int) -> dict[str, Any]:
        alpha = name == "r" and "lora_alpha" in METHODS[method].options() and "lora_alpha" not in options
        return {**options, name: size, **({"lora_alpha": _ALPHA_OF_R * size} if alpha else {})}

    def count(size: int) -> int:
        return count_parameters(config, method, sized(size))["adapter"]

    return sized(_nearest(count, parameters))


def _nearest(count: Callable[[int], int], wanted: int) -> int:
    """The size from 1 on whose count, which grows with the size, lies nearest to the wanted one."""
    high = 1
    while count(high) < wanted:
        high *= 2
    low = max(high // 2, 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < wanted else (low, middle)
    return min((low, high), key=lambda size: abs(count(size) - wanted))
