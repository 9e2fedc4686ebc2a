"""Data sets of the Hugging Face library: never decoded by it, never loaded before they are needed."""

import datasets
import pytest

from mambavox.data import make_splits, read_examples
from mambavox.errors import DataError


def audio_dataset(rows):
    """A data set whose column ``audio`` is audio; encoding it through ``Features`` would need torchcodec."""
    return datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio(decode=False))


@pytest.fixture
def dataset(tmp_path, write_tone):
    """Six rows with their bytes inside."""
    data = [write_tone(tmp_path / f"{row}.flac", seconds=0.1 * (row + 1)).read_bytes() for row in range(6)]
    rows = {
        "audio": [{"bytes": content, "path": f"{row}.flac"} for row, content in enumerate(data)],
        "label": [0, 1] * 3,
        "speaker": list("aabbcc"),
    }
    return audio_dataset(rows).cast_column("label", datasets.ClassLabel(names=["yes", "no"]))


def test_bytes_and_class_names(dataset):
    examples = read_examples(dataset)
    assert [example.label for example in examples] == ["yes", "no"] * 3
    assert [len(example.read()) for example in examples] == [1600 * (row + 1) for row in range(6)]
    assert examples[2].fields == {"label": "yes", "speaker": "b"}
    assert "row 2 (2.flac)" in examples[2].name


def test_a_decoding_column_is_not_decoded(dataset):
    decoding = dataset.cast_column("audio", datasets.Audio(sampling_rate=8000))
    assert len(read_examples(decoding)[0].read()) == 1600


def test_a_selection_keeps_rows_and_audio_together(dataset):
    examples = read_examples(dataset.select([5, 1]))
    assert [(len(example.read()), example.fields["speaker"]) for example in examples] == [(9600, "c"), (3200, "a")]


def test_dataset_dict_names_the_parts(dataset):
    parts = datasets.DatasetDict({"train": dataset.select(range(4)), "test": dataset.select([4, 5])})
    examples = read_examples(parts)
    assert [example.fields["split"] for example in examples] == ["train"] * 4 + ["test"] * 2
    splits = make_splits(examples, valid_fraction=0.5)
    assert [len(part) for part in (splits.train, splits.valid, splits.test)] == [2, 2, 2]


@pytest.mark.parametrize("kind", ["Dataset", "DatasetDict"])
def test_saved_to_disk(dataset, tmp_path, kind):
    saved = dataset if kind == "Dataset" else datasets.DatasetDict({"train": dataset})
    saved.save_to_disk(str(tmp_path / "saved"))
    examples = read_examples(tmp_path / "saved")
    assert [len(example.read()) for example in examples] == [1600 * (row + 1) for row in range(6)]


def test_an_incomplete_saved_data_set(tmp_path):
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be loaded as a saved"):
        read_examples(tmp_path)


def test_paths_and_arrays(tmp_path, write_tone):
    path = str(write_tone(tmp_path / "a.wav"))
    by_path = datasets.Dataset.from_dict({"file": [path], "label": ["x"]})
    (example,) = read_examples(by_path)
    assert (str(example.audio), example.name, len(example.read())) == (path, path, 4000)
    audio_path = audio_dataset({"audio": [path]})
    assert len(read_examples(audio_path, label_column=None)[0].read()) == 4000
    arrays = datasets.Dataset.from_dict({"audio": [{"array": [0.0, 0.5], "sampling_rate": 8000}], "label": ["x"]})
    assert len(read_examples(arrays)[0].read()) == 4


def test_hidden_test_labels_are_no_labels(dataset):
    hidden = dataset.map(lambda row: {"label": -1}, remove_columns=[])
    assert {example.label for example in read_examples(hidden)} == {None}


def test_missing_columns_and_audio(dataset, tmp_path):
    with pytest.raises(DataError, match=r"no column 'word'; it has audio, label, speaker\. .*--label-column"):
        read_examples(dataset, label_column="word")
    with pytest.raises(DataError, match=r"no column of recordings .*--audio-column"):
        read_examples(dataset.remove_columns("audio"))
    nothing = audio_dataset({"audio": [{"bytes": None, "path": None}]})
    with pytest.raises(DataError, match="row 0: column 'audio' holds no audio"):
        read_examples(nothing, label_column=None)
    gone = datasets.Dataset.from_dict({"path": [str(tmp_path / "gone.wav")], "label": ["x"]})
    with pytest.raises(DataError, match=r"1 of 1 audio files do not exist: .*gone\.wav"):
        read_examples(gone)


def test_the_hub(dataset, monkeypatch):
    asked = []

    def load_dataset(*arguments):
        asked.append(arguments)
        return datasets.DatasetDict({"train": dataset})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(read_examples("hf:owner/name")) == 6
    assert len(read_examples("hf:owner/name:v0.02")) == 6
    assert asked == [("owner/name", None), ("owner/name", "v0.02")]


def test_a_hub_that_cannot_be_reached(monkeypatch):
    def load_dataset(*arguments):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"hf:owner/name: cannot be loaded \(ConnectionError: no network\)"):
        read_examples("hf:owner/name")
