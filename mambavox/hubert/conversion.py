"""From and to other people's HuBERTs: transformers' models, and checkpoints of the released Mamba-HuBERT code."""

import ast
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import (
    HubertConfig,
    HubertForCTC,
    HubertForSequenceClassification,
    HubertModel,
    PreTrainedModel,
)

from mambavox.errors import ConfigError, DataError
from mambavox.hubert.configuration import MambaHubertConfig
from mambavox.hubert.heads import (
    MambaHubertForCTC,
    MambaHubertForPreTraining,
    MambaHubertForSequenceClassification,
)
from mambavox.hubert.modeling import MambaHubertModel, MambaHubertPreTrainedModel

_TWINS: dict[type[PreTrainedModel], type[MambaHubertPreTrainedModel]] = {
    HubertModel: MambaHubertModel,
    HubertForCTC: MambaHubertForCTC,
    HubertForSequenceClassification: MambaHubertForSequenceClassification,
}
# Fields of both configurations, with the same meaning.
_SHARED_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "do_stable_layer_norm",
    "layer_norm_eps",
    "initializer_range",
    "hidden_dropout",
    "attention_dropout",
    "activation_dropout",
    "feat_proj_dropout",
    "final_dropout",
    "layerdrop",
    "conv_dim",
    "conv_kernel",
    "conv_stride",
    "conv_bias",
    "feat_extract_norm",
    "feat_extract_activation",
    "num_conv_pos_embeddings",
    "num_conv_pos_embedding_groups",
    "vocab_size",
    "pad_token_id",
    "ctc_loss_reduction",
    "ctc_zero_infinity",
    "use_weighted_layer_sum",
    "classifier_proj_size",
    "id2label",
    "label2id",
)


def from_hubert(model: PreTrainedModel) -> MambaHubertPreTrainedModel:
    """The Transformer twin of a transformers HuBERT, with the same outputs.

    Args:
        model: ``HubertModel``, ``HubertForCTC`` or ``HubertForSequenceClassification``.

    Returns:
        The model of ours with the same head, on the CPU, in the same dtype and mode.

    Raises:
        ConfigError: another class, or an option that ours does not have (batch-normalised positions, features
            without norm, attention adapters).
    """
    if type(model) not in _TWINS:
        raise ConfigError(
            f"model is a {type(model).__name__}; expected transformers' {', '.join(known.__name__ for known in _TWINS)}"
        )
    source: Any = model.config
    for name, expected in (("conv_pos_batch_norm", False), ("feat_proj_layer_norm", True), ("adapter_attn_dim", None)):
        if getattr(source, name, expected) != expected:
            raise ConfigError(f"the model has {name}={getattr(source, name)!r}; a MambaHubert has only {expected!r}")
    shared = {name: getattr(source, name) for name in _SHARED_FIELDS}
    # transformers hands the whole gradient to the features.
    config = MambaHubertConfig(encoder="transformer", feature_grad_mult=1.0, **shared)
    twin = _TWINS[type(model)](config).to(model.dtype).train(model.training)
    states = {_prefixed(key, "hubert", "mamba_hubert"): tensor for key, tensor in model.state_dict().items()}
    # A HuBERT that never masks has no mask embedding; ours keeps a fresh one.
    states = {**{key: t for key, t in twin.state_dict().items() if key.endswith("masked_spec_embed")}, **states}
    _load(twin, states)
    return twin


def to_hubert(model: MambaHubertPreTrainedModel) -> PreTrainedModel:
    """The transformers HuBERT of a Transformer twin, with the same outputs.

    Args:
        model: ``MambaHubertModel``, ``MambaHubertForCTC`` or ``MambaHubertForSequenceClassification`` whose layers are
            all ``transformer``.

    Returns:
        The transformers model with the same head, on the CPU, in the same dtype and mode, without masking in training.

    Raises:
        ConfigError: another class, other layers, or causal positions.
    """
    classes = {ours: theirs for theirs, ours in _TWINS.items()}
    if type(model) not in classes:
        raise ConfigError(
            f"model is a {type(model).__name__}; expected {', '.join(known.__name__ for known in classes)}"
        )
    source = model.config
    others = sorted({kind.mixer for kind in source.layer_kinds} - {"transformer"})
    if others or source.causal_positions:
        raise ConfigError(
            f"the model has {' and '.join([f'{other} layers' for other in others] or ['causal positions'])}; a "
            "transformers HuBERT has only layers of kind 'transformer' and positions that see both sides"
        )
    shared = {name: getattr(source, name) for name in _SHARED_FIELDS}
    config = HubertConfig(**shared, apply_spec_augment=False)
    target = classes[type(model)](config).to(model.dtype).train(model.training)
    _load(target, {_prefixed(key, "mamba_hubert", "hubert"): tensor for key, tensor in model.state_dict().items()})
    return target


