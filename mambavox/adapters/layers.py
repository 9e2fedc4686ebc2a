"""The modules that stand in a host where adapters are attached."""

import copy
from collections.abc import Iterable
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mambavox.adapters.config import AdapterConfig
from mambavox.adapters.hosts import Sublayer
from mambavox.errors import ConfigError, HostError

CANNOT_MERGE = (
    "these adapters cannot be merged into the host: what they add is not linear in their input. "
    "Keep them attached, or take them off with unload()"
)


class AdapterLayer(nn.Module, BaseTunerLayer):
    """Takes the place of one of the host's modules, keeps it as ``base_layer`` and passes its attributes on.

    Parameters live in module dictionaries keyed by the adapter's name, ``<prefix><part>``.

    Args:
        base_layer: the host's module.
        prefix: the method's prefix, as registered with PEFT.
        parts: names of the module dictionaries.
    """

    def __init__(self, base_layer: nn.Module, prefix: str, parts: tuple[str, ...]) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.prefix = prefix
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
        """Move one adapter, and never cast it: rounding ``A_log`` to the host's half precision would change it."""
        parameter = next(self.base_layer.parameters(), None)
        target = device if device is not None or parameter is None else parameter.device
        for name in self.adapter_layer_names:
            modules = cast(nn.ModuleDict, getattr(self, name))
            if adapter_name in modules and not any(p.is_meta for p in modules[adapter_name].parameters()):
                modules[adapter_name].to(target)

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


class Projections(nn.Module):
    """Down and up projection.

    The down projection starts at ``N(0, 0.01)`` with its bias, the up projection at zero: a new adapter adds
    exactly nothing, and its first gradient reaches the up projection.

    Args:
        width: size of the host's hidden states.
        bottleneck_dim: size between the two.

    Source:
        MambAdapter (arXiv 2606.15638), the authors' code.
    """

    def __init__(self, width: int, bottleneck_dim: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck_dim)
        self.up = nn.Linear(bottleneck_dim, width)
        for parameter in self.down.parameters():
            nn.init.normal_(parameter, std=0.01)
        for parameter in self.up.parameters():
            nn.init.zeros_(parameter)


class Branch(nn.Module):
    """One adapter's own part in one sublayer: mixer, dropout, scale, and its projections unless they are shared.

    Args:
        config: the adapter's configuration.
        width: size of the host's hidden states.
    """

    def __init__(self, config: AdapterConfig, width: int) -> None:
        super().__init__()
        self.sequential = config.insertion == "sequential"
        self.temporal = config.temporal
        self.projections = Projections(width, config.bottleneck_dim) if config.sharing == "none" else None
        self.mixer = config.make_mixer()
        self.dropout = nn.Dropout(config.dropout)
        # One element, not a scalar: sharded training refuses scalars.
        self.scale = nn.Parameter(torch.full((1,), config.scale_init)) if config.learn_scale else None

    def forward(self, hidden_states: Tensor, projections: Projections) -> Tensor:
        """What the adapter adds.

        Args:
            hidden_states: ``(batch, time, width)``.
            projections: its own or the shared ones.

        Returns:
            ``(batch, time, width)``.
        """
        output = projections.up(self.dropout(self.mixer(projections.down(hidden_states))))
        return output if self.scale is None else self.scale * output


