"""Manifests: the three formats, labels, and messages that name the line and the column."""

import json
import random
import unicodedata

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


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "path,label,label\na.wav,x,z\n", r"m\.csv: its header has 'label' more than once; rename"),
        ("m.csv", "path,label, label\na.wav,x,z\n", r"its header has 'label' more than once"),
        ("m.tsv", "path\tpath\tlabel\na.wav\tb.wav\tx\n", r"its header has 'path' more than once"),
        ("m.jsonl", '{"path": "a.wav", "label": "x", "label": "y"}\n', r"m\.jsonl, line 1: has 'label' more than once"),
        ("m.jsonl", '{"path": "a.wav", "label": ' + "[" * 100_000 + "]" * 100_000 + "}", r"line 1: holds more than 32"),
        (
            "m.jsonl",
            '{"path": "a.wav", "label": 1, "more": ' + "[" * 40 + "]" * 40 + "}",
            r"line 1: holds more than 32",
        ),
        ("m.jsonl", '{"path": "a.wav", "label": ' + "9" * 5000 + "}", r"line 1: holds a number of 5000 digits"),
        ("m.jsonl", '{"path": "~nosuchuser/a.wav", "label": 1}', r"line 1: 'path' is '~nosuchuser/a\.wav', and nobody"),
        ("m.jsonl", '{"path": "a\\u0000.wav", "label": 1}', r"line 1: 'path' holds a NUL character"),
        ("m.jsonl", '{"path": "\\ud800.wav", "label": 1}', r"line 1: 'path' is .*, which no file can be called"),
        ("m.jsonl", '{"path": "' + "a" * (1 << 24) + '"}', r"line 1: is longer than 16777216 characters"),
        ("m.csv", "path,label\na.wav,x\nb.wav, \n", r"no 'label' in line 3 \(1 of 2 rows\)"),
        ("m.jsonl", '{"path": "a.wav", "label": NaN}\n{"path": "b.wav", "label": "x"}', r"no 'label' in line 1"),
    ],
    ids=lambda text: text[:20],
)
def test_what_would_be_read_otherwise_than_meant_is_refused(tmp_path, name, text, message):
    with pytest.raises(DataError, match=message):
        read_manifest(write(tmp_path / name, text))


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_csv_may_be_divided_by_other_marks(tmp_path, mark):
    text = f'path{mark}label{mark}\n"a{mark} b.wav"{mark}dog, big{mark}\n  \nc.wav{mark}cat{mark}\n'
    text = text if mark != "," else text.replace("dog, big", '"dog, big"')
    first, second = read_manifest(write(tmp_path / "m.csv", text))
    assert (first.audio.name, first.label, second.label) == (f"a{mark} b.wav", "dog, big", "cat")


def test_labels_that_look_the_same_are_the_same(tmp_path):
    lines = ["a.wav,dog", "b.wav,dog ", "c.wav,\u00a0dog", "d.wav,cafe\u0301", "e.wav,caf\u00e9"]
    examples = read_manifest(write(tmp_path / "m.csv", "path, label\n" + "\n".join(lines)))
    assert [example.label for example in examples] == ["dog"] * 3 + ["caf\u00e9"] * 2


@pytest.mark.parametrize("there", ["NFC", "NFD"])
@pytest.mark.parametrize("listed", ["NFC", "NFD"])
def test_a_file_is_found_in_either_form_of_its_letters(tmp_path, listed, there):
    name = "m\u00fc\u00df/\u00fcn\u00ef \u97f3.wav"
    file = tmp_path / unicodedata.normalize(there, name)
    file.parent.mkdir()
    file.write_bytes(b"")
    for written in (unicodedata.normalize(listed, name), f" {unicodedata.normalize(there, name)}"):
        (example,) = read_manifest(write(tmp_path / "m.csv", f"label,path\nx,{written}\n"))
        assert example.audio == file
    (example,) = read_manifest(write(tmp_path / "m.csv", "label,path\nx,m\u00fc\u00df/g\u00f6ne.wav\n"))
    assert example.audio == tmp_path / "m\u00fc\u00df/g\u00f6ne.wav"  # is told as missing, as it was written


def test_whatever_a_manifest_holds_is_read_or_refused_in_words(tmp_path):
    write(tmp_path / "a.wav", "")
    draw = random.Random(0)
    names = ["path", "audio", "label", "start", "end", "offset", "duration", "channel", "recording", "tracks", " label"]
    values = [None, True, -1, 0.5, 1e308, float("nan"), 10**30, "", "a.wav", "0.1", "nan", [], {}, [1], "\0", "\ud800"]
    read = 0
    for _ in range(200):
        strange = [{draw.choice(names): draw.choice(values) for _ in range(draw.randint(0, 3))} for _ in range(2)]
        rows = [{"path": "a.wav", "label": "x", **row} for row in strange]
        path = write(tmp_path / "m.jsonl", "\n".join(map(json.dumps, rows)))
        try:
            read += len(read_manifest(path)) == 2
        except DataError as error:
            assert str(error).startswith(str(path))
    assert read > 20
