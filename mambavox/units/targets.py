"""Targets of pre-training: fit a quantizer to a part of the recordings, then label all of them."""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mambavox.data import SAMPLING_RATE, Example, Waveform, recording_keys
from mambavox.errors import ConfigError, DataError
from mambavox.files import is_empty
from mambavox.units.features import Features, MfccFeatures, load_features, split_source
from mambavox.units.kmeans import METADATA_FILE, UnitQuantizer, too_few_frames
from mambavox.units.labels import PLAN_FILE, LabelsPlan, Shard, UnitLabels, read_shards, shard_path

_SHARD_RECORDINGS = 1000
_READERS = 4
_READ_AHEAD = 16  # recordings
_SORTED_BATCHES = 8  # of whose recordings like lengths go together

# What a second call may not change. It may take smaller batches: a GPU that was too small is no reason to begin anew.
_FIXED = ("source", "num_clusters", "fraction", "seed", "shard_recordings")


def make_targets(
    examples: Sequence[Example],
    source: str,
    num_clusters: int,
    folder: Path,
    *,
    fraction: float = 1.0,
    seed: int = 0,
    device: str = "auto",
    batch_seconds: float = 100.0,
    shard_recordings: int = _SHARD_RECORDINGS,
    quantizer: UnitQuantizer | None = None,
    features: Features | None = None,
    fit_on: Sequence[int] | None = None,
    console: Console | None = None,
) -> UnitLabels:
    """Make the labels of recordings, or continue where an earlier call with the same arguments was stopped.

    The folder receives the quantizer (``kmeans.safetensors``, ``kmeans.json``), shards of labels, and
    ``targets.json``. A finished folder is opened without loading the model. One process writes: in a distributed run,
    call it in one and let the others wait.

    Args:
        examples: the recordings; their keys are those of :func:`mambavox.data.recording_keys` of the same list.
        source: ``"mfcc"``, or ``"MODEL:LAYER"`` such as ``"runs/it1:6"``.
        num_clusters: number of units.
        folder: where to.
        fraction: of the recordings that the quantizer is fitted on; at least one is.
        seed: of their choice and of the fit.
        device: of the model.
        batch_seconds: of audio that goes through the model at a time, padding included; a call that continues may
            change it.
        shard_recordings: recordings of a shard.
        quantizer: one that was fitted before, such as on other data; nothing is fitted then, and ``fraction`` and
            ``seed`` change nothing.
        features: those of the source, where they were loaded before.
        fit_on: indices of the recordings that the quantizer may be fitted on, those for training; ``None``: all.
        console: shows the progress.

    Raises:
        ConfigError: an argument is out of its range, or the source is none.
        DataError: the folder was begun with other arguments or recordings, two recordings have one key, or there are
            too few frames.
        AudioError: a recording cannot be read; what was labelled before is kept.
    """
    _check(source, num_clusters, fraction, batch_seconds, shard_recordings)
    folder = Path(folder)
    if quantizer is not None:
        _check_quantizer(quantizer, source, num_clusters, folder)
    keys = recording_keys(examples)
    if not keys:
        raise DataError("there are no recordings to label; expected at least one")
    plan = LabelsPlan(
        source=source,
        num_clusters=num_clusters,
        fraction=fraction,
        seed=seed,
        recordings=len(keys),
        recordings_digest=_digest(keys),
        frame_rate=0.0,
        fingerprint="",
        shard_recordings=shard_recordings,
        batch_seconds=batch_seconds,
        finished=False,
    )
    before = _begun(folder, plan, keys)
    if before is not None and before.finished:
        return UnitLabels.load(folder)
    features = features or load_features(source, device)
    plan = replace(plan, frame_rate=features.frame_rate, fingerprint=features.fingerprint)
    if before is not None and before.fingerprint != features.fingerprint:
        raise DataError(
            f"{folder}: its labels were begun with other weights of {source}; name the model that they were begun "
            "with, or a new folder"
        )
    if quantizer is not None and quantizer.metadata.fingerprint != features.fingerprint:
        raise DataError(
            f"the quantizer was fitted to other weights of {source}; name the model that it was fitted to, or fit a "
            "new one"
        )
    plan.save(folder)
    if (folder / METADATA_FILE).is_file():
        quantizer = UnitQuantizer.load(folder)
    elif quantizer is not None:
        quantizer.save(folder)
    else:
        # In the order of a corpus the first buffer, and so the first centres, would be of a few speakers.
        order = _sampled(keys, fit_on, fraction, seed)
        quantizer = fit_quantizer(
            ((keys[place], examples[place]) for place in order),
            features,
            num_clusters,
            seed=seed,
            batch_seconds=batch_seconds,
            console=console,
            total=len(order),
        )
        quantizer.save(folder)
    label_recordings(
        zip(keys, examples, strict=True),
        features,
        quantizer,
        folder,
        batch_seconds=batch_seconds,
        shard_recordings=shard_recordings,
        console=console,
        total=len(keys),
    )
    replace(plan, finished=True).save(folder)
    return UnitLabels.load(folder)


