"""PEFT tuners: they find the chosen sublayers of a host and attach the adapters."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, _ExcludedModule
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from torch import nn

from mambavox.adapters.config import AdapterConfig, SublayerConfig, TemporalAdapterConfig
from mambavox.adapters.hosts import (
    Stack,
    Sublayer,
    declare_missing_embeddings,
    describe_stacks,
    find_stacks,
    matches,
)
from mambavox.adapters.layers import CANNOT_MERGE, AdaptedNorm, AdapterLayer
from mambavox.adapters.rows import HeadOfEachRow, TokensOfEachRow
from mambavox.adapters.sharing import parse_sharing, sharing_groups
from mambavox.adapters.sublayer import SublayerAdapter
from mambavox.errors import ConfigError, HostError

BASE = "__base__"
"""PEFT's word for a row of the batch in which no adapter acts."""


def choose_sublayers(stacks: list[Stack], config: SublayerConfig) -> list[Sublayer]:
    """The sublayers of a host that a configuration asks to adapt.

    Args:
        stacks: what the host has.
        config: the adapter's configuration.

    Returns:
        At least one sublayer, in the order in which they run.

    Raises:
        HostError: there is none, and the message lists what the host has; or the host's tokens have no other order.
    """
    chosen = [
        sublayer
        for stack in stacks
        for sublayer in stack.sublayers()
        if config.where in (stack.kind, "both")
        and config.placement in (sublayer.role, "both")
        and config.layer_is_chosen(sublayer.layer)
        and (config.target_modules is None or matches(config.target_modules, sublayer.target))
        and not matches(config.exclude_modules, sublayer.target)
    ]
    if not chosen:
        asked = ", ".join(
            f"{name}={getattr(config, name)!r}"
            for name in ("where", "placement", "layers_to_transform", "target_modules", "exclude_modules")
            if getattr(config, name) is not None
        )
        roles = {sublayer.role for stack in stacks for sublayer in stack.sublayers()}
        hint = (
            ""
            if config.placement in (*roles, "both")
            else f". Put them at {' or '.join(sorted(roles))} instead, with placement"
        )
        raise HostError(f"no sublayer fits {asked}; the backbone has: {describe_stacks(stacks)}{hint}")
    if isinstance(config, TemporalAdapterConfig) and config.token_order != "frequency":
        for stack in {sublayer.stack for sublayer in chosen}:
            if stack.tokens.bands == 1:
                raise HostError(
                    f"token_order is {config.token_order!r}, and the tokens of {stack.kind} {stack.holder or 'model'!r}"
                    " are in time order already; expected the default, 'frequency', which keeps them so"
                )
    return chosen


