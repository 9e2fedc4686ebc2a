"""GC-LoRA: a Conformer's gated convolution in the bottleneck of LoRA at the attention's output projection."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from mambavox.adapters.config import Context
from mambavox.adapters.conformer import ConformerConvolution
from mambavox.adapters.hosts import (
    Sublayer,
    declare_missing_embeddings,
    describe_stacks,
    find_stacks,
    reads_raw_weights,
)
from mambavox.adapters.method_config import MethodConfig
from mambavox.adapters.sublayer import SublayerAdapter
from mambavox.adapters.tuner import AdapterModel
from mambavox.errors import HostError


@dataclass
class GCLoraConfig(MethodConfig):
    """Gated convolutional LoRA at the output projection ``W`` of each self-attention of the encoder.

    ``W x + alpha / r * B(z + P2 swish(norm(conv(GLU(P1 z)))))`` with ``z = A x``: ``A`` and ``B`` are LoRA's, without
    biases, ``P1`` and ``P2`` pointwise convolutions from ``r`` to ``2r`` and from ``r`` to ``r`` channels, ``conv`` a
    centred depthwise convolution. Each layer has ``2dr + 3r^2 + r(kernel_size + 6)`` parameters in a host of ``d``
    channels.

    What is published leaves open how many groups the group norm has and which convolutions have biases. Here it has
    one group, over each row's valid frames, and they all have. The paper prints 447k parameters for Whisper-medium,
    where this has 404,928; its plain LoRA rows too are about 5 % above what their ranks give.

    Not for WavLM, whose attention never calls its output projection.

    Attributes:
        r: rank, the channels of the bottleneck.
        alpha: the update is multiplied with ``alpha / r``.
        kernel_size: width of the convolution in frames.
        layers_to_transform: indices of the layers that are adapted; all without it.

    Raises:
        ConfigError: a value that does not fit.

    Source:
        Shankar et al. 2026, GC-LoRA (Interspeech 2026, arXiv 2606.10464), for Whisper's encoder; LoRA: Hu et al. 2021
        (arXiv 2106.09685).
    """

    method: ClassVar[str] = "GCLORA"
    target_modules: ClassVar[None] = None
    exclude_modules: ClassVar[None] = None

    r: int = 8
    alpha: int = 16
    kernel_size: int = 31
    layers_to_transform: list[int] | int | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        self._check_sizes("r", "alpha", "kernel_size")


class GatedConvolutionUpdate(nn.Module):
    """One adapter's update of one output projection.

    Args:
        config: the adapter's configuration.
        width: size of the host's hidden states.
    """

    sequential = False
    projections = None
    context: Context = "all"

    def __init__(self, config: GCLoraConfig, width: int) -> None:
        super().__init__()
        self.scale = config.alpha / config.r
        self.down = nn.Linear(width, config.r, bias=False)
        self.expand = nn.Linear(config.r, 2 * config.r)
        self.convolution = ConformerConvolution(config.r, config.kernel_size)
        self.mix = nn.Linear(config.r, config.r)
        self.up = nn.Linear(config.r, width, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def forward(self, hidden_states: Tensor, projections: None, lengths: Tensor | None) -> Tensor:
        """What the adapter adds.

        Args:
            hidden_states: ``(batch, time, width)``, the input of the output projection.
            projections: none; they are its own.
            lengths: ``(batch,)`` valid frames of each row; all of them where not given.

        Returns:
            ``(batch, time, width)``.
        """
        narrow = self.down(hidden_states)
        local = self.mix(self.convolution(self.expand(narrow), lengths))
        return self.scale * self.up(narrow + local)


class GCLoraLayer(SublayerAdapter):
    """An output projection of the host with its updates."""

    def make_branch(self, config: GCLoraConfig) -> nn.Module:
        """A :class:`GatedConvolutionUpdate`.

        Args:
            config: the adapter's configuration.
        """
        return GatedConvolutionUpdate(config, self.sublayer.width)


class GCLoraModel(AdapterModel):
    """Attaches GC-LoRA."""

    prefix = "gclora_"
    layer_class = GCLoraLayer

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        declare_missing_embeddings(model)
        stacks = find_stacks(model)
        found = [
            _output_projection(model, sublayer)
            for stack in stacks
            if stack.kind == "encoder"
            for sublayer in stack.sublayers()
            if sublayer.role == "attention" and peft_config.layer_is_chosen(sublayer.layer)
        ]
        if not found:
            raise HostError(
                f"no self-attention of an encoder fits layers_to_transform={peft_config.layers_to_transform!r}; the "
                f"backbone has: {describe_stacks(stacks)}"
            )
        self._sublayers = {projection.target: projection for projection in found}
        self._groups: dict[str, str] = {}
        self._norms: set[str] = set()


def _output_projection(model: nn.Module, attention: Sublayer) -> Sublayer:
    """The output projection of an attention, as a sublayer of its own."""
    module = model.get_submodule(attention.target)
    if attention.stack.forms[attention.layer].is_mamba:
        raise HostError(
            f"GC-LoRA cannot be put at the output projection of {attention.target}, a Mamba block, whose input is not "
            "as wide as the backbone; expected layers with attention, chosen by layers_to_transform, or an adapter "
            "beside the whole block, such as MambAdapter with placement='attention'"
        )
    if reads_raw_weights(module):
        raise HostError(
            "GC-LoRA cannot be put at the output projection of WavLM's attention, which reads its weights without "
            "calling it; expected AST, Whisper, wav2vec2 or HuBERT, or an adapter beside the whole attention, such as "
            "the Conformer adapter with placement='attention'"
        )
    name = next(f"{attention.target}.{part}" for part in ("o_proj", "out_proj") if hasattr(module, part))
    return dataclasses.replace(attention, target=name, input_of=name)
