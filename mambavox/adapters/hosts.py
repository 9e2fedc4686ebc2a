"""Where the hosts keep their sublayers: the only place that knows AST, Whisper, wav2vec2, HuBERT, WavLM, Mamba-HuBERT.

Everything is found by structure, not by size or class: a list called ``layers`` whose elements have the parts of one
of the known forms each. A host may sit anywhere inside a larger module.
"""

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor, nn

from mambavox.adapters.tokens import TokenGrid
from mambavox.errors import HostError

HOSTS = "AST, Whisper, wav2vec2, HuBERT, WavLM, Mamba-HuBERT"
HEAD_MODULES = ("projector", "classifier", "lm_head")
"""What the hosts' classification and CTC models call the modules after the backbone."""


@dataclass(frozen=True)
class LayerForm:
    """Names of the parts of one family's transformer layer, in its pre-norm variant.

    Attributes:
        attention: the self-attention module, or the Mamba block in its place.
        attention_norm: the norm that feeds it.
        ffn_input: the module whose input is the feed-forward sublayer's input; none where there is no such sublayer.
        ffn_output: the module whose output is its output; the same one where the sublayer is a module of its own.
        ffn_norm: the norm that feeds it.
        stack_norm: the norm beside the list of layers.
        lora: names of the projections of the attention, or the block, that LoRA adapts.
        ia3: of those whose output IA3 scales.
        is_mamba: whether a Mamba block is in attention's place.
    """

    attention: str
    attention_norm: str
    ffn_input: str | None
    ffn_output: str | None
    ffn_norm: str | None
    stack_norm: str
    lora: tuple[str, ...] = ("q_proj", "v_proj")
    ia3: tuple[str, ...] = ("k_proj", "v_proj")
    is_mamba: bool = False

    def fits(self, holder: nn.Module, layer: nn.Module) -> bool:
        """Whether a layer, and the module that holds the list of layers, have all the parts."""
        parts = (self.attention, self.attention_norm, self.ffn_input, self.ffn_output, self.ffn_norm)
        return hasattr(holder, self.stack_norm) and all(part is None or hasattr(layer, part) for part in parts)

    @property
    def last_norm(self) -> str:
        """The norm that feeds its last sublayer; in a post-norm layer the one that ends it."""
        return self.ffn_norm or self.attention_norm


FORMS = (
    # AST
    LayerForm("attention", "layernorm_before", "mlp", "mlp", "layernorm_after", "layernorm"),
    # Whisper: the feed-forward sublayer lies loose in the layer
    LayerForm("self_attn", "self_attn_layer_norm", "fc1", "fc2", "final_layer_norm", "layer_norm"),
    # wav2vec2, HuBERT, WavLM
    LayerForm("attention", "layer_norm", "feed_forward", "feed_forward", "final_layer_norm", "layer_norm"),
    # Mamba-HuBERT, whose attention layers are of the form above, with a feed-forward sublayer and without. Both blocks
    # of a bidirectional layer have projections of the same names.
    LayerForm(
        "mamba",
        "layer_norm",
        "feed_forward",
        "feed_forward",
        "final_layer_norm",
        "layer_norm",
        lora=("in_proj", "out_proj"),
        ia3=("in_proj",),
        is_mamba=True,
    ),
    LayerForm(
        "mamba",
        "layer_norm",
        None,
        None,
        None,
        "layer_norm",
        lora=("in_proj", "out_proj"),
        ia3=("in_proj",),
        is_mamba=True,
    ),
)


@dataclass(frozen=True)
class Sublayer:
    """One sublayer of a host.

    Attributes:
        stack: the stack it belongs to.
        layer: index of its layer.
        role: what it is.
        target: name of the module whose output is the sublayer's output.
        input_of: name of the module whose input is the sublayer's input.
        norm: name of the norm whose output the sublayer reads.
        attention: name of the self-attention of its layer.
        width: size of its input and output.
    """

    stack: "Stack"
    layer: int
    role: Literal["ffn", "attention"]
    target: str
    input_of: str
    norm: str
    attention: str

    @property
    def width(self) -> int:
        """Size of its input and output."""
        return self.stack.width


