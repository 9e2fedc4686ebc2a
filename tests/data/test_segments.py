"""Recordings that are stretches of files, by the columns of a manifest: read as such, or an error that says why not."""

import json
import warnings

import numpy as np
import pytest
import soundfile

from mambavox.data import AudioSegment, check_audio, duration, read_audio, read_examples, recording_keys
from mambavox.data.segments import notes_on_segments
from mambavox.data.shards.pack import make_shards
from mambavox.errors import DataError, DataWarning

RATE = 16_000
TIMES = [(0.0, 0.25), (0.25, 0.6), (0.75, 1.0)]


@pytest.fixture
def long(tmp_path):
    """A second of noise, and the samples of it."""
    samples = (3000 * np.random.default_rng(0).standard_normal(RATE)).astype(np.int16)
    soundfile.write(tmp_path / "long.wav", samples, RATE)
    return samples.astype(np.float32) / 32768


def write(folder, name, rows):
    """A manifest of rows, by its ending."""
    if name.endswith(".jsonl"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        mark = "\t" if name.endswith(".tsv") else ","
        columns = list(dict.fromkeys(column for row in rows for column in row))
        lines = [columns, *([str(row.get(column, "")) for column in columns] for row in rows)]
        text = "".join(mark.join(line) + "\n" for line in lines)
    (folder / name).write_text(text)
    return folder / name


FORMS = {
    "nemo": lambda start, end: {"audio_filepath": "long.wav", "offset": start, "duration": round(end - start, 6)},
    "lhotse": lambda start, end: {"path": "long.wav", "start": start, "duration": round(end - start, 6)},
    "start and end": lambda start, end: {"path": "long.wav", "start": start, "end": end},
    "kaldi": lambda start, end: {"wav": "long.wav", "segment_start": start, "segment_end": end},
    "events": lambda start, end: {"filename": "long.wav", "onset": start, "offset": end},
    "capitals": lambda start, end: {"path": "long.wav", "Start": start, "END": end},
    "empty": lambda start, end: {"path": "long.wav", **({"start": start} if start else {}), "end": end},
}


@pytest.mark.parametrize("name", ["m.jsonl", "m.csv", "m.tsv"])
@pytest.mark.parametrize("form", FORMS)
def test_several_rows_of_one_file_are_its_stretches(tmp_path, long, form, name):
    rows = [{**FORMS[form](start, end), "label": "x"} for start, end in TIMES]
    examples = read_examples(write(tmp_path, name, rows))
    for example, (start, end) in zip(examples, TIMES, strict=True):
        expected = long[round(start * RATE) : round(end * RATE)]
        np.testing.assert_array_equal(example.read(), expected)
        assert duration(example.source) == pytest.approx(end - start)
        assert example.name == f"{tmp_path / 'long.wav'} {start:.3f}-{end:.3f} s"
    assert list(recording_keys(examples)) == [f"long_{start:.3f}-{end:.3f}.wav" for start, end in TIMES]
    assert len(check_audio(examples)[0]) == 3


def test_a_stretch_may_reach_to_the_end_and_a_row_be_a_whole_file(tmp_path, long):
    rows = [{"path": "long.wav", "offset": 0.5}, {"path": "long.wav"}]
    last, whole = read_examples(write(tmp_path, "m.jsonl", rows), label_column=None)
    np.testing.assert_array_equal(last.read(), long[8000:])
    np.testing.assert_array_equal(whole.read(), long)


def test_a_duration_alone_cuts_nothing(tmp_path, long):
    right = write(tmp_path, "m.jsonl", [{"audio_filepath": "long.wav", "duration": 1.003}])
    (example,) = read_examples(right, label_column=None)
    np.testing.assert_array_equal(example.read(), long)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_audio([example])
    (shorter,) = read_examples(write(tmp_path, "n.csv", [{"path": "long.wav", "duration": 0.5}]), label_column=None)
    with pytest.warns(DataWarning, match=r"1 of 1 .* column duration states.*long\.wav: 1\.00 s, not 0\.5 s; all of"):
        check_audio([shorter])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"offset": 0.5, "duration": 0.7}, r"m\.jsonl, line 2: 'duration' is 0\.7, and .*long\.wav ends at 1\.000 s"),
        ({"start": 0.5, "end": 1.2}, r"line 2: 'end' is 1\.2, and .*ends at 1\.000 s"),
        ({"offset": 1.0}, r"line 2: 'offset' is 1, and .*ends at 1\.000 s"),
        ({"offset": -0.1, "duration": 0.2}, r"line 2: 'offset' is -0\.1; expected seconds, at least 0"),
        ({"offset": 0.1, "duration": -0.2}, r"line 2: 'duration' is -0\.2; expected seconds"),
        ({"offset": 0.1, "duration": 0}, r"line 2: 'duration' is 0; expected the seconds"),
        ({"start": 0.5, "end": 0.5}, r"line 2: 'end' is 0\.5, not behind the beginning at 0\.5 s"),
        ({"start": 0.5, "end": 0.2}, r"line 2: 'end' is 0\.2, not behind"),
        ({"start": "00:01", "end": 2}, r"line 2: 'start' is '00:01'; expected seconds"),
        ({"start": True, "end": 2}, r"line 2: 'start' is True; expected seconds"),
        ({"start": float("nan"), "end": 2}, r"line 2: 'start' is nan; expected seconds"),
        ({"start": "9" * 400, "end": 2}, r"line 2: 'start' is '9{60,64}\.\.\.; expected seconds"),
        ({"start": 0, "offset": 0.1, "end": 1}, r"the columns 'offset', 'start' say the same of a recording"),
    ],
)
def test_a_stretch_that_is_none_names_line_and_column(tmp_path, long, row, message):
    path = write(tmp_path, "m.jsonl", [{"path": "long.wav", "label": "x"}, {"path": "long.wav", "label": "x", **row}])
    with pytest.raises(DataError, match=message):
        read_examples(path)