def _prefixed(key: str, old: str, new: str) -> str:
    return re.sub(rf"^{old}\.", f"{new}.", key)


# Names in checkpoints of the released code (fairseq's hubert with its Mamba encoders) and ours.
FAIRSEQ_KEYS = (
    (r"mask_emb", "masked_spec_embed"),
    (r"layer_norm\.(.*)", r"feature_projection.layer_norm.\1"),
    (r"post_extract_proj\.(.*)", r"feature_projection.projection.\1"),
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.(.*)", r"feature_extractor.conv_layers.\1.conv.\2"),
    # The group norm of the first layer, or every layer's layer norm, which stands between two transpositions.
    (r"feature_extractor\.conv_layers\.(\d+)\.2\.(?:1\.)?(.*)", r"feature_extractor.conv_layers.\1.layer_norm.\2"),
    (r"encoder\.pos_conv\.0\.bias", "encoder.pos_conv_embed.conv.bias"),
    (r"encoder\.pos_conv\.0\.weight_g", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"encoder\.pos_conv\.0\.weight_v", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
    (r"encoder\.layer_norm\.(.*)", r"encoder.layer_norm.\1"),
    (r"encoder\.layers\.(\d+)\.self_attn\.(.*)", r"encoder.layers.\1.attention.\2"),
    (r"encoder\.layers\.(\d+)\.(?:self_attn|mamba|bimamba)_layer_norm\.(.*)", r"encoder.layers.\1.layer_norm.\2"),
    (r"encoder\.layers\.(\d+)\.fc1\.(.*)", r"encoder.layers.\1.feed_forward.intermediate_dense.\2"),
    (r"encoder\.layers\.(\d+)\.fc2\.(.*)", r"encoder.layers.\1.feed_forward.output_dense.\2"),
    (r"encoder\.layers\.(\d+)\.final_layer_norm\.(.*)", r"encoder.layers.\1.final_layer_norm.\2"),
    (r"encoder\.layers\.(\d+)\.mamba\.(.*)", r"encoder.layers.\1.mamba.\2"),
    (r"encoder\.layers\.(\d+)\.mamba_rev\.(.*)", r"encoder.layers.\1.mamba.backward_mamba.\2"),
)
"""Regular expressions for whole names, and what takes their place in :class:`MambaHubertModel`."""

# fairseq's dictionaries begin with tokens for start, padding, end and unknown, which no frame is ever labelled with.
_SPECIAL_TOKENS = 4


def from_fairseq(
    state_dict: Mapping[str, Tensor], model_config: Mapping[str, Any], sampling_rate: int = 16_000
) -> MambaHubertForPreTraining:
    """A model of the released Mamba-HuBERT code, or any HuBERT of fairseq's.

    Positions stay as they were trained: around the frame, also where the layers are causal, so that the model sees 63
    frames ahead and ``config.causal`` is false. The released bidirectional models padded odd numbers of frames to even
    ones and let the backward direction begin at the frame added; ours begins at the last frame.

    Args:
        state_dict: the checkpoint's ``["model"]``.
        model_config: its ``["cfg"]["model"]`` (in a file converted for s3prl ``["model_cfg"]``).
        sampling_rate: of its data in Hz.

    Returns:
        The model on the CPU in evaluation mode; ``codebook`` row ``i`` is unit ``i`` of the label files.

    Raises:
        ConfigError: an option that ours does not have.
        DataError: names or shapes in the checkpoint that do not fit its configuration; the message lists them.

    Source:
        Names as in the code released with arXiv 2506.12606 (fairseq's ``hubert``, layer types ``mambaformer``,
        ``bimambaformer``, ``mamba2former``).
    """
    states: dict[str, Tensor] = {}
    unknown = []
    bidirectional = model_config.get("layer_type") == "bimambaformer"
    for name, tensor in state_dict.items():
        if name.startswith("final_proj."):
            states[name] = tensor
        elif name == "label_embs_concat":
            states["codebook"] = tensor[_SPECIAL_TOKENS:]
        elif (renamed := _rename(name, bidirectional)) is not None:
            states[f"mamba_hubert.{renamed}"] = tensor
        else:
            unknown.append(name)
    if unknown:
        raise DataError(f"the checkpoint holds {', '.join(unknown)}; expected only names of the released code")
    for name in ("codebook", "final_proj.weight"):
        if name not in states:
            asked = "label_embs_concat" if name == "codebook" else name
            raise DataError(f"the checkpoint has no {asked}; expected one of pre-training, not of fine-tuning")
    config = _fairseq_config(model_config, sampling_rate, *states["codebook"].shape)
    model = MambaHubertForPreTraining(config).eval()
    _load(model, states)
    return model


def _rename(name: str, bidirectional: bool) -> str | None:
    for pattern, replacement in FAIRSEQ_KEYS:
        if re.fullmatch(pattern, name):
            if bidirectional:
                replacement = replacement.replace(".mamba.\\2", ".mamba.forward_mamba.\\2")
            return re.sub(pattern, replacement, name)
    return None


def _fairseq_config(
    options: Mapping[str, Any], sampling_rate: int, num_clusters: int, proj_size: int
) -> MambaHubertConfig:
    layer_type = options.get("layer_type", "transformer")
    width = options.get("encoder_ffn_embed_dim", 3072)
    mlp = "-mlp" if width > 0 else ""
    encoders = {
        "transformer": "causal-transformer" if options.get("causal_attn", False) else "transformer",
        "mambaformer": f"mamba{mlp}",
        "bimambaformer": f"ext-bimamba{mlp}",
        "mamba2former": "mamba2",
    }
    if layer_type not in encoders:
        raise ConfigError(f"layer_type is {layer_type!r}; expected {', '.join(encoders)}")
    if layer_type == "mamba2former" and mlp:
        raise ConfigError(
            f"layer_type is 'mamba2former' with encoder_ffn_embed_dim {width}; a MambaHubert has mamba2 layers without "
            "a feed-forward sublayer only: expected 0"
        )
    for option in ("target_glu", "conv_pos_batch_norm"):
        if options.get(option, False):
            raise ConfigError(f"{option} is set; a MambaHubert does not have it")
    convolutions = _convolutions(options.get("conv_feature_layers", "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"))
    conv_dim, conv_kernel, conv_stride = zip(*convolutions, strict=True)
    intermediate = "intermediate_size" if layer_type == "transformer" else "mamba_intermediate_size"
    return MambaHubertConfig(
        encoder=encoders[layer_type],
        hidden_size=options.get("encoder_embed_dim", 768),
        num_hidden_layers=options.get("encoder_layers", 12),
        d_state=options.get("mamba_ssm_state_expand", 16),
        d_conv=options.get("mamba_conv_kernel_size", 4),
        expand=options.get("mamba_block_expand", 2),
        headdim=options.get("mamba_head_dim", 48),
        num_attention_heads=options.get("encoder_attention_heads", 12),
        hidden_act=options.get("activation_fn", "gelu"),
        do_stable_layer_norm=options.get("layer_norm_first", False),
        hidden_dropout=options.get("dropout", 0.1),
        attention_dropout=options.get("attention_dropout", 0.1),
        activation_dropout=options.get("activation_dropout", 0.0),
        feat_proj_dropout=options.get("dropout_input", 0.0),
        layerdrop=options.get("encoder_layerdrop", 0.0),
        conv_dim=conv_dim,
        conv_kernel=conv_kernel,
        conv_stride=conv_stride,
        conv_bias=options.get("conv_bias", False),
        feat_extract_norm={"default": "group", "layer_norm": "layer"}[options.get("extractor_mode", "default")],
        num_conv_pos_embeddings=options.get("conv_pos", 128),
        num_conv_pos_embedding_groups=options.get("conv_pos_groups", 16),
        causal_positions=False,
        feature_grad_mult=options.get("feature_grad_mult", 1.0),
        sampling_rate=sampling_rate,
        num_clusters=num_clusters,
        proj_size=proj_size,
        logit_temp=options.get("logit_temp", 0.1),
        mask_prob=options.get("mask_prob", 0.65),
        mask_length=options.get("mask_length", 10),
        **({intermediate: width} if mlp else {}),
    )


def _convolutions(text: str) -> list[tuple[int, int, int]]:
    """``[(512,10,5)] + [(512,3,2)] * 4`` to its triples, without running it as code."""

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return value(node.left) + value(node.right)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            return value(node.left) * value(node.right)
        return ast.literal_eval(node)

    try:
        return [(channels, kernel, stride) for channels, kernel, stride in value(ast.parse(text, mode="eval").body)]
    except (SyntaxError, TypeError, ValueError) as error:
        raise ConfigError(f"conv_feature_layers is {text!r}; expected lists of (channels, kernel, stride)") from error


def _load(model: PreTrainedModel, states: Mapping[str, Tensor]) -> None:
    """Every tensor into its place; none left over, none left out."""
    expected = model.state_dict()
    wrong = [f"{name} is missing" for name in expected if name not in states]
    wrong += [f"{name} has no place" for name in states if name not in expected]
    wrong += [
        f"{name} is {tuple(tensor.shape)} where {tuple(expected[name].shape)} is expected"
        for name, tensor in states.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    if wrong:
        raise DataError(f"the tensors do not fit the configuration: {'; '.join(wrong)}")
    with torch.no_grad():
        for name, tensor in states.items():
            expected[name].copy_(tensor)