class SublayerAdapter(AdapterLayer):
    """A sublayer ``F`` of the host with its adapters: ``F(x) + branch(x)`` or ``F(x) + branch(F(x))``.

    Shared projections are owned by the first sublayer that an adapter reaches; the others hold a plain reference
    to that *layer* (not to the projections: casting and moving re-create parameters), so that they are saved,
    counted and trained once.

    Args:
        base_layer: the module whose output is the sublayer's output.
        prefix: the method's prefix.
        sublayer: where it stands.
        host: the model that ``sublayer``'s names refer to.

    Source:
        MambAdapter (arXiv 2606.15638), equation 3.
    """

    other_param_names = ("owners",)

    def __init__(self, base_layer: nn.Module, prefix: str, sublayer: Sublayer, host: nn.Module) -> None:
        super().__init__(base_layer, prefix, ("branch", "shared"))
        self.width = sublayer.width
        self.owners: dict[str, SublayerAdapter] = {}
        self.tapped: Tensor | None = None
        self.taps_input = sublayer.input_of != sublayer.target
        self._hooks: list[RemovableHandle] = []
        if self.taps_input:
            self._hooks.append(host.get_submodule(sublayer.input_of).register_forward_pre_hook(InputTap(self)))
        if sublayer.stack.kind == "decoder":
            decoder = host.get_submodule(sublayer.stack.holder)
            self._hooks.append(decoder.register_forward_pre_hook(CachedStepGuard(self), with_kwargs=True))

    def add_adapter(self, adapter_name: str, config: AdapterConfig, layers: Iterable["SublayerAdapter"]) -> None:
        """Add an adapter to this sublayer.

        Args:
            adapter_name: its name.
            config: its configuration.
            layers: the host's adapted sublayers so far, among which an owner of the projections may be.

        Raises:
            ConfigError: a name that cannot be used.
        """
        self._add("branch", adapter_name, Branch(config, self.width))
        if config.sharing == "all":
            owner = next((layer for layer in layers if layer.owns(adapter_name, self.width)), None)
            if owner is None:
                owner = self
                self._add("shared", adapter_name, Projections(self.width, config.bottleneck_dim))
            self.owners[adapter_name] = owner

    def owns(self, adapter_name: str, width: int) -> bool:
        """Whether this layer owns an adapter's shared projections for a width."""
        return self.width == width and adapter_name in self._part("shared")

    def active_branches(self) -> list[str]:
        """Names of the adapters that act in this sublayer now."""
        if self.disable_adapters:
            return []
        return [name for name in self.active_adapters if name in self._part("branch")]

    def is_temporal(self) -> bool:
        """Whether an active adapter lets frames see one another."""
        return any(cast(Branch, self._part("branch")[name]).temporal for name in self.active_branches())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The sublayer's output with what the active adapters add; takes and returns what the sublayer does."""
        active = self.active_branches()
        if not active:
            return self.base_layer(*args, **kwargs)
        inputs = self._sublayer_input(args, kwargs)
        output = self.base_layer(*args, **kwargs)
        hidden_states = output[0] if isinstance(output, tuple) else output
        result = hidden_states
        for name in active:
            branch = cast(Branch, self._part("branch")[name])
            projections = branch.projections
            if projections is None:
                projections = cast(Projections, self.owners[name]._part("shared")[name])
            source = hidden_states if branch.sequential else inputs
            # An adapter keeps float32 on a half-precision host, so it is cast to and from at this border.
            added = branch(self._cast_input_dtype(source, projections.down.weight.dtype), projections)
            result = result + added.to(result.dtype)
        return (result, *output[1:]) if isinstance(output, tuple) else result

    def _sublayer_input(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        if not self.taps_input:
            return cast(Tensor, args[0] if args else kwargs["hidden_states"])
        # Not kept: an activation left on a module would stay in memory and could not be copied or pickled.
        inputs, self.tapped = self.tapped, None
        if inputs is None:
            raise HostError("the feed-forward sublayer's output was asked for without its input; call the whole layer")
        return inputs

    def detach_hooks(self) -> None:
        """Remove the hooks on the module that sees the sublayer's input and on the decoder."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


class InputTap:
    """Forward pre-hook that hands a module's input to a sublayer's adapter.

    Args:
        layer: the adapter.
    """

    def __init__(self, layer: SublayerAdapter) -> None:
        self.layer = layer

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Keep the input where an active adapter will read it."""
        if self.layer.active_branches():
            self.layer.tapped = args[0]


class CachedStepGuard:
    """Forward pre-hook on a decoder that refuses a step which continues from cached keys and values.

    The cache holds no state of the mixer, so such a step would silently decode something else.

    Args:
        layer: an adapter in the decoder.
    """

    def __init__(self, layer: SublayerAdapter) -> None:
        self.layer = layer

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise where the step is cached and the adapter temporal."""
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0 and self.layer.is_temporal():
            raise HostError(
                "a decoder with a temporal adapter was asked to continue from cached keys and values, which do not "
                "hold the adapter's state; expected the whole sequence. Call generate(use_cache=False), or adapt "
                "the encoder only (where='encoder')"
            )


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
        """Normalise with the active adapter's copy, or the host's own norm.

        Args:
            hidden_states: ``(..., width)``.

        Raises:
            HostError: two active adapters both bring a copy.
        """
        active = [] if self.disable_adapters else [n for n in self.active_adapters if n in self._part("norm")]
        if not active:
            return cast(Tensor, self.base_layer(hidden_states))
        if len(active) > 1:
            raise HostError(
                f"adapters {', '.join(active)} are active together and each replaces the same norm; expected one. "
                "Activate one of them, or train the others with train_norms=False"
            )
        norm = self._part("norm")[active[0]]
        dtype = cast(nn.LayerNorm, norm).weight.dtype
        if hidden_states.dtype == dtype or torch.is_autocast_enabled(hidden_states.device.type):
            return cast(Tensor, norm(hidden_states))
        return cast(Tensor, norm(hidden_states.to(dtype)).to(hidden_states.dtype))
