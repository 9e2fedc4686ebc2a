"""Pre-training on tars learns what it learns on files, on any number of processes, and resumes where it was."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training.pretraining.conftest import tiny_run, write_speech
from training.pretraining.test_processes import _NO_DROPOUT, _together
from training.pretraining.test_resume import _kill_after, assert_same
from typer.testing import CliRunner

from mambavox.cli import app
from mambavox.data import ShardedExamples, read_examples, read_recordings
from mambavox.data.shards.archive import OpenTars
from mambavox.data.shards.pack import make_shards
from mambavox.errors import AudioError, DataError
from mambavox.training.pretraining.objective import PretrainTrainer
from mambavox.training.pretraining.plan import plan
from mambavox.training.pretraining.recordings import hold_back, indexed_recordings, without_test
from mambavox.training.run import run as train
from mambavox.units import UnitLabels


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A folder of parts with 16 recordings, and the same in 9 tars, 2 of them valid."""
    folder = tmp_path_factory.mktemp("packed")
    write_speech(folder / "speech" / "train", clips=13)
    write_speech(folder / "speech" / "valid", clips=3, seed=1)
    examples = read_examples(folder / "speech", label_column=None)
    tars = make_shards(examples, folder / "tars", shard_bytes=40_000, audio="keep", seed=None).tars
    assert tars == 9
    return str(folder / "speech"), f"shards:{folder}/tars/*.tar"