@dataclass(frozen=True)
class Stack:
    """One stack of transformer layers of a host.

    Attributes:
        holder: name of the module that holds the list ``layers``.
        kind: a decoder has attention to an encoder.
        forms: of the layers, first to last.
        width: size of the hidden states.
        post_norm: whether norms follow the sublayers (``LN(x + F(x))``) instead of feeding them.
        tokens: how the tokens lie on time and frequency.
        takes_masks: whether its layers are given attention masks, and not the rows' lengths.
        windowed: whether every input is a log-mel spectrogram of one length, short clips padded (Whisper).
    """

    holder: str
    kind: Literal["encoder", "decoder"]
    forms: tuple[LayerForm, ...]
    width: int
    post_norm: bool
    tokens: TokenGrid
    takes_masks: bool
    windowed: bool = False

    @property
    def num_layers(self) -> int:
        """How many layers."""
        return len(self.forms)

    @property
    def final_norm(self) -> str:
        """Name of the norm through which the stack's output passes.

        In a post-norm host that is the last layer's own last norm; the one beside the layers feeds the first layer.
        """
        return self._last_norm(self.num_layers - 1) if self.post_norm else self.stack_norm

    @property
    def stack_norm(self) -> str:
        """Name of the norm beside the layers."""
        return _join(self.holder, self.forms[0].stack_norm)

    def layer(self, index: int) -> str:
        """Name of a layer."""
        return _join(self.holder, "layers", str(index))

    def _part(self, layer: int, part: str) -> str:
        return _join(self.layer(layer), part)

    def _last_norm(self, layer: int) -> str:
        return self._part(layer, self.forms[layer].last_norm)

    def _norm(self, layer: int, role: str) -> str:
        """Name of the norm whose output a sublayer reads, whether norms stand before or after sublayers."""
        form = self.forms[layer]
        if role == "ffn":
            return self._part(layer, form.attention_norm) if self.post_norm else self._last_norm(layer)
        if not self.post_norm:
            return self._part(layer, form.attention_norm)
        return self._last_norm(layer - 1) if layer else self.stack_norm

    def sublayers(self) -> list[Sublayer]:
        """All sublayers in the order in which they run."""
        found = []
        for layer, form in enumerate(self.forms):
            attention = self._part(layer, form.attention)
            norm, ffn_norm = self._norm(layer, "attention"), self._norm(layer, "ffn")
            found.append(Sublayer(self, layer, "attention", attention, attention, norm, attention))
            if form.ffn_input is not None and form.ffn_output is not None:
                ffn_input, ffn_output = self._part(layer, form.ffn_input), self._part(layer, form.ffn_output)
                found.append(Sublayer(self, layer, "ffn", ffn_output, ffn_input, ffn_norm, attention))
        return found

    def lora_projections(self) -> str:
        """Regular expression for the projections inside this stack's self-attention, or its blocks, for LoRA."""
        return "|".join(self._inside(form.attention, form.lora, form.is_mamba) for form in self._kinds())

    def ia3_projections(self) -> str:
        """The same for IA3."""
        return "|".join(self._inside(form.attention, form.ia3, form.is_mamba) for form in self._kinds())

    def ffn_parts(self, names: Iterable[str]) -> str:
        """Regular expression for modules inside this stack's feed-forward sublayers."""
        parts = {form.ffn_output: None for form in self.forms if form.ffn_output is not None}
        return "|".join(self._inside(part, names) for part in parts)

    def last_linear(self, model: nn.Module) -> str | None:
        """Regular expression for the linear layers that end this stack's feed-forward sublayers, if it has any."""
        sublayer = next((sublayer for sublayer in self.sublayers() if sublayer.role == "ffn"), None)
        if sublayer is None:
            return None
        part = str(self.forms[sublayer.layer].ffn_output)
        modules = model.get_submodule(sublayer.target).named_modules()
        inside = [name for name, module in modules if isinstance(module, nn.Linear)]
        return self._inside(_join(part, inside[-1]), ())

    def _kinds(self) -> list[LayerForm]:
        """The forms of its layers, each attention or block once."""
        return list({form.attention: form for form in self.forms}.values())

    def _inside(self, part: str, names: Iterable[str], deep: bool = False) -> str:
        # Ends of names only, so that the same adapter loads into the base model and into a model with a head.
        holder = f"{self.kind}\\." if self.holder.endswith(self.kind) else ""
        ends = "|".join(names)
        between = r"(.*\.)?" if deep else ""
        return rf"(.*\.)?{holder}layers\.\d+\.{part}" + (rf"\.{between}({ends})" if ends else "")


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def find_stacks(model: nn.Module) -> list[Stack]:
    """The stacks of transformer layers in a model.

    Args:
        model: a host, or any module that contains one; adapters may already be attached.

    Returns:
        At least one stack, in the order of the model's modules.

    Raises:
        HostError: there is none.
    """
    found = []
    for name, layers in model.named_modules():
        holder_name, _, last = name.rpartition(".")
        if last != "layers" or not isinstance(layers, nn.ModuleList) or not len(layers):
            continue
        holder = model.get_submodule(holder_name)
        forms = [next((form for form in FORMS if form.fits(holder, layer)), None) for layer in layers]
        known = tuple(form for form in forms if form is not None)
        if len(known) != len(layers):
            continue
        config = getattr(holder, "config", None)
        found.append(
            Stack(
                holder=holder_name,
                kind="decoder" if hasattr(layers[0], "encoder_attn") else "encoder",
                forms=known,
                width=getattr(holder, known[0].stack_norm).weight.shape[0],
                # Only the wav2vec2 family has both variants, told apart by its configuration.
                post_norm=not getattr(config, "do_stable_layer_norm", True),
                tokens=_token_grid(config),
                takes_masks=getattr(config, "model_type", None) != "mamba-hubert",
                windowed=hasattr(holder, "conv1") and hasattr(holder, "conv2"),
            )
        )
    if not found:
        raise HostError(
            f"{type(model).__name__} is not a known backbone; expected a transformers model of {HOSTS} "
            "(any size, with or without a head), or a module that contains one"
        )
    return found


