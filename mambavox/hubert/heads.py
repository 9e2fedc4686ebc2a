"""The heads of Mamba-HuBERT: for pre-training, CTC and classification."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import (
    CausalLMOutput,
    ModelOutput,
    SequenceClassifierOutput,
)
from transformers.utils.generic import can_return_tuple

from mambavox.errors import ConfigError
from mambavox.hubert.configuration import MambaHubertConfig
from mambavox.hubert.masking import sample_span_mask
from mambavox.hubert.modeling import MambaHubertModel, MambaHubertPreTrainedModel
from mambavox.hubert.streaming import (
    MambaHubertState,
    MambaHubertStreamingOutput,
)
from mambavox.lengths import length_mask


@dataclass
class MambaHubertForPreTrainingOutput(ModelOutput):
    """Output of :class:`MambaHubertForPreTraining`.

    Attributes:
        loss: cross-entropy of the frames that have a label, weighted, plus the weighted feature penalty.
        logits: ``(batch, time, num_clusters)`` cosines to the codebook divided by the temperature.
        prediction_loss: mean cross-entropy of the masked frames that have a label.
        feature_penalty: mean squared convolutional feature of valid frames, unweighted.
        mask_time_indices: ``(batch, time)`` boolean, which frames were hidden.
        hidden_states: of all layers, where asked for.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    prediction_loss: Tensor | None = None
    feature_penalty: Tensor | None = None
    mask_time_indices: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class MambaHubertForPreTraining(MambaHubertPreTrainedModel):
    """Masked prediction of units: hidden frames are compared with an embedding of each unit by cosine.

    Args:
        config: sizes and options.

    Source:
        HuBERT (arXiv 2106.07447), equations 1 to 3, as published with the loss on masked frames only (alpha = 1;
        ``unmasked_weight`` is (1 - alpha) / alpha); the feature penalty is that of wav2vec 2.0's code.
    """

    # Tells transformers' Trainer to pass num_items_in_batch.
    accepts_loss_kwargs = True

    def __init__(self, config: MambaHubertConfig) -> None:
        super().__init__(config)
        self.mamba_hubert = MambaHubertModel(config)
        self.final_proj = nn.Linear(config.hidden_size, config.proj_size)
        self.codebook = nn.Parameter(torch.empty(config.num_clusters, config.proj_size))
        self.post_init()

    @can_return_tuple
    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.uniform_(self.codebook)

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        mask_time_indices: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> MambaHubertForPreTrainingOutput:
        """Predict units.

        Args:
            input_values: ``(batch, samples)`` waveforms.
            attention_mask: ``(batch, samples)`` 1 at samples and 0 at padding, which is behind them.
            labels: ``(batch, time)`` unit of each frame; -100 where there is none.
            mask_time_indices: ``(batch, time)`` boolean, frames to hide. Where not given, frames are hidden only if
                there are labels: a new random mask, from torch's default generator.
            num_items_in_batch: labelled frames of the whole step, over all its batches and processes, by which the
                loss is divided; those of this batch where not given. The losses of a step's batches then add up: to
                the cross-entropy of their union, and to the mean of their feature penalties, weighted by the number
                of such frames. Without ``unmasked_weight`` hidden frames alone count as labelled.
            output_hidden_states: also return the hidden states of all layers.
            output_attentions: refused, as by :class:`MambaHubertModel`.

        Returns:
            The losses (with labels), logits of every frame, and the mask.

        Raises:
            ConfigError: labels of another shape than the frames.
            DataError: as :class:`MambaHubertModel`.
        """
        if mask_time_indices is None and labels is not None:
            mask_time_indices = self._sample_mask(input_values, attention_mask)
        outputs = self.mamba_hubert(
            input_values,
            attention_mask=attention_mask,
            mask_time_indices=mask_time_indices,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        projected = self.final_proj(outputs.last_hidden_state)
        # Cosines and their softmax in float32 at least, also in a model or autocast of half precision.
        with torch.autocast(projected.device.type, enabled=False):
            dtype = torch.promote_types(projected.dtype, torch.float32)
            directions = F.normalize(projected.to(dtype), dim=-1)
            logits = directions @ F.normalize(self.codebook.to(dtype), dim=-1).T / self.config.logit_temp
        loss = prediction_loss = penalty = None
        if labels is not None and mask_time_indices is not None:
            if labels.shape != logits.shape[:2]:
                raise ConfigError(
                    f"labels has shape {tuple(labels.shape)}; expected (batch, time) = {tuple(logits.shape[:2])}, one "
                    "unit a frame"
                )
            hidden, weight = mask_time_indices.bool(), self.config.unmasked_weight
            targets = labels if weight else labels.masked_fill(~hidden, -100)
            items = (targets != -100).sum().clamp(min=1)
            errors = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
            of_hidden = errors.masked_fill(~hidden, 0.0).sum()
            prediction_loss = of_hidden / ((targets != -100) & hidden).sum().clamp(min=1)
            penalty = self._feature_penalty(outputs.extract_features, attention_mask)
            of_others = errors.masked_fill(hidden, 0.0).sum()
            loss = (of_hidden + weight * of_others) / items + self.config.feature_penalty * penalty
            if num_items_in_batch is not None:
                loss = loss * items / num_items_in_batch
        return MambaHubertForPreTrainingOutput(
            loss=loss,
            logits=logits,
            prediction_loss=prediction_loss,
            feature_penalty=penalty,
            mask_time_indices=mask_time_indices,
            hidden_states=outputs.hidden_states,
        )

    def _sample_mask(self, input_values: Tensor, attention_mask: Tensor | None) -> Tensor:
        batch, samples = input_values.shape
        time = self._get_feat_extract_output_lengths(samples)
        lengths = torch.full((batch,), time, device=input_values.device)
        if attention_mask is not None:
            lengths = self._get_feat_extract_output_lengths(attention_mask.sum(dim=-1).to(torch.int64))
        return sample_span_mask(lengths, time, self.config.mask_prob, self.config.mask_length)

    def _feature_penalty(self, features: Tensor, attention_mask: Tensor | None) -> Tensor:
        squares = features.to(torch.promote_types(features.dtype, torch.float32)).square().mean(dim=-1)
        if attention_mask is None:
            return squares.mean()
        valid = self._get_feature_vector_attention_mask(features.shape[1], attention_mask)
        return squares.masked_fill(~valid, 0.0).sum() / valid.sum().clamp(min=1)


class MambaHubertForCTC(MambaHubertPreTrainedModel):
    """A token for each frame, trained with connectionist temporal classification.

    Args:
        config: sizes and options; ``vocab_size`` tokens, ``pad_token_id`` is the blank.

    Source:
        Graves et al. 2006 (CTC); module names of transformers' ``HubertForCTC``.
    """

    def __init__(self, config: MambaHubertConfig) -> None:
        super().__init__(config)
        self.mamba_hubert = MambaHubertModel(config)
        self.dropout = nn.Dropout(config.final_dropout)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Linear:
        """Give the head an output for each token of another vocabulary; those that stay keep theirs.

        Args:
            new_num_tokens: size of the vocabulary; ``None`` changes nothing.
            pad_to_multiple_of: round the size up.
            mean_resizing: draw new outputs around the mean of the old ones, as transformers does.

        Returns:
            The head; a model that hears has no embeddings of tokens.
        """
        if new_num_tokens is not None:
            size = -(-new_num_tokens // (pad_to_multiple_of or 1)) * (pad_to_multiple_of or 1)
            self.lm_head = self._get_resized_lm_head(self.lm_head, size, mean_resizing=mean_resizing)
            self.config.vocab_size = size
        return self.lm_head

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        mask_time_indices: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> CausalLMOutput:
        """Transcribe.

        Args:
            input_values: ``(batch, samples)`` waveforms.
            attention_mask: ``(batch, samples)`` 1 at samples and 0 at padding, which is behind them.
            labels: ``(batch, tokens)`` the texts; negative numbers are padding.
            mask_time_indices: ``(batch, time)`` boolean, frames to hide (SpecAugment).
            output_hidden_states: also return the hidden states of all layers.
            output_attentions: refused, as by :class:`MambaHubertModel`.

        Returns:
            The CTC loss (with labels) and logits ``(batch, time, vocab_size)``.

        Raises:
            ConfigError: a label that is no token.
            DataError: as :class:`MambaHubertModel`.
        """
        if labels is not None and int(labels.max()) >= self.config.vocab_size:
            raise ConfigError(
                f"labels go up to {int(labels.max())}; expected below vocab_size={self.config.vocab_size}"
            )
        outputs = self.mamba_hubert(
            input_values,
            attention_mask=attention_mask,
            mask_time_indices=mask_time_indices,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        logits = self.lm_head(self.dropout(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            samples = torch.ones_like(input_values) if attention_mask is None else attention_mask
            spoken = labels >= 0
            loss = F.ctc_loss(
                logits.float().log_softmax(dim=-1).transpose(0, 1),
                labels.masked_select(spoken),
                self._get_feat_extract_output_lengths(samples.sum(dim=-1).to(torch.int64)),
                spoken.sum(dim=-1),
                blank=self.config.pad_token_id,
                reduction=self.config.ctc_loss_reduction,
                zero_infinity=self.config.ctc_zero_infinity,
            )
        return CausalLMOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)

    def init_streaming_state(self, batch_size: int = 1) -> MambaHubertState:
        """State of streams before their first samples, as :meth:`MambaHubertModel.init_streaming_state`."""
        return self.mamba_hubert.init_streaming_state(batch_size)

    def stream(
        self,
        input_values: Tensor,
        state: MambaHubertState,
        lengths: Tensor | None = None,
        final: bool | Tensor | Sequence[bool] = False,
    ) -> tuple[MambaHubertStreamingOutput, MambaHubertState]:
        """Logits of the next samples of a batch of streams; arguments and errors of :meth:`MambaHubertModel.stream`."""
        output, state = self.mamba_hubert.stream(input_values, state, lengths, final)
        hidden_states, frames = output.last_hidden_state, output.lengths
        logits = self.lm_head(self.dropout(hidden_states))
        assert frames is not None
        if min(frames.tolist()) < logits.shape[1]:
            valid = length_mask(frames, logits.shape[1]).to(logits.device)
            logits = logits.masked_fill(~valid[:, :, None], 0.0)
        return MambaHubertStreamingOutput(hidden_states, logits, frames), state


class MambaHubertForSequenceClassification(MambaHubertPreTrainedModel):
    """One class for each recording, from the mean of its projected frames.

    Args:
        config: sizes and options; ``num_labels`` classes.

    Source:
        SUPERB (arXiv 2105.01051), utterance-level tasks; module names of transformers'
        ``HubertForSequenceClassification``.
    """

    def __init__(self, config: MambaHubertConfig) -> None:
        super().__init__(config)
        self.mamba_hubert = MambaHubertModel(config)
        states = config.num_hidden_layers + 1
        self.layer_weights = (
            nn.Parameter(torch.full((states,), 1.0 / states)) if config.use_weighted_layer_sum else None
        )
        self.projector = nn.Linear(config.hidden_size, config.classifier_proj_size)
        self.classifier = nn.Linear(config.classifier_proj_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self and self.layer_weights is not None:
            init.constant_(self.layer_weights, 1.0 / len(self.layer_weights))

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> SequenceClassifierOutput:
        """Classify.

        Args:
            input_values: ``(batch, samples)`` waveforms.
            attention_mask: ``(batch, samples)`` 1 at samples and 0 at padding, which is behind them.
            labels: ``(batch,)`` classes.
            output_hidden_states: also return the hidden states of all layers.
            output_attentions: refused, as by :class:`MambaHubertModel`.

        Returns:
            The mean cross-entropy (with labels) and logits ``(batch, num_labels)``.

        Raises:
            DataError: as :class:`MambaHubertModel`.
        """
        weighted = self.layer_weights is not None
        outputs = self.mamba_hubert(
            input_values,
            attention_mask=attention_mask,
            output_hidden_states=True if weighted else output_hidden_states,
            return_dict=True,
        )
        hidden_states = outputs.last_hidden_state
        if self.layer_weights is not None:
            weights = self.layer_weights.softmax(dim=0)
            hidden_states = torch.einsum("l,lbtd->btd", weights, torch.stack(outputs.hidden_states))
        projected = self.projector(hidden_states)
        if attention_mask is None:
            pooled = projected.mean(dim=1)
        else:
            valid = self._get_feature_vector_attention_mask(projected.shape[1], attention_mask)[:, :, None]
            pooled = projected.masked_fill(~valid, 0.0).sum(dim=1) / valid.sum(dim=1).clamp(min=1)
        logits = self.classifier(pooled)
        return SequenceClassifierOutput(
            loss=None if labels is None else F.cross_entropy(logits, labels.flatten()),
            logits=logits,
            hidden_states=outputs.hidden_states if not weighted or output_hidden_states else None,
        )
