"""What prompts and prefixes share: tokens that are no part of the input, kept out of what the host puts out."""

import math
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mambavox.adapters.hosts import Stack, declare_missing_embeddings, describe_stacks, find_stacks
from mambavox.adapters.tuner import AdapterModel
from mambavox.errors import ConfigError, HostError

# Of the flat patches of an image, 3 channels of 16 by 16, whatever the host; with 768 channels the bound is 0.0625.
_FAN_IN = 3 * 16 * 16


def new_tokens(number: int, width: int) -> nn.Parameter:
    """Trainable tokens, ``(number, width)``, uniform within ``sqrt(6 / (768 + width))``.

    Source:
        Jia et al. 2022, visual prompt tuning (arXiv 2203.12119), the authors' code; so too in arXiv 2312.03694.
    """
    bound = math.sqrt(6 / (_FAN_IN + width))
    return nn.Parameter(torch.empty(number, width).uniform_(-bound, bound))


def prepend(tokens: Tensor, hidden_states: Tensor) -> Tensor:
    """Put the same tokens before every row.

    Args:
        tokens: ``(number, width)``.
        hidden_states: ``(batch, time, width)``.

    Returns:
        ``(batch, number + time, width)`` in the dtype of ``hidden_states``.
    """
    rows = tokens.to(hidden_states.dtype).expand(len(hidden_states), -1, -1)
    return torch.cat([rows, hidden_states], dim=1)


def extend_mask(mask: Any, number: int) -> Tensor | None:
    """A host's attention mask with room for tokens before the first frame, which everyone may look at.

    Args:
        mask: ``(batch, time)``, 1 or true at valid frames; ``(batch, 1, queries, time)``, true or, added to the
            scores, 0 where a query may look; or none.
        number: of tokens.

    Raises:
        HostError: another kind of mask.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        raise HostError(
            f"the backbone's attention was given a {type(mask).__name__} as its mask, in which there is no room for "
            "virtual tokens; expected attn_implementation 'sdpa', 'eager' or 'flash_attention_2'"
        )
    added_to_scores = mask.dim() == 4 and mask.is_floating_point()
    mask = torch.cat([mask.new_full((*mask.shape[:-1], number), 0 if added_to_scores else 1), mask], dim=-1)
    if mask.dim() == 2 or mask.shape[2] == 1:
        return mask
    # The tokens look at what the first frame looks at: at all valid frames of their row.
    return torch.cat([mask[:, :, :1].expand(-1, -1, number, -1), mask], dim=2)


def split_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Any, dict[str, Any]]:
    """Hidden states, mask and the rest of what a host calls a layer or its attention with."""
    names = dict(zip(("hidden_states", "attention_mask"), args, strict=False))
    rest = {**kwargs, **names}
    return rest.pop("hidden_states"), rest.pop("attention_mask", None), rest


class HasTokens(Protocol):
    """A layer that knows how many tokens it adds now."""

    def added_tokens(self) -> int:
        """How many; 0 where no adapter acts."""


class HideTokens:
    """Forward hook on a model that takes the tokens out of the hidden states and attention weights it has recorded.

    Args:
        layer: one of the layers that add tokens.
        in_states: whether the hidden states between layers hold tokens; attention weights always do.
    """

    def __init__(self, layer: HasTokens, in_states: bool) -> None:
        self.layer = layer
        self.in_states = in_states

    def __call__(self, model: nn.Module, args: Any, output: Any) -> None:
        """Shorten what is longer than without tokens."""
        number = self.layer.added_tokens()
        if not number or not isinstance(output, MutableMapping):
            return
        time = output["last_hidden_state"].shape[1]
        if self.in_states and output.get("hidden_states") is not None:
            # The last one may be the model's output, which holds none.
            output["hidden_states"] = tuple(
                states if states is None or states.shape[1] <= time else states[:, number:]
                for states in output["hidden_states"]
            )
        if output.get("attentions") is not None:
            output["attentions"] = tuple(weights[..., number:, number:] for weights in output["attentions"])


def recording_model(host: nn.Module, stack: Stack) -> PreTrainedModel | None:
    """The innermost transformers model around a stack, which records hidden states, if there is one."""
    steps = stack.holder.split(".") if stack.holder else []
    for end in range(len(steps), -1, -1):
        module = host.get_submodule(".".join(steps[:end]))
        if isinstance(module, PreTrainedModel):
            return module
    return None


def one_acting(names: Sequence[str]) -> str | None:
    """The adapter that acts in a layer, if any.

    Raises:
        HostError: more than one is active.
    """
    if len(names) > 1:
        raise HostError(
            f"adapters {', '.join(names)} are active together and each brings virtual tokens; expected one: "
            "set_adapter(name)"
        )
    return names[0] if names else None


class VirtualTokenModel(AdapterModel):
    """Attaches virtual tokens to the encoders of a host; subclasses say to which modules."""

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        declare_missing_embeddings(model)
        stacks = find_stacks(model)
        encoders = [stack for stack in stacks if stack.kind == "encoder"]
        if not encoders:
            raise HostError(f"there is no encoder for virtual tokens; the backbone has: {describe_stacks(stacks)}")
        if not all(stack.takes_masks for stack in encoders):
            raise HostError(
                "virtual tokens cannot be put into a Mamba-HuBERT, whose layers are told lengths that do not count "
                "them; expected AST, Whisper, wav2vec2, HuBERT or WavLM, or an adapter beside a sublayer"
            )
        self._targets = {name: (stack, layer) for stack in encoders for layer, name in enumerate(self._names(stack))}

    def _names(self, stack: Stack) -> list[str]:
        """Names of the modules to replace, one for each layer."""
        raise NotImplementedError

    def _check_target_module_exists(self, peft_config: Any, key: str) -> bool:
        return key in self._targets

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, adapter_names: Any = None, **kwargs: Any) -> Iterator[None]:
        """What PEFT runs a forward pass in.

        Raises:
            ConfigError: an adapter for each row is asked for.
        """
        if adapter_names is not None:
            raise ConfigError(
                "adapter_names is given, and virtual tokens are the same for all rows of a batch; expected it to be "
                "left out, and set_adapter(name)"
            )
        yield