def _token_grid(config: Any) -> TokenGrid:
    if not hasattr(config, "frequency_stride"):
        return TokenGrid()
    # AST: a class and a distillation token, then its patches band by band.
    return TokenGrid(special_tokens=2, bands=(config.num_mel_bins - config.patch_size) // config.frequency_stride + 1)


def valid_keys(attention_mask: Any) -> Tensor:
    """What may be attended to in each row, from the mask that a host's self-attention is given.

    Args:
        attention_mask: ``(batch, keys)``, true (1) at valid keys (WavLM, flash attention), or
            ``(batch, 1, queries, keys)``, true or, added to the scores, 0 at valid keys (SDPA, eager). Of a causal one
            the last query is taken, before which all keys lie.

    Returns:
        ``(batch, keys)``, true at valid keys.

    Raises:
        HostError: another kind of mask.
    """
    if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
        return attention_mask.bool()
    if isinstance(attention_mask, Tensor) and attention_mask.dim() == 4:
        row = attention_mask[:, 0, -1]
        return row if row.dtype == torch.bool else row == 0
    raise HostError(
        f"the backbone's attention was given a {type(attention_mask).__name__} as its mask, of which a temporal "
        "adapter cannot tell the rows' lengths; expected attn_implementation 'sdpa', 'eager' or 'flash_attention_2'"
    )


def mask_lengths(attention_mask: Any) -> Tensor:
    """Valid frames of each row of an encoder, padding on the right: ``(batch,)``.

    Args:
        attention_mask: as :func:`valid_keys`; or the lengths themselves (Mamba-HuBERT).

    Raises:
        HostError: as :func:`valid_keys`.
    """
    if isinstance(attention_mask, Tensor) and attention_mask.dim() == 1:
        return attention_mask
    return valid_keys(attention_mask).sum(-1)


def attention_cache(keywords: Mapping[str, Any]) -> Any:
    """The key-value cache among the keywords of a decoder's self-attention, if any.

    transformers calls it ``past_key_values`` up to 5.23 and ``cache`` from 5.24.
    """
    return next((keywords[name] for name in ("cache", "past_key_values") if keywords.get(name) is not None), None)


def window_lengths(input_features: Tensor) -> Tensor:
    """Frames of each log-mel window that hold sound; padding is the constant stretch at its end.

    Whisper's feature extractor pads the waveform with silence, so that every band of a padding frame is at one floor;
    its long-form generation pads the spectrogram with zeros. A clip that itself ends in digital silence looks the same,
    and is treated so.

    Args:
        input_features: ``(batch, mel, frames)``.

    Returns:
        ``(batch,)``, at least 1.
    """
    last = input_features[:, :1, -1:]
    frames = torch.arange(1, input_features.shape[-1] + 1, device=input_features.device)
    return ((input_features != last).any(1) * frames).amax(-1).clamp(min=1)


def describe_stacks(stacks: Iterable[Stack]) -> str:
    """What a backbone has, for error messages."""
    return "; ".join(_describe(stack) for stack in stacks)


def _describe(stack: Stack) -> str:
    words = [f"{stack.kind} {stack.holder or 'model'!r}: layers 0..{stack.num_layers - 1}"]
    for role in ("ffn", "attention"):
        found = next((sublayer.target for sublayer in stack.sublayers() if sublayer.role == role), None)
        words.append(f"no {role}" if found is None else f"{role} such as {found!r}")
    return ", ".join(words)


def matches(names: Iterable[str] | str | None, key: str) -> bool:
    """PEFT's rule: a string is a regular expression for the whole name, a list holds names or their endings."""
    if names is None:
        return False
    if isinstance(names, str):
        return re.fullmatch(names, key) is not None
    return any(key == name or key.endswith(f".{name}") for name in names)


def head_modules(model: nn.Module) -> list[str]:
    """Names of the modules after the backbone that a task trains whole.

    Output embeddings that are tied to input embeddings (Whisper's) are no head. Neither is ``layer_weights`` of
    the wav2vec2 family's weighted layer sum: it is a bare parameter, which PEFT cannot save, and stays as loaded.
    """
    children = dict(model.named_children())
    backbone = [p for name, child in children.items() if name not in HEAD_MODULES for p in child.parameters()]
    tied = {id(p) for p in backbone}
    return [
        name
        for name in HEAD_MODULES
        if name in children and not any(id(p) in tied for p in children[name].parameters())
    ]


def lora_targets(model: nn.Module) -> str:
    """Regular expression for the modules that LoRA adapts in a host.

    The query and value projections of the encoder's self-attention, the outer projections of its Mamba blocks. WavLM's
    attention reads the raw weights of its projections and never calls them, so that LoRA there has no effect; it gets
    LoRA in both feed-forward layers.

    Raises:
        HostError: the model is no known host.
    """
    stack, calls_projections = _encoder(model)
    if not calls_projections:
        return stack.ffn_parts(("intermediate_dense", "output_dense"))
    return stack.lora_projections()


def ia3_targets(model: nn.Module) -> tuple[str, str]:
    """Regular expressions for the modules that IA3 adapts in a host, and for those of them whose input it scales.

    The keys, the values and the inside of the feed-forward sublayers of the encoder, and inputs and gates inside its
    Mamba blocks; in WavLM, which never calls its projections, the feed-forward sublayers only.

    Raises:
        HostError: the model is no known host.
    """
    stack, calls_projections = _encoder(model)
    # PEFT matches no module with an empty expression.
    feedforward = stack.last_linear(model) or r"(?!)"
    if not calls_projections:
        return feedforward, feedforward
    return f"{stack.ia3_projections()}|{feedforward}", feedforward


def _encoder(model: nn.Module) -> tuple[Stack, bool]:
    """The first encoder, and whether its attention calls its projections (WavLM's reads their raw weights)."""
    stacks = find_stacks(model)
    stack = next((stack for stack in stacks if stack.kind == "encoder"), stacks[0])
    return stack, not reads_raw_weights(model.get_submodule(stack.sublayers()[0].target))


def reads_raw_weights(attention: nn.Module) -> bool:
    """Whether an attention takes the weights of its projections without calling them, as WavLM's does."""
    return hasattr(attention, "torch_multi_head_self_attention")


def train_all(model: nn.Module) -> None:
    """Make every tensor of a host trainable, but for Whisper's fixed sinusoidal positions."""
    model.requires_grad_(True)
    for name, parameter in model.named_parameters():
        if name.endswith("encoder.embed_positions.weight"):
            parameter.requires_grad_(False)


def _no_embeddings() -> None:
    return None


def declare_missing_embeddings(model: Any) -> None:
    """Let a host without token embeddings say so instead of raising.

    PEFT asks for embeddings when it saves an adapter and the vocabulary (of a new CTC head) differs from the base
    model's; wav2vec2, HuBERT and WavLM raise ``NotImplementedError`` then, and no checkpoint could be written.
    """
    if not hasattr(model, "get_input_embeddings"):
        return
    try:
        model.get_input_embeddings()
    except NotImplementedError:
        model.get_input_embeddings = _no_embeddings
        model.get_output_embeddings = _no_embeddings


def dummy_inputs(model: nn.Module) -> dict[str, Tensor]:
    """The smallest input a host accepts, all zeros, on its device and in its dtype.

    Args:
        model: a transformers model of a known host, with or without a head, or a PEFT model around one.

    Raises:
        HostError: the model's configuration is not a known host's.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    config: Any = getattr(base, "config", None)
    like = next(base.parameters())
    kind = getattr(config, "model_type", None)
    if kind == "audio-spectrogram-transformer":
        return {"input_values": like.new_zeros(1, config.max_length, config.num_mel_bins)}
    if kind == "whisper" and getattr(base, "main_input_name", None) == "input_features":
        inputs = {"input_features": like.new_zeros(1, config.num_mel_bins, 2 * config.max_source_positions)}
        if "decoder_input_ids" in inspect.signature(base.forward).parameters:
            inputs["decoder_input_ids"] = torch.zeros(1, 2, dtype=torch.int64, device=like.device)
        return inputs
    if hasattr(config, "conv_kernel") and hasattr(config, "conv_stride"):
        samples = 16
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            samples = (samples - 1) * stride + kernel
        return {"input_values": like.new_zeros(1, samples)}
    raise HostError(
        f"cannot make an input for {type(base).__name__} (model_type {kind!r}); expected one of {HOSTS}. "
        "Pass inputs={...}, the keyword arguments of its forward"
    )
