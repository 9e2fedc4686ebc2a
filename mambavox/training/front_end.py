"""From waveforms to a backbone's inputs: cut, lengthen, extract features, batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig

from mambavox.data import Waveform
from mambavox.errors import ConfigError, HostError

_LONGEST_SECONDS = 30.0  # without an upper limit one endless recording would decide the memory of every batch
_FRAME_SECONDS = 0.01  # shift of AST's frames
_WINDOW_SECONDS = 0.025  # and their window


class FrontEnd:
    """Makes a backbone's inputs of waveforms of at most ``crop_seconds``.

    Spectrogram backbones (AST, Whisper) see every recording at one length: AST at ``crop_seconds``, Whisper at its 30
    s. Waveform backbones whose feature extractor asks for an attention mask are padded to the longest of the batch; the
    others see one length, because without a mask padding would let the neighbours in a batch change the result.

    Args:
        extractor: the backbone's feature extractor. ``crop_seconds`` becomes one of its attributes (and so of
            ``preprocessor_config.json``), and for AST ``max_length`` with it.
        config: the backbone's configuration.
        crop_seconds: longer recordings are cut there; AST rounds it up to whole patches.

    Attributes:
        extractor: as given.
        sampling_rate: Hz of the waveforms.
        max_samples: length at which waveforms are cut.
        input_name: what the model calls its input.
        min_samples: shorter waveforms are lengthened with zeros, as no frame fits into them.

    Raises:
        HostError: the backbone is of no family known here.
        ConfigError: ``crop_seconds`` is more than the backbone takes.
    """

    def __init__(self, extractor: Any, config: PretrainedConfig, crop_seconds: float) -> None:
        longest = longest_seconds(extractor, config)
        if config.model_type == "whisper" and crop_seconds > longest:
            raise ConfigError(f"crop_seconds={crop_seconds:g}; expected at most {longest:g}: Whisper hears no more")
        self.extractor = extractor
        self.sampling_rate = int(extractor.sampling_rate)
        self.min_samples = _min_samples(extractor, config)
        self.max_samples = max(round(crop_seconds * self.sampling_rate), self.min_samples)
        self._family = config.model_type
        self.input_name = str(extractor.model_input_names[0])
        extractor.crop_seconds = crop_seconds
        if config.model_type == "audio-spectrogram-transformer":
            extractor.max_length = patched_frames(config, self._frames(self.max_samples))
            # The last patch is computed anyway; sound is better than padding there.
            self.max_samples = round(_seconds(extractor.max_length) * self.sampling_rate)

    @property
    def crop_seconds(self) -> float:
        """Length at which waveforms are cut."""
        return self.max_samples / self.sampling_rate

    @property
    def pads_to_longest(self) -> bool:
        """Whether a batch is as long as its longest clip, and not always ``crop_seconds``."""
        return not self.is_spectrogram and bool(self.extractor.return_attention_mask)

    @property
    def is_spectrogram(self) -> bool:
        """Whether the features are frames of mel bands, as opposed to samples."""
        return self.mel_axis is not None

    @property
    def mel_axis(self) -> int | None:
        """Axis of the mel bands in the features of a clip; the other one is time."""
        return {"audio-spectrogram-transformer": 1, "whisper": 0}.get(self._family)

    def features(self, waveform: Waveform) -> NDArray[np.float32]:
        """Features of one clip.

        Args:
            waveform: ``(samples,)`` at ``sampling_rate``.

        Returns:
            ``(frames, mel)`` for AST, ``(mel, frames)`` for Whisper, ``(samples,)`` for waveform backbones.
        """
        waveform = waveform[: self.max_samples]
        if len(waveform) < self.min_samples:
            waveform = np.pad(waveform, (0, self.min_samples - len(waveform)))
        extracted = self.extractor(waveform, sampling_rate=self.sampling_rate)[self.input_name][0]
        return np.asarray(extracted, dtype=np.float32)

    def num_frames(self, samples: int) -> int:
        """Frames of a spectrogram that hold sound, given the clip's number of samples; the rest is padding."""
        return self._frames(min(max(samples, self.min_samples), self.max_samples))

    def _frames(self, samples: int) -> int:
        shift = round(_FRAME_SECONDS * self.sampling_rate)
        if self._family == "whisper":
            return -(-samples // shift)
        return 1 + max(samples - round(_WINDOW_SECONDS * self.sampling_rate), 0) // shift

    def collate(self, features: Sequence[NDArray[np.float32]]) -> dict[str, Tensor]:
        """Batch the features of clips, with an attention mask where the backbone wants one.

        Args:
            features: those of each clip.

        Returns:
            The model's keyword arguments, batch first.
        """
        if self.is_spectrogram:
            return {self.input_name: torch.from_numpy(np.stack(features))}
        masked = self.pads_to_longest
        batch = self.extractor.pad(
            {self.input_name: list(features)},
            padding=True if masked else "max_length",
            max_length=None if masked else self.max_samples,
            return_attention_mask=masked,
            return_tensors="pt",
        )
        return dict(batch)


def longest_seconds(extractor: Any, config: PretrainedConfig) -> float:
    """Seconds that a backbone was made for: AST's position table, Whisper's window, 30 s for waveform backbones.

    Raises:
        HostError: the backbone is of no family known here.
    """
    _min_samples(extractor, config)
    if config.model_type == "audio-spectrogram-transformer":
        return _seconds(config.max_length)
    if config.model_type == "whisper":
        return float(extractor.n_samples / extractor.sampling_rate)
    return _LONGEST_SECONDS


def _seconds(frames: int) -> float:
    return float((frames - 1) * _FRAME_SECONDS + _WINDOW_SECONDS)


def patched_frames(config: PretrainedConfig, frames: int) -> int:
    """The fewest frames whose patches cover a clip of so many frames.

    Args:
        config: an ``ASTConfig``.
        frames: the clip's frames.
    """
    columns = -(-max(frames - config.patch_size, 0) // config.time_stride) + 1
    covering = int(config.patch_size + (columns - 1) * config.time_stride)
    # The model's own length may end in frames that no patch covers; its table is not to be stretched for them.
    return int(config.max_length) if frames <= config.max_length < covering else covering


def _min_samples(extractor: Any, config: PretrainedConfig) -> int:
    if config.model_type == "audio-spectrogram-transformer":
        return round(_WINDOW_SECONDS * extractor.sampling_rate)
    if config.model_type == "whisper":
        return 1
    if hasattr(config, "conv_kernel") and hasattr(config, "conv_stride"):
        samples = 1
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            samples = (samples - 1) * stride + kernel
        return int(samples)
    raise HostError(
        f"backbone of type {config.model_type!r}; expected AST, Whisper, wav2vec2, HuBERT or WavLM: choose another "
        "with --backbone"
    )
