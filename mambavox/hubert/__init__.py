"""Mamba-HuBERT: self-supervised speech models with Mamba, Mamba-2, bidirectional Mamba or attention layers.

Importing this room makes transformers' Auto classes and pipelines know the models.
"""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForCTC,
    AutoModelForPreTraining,
    Wav2Vec2FeatureExtractor,
)

from mambavox.hubert.approximate_streaming import stream_in_chunks
from mambavox.hubert.configuration import ENCODER_KINDS, SIZES, MambaHubertConfig
from mambavox.hubert.conversion import from_fairseq, from_hubert, to_hubert
from mambavox.hubert.heads import (
    MambaHubertForCTC,
    MambaHubertForPreTraining,
    MambaHubertForPreTrainingOutput,
    MambaHubertForSequenceClassification,
)
from mambavox.hubert.masking import sample_span_mask
from mambavox.hubert.modeling import MambaHubertModel, MambaHubertPreTrainedModel
from mambavox.hubert.streaming import MambaHubertState, MambaHubertStreamingOutput

__all__ = [
    "ENCODER_KINDS",
    "SIZES",
    "MambaHubertConfig",
    "MambaHubertForCTC",
    "MambaHubertForPreTraining",
    "MambaHubertForPreTrainingOutput",
    "MambaHubertForSequenceClassification",
    "MambaHubertModel",
    "MambaHubertPreTrainedModel",
    "MambaHubertState",
    "MambaHubertStreamingOutput",
    "from_fairseq",
    "from_hubert",
    "sample_span_mask",
    "stream_in_chunks",
    "to_hubert",
]

AutoConfig.register(MambaHubertConfig.model_type, MambaHubertConfig)
AutoFeatureExtractor.register(MambaHubertConfig, Wav2Vec2FeatureExtractor)
AutoModel.register(MambaHubertConfig, MambaHubertModel)
AutoModelForPreTraining.register(MambaHubertConfig, MambaHubertForPreTraining)
AutoModelForCTC.register(MambaHubertConfig, MambaHubertForCTC)
AutoModelForAudioClassification.register(MambaHubertConfig, MambaHubertForSequenceClassification)
