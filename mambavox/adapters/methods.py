"""The methods by name: what the command line and the training recipes attach to a model."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftConfig, VeraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.other import AuxiliaryTrainingWrapper, TrainableTokensWrapper
from torch import nn
from transformers import PreTrainedModel

from mambavox.adapters.bitfit import BitFitConfig
from mambavox.adapters.bottleneck import BottleneckConfig
from mambavox.adapters.checks import check_reaches_output
from mambavox.adapters.conformer import ConformerAdapterConfig
from mambavox.adapters.convpass import ConvPassConfig
from mambavox.adapters.gc_lora import GCLoraConfig
from mambavox.adapters.hosts import (
    declare_missing_embeddings,
    find_stacks,
    head_modules,
    ia3_targets,
    lora_targets,
    train_all,
)
from mambavox.adapters.mambadapter import RESIDUAL, MambAdapterConfig
from mambavox.adapters.mixture import MixtureOfAdaptersConfig
from mambavox.adapters.prefix import PrefixConfig
from mambavox.adapters.prompt import PromptConfig
from mambavox.adapters.token_rows import lighten_token_rows
from mambavox.errors import ConfigError, HostError

# Set by PEFT, or by apply_method from its own arguments.
_NOT_OPTIONS = {
    *(field.name for field in dataclasses.fields(PeftConfig)),
    "modules_to_save",
    "trainable_token_indices",
}


@dataclass(frozen=True)
class Method:
    """A way of fitting a pre-trained model to a task.

    Attributes:
        name: its name.
        summary: one line on what it trains.
        learning_rate: the peak rate to start from, per step.
        config: class of its PEFT configuration; none where it takes no options.
        defaults: what that configuration needs beyond its own defaults, found in the model.
    """

    name: str
    summary: str
    learning_rate: float
    config: type[Any] | None = None
    defaults: Callable[[nn.Module], dict[str, Any]] = lambda model: {}

    def options(self) -> list[str]:
        """Names of the options it takes."""
        if self.config is None:
            return []
        return [f.name for f in dataclasses.fields(self.config) if f.init and f.name not in _NOT_OPTIONS]


def _lora_defaults(model: nn.Module) -> dict[str, Any]:
    return {"r": 8, "lora_alpha": 16, "target_modules": lora_targets(model)}


def _dora_defaults(model: nn.Module) -> dict[str, Any]:
    return {**_lora_defaults(model), "use_dora": True}


def _vera_defaults(model: nn.Module) -> dict[str, Any]:
    return {"target_modules": lora_targets(model)}


def _adalora_defaults(model: nn.Module) -> dict[str, Any]:
    # The schedule of a run of 1000 steps; training stretches it to the steps that it makes.
    schedule = {"total_step": 1000, "tinit": 100, "tfinal": 300, "deltaT": 10}
    return {"init_r": 12, "target_r": 8, "lora_alpha": 16, "target_modules": lora_targets(model), **schedule}


def _ia3_defaults(model: nn.Module) -> dict[str, Any]:
    targets, feedforward = ia3_targets(model)
    return {"target_modules": targets, "feedforward_modules": feedforward}


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "mambadapter",
            "a Mamba block beside each feed-forward sublayer, between projections that all layers share",
            5e-3,
            MambAdapterConfig,
        ),
        Method(
            "mambadapter-residual",
            "a bottleneck adapter with small Mamba blocks inside beside each feed-forward sublayer",
            5e-3,
            MambAdapterConfig,
            lambda model: dict(RESIDUAL),
        ),
        Method(
            "bottleneck",
            "a narrow two-layer network beside each feed-forward sublayer",
            5e-3,
            BottleneckConfig,
        ),
        Method(
            "conformer",
            "a narrow Conformer convolution module beside each feed-forward sublayer",
            5e-3,
            ConformerAdapterConfig,
        ),
        Method(
            "convpass",
            "a narrow convolution over the grid of tokens (AST) or over time beside each feed-forward sublayer",
            5e-3,
            ConvPassConfig,
        ),
        Method("bitfit", "the biases of the encoder's layers", 5e-3, BitFitConfig),
        Method("prefix", "keys and values in each self-attention (not WavLM's)", 1e-2, PrefixConfig),
        Method("prompt", "tokens before the encoder's sequence, in each layer or the first", 1e-2, PromptConfig),
        Method("moa", "several narrow networks beside each feed-forward sublayer", 5e-3, MixtureOfAdaptersConfig),
        Method("gc-lora", "LoRA with a gated convolution, on attention's output (not WavLM's)", 1e-4, GCLoraConfig),
        Method(
            "lora",
            "low-rank updates of the query and value projections (WavLM: of the feed-forward layers)",
            5e-3,
            LoraConfig,
            _lora_defaults,
        ),
        Method("dora", "LoRA with the length of each output's weights trained apart", 5e-3, LoraConfig, _dora_defaults),
        Method("vera", "two vectors for each projection, between random matrices", 1e-2, VeraConfig, _vera_defaults),
        Method("adalora", "LoRA that moves its rank to where it helps", 5e-3, AdaLoraConfig, _adalora_defaults),
        Method("ia3", "a factor for each key, value and inner feed-forward channel", 3e-3, IA3Config, _ia3_defaults),
        Method("linear", "the head alone, on the frozen backbone", 1e-3),
        Method("full", "every tensor of the model", 5e-5),
    )
}
"""The methods by name. The learning rates are those of the MambAdapter paper's scripts and of its predecessors' (AST;
arXiv 2606.15638, 2312.03694, 2402.00828). GC-LoRA has its own paper's (Whisper, speech recognition), VeRA and IA3 start
from the order of theirs, DoRA and AdaLoRA from LoRA's."""


