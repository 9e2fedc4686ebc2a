"""Modules that stand in a host where adapters are attached: their base, and the norms that are trained."""

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from mambavox.adapters.branch import CANNOT_STREAM
from mambavox.adapters.rows import rows_by_adapter
from mambavox.errors import ConfigError, HostError
from mambavox.nn.streaming import StreamStep

CANNOT_MERGE = (
    "these adapters cannot be merged into the backbone: what they add is not linear in their input. "
    "Keep them attached, or take them off with unload()"
)


class AdapterLayer(nn.Module, BaseTunerLayer):
    """Takes the place of one of the host's modules, keeps it as ``base_layer`` and passes its attributes on.

    Parameters live in module dictionaries keyed by the adapter's name, ``<prefix><part>``. Where ``row_adapters`` is
    set, an adapter for each row of the batch, that one acts there, whichever adapters are active.

    Args:
        base_layer: the host's module.
        prefix: the method's prefix, as registered with PEFT.
        parts: names of the module dictionaries.
    """

    def __init__(self, base_layer: nn.Module, prefix: str, parts: tuple[str, ...]) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.prefix = prefix
        self.row_adapters: Sequence[str] | None = None
        self.adapter_layer_names = tuple(prefix + part for part in parts)
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ModuleDict())

    def __getattr__(self, name: str) -> Any:
        """Attributes of the host's module, but for private ones, which belong to the frameworks that set them."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer" or name.startswith("_"):
                raise
            return getattr(self.base_layer, name)

    def acting(self, part: str) -> list[str]:
        """Names of the adapters whose part acts in this layer now."""
        if self.disable_adapters:
            return []
        names = self.active_adapters if self.row_adapters is None else dict.fromkeys(self.row_adapters)
        return [name for name in names if name in self._part(part)]

    def _part(self, part: str) -> nn.ModuleDict:
        return cast(nn.ModuleDict, self._modules[self.prefix + part])

    def _add(self, part: str, adapter_name: str, module: nn.Module) -> None:
        taken = {step for name, _ in module.named_parameters() for step in name.split(".")}
        if adapter_name in taken:
            raise ConfigError(
                f"adapter name {adapter_name!r} is also the name of a part inside the adapter, so that its saved "
                f"tensors could not be told apart; expected a name other than {', '.join(sorted(taken))}"
            )
        parameter = next(self.base_layer.parameters(), None)
        if parameter is not None and not any(p.is_meta for p in module.parameters()):
            module.to(parameter.device)
        self._part(part)[adapter_name] = module

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move one adapter and cast nothing: in the host's half precision ``A_log`` would be rounded."""
        parameter = next(self.base_layer.parameters(), None)
        target = device if device is not None or parameter is None else parameter.device
        for name in self.adapter_layer_names:
            modules = cast(nn.ModuleDict, getattr(self, name))
            if adapter_name in modules and not any(p.is_meta for p in modules[adapter_name].parameters()):
                modules[adapter_name].to(target)

    def take_host_dtype(self, adapter_name: str) -> None:
        """Cast one adapter to the precision of the host's module, as ``autocast_adapter_dtype=False`` asks.

        Args:
            adapter_name: its name.
        """
        parameter = next((p for p in self.base_layer.parameters() if p.is_floating_point()), None)
        for name in self.adapter_layer_names if parameter is not None else ():
            modules = cast(nn.ModuleDict, getattr(self, name))
            if adapter_name in modules:
                modules[adapter_name].to(cast(Tensor, parameter).dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse: the adapters are not linear."""
        raise HostError(CANNOT_MERGE)

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The host's module, freed of the adapters; PEFT calls this for ``unload()`` and ``merge_and_unload()``."""
        if merge:
            raise HostError(CANNOT_MERGE)
        layer: Any = self
        while isinstance(layer, BaseTunerLayer):
            if isinstance(layer, AdapterLayer):
                layer.detach_hooks()
            layer = layer.base_layer
        return cast(nn.Module, layer)

    def detach_hooks(self) -> None:
        """Remove whatever this layer has attached to other modules of the host."""

    def init_state(self, batch_size: int) -> Any:
        """Refuse to be streamed, unless a subclass can; the host's own state would pass the adapter by.

        Args:
            batch_size: number of streams.

        Raises:
            HostError: always.
        """
        raise HostError(CANNOT_STREAM.format(type(self).__name__))

    def stream(self, hidden_states: Tensor, state: Any, step: StreamStep) -> tuple[Tensor, Any]:
        """Refuse to be streamed; see :meth:`init_state`."""
        raise HostError(CANNOT_STREAM.format(type(self).__name__))


class AdaptedNorm(AdapterLayer):
    """One of the host's norms with a trainable copy for each adapter.

    Args:
        base_layer: the host's norm.
        prefix: the method's prefix.
    """

    def __init__(self, base_layer: nn.Module, prefix: str) -> None:
        super().__init__(base_layer, prefix, ("norm",))

    def add_adapter(self, adapter_name: str) -> None:
        """Give an adapter its own copy of the norm.

        Args:
            adapter_name: its name.
        """
        self._add("norm", adapter_name, copy.deepcopy(self.get_base_layer()))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise with the acting adapter's copy, or the host's own norm.

        Args:
            hidden_states: ``(..., width)``.

        Raises:
            HostError: two active adapters both bring a copy.
        """
        acting = self.acting("norm")
        if self.row_adapters is not None:
            result, rows_of = self.base_layer(hidden_states), rows_by_adapter(self.row_adapters, hidden_states)
            for name in acting:
                rows = rows_of[name]
                result = result.index_copy(0, rows, self._normalise(name, hidden_states[rows]))
            return result
        if not acting:
            return cast(Tensor, self.base_layer(hidden_states))
        if len(acting) > 1:
            raise HostError(
                f"adapters {', '.join(acting)} are active together and each replaces the same norm; expected one. "
                "Activate one of them, or train the others with train_norms=False"
            )
        return self._normalise(acting[0], hidden_states)

    def _normalise(self, name: str, hidden_states: Tensor) -> Tensor:
        norm = self._part("norm")[name]
        dtype = cast(nn.LayerNorm, norm).weight.dtype
        if hidden_states.dtype == dtype or torch.is_autocast_enabled(hidden_states.device.type):
            return cast(Tensor, norm(hidden_states))
        return cast(Tensor, norm(hidden_states.to(dtype)).to(hidden_states.dtype))