class AdapterModel(BaseTuner):
    """Attaches the adapters of one method; registration makes a subclass with the method's prefix for each."""

    tuner_layer_cls = AdapterLayer
    layer_class: ClassVar[type[SublayerAdapter]] = SublayerAdapter
    """What stands in place of a sublayer."""
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _prepare_adapter_config(self, peft_config: SublayerConfig, model_config: dict[str, Any]) -> SublayerConfig:
        # Targets are found anew in every host, so that one adapter fits a base model and one with a head.
        return peft_config

    def _prepare_model(self, peft_config: SublayerConfig, model: nn.Module) -> None:
        declare_missing_embeddings(model)
        sublayers = choose_sublayers(find_stacks(model), peft_config)
        self._sublayers = {sublayer.target: sublayer for sublayer in sublayers}
        self._groups: Mapping[str, str] = {}
        if isinstance(peft_config, AdapterConfig):
            self._groups = sharing_groups(parse_sharing(peft_config.sharing), sublayers)
        self._norms: set[str] = set()
        if peft_config.train_norms:
            norms = {sublayer.norm for sublayer in sublayers} | {sublayer.stack.final_norm for sublayer in sublayers}
            self._norms = {norm for norm in norms if not matches(peft_config.exclude_modules, norm)}

    def _check_target_module_exists(self, peft_config: SublayerConfig, key: str) -> Any:
        if matches(peft_config.exclude_modules, key):
            return _ExcludedModule()
        return key in self._sublayers or key in self._norms

    def _create_and_replace(
        self,
        peft_config: SublayerConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if current_key in self._norms:
            norm = target
            if not (isinstance(norm, AdaptedNorm) and norm.prefix == self.prefix):
                norm = AdaptedNorm(target, self.prefix)
            norm.add_adapter(adapter_name)
            setattr(parent, target_name, norm)
            return
        layer = target
        if not (isinstance(layer, SublayerAdapter) and layer.prefix == self.prefix):
            layer = self.layer_class(target, self.prefix, self._sublayers[current_key], self.model)
        layer.add_adapter(adapter_name, peft_config, self._groups.get(current_key), self._adapted_sublayers())
        setattr(parent, target_name, layer)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Cast what PEFT has just attached: to float32, or to the host's precision where that is asked for."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if not autocast_adapter_dtype:
            for layer in self.model.modules():
                if isinstance(layer, AdapterLayer) and layer.prefix == self.prefix:
                    layer.take_host_dtype(adapter_name)

    def _adapted_sublayers(self) -> Iterator[SublayerAdapter]:
        for module in self.model.modules():
            if isinstance(module, SublayerAdapter) and module.prefix == self.prefix:
                yield module

    def combine_adapters(
        self,
        adapter_names: Sequence[str],
        weights: Sequence[float] | None = None,
        stack: bool = False,
        inference_mode: bool = False,
    ) -> None:
        """Activate several adapters together, until the next ``set_adapter``.

        Mixed, their outputs are added: ``F(x) + sum(weight * branch(x))``; ``set_adapter`` with a list of names does
        that with all weights 1. Stacked, each is given what those before it added on top of its own source, ``x`` or,
        with sequential insertion, ``F(x)``: ``b1 = weight1 * branch1(x)``, ``b2 = weight2 * branch2(x + b1)`` and
        ``F(x) + b1 + b2``.

        Args:
            adapter_names: their names, in the order in which they are stacked.
            weights: a factor for each; 1 where not given.
            stack: stacked in place of mixed.
            inference_mode: leave them frozen.

        Raises:
            ConfigError: an unknown name, a name twice, not one weight a name, or two adapters with ``modules_to_save``.
        """
        names = list(adapter_names)
        self._check_names(names)
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"adapter_names is {names}; expected at least one name, and each name once")
        with_heads = [name for name in names if self.peft_config[name].modules_to_save]
        if len(with_heads) > 1:
            raise ConfigError(
                f"adapters {', '.join(with_heads)} each bring modules_to_save of their own, such as a head, of which "
                "one can act; expected at most one of them"
            )
        if weights is not None and len(weights) != len(names):
            raise ConfigError(f"{len(weights)} weights are given for {len(names)} adapters; expected one for each")
        self.set_adapter(names, inference_mode=inference_mode)
        for layer in self._adapted_sublayers():
            layer.combine({} if weights is None else dict(zip(names, weights, strict=True)), stack)

    def _check_names(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.peft_config:
                raise ConfigError(f"there is no adapter {name!r}; expected {', '.join(self.peft_config)}")

    @contextmanager
    def _enable_peft_forward_hooks(
        self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any
    ) -> Iterator[None]:
        """What PEFT runs a forward pass in: an adapter for each row of the batch, ``model(..., adapter_names=[...])``.

        Raises:
            ConfigError: an unknown name, or the model is in training mode.
        """
        if adapter_names is None:
            yield
            return
        if self.training:
            raise ConfigError(
                "adapter_names is given in training mode; expected a model in evaluation mode, model.eval()"
            )
        self._check_names([name for name in adapter_names if name != BASE])
        layers = [module for module in self.model.modules() if isinstance(module, AdapterLayer)]
        hooks = []
        for module in self.model.modules():
            if isinstance(module, ModulesToSaveWrapper):
                hooks.append(module.register_forward_hook(HeadOfEachRow(adapter_names)))
            elif isinstance(module, TrainableTokensWrapper):
                hooks.append(module.register_forward_hook(TokensOfEachRow(adapter_names)))
        for layer in layers:
            layer.row_adapters = tuple(adapter_names)
        try:
            yield
        finally:
            for layer in layers:
                layer.row_adapters = None
            for hook in hooks:
                hook.remove()

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's own copies weight and bias to what comes in, which a whole sublayer does not have.
        setattr(parent, child_name, new_module)

    def _check_merge_allowed(self) -> None:
        raise HostError(CANNOT_MERGE)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # PEFT strips the name only at the very end of a key, but parts of an adapter are modules with modules inside.
        own, found = re.subn(rf"(\.{cls.prefix}[^.]+)\.{re.escape(adapter_name)}(?=\.|$)", r"\1", key, count=1)
        return own if found else super()._remove_adapter_name_from_key(key, adapter_name)

    def __reduce__(self) -> tuple[Any, ...]:
        # A class made at registration has no name in a module by which pickle and deepcopy could find it.
        return _blank_model, (self.prefix,), self.__dict__


def _blank_model(prefix: str) -> AdapterModel:
    model_class = PEFT_TYPE_TO_TUNER_MAPPING[PeftType(prefix.removesuffix("_").upper())]
    model: AdapterModel = model_class.__new__(model_class)
    return model
