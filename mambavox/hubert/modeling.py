"""Mamba-HuBERT as a transformers model: front end, positions, layers. Its heads are in ``heads.py``."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.jit._trace import is_tracing
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import (
    Wav2Vec2BaseModelOutput,
)
from transformers.utils.generic import can_return_tuple

from mambavox.errors import ConfigError, DataError
from mambavox.files import make_readable
from mambavox.hubert.configuration import MambaHubertConfig
from mambavox.hubert.frontend import ConvLayer, ConvolutionalPositions, FeatureExtractor, FeatureProjection
from mambavox.hubert.layers import EncoderLayer, MambaLayer, encoder_layer
from mambavox.hubert.portable import AUTO_MAP, save_code
from mambavox.hubert.streaming import (
    MambaHubertState,
    MambaHubertStreamingOutput,
    check_streamable,
    clear_rows,
    describe_streaming,
    nothing_new,
    take_in,
)
from mambavox.lengths import length_mask
from mambavox.nn.streaming import StreamStep, check_parts

_SPEECH_LEVEL = 0.02
"""Of samples. A bias of the first convolution that is larger than what it adds to is all that the norm lets through."""


class Encoder(nn.Module):
    """Positions and layers.

    Args:
        config: of the model.
    """

    def __init__(self, config: MambaHubertConfig) -> None:
        super().__init__()
        self.config = config
        self.pos_conv_embed = ConvolutionalPositions(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(encoder_layer(config, kind) for kind in config.layer_kinds)

    def forward(
        self, hidden_states: Tensor, lengths: Tensor | None = None, output_hidden_states: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Process a batch of sequences.

        Args:
            hidden_states: ``(batch, time, hidden_size)`` projected features.
            lengths: ``(batch,)`` valid frames of each row.
            output_hidden_states: also return the hidden states of all layers.

        Returns:
            The last hidden states ``(batch, time, hidden_size)``, and where asked for the input of the first layer and
            the output of each; a layer that LayerDrop leaves out repeats its input.
        """
        if lengths is not None:
            hidden_states = hidden_states.masked_fill(~length_mask(lengths, hidden_states.shape[1])[:, :, None], 0.0)
        hidden_states = hidden_states + self.pos_conv_embed(hidden_states)
        pre_norm = self.config.do_stable_layer_norm
        hidden_states = self.dropout(hidden_states if pre_norm else self.layer_norm(hidden_states))

        if self.training and getattr(self.layers[0], "gradient_checkpointing", False):
            # Under a frozen front end a reentrant checkpoint would give the first layer's adapters no gradient.
            hidden_states = hidden_states if hidden_states.requires_grad else hidden_states.requires_grad_()
        dropped = [False] * len(self.layers)
        if self.training and self.config.layerdrop > 0:
            dropped = (torch.rand(len(self.layers)) < self.config.layerdrop).tolist()
        collected = [hidden_states]
        for layer, drop in zip(self.layers, dropped, strict=True):
            if not drop:
                hidden_states = layer(hidden_states, lengths)
            collected.append(hidden_states)
        if pre_norm:
            hidden_states = self.layer_norm(hidden_states)
        return hidden_states, tuple(collected) if output_hidden_states else None

    def stream(
        self, hidden_states: Tensor, state: MambaHubertState, step: StreamStep
    ) -> tuple[Tensor, MambaHubertState]:
        """Process the next frames of a batch of streams; LayerDrop leaves no layer out.

        Args:
            hidden_states: ``(batch, time, hidden_size)`` projected features.
            state: of the streams.
            step: which frames are new.

        Returns:
            ``(batch, time, hidden_size)``, zero beyond each row's new frames, and the new state.
        """
        positions, positions_state = self.pos_conv_embed.stream(hidden_states, state.positions, step)
        hidden_states = hidden_states + positions
        pre_norm = self.config.do_stable_layer_norm
        hidden_states = self.dropout(hidden_states if pre_norm else self.layer_norm(hidden_states))
        layer_states = []
        for layer, layer_state in zip(self.layers, state.layers, strict=True):
            # Modules in a list are typed as if they had no methods.
            hidden_states, new_state = cast(EncoderLayer, layer).stream(hidden_states, layer_state, step)
            layer_states.append(new_state)
        if pre_norm:
            hidden_states = self.layer_norm(hidden_states)
        state = replace(state, positions=positions_state, layers=tuple(layer_states))
        return clear_rows(hidden_states, step), state


