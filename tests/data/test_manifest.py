"""Manifests: the three formats, labels, and messages that name the line and the column."""

import json

import pytest

from mambavox.data.manifest import read_manifest
from mambavox.errors import DataError


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def test_jsonl(tmp_path):
    rows = [
        {"path": "a é/b c.wav", "label": 3, "speaker": "x", "slots": {"size": "big"}},
        {"path": "d.wav", "label": 0},
    ]
    path = write(tmp_path / "m.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    first, second = read_manifest(path)
    assert (first.audio, first.label, first.fields) == (tmp_path / "a é/b c.wav", "3", rows[0])
    assert first.name == str(tmp_path / "a é/b c.wav")
    assert second.label == "0"  # a false value is a label all the same


def test_csv_with_quotes_commas_and_a_byte_order_mark(tmp_path):
    text = 'file_name,label,note\r\n"a, b.wav",dog,"said ""no"""\r\nc.wav,"cat, big",\r\n'
    first, second = read_manifest(write(tmp_path / "m.csv", text, "utf-8-sig"))
    assert (first.audio.name, first.label, first.fields["note"]) == ("a, b.wav", "dog", 'said "no"')
    assert second.label == "cat, big"


def test_tsv_takes_quotes_as_they_are(tmp_path):
    path = write(tmp_path / "m.tsv", 'path\tsentence\tlabel\na.wav\t"Hello\tyes\nb.wav\tHi "you"\tno\n')
    first, second = read_manifest(path)
    assert (first.fields["sentence"], first.label) == ('"Hello', "yes")
    assert second.fields["sentence"] == 'Hi "you"'


def test_absolute_and_relative_paths(tmp_path):
    first, second = read_manifest(write(tmp_path / "m.csv", "path,label\n/elsewhere/a.wav,x\nb.wav,x\n"))
    assert str(first.audio) == "/elsewhere/a.wav"
    assert second.audio == tmp_path / "b.wav"


@pytest.mark.parametrize("column", ["audio", "path", "file", "filename", "file_name", "wav"])
def test_the_audio_column_is_found(tmp_path, column):
    (example,) = read_manifest(write(tmp_path / "m.csv", f"label,{column}\nx,a.wav\n"))
    assert example.audio == tmp_path / "a.wav"


def test_the_columns_named_are_taken(tmp_path):
    path = write(tmp_path / "m.csv", "path,recording,label,word\na.wav,b.wav,x,y\n")
    (example,) = read_manifest(path, audio_column="recording", label_column="word")
    assert (example.audio.name, example.label) == ("b.wav", "y")


def test_a_missing_column_names_those_there_are_and_the_flag(tmp_path):
    path = write(tmp_path / "m.csv", "path,word\na.wav,x\n")
    with pytest.raises(DataError, match=r"m\.csv: has no column 'label'; it has path, word\. .*--label-column"):
        read_manifest(path)
    with pytest.raises(DataError, match=r"has no column 'wave'; it has path, word\. .*--audio-column"):
        read_manifest(path, audio_column="wave", label_column="word")
    with pytest.raises(DataError, match=r"no column of recordings .* it has clip, label\. .*--audio-column"):
        read_manifest(write(tmp_path / "n.csv", "clip,label\na.wav,x\n"))


def test_no_labels_only_where_none_are_wanted_or_there(tmp_path):
    unlabelled = write(tmp_path / "m.csv", "path,speaker\na.wav,x\n")
    assert read_manifest(unlabelled, label_column=None)[0].label is None
    null = write(tmp_path / "n.jsonl", '{"path": "a.wav", "label": null}\n{"path": "b.wav"}\n')
    assert [example.label for example in read_manifest(null)] == [None, None]
    some = write(tmp_path / "s.jsonl", '{"path": "a.wav", "label": "x"}\n\n{"path": "b.wav"}\n')
    with pytest.raises(DataError, match=r"s\.jsonl: no 'label' in line 3 \(1 of 2 rows\)"):
        read_manifest(some)


def test_a_list_is_not_a_class(tmp_path):
    path = write(tmp_path / "m.jsonl", '{"path": "a.wav", "label": ["x", "y"]}\n')
    with pytest.raises(DataError, match=r"column 'label' holds lists or objects \(line 1\)"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.jsonl", '{"path": "a.wav", "label": 1}\n{"path": "b.wav", "la', r"m\.jsonl, line 2: is not JSON"),
        ("m.jsonl", '["a.wav"]\n', r"line 1: is list; expected a JSON object"),
        ("m.jsonl", '{"path": null, "label": 1}\n', r"line 1: 'path' is None; expected the path"),
        ("m.jsonl", "\n\n", "lists no recordings"),
        ("m.csv", "", "lists no recordings"),
        ("m.csv", "path,label\n", "lists no recordings"),
        ("m.csv", "path,label\na.wav,x\nb.wav\n", r"m\.csv, line 3: has 1 values; the header has 2 columns"),
        ("m.csv", 'path,label\na.wav,"x\n', r"m\.csv, line 2: is not a well-formed table"),
        ("m.tsv", "path\tlabel\na.wav\tx\ty\n", r"line 2: has 3 values"),
    ],
)
def test_a_malformed_manifest_names_the_line(tmp_path, name, text, message):
    with pytest.raises(DataError, match=message):
        read_manifest(write(tmp_path / name, text))


def test_another_encoding_is_named(tmp_path):
    with pytest.raises(DataError, match="is not UTF-8"):
        read_manifest(write(tmp_path / "m.csv", "path,label\né.wav,x\n", "latin-1"))
