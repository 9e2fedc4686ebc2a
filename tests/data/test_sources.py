"""Data sets on disk: folders and the real packs."""

import re
from collections import Counter

import pytest

from mambavox.data import Example, check_audio, make_splits, read_examples
from mambavox.data.splits import parts_by_split
from mambavox.errors import DataError, DataWarning


def summary(examples):
    return Counter((example.fields.get("split"), example.label) for example in examples)


def test_a_folder_per_class(tmp_path, write_tone):
    for file in ("dog/a.wav", "dog/speaker 1/b.FLAC", "big cat/c.ogg", "_background_noise_/d.wav", ".git/e.wav"):
        write_tone(tmp_path / file)
    (tmp_path / "dog" / "notes.txt").write_text("x")
    (tmp_path / "docs").mkdir()
    (tmp_path / "LICENSE").write_text("x")
    left_out = (
        "2 that no reader opens .1 without ending, 1 .txt., .*; 1 recordings under a name that begins with _, .*d.wav"
    )
    with pytest.warns(DataWarning, match=left_out):
        examples = read_examples(str(tmp_path))
    assert [(example.audio.name, example.label) for example in examples] == [
        ("c.ogg", "big cat"),
        ("a.wav", "dog"),
        ("b.FLAC", "dog"),
    ]
    assert all(isinstance(example, Example) for example in examples)
    with pytest.warns(DataWarning):
        assert [example.label for example in read_examples(tmp_path, label_column=None)] == [None] * 3


KINDS = {".caf": "CAF", ".sph": "NIST", ".w64": "W64", ".rf64": "RF64", ".aifc": "AIFF", ".au": "AU", "": "WAV"}


def test_every_recording_is_found_whatever_it_is_called(tmp_path, write_tone):
    for suffix, kind in KINDS.items():
        write_tone(tmp_path / "dog" / f"a{suffix}", format=kind)
    write_tone(tmp_path / "dog" / "b.dat", format="MP3")
    for name in ("c.mov", "c.3gp", "c.m4a"):  # are named, since nothing here reads them
        (tmp_path / "dog" / name).write_bytes(b"film")
    for name in ("notes.txt", "wide.txt", "c.npy", "list.m3u"):  # UTF-16 begins as an mp3 does
        (tmp_path / "dog" / name).write_text("a,b\n" * 5000, encoding="utf-16" if name == "wide.txt" else "utf-8")
    (tmp_path / "dog" / "loop").symlink_to("..")
    with pytest.warns(DataWarning, match=r"4 that no reader opens \(2 \.txt, 1 \.npy, 1 \.m3u\)"):
        examples = read_examples(tmp_path, label_column=None)
    assert len(examples) == len(KINDS) + 1 + 3
    usable, problems = check_audio(examples, on_error="skip")
    assert len(usable) == len(KINDS) + 1
    assert {problem.name.rpartition(".")[2] for problem in problems} == {"mov", "3gp", "m4a"}


def test_recordings_beside_the_folders_of_parts_are_refused(tmp_path, write_tone):
    for path in ("train/dog/a.wav", "test/dog/a.wav", "stray.caf"):
        write_tone(tmp_path / path, **({"format": "CAF"} if path.endswith("caf") else {}))
    for label_column in ("label", None):
        with pytest.raises(DataError, match=r"beside the folders test, train \(stray\.caf\); move each into one"):
            read_examples(tmp_path, label_column=label_column)


def test_a_recording_of_an_unread_format_is_not_overlooked(tmp_path, write_tone):
    write_tone(tmp_path / "dog/a.wav")
    (tmp_path / "dog" / "b.m4a").write_bytes(b"x")
    assert len(read_examples(tmp_path)) == 2


@pytest.mark.parametrize(
    "words",
    [
        ("train", "valid", "test"),
        ("Training", "dev", "heldout"),
        ("train", "validation"),
        ("train.clean", "test.other"),
    ],
)
def test_class_folders_below_parts(tmp_path, write_tone, words):
    for word in words:
        write_tone(tmp_path / word / "dog" / "a.wav")
        write_tone(tmp_path / word / "cat" / "a.wav")
    expected = Counter({(word, label): 1 for word in words for label in ("dog", "cat")})
    assert summary(read_examples(tmp_path)) == expected


def test_a_folder_beside_train_and_test_is_of_an_unknown_part(tmp_path, write_tone):
    for word in ("train", "test", "extra"):
        write_tone(tmp_path / word / "a.wav")
    found = read_examples(tmp_path, label_column=None)
    assert [example.fields["split"] for example in found] == ["extra", "test", "train"]
    with pytest.raises(DataError, match=r"'extra', so that nobody knows.*also holds test, train"):
        parts_by_split(found)


def test_a_class_may_be_called_train(tmp_path, write_tone):
    for label in ("train", "airplane"):
        write_tone(tmp_path / label / "a.wav")
    assert summary(read_examples(tmp_path)) == {(None, "train"): 1, (None, "airplane"): 1}


def test_metadata_below_parts(tmp_path, write_tone):
    for word in ("train", "test"):
        write_tone(tmp_path / word / "a.wav")
        (tmp_path / word / "metadata.csv").write_text("file_name,label\na.wav,dog\n")
    assert summary(read_examples(tmp_path)) == {("train", "dog"): 1, ("test", "dog"): 1}