def test_tars_teach_what_files_teach(packed: tuple[str, str], tmp_path: Path) -> None:
    for name, data in zip(("files", "tars"), packed, strict=True):
        train(tiny_run(data, tmp_path / name, shuffle_shards=9))
    assert_same(tmp_path / "tars", tmp_path / "files")
    labels = [UnitLabels.load(tmp_path / name / "targets") for name in ("files", "tars")]
    assert list(labels[0]) == list(labels[1])
    # With smaller windows other recordings meet.
    train(tiny_run(packed[1], tmp_path / "windows", shuffle_shards=2))
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("tars", "windows")]
    assert any(not torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_killed_and_resumed(packed: tuple[str, str], tmp_path: Path) -> None:
    config = tiny_run(packed[1], tmp_path / "broken", steps=60, save_every=20, num_workers=2, shuffle_shards=2)
    _kill_after(config, "checkpoint-20", tmp_path / "log")
    train(config, resume=True)
    train(config.replace(output=str(tmp_path / "whole"), num_workers=0))
    assert_same(tmp_path / "broken", tmp_path / "whole")


def test_a_resumed_run_reads_nothing_that_it_has_heard(
    packed: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run(packed[1], tmp_path / "run", steps=12, save_every=5, eval_every=100, shuffle_shards=2)
    step, reads = PretrainTrainer.training_step, []
    read = OpenTars.read

    def fail(self: PretrainTrainer, *arguments: Any, **options: Any) -> Any:
        if self.state.global_step == 10:
            raise KeyboardInterrupt
        return step(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(PretrainTrainer, "training_step", fail)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    monkeypatch.setattr(OpenTars, "read", lambda *arguments: reads.append(arguments[1:]) or read(*arguments))
    result = train(config, resume=True)
    assert result.details["steps"] == 12
    batches = list(_batches(config, 24))
    remaining = sum(len(batch) for batch in batches[20:])
    assert len(reads) == remaining + result.recordings["valid"]


def _batches(config: Any, count: int) -> Any:
    from mambavox.data.batching import BatchesBySeconds

    recordings = _recordings(config.data)
    train = recordings.select(hold_back(recordings.examples, 0.2, 0)[0])
    batches = BatchesBySeconds(
        train.lengths,
        batch_samples=32_000,
        max_samples=16_000,
        seed=0,
        shards=train.shards,
        shuffle_shards=config.shuffle_shards,
    )
    return (batch for batch, _ in zip(batches, range(count), strict=False))


def _recordings(data: str) -> Any:
    examples = read_recordings(data)
    assert isinstance(examples, ShardedExamples)
    return indexed_recordings(examples, min_samples=400, raise_problems=True)


def test_two_processes_learn_what_one_does(packed: tuple[str, str], tmp_path: Path) -> None:
    options: dict[str, Any] = {**_NO_DROPOUT, "steps": 4, "shuffle_shards": 2}
    alone = tiny_run(packed[1], tmp_path / "alone", **options)
    train(alone)
    for process in _together(alone.replace(output=str(tmp_path / "together"), num_workers=1), tmp_path):
        assert process.returncode == 0, process.stdout
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("alone", "together")]
    for key, expected in weights[0].items():
        torch.testing.assert_close(weights[1][key], expected, rtol=1e-5, atol=1e-5, msg=key)


def test_few_tars_are_read_at_a_time(packed: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[str] = []
    read = OpenTars.read
    monkeypatch.setattr(
        OpenTars, "read", lambda self, path, *place: touched.append(path.name) or read(self, path, *place)
    )
    config = tiny_run(packed[1], tmp_path / "run", steps=1, shuffle_shards=2)
    recordings = _recordings(config.data)
    assert not len(recordings.kept)
    for batch in _batches(config, 14):
        for crop in batch:
            recordings.read(crop.index, 0, crop.samples)
    spans = {name: [place for place, other in enumerate(touched) if other == name] for name in set(touched)}
    train = [name for name in spans if name.startswith("train")]
    assert len(touched) >= 13 and len(train) == 7
    first_epoch = touched[:13]
    for place in range(13):
        # Tars that were begun and are still needed.
        open_now = set(first_epoch[: place + 1]) & set(first_epoch[place:])
        assert len(open_now) <= 2
    assert len(recordings.examples._table.tars) <= 7  # open files


def test_whole_shards_are_held_back(tmp_path: Path) -> None:
    speech = write_speech(tmp_path / "speech")
    make_shards(read_examples(speech, label_column=None), tmp_path / "tars", shard_bytes=60_000)
    recordings = _recordings(f"shards:{tmp_path}/tars")
    shards = recordings.shards
    assert len(recordings.examples.tars) > 4
    train, valid, how = hold_back(recordings.examples, 0.3, 0)
    assert sorted(train + valid) == list(range(16)) and not set(shards[train]) & set(shards[valid])
    assert len(set(shards[valid])) == round(0.3 * len(recordings.examples.tars)) and "whole shards" in how
    assert hold_back(recordings.examples, 0.3, 1).valid != valid
    one = _recordings(f"shards:{tmp_path}/tars/shard-000000.tar")
    assert len(hold_back(one.examples, 0.3, 0).valid) == 1


def test_of_few_shards_recordings_are_held_back(tmp_path: Path) -> None:
    """A whole one of two would be half of the data."""
    speech = write_speech(tmp_path / "speech")
    make_shards(read_examples(speech, label_column=None), tmp_path / "tars", shard_bytes=300_000)
    recordings = _recordings(f"shards:{tmp_path}/tars")
    assert len(recordings.examples.tars) == 2
    train, valid, how = hold_back(recordings.examples, 0.1, 0)
    assert len(valid) == 2 and sorted(train + valid) == list(range(16))
    assert "2 shards are fewer than one over --valid-fraction 0.1" in how


def test_tars_of_the_test_part_are_not_trained_on(packed: tuple[str, str], tmp_path: Path) -> None:
    tars = shutil.copytree(packed[1].removeprefix("shards:").removesuffix("/*.tar"), tmp_path / "tars")
    whole = read_recordings(str(tars))
    assert without_test(whole) is whole
    for suffix in ("tar", "index.safetensors"):
        (tars / f"train-000000.{suffix}").rename(tars / f"test.clean-000000.{suffix}")
    rest = without_test(read_recordings(str(tars)))
    assert isinstance(rest, ShardedExamples) and 0 < len(rest) < 16
    assert {rest.tars[shard].name[:5] for shard in rest.shards} == {"train", "valid"}
    for suffix in ("tar", "index.safetensors"):
        (tars / f"train-000001.{suffix}").rename(tars / f"extra-000001.{suffix}")
    with pytest.raises(DataError, match=r"extra-000001\.tar: named neither.*rename.*train-extra-000001\.tar"):
        without_test(read_recordings(str(tars)))
    with pytest.raises(DataError, match=r"the names of the shards: none of .* is of the split train"):
        without_test(read_recordings(str(tars / "test.clean-000000.tar")))


def test_plan_and_command(packed: tuple[str, str], tmp_path: Path) -> None:
    dry = ["pretrain", "--config", str(tmp_path / "run.yaml")]
    files, tars = (plan(tiny_run(data, tmp_path / "run", shuffle_shards=9)) for data in packed)
    assert files.hours == pytest.approx(tars.hours) and files.recordings == tars.recordings == 13
    assert files.held_back == pytest.approx(tars.held_back) and files.held_back > 0
    (tmp_path / "run.yaml").write_text(tiny_run(packed[1], tmp_path / "run", steps=2).to_yaml())
    hours = plan(tiny_run(packed[1], tmp_path / "run", steps=2)).hours_heard
    assert 0 < hours <= 2 * 4.0 / 3600
    said = CliRunner().invoke(app, [*dry, "--dry-run", "--hours-an-hour", str(hours / 36)])
    assert said.exit_code == 0 and "36.0 h (1.5 days)" in said.output, said.output
    assert CliRunner().invoke(app, [*dry, "--hours-an-hour", "3"]).exit_code == 2
    done = CliRunner().invoke(app, ["pretrain", "--config", str(tmp_path / "run.yaml")])
    assert done.exit_code == 0, done.output
    labels = ["units", "label", "--data", packed[1], "--source", "mfcc", "--num-clusters", "4"]
    done = CliRunner().invoke(app, [*labels, "--output", str(tmp_path / "units")])
    assert done.exit_code == 0 and "16 recordings" in done.output, done.output


def test_recordings_that_were_left_out(tmp_path: Path) -> None:
    speech = write_speech(tmp_path / "speech")
    torn = speech / "clip03.wav"
    torn.write_bytes(torn.read_bytes()[:5000])
    make_shards(read_examples(speech, label_column=None), tmp_path / "tars", on_error="skip")
    config = tiny_run(str(tmp_path / "tars"), tmp_path / "run", steps=2)
    with pytest.raises(AudioError, match=r"(?s)1 of 16 recordings cannot be used.*clip03\.wav.*--on-error skip"):
        train(config)
    result = train(config.replace(on_error="skip"))
    assert [problem["name"] for problem in result.left_out] == [str(torn)] and sum(result.recordings.values()) == 15
    with pytest.raises(DataError, match=r"none of 15 recordings can be used: 15 are shorter than 5\.00 s"):
        train(
            config.replace(
                on_error="skip",
                min_seconds=5.0,
                crop_seconds=6.0,
                device_batch_seconds=6.0,
                batch_seconds=6.0,
                output=str(tmp_path / "none"),
            )
        )


def test_labels_hold_few_shards(packed: tuple[str, str], tmp_path: Path) -> None:
    from mambavox.units import make_targets

    examples = read_recordings(packed[1])
    folder = tmp_path / "units"
    whole = make_targets(examples, "mfcc", 4, folder, shard_recordings=3)
    labels = UnitLabels.load(folder, cache_bytes=1)
    keys = list(examples.keys)  # type: ignore[attr-defined]
    order = np.random.default_rng(0).permutation(len(keys)).tolist()
    for place in order:
        assert np.array_equal(labels.at(place, keys[place]), whole[keys[place]])
        assert len(labels._cache) == 1
    assert "_places" not in vars(labels)  # no table of all keys
    with pytest.raises(DataError, match=r"recording 3 is 'train/clip02\.wav', that of the data 'train/clip09\.wav'"):
        labels.at(2, keys[9])
