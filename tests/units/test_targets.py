import pickle
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from tiny_hubert import tiny_config

from mambavox.data import Example, read_examples
from mambavox.errors import AudioError, ConfigError, DataError
from mambavox.hubert import MambaHubertModel
from mambavox.units import MfccFeatures, UnitLabels, UnitQuantizer, label_recordings, make_targets, recording_keys
from mambavox.units.labels import Shard
from mambavox.units.targets import check_targets, fit_quantizer, is_sampled

OPTIONS = {"shard_recordings": 4, "batch_seconds": 0.5}


@pytest.fixture
def examples(tones):
    return read_examples(tones)


@pytest.fixture
def layer_source(tmp_path):
    MambaHubertModel(tiny_config()).save_pretrained(tmp_path / "it1")
    return f"{tmp_path / 'it1'}:1"


def assert_same(first, second):
    assert list(first) == list(second)
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])


def test_labels_are_the_units_of_each_recording(examples, tmp_path):
    labels = make_targets(examples, "mfcc", 6, tmp_path / "units", **OPTIONS)
    quantizer = UnitQuantizer.load(tmp_path / "units")
    features = MfccFeatures()
    keys = recording_keys(examples)
    assert list(labels) == keys and len(labels) == 12 and keys[0] in labels and "other" not in labels
    assert labels.frame_rate == 100.0 and labels.num_clusters == 6
    for key, example in zip(keys, examples, strict=True):
        np.testing.assert_array_equal(labels[key], quantizer(features([example.read()])[0]))
        assert labels[key].dtype == np.int32 and labels.num_frames(key) == len(labels[key])
    assert len(list((tmp_path / "units").glob("labels-*.safetensors"))) == 3
    assert len(np.unique(np.concatenate(list(labels.values())))) > 3


def test_labels_of_a_layer(examples, layer_source, tmp_path):
    labels = make_targets(examples, layer_source, 6, tmp_path / "units", **OPTIONS)
    assert labels.frame_rate == 800.0 and labels.plan.source == layer_source
    example = examples[0]
    frames = MambaHubertModel(tiny_config())._get_feat_extract_output_lengths(len(example.read()))
    assert len(labels[recording_keys(examples)[0]]) == frames


@pytest.mark.parametrize("source", ["mfcc", "layer"])
def test_an_interrupted_call_goes_on_where_it_was(source, examples, layer_source, tmp_path, monkeypatch):
    source = layer_source if source == "layer" else source
    unbroken = make_targets(examples, source, 6, tmp_path / "unbroken", **OPTIONS)
    write, written = Shard.write, []

    def fail_at_the_second(folder, number, *arguments):
        if number == 1 and not written:
            written.append(number)
            raise KeyboardInterrupt
        return write(folder, number, *arguments)

    monkeypatch.setattr(Shard, "write", staticmethod(fail_at_the_second))
    with pytest.raises(KeyboardInterrupt):
        make_targets(examples, source, 6, tmp_path / "broken", **OPTIONS)
    first = (tmp_path / "broken" / "labels-00000.safetensors").stat()
    with pytest.raises(DataError, match="not all recordings have labels yet"):
        UnitLabels.load(tmp_path / "broken")
    read = []
    original = Example.read
    monkeypatch.setattr(Example, "read", lambda self, rate=16_000: read.append(self.name) or original(self, rate))
    resumed = make_targets(examples, source, 6, tmp_path / "broken", **OPTIONS)
    assert_same(resumed, unbroken)
    # Neither fitted again nor read again.
    assert sorted(read) == sorted(example.name for example in examples[4:])
    assert (tmp_path / "broken" / "labels-00000.safetensors").stat().st_mtime_ns == first.st_mtime_ns


KILLED = """
import os, signal, sys
from pathlib import Path
from mambavox.data import read_examples
from mambavox.units import make_targets
from mambavox.units.labels import Shard
write = Shard.write
def write_and_die(folder, number, *arguments):
    write(folder, number, *arguments)
    if number == 1:
        (folder / ".labels-00002.safetensors.partial").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
Shard.write = staticmethod(write_and_die)
make_targets(read_examples(sys.argv[1]), "mfcc", 6, Path(sys.argv[2]), shard_recordings=4, batch_seconds=0.5)
"""


def test_a_killed_process_loses_no_shard(tones, examples, tmp_path):
    folder = tmp_path / "killed"
    process = subprocess.run([sys.executable, "-c", KILLED, tones, str(folder)], capture_output=True)
    assert process.returncode == -signal.SIGKILL
    assert len(list(folder.glob("labels-*.safetensors"))) == 2
    resumed = make_targets(examples, "mfcc", 6, folder, shard_recordings=4, batch_seconds=0.3)
    assert_same(resumed, make_targets(examples, "mfcc", 6, tmp_path / "unbroken", **OPTIONS))


