"""Load a pre-trained audio model as a classifier, at the length that the data needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForAudioClassification, PretrainedConfig, PreTrainedModel

from mambavox.errors import ConfigError
from mambavox.hub import load_config, load_extractor, load_model
from mambavox.training.front_end import FrontEnd, longest_seconds

Pooling: TypeAlias = Literal["backbone", "mean"]
PositionEmbeddings: TypeAlias = Literal["kept", "zero"]

# What a checkpoint without a classification head, or with another task's head, may lack.
_NEW_MODULES = ("classifier", "projector", "layer_weights")
_AST = "audio-spectrogram-transformer"
_SPECIAL_TOKENS = 2  # AST's class and distillation tokens, at the start of its position table


@dataclass(frozen=True)
class Backbone:
    """A pre-trained model with a classification head, and what feeds it.

    Attributes:
        name: as it was asked for.
        model: an ``AutoModelForAudioClassification`` in float32.
        front_end: makes its inputs.
        labels: the classes, in the order of the logits.
    """

    name: str
    model: PreTrainedModel
    front_end: FrontEnd
    labels: tuple[str, ...]


def load_backbone(
    name: str,
    labels: Sequence[str],
    crop_seconds: float | None = None,
    *,
    pooling: Pooling = "backbone",
    position_embeddings: PositionEmbeddings = "kept",
) -> Backbone:
    """Load a backbone with a classification head for some labels.

    AST's position table is cropped to the first time columns (or interpolated where it is too short) after the
    pre-trained one is loaded, so that short clips cost little and nothing pre-trained is lost. (Loading with a changed
    ``max_length`` and ``ignore_mismatched_sizes``, as the paper's released code does, drops the table: it stays
    zero, and frozen.)

    Args:
        name: an embedded model, a folder, or a Hugging Face name.
        labels: the classes, in the order of the logits.
        crop_seconds: longest clip to be heard; default what the backbone was made for.
        pooling: ``"mean"`` gives AST the paper's head, one linear layer on the mean of all tokens.
        position_embeddings: ``"zero"`` empties AST's position table, which the paper's code does unawares.

    Raises:
        ConfigError: there is no such model, it cannot be fetched, ``crop_seconds`` is more than it takes, or it has no
            such pooling or position table.
        HostError: it is no model of a known family, or its checkpoint lacks more than a head.
    """
    extractor, longest = _front(name)
    model = load_model(
        AutoModelForAudioClassification,
        name,
        may_lack=_NEW_MODULES,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        # A head for other classes is replaced; load_model lets nothing but the head go.
        ignore_mismatched_sizes=True,
    )
    front_end = FrontEnd(extractor, model.config, longest if crop_seconds is None else crop_seconds)
    if model.config.model_type == _AST:
        set_max_length(model, int(extractor.max_length))
    elif (pooling, position_embeddings) != ("backbone", "kept"):
        raise ConfigError(
            f"pooling={pooling} and position_embeddings={position_embeddings}, but {name} is no AST; "
            "expected backbone and kept"
        )
    if pooling == "mean":
        pool_mean(model)
    if position_embeddings == "zero":
        model.base_model.embeddings.position_embeddings.data.zero_()
    # Masking of the backbone's own would act for full fine-tuning only, and fail on clips shorter than a mask.
    model.config.apply_spec_augment = False
    return Backbone(name, model, front_end, tuple(labels))


def pool_mean(model: Any) -> None:
    """Let AST's head be one linear layer that reads the mean of all tokens, the two special ones included.

    Args:
        model: an ``ASTForAudioClassification``; changed in place.

    Source:
        MambAdapter (arXiv 2606.15638), the authors' code.
    """

    def mean(module: nn.Module, inputs: Any, output: Any) -> Any:
        output.pooler_output = output.last_hidden_state.mean(dim=1)
        return output

    model.base_model.register_forward_hook(mean)
    model.classifier.layernorm = nn.Identity()


def backbone_limit(name: str) -> float:
    """Seconds that a backbone was made for, from its configuration alone.

    Args:
        name: an embedded model, a folder, or a Hugging Face name.

    Raises:
        ConfigError: there is no such model, or it cannot be fetched.
        HostError: it is of no known family.
    """
    return _front(name)[1]


def _front(name: str) -> tuple[Any, float]:
    extractor = load_extractor(name)
    return extractor, longest_seconds(extractor, load_config(name))


def set_max_length(model: PreTrainedModel, max_length: int) -> None:
    """Give a loaded AST another input length, keeping its pre-trained position table.

    Args:
        model: an AST, bare or with a head.
        max_length: frames of the new inputs.
    """
    config = model.config
    old, new = _patch_grid(config, config.max_length), _patch_grid(config, max_length)
    embeddings = model.base_model.embeddings
    embeddings.position_embeddings = nn.Parameter(
        resized_positions(embeddings.position_embeddings.detach(), old, new),
        requires_grad=embeddings.position_embeddings.requires_grad,
    )
    config.max_length = max_length


def resized_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Crop a position table to its first time columns, or stretch it where it has too few.

    Args:
        table: ``(1, 2 + frequencies * columns, d_model)``; the patches lie frequency by frequency.
        old: frequencies and time columns of the table.
        new: those wanted; the number of frequencies stays.

    Returns:
        ``(1, 2 + frequencies * new columns, d_model)``, a copy.
    """
    (frequencies, columns), (_, wanted) = old, new
    special, patches = table[:, :_SPECIAL_TOKENS], table[:, _SPECIAL_TOKENS:]
    grid = patches.reshape(1, frequencies, columns, -1)
    if wanted <= columns:
        grid = grid[:, :, :wanted]
    else:
        size = (frequencies, wanted)
        grid = F.interpolate(grid.permute(0, 3, 1, 2), size, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
    return torch.cat([special, grid.reshape(1, frequencies * wanted, -1)], dim=1)


def _patch_grid(config: PretrainedConfig, max_length: int) -> tuple[int, int]:
    frequencies = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    return frequencies, (max_length - config.patch_size) // config.time_stride + 1
