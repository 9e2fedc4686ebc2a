"""Load a pre-trained audio model as a classifier, at the length that the data needs."""

import difflib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from mambavox import assets
from mambavox.errors import ConfigError, HostError
from mambavox.training.front_end import FrontEnd, longest_seconds

Pooling: TypeAlias = Literal["host", "mean"]
PositionEmbeddings: TypeAlias = Literal["kept", "zero"]

# What a checkpoint without a classification head, or with another task's head, may lack.
_NEW_MODULES = ("classifier", "projector", "layer_weights")
# Only used by masking during pre-training; fine-tuned checkpoints often come without it.
_UNUSED = "masked_spec_embed"
_AST = "audio-spectrogram-transformer"
_SPECIAL_TOKENS = 2  # AST's class and distillation tokens, at the start of its position table
# Said by PEFT and WavLM's code about transformers' and torch's; nothing that a user could mend.
_HARMLESS = (
    "`is_gradient_checkpointing` is deprecated",
    "Support for mismatched key_padding_mask and attn_mask",
    "At least one mel filter has all zero values",  # AST's own 128 bands at 16 kHz
)


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
    max_seconds: float | None = None,
    *,
    pooling: Pooling = "host",
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
        max_seconds: longest clip to be heard; default what the backbone was made for.
        pooling: ``"mean"`` gives AST the paper's head, one linear layer on the mean of all tokens.
        position_embeddings: ``"zero"`` empties AST's position table, which the paper's code does unawares.

    Raises:
        ConfigError: there is no such model, it cannot be fetched, ``max_seconds`` is more than it takes, or it has no
            such pooling or position table.
        HostError: it is no model of a known family, or its checkpoint lacks more than a head.
    """
    extractor, longest = _front(name)
    with fetching(name), quiet_transformers():
        model, report = AutoModelForAudioClassification.from_pretrained(
            assets.locate(name),
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
            # A head for other classes is replaced; _check_loaded lets nothing but the head go.
            ignore_mismatched_sizes=True,
            # The checkpoint's own may be float16, in which nothing can be trained on a CPU.
            dtype=torch.float32,
            output_loading_info=True,
        )
    _check_loaded(name, report)
    front_end = FrontEnd(extractor, model.config, longest if max_seconds is None else max_seconds)
    if model.config.model_type == _AST:
        set_max_length(model, int(extractor.max_length))
    elif (pooling, position_embeddings) != ("host", "kept"):
        raise ConfigError(
            f"pooling={pooling} and position_embeddings={position_embeddings}, but {name} is no AST; "
            "expected host and kept"
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


def load_config(name: str) -> PretrainedConfig:
    """A backbone's configuration.

    Args:
        name: an embedded model, a folder, or a Hugging Face name.

    Raises:
        ConfigError: there is no such model, or it cannot be fetched.
    """
    with fetching(name), quiet_transformers():
        return AutoConfig.from_pretrained(assets.locate(name))


def _front(name: str) -> tuple[Any, float]:
    with fetching(name), quiet_transformers():
        extractor = AutoFeatureExtractor.from_pretrained(assets.locate(name))
        return extractor, longest_seconds(extractor, AutoConfig.from_pretrained(assets.locate(name)))


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


def _check_loaded(name: str, report: dict[str, Sequence]) -> None:
    """Fail where pre-trained weights other than a head's are missing: they would be random, and frozen."""
    missing = list(report["missing_keys"]) + [key for key, *_ in report["mismatched_keys"]]
    lost = sorted({key for key in missing if not any(part in _NEW_MODULES for part in key.split("."))})
    lost = [key for key in lost if not key.endswith(_UNUSED)]
    if lost:
        raise HostError(
            f"backbone {name!r}: its checkpoint lacks {len(lost)} weights besides the head, such as {lost[0]}; "
            "expected a complete pre-trained model"
        )


@contextmanager
def fetching(name: str) -> Iterator[None]:
    """Turn what transformers raises about a model that is not there into a message for the user."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, (ConfigError, HostError)):
            raise
        reason = str(error).strip().split("\n")[0]
        if Path(name).expanduser().is_dir():
            raise ConfigError(
                f"backbone {name!r}: the folder holds no model that transformers can load ({reason}); expected "
                "config.json, preprocessor_config.json and model.safetensors"
            ) from error
        near = difflib.get_close_matches(name, assets.names(), n=1)
        raise ConfigError(
            f"backbone {name!r} is no embedded model ({', '.join(assets.names()) or 'there are none'}) and no folder, "
            f"and could not be fetched from the Hugging Face Hub ({reason}). "
            + (f"Did you mean {near[0]}? " if near else "")
            + "Check the name and the connection, or give the folder of a downloaded copy"
        ) from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' warnings and bars: a new head is expected, and lost weights are errors here."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            for message in _HARMLESS:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