def test_a_folder_of_recordings_has_no_labels(tmp_path, write_tone):
    write_tone(tmp_path / "a.wav")
    assert [example.label for example in read_examples(tmp_path)] == [None]


def test_recordings_beside_class_folders_are_refused(tmp_path, write_tone):
    write_tone(tmp_path / "dog" / "a.wav")
    write_tone(tmp_path / "stray.wav")
    with pytest.raises(DataError, match=r"beside the class folders \(stray\.wav\)"):
        read_examples(tmp_path)
    # Where labels do not matter, none is missing.
    beside = read_examples(tmp_path, label_column=None)
    assert [example.audio.name for example in beside][-1] == "stray.wav" and len(beside) > 1
    assert all(example.label is None for example in beside)


@pytest.mark.parametrize("name", ["manifest.jsonl", "manifest.tsv", "manifest.csv", "metadata.jsonl", "metadata.csv"])
def test_a_folder_with_a_manifest(tmp_path, write_tone, name):
    write_tone(tmp_path / "audio" / "a b.wav")
    rows = {
        "jsonl": '{"path": "audio/a b.wav", "label": "x"}\n',
        "tsv": "path\tlabel\naudio/a b.wav\tx\n",
        "csv": "path,label\naudio/a b.wav,x\n",
    }
    (tmp_path / name).write_text(rows[name.split(".")[1]])
    for data in (tmp_path, tmp_path / name):
        (example,) = read_examples(data)
        assert (example.audio, example.label) == (tmp_path / "audio" / "a b.wav", "x")
        assert len(example.read()) == 4000


def test_missing_audio_is_listed(tmp_path, write_tone):
    write_tone(tmp_path / "a.wav")
    (tmp_path / "m.csv").write_text("path,label\na.wav,x\ngone.wav,x\nlost.wav,x\n")
    with pytest.raises(DataError, match=r"2 of 3 audio files do not exist: .*gone\.wav, .*lost\.wav"):
        read_examples(tmp_path / "m.csv")


def test_a_name_too_long_for_a_file_is_of_none(tmp_path):
    (tmp_path / "m.csv").write_text(f"path,label\n{'a' * 300}.wav,x\n")
    with pytest.raises(DataError, match=r"1 of 1 audio files do not exist"):
        read_examples(tmp_path / "m.csv")


def test_a_long_list_is_cut_short(tmp_path):
    (tmp_path / "m.csv").write_text("path,label\n" + "".join(f"{number}.wav,x\n" for number in range(50)))
    with pytest.raises(DataError, match=r"19\.wav and 30 more"):
        read_examples(tmp_path / "m.csv")


def test_a_recording_listed_twice_is_refused(tmp_path, write_tone):
    write_tone(tmp_path / "a.wav")
    (tmp_path / "m.csv").write_text("path,label\na.wav,x\n./a.wav,y\n")
    with pytest.raises(DataError, match=r"lists 1 recordings more than once: .*a\.wav"):
        read_examples(tmp_path / "m.csv")


def test_what_is_no_data_set(tmp_path):
    with pytest.raises(DataError, match="holds no recordings; expected a manifest"):
        read_examples(tmp_path)
    with pytest.raises(DataError, match=r"gone\.csv: no such file"):
        read_examples(tmp_path / "gone.csv")
    with pytest.raises(DataError, match="expected a folder, a manifest"):
        read_examples(tmp_path / "gone")
    with pytest.raises(DataError, match=r"is int; expected a path, a datasets\.Dataset"):
        read_examples(3)


@pytest.mark.parametrize(
    ("pack", "num_labels", "sizes"),
    [
        ("fsdd", 10, (1750, 250, 250)),
        ("esc10", 10, (160, 80, 80)),
        ("arabic_speech_commands", 20, (720, 240, 0)),
        ("coffee_intents", 10, (140, 20, 0)),
    ],
)
def test_real_packs(recordings, pack, num_labels, sizes):
    examples = read_examples(recordings / pack)
    splits = make_splits(examples)
    assert (len(splits.train), len(splits.valid), len(splits.test)) == sizes
    assert len({example.label for example in splits.train}) == num_labels
    if not sizes[2]:
        assert any(note.startswith("no test split") for note in splits.notes)


def test_the_arabic_pack_is_speaker_disjoint(recordings):
    examples = read_examples(recordings / "arabic_speech_commands")
    splits = make_splits(examples, group_column="speaker", test_fraction=0.2)
    speakers = [{example.fields["speaker"] for example in part} for part in (splits.train, splits.valid, splits.test)]
    assert not speakers[0] & speakers[1] and not speakers[0] & speakers[2] and not speakers[1] & speakers[2]
    assert 0.1 * 720 <= len(splits.test) <= 0.3 * 720


def test_packs_without_labels_say_so(recordings):
    with pytest.raises(DataError, match=re.escape("has no column 'label'")):
        read_examples(recordings / "ssl_speech")
    examples = read_examples(recordings / "ssl_speech", label_column=None)
    assert len(examples) == 4521
    assert {example.label for example in examples} == {None}
