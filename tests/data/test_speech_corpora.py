"""Readers of transcribed speech: exact layouts, official parts, clear errors."""

import numpy as np
import pytest
import soundfile
from tiny_corpora import RATE, write_lines, write_wav

from mambavox.data import SPEECH_CORPORA, AudioSegment, duration, find_corpus, make_splits, read_examples
from mambavox.errors import AudioError, DataError


def write_librispeech(folder):
    for subset, speakers in (("train-clean-100", (103, 1034)), ("dev-clean", (84,)), ("test-other", (367,))):
        for speaker in speakers:
            home = folder / subset / str(speaker) / "1240"
            lines = []
            for number in range(2):
                name = f"{speaker}-1240-{number:04d}"
                home.mkdir(parents=True, exist_ok=True)
                soundfile.write(home / f"{name}.flac", 0.1 * np.ones(RATE // 5), RATE)
                lines.append(f"{name} CHAPTER ONE MISSUS LYNDE'S {number}")
            write_lines(home / f"{speaker}-1240.trans.txt", lines)
    for name in ("SPEAKERS.TXT", "CHAPTERS.TXT", "BOOKS.TXT", "LICENSE.TXT", "README.TXT"):
        (folder / name).touch()
    return folder


def write_mp3(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.sin(np.arange(32_000) / 10), 32_000, format="MP3")
    return path


HEADER = "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccents\tvariant\tlocale\tsegment"


def write_common_voice(folder):
    for part, client in (("train", "a1"), ("dev", "b2"), ("test", "c3"), ("other", "d4")):
        name = f"common_voice_ckb_{client}.mp3"
        write_mp3(folder / "clips" / name)
        write_lines(folder / f"{part}.tsv", [HEADER, f'{client}\t{name}\tئێمە "باش"\t2\t0\t\t\t\t\tckb\t'])
    write_lines(folder / "reported.tsv", ["sentence\tsentence_id\tlocale\treason"])
    return folder


def write_cl_masr(folder):
    for part in ("train", "dev", "test"):
        lines = ["ID,mp3,wrd,locale,duration"]
        for locale in ("ab", "ckb"):
            name = f"common_voice_{locale}_{part}"
            write_mp3(folder / locale / "clips" / f"{name}.mp3")
            lines.append(f"{name},$data_root/{locale}/clips/{name}.mp3,text of {locale},{locale},1.0")
        write_lines(folder / f"{part}.csv", lines)
        (folder / f"{part}.csv.stats").touch()
    return folder


def write_fleurs(folder, below="audio/"):
    for part in ("train", "dev", "test"):
        lines = []
        for number in range(2):
            write_wav(folder / f"{below}{part}" / f"{part}{number}.wav")
            raw, text = 'He said "go".', "he said go"
            lines.append(f"7\t{part}{number}.wav\t{raw}\t{text}\t{' | '.join(text)}\t3200\tMALE")
        write_lines(folder / f"{part}.tsv", lines)
    return folder


def write_tedlium3(folder):
    for part, talk in (("train", "AaronHuey_2010X"), ("dev", "AlGore_2009"), ("test", "BillGates_2010")):
        home = folder / "legacy" / part
        (home / "sph").mkdir(parents=True)
        ramp = np.repeat(np.arange(1, 6) / 10, RATE)  # a tenth louder each second
        soundfile.write(home / "sph" / f"{talk}.sph", ramp, RATE, format="NIST", subtype="PCM_16")
        speaker = talk.split("_")[0]
        write_lines(
            home / "stm" / f"{talk}.stm",
            [
                f"{talk} 1 {talk} 0.00 1.00 <o,f0,male> ignore_time_segment_in_scoring",
                f"{talk} 1 {speaker} 3.00 4.50 <o,f0,male> <unk> and it 's {{NOISE}} late(2)",
                f"{talk} 1 {speaker} 1.00 2.50 <o,f0,male> the people 're here",
                f"{talk} 1 {speaker} 4.50 5.00 <o,f0,male> <unk>",
            ],
        )
    return folder


WRITE = {
    "librispeech": write_librispeech,
    "common_voice": write_common_voice,
    "cl_masr": write_cl_masr,
    "fleurs": write_fleurs,
    "tedlium3": write_tedlium3,
    "tedlium3_talks": write_tedlium3,
}


@pytest.fixture(params=WRITE)
def corpus(request, tmp_path):
    return SPEECH_CORPORA[request.param], WRITE[request.param](tmp_path / "corpus")


def test_every_corpus_is_tested():
    assert WRITE.keys() == SPEECH_CORPORA.keys()


def test_is_read_by_name_with_texts_and_official_parts(corpus):
    corpus, folder = corpus
    examples = read_examples(f"{corpus.name}:{folder}", label_column=None)
    assert examples == [*examples]
    for example in examples:
        assert example.fields["text"] and example.fields["language"] and example.fields["subset"]
        assert example.label is None
        assert len(example.read()) >= 3200
    splits = make_splits(examples)
    assert splits.train and splits.valid and splits.test
    if "speaker" in examples[0].fields:
        make_splits(examples, group_column="speaker")


def test_is_known_by_its_layout_unless_it_must_be_named(corpus):
    corpus, folder = corpus
    found = find_corpus(folder)
    expected = {"cl_masr": None, "fleurs": None, "tedlium3_talks": "tedlium3"}.get(corpus.name, corpus.name)
    assert (found and found[0].name) == expected


def test_another_folder_is_refused(corpus, tmp_path):
    corpus, _ = corpus
    (tmp_path / "deep" / "empty").mkdir(parents=True)
    with pytest.raises(DataError, match=rf"has no .*{corpus.title.split(',')[0]}.*{corpus.source}"):
        read_examples(f"{corpus.name}:{tmp_path / 'deep' / 'empty'}")


def test_librispeech(tmp_path):
    folder = write_librispeech(tmp_path)
    examples = read_examples(f"librispeech:{folder}")
    assert [example.fields["subset"] for example in examples] == ["train-clean-100"] * 4 + ["dev-clean"] * 2 + [
        "test-other"
    ] * 2
    assert examples[0].fields["text"] == "CHAPTER ONE MISSUS LYNDE'S 0"
    assert {example.fields["speaker"] for example in examples} == {"103", "1034", "84", "367"}
    (folder / "dev-clean" / "84" / "1240" / "84-1240-0001.flac").unlink()
    with pytest.raises(DataError, match=r"84-1240-0001.flac \(.*trans.txt, line 2\)"):
        read_examples(f"librispeech:{folder}")
    write_lines(folder / "dev-clean" / "84" / "1240" / "84-1240.trans.txt", ["84-1240-0000"])
    with pytest.raises(DataError, match="line 1: is '84-1240-0000'; expected an utterance"):
        read_examples(f"librispeech:{folder}")


def test_common_voice_keeps_quotes_and_leaves_other_tables_out(tmp_path):
    examples = read_examples(write_common_voice(tmp_path / "ckb"))
    assert len(examples) == 3
    assert examples[0].fields["text"] == 'ئێمە "باش"'
    assert [example.fields["split"] for example in examples] == ["train", "valid", "test"]
    assert duration(examples[0].source) == pytest.approx(1.0, abs=0.1)


def test_cl_masr_reads_all_languages_or_one(tmp_path):
    folder = write_cl_masr(tmp_path / "CL-MASR")
    assert len(read_examples(f"cl_masr:{folder}")) == 6
    examples = read_examples(f"cl_masr:{folder / 'ckb'}")
    assert {example.fields["text"] for example in examples} == {"text of ckb"}
    (folder / "eo").mkdir()
    with pytest.raises(DataError, match="no locale 'eo'; they have ab, ckb"):
        read_examples(f"cl_masr:{folder / 'eo'}")


def test_fleurs_in_both_places(tmp_path):
    for below in ("audio/", ""):
        folder = write_fleurs(tmp_path / f"x{len(below)}" / "ckb_iq", below)
        examples = read_examples(f"fleurs:{folder}")
        assert len(examples) == 6
        assert examples[0].fields["raw_text"] == 'He said "go".'
        assert (examples[0].fields["text"], examples[0].fields["language"]) == ("he said go", "ckb_iq")
    write_lines(folder / "dev.tsv", ["7\tx.wav"])
    with pytest.raises(DataError, match=r"dev.tsv, line 1: has 2 values; expected 7"):
        read_examples(f"fleurs:{folder}")


def test_tedlium_utterances_and_talks(tmp_path):
    folder = write_tedlium3(tmp_path)
    examples = read_examples(f"tedlium3:{folder}")
    assert [example.fields["text"] for example in examples[:2]] == ["the people're here", "and it's late"]
    assert len(examples) == 6
    first = examples[0].read()
    assert len(first) == 24_000
    np.testing.assert_allclose([first[100], first[-100]], [0.2, 0.3], atol=1e-3)
    assert duration(examples[0].source) == 1.5
    talks = read_examples(f"tedlium3_talks:{folder}")
    assert [example.fields["text"] for example in talks[:1]] == ["the people're here and it's late"]
    assert len(talks[0].read()) == 5 * RATE
    with pytest.raises(AudioError, match="ends before 9 s"):
        AudioSegment(talks[0].audio, 9.0, 10.0).load()
    write_lines(folder / "legacy" / "dev" / "stm" / "AlGore_2009.stm", ["AlGore_2009 1 AlGore x"])
    with pytest.raises(DataError, match=r"stm, line 1: .*expected talk, channel, speaker"):
        read_examples(f"tedlium3:{folder}")
