"""Features: batches, masks and the order of the data."""

from collections.abc import Callable

import numpy as np
import pytest
from tiny import FAMILIES

from mambavox.data import Example, read_examples
from mambavox.errors import DataError
from mambavox.training.classify.backbone import load_backbone
from mambavox.training.classify.objective import predict_logits
from mambavox.training.features import Collator, FeatureDataset, mask_spectrogram
from mambavox.training.sampling import EpochSampler, bucket_by_length

LABELS = ["high", "low"]


@pytest.mark.parametrize("family", FAMILIES)
def test_neighbours_in_a_batch_change_nothing(backbone: Callable[[str], str], tones: str, family: str) -> None:
    loaded = load_backbone(backbone(family), LABELS, 0.3)
    loaded.model.eval()
    examples = read_examples(tones)[:4]
    together = predict_logits(loaded.model, FeatureDataset(examples, None, loaded.front_end), batch_size=4)
    alone = predict_logits(loaded.model, FeatureDataset(examples, None, loaded.front_end), batch_size=1)
    np.testing.assert_allclose(together, alone, atol=2e-5)


def test_features_are_kept_within_bounds(backbone: Callable[[str], str], tones: str) -> None:
    front_end = load_backbone(backbone("ast"), LABELS, 0.3).front_end
    examples = read_examples(tones)
    kept = FeatureDataset(examples, LABELS, front_end)
    assert kept[0]["features"] is kept[0]["features"]
    one = FeatureDataset(examples, LABELS, front_end, max_bytes=kept[0]["features"].nbytes)
    first, second = one[0]["features"], one[1]["features"]
    assert one[0]["features"] is first
    assert one[1]["features"] is not second
    np.testing.assert_array_equal(one[1]["features"], second)
    batch = Collator(front_end)([kept[0], kept[1]])
    assert batch["labels"].tolist() == [LABELS.index(str(example.label)) for example in examples[:2]]


def test_unknown_classes_are_named(backbone: Callable[[str], str]) -> None:
    front_end = load_backbone(backbone("ast"), LABELS, 0.3).front_end
    waveform = (np.ones(4000, np.float32), 16_000)
    with pytest.raises(DataError, match="middle"):
        FeatureDataset([Example(waveform, "low"), Example(waveform, "middle")], LABELS, front_end)


@pytest.mark.parametrize("mel_axis", [0, 1])
def test_masks_stay_inside_the_sound(mel_axis: int) -> None:
    frames, mels, padding = 50, 32, 30
    spectrogram = np.random.default_rng(0).standard_normal((frames + padding, mels)).astype(np.float32)
    original = spectrogram if mel_axis == 1 else np.ascontiguousarray(spectrogram.T)
    seen_bands = seen_stretches = 0
    for seed in range(20):
        masked = mask_spectrogram(original, frames, mel_axis, np.random.default_rng(seed))
        changed = (masked if mel_axis == 1 else masked.T) != spectrogram
        assert not changed[frames:].any()
        bands, stretches = changed[:frames].all(axis=0).sum(), changed[:frames].all(axis=1).sum()
        assert bands <= 6  # 24 of 128
        assert stretches <= 8  # 80 of 500
        seen_bands, seen_stretches = seen_bands + bands, seen_stretches + stretches
    assert seen_bands and seen_stretches


def test_masks_and_order_follow_seed_and_epoch(backbone: Callable[[str], str], tones: str) -> None:
    front_end = load_backbone(backbone("ast"), LABELS, 0.3).front_end
    examples = read_examples(tones)

    def drawn(seed: int, epoch: int) -> tuple[list[int], np.ndarray]:
        dataset = FeatureDataset(examples, LABELS, front_end, spec_augment=True, seed=seed)
        sampler = EpochSampler(dataset, seed)
        sampler.set_epoch(epoch)
        return list(sampler), np.stack([dataset[index]["features"] for index in range(len(dataset))])

    order, features = drawn(0, 3)
    again = drawn(0, 3)
    assert order == again[0]
    assert sorted(order) == list(range(len(examples)))
    np.testing.assert_array_equal(features, again[1])
    for other in (drawn(0, 4), drawn(1, 3)):
        assert other[0] != order
        assert (other[1] != features).any()
    plain = FeatureDataset(examples, LABELS, front_end)
    assert (plain[0]["features"] == plain[0]["features"]).all()


def test_predict_logits_restores_modes(backbone: Callable[[str], str], tones: str) -> None:
    loaded = load_backbone(backbone("hubert"), LABELS, 0.3)
    loaded.model.train()
    loaded.model.classifier.eval()
    predict_logits(loaded.model, FeatureDataset(read_examples(tones)[:1], None, loaded.front_end))
    assert loaded.model.training
    assert not loaded.model.classifier.training


def test_buckets_hold_clips_of_like_length_and_every_clip_once() -> None:
    lengths = np.random.default_rng(0).uniform(0, 10, 203).tolist()

    def batches(epoch: int) -> list[list[int]]:
        generator = np.random.default_rng((0, epoch))
        order = bucket_by_length(generator.permutation(203).tolist(), lengths, 4, generator)
        assert sorted(order) == list(range(203))
        return [order[start : start + 4] for start in range(0, 203, 4)]

    first = batches(0)
    assert [len(batch) for batch in first] == [4] * 50 + [3]
    spread = [max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in first[:-1]]
    assert np.mean(spread) < 0.5
    means = [np.mean([lengths[i] for i in batch]) for batch in first]
    assert abs(np.corrcoef(means, range(51))[0, 1]) < 0.4, "short and long batches come mixed"
    assert batches(0) == first
    assert {frozenset(batch) for batch in batches(1)} != {frozenset(batch) for batch in first}


def test_buckets_save_padding(backbone: Callable[[str], str], tones: str) -> None:
    loaded = load_backbone(backbone("hubert"), LABELS, 0.3)
    dataset = FeatureDataset(read_examples(tones), None, loaded.front_end)

    def padded(bucketed: int | None) -> int:
        order = list(EpochSampler(dataset, 0, bucketed=bucketed))
        assert sorted(order) == list(range(12))
        batches = [[dataset[index] for index in order[start : start + 3]] for start in range(0, 12, 3)]
        return sum(Collator(loaded.front_end)(batch)["input_values"].numel() for batch in batches)

    assert padded(3) < padded(None)
