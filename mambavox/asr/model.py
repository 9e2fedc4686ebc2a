"""CTC models of the wav2vec2 family and Mamba-HuBERT: loading, inputs, log probabilities."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCTC

import mambavox.hubert  # noqa: F401  the import is what makes transformers know Mamba-HuBERT
from mambavox.data import Waveform
from mambavox.errors import HostError
from mambavox.hub import load_model, without_adapters


def load_ctc_model(name: str | Path, vocab_size: int | None = None, blank: int | None = None, **options: Any) -> Any:
    """Load a model with a CTC head in float32; a head of another size is made anew.

    Args:
        name: an embedded model, a folder, or a name on the Hugging Face Hub.
        vocab_size: tokens of the head; default the checkpoint's own.
        blank: number of the blank; default the checkpoint's own.
        options: further entries of the configuration that are to be others than the checkpoint's.

    Raises:
        ConfigError: there is no such model.
        HostError: its checkpoint lacks more than a head, or it is of a kind that has no frames of speech.
    """
    changes = options if vocab_size is None else {**options, "vocab_size": vocab_size, "pad_token_id": blank}
    model = load_model(
        AutoModelForCTC,
        str(name),
        may_lack=() if vocab_size is None else ("lm_head",),
        ignore_mismatched_sizes=vocab_size is not None,
        **changes,
    )
    if not hasattr(model, "_get_feat_extract_output_lengths"):
        raise HostError(
            f"backbone {str(name)!r} is of type {model.config.model_type!r}; expected Mamba-HuBERT, wav2vec2, "
            "HuBERT or WavLM"
        )
    model.config.apply_spec_augment = False  # masks come from the training, so that they depend on seed and epoch
    return model


def shortest_input(config: Any) -> int:
    """Samples that one frame sees."""
    samples = 1
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        samples = (samples - 1) * stride + kernel
    return int(samples)


def num_frames(model: Any, samples: int) -> int:
    """Frames of a recording, at least one: what is shorter is lengthened with silence."""
    return int(model._get_feat_extract_output_lengths(max(samples, shortest_input(model.config))))


def collate_waveforms(waveforms: Sequence[Waveform], extractor: Any, config: Any) -> dict[str, Tensor]:
    """Batch waveforms as a model hears them: normalised, padded to the longest.

    Args:
        waveforms: ``(samples,)`` each, at the extractor's rate.
        extractor: of the model.
        config: of the model.

    Returns:
        ``input_values`` and, where the extractor asks for one, ``attention_mask``.
    """
    shortest = shortest_input(config)
    long_enough = [np.pad(item, (0, max(shortest - len(item), 0))) for item in waveforms]
    return dict(
        extractor(
            long_enough,
            sampling_rate=int(extractor.sampling_rate),
            padding=True,
            return_attention_mask=bool(extractor.return_attention_mask),
            return_tensors="pt",
        )
    )


@torch.inference_mode()
def ctc_log_probs(
    model: Any, extractor: Any, waveforms: Sequence[Waveform], batch_size: int = 8
) -> list[NDArray[np.float32]]:
    """Log probabilities of tokens, frame by frame.

    Models whose extractor gives no attention mask hear one recording at a time: in a batch the padding would change
    what they hear.

    Args:
        model: of :func:`load_ctc_model`, or a PEFT model around one, in evaluation mode.
        extractor: of the model.
        waveforms: ``(samples,)`` each, at the extractor's rate.
        batch_size: recordings at a time.

    Returns:
        ``(frames, tokens)`` for each recording.
    """
    base = without_adapters(model)
    device = next(model.parameters()).device
    size = batch_size if extractor.return_attention_mask else 1
    # Recordings of like length together, whatever their order.
    order = sorted(range(len(waveforms)), key=lambda index: len(waveforms[index]))
    found: dict[int, NDArray[np.float32]] = {}
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        batch = collate_waveforms([waveforms[row] for row in rows], extractor, base.config)
        logits = model(**{name: value.to(device) for name, value in batch.items()}).logits
        log_probs = logits.float().log_softmax(dim=-1).cpu().numpy()
        for row, frames in zip(rows, log_probs, strict=True):
            found[row] = frames[: num_frames(base, len(waveforms[row]))]
    return [found[index] for index in range(len(waveforms))]