def test_a_finished_folder_is_opened_without_model_or_recordings(examples, layer_source, tmp_path, monkeypatch):
    first = make_targets(examples, layer_source, 6, tmp_path / "units", **OPTIONS)
    monkeypatch.setattr("mambavox.units.targets.load_features", lambda *_: pytest.fail("loads the model"))
    monkeypatch.setattr(Example, "read", lambda *_: pytest.fail("reads a recording"))
    assert_same(make_targets(examples, layer_source, 6, tmp_path / "units", **OPTIONS), first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_clusters": 5}, "num_clusters was 6 and is 5"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"fraction": 0.5}, "fraction was 1.0 and is 0.5"),
        ({"source": "runs/it1:6"}, "source was mfcc and is runs/it1:6"),
    ],
)
def test_other_arguments_are_named(change, message, examples, tmp_path):
    arguments = {"source": "mfcc", "num_clusters": 6, "folder": tmp_path / "units", **OPTIONS}
    make_targets(examples, **arguments)
    with pytest.raises(DataError, match=message):
        make_targets(examples, **{**arguments, **change})


def test_other_recordings_are_named(examples, tmp_path):
    make_targets(examples, "mfcc", 6, tmp_path / "units", **OPTIONS)
    with pytest.raises(DataError, match=r"other recordings.*12 then, 11 now"):
        make_targets(examples[:-1], "mfcc", 6, tmp_path / "units", **OPTIONS)
    swapped = [examples[1], examples[0], *examples[2:]]
    with pytest.raises(DataError, match=r"number 1 was 'low_0\.wav' and is 'low_1\.wav'"):
        make_targets(swapped, "mfcc", 6, tmp_path / "units", **OPTIONS)


def test_other_weights_of_the_same_name_are_refused(examples, layer_source, tmp_path, monkeypatch):
    folder = tmp_path / "units"
    labels = make_targets(examples, layer_source, 6, folder, **OPTIONS)
    replace(labels.plan, finished=False).save(folder)
    MambaHubertModel(tiny_config()).save_pretrained(tmp_path / "it1")
    with pytest.raises(DataError, match="other weights"):
        make_targets(examples, layer_source, 6, folder, **OPTIONS)


