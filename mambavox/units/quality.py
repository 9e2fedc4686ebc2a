"""How well units fit phones whose times are known."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from mambavox.errors import ConfigError, DataError
from mambavox.units.features import Features, LayerFeatures
from mambavox.units.kmeans import UnitQuantizer
from mambavox.units.phones import AlignedSpeech, frame_phones
from mambavox.units.similarity import held_out_cca, linear_cka, one_hot, pwcca, segment_means

_MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class UnitQuality:
    """Agreement of units and phones, over frames.

    Attributes:
        phone_purity: share of frames whose phone is the commonest one of their unit.
        cluster_purity: share of frames whose unit is the commonest one of their phone.
        pnmi: mutual information of unit and phone over the entropy of phones: what share of the phone a unit tells.
        perplexity: exponential of the units' entropy, the number of units in even use.
        units_used: number of units that occur.
        chance_purity: share of the commonest phone, the phone purity of a single unit.
        frames: number of frames.

    Source:
        HuBERT (arXiv 2106.07447), section V-A; Mamba-based HuBERT (arXiv 2506.12606) calls phone purity purity.
    """

    phone_purity: float
    cluster_purity: float
    pnmi: float
    perplexity: float
    units_used: int
    chance_purity: float
    frames: int

    @classmethod
    def from_counts(cls, counts: NDArray[np.integer]) -> "UnitQuality":
        """Figures of a table of counts.

        Args:
            counts: ``(units, phones)`` numbers of frames.

        Raises:
            DataError: there are no frames.
        """
        frames = int(counts.sum())
        if not frames:
            raise DataError("no frame has both a unit and a phone; expected aligned speech of at least one frame")
        joint = counts / frames
        units, phones = joint.sum(axis=1), joint.sum(axis=0)
        phone_entropy = _entropy(phones)
        information = _entropy(units) + phone_entropy - _entropy(joint)
        return cls(
            phone_purity=float(joint.max(axis=1).sum()),
            cluster_purity=float(joint.max(axis=0).sum()),
            pnmi=max(information, 0.0) / phone_entropy if phone_entropy > 0 else 0.0,
            perplexity=float(np.exp(_entropy(units))),
            units_used=int((units > 0).sum()),
            chance_purity=float(phones.max()),
            frames=frames,
        )


@dataclass(frozen=True)
class LayerQuality:
    """One row of a table over layers.

    Attributes:
        source: ``"mfcc"`` or ``"MODEL:LAYER"``.
        num_clusters: number of units.
        quality: of the units.
        phone_pwcca: PWCCA of hidden states, averaged over phone segments, with one-hot phones; fitted and measured on
            the same segments.
        phone_cca: mean canonical correlation of these on every second recording, along directions fitted on the others;
            ``None`` where there are fewer than three segments for each.
        phone_cka: linear CKA of these.
        speaker_cca: as ``phone_cca``, of hidden states averaged over a recording, with one-hot speakers; ``None`` where
            there are fewer than two speakers, a speaker with one recording, or fewer than three recordings for each.
    """

    source: str
    num_clusters: int
    quality: UnitQuality
    phone_pwcca: float
    phone_cca: float | None
    phone_cka: float
    speaker_cca: float | None

    def to_mapping(self) -> dict[str, Any]:
        """For JSON, one flat row."""
        row = asdict(self)
        return {"source": row.pop("source"), "num_clusters": row.pop("num_clusters"), **row.pop("quality"), **row}


def count_pairs(units: Sequence[NDArray[np.int32]], phones: Sequence[NDArray[np.str_]]) -> NDArray[np.int64]:
    """Table of how often units and phones meet.

    Args:
        units: ``(time,)`` of each recording.
        phones: ``(time,)`` of each recording; frames with an empty one are left out.

    Returns:
        ``(units, phones)``; phones in alphabetical order.
    """
    flat_units = np.concatenate([np.zeros(0, np.int32), *units])
    flat_phones = np.concatenate([np.zeros(0, "U1"), *phones])
    known = flat_phones != ""
    symbols, indices = np.unique(flat_phones[known], return_inverse=True)
    flat_units = flat_units[known]
    counts = np.zeros((int(flat_units.max(initial=-1)) + 1, len(symbols)), np.int64)
    np.add.at(counts, (flat_units, indices), 1)
    return counts


def measure_layers(
    features: Features,
    fit: Sequence[AlignedSpeech],
    test: Sequence[AlignedSpeech],
    num_clusters: int,
    *,
    layers: Sequence[int] | None = None,
    seed: int = 0,
    max_bytes: int = _MAX_BYTES,
    console: Console | None = None,
) -> list[LayerQuality]:
    """Fit units to each layer on some recordings, and measure them on others.

    Units that were fitted before are measured by :func:`measure_quantizer`.

    Args:
        features: MFCC, or a layer of a model whose other layers are measured, too.
        fit: recordings to fit to; the phones are not used.
        test: recordings to measure on.
        num_clusters: number of units.
        layers: of the model; default all, 0 (the input of the first) included.
        seed: of the fits.
        max_bytes: of features in memory; layers beyond that are taken in turns, with another forward pass each turn.
        console: told what is done.

    Raises:
        ConfigError: there is no such layer.
        DataError: there are too few frames.
    """
    if not isinstance(features, LayerFeatures):
        quantizer = _fit(features.name, features, _all(features, fit), num_clusters, seed)
        return [_measure(quantizer, features, _all(features, test), test)]
    wanted = list(range(features.num_layers + 1) if layers is None else layers)
    for layer in wanted:
        if not 0 <= layer <= features.num_layers:
            raise ConfigError(f"layer {layer}; expected 0 (the input of the first) to {features.num_layers}")
    frames = sum(features.num_frames(len(recording.waveform)) for recording in (*fit, *test))
    turn = max(1, max_bytes // max(1, 4 * frames * features.dim))
    model = features.name.rpartition(":")[0]
    rows = []
    for start in range(0, len(wanted), turn):
        group = wanted[start : start + turn]
        if console is not None:
            console.print(f"{model}: layers {', '.join(map(str, group))}", markup=False)
        fitted = [features.all_layers([recording.waveform], group)[0] for recording in fit]
        tested = [features.all_layers([recording.waveform], group)[0] for recording in test]
        for layer in group:
            frames_fit, frames_test = ([found[layer] for found in part] for part in (fitted, tested))
            quantizer = _fit(f"{model}:{layer}", features, frames_fit, num_clusters, seed)
            rows.append(_measure(quantizer, features, frames_test, test))
    return rows


def measure_quantizer(quantizer: UnitQuantizer, features: Features, test: Sequence[AlignedSpeech]) -> LayerQuality:
    """Measure units that were fitted before, and the features that they were fitted to.

    Args:
        quantizer: makes the units.
        features: of the quantizer.
        test: recordings with their phones.

    Raises:
        DataError: the features are of another model, or no frame has a phone.
    """
    if quantizer.metadata.fingerprint != features.fingerprint:
        raise DataError(
            f"the quantizer was fitted to other weights of {features.name}; name the model that it was fitted to"
        )
    return _measure(quantizer, features, _all(features, test), test)


def _all(features: Features, speech: Sequence[AlignedSpeech]) -> list[NDArray[np.float32]]:
    return [features([recording.waveform])[0] for recording in speech]


def _fit(
    source: str, features: Features, frames: Sequence[NDArray[np.float32]], num_clusters: int, seed: int
) -> UnitQuantizer:
    return UnitQuantizer.fit(
        frames,
        num_clusters,
        seed,
        source=source,
        frame_rate=features.frame_rate,
        fingerprint=features.fingerprint,
    )


def _measure(
    quantizer: UnitQuantizer,
    features: Features,
    test: Sequence[NDArray[np.float32]],
    speech: Sequence[AlignedSpeech],
) -> LayerQuality:
    place = features.frame_rate, features.first_center
    units = [quantizer(frames) for frames in test]
    phones = [
        frame_phones(recording.phones, len(frames), *place) for recording, frames in zip(speech, test, strict=True)
    ]
    means, symbols, second = [], [], []
    for number, (recording, frames) in enumerate(zip(speech, test, strict=True)):
        found, names = segment_means(frames, recording.phones, *place)
        means.append(found)
        symbols += names
        second += [number % 2 == 1] * len(names)
    states, hot = np.concatenate(means), one_hot(symbols)
    return LayerQuality(
        source=quantizer.metadata.source,
        num_clusters=quantizer.num_clusters,
        quality=UnitQuality.from_counts(count_pairs(units, phones)),
        phone_pwcca=pwcca(states, hot),
        phone_cca=_held_out(states, hot, np.array(second)),
        phone_cka=linear_cka(states, hot),
        speaker_cca=_speaker_cca(test, [recording.speaker for recording in speech]),
    )


def _speaker_cca(test: Sequence[NDArray[np.float32]], speakers: Sequence[str]) -> float | None:
    means, known, second = [], [], []
    seen: Counter[str] = Counter()
    for frames, speaker in zip(test, speakers, strict=True):
        if speaker and len(frames):
            means.append(frames.mean(axis=0))
            known.append(speaker)
            second.append(seen[speaker] % 2 == 1)
            seen[speaker] += 1
    if len(seen) < 2 or min(seen.values()) < 2:
        return None
    return _held_out(np.array(means), one_hot(known), np.array(second))


def _held_out(states: NDArray[np.float32], hot: NDArray[np.float64], second: NDArray[np.bool_]) -> float | None:
    """Correlation on the second part along directions fitted on the rest."""
    if min(second.sum(), (~second).sum()) < 3:
        return None
    return held_out_cca(states[~second], hot[~second], states[second], hot[second])


def _entropy(probabilities: NDArray[np.floating]) -> float:
    positive = probabilities[probabilities > 0]
    return float(-(positive * np.log(positive)).sum())