class MambaHubertPreTrainedModel(PreTrainedModel):
    """What the models share: initialisation, lengths, saving."""

    config: MambaHubertConfig
    config_class = MambaHubertConfig
    base_model_prefix = "mamba_hubert"
    main_input_name = "input_values"
    input_modalities = "audio"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules: Any = ("TransformerLayer", "MambaLayer", "ParametrizedConv1d")

    def post_init(self) -> None:
        """Initialise, and name of the modules to be kept whole those that there are: FSDP looks for each."""
        super().post_init()
        self._no_split_modules &= {type(module).__name__ for module in self.modules()}

    def get_input_embeddings(self) -> None:
        """``None``: waveforms are looked up in no table."""
        return None

    def _initialize_weights(self, module: nn.Module, *_: Any) -> None:
        # Models from outside transformers are taken to overwrite loaded tensors, and then a module without parameters
        # of its own is passed over; ours are written through transformers.initialization, which spares what is loaded.
        super()._initialize_weights(module)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ConvLayer):
            init.kaiming_normal_(module.conv.weight)
            if module.conv.bias is not None:
                # torch's own: transformers' zeros would leave silence where it is without a bias.
                bound = (module.conv.in_channels * module.conv.kernel_size[0]) ** -0.5
                if module.conv.in_channels == 1:
                    bound *= _SPEECH_LEVEL
                init.uniform_(module.conv.bias, -bound, bound)
        elif isinstance(module, ConvolutionalPositions):
            weight = module.initial_weight()
            original = module.conv.parametrizations.weight
            init.copy_(original.original0, weight.norm(dim=(0, 1), keepdim=True))
            init.copy_(original.original1, weight)
        elif isinstance(module, MambaLayer):
            # transformers has initialised the block's linear layers its own way, step sizes of zero included.
            with torch.device(module.layer_norm.weight.device):
                fresh = module.new_mamba()
            for name, tensor in fresh.named_parameters():
                init.copy_(module.mamba.get_parameter(name), tensor)
        elif isinstance(module, MambaHubertModel):
            init.uniform_(module.masked_spec_embed)

    def _get_feat_extract_output_lengths(self, input_lengths: Any) -> Any:
        """Frames of recordings: ``input_lengths`` in samples, a tensor of any shape or a number."""
        for kernel, stride in zip(self.config.conv_kernel, self.config.conv_stride, strict=True):
            input_lengths = (input_lengths - kernel) // stride + 1
        return input_lengths.clamp(min=0) if isinstance(input_lengths, Tensor) else max(input_lengths, 0)

    def _get_feature_vector_attention_mask(self, feature_vector_length: int, attention_mask: Tensor) -> Tensor:
        """Mask of samples ``(batch, samples)`` to mask of frames ``(batch, feature_vector_length)``, boolean."""
        lengths = self._get_feat_extract_output_lengths(attention_mask.sum(dim=-1).to(torch.int64))
        return length_mask(lengths, feature_vector_length)

    def freeze_feature_encoder(self) -> None:
        """Train everything but the convolutional feature extractor."""
        self.base_model.feature_extractor.requires_grad_(False)

    def freeze_base_model(self) -> None:
        """Train the head alone."""
        self.base_model.requires_grad_(False)

    def save_pretrained(self, save_directory: Any, is_main_process: bool = True, **kwargs: Any) -> None:
        """Save as every transformers model does, with a file of code for places without mambavox.

        ``AutoModel.from_pretrained(folder, trust_remote_code=True)`` loads the folder there, on plain torch operations.

        Args:
            save_directory: the folder.
            is_main_process: whether this process writes.
            kwargs: the other arguments of ``PreTrainedModel.save_pretrained``.
        """
        if is_main_process:
            folder = Path(save_directory)
            folder.mkdir(parents=True, exist_ok=True)
            save_code(folder)
            self.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            make_readable(Path(save_directory))