def test_lists_round_by_a_tenth_of_a_second(tmp_path, long):
    (example,) = read_examples(
        write(tmp_path, "m.csv", [{"path": "long.wav", "start": 0.5, "end": 1.05}]), label_column=None
    )
    np.testing.assert_array_equal(example.read(), long[8000:])


def test_the_same_stretch_twice_is_refused(tmp_path, long):
    rows = [{"path": name, "start": 0, "end": 0.5, "label": "x"} for name in ("long.wav", "./long.wav")]
    with pytest.raises(DataError, match=r"lists 1 recordings more than once: .*long\.wav 0\.000-0\.500 s"):
        read_examples(write(tmp_path, "m.jsonl", rows))


def test_a_link_to_a_listed_file_is_the_same_recording(tmp_path, long):
    (tmp_path / "link.wav").symlink_to("long.wav")
    rows = [{"path": "long.wav", "label": "x"}, {"path": "link.wav", "label": "y"}]
    with pytest.raises(DataError, match=r"more than once: .*long\.wav = .*link\.wav"):
        read_examples(write(tmp_path, "m.csv", rows))


def test_other_columns_that_would_change_what_is_heard_are_named(tmp_path, long):
    stereo = np.repeat(long[:, None], 2, axis=1)
    soundfile.write(tmp_path / "stereo.wav", stereo, RATE)
    row = {"start": 0, "end": 0.5, "duration": 0.3, "speed": 1.1, "channel": 1, "sampling_rate": 8000, "speaker": "a"}
    path = write(tmp_path, "m.jsonl", [{"path": "stereo.wav", **row}])
    with pytest.warns(DataWarning) as told:
        read_examples(path, label_column=None)
    (warning,) = told
    assert "\n" not in str(warning.message) and str(warning.message).startswith(f"{path}: not read, though")
    for column in ("'duration'", "'speed'", "'channel'", "'sampling_rate'"):
        assert column in str(warning.message)
    assert "speaker" not in str(warning.message) and "'start' " not in str(warning.message).partition("'duration'")[0]
    harmless = {"start": 0, "end": 0.5, "duration": 0.5, "channel": 0, "sampling_rate": RATE, "speed": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_examples(write(tmp_path, "n.jsonl", [{"path": "long.wav", **harmless}]), label_column=None)


def test_parts_that_hear_the_same_sound_are_told(tmp_path, long):
    rows = [{"path": "long.wav", "start": start, "end": start + 0.3, "label": "x"} for start in (0, 0.3, 0.5)]
    first, second, third = read_examples(write(tmp_path, "m.jsonl", rows))
    notes = notes_on_segments({"train": [first, second], "valid": [], "test": [third]})
    assert notes[0] == "3 recordings are stretches of 1 files, as the columns of times say"
    assert notes[1].startswith("1 of 1 recordings of test overlap recordings of train, such as ")
    assert len(notes_on_segments({"train": [second], "test": [first]})) == 1
    assert notes_on_segments({"train": [], "test": []}) == []


def test_stretches_are_packed_as_what_is_heard(tmp_path, long):
    rows = [{"path": "long.wav", "offset": start, "duration": 0.25, "text": str(start)} for start in (0.25, 0.5)]
    examples = read_examples(write(tmp_path, "m.jsonl", rows), label_column=None)
    for audio, cut in (("flac", None), ("keep", None), ("flac", 0.125)):
        folder = tmp_path / f"{audio} {cut}"
        make_shards(examples, folder, audio=audio, cut_seconds=cut, seed=None)
        packed = read_examples(folder, label_column=None)
        np.testing.assert_array_equal(np.concatenate([item.read() for item in packed]), long[4000:12000])
        assert {item.fields["text"] for item in packed} == {"0.25", "0.5"}
        if cut:
            assert [item.fields["start"] for item in packed] == [0.25, 0.375, 0.5, 0.625]


def test_a_file_is_measured_once_for_all_its_stretches(tmp_path, long, monkeypatch):
    measured = []
    from mambavox.data import audio_file

    whole = audio_file._measure
    monkeypatch.setattr(audio_file, "_measure", lambda path, name: measured.append(path) or whole(path, name))
    rows = [{"path": "long.wav", "start": 0.1 * number, "end": 0.1 * number + 0.05} for number in range(9)]
    for example in read_examples(write(tmp_path, "m.jsonl", rows), label_column=None):
        duration(example.source)
    assert measured == [tmp_path / "long.wav"]


def test_an_mp3_is_cut_where_a_wav_is(tmp_path, long):
    soundfile.write(tmp_path / "long.mp3", np.tile(long, 3), RATE, format="MP3")
    segment = AudioSegment(tmp_path / "long.mp3", 1.2, 1.7)
    np.testing.assert_array_equal(read_audio(segment), read_audio(tmp_path / "long.mp3")[19200:27200])


def cut(start, length, **more):
    recording = {"id": "r", "sources": [{"type": "file", "channels": [0], "source": "long.wav"}], "duration": 1.0}
    supervisions = [
        {"id": "b", "start": 0.1, "duration": 0.1, "text": "morning", "speaker": "ann", "language": "en"},
        {"id": "a", "start": 0, "duration": 0.1, "text": "good", "speaker": "ann", "language": "de"},
    ]
    about = {"id": "c", "channel": 0, "type": "MonoCut", "recording": recording, "supervisions": supervisions}
    return {**about, "start": start, "duration": length, **more}


def test_cuts_of_lhotse(tmp_path, long):
    first, second = read_examples(
        write(tmp_path, "cuts.jsonl", [cut(0.25, 0.5), cut(0.5, 0.25, supervisions=[])]), label_column=None
    )
    np.testing.assert_array_equal(first.read(), long[4000:12000])
    np.testing.assert_array_equal(second.read(), long[8000:12000])
    assert (first.fields["text"], first.fields["speaker"]) == ("good morning", "ann")
    assert "language" not in first.fields and "text" not in second.fields and "recording" not in first.fields


RECORDING = cut(0, 1)["recording"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"recording": {**RECORDING, "transforms": [{"name": "Speed", "kwargs": {"factor": 1.1}}]}},
            r"altered \(Speed\)",
        ),
        ({"recording": {**RECORDING, "sources": [{"type": "url", "source": "https://x"}]}}, "expected one file"),
        ({"recording": {**RECORDING, "sources": 3}}, "expected one file"),
        ({"recording": None, "tracks": []}, "is a mix of cuts"),
        ({"recording": {}, "tracks": []}, "expected one file"),
        ({"supervisions": [3]}, "its supervisions cannot be read"),
        ({"duration": 2}, "'duration' is 2, and .* ends at 1.000 s"),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else "",
)
def test_cuts_that_are_not_what_their_file_holds(tmp_path, long, more, message):
    with pytest.raises(DataError, match=f"cuts.jsonl, line 1: .*{message}"):
        read_examples(write(tmp_path, "cuts.jsonl", [cut(0, 0.5, **more)]), label_column=None)


def test_a_resampled_cut_is_what_its_file_holds(tmp_path, long):
    recording = {**RECORDING, "transforms": [{"name": "Resample", "kwargs": {}}], "sampling_rate": 8000}
    (example,) = read_examples(write(tmp_path, "c.jsonl", [cut(0.5, 0.5, recording=recording)]), label_column=None)
    np.testing.assert_array_equal(example.read(), long[8000:])
