"""BitFit: train the biases that the host already has, and nothing else."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, cast, get_args

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from mambavox.adapters.config import Where
from mambavox.adapters.hosts import Stack, declare_missing_embeddings, describe_stacks, find_stacks, matches
from mambavox.adapters.layers import AdapterLayer
from mambavox.adapters.method_config import MethodConfig
from mambavox.adapters.rows import rows_by_adapter
from mambavox.adapters.tuner import AdapterModel
from mambavox.errors import HostError


@dataclass
class BitFitConfig(MethodConfig):
    """BitFit: each adapter has its own copy of the biases in the host's transformer layers and trains it.

    Those are the biases of all linear layers and norms in the chosen stacks, and of the norm beside the stack; not
    those of the convolutions and embeddings before it. On a default AST they number 102,144, the 102K of arXiv
    2312.03694 (the MambAdapter paper, which copies the row, prints 0.12 M). The biases of the key projections are
    among them, although what all keys have in common cancels in the softmax.

    Attributes:
        where: which stacks of layers of the host.
        target_modules: only the biases of the modules whose name matches (a regular expression for the whole name,
            or a list of names or endings).
        exclude_modules: leave the biases of those modules alone.
        layers_to_transform: indices of the layers whose biases are trained; all without it.

    Raises:
        ConfigError: a value that is unknown or does not fit.

    Source:
        Ben Zaken et al. 2022 (arXiv 2106.10199); Cappellazzo et al. 2023 (arXiv 2312.03694) on AST.
    """

    method: ClassVar[str] = "BITFIT"

    where: Where = "encoder"
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        self._check_choice("where", get_args(Where))


class Bias(nn.Module):
    """One adapter's bias of one module.

    Args:
        host_bias: the host's bias, ``(channels,)``, which is copied.
    """

    def __init__(self, host_bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(host_bias.detach().clone())


class BiasLayer(AdapterLayer):
    """One of the host's modules with a trainable copy of its bias for each adapter.

    Code that reads ``bias`` from the module instead of calling it, as WavLM's attention does, gets the active
    adapter's.

    Args:
        base_layer: the host's module.
        prefix: the method's prefix.
    """

    def __init__(self, base_layer: nn.Module, prefix: str) -> None:
        super().__init__(base_layer, prefix, ("bias",))
        self.merged_adapters: list[str] = []
        self._host_bias: Tensor | None = None

    def add_adapter(self, adapter_name: str) -> None:
        """Give an adapter its own copy of the bias.

        Args:
            adapter_name: its name.
        """
        self._add("bias", adapter_name, Bias(self._host_module().bias))

    @property
    def bias(self) -> Tensor:
        """The bias that acts now, ``(channels,)``, in the host's dtype."""
        if self.row_adapters is not None:
            raise HostError(
                "the backbone reads this module's bias without calling it, so that the rows of a batch cannot have one "
                "each; expected adapter_names to be left out, and set_adapter(name)"
            )
        acting = self._acting_bias()
        return cast(Tensor, self._host_module().bias) if acting is None else self._bias_of(acting)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the host's module gives with the acting adapter's bias in place of its own."""
        if self.row_adapters is not None:
            result, rows_of = self.base_layer(*args, **kwargs), rows_by_adapter(self.row_adapters, args[0])
            for name in self.acting("bias"):
                rows = rows_of[name]
                result = result.index_copy(0, rows, self._with_bias(name, args[0][rows]))
            return result
        acting = self._acting_bias()
        return self.base_layer(*args, **kwargs) if acting is None else self._with_bias(acting, *args, **kwargs)

    def _with_bias(self, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        name, layer = "bias", self.base_layer
        while isinstance(layer, BaseTunerLayer):
            name, layer = f"base_layer.{name}", layer.base_layer
        return torch.func.functional_call(self.base_layer, {name: self._bias_of(adapter_name)}, args, kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put an adapter's bias in the host's place.

        Args:
            safe_merge: refuse a bias that is not finite.
            adapter_names: the adapter; the active one where not given.

        Raises:
            HostError: more than one adapter would be merged.
            ValueError: a bias is not finite and ``safe_merge`` is set, as peft's own methods raise it.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self._part("bias")]
        if not names:
            return
        self._check_only([*self.merged_adapters, *names])
        own = cast(Bias, self._part("bias")[names[0]]).bias.data
        if safe_merge and not own.isfinite().all():
            raise ValueError(f"the bias of adapter {names[0]} holds NaN or infinity; the adapter seems to be broken")
        host_bias = cast(nn.Parameter, self._host_module().bias)
        self._host_bias = host_bias.detach().clone()
        host_bias.data.copy_(own)
        self.merged_adapters.append(names[0])

    def unmerge(self) -> None:
        """Give the host its own bias back."""
        if self._host_bias is not None:
            self._host_module().bias.data.copy_(self._host_bias)
        self._host_bias = None
        self.merged_adapters.clear()

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The host's module, with its own bias or an adapter's."""
        if merge:
            self.merge(safe_merge, adapter_names)
        else:
            self.unmerge()
        return super().unload_and_optionally_merge_module(False, safe_merge, adapter_names)

    def _host_module(self) -> Any:
        return self.get_base_layer()

    def _bias_of(self, adapter_name: str) -> Tensor:
        return cast(Bias, self._part("bias")[adapter_name]).bias.to(self._host_module().bias.dtype)

    def _acting_bias(self) -> str | None:
        if self.disable_adapters:
            # PEFT's own layers do so too: what is switched off must not act.
            self.unmerge()
        acting = [] if self.merged else self.acting("bias")
        self._check_only(acting)
        return acting[0] if acting else None

    @staticmethod
    def _check_only(names: list[str]) -> None:
        if len(names) > 1:
            raise HostError(
                f"adapters {', '.join(names)} are active together and each replaces the same bias; expected one: "
                "set_adapter(name)"
            )


