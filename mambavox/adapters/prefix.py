"""Prefix tuning: trainable keys and values in every self-attention of the encoder."""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mambavox.adapters.hosts import Stack, reads_raw_weights
from mambavox.adapters.layers import AdapterLayer
from mambavox.adapters.method_config import MethodConfig
from mambavox.adapters.virtual_tokens import (
    HideTokens,
    VirtualTokenModel,
    extend_mask,
    new_tokens,
    one_acting,
    recording_model,
    split_call,
)
from mambavox.errors import HostError


@dataclass
class PrefixConfig(MethodConfig):
    """Prefix tuning: each self-attention of the encoder has keys and values of its own beside those of the frames.

    They are trained as they are, as in the papers on AST, not through a network. A new prefix changes what the host
    puts out. On a default AST 12 tokens, 12 keys and 12 values in each layer, are 221,184 parameters: the 221K of
    arXiv 2312.03694, which counts them as 24 tokens; the 0.26 M of the MambAdapter paper would be 14 (258,048).

    Not for WavLM, whose attention never calls its key and value projections. Other methods can be attached to the
    projections of the same attention before prefixes, not after them.

    Attributes:
        num_tokens: how many keys, and how many values, in each layer.

    Raises:
        ConfigError: a value that does not fit.

    Source:
        Li and Liang 2021 (arXiv 2101.00190); Cappellazzo et al. 2023 (arXiv 2312.03694) on AST.
    """

    method: ClassVar[str] = "PREFIX"
    target_modules: ClassVar[None] = None

    num_tokens: int = 12

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        self._check_sizes("num_tokens")


class Prefix(nn.Module):
    """One adapter's keys and values in one layer, ``(number, width)`` each.

    Args:
        number: how many.
        width: size of the host's hidden states.
    """

    def __init__(self, number: int, width: int) -> None:
        super().__init__()
        self.key = new_tokens(number, width)
        self.value = new_tokens(number, width)


class PrefixAttention(AdapterLayer):
    """A self-attention of the host with prefixes.

    The host's attention is run on a sequence with room for the prefix, empty hidden states before the first frame;
    hooks on its key and value projections fill the room. So it keeps its own way of computing attention, whichever
    that is. What the empty hidden states put out as queries is dropped.

    Args:
        base_layer: the host's attention.
        prefix: the method's prefix.
        stack: the stack it belongs to.
        layer: index of its layer.
        host: the model that the stack's names refer to.
    """

    def __init__(self, base_layer: nn.Module, prefix: str, stack: Stack, layer: int, host: nn.Module) -> None:
        super().__init__(base_layer, prefix, ("tokens",))
        self.width = stack.width
        attention = self.get_base_layer()
        self._hooks: list[RemovableHandle] = [
            cast(nn.Module, getattr(attention, projection)).register_forward_hook(PutPrefix(self, part))
            for projection, part in (("k_proj", "key"), ("v_proj", "value"))
        ]
        recorder = recording_model(host, stack)
        if layer == 0 and recorder is not None:
            self._hooks.append(recorder.register_forward_hook(HideTokens(self, in_states=False)))

    def add_adapter(self, adapter_name: str, config: PrefixConfig) -> None:
        """Give an adapter keys and values.

        Args:
            adapter_name: its name.
            config: its configuration.
        """
        self._add("tokens", adapter_name, Prefix(config.num_tokens, self.width))

    def acting_prefix(self) -> Prefix | None:
        """The keys and values that act now.

        Raises:
            HostError: two active adapters both bring them.
        """
        name = one_acting(self.acting("tokens"))
        return None if name is None else cast(Prefix, self._part("tokens")[name])

    def added_tokens(self) -> int:
        """How many there are."""
        prefix = self.acting_prefix()
        return 0 if prefix is None else len(prefix.key)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the host's attention gives with the prefix; takes and returns what it does."""
        number = self.added_tokens()
        if not number:
            return self.base_layer(*args, **kwargs)
        hidden_states, mask, rest = split_call(args, kwargs)
        room = hidden_states.new_zeros(len(hidden_states), number, self.width)
        hidden_states = torch.cat([room, hidden_states], dim=1)
        output = self.base_layer(hidden_states, attention_mask=extend_mask(mask, number), **rest)
        return output[0][:, number:], *output[1:]

    def detach_hooks(self) -> None:
        """Remove the hooks on the projections and on the model."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


class PutPrefix:
    """Forward hook on a projection that puts the prefix where there is room for it.

    Args:
        layer: the attention.
        part: ``"key"`` or ``"value"``.
    """

    def __init__(self, layer: PrefixAttention, part: str) -> None:
        self.layer = layer
        self.part = part

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """The projection's output, ``(batch, number + time, width)``, with the acting prefix before the frames."""
        prefix = self.layer.acting_prefix()
        if prefix is None:
            return output
        tokens = cast(Tensor, getattr(prefix, self.part))
        rows = tokens.to(output.dtype).expand(len(output), -1, -1)
        return torch.cat([rows, output[:, len(tokens) :]], dim=1)


class PrefixModel(VirtualTokenModel):
    """Attaches prefixes."""

    prefix = "prefix_"

    def _names(self, stack: Stack) -> list[str]:
        names = [sublayer.target for sublayer in stack.sublayers() if sublayer.role == "attention"]
        if reads_raw_weights(self.model.get_submodule(names[0])):
            raise HostError(
                "prefixes cannot be put into WavLM's attention, which reads the weights of its key and value "
                "projections without calling them; expected AST, Whisper, wav2vec2 or HuBERT, or another method, such "
                "as prompts (PromptConfig)"
            )
        return names

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
        if not isinstance(layer, PrefixAttention):
            layer = PrefixAttention(target, self.prefix, *self._targets[current_key], self.model)
        layer.add_adapter(adapter_name, peft_config)
        setattr(parent, target_name, layer)
