"""Prompt tuning: trainable tokens before the encoder's sequence."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast, get_args

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mambavox.adapters.hosts import Stack
from mambavox.adapters.layers import AdapterLayer
from mambavox.adapters.method_config import MethodConfig
from mambavox.adapters.virtual_tokens import (
    HideTokens,
    VirtualTokenModel,
    extend_mask,
    new_tokens,
    one_acting,
    prepend,
    recording_model,
    split_call,
)
from mambavox.errors import HostError

Depth = Literal["shallow", "deep"]


@dataclass
class PromptConfig(MethodConfig):
    """Prompt tuning: tokens before the encoder's sequence, behind its position embeddings, that every frame can see.

    They are taken away before the encoder puts out anything: hidden states, attention weights and heads have the
    length that they have without prompts. The papers' heads pool prompts and frames alike; theirs also take the place
    of AST's distillation token, which stays here.

    A new prompt changes what the host puts out. On a default AST 300 shallow or 25 deep tokens are 230,400
    parameters, the 230K of arXiv 2312.03694; the 0.27 M of the MambAdapter paper would be 29 deep ones (267,264).

    Other adapters can be attached to the same host before prompts, not after them.

    Attributes:
        depth: ``"shallow"``: the tokens enter the first layer and run through all; ``"deep"``: each layer has tokens of
            its own, which end with it.
        num_tokens: how many, in each layer that has its own.

    Raises:
        ConfigError: a value that is unknown or does not fit.

    Source:
        Jia et al. 2022, visual prompt tuning (arXiv 2203.12119), section 3.2; Cappellazzo et al. 2023 (arXiv
        2312.03694) on AST.
    """

    method: ClassVar[str] = "PROMPT"
    target_modules: ClassVar[None] = None

    depth: Depth = "deep"
    num_tokens: int = 25

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        self._check_choice("depth", get_args(Depth))
        self._check_sizes("num_tokens")


class Prompt(nn.Module):
    """One adapter's tokens, ``(number, width)``.

    Args:
        number: how many.
        width: size of the host's hidden states.
    """

    def __init__(self, number: int, width: int) -> None:
        super().__init__()
        self.tokens = new_tokens(number, width)


@dataclass(frozen=True)
class PromptRole:
    """What a layer does with one adapter's tokens.

    Attributes:
        number: how many pass through it.
        enters: it puts its own before its input.
        leaves: it takes them off its output.
    """

    number: int
    enters: bool
    leaves: bool


class PromptLayer(AdapterLayer):
    """A layer of the host's encoder through which prompts pass.

    Args:
        base_layer: the host's layer.
        prefix: the method's prefix.
        stack: the stack it belongs to.
        layer: its index.
        host: the model that the stack's names refer to.
    """

    other_param_names = ("roles",)

    def __init__(self, base_layer: nn.Module, prefix: str, stack: Stack, layer: int, host: nn.Module) -> None:
        super().__init__(base_layer, prefix, ("tokens",))
        self.width = stack.width
        self.first, self.last = layer == 0, layer == stack.num_layers - 1
        self.roles: dict[str, PromptRole] = {}
        self._hooks: list[RemovableHandle] = []
        if self.first:
            recorder = recording_model(host, stack)
            if recorder is not None:
                self._hooks.append(recorder.register_forward_hook(HideTokens(self, in_states=True)))
            holder = host.get_submodule(stack.holder)
            self._hooks.append(holder.register_forward_pre_hook(LayerDropGuard(self)))

    def add_adapter(self, adapter_name: str, config: PromptConfig) -> None:
        """Let an adapter's tokens pass, and give it tokens that enter here.

        Args:
            adapter_name: its name.
            config: its configuration.
        """
        deep = config.depth == "deep"
        role = PromptRole(config.num_tokens, enters=deep or self.first, leaves=deep or self.last)
        if role.enters:
            self._add("tokens", adapter_name, Prompt(config.num_tokens, self.width))
        self.roles[adapter_name] = role

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the host's layer gives with the prompts before its input; takes and returns what it does."""
        name = self._acting_prompt()
        if name is None:
            return self.base_layer(*args, **kwargs)
        role = self.roles[name]
        hidden_states, mask, rest = split_call(args, kwargs)
        if role.enters:
            hidden_states = prepend(cast(Prompt, self._part("tokens")[name]).tokens, hidden_states)
        output = self.base_layer(hidden_states, attention_mask=extend_mask(mask, role.number), **rest)
        if not role.leaves:
            return output
        if isinstance(output, Tensor):
            return output[:, role.number :]
        return output[0][:, role.number :], *output[1:]

    def added_tokens(self) -> int:
        """How many tokens pass through this layer now."""
        name = self._acting_prompt()
        return 0 if name is None else self.roles[name].number

    def drops_tokens(self) -> bool:
        """Whether tokens that pass through now would be lost if another layer were skipped."""
        name = self._acting_prompt()
        return name is not None and not (self.roles[name].enters and self.roles[name].leaves)

    def _acting_prompt(self) -> str | None:
        names = [] if self.disable_adapters else [name for name in self.active_adapters if name in self.roles]
        return one_acting(names)

    def detach_hooks(self) -> None:
        """Remove the hooks on the model and on the module that holds the layers."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


class LayerDropGuard:
    """Forward pre-hook on an encoder that refuses to skip layers while shallow prompts run through all of them.

    Args:
        layer: the first layer.
    """

    def __init__(self, layer: PromptLayer) -> None:
        self.layer = layer

    def __call__(self, holder: Any, args: Any) -> None:
        """Raise where layers may be skipped."""
        probability = getattr(holder, "layerdrop", getattr(holder.config, "layerdrop", 0.0))
        if holder.training and probability > 0 and self.layer.drops_tokens():
            raise HostError(
                f"the encoder is in training mode and skips each layer with probability {probability:g} (layerdrop), "
                "which would lose shallow prompts; expected config.layerdrop = 0 (Whisper: encoder.layerdrop = 0), an "
                "encoder in evaluation mode, or depth='deep'"
            )


class PromptModel(VirtualTokenModel):
    """Attaches prompts."""

    prefix = "prompt_"

    def _names(self, stack: Stack) -> list[str]:
        return [stack.layer(index) for index in range(stack.num_layers)]

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = target
        if not isinstance(layer, PromptLayer):
            layer = PromptLayer(target, self.prefix, *self._targets[current_key], self.model)
        layer.add_adapter(adapter_name, peft_config)
        setattr(parent, target_name, layer)
