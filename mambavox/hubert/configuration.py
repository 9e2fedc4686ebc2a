"""Sizes and options of a Mamba-HuBERT, and the published ones by name."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from difflib import get_close_matches
from math import prod
from typing import Any, NamedTuple

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from mambavox.errors import ConfigError


class EncoderKind(NamedTuple):
    """One kind of encoder layer.

    Attributes:
        mixer: what mixes frames: ``mamba``, ``ext-bimamba``, ``inn-bimamba``, ``mamba2``, ``transformer`` (attention to
            all frames) or ``causal-transformer`` (to earlier ones).
        mlp: whether a feed-forward sublayer follows.
        causal: whether a frame sees no later one.
    """

    mixer: str
    mlp: bool
    causal: bool


ENCODER_KINDS = {
    "mamba": EncoderKind("mamba", mlp=False, causal=True),
    "mamba-mlp": EncoderKind("mamba", mlp=True, causal=True),
    "ext-bimamba": EncoderKind("ext-bimamba", mlp=False, causal=False),
    "ext-bimamba-mlp": EncoderKind("ext-bimamba", mlp=True, causal=False),
    "inn-bimamba": EncoderKind("inn-bimamba", mlp=False, causal=False),
    "inn-bimamba-mlp": EncoderKind("inn-bimamba", mlp=True, causal=False),
    "mamba2": EncoderKind("mamba2", mlp=False, causal=True),
    "transformer": EncoderKind("transformer", mlp=True, causal=False),
    "causal-transformer": EncoderKind("causal-transformer", mlp=True, causal=True),
}

# What the kinds of one size share, then what differs. A hybrid has what its size shares.
_NANO = {
    "hidden_size": 192,
    "num_hidden_layers": 12,
    "conv_dim": (128,) * 7,
    "d_state": 16,
    "expand": 2,
    "num_attention_heads": 4,
    "intermediate_size": 592,
    "mamba_intermediate_size": 320,
    # Hours of speech and thousands of updates do not teach the front end what hundreds of hours do: it is spared what
    # slows it down, and hears what the units are of.
    "feature_grad_mult": 1.0,
    "feature_penalty": 0.0,
    "mask_prob": 0.5,
    "unmasked_weight": 1.0,
}
_SMALL = {"hidden_size": 384, "intermediate_size": 1024, "mamba_intermediate_size": 1024}
_SIZES: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    # 3.78 M parameters with the pre-training head in every kind (3.87 M inn-bimamba, whose layers are coarse steps).
    "nano": (
        _NANO,
        {
            "mamba-mlp": {"num_hidden_layers": 8},
            "ext-bimamba": {"num_hidden_layers": 6},
            "ext-bimamba-mlp": {"num_hidden_layers": 4, "mamba_intermediate_size": 656},
            "inn-bimamba": {"num_hidden_layers": 11},
            "inn-bimamba-mlp": {"num_hidden_layers": 7, "mamba_intermediate_size": 384},
            "mamba2": {"num_hidden_layers": 13},
            "transformer": {"num_hidden_layers": 8},
            "causal-transformer": {"num_hidden_layers": 8},
        },
    ),
    "small": (
        _SMALL,
        {"ext-bimamba": {"num_hidden_layers": 6}, "ext-bimamba-mlp": {"num_hidden_layers": 6}},
    ),
    # The 94.3 M printed for ExtBiMamba fit no released configuration; its six-layer one has the parameters of Mamba.
    "base": (
        {},
        {
            "ext-bimamba": {"num_hidden_layers": 6},
            "ext-bimamba-mlp": {"num_hidden_layers": 6, "mamba_intermediate_size": 1792},
            "inn-bimamba-mlp": {"mamba_intermediate_size": 640},
        },
    ),
}
SIZES = tuple(_SIZES)


class MambaHubertConfig(PreTrainedConfig):
    """Configuration of a Mamba-HuBERT; names are those of transformers' ``HubertConfig`` where it has them.

    The defaults are the Mamba base of the paper, but for the front end's norm: its group norm takes statistics over
    the whole recording, so that frames depend on the future and on the padding. :meth:`nano`, :meth:`small` and
    :meth:`base` are the sizes by name.

    Attributes:
        encoder: kind of every layer, a key of ``ENCODER_KINDS``, or a list with one kind a layer (a hybrid).
        hidden_size: width of the hidden states.
        num_hidden_layers: number of layers; the length of ``encoder`` where that is a list.
        d_state: state size of a Mamba layer.
        d_conv: width of a Mamba layer's convolution in frames.
        expand: ``d_inner = expand * hidden_size`` in a Mamba layer.
        headdim: channels of a head of a ``mamba2`` layer; divides ``expand * hidden_size``.
        mamba_intermediate_size: inner width of the feed-forward sublayer of a ``-mlp`` layer.
        num_attention_heads: heads of an attention layer; divides ``hidden_size``.
        intermediate_size: inner width of the feed-forward sublayer of an attention layer.
        hidden_act: activation inside feed-forward sublayers.
        do_stable_layer_norm: norms before sublayers and at the end (pre-norm) in place of after them (post-norm).
        layer_norm_eps: added to the variance in the layer norms outside the convolutional feature extractor.
        initializer_range: standard deviation of linear layers at initialisation; Mamba blocks have their own.
        hidden_dropout: dropout after the positions and after sublayers.
        attention_dropout: dropout of attention weights.
        activation_dropout: dropout inside feed-forward sublayers.
        feat_proj_dropout: dropout of the projected features.
        final_dropout: dropout before the CTC head.
        layerdrop: probability of leaving a layer out in a training step (Fan et al. 2019, arXiv 1909.11556).
        conv_dim: channels of the convolutional feature extractor's layers.
        conv_kernel: their kernels, in frames of the layer before.
        conv_stride: their strides; the product is the number of samples between frames.
        conv_bias: whether they have biases; where not given, with layer norms. Without, digital silence is zero in
            every layer, each of whose norms multiplies its gradient by 316, until it overflows.
        feat_extract_norm: ``layer`` normalises every layer frame by frame; ``group`` the first layer over time, as in
            the published HuBERT and Mamba-HuBERT: frames then depend on later samples and on padding.
        feat_extract_activation: activation of the convolutional feature extractor and of the positions.
        num_conv_pos_embeddings: kernel of the convolutional positions in frames.
        num_conv_pos_embedding_groups: their groups.
        causal_positions: positions see earlier frames only; where not given, as all layers do. The released code has
            ``False`` also with causal layers, which then see 63 frames (1.26 s) ahead.
        feature_grad_mult: factor of the gradient that reaches the convolutional feature extractor.
        sampling_rate: of the input in Hz.
        num_clusters: units that pre-training predicts.
        proj_size: width in which they are compared with frames.
        logit_temp: temperature by which cosines are divided.
        mask_prob: expected share of frames that masked spans would cover without overlaps.
        mask_length: frames of a span.
        unmasked_weight: weight in the pre-training loss of frames that are not hidden; 0 as published. With some, a
            short training on little speech learns at all: the front end hears what the units are of.
        feature_penalty: weight of the mean squared feature in the pre-training loss.
        vocab_size: tokens of the CTC head.
        pad_token_id: the CTC blank.
        ctc_loss_reduction: ``mean`` (by target lengths, then over rows) or ``sum``.
        ctc_zero_infinity: zero where a text is too long for its recording, in place of an infinite loss.
        use_weighted_layer_sum: classify a learned average of all hidden states, in place of the last.
        classifier_proj_size: width of the projection before classification.

    Raises:
        ConfigError: a value that is unknown or does not fit the others.

    Source:
        Mamba-based HuBERT (arXiv 2506.12606) and its released configurations; HuBERT (arXiv 2106.07447).
    """

    model_type = "mamba-hubert"

    encoder: str | list[str] | tuple[str, ...] = "mamba"
    hidden_size: int = 768
    num_hidden_layers: int = 12
    d_state: int = 24
    d_conv: int = 4
    expand: int = 3
    headdim: int = 48
    mamba_intermediate_size: int = 896
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    do_stable_layer_norm: bool = False
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    feat_proj_dropout: float = 0.1
    final_dropout: float = 0.1
    layerdrop: float = 0.05
    conv_dim: list[int] | tuple[int, ...] = (512,) * 7
    conv_kernel: list[int] | tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: list[int] | tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool | None = None
    feat_extract_norm: str = "layer"
    feat_extract_activation: str = "gelu"
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    causal_positions: bool | None = None
    feature_grad_mult: float = 0.1
    sampling_rate: int = 16_000
    num_clusters: int = 500
    proj_size: int = 256
    logit_temp: float = 0.1
    mask_prob: float = 0.8
    mask_length: int = 10
    unmasked_weight: float = 0.0
    feature_penalty: float = 10.0
    vocab_size: int = 32
    pad_token_id: int = 0
    ctc_loss_reduction: str = "mean"
    ctc_zero_infinity: bool = False
    use_weighted_layer_sum: bool = False
    classifier_proj_size: int = 256

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        # Lists, as they come back from JSON.
        for name in ("conv_dim", "conv_kernel", "conv_stride"):
            setattr(self, name, list(getattr(self, name)))
        if not isinstance(self.encoder, str):
            self.encoder = list(self.encoder)
        self._check()
        if self.conv_bias is None:
            self.conv_bias = self.feat_extract_norm == "layer"
        if self.causal_positions is None:
            self.causal_positions = all(kind.causal for kind in self.layer_kinds)

    @classmethod
    def nano(cls, encoder: str | Sequence[str] = "mamba", **overrides: Any) -> "MambaHubertConfig":
        """About 3.8 M parameters, whatever the kind: for studies on little speech and for CPUs.

        Args:
            encoder: kind of every layer, or one kind for each.
            overrides: any fields.

        Raises:
            ConfigError: an unknown kind or field.
        """
        return cls._size("nano", encoder, overrides)

    @classmethod
    def small(cls, encoder: str | Sequence[str] = "mamba", **overrides: Any) -> "MambaHubertConfig":
        """The paper's small models, 22 to 25 M parameters without ``-mlp``; arguments are those of :meth:`nano`."""
        return cls._size("small", encoder, overrides)

    @classmethod
    def base(cls, encoder: str | Sequence[str] = "mamba", **overrides: Any) -> "MambaHubertConfig":
        """The paper's base models, 74 to 95 M parameters; arguments are those of :meth:`nano`."""
        return cls._size("base", encoder, overrides)

    @classmethod
    def _size(cls, size: str, encoder: str | Sequence[str], overrides: dict[str, Any]) -> "MambaHubertConfig":
        known = {field.name for field in fields(cls)} | {"num_labels"}
        for name in overrides:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                raise ConfigError(
                    f"MambaHubertConfig has no field {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
                )
        shared, by_kind = _SIZES[size]
        own = by_kind.get(encoder, {}) if isinstance(encoder, str) else {"num_hidden_layers": len(encoder)}
        return cls(**{**shared, **own, **overrides, "encoder": encoder})

    @property
    def layer_kinds(self) -> list[EncoderKind]:
        """Kind of each layer, first to last."""
        names = [self.encoder] * self.num_hidden_layers if isinstance(self.encoder, str) else self.encoder
        return [ENCODER_KINDS[name] for name in names]

    @property
    def causal(self) -> bool:
        """Whether no output frame depends on a sample after its receptive field: layers, positions and front end."""
        layers = all(kind.causal for kind in self.layer_kinds)
        return layers and bool(self.causal_positions) and self.feat_extract_norm == "layer"

    @property
    def inputs_to_logits_ratio(self) -> int:
        """Samples between frames (transformers' name)."""
        return prod(self.conv_stride)

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.sampling_rate / self.inputs_to_logits_ratio

    @property
    def receptive_field(self) -> int:
        """Samples that one frame of the convolutional feature extractor sees: the shortest input."""
        samples = 1
        for kernel, stride in zip(reversed(self.conv_kernel), reversed(self.conv_stride), strict=True):
            samples = (samples - 1) * stride + kernel
        return samples

    def _check(self) -> None:
        kinds = [self.encoder] if isinstance(self.encoder, str) else self.encoder
        for kind in kinds:
            if kind not in ENCODER_KINDS:
                raise ConfigError(f"encoder names {kind!r}; expected {', '.join(ENCODER_KINDS)}, or a list of them")
        if not isinstance(self.encoder, str) and len(self.encoder) != self.num_hidden_layers:
            raise ConfigError(
                f"encoder lists {len(self.encoder)} layers and num_hidden_layers is {self.num_hidden_layers}; "
                "expected one kind a layer"
            )
        if not len(self.conv_dim) == len(self.conv_kernel) == len(self.conv_stride) >= 1:
            raise ConfigError(
                f"conv_dim, conv_kernel and conv_stride have {len(self.conv_dim)}, {len(self.conv_kernel)} and "
                f"{len(self.conv_stride)} entries; expected one each for every layer, and at least one layer"
            )
        mixers = {ENCODER_KINDS[kind].mixer for kind in kinds}
        divisors = [("num_conv_pos_embedding_groups", "hidden_size", self.hidden_size)]
        if mixers & {"transformer", "causal-transformer"}:
            divisors.append(("num_attention_heads", "hidden_size", self.hidden_size))
        if "mamba2" in mixers:
            divisors.append(("headdim", "expand * hidden_size", self.expand * self.hidden_size))
        for name, of, whole in divisors:
            if getattr(self, name) < 1 or whole % getattr(self, name):
                raise ConfigError(f"{name} is {getattr(self, name)}; expected a divisor of {of} = {whole}")
        choices: dict[str, Iterable[str]] = {
            "feat_extract_norm": ("layer", "group"),
            "ctc_loss_reduction": ("mean", "sum"),
            "hidden_act": ACT2FN,
            "feat_extract_activation": ACT2FN,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(allowed)}")
        for name in ("num_hidden_layers", "num_conv_pos_embeddings", "num_clusters", "proj_size", "mask_length"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("mask_prob", "layerdrop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected a probability, 0 to 1")
        if self.unmasked_weight < 0:
            raise ConfigError(f"unmasked_weight is {self.unmasked_weight}; expected 0 or more")
        if self.logit_temp <= 0:
            raise ConfigError(f"logit_temp is {self.logit_temp}; expected above 0")
