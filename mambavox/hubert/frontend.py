"""From samples to frames: convolutional features, their projection, convolutional positions."""

import math
from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from mambavox.hubert.configuration import MambaHubertConfig
from mambavox.hubert.streaming import shift_rows
from mambavox.nn.streaming import StreamStep

_FEW_FRAMES = 16
"""Frames of a batch up to which convolutional positions of a stream are one product of matrices."""

_FEW_SAMPLES = 2000
"""Samples of a batch up to which the convolutions of a stream are not worth arranging anew."""


class ConvLayer(GradientCheckpointingLayer):
    """One layer of the convolutional feature extractor: convolution without padding, norm, activation.

    Args:
        config: of the model.
        index: which layer.
    """

    def __init__(self, config: MambaHubertConfig, index: int) -> None:
        super().__init__()
        channels = config.conv_dim[index]
        self.conv = nn.Conv1d(
            config.conv_dim[index - 1] if index else 1,
            channels,
            kernel_size=config.conv_kernel[index],
            stride=config.conv_stride[index],
            bias=bool(config.conv_bias),
        )
        self.layer_norm: nn.LayerNorm | nn.GroupNorm | None = None
        if config.feat_extract_norm == "layer":
            self.layer_norm = nn.LayerNorm(channels)
        elif index == 0:
            self.layer_norm = nn.GroupNorm(channels, channels)
        self.activation = ACT2FN[config.feat_extract_activation]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``(batch, channels of the layer before, time)`` to ``(batch, channels, less time)``."""
        if self._channels_last(hidden_states):
            hidden_states = self._convolve_channels_last(hidden_states)
        else:
            hidden_states = self.conv(hidden_states)
        if isinstance(self.layer_norm, nn.LayerNorm):
            hidden_states = self.layer_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        elif self.layer_norm is not None:
            hidden_states = self.layer_norm(hidden_states)
        return self.activation(hidden_states)

    def _channels_last(self, hidden_states: Tensor) -> bool:
        """Whether to train on frames whose channels lie side by side in memory, as the layer norm wants them.

        On a CPU that takes half the time in bfloat16 (in float32 a third more), and rounds in another way. Outside of
        training the sums are transformers' own, bit for bit.
        """
        if not self.training or hidden_states.device.type != "cpu" or type(self.conv) is not nn.Conv1d:
            return False
        autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16
        return isinstance(self.layer_norm, nn.LayerNorm) and (autocast or hidden_states.dtype is torch.bfloat16)

    def _convolve_channels_last(self, hidden_states: Tensor) -> Tensor:
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        if self.conv.in_channels == 1:
            # Of samples a product of matrices, whose gradients take less time than the convolution's.
            windows = hidden_states[:, 0].unfold(1, kernel, stride)
            return F.linear(windows, self.conv.weight[:, 0], self.conv.bias).transpose(1, 2)
        frames = hidden_states[:, :, None].contiguous(memory_format=torch.channels_last)
        weight = self.conv.weight[:, :, None].contiguous(memory_format=torch.channels_last)
        return F.conv2d(frames, weight, self.conv.bias, stride=(1, stride))[:, :, 0]


class FeatureExtractor(nn.Module):
    """The convolutional feature extractor.

    Frame ``t`` sees samples ``t * stride .. t * stride + receptive_field - 1`` and, with layer norms, nothing else.

    Args:
        config: of the model.

    Source:
        wav2vec 2.0 (Baevski et al. 2020, arXiv 2006.11477), section 2 and Appendix A.
    """

    def __init__(self, config: MambaHubertConfig) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList(ConvLayer(config, index) for index in range(len(config.conv_dim)))

    def forward(self, input_values: Tensor) -> Tensor:
        """Samples to features.

        Args:
            input_values: ``(batch, samples)`` waveforms.

        Returns:
            ``(batch, time, channels)``, in the dtype of the parameters.
        """
        hidden_states = input_values[:, None].to(next(self.parameters()).dtype)
        for layer in self.conv_layers:
            hidden_states = layer(hidden_states)
        return hidden_states.transpose(1, 2)

    def stream(self, input_values: Tensor) -> Tensor:
        """The same of a piece of a stream, where layer norms stand behind all convolutions.

        Args:
            input_values: ``(batch, samples)`` all that the new frames see.

        Returns:
            ``(batch, time, channels)``.
        """
        if self.training or input_values.numel() < _FEW_SAMPLES:
            return self(input_values)
        # Channels stay last, as the norms want them: nothing is turned round between the layers.
        frames = input_values[:, :, None].to(next(self.parameters()).dtype)
        for layer in cast(Iterable[ConvLayer], self.conv_layers):
            conv, norm = layer.conv, cast(nn.LayerNorm, layer.layer_norm)
            image = frames.transpose(1, 2)[:, :, None]
            image = F.conv2d(image, conv.weight[:, :, None], conv.bias, stride=(1, conv.stride[0]))
            frames = layer.activation(norm(image[:, :, 0].transpose(1, 2)))
        return frames


class FeatureProjection(nn.Module):
    """Norm, projection to the width of the encoder, dropout.

    Args:
        config: of the model.
    """

    def __init__(self, config: MambaHubertConfig) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.conv_dim[-1], eps=config.layer_norm_eps)
        self.projection = nn.Linear(config.conv_dim[-1], config.hidden_size)
        self.dropout = nn.Dropout(config.feat_proj_dropout)

    def forward(self, features: Tensor) -> Tensor:
        """``(batch, time, channels)`` to ``(batch, time, hidden_size)``."""
        return self.dropout(self.projection(self.layer_norm(features)))


class ConvolutionalPositions(nn.Module):
    """A grouped convolution over frames, whose output is added to them.

    Frame ``t`` sees the ``kernel`` frames that end with ``t`` where causal, else those around it.

    Args:
        config: of the model.

    Source:
        wav2vec 2.0 (Baevski et al. 2020, arXiv 2006.11477), section 2.
    """

    def __init__(self, config: MambaHubertConfig) -> None:
        super().__init__()
        self.kernel = config.num_conv_pos_embeddings
        self.causal = bool(config.causal_positions)
        conv = nn.Conv1d(
            config.hidden_size,
            config.hidden_size,
            kernel_size=self.kernel,
            # Causal padding is explicit, on the left: in a stream the frames before take its place.
            padding=0 if self.causal else self.kernel // 2,
            groups=config.num_conv_pos_embedding_groups,
        )
        self.conv: Any = parametrizations.weight_norm(conv, dim=2)
        self._kept: tuple[Any, Tensor] | None = None
        self.activation = ACT2FN[config.feat_extract_activation]

    def initial_weight(self) -> Tensor:
        """A weight to begin with, ``(hidden_size, hidden_size / groups, kernel)``."""
        weight = self.conv.parametrizations.weight.original1
        return torch.randn_like(weight) * math.sqrt(4 / (self.kernel * weight.shape[0]))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """What is to be added to the frames.

        Args:
            hidden_states: ``(batch, time, hidden_size)``, zero in the padding.

        Returns:
            ``(batch, time, hidden_size)``.
        """
        time = hidden_states.shape[1]
        frames = hidden_states.transpose(1, 2)
        if self.causal:
            frames = F.pad(frames, (self.kernel - 1, 0))
        # An even kernel with padding on both sides gives one frame too many.
        return self.activation(self.conv(frames)[:, :, :time]).transpose(1, 2)

    def init_state(self, batch_size: int) -> Tensor:
        """State before the first frame: zeros, ``(batch, kernel - 1, hidden_size)``.

        Args:
            batch_size: number of streams.
        """
        # New streams take up what has been written into the parameters unseen, through their data.
        self._kept = None
        bias = self.conv.bias
        return bias.new_zeros(batch_size, self.kernel - 1, bias.shape[0])

    def stream(self, hidden_states: Tensor, state: Tensor, step: StreamStep) -> tuple[Tensor, Tensor]:
        """What is to be added to the next frames of a batch of streams; of causal positions only.

        Args:
            hidden_states: ``(batch, time, hidden_size)``.
            state: ``(batch, kernel - 1, hidden_size)`` the frames before.
            step: which frames are new.

        Returns:
            ``(batch, time, hidden_size)`` and the new state.
        """
        context = torch.cat([state.to(hidden_states.dtype), hidden_states], dim=1)
        weight, bias = self._weight(), self.conv.bias
        batch, time, width = hidden_states.shape
        groups = self.conv.groups
        if batch * time > _FEW_FRAMES:
            output = F.conv1d(context.transpose(1, 2), weight, bias, groups=groups).transpose(1, 2)
        else:
            # Of few frames the convolution would take longer to arrange its weight than to multiply with it.
            windows = context.transpose(1, 2).unflatten(1, (groups, -1)).unfold(3, self.kernel, 1)
            rows = windows.permute(1, 0, 3, 2, 4).reshape(groups, batch * time, -1)
            output = torch.bmm(rows, weight.reshape(groups, width // groups, -1).mT)
            output = output.permute(1, 0, 2).reshape(batch, time, width) + bias
        return self.activation(output), shift_rows(context, self.kernel - 1, step)

    def _weight(self) -> Tensor:
        """The convolution's weight, ``(hidden_size, hidden_size / groups, kernel)``.

        Without gradients it is kept until its two parts change: to make it takes longer than to convolve a frame.
        """
        parts = list(self.conv.parametrizations.weight.parameters())
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or any(part.is_inference() for part in parts):
            return self.conv.weight
        made_of = tuple((part.data_ptr(), part._version, part.dtype, part.device) for part in parts)
        if self._kept is None or self._kept[0] != made_of:
            self._kept = made_of, self.conv.weight
        return self._kept[1]
