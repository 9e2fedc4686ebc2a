"""Crops, units and masks: what lies where."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training.pretraining.conftest import TINY

from mambavox.data import Example, ListedExamples
from mambavox.data.batching import Crop
from mambavox.errors import AudioError, DataError
from mambavox.hubert import MambaHubertConfig
from mambavox.training.pretraining.data import CropDataset, collate
from mambavox.training.pretraining.recordings import hold_back, load_recordings, without_test

MODEL = MambaHubertConfig.nano("mamba", **TINY)


class Units(dict[str, Any]):
    num_clusters = 6

    def __init__(self, frame_rate: float, units: dict[str, Any]) -> None:
        super().__init__(units)
        self.frame_rate = frame_rate
        self.frames = np.array([len(labels) for labels in units.values()])

    def at(self, place: int, key: str) -> Any:
        assert list(self)[place] == key
        return self[key]


def ramp(samples: int, name: str = "ramp", **fields: Any) -> Example:
    """A recording whose sample number t has the value t / 2^15."""
    return Example((np.arange(samples, dtype=np.int16), 16_000), None, fields, name)


def load(*examples: Example, **options: Any) -> Any:
    return load_recordings(
        ListedExamples(examples), **{"min_samples": 400, "cache_bytes": 1e9, "raise_problems": True, **options}
    )


@pytest.mark.parametrize("unmasked_weight", [0.0, 1.0])
@pytest.mark.parametrize("frame_rate", [50.0, 100.0])
def test_units_are_those_of_the_frames(frame_rate: float, unmasked_weight: float) -> None:
    # A unit is the number of the 25 ms window that begins where it does, so that what is paired can be read off.
    samples, shift = 30_000, round(16_000 / frame_rate)
    begins = np.arange((samples - 400) // shift + 1, dtype=np.int32) * shift
    model = MambaHubertConfig.nano("mamba", **TINY, unmasked_weight=unmasked_weight)
    dataset = CropDataset(load(ramp(samples)), Units(frame_rate, {"ramp": begins}), model, (0,))
    starts = set()
    for epoch in range(8):
        item = dataset[Crop(epoch, 0, 8000)]
        first = round(item["waveform"][0] * 2**15)
        starts.add(first)
        labelled, hidden = item["labels"] != -100, item["mask"]
        assert hidden.any() and not hidden.all()
        # Frames that are seen have labels where the loss counts them.
        assert labelled.all() if unmasked_weight else torch.equal(labelled, hidden)
        frames = first + 320 * torch.arange(len(labelled))
        assert torch.equal(item["labels"][labelled], frames[labelled])
        assert len(labelled) == (8000 - 400) // 320 + 1
    assert len(starts) > 4


def test_items_depend_on_seed_epoch_and_recording_alone() -> None:
    units = Units(50.0, {name: np.zeros(93, np.int32) for name in "ab"})
    recordings = load(ramp(30_000, "a"), ramp(30_000, "b"))

    def item(seed: int, epoch: int, index: int) -> tuple[float, list[bool]]:
        torch.rand(3), np.random.rand(3)  # whatever else draws numbers
        found = CropDataset(recordings, units, MODEL, (seed,))[Crop(epoch, index, 9000)]
        return float(found["waveform"][0]), found["mask"].tolist()

    assert item(0, 1, 0) == item(0, 1, 0)
    assert len({str(item(*key)) for key in ((0, 1, 0), (1, 1, 0), (0, 2, 0), (0, 1, 1))}) == 4


def test_frames_beyond_the_last_unit_have_none() -> None:
    dataset = CropDataset(load(ramp(8000)), Units(50.0, {"ramp": np.zeros(22, np.int32)}), MODEL, (0,))
    labels = [dataset[Crop(epoch, 0, 8000)]["labels"] for epoch in range(20)]
    assert all((row[22:] == -100).all() for row in labels)
    assert any((row[:22] != -100).any() for row in labels)


def test_units_of_another_recording_are_told() -> None:
    with pytest.raises(DataError, match=r"ramp: is 0\.50 s long, but its targets are 1\.00 s \(100 at 100 Hz\)"):
        CropDataset(load(ramp(8000)), Units(100.0, {"ramp": np.zeros(100, np.int32)}), MODEL, (0,))


def test_collate_masks_padding_only_where_there_is_some() -> None:
    units = Units(50.0, {name: np.ones(60, np.int32) for name in "ab"})
    dataset = CropDataset(load(ramp(19_000, "a"), ramp(19_000, "b")), units, MODEL, (0,))
    assert "attention_mask" not in collate([dataset[Crop(0, index, 8000)] for index in (0, 1)])
    batch = collate([dataset[Crop(0, 0, 8000)], dataset[Crop(0, 1, 6000)]])
    assert batch["attention_mask"].sum(dim=1).tolist() == [8000, 6000]
    assert (batch["labels"][1, 18:] == -100).all() and not batch["mask_time_indices"][1, 18:].any()


def test_short_and_broken_recordings(tmp_path: Path) -> None:
    (tmp_path / "broken.wav").write_bytes(b"RIFF and nothing else")
    nan = Example((np.array([0.1, np.nan, 0.2] * 1000, np.float32), 16_000), name="nan")
    broken = Example(tmp_path / "broken.wav")
    with pytest.raises(AudioError, match=r"(?s)2 of 4 recordings.*nan.*NaN.*broken\.wav.*--on-error skip"):
        load(ramp(8000), nan, broken, ramp(399, "short"))
    found = load(ramp(8000), nan, broken, ramp(399, "short"), raise_problems=False)
    assert (found.keys, found.short, [problem.name for problem in found.problems]) == (
        ["ramp"],
        1,
        ["nan", str(tmp_path / "broken.wav")],
    )
    with pytest.raises(
        DataError, match=r"none of 2 recordings can be used: 1 are shorter than 0\.03 s, 1 cannot be read"
    ):
        load(nan, ramp(399), raise_problems=False)


def test_what_is_not_in_memory_reads_the_same(speech: str) -> None:
    from mambavox.data import read_examples

    examples = read_examples(speech, label_column=None)
    kept = load(*examples)
    some = load(*examples, cache_bytes=100_000)
    none = load(*examples, cache_bytes=0, known=kept.ledger)
    assert all(samples is not None for samples in kept.kept) and not any(samples is not None for samples in none.kept)
    assert 0 < sum(samples is not None for samples in some.kept) < len(examples)
    assert kept.lengths.tolist() == some.lengths.tolist() == none.lengths.tolist() and kept.keys == none.keys
    for index in (0, len(examples) - 1):
        assert np.array_equal(kept.read(index, 320, 999), none.read(index, 320, 999))
        assert np.array_equal(kept.read(index, 320, 999), examples[index].read()[320 : 320 + 999])


def test_a_known_recording_that_does_not_fit_is_not_read_again(speech: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mambavox.data import read_examples

    examples = read_examples(speech, label_column=None)
    ledger = load(*examples).ledger
    room = 2 * sum(list(ledger.values())[:3]) + 100  # the fourth does not fit, and a little room stays
    read, reads = Example.read, []
    monkeypatch.setattr(Example, "read", lambda self, *rate: reads.append(self.name) or read(self, *rate))
    monkeypatch.setattr("mambavox.training.pretraining.recordings._AHEAD", 1)
    found = load(*examples, cache_bytes=room, known=ledger)
    assert reads == [example.name for example in examples[:3]]
    assert [samples is not None for samples in found.kept] == [True] * 3 + [False] * (len(examples) - 3)
    assert found.lengths.tolist() == list(ledger.values())


def test_what_is_held_back() -> None:
    examples = ListedExamples([ramp(1, str(number)) for number in range(50)])
    train, valid, how = hold_back(examples, 0.1, seed=0)
    assert len(valid) == 5 and sorted(train + valid) == list(range(50)) and "draw of recordings" in how
    assert hold_back(examples, 0.1, seed=1).valid != valid
    assert hold_back(examples, 0.0, seed=0)[:2] == (list(range(50)), [])
    words = ("train", "dev", "test", "training", "train.clean.100", "validation_2", "Test-other")
    split = ListedExamples([ramp(1, word, split=word) for word in words])
    assert [example.name for example in without_test(split)] == [
        "train",
        "dev",
        "training",
        "train.clean.100",
        "validation_2",
    ]
    assert hold_back(without_test(split), 0.5, seed=0) == ([0, 2, 3], [1, 4], "by column split")
    assert without_test(examples) is examples
    with pytest.raises(DataError, match="none of 1 recordings is of the split train"):
        without_test(split[2:3])


@pytest.mark.parametrize("word", ["extra", "testimony", "trainees", "", None])
def test_words_of_no_part_are_told(word: str | None) -> None:
    """Otherwise what is meant for the test would be trained on."""
    split = [ramp(1, "a", split="train.clean.100"), ramp(1, "b", split="test.clean"), ramp(1, "c", split=word)]
    with pytest.raises(
        DataError, match=rf"column split holds '{word or ''}'.*also holds train.*begin with train.*rename"
    ):
        without_test(ListedExamples(split))