def apply_method(
    model: PreTrainedModel,
    method: str,
    options: Mapping[str, Any] | None = None,
    *,
    head: Sequence[str] | None = None,
    token_rows: Sequence[int] = (),
    check: bool = True,
) -> nn.Module:
    """Prepare a model to be trained with a method; the model is changed in place.

    Args:
        model: a known host, with or without a head.
        method: a key of ``METHODS``.
        options: fields of the method's configuration, such as ``bottleneck_dim`` or LoRA's ``r``.
        head: modules to train whole and save beside the adapter; the host's own head (``projector``,
            ``classifier``, ``lm_head``) where not given.
        token_rows: rows of the token embeddings to train and save beside the adapter, such as a new language's.
        check: run :func:`check_reaches_output`, one forward pass of the smallest input.

    Returns:
        A ``PeftModel``; for ``"full"`` the model itself.

    Raises:
        ConfigError: an unknown method or option, or a value that does not fit.
        HostError: the model is no known host, has nothing that fits, or something would be trained in vain.
    """
    chosen = METHODS.get(method)
    if chosen is None:
        raise ConfigError(f"method is {method!r}; expected one of {', '.join(METHODS)}{_suggest(method, METHODS)}")
    options = dict(options or {})
    _check_options(chosen, options)
    find_stacks(model)
    if head is None:
        head = head_modules(model)
    for name in head:
        if name not in dict(model.named_modules()):
            raise HostError(
                f"the head is to be {name!r}, which {type(model).__name__} does not have; "
                f"it has: {', '.join(name for name, _ in model.named_children())}"
            )
    if chosen.name == "full":
        train_all(model)
        return model
    if chosen.name == "linear" and not head:
        raise ConfigError(
            f"linear trains the head alone, and {type(model).__name__} has none; expected a model with a head, "
            "such as AutoModelForAudioClassification, or head=[...]"
        )
    declare_missing_embeddings(model)
    if chosen.config is None:
        # PEFT's own marker for "no target": only modules_to_save are trained, saved and switched.
        config: PeftConfig = LoraConfig(target_modules=DUMMY_TARGET_MODULES, modules_to_save=list(head))
    else:
        values = _in_some_layers({**chosen.defaults(model), **options}, options)
        config = chosen.config(**values, modules_to_save=list(head) or None)
    if token_rows:
        if "trainable_token_indices" not in {field.name for field in dataclasses.fields(config)}:
            raise ConfigError(
                f"{method} cannot train rows of the token embeddings, which a new language needs; expected a method of "
                "this package, lora, dora or full"
            )
        config.trainable_token_indices = list(token_rows)
    adapted: nn.Module = get_peft_model(model, config)
    lighten_token_rows(adapted)
    if check:
        check_reaches_output(adapted)
    return adapted


def _in_some_layers(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of PEFT's own methods, where ``layers_to_transform`` narrows targets that were not named.

    PEFT takes layers for names of modules alone, and the targets that a host gets are a regular expression.
    """
    targets, layers = values.get("target_modules"), given.get("layers_to_transform")
    if layers is None or not isinstance(targets, str) or "target_modules" in given:
        return dict(values)
    indices = "|".join(str(int(layer)) for layer in ([layers] if isinstance(layers, int) else layers))
    narrowed = rf"(?=(?:.*\.)?layers?\.(?:{indices})\.){targets}"
    return {
        **{name: value for name, value in values.items() if name != "layers_to_transform"},
        "target_modules": narrowed,
    }


def _suggest(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _check_options(method: Method, options: Mapping[str, Any]) -> None:
    known = method.options()
    for name in options:
        if name not in known:
            expected = f"expected {', '.join(known)}" if known else "it takes none"
            raise ConfigError(f"{method.name} has no option {name!r}; {expected}{_suggest(name, known)}")


class ParameterCounts(TypedDict):
    """How much of a model is trained.

    Attributes:
        adapter: trainable parameters, the head left out.
        head: trainable parameters of the head.
        total: both.
        share_of_backbone: ``adapter`` over the number of the backbone's parameters.
    """

    adapter: int
    head: int
    total: int
    share_of_backbone: float


def trainable_parameters(model: nn.Module) -> ParameterCounts:
    """Count what a model trains, and compare it with its backbone.

    Args:
        model: what :func:`apply_method` returned, or any PEFT model.

    Returns:
        The counts; parameters that modules share count once.
    """
    added: set[int] = set()
    wrapped: set[int] = set()
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            for name in (*module.adapter_layer_names, *module.other_param_names):
                part = getattr(module, name)
                if isinstance(part, nn.Module):
                    added.update(id(p) for p in part.parameters())
        elif isinstance(module, AuxiliaryTrainingWrapper) and not isinstance(module, TrainableTokensWrapper):
            wrapped.update(id(p) for p in module.parameters())
    for name in head_modules(model):
        wrapped.update(id(p) for p in model.get_submodule(name).parameters())
    adapter = head = backbone = 0
    for parameter in model.parameters():
        if id(parameter) in wrapped:
            head += parameter.numel() * parameter.requires_grad
            continue
        adapter += parameter.numel() * parameter.requires_grad
        backbone += 0 if id(parameter) in added else parameter.numel()
    return ParameterCounts(
        adapter=adapter, head=head, total=adapter + head, share_of_backbone=adapter / backbone if backbone else 0.0
    )