def test_a_folder_of_something_else_is_left_alone(examples, tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(DataError, match="expected a new folder"):
        make_targets(examples, "mfcc", 6, tmp_path, **OPTIONS)


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
def test_a_damaged_shard_is_named(damage, examples, tmp_path):
    make_targets(examples, "mfcc", 6, tmp_path / "units", **OPTIONS)
    shard = tmp_path / "units" / "labels-00001.safetensors"
    content = bytearray(shard.read_bytes())
    if damage == "cut":
        shard.write_bytes(content[:-7])
    elif damage == "flipped":
        content[-1] ^= 1
        shard.write_bytes(content)
    else:
        shard.unlink()
    with pytest.raises(DataError, match="labels-00001"):
        list(UnitLabels.load(tmp_path / "units").values())


def test_a_removed_shard_at_the_end_is_counted(examples, tmp_path):
    make_targets(examples, "mfcc", 6, tmp_path / "units", **OPTIONS)
    (tmp_path / "units" / "labels-00002.safetensors").unlink()
    with pytest.raises(DataError, match=r"8 recordings, targets\.json says 12"):
        UnitLabels.load(tmp_path / "units")


def test_labels_go_to_other_processes_and_shards_are_let_go(examples, tmp_path):
    labels = make_targets(examples, "mfcc", 6, tmp_path / "units", **OPTIONS)
    small = UnitLabels.load(tmp_path / "units", cache_bytes=1)
    assert_same(labels, small)
    assert_same(pickle.loads(pickle.dumps(labels)), small)
    assert len(small._cache) == 1 and len(labels._cache) == 3
    assert labels.get("nobody") is None
    with pytest.raises(DataError, match="no labels of 'nobody'"):
        labels["nobody"]


def test_a_recording_shorter_than_a_frame_has_no_units(tmp_path):
    noise = np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    examples = [
        Example((noise, 16_000), name="noise"),
        Example((noise[:100], 16_000), name="short"),
        Example((np.zeros(1600, np.float32), 16_000), name="silence"),
    ]
    labels = make_targets(examples, "mfcc", 4, tmp_path / "units")
    assert labels["short"].shape == (0,)
    # Silence is one sound.
    assert len(labels["silence"]) == 8 and len(set(labels["silence"].tolist())) == 1


def test_a_broken_recording_is_named_and_what_was_labelled_stays(examples, tmp_path):
    bad = np.full(4000, np.nan, np.float32)
    broken = [*examples, Example((bad, 16_000), name="the broken one")]
    with pytest.raises(AudioError, match="the broken one"):
        make_targets(broken, "mfcc", 6, tmp_path / "units", **OPTIONS)
    good = np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    mended = [*examples, Example((good, 16_000), name="the broken one")]
    assert len(make_targets(mended, "mfcc", 6, tmp_path / "units", **OPTIONS)) == 13


def test_a_stream_is_taken_piece_by_piece(tmp_path, examples):
    features = MfccFeatures()
    quantizer = UnitQuantizer.fit(features([example.read() for example in examples]), 6, 0)
    taken = 0

    def stream(count):
        nonlocal taken
        for number in range(count):
            taken += 1
            held = len(list(tmp_path.glob("labels-*.safetensors"))) * 4
            assert taken - held <= 5
            yield f"tar-0/{number:03}", examples[number % 12]

    assert label_recordings(stream(30), features, quantizer, tmp_path, shard_recordings=4) == 30
    with pytest.raises(DataError, match="holds recordings that are not among the 12 given"):
        taken = 18
        label_recordings(stream(12), features, quantizer, tmp_path, shard_recordings=4)
    with pytest.raises(DataError, match=r"labels-00000.*number 1 is 'tar-0/000', that of the data 'other'"):
        label_recordings([("other", examples[0])], features, quantizer, tmp_path, shard_recordings=4)


def test_keys_do_not_depend_on_where_the_data_lie(tmp_path, monkeypatch):
    for root in ("here", "there"):
        for name in ("a/1.wav", "b/1.wav"):
            (tmp_path / root / name).parent.mkdir(parents=True)
            soundfile.write(tmp_path / root / name, np.zeros(100), 16_000)
    monkeypatch.chdir(tmp_path)
    found = [recording_keys(read_examples(path)) for path in (tmp_path / "here", "there", "there/../here")]
    assert found == [["a/1.wav", "b/1.wav"]] * 3
    held = (np.zeros(100, np.float32), 16_000)
    assert recording_keys([Example(held, name="x"), Example(held, name="y")]) == ["x", "y"]
    with pytest.raises(DataError, match="a recording held in memory"):
        recording_keys([Example(held), Example(held)])


def test_the_sample_depends_on_key_and_seed_alone():
    keys = [f"{number}.flac" for number in range(2000)]
    chosen = [key for key in keys if is_sampled(key, 0.1, 0)]
    assert 150 < len(chosen) < 250
    assert chosen == [key for key in reversed(keys) if is_sampled(key, 0.1, 0)][::-1]
    assert chosen != [key for key in keys if is_sampled(key, 0.1, 1)]
    assert set(chosen) < {key for key in keys if is_sampled(key, 0.2, 0)}
    assert all(is_sampled(key, 1.0, 0) for key in keys)


def test_fewer_recordings_are_fitted_to(examples, tmp_path):
    labels = make_targets(examples, "mfcc", 4, tmp_path / "units", fraction=0.4, **OPTIONS)
    seen = sum(labels.num_frames(key) for key in labels if is_sampled(key, 0.4, 0))
    assert UnitQuantizer.load(tmp_path / "units").metadata.frames_seen == seen < sum(map(len, labels.values()))
    # A fraction that chooses none takes the one that a larger fraction would take first.
    first = make_targets(examples, "mfcc", 4, tmp_path / "one", fraction=1e-6, **OPTIONS)
    shares = {key: next(share for share in np.linspace(0, 1, 1001) if is_sampled(key, share, 0)) for key in first}
    assert UnitQuantizer.load(tmp_path / "one").metadata.frames_seen == first.num_frames(min(shares, key=shares.get))
    streamed = fit_quantizer(zip(first, examples, strict=True), MfccFeatures(), 4, fraction=1e-6)
    assert np.array_equal(streamed.centers, UnitQuantizer.load(tmp_path / "one").centers)


def test_only_those_for_training_are_fitted_to(examples, tmp_path):
    labels = make_targets(examples, "mfcc", 4, tmp_path / "units", fit_on=[1, 4], **OPTIONS)
    assert len(labels) == len(examples)
    seen = labels.frames[[1, 4]].sum()
    assert UnitQuantizer.load(tmp_path / "units").metadata.frames_seen == seen


def test_what_targets_cannot_be_made_of_is_told_before(examples):
    samples = [len(example.read()) for example in examples]
    frames = [MfccFeatures().num_frames(number) for number in samples]
    check_targets(examples, samples, MfccFeatures(), frames[2], fit_on=[2])
    with pytest.raises(DataError, match=rf"{frames[2]} frames for {frames[2] + 1} clusters.*--cluster-fraction"):
        check_targets(examples, samples, MfccFeatures(), frames[2] + 1, fit_on=[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fraction": 0.0}, "fraction=0"),
        ({"num_clusters": 0}, "num_clusters=0"),
        ({"batch_seconds": 0}, "batch_seconds=0"),
    ],
)
def test_impossible_arguments_are_refused(change, message, examples, tmp_path):
    with pytest.raises(ConfigError, match=message):
        make_targets(examples, **{"source": "mfcc", "num_clusters": 6, "folder": tmp_path / "units", **change})
    assert not (tmp_path / "units").exists()