def check_targets(
    examples: Sequence[Example],
    samples: Sequence[int] | NDArray[np.int64],
    features: Features,
    num_clusters: int,
    *,
    fraction: float = 1.0,
    seed: int = 0,
    fit_on: Sequence[int] | None = None,
) -> None:
    """Check, before anything is read, that targets can be made of recordings.

    Args:
        examples: the recordings.
        samples: length of each at 16 kHz.
        features: what units are made of.
        num_clusters: see :func:`make_targets`.
        fraction: see :func:`make_targets`.
        seed: see :func:`make_targets`.
        fit_on: see :func:`make_targets`.

    Raises:
        AudioError: a recording is too long for the model.
        DataError: the frames that the quantizer would be fitted on are fewer than the units.
    """
    resampled = np.rint(np.asarray(samples) * (features.sampling_rate / SAMPLING_RATE)).astype(np.int64)
    longest = int(resampled.argmax())
    features.check_length(int(resampled[longest]), examples[longest].name)
    keys, frames = recording_keys(examples), 0
    rows = range(len(keys)) if fit_on is None else fit_on
    for place in rows:
        if is_sampled(keys[place], fraction, seed):
            frames += features.num_frames(int(resampled[place]))
            if frames >= num_clusters:
                return
    frames = sum(features.num_frames(int(resampled[place])) for place in _sampled(keys, fit_on, fraction, seed))
    if frames < num_clusters:
        raise DataError(too_few_frames(frames, num_clusters))


def fit_quantizer(
    recordings: Iterable[tuple[str, Example]],
    features: Features,
    num_clusters: int,
    *,
    fraction: float = 1.0,
    seed: int = 0,
    batch_seconds: float = 100.0,
    console: Console | None = None,
    total: int | None = None,
) -> UnitQuantizer:
    """Fit a quantizer to the features of a part of the recordings, which are read one after the other.

    Args:
        recordings: key and recording; gone through once.
        features: what to fit to.
        num_clusters: number of units.
        fraction: of the recordings, at least one; which ones depends on their keys and the seed alone.
        seed: of their choice and of the fit.
        batch_seconds: of audio at a time.
        console: shows the progress.
        total: number of recordings, where known.

    Raises:
        DataError: there are too few frames.
        AudioError: a recording cannot be read.
    """
    with _progress("fit the units", console, total) as advance:

        def batches() -> Iterator[NDArray[np.float32]]:
            for batch in _windows(_counted(recordings, advance, fraction, seed), features, batch_seconds):
                for part in _computed(batch, features, batch_seconds):
                    yield from (frames for _, frames in part)

        return UnitQuantizer.fit(
            batches(),
            num_clusters,
            seed,
            source=features.name,
            frame_rate=features.frame_rate,
            fingerprint=features.fingerprint,
        )


