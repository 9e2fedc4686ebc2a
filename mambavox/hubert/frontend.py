"""From samples to frames: convolutional features, their projection, convolutional positions."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from mambavox.hubert.configuration import MambaHubertConfig


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

        On a CPU that is three times as fast in bfloat16, and rounds in another way. Outside of training the sums are
        transformers' own, bit for bit.
        """
        fits = isinstance(self.layer_norm, nn.LayerNorm) and type(self.conv) is nn.Conv1d
        return self.training and fits and hidden_states.device.type == "cpu"

    def _convolve_channels_last(self, hidden_states: Tensor) -> Tensor:
        frames = hidden_states[:, :, None].contiguous(memory_format=torch.channels_last)
        weight = self.conv.weight[:, :, None].contiguous(memory_format=torch.channels_last)
        return F.conv2d(frames, weight, self.conv.bias, stride=(1, self.conv.stride[0]))[:, :, 0]


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
        self.conv = parametrizations.weight_norm(conv, dim=2)
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
