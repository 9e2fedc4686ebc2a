"""Frame-level features of recordings, from which units are made: MFCC, or the hidden states of a model."""

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from math import prod
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, PreTrainedModel

from mambavox.errors import AudioError, ConfigError, HostError
from mambavox.hub import load_extractor, load_model, quiet_transformers
from mambavox.hubert import MambaHubertConfig  # the import makes the Auto classes know Mamba-HuBERT
from mambavox.units import mfcc

MAX_SECONDS = 900.0
"""Of a recording that a model takes whole: about 6 GB in base size."""


class Features(Protocol):
    """What units are made of.

    Attributes:
        name: ``"mfcc"``, or ``"MODEL:LAYER"``.
        frame_rate: frames a second.
        first_center: seconds at which the centre of the first frame lies.
        dim: size of a frame.
        sampling_rate: Hz of the waveforms.
        fingerprint: differs between models of the same name; empty where there is none.
    """

    name: str
    frame_rate: float
    first_center: float
    dim: int
    sampling_rate: int
    fingerprint: str

    def __call__(self, waveforms: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Features ``(time, dim)`` of each waveform ``(samples,)``; no frames where it is shorter than one."""
        ...

    def num_frames(self, samples: int) -> int:
        """Frames of a recording of so many samples."""
        ...

    def check_length(self, samples: int, name: str) -> None:
        """Raise ``AudioError`` for a recording that is too long to be taken whole."""
        ...


class MfccFeatures:
    """The 39 features of HuBERT's first iteration: 13 cepstra, their deltas, and the deltas of these.

    Attributes:
        name: ``"mfcc"``.
        frame_rate: 100 frames a second.
        first_center: half a window.
        dim: 39.
        sampling_rate: Hz of the waveforms.
        fingerprint: empty.

    Source:
        HuBERT (arXiv 2106.07447), section IV-B.
    """

    name = "mfcc"
    frame_rate: float = mfcc.SAMPLING_RATE / mfcc.SHIFT
    first_center: float = mfcc.WINDOW / 2 / mfcc.SAMPLING_RATE
    dim = 3 * mfcc.CEPSTRA
    sampling_rate = mfcc.SAMPLING_RATE
    fingerprint = ""

    def num_frames(self, samples: int) -> int:
        """Frames of a recording of so many samples; none where it is shorter than 25 ms."""
        return mfcc.num_frames(samples)

    def check_length(self, samples: int, name: str) -> None:
        """Take recordings of any length: no more than a minute's spectra are in memory."""

    def __call__(self, waveforms: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Features of some recordings.

        Args:
            waveforms: each ``(samples,)`` at 16 kHz.

        Returns:
            Each ``(time, 39)``; ``(0, 39)`` where a recording is shorter than 25 ms.

        Raises:
            AudioError: a waveform is not ``(samples,)``, or holds NaN or infinite samples.
        """
        found = []
        for waveform in map(_checked, waveforms):
            cepstra = mfcc.mfcc(waveform)
            slopes = mfcc.deltas(cepstra)
            found.append(np.concatenate([cepstra, slopes, mfcc.deltas(slopes)], axis=1))
        return found


class _Reached(Exception):
    """Ends a forward pass at the layer that was wanted."""

    def __init__(self, state: torch.Tensor) -> None:
        super().__init__()
        self.state = state


class LayerFeatures:
    """Hidden states of one layer of a speech model: HuBERT, wav2vec2, WavLM, Whisper's encoder, Mamba-HuBERT.

    A recording gives the same features alone and in a batch. Models whose front end normalises over time
    (``feat_extract_norm="group"``) would see the padding, so that only recordings of one length are run together.
    Whisper hears 30 s, one recording at a time; longer ones are cut into stretches of that. The others take a recording
    whole, at most ``MAX_SECONDS``: what a frame depends on is not bounded, so that pieces would give others.

    Args:
        model: an embedded model, a folder, a Hugging Face name, or a model.
        layer: 0 is the input of the first layer, ``n`` the output of the ``n``-th.
        device: ``"auto"`` (a GPU if there is one), or one of torch's.
        feature_extractor: says how waveforms are normalised (Whisper: makes the spectrograms). Default: the one beside
            the model; a Mamba-HuBERT without one takes waveforms as they are.

    Attributes:
        name: ``"MODEL:LAYER"``.
        frame_rate: frames a second, from the model's strides.
        first_center: half of what a frame sees; 0 of Whisper, whose windows are centred.
        dim: size of the hidden states.
        num_layers: of the model.
        sampling_rate: Hz of the waveforms.
        fingerprint: of the weights.

    Raises:
        ConfigError: there is no such model or layer, or no feature extractor where one is needed.
        HostError: it is no speech model of a known kind, or its checkpoint lacks weights.
    """

    def __init__(
        self, model: str | PreTrainedModel, layer: int, device: str = "auto", *, feature_extractor: Any = None
    ) -> None:
        name = model if isinstance(model, str) else model.name_or_path or type(model).__name__
        self._device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        loaded = load_model(AutoModel, model, "model") if isinstance(model, str) else model
        if feature_extractor is None:
            feature_extractor = _extractor(name, str(loaded.config.model_type), isinstance(model, str))
        config = loaded.config
        self._is_whisper = config.model_type == "whisper"
        base = loaded.base_model
        if self._is_whisper:
            if feature_extractor is None:
                raise ConfigError(f"model {name!r} is a Whisper; expected its feature_extractor beside it")
            base = base if hasattr(base, "conv1") else base.get_encoder()
            stride = 2 * feature_extractor.hop_length
            self.num_layers = int(config.encoder_layers)
        elif hasattr(config, "conv_kernel") and hasattr(config, "conv_stride"):
            stride = prod(config.conv_stride)
            self.num_layers = int(config.num_hidden_layers)
        else:
            raise HostError(
                f"model {name!r} of type {config.model_type!r}; expected a speech model with a frame-level encoder: "
                "HuBERT, wav2vec2, WavLM, Whisper or Mamba-HuBERT"
            )
        if not 0 <= layer <= self.num_layers:
            raise ConfigError(f"layer {layer} of {name!r}; expected 0 (the input of the first) to {self.num_layers}")
        self._model: Any = base.eval().to(self._device)
        self._extractor = feature_extractor
        self._normalizes = bool(getattr(feature_extractor, "do_normalize", False))
        self._sees_padding = getattr(config, "feat_extract_norm", "layer") == "group"
        self.layer = layer
        self.name = f"{name}:{layer}"
        # transformers' HubertConfig and its like state no rate: all of them are 16 kHz models.
        stated: Any = getattr(feature_extractor, "sampling_rate", None) or getattr(config, "sampling_rate", 16_000)
        self.sampling_rate = int(stated)
        self.frame_rate = self.sampling_rate / stride
        self.first_center = 0.0 if self._is_whisper else _receptive_field(config) / 2 / self.sampling_rate
        self.dim = int(config.hidden_size)
        self.fingerprint = _fingerprint(self._model)

    @property
    def model(self) -> PreTrainedModel:
        """The encoder, which is not trained."""
        encoder: PreTrainedModel = self._model
        return encoder

    @property
    def normalizes(self) -> bool:
        """Whether the model hears waveforms of zero mean and unit variance."""
        return self._normalizes and not self._is_whisper

    def num_frames(self, samples: int) -> int:
        """Frames of a recording of so many samples; none where it is shorter than what one frame sees."""
        if self._is_whisper:
            longest = int(self._extractor.n_samples)
            whole, rest = divmod(samples, longest)
            return whole * self._whisper_frames(longest) + self._whisper_frames(rest)
        config = self._model.config
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            samples = (samples - kernel) // stride + 1
            if samples <= 0:
                return 0
        return int(samples)

    def check_length(self, samples: int, name: str) -> None:
        """Check that a recording is not too long to be taken whole.

        Args:
            samples: of the recording.
            name: of the recording.

        Raises:
            AudioError: it is.
        """
        if not self._is_whisper and samples > MAX_SECONDS * self.sampling_rate:
            raise AudioError(
                f"{name}: is {samples / self.sampling_rate / 60:.1f} minutes long; {self.name} takes it whole, and "
                f"at most {MAX_SECONDS / 60:g} minutes: its memory grows with the length. Cut it, such as with: "
                "mambavox shards make DATA --output FOLDER --cut-seconds 30"
            )

    def _whisper_frames(self, samples: int) -> int:
        return int(self._model._get_feat_extract_output_lengths(samples // self._extractor.hop_length))

    def __call__(self, waveforms: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Features of some recordings, run as one batch where the model allows it.

        Args:
            waveforms: each ``(samples,)`` at ``sampling_rate``.

        Returns:
            Each ``(time, dim)``; ``(0, dim)`` where a recording is shorter than what one frame sees.

        Raises:
            AudioError: a waveform is not ``(samples,)``, or holds NaN or infinite samples.
        """
        return [layers[self.layer] for layers in self.all_layers(waveforms, [self.layer])]

    def all_layers(
        self, waveforms: Sequence[NDArray[np.float32]], layers: Sequence[int] | None = None
    ) -> list[dict[int, NDArray[np.float32]]]:
        """Features of several layers, in one forward pass.

        Args:
            waveforms: each ``(samples,)`` at ``sampling_rate``.
            layers: those wanted; default all of them, 0 to ``num_layers``.

        Returns:
            For each recording, layer -> ``(time, dim)``.

        Raises:
            AudioError: see :meth:`__call__`.
        """
        wanted = list(range(self.num_layers + 1) if layers is None else layers)
        checked = [_checked(waveform) for waveform in waveforms]
        empty = np.zeros((0, self.dim), np.float32)
        found = [dict.fromkeys(wanted, empty) for _ in checked]
        for batch, states in self._batches(checked, wanted):
            for layer in wanted:
                stacked = states[layer].float().cpu().numpy()
                for row, index in enumerate(batch):
                    found[index][layer] = stacked[row, : self.num_frames(len(checked[index]))].copy()
        return found

    def padded_layers(
        self, waveforms: Sequence[NDArray[np.float32]], layers: Sequence[int]
    ) -> Mapping[int, torch.Tensor]:
        """Features of several layers as tensors that stay on the device.

        Args:
            waveforms: each ``(samples,)`` at ``sampling_rate``.
            layers: those wanted.

        Returns:
            Layer -> ``(batch, time, dim)`` float32, zero beyond a recording's frames.

        Raises:
            AudioError: see :meth:`__call__`.
        """
        checked = [_checked(waveform) for waveform in waveforms]
        frames = [self.num_frames(len(waveform)) for waveform in checked]
        found = {
            layer: torch.zeros(len(frames), max(frames, default=0), self.dim, device=self._device) for layer in layers
        }
        for batch, states in self._batches(checked, layers):
            for layer in layers:
                for row, index in enumerate(batch):
                    found[layer][index, : frames[index]] = states[layer][row, : frames[index]]
        return found

    def _batches(
        self, waveforms: Sequence[NDArray[np.float32]], wanted: Sequence[int]
    ) -> Iterator[tuple[Sequence[int], Mapping[int, torch.Tensor]]]:
        """Recordings that are run together, and their layers: all, those of one length, or each alone."""
        together: dict[int, list[int]] = {}
        for index, waveform in enumerate(waveforms):
            group = index if self._is_whisper else len(waveform) if self._sees_padding else 0
            if self.num_frames(len(waveform)):
                together.setdefault(group, []).append(index)
        for batch in together.values():
            inputs = [waveforms[index] for index in batch]
            yield batch, self._run_whisper(inputs[0], wanted) if self._is_whisper else self._run(inputs, wanted)

    @torch.no_grad()
    @quiet_transformers()
    def _run(self, waveforms: Sequence[NDArray[np.float32]], wanted: Sequence[int]) -> Mapping[int, torch.Tensor]:
        lengths = [len(waveform) for waveform in waveforms]
        self.check_length(max(lengths), "a waveform")
        batch = torch.zeros(len(waveforms), max(lengths))
        for row, waveform in enumerate(waveforms):
            batch[row, : len(waveform)] = torch.from_numpy(self._normalized(waveform))
        mask = None
        if len(set(lengths)) > 1:
            mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long().to(self._device)
        return self._states(wanted, batch.to(self._device), attention_mask=mask)

    def _states(self, wanted: Sequence[int], *inputs: Any, **options: Any) -> Mapping[int, torch.Tensor]:
        """Hidden states of some layers; where it is one in the middle, later layers are not run."""
        stack = getattr(getattr(self._model, "encoder", self._model), "layers", None)
        if len(wanted) != 1 or wanted[0] == self.num_layers or stack is None or len(stack) != self.num_layers:
            states = self._model(*inputs, output_hidden_states=True, **options).hidden_states
            return {layer: states[layer] for layer in wanted}

        def stop(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            raise _Reached(arguments[0])

        handle = stack[wanted[0]].register_forward_pre_hook(stop)
        try:
            self._model(*inputs, **options)
        except _Reached as reached:
            return {wanted[0]: reached.state}
        finally:
            handle.remove()
        raise HostError(f"{self.name}: the model left out layer {wanted[0]}; expected it to run all of its layers")

    def _normalized(self, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        if not self._normalizes:
            return waveform
        # As Wav2Vec2FeatureExtractor has it.
        return (waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7)

    @torch.no_grad()
    def _run_whisper(self, waveform: NDArray[np.float32], wanted: Sequence[int]) -> Mapping[int, torch.Tensor]:
        longest = int(self._extractor.n_samples)
        pieces = []
        for start in range(0, len(waveform), longest):
            piece = waveform[start : start + longest]
            mel = self._extractor(piece, sampling_rate=self.sampling_rate, return_tensors="pt").input_features
            states = self._states(wanted, mel.to(self._device))
            pieces.append({layer: states[layer][:, : self._whisper_frames(len(piece))] for layer in wanted})
        return {layer: torch.cat([piece[layer] for piece in pieces], dim=1) for layer in wanted}


def load_features(source: str, device: str = "auto") -> Features:
    """The features that a source of targets names.

    Args:
        source: ``"mfcc"``, or ``"MODEL:LAYER"`` such as ``"runs/it1:6"``.
        device: of the model.

    Raises:
        ConfigError: it is neither, or see :class:`LayerFeatures`.
        HostError: see :class:`LayerFeatures`.
    """
    if source == MfccFeatures.name:
        return MfccFeatures()
    model, layer = split_source(source)
    return LayerFeatures(model, layer, device)


def split_source(source: str) -> tuple[str, int]:
    """Model and layer of ``"MODEL:LAYER"``.

    Raises:
        ConfigError: it is none.
    """
    model, _, layer = source.rpartition(":")
    if not model or not layer.isdecimal():
        raise ConfigError(
            f"targets from {source!r}; expected mfcc, or MODEL:LAYER with a folder or Hugging Face name and the number "
            "of a layer, such as runs/it1:6"
        )
    return model, int(layer)


def _receptive_field(config: Any) -> int:
    samples = 1
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        samples = (samples - 1) * stride + kernel
    return samples


def _checked(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    waveform = np.ascontiguousarray(waveform, dtype=np.float32)
    if waveform.ndim != 1:
        raise AudioError(f"a waveform has shape {waveform.shape}; expected (samples,)")
    if not np.isfinite(waveform).all():
        bad = np.flatnonzero(~np.isfinite(waveform))
        raise AudioError(
            f"{len(bad)} of {len(waveform)} samples of a waveform are NaN or infinite, the first is sample {bad[0]}; "
            "leave it out or record it again"
        )
    return waveform


def _extractor(name: str, model_type: str, from_files: bool) -> Any:
    if not from_files:
        return None
    try:
        return load_extractor(name, "model")
    except ConfigError as error:
        if model_type == MambaHubertConfig.model_type:
            return None
        raise ConfigError(
            f"model {name!r} has no preprocessor_config.json, which says whether its waveforms are normalised; "
            "expected one beside config.json"
        ) from error


def _fingerprint(model: torch.nn.Module) -> str:
    digest = blake2b(digest_size=8)
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