def label_recordings(
    recordings: Iterable[tuple[str, Example]],
    features: Features,
    quantizer: UnitQuantizer,
    folder: Path,
    *,
    batch_seconds: float = 100.0,
    shard_recordings: int = _SHARD_RECORDINGS,
    console: Console | None = None,
    total: int | None = None,
) -> int:
    """Label recordings in their order, shard by shard; shards that are there are not made again.

    Recordings are taken one after the other, and decoded only where their shard is missing: the source may be a stream,
    and memory holds one shard's recordings as they come and a few decoded batches.

    Args:
        recordings: key and recording, in the order of an earlier call.
        features: of the quantizer.
        quantizer: makes units of features.
        folder: where to.
        batch_seconds: of audio at a time.
        shard_recordings: recordings of a shard.
        console: shows the progress.
        total: number of recordings, where known.

    Returns:
        Number of recordings.

    Raises:
        DataError: shards hold other recordings.
        AudioError: a recording cannot be read; the shards before are kept.
    """
    done = read_shards(folder)
    stream = iter(recordings)
    labelled = 0
    with _progress("label", console, total) as advance:
        for number, group in enumerate(_groups(stream, shard_recordings)):
            if number < len(done):
                _check_keys(done[number], [key for key, _ in group])
                advance(len(group))
            else:
                labels: list[tuple[str, NDArray[np.int32]]] = []
                for window in _windows(group, features, batch_seconds):
                    units: dict[str, NDArray[np.int32]] = {}
                    for part in _computed(window, features, batch_seconds):
                        for key, frames in part:
                            units[key] = quantizer(frames)
                            advance(1)
                    labels += [(key, units[key]) for key, _ in window]
                Shard.write(folder, number, labels, quantizer.num_clusters)
            labelled += len(group)
    if len(done) > -(-labelled // shard_recordings):
        extra = shard_path(folder, -(-labelled // shard_recordings))
        raise DataError(f"{extra}: holds recordings that are not among the {labelled} given; give those of then")
    return labelled


def _check(source: str, num_clusters: int, fraction: float, batch_seconds: float, shard_recordings: int) -> None:
    if source != MfccFeatures.name:
        split_source(source)
    if num_clusters < 1:
        raise ConfigError(f"num_clusters={num_clusters}; expected at least 1")
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction={fraction:g}; expected above 0, at most 1")
    if not batch_seconds > 0:
        raise ConfigError(f"batch_seconds={batch_seconds:g}; expected above 0")
    if shard_recordings < 1:
        raise ConfigError(f"shard_recordings={shard_recordings}; expected at least 1")


def _check_quantizer(quantizer: UnitQuantizer, source: str, num_clusters: int, folder: Path) -> None:
    given = (quantizer.metadata.source, quantizer.num_clusters)
    if given != (source, num_clusters):
        raise ConfigError(
            f"the quantizer has {given[1]} units of {given[0]}, and {num_clusters} of {source} are asked for; expected "
            "the same"
        )
    if (folder / METADATA_FILE).is_file() and not np.array_equal(UnitQuantizer.load(folder).centers, quantizer.centers):
        raise DataError(f"{folder}: holds labels of another quantizer; give that one, or a new folder")


def _begun(folder: Path, plan: LabelsPlan, keys: Sequence[str]) -> LabelsPlan | None:
    """The plan that a folder was begun with; ``None`` of a new one."""
    if not (folder / PLAN_FILE).is_file():
        if folder.is_dir() and not is_empty(folder):
            raise DataError(f"{folder}: is not empty and holds no unit labels ({PLAN_FILE}); expected a new folder")
        return None
    before = LabelsPlan.load(folder)
    then, now = asdict(before), asdict(plan)
    changes = [f"{name} was {then[name]} and is {now[name]}" for name in _FIXED if then[name] != now[name]]
    if changes:
        raise DataError(
            f"{folder}: holds labels of other arguments: {', '.join(changes)}; leave them as they were, or give a new "
            "folder"
        )
    if before.recordings_digest != plan.recordings_digest:
        difference = f"{before.recordings} then, {plan.recordings} now"
        held = [key for shard in read_shards(folder) for key in shard.read_keys()]
        for position, (old, new) in enumerate(zip(held, keys, strict=False)):
            if old != new:
                difference += f"; number {position + 1} was {old!r} and is {new!r}"
                break
        raise DataError(
            f"{folder}: holds labels of other recordings, or in another order ({difference}); give those of then, or a "
            "new folder"
        )
    return before


def _check_keys(shard: Shard, keys: Sequence[str]) -> None:
    held = shard.read_keys()
    if held != list(keys):
        position, old, new = next(
            (position, old, new)
            for position, (old, new) in enumerate(zip([*held, None], [*keys, None], strict=False))
            if old != new
        )
        raise DataError(
            f"{shard.path}: holds other recordings; its number {position + 1} is {old!r}, that of the data {new!r}: "
            "give the data of then, or a new folder"
        )


def _groups(stream: Iterator[tuple[str, Example]], size: int) -> Iterator[list[tuple[str, Example]]]:
    while group := list(islice(stream, size)):
        yield group


def _counted(
    recordings: Iterable[tuple[str, Example]], advance: Callable[[int], None], fraction: float, seed: int
) -> Iterator[tuple[str, Example]]:
    """The sampled recordings; where there is none, the one that a larger fraction would take first."""
    first: tuple[int, str, Example] | None = None
    found = False
    for key, example in recordings:
        advance(1)
        if is_sampled(key, fraction, seed):
            found = True
            yield key, example
        elif not found and (first is None or _hash(key, seed) < first[0]):
            first = _hash(key, seed), key, example
    if not found and first is not None:
        yield first[1:]


def _sampled(keys: Sequence[str], fit_on: Sequence[int] | None, fraction: float, seed: int) -> list[int]:
    """The recordings that a quantizer is fitted on, at least one, in an order that is not that of the corpus."""
    hashes = [(_hash(keys[place], seed), place) for place in (range(len(keys)) if fit_on is None else fit_on)]
    return [place for _, place in sorted(row for row in hashes if row[0] < fraction * 2**64) or [min(hashes)]]


def is_sampled(key: str, fraction: float, seed: int) -> bool:
    """Whether a recording is among the sampled ones: a hash of key and seed decides, not its neighbours."""
    return _hash(key, seed) < fraction * 2**64


def _hash(key: str, seed: int) -> int:
    return int.from_bytes(blake2b(f"{seed}:{key}".encode(), digest_size=8).digest(), "big")


def _windows(
    recordings: Iterable[tuple[str, Example]], features: Features, batch_seconds: float
) -> Iterator[list[tuple[str, Waveform]]]:
    """Waveforms of some batches at a time."""
    most = batch_seconds * features.sampling_rate * _SORTED_BATCHES
    window: list[tuple[str, Waveform]] = []
    samples = 0
    for key, waveform in _read_ahead(recordings, features.sampling_rate):
        if window and samples + len(waveform) > most:
            yield window
            window, samples = [], 0
        window.append((key, waveform))
        samples += len(waveform)
    if window:
        yield window


def _read_ahead(recordings: Iterable[tuple[str, Example]], sampling_rate: int) -> Iterator[tuple[str, Waveform]]:
    """Waveforms in order, decoded by threads while the model works."""
    stream = iter(recordings)
    with ThreadPoolExecutor(_READERS) as pool:
        waiting: deque[tuple[str, Future[Waveform]]] = deque()
        try:
            while True:
                for key, example in islice(stream, _READ_AHEAD - len(waiting)):
                    waiting.append((key, pool.submit(example.read, sampling_rate)))
                if not waiting:
                    return
                key, waveform = waiting.popleft()
                yield key, waveform.result()
        finally:
            for _, waveform in waiting:
                waveform.cancel()


def _computed(
    window: Sequence[tuple[str, Waveform]], features: Features, batch_seconds: float
) -> Iterator[list[tuple[str, NDArray[np.float32]]]]:
    """Features of a window's recordings, those of like length together."""
    most = batch_seconds * features.sampling_rate
    batch: list[tuple[str, Waveform]] = []
    for key, waveform in sorted(window, key=lambda item: (len(item[1]), item[0])):
        if batch and len(waveform) * (len(batch) + 1) > most:
            yield _run(batch, features)
            batch = []
        batch.append((key, waveform))
    if batch:
        yield _run(batch, features)


def _run(batch: Sequence[tuple[str, Waveform]], features: Features) -> list[tuple[str, NDArray[np.float32]]]:
    for key, waveform in batch:
        features.check_length(len(waveform), key)
    found = features([waveform for _, waveform in batch])
    for (key, _), frames in zip(batch, found, strict=True):
        if not np.isfinite(frames).all():
            raise DataError(f"{features.name}: its features of {key!r} hold NaN or infinite values; has it diverged?")
    return [(key, frames) for (key, _), frames in zip(batch, found, strict=True)]


def _digest(keys: Sequence[str]) -> str:
    digest = blake2b(b"[", digest_size=16)
    for place, key in enumerate(keys):  # piece by piece the text of the list in JSON, which may be of a gigabyte
        digest.update((", " if place else "").encode() + json.dumps(key).encode())
    digest.update(b"]")
    return digest.hexdigest()


class _progress:
    """Shows how many recordings are done; a context that gives the function to be called."""

    def __init__(self, title: str, console: Console | None, total: int | None) -> None:
        self._bar: Any = nullcontext()
        if console is not None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task(title, total=total)

    def __enter__(self) -> Callable[[int], None]:
        self._bar.__enter__()
        if isinstance(self._bar, Progress):
            bar = self._bar
            return lambda count: bar.advance(self._task, count)
        return lambda count: None

    def __exit__(self, *raised: Any) -> None:
        self._bar.__exit__(*raised)