class MambaHubertModel(MambaHubertPreTrainedModel):
    """The encoder: waveforms to hidden states, one frame in 20 ms.

    Module names are those of transformers' ``HubertModel``.

    Args:
        config: sizes and options.

    Source:
        Mamba-based HuBERT (arXiv 2506.12606); HuBERT (arXiv 2106.07447).
    """

    def __init__(self, config: MambaHubertConfig) -> None:
        super().__init__(config)
        self.feature_extractor = FeatureExtractor(config)
        self.feature_projection = FeatureProjection(config)
        self.masked_spec_embed = nn.Parameter(torch.empty(config.hidden_size))
        self.encoder = Encoder(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        mask_time_indices: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> Wav2Vec2BaseModelOutput:
        """Encode recordings.

        Args:
            input_values: ``(batch, samples)`` waveforms at ``sampling_rate``.
            attention_mask: ``(batch, samples)`` 1 at samples and 0 at padding, which is behind them.
            mask_time_indices: ``(batch, time)`` boolean, frames to hide behind the mask embedding.
            output_hidden_states: also return the hidden states of all layers; as configured where not given.
            output_attentions: refused; no layer computes attention weights as such.

        Returns:
            ``last_hidden_state`` ``(batch, time, hidden_size)``, ``extract_features`` ``(batch, time, channels)``
            before the projection and its norm, and ``hidden_states``: the input of the first layer, then the output of
            each, of a pre-norm model before the last norm. Frames beyond a row's length mean nothing.

        Raises:
            DataError: the recordings are shorter than one frame's receptive field.
            ConfigError: an ``attention_mask`` or ``mask_time_indices`` of another shape, or attention weights are asked
                for.
        """
        if self.config.output_attentions if output_attentions is None else output_attentions:
            raise ConfigError(
                "output_attentions is set, and there are none: a Mamba has no attention weights, and the attention "
                "layers compute theirs in one fused operation; leave it out"
            )
        self._check_input(input_values, attention_mask)
        features = self._scaled(self.feature_extractor(input_values))
        time = features.shape[1]
        lengths = None
        if attention_mask is not None:
            lengths = self._get_feat_extract_output_lengths(attention_mask.sum(dim=-1).to(torch.int64))
            # Without padding everything is faster without lengths.
            if not torch.compiler.is_compiling() and not is_tracing() and bool((lengths == time).all()):
                lengths = None
        hidden_states = self.feature_projection(features)
        if mask_time_indices is not None:
            if mask_time_indices.shape != hidden_states.shape[:2]:
                raise ConfigError(
                    f"mask_time_indices has shape {tuple(mask_time_indices.shape)}; expected (batch, time) = "
                    f"{tuple(hidden_states.shape[:2])}"
                )
            hidden = mask_time_indices.bool()[:, :, None]
            hidden_states = torch.where(hidden, self.masked_spec_embed.to(hidden_states.dtype), hidden_states)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        last_hidden_state, all_hidden_states = self.encoder(hidden_states, lengths, bool(output_hidden_states))
        return Wav2Vec2BaseModelOutput(
            last_hidden_state=last_hidden_state, extract_features=features, hidden_states=all_hidden_states
        )

    def init_streaming_state(self, batch_size: int = 1) -> MambaHubertState:
        """State of streams before their first samples.

        Args:
            batch_size: number of streams.

        Raises:
            ConfigError: the model is not causal; the message names what is not.
            HostError: an adapter on the model cannot be streamed.
        """
        check_streamable(self.config)
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; expected at least 1")
        check_parts(self)
        samples = next(self.feature_extractor.parameters())
        return MambaHubertState(
            waveform=samples.new_zeros(batch_size, self.config.receptive_field - 1),
            positions=self.encoder.pos_conv_embed.init_state(batch_size),
            layers=tuple(cast(EncoderLayer, layer).init_state(batch_size) for layer in self.encoder.layers),
            samples=[0] * batch_size,
            ended=[False] * batch_size,
            model=describe_streaming(self.config),
        )

    def stream(
        self,
        input_values: Tensor,
        state: MambaHubertState,
        lengths: Tensor | None = None,
        final: bool | Tensor | Sequence[bool] = False,
    ) -> tuple[MambaHubertStreamingOutput, MambaHubertState]:
        """Encode the next samples of a batch of streams: waveforms cut anywhere give the uncut output.

        A frame is put out as soon as the last sample that it sees is there. The state given stays as it is and can be
        gone on from again.

        Args:
            input_values: ``(batch, samples)`` new samples of each stream; any number, none included.
            state: of :meth:`init_streaming_state`, or of the last call.
            lengths: ``(batch,)`` new samples of each row; all of them where not given. A row of 0 stays as it is.
            final: whether a stream ends here, of all or ``(batch,)`` of each row. No frame is held back till then:
                samples that finish none are given up, as by the whole model, and the row takes no more.

        Returns:
            The new frames, and the new state.

        Raises:
            ConfigError: a state of another model, number of streams or device; samples after a stream's last.
        """
        intake = take_in(self.config, state, input_values, lengths, final)
        step, state = intake.step, intake.state
        if intake.ready is None:
            hidden_states = nothing_new(state.batch_size, self.config.hidden_size, state.positions)
        else:
            projected = self.feature_projection(self._scaled(self.feature_extractor.stream(intake.ready)))
            hidden_states, state = self.encoder.stream(projected, state, step)
        frames = torch.tensor(step.counts)
        return MambaHubertStreamingOutput(last_hidden_state=hidden_states, lengths=frames), state

    def _scaled(self, features: Tensor) -> Tensor:
        if self.training and self.config.feature_grad_mult != 1.0:
            features = ScaledGradient.apply(features, self.config.feature_grad_mult)
        return features

    def _check_input(self, input_values: Tensor, attention_mask: Tensor | None) -> None:
        if input_values.dim() != 2:
            raise ConfigError(f"input_values has shape {tuple(input_values.shape)}; expected (batch, samples)")
        if input_values.shape[1] < self.config.receptive_field:
            raise DataError(
                f"input_values has {input_values.shape[1]} samples; expected at least {self.config.receptive_field}, "
                "what one frame sees. Pad or leave out shorter recordings"
            )
        if attention_mask is not None and attention_mask.shape != input_values.shape:
            raise ConfigError(
                f"attention_mask has shape {tuple(attention_mask.shape)}; expected that of input_values, "
                f"{tuple(input_values.shape)}"
            )


class ScaledGradient(torch.autograd.Function):
    """The identity, with its gradient multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: float) -> Tensor:
        """``tensor`` as it is."""
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """``gradient`` times the factor."""
        return gradient * ctx.factor, None