class BitFitModel(AdapterModel):
    """Gives the host's modules biases that can be trained and switched."""

    prefix = "bitfit_"

    def _prepare_model(self, peft_config: BitFitConfig, model: nn.Module) -> None:
        declare_missing_embeddings(model)
        stacks = find_stacks(model)
        self._targets = {
            name
            for stack in stacks
            if peft_config.where in (stack.kind, "both")
            for name in biased_modules(model, stack, peft_config)
        }
        if not self._targets:
            asked = ", ".join(
                f"{name}={getattr(peft_config, name)!r}"
                for name in ("where", "layers_to_transform", "target_modules", "exclude_modules")
                if getattr(peft_config, name) is not None
            )
            raise HostError(f"no module with a bias fits {asked}; the backbone has: {describe_stacks(stacks)}")

    def _check_target_module_exists(self, peft_config: BitFitConfig, key: str) -> bool:
        return key in self._targets

    def _create_and_replace(
        self,
        peft_config: BitFitConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = target if isinstance(target, BiasLayer) else BiasLayer(target, self.prefix)
        layer.add_adapter(adapter_name)
        setattr(parent, target_name, layer)

    def _check_merge_allowed(self) -> None:
        BaseTuner._check_merge_allowed(self)


def biased_modules(model: nn.Module, stack: Stack, config: BitFitConfig) -> Iterator[str]:
    """Names of the modules of a stack, the norm beside its layers included, whose bias a configuration chooses.

    Args:
        model: the model that the stack's names refer to.
        stack: the stack.
        config: what to choose.
    """
    holder = f"{stack.holder}." if stack.holder else ""
    inside = re.compile(rf"{re.escape(holder)}layers\.(\d+)\..+")
    wrapped: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(wrapped) if wrapped else False:
            continue
        if isinstance(module, BaseTunerLayer):
            wrapped += (f"{name}.",)
        host_module = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if not isinstance(host_module._parameters.get("bias"), nn.Parameter):
            continue
        found = inside.fullmatch(name)
        if found is None and name != stack.stack_norm:
            continue
        if found is not None and not config.layer_is_chosen(int(found[1])):
            continue
        if config.target_modules is not None and not matches(config.target_modules, name):
            continue
        if not matches(config.exclude_modules, name):
            yield name
