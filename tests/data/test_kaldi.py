"""Data folders of Kaldi: utterances are heard as their segments."""

import numpy as np
import pytest
import soundfile

from mambavox.data import make_splits, read_examples
from mambavox.errors import DataError


def write(folder, **lists):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in lists.items():
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def samples(tmp_path):
    noise = (3000 * np.random.default_rng(0).standard_normal(16_000)).astype(np.int16)
    soundfile.write(tmp_path / "a b.wav", noise, 16_000)
    return noise.astype(np.float32) / 32768


def test_segments_with_their_words_and_speakers(tmp_path, samples):
    folder = write(
        tmp_path / "train",
        wav_scp=f"rec1   {tmp_path}/a b.wav\n",
        segments="utt1 rec1 0.25 0.5\nutt2 rec1 0.5 -1\n",
        text="utt2\tgood  morning\nutt1 hello\nutt9 elsewhere\n",
        utt2spk="utt1 ann\nutt2 bob\n",
    )
    first, second = read_examples(folder, label_column="speaker")
    np.testing.assert_array_equal(first.read(), samples[4000:8000])
    np.testing.assert_array_equal(second.read(), samples[8000:])
    assert (first.label, second.label) == ("ann", "bob")
    assert (first.fields["text"], second.fields["text"]) == ("hello", "good  morning")
    assert first.fields["id"] == "utt1" and first.fields["recording"] == "rec1"


def test_whole_recordings_and_splits(tmp_path, samples, monkeypatch):
    write(tmp_path / "data" / "train", wav_scp="rec1 ../../a b.wav\n", text="rec1 hello\n")
    (tmp_path / "data" / "dev").mkdir()
    soundfile.write(tmp_path / "data" / "dev" / "c.wav", samples[:8000], 16_000)
    write(tmp_path / "data" / "dev", wav_scp="rec2 data/dev/c.wav\n", text="rec2 bye\n")
    monkeypatch.chdir(tmp_path)  # from where Kaldi's paths start
    second, first = read_examples("data", label_column=None)
    assert (first.fields["split"], second.fields["split"]) == ("train", "dev")
    assert (len(first.read()), len(second.read())) == (16_000, 8000)
    splits = make_splits([first, second])
    assert (splits.train, splits.valid) == ([first], [second])


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"wav_scp": "rec1 sph2pipe a.sph |\n"}, r"wav\.scp, line 1: 'rec1' is the output of a command, .* not run"),
        ({"wav_scp": "rec1\n"}, r"wav\.scp, line 1: names no file"),
        ({"wav_scp": ""}, r"wav\.scp: is empty"),
        ({"wav_scp": "rec1 x.wav\n\nrec1 y.wav\n"}, r"wav\.scp, line 3: 'rec1' is in line 1, too"),
        ({"segments": "utt1 rec2 0 1\n"}, r"segments, line 1: 'rec2' is no recording of wav\.scp"),
        ({"segments": "utt1 rec1 0\n"}, r"segments, line 1: expected an utterance, its recording, start and end"),
        ({"segments": "utt1 rec1 0.5 0.5\n"}, r"segments, line 1: 'end' is 0\.5, not behind the beginning"),
        ({"segments": "utt1 rec1 0.5 2.5\n"}, r"segments, line 1: 'end' is 2\.5, and .* ends at 1\.000 s"),
        ({"segments": "utt1 rec1 x 2.5\n"}, r"segments, line 1: 'start' is 'x'; expected seconds"),
        ({}, r"has no column 'label'; it has id, recording"),
    ],
)
def test_what_is_wrong_is_named_by_list_and_line(tmp_path, samples, lists, message):
    folder = write(tmp_path / "train", **{"wav_scp": f"rec1 {tmp_path}/a b.wav\n", **lists})
    with pytest.raises(DataError, match=message):
        read_examples(folder)
