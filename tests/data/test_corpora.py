"""Readers of well-known corpora: exact layouts, official protocols, clear errors."""

import os
import warnings
from collections import Counter
from pathlib import Path

import pytest
import tiny_corpora
from tiny_corpora import CODES, INTENTS, write_lines, write_wav

from mambavox.data import CORPORA, find_corpus, make_splits, read_examples, split_by_protocol
from mambavox.errors import DataError

WRITE = {
    "esc50": tiny_corpora.write_esc50,
    "esc10": tiny_corpora.write_esc50,
    "urbansound8k": tiny_corpora.write_urbansound8k,
    "speech_commands": tiny_corpora.write_speech_commands,
    "fluent_speech_commands": tiny_corpora.write_fluent_speech_commands,
    "iemocap": tiny_corpora.write_iemocap,
}
PUBLISHED = {
    "esc50": (2000, 50),
    "esc10": (400, 10),
    "urbansound8k": (8732, 10),
    "speech_commands": (105_829, 35),
    "fluent_speech_commands": (30_043, 31),
    "iemocap": (5531, 4),
}
"""Recordings and classes of the whole corpora."""
WHOLE = {
    "esc50": "ESC-50",
    "esc10": "ESC-50",
    "urbansound8k": "UrbanSound8K",
    "speech_commands": "speech_commands_v0.02",
    "fluent_speech_commands": "fluent_speech_commands_dataset",
    "iemocap": "IEMOCAP_full_release",
}
"""Folders of the whole corpora below MAMBAVOX_CORPORA."""
WHOLE_PARTS = {
    "esc50": (1200, 400, 400),
    "esc10": (240, 80, 80),
    "urbansound8k": (8732 - 873 - 888, 888, 873),
    "speech_commands": (84_843, 9981, 11_005),
    "fluent_speech_commands": (23_132, 3118, 3793),
}
"""Published sizes of train, valid and test in the first fold."""

pytestmark = pytest.mark.filterwarnings("ignore:.* recordings and .* were found:UserWarning")


def part_values(splits, column):
    return [{example.fields[column] for example in part} for part in (splits.train, splits.valid, splits.test)]


def names(examples):
    return {example.name for example in examples}


@pytest.fixture(params=WRITE)
def corpus(request, tmp_path):
    """Each corpus, and its folder with a few recordings."""
    return CORPORA[request.param], WRITE[request.param](tmp_path / "corpus")


def test_every_corpus_is_tested():
    assert WRITE.keys() == CORPORA.keys() == PUBLISHED.keys()
    assert {name: corpus.num_clips for name, corpus in CORPORA.items()} == {
        name: clips for name, (clips, _) in PUBLISHED.items()
    }


class TestEveryCorpus:
    def test_is_known_by_its_layout(self, corpus):
        expected, folder = corpus
        layout, where = find_corpus(folder)
        # ESC-10 is a part of ESC-50 that has to be asked for.
        assert (layout.name, where) == ("esc50" if expected.name == "esc10" else expected.name, folder)

    def test_is_read_by_its_name(self, corpus):
        corpus, folder = corpus
        examples = read_examples(f"{corpus.name}:{folder}")
        assert examples
        assert all(len(example.read()) == 3200 for example in examples)
        assert all(example.label for example in examples)

    def test_the_parts_of_a_fold_share_nothing_and_lose_nothing(self, corpus):
        corpus, folder = corpus
        examples = corpus.read(folder)
        for protocol in corpus.protocols:
            for fold in protocol.folds:
                splits = split_by_protocol(examples, protocol, fold.name)
                parts = [names(part) for part in (splits.train, splits.valid, splits.test)]
                assert sum(map(len, parts)) == len(examples)
                assert set.union(*parts) == names(examples)
                assert bool(splits.valid) != protocol.selects_on_test

    def test_all_folds_of_a_cross_validation_test_every_recording_once(self, corpus):
        corpus, folder = corpus
        examples = corpus.read(folder)
        for protocol in corpus.protocols:
            tested = Counter(
                example.name
                for fold in protocol.folds
                for example in split_by_protocol(examples, protocol, fold.name).test
            )
            listed = {example.name for example in examples if example.fields.get("split", "test") == "test"}
            assert tested == dict.fromkeys(listed, 1)

    def test_an_incomplete_corpus_is_a_warning_with_the_number(self, corpus):
        corpus, folder = corpus
        found = len(corpus.read(folder))
        missing = PUBLISHED[corpus.name][0] - found
        with pytest.warns(UserWarning, match=rf"{found} were found: {missing} are missing"):
            read_examples(f"{corpus.name}:{folder}")

    def test_another_column_or_none_can_be_the_label(self, corpus):
        corpus, folder = corpus
        column = corpus.protocol().column
        examples = corpus.read(folder, column)
        assert [example.label for example in examples] == [example.fields[column] for example in examples]
        assert {example.label for example in corpus.read(folder, None)} == {None}
        with pytest.raises(DataError, match=r"has no column 'mood'.*--label-column"):
            corpus.read(folder, "mood")

    def test_an_unknown_protocol_or_fold_is_told_with_those_there_are(self, corpus):
        corpus, _ = corpus
        with pytest.raises(DataError, match=rf"protocol is mine; .* has {corpus.protocols[0].name}.*--protocol"):
            corpus.protocol("mine")
        with pytest.raises(DataError, match=r"fold is 11; protocol \w+ has 1.*--fold"):
            corpus.protocol().fold("11")

    def test_another_folder_is_refused_with_the_layout_and_the_source(self, corpus, tmp_path):
        corpus, _ = corpus
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError) as raised:
            read_examples(f"{corpus.name}:{tmp_path / 'empty'}")
        assert all(path in str(raised.value) for path in (*corpus.layout, corpus.source))

    def test_the_whole_corpus_has_the_published_numbers(self, corpus):
        corpus, _ = corpus
        folder = Path(os.environ.get("MAMBAVOX_CORPORA", "nowhere")) / WHOLE[corpus.name]
        if not folder.is_dir():
            pytest.skip(f"{corpus.title} is not here (MAMBAVOX_CORPORA: folder of {WHOLE[corpus.name]})")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            examples = read_examples(f"{corpus.name}:{folder}")
        assert (len(examples), len({example.label for example in examples})) == PUBLISHED[corpus.name]
        splits = split_by_protocol(examples, corpus.protocol())
        if corpus.name in WHOLE_PARTS:
            assert (len(splits.train), len(splits.valid), len(splits.test)) == WHOLE_PARTS[corpus.name]


class TestEsc50:
    @pytest.mark.parametrize("folds", ["123/4/5", "234/5/1", "345/1/2", "451/2/3", "512/3/4"])
    def test_the_folds_are_those_of_the_paper(self, tmp_path, folds):
        train, valid, test = folds.split("/")
        examples = read_examples(tiny_corpora.write_esc50(tmp_path))
        splits = split_by_protocol(examples, CORPORA["esc50"].protocol(), test)
        assert part_values(splits, "fold") == [set(train), {valid}, {test}]

    def test_esc10_is_the_marked_part(self, tmp_path):
        folder = tiny_corpora.write_esc50(tmp_path)
        assert Counter(example.label for example in read_examples(f"esc10:{folder}")) == {"dog": 10, "rooster": 10}
        assert Counter(example.label for example in read_examples(folder)) == {"dog": 10, "rooster": 10, "pig": 10}

    def test_without_a_protocol_the_folds_are_columns_like_any(self, tmp_path):
        splits = make_splits(read_examples(tiny_corpora.write_esc50(tmp_path)), test_fold=2, valid_fold=4)
        assert part_values(splits, "fold") == [{"1", "3", "5"}, {"4"}, {"2"}]

    def test_the_first_fold_is_taken_and_told_where_none_is_named(self, tmp_path):
        splits = split_by_protocol(read_examples(tiny_corpora.write_esc50(tmp_path)), CORPORA["esc50"].protocol())
        assert splits.notes == [
            "protocol official, fold 1 of 5, the first, for want of --fold: "
            "train is fold 2, 3, 4; valid is fold 5; test is fold 1"
        ]

    def test_real_recordings_follow_the_folds(self, recordings, tmp_path):
        lines = ["filename,fold,target,category,esc10,src_file,take"]
        (tmp_path / "audio").mkdir()
        for example in read_examples(recordings / "esc10"):
            (tmp_path / "audio" / example.audio.name).symlink_to(example.audio)
            fields = example.fields
            lines.append(f"{example.audio.name},{fields['fold']},{fields['label_id']},{example.label},True,1,A")
        write_lines(tmp_path / "meta" / "esc50.csv", lines)
        with pytest.warns(UserWarning, match="ESC-10 has 400 recordings and 320 were found: 80 are missing"):
            examples = read_examples(f"esc10:{tmp_path}")
        splits = split_by_protocol(examples, CORPORA["esc10"].protocol(), "3")
        assert part_values(splits, "fold") == [{"1", "4"}, {"2"}, {"3"}]
        assert [len(part) for part in (splits.train, splits.valid, splits.test)] == [160, 80, 80]
        assert Counter(example.label for example in splits.test) == dict.fromkeys(
            {example.label for example in examples}, 8
        )
        with pytest.raises(DataError, match=r"the valid split of fold 1, fold 5, has no recordings: .*--fold"):
            split_by_protocol(examples, CORPORA["esc10"].protocol(), "1")


class TestUrbanSound8k:
    @pytest.mark.parametrize(("test", "valid"), [("1", "2"), ("5", "6"), ("9", "10"), ("10", "1")])
    def test_the_next_fold_validates(self, tmp_path, test, valid):
        examples = read_examples(tiny_corpora.write_urbansound8k(tmp_path))
        splits = split_by_protocol(examples, CORPORA["urbansound8k"].protocol(), test)
        every = {str(number) for number in range(1, 11)}
        assert part_values(splits, "fold") == [every - {test, valid}, {valid}, {test}]
        assert not splits.selects_on_test

    def test_the_paper_s_selection_on_the_test_fold_is_told(self, tmp_path):
        examples = read_examples(tiny_corpora.write_urbansound8k(tmp_path))
        splits = split_by_protocol(examples, CORPORA["urbansound8k"].protocol("paper"), 10)
        assert part_values(splits, "fold") == [{str(number) for number in range(1, 10)}, set(), {"10"}]
        assert splits.selects_on_test
        assert splits.notes[1].startswith("OPTIMISTIC: protocol paper chooses the best epoch on the test split")

    def test_fields(self, tmp_path):
        example = read_examples(tiny_corpora.write_urbansound8k(tmp_path))[0]
        assert example.audio == tmp_path / "audio" / "fold1" / "103-3-0-0.wav"
        assert example.label == "dog_bark"
        assert (example.fields["fsID"], example.fields["fold"], example.fields["salience"]) == ("103", "1", "1")


class TestSpeechCommands:
    def test_the_lists_divide_and_the_noises_are_left_out(self, tmp_path):
        examples = read_examples(tiny_corpora.write_speech_commands(tmp_path))
        assert Counter(example.label for example in examples) == {"bed": 4, "yes": 4}
        splits = split_by_protocol(examples, CORPORA["speech_commands"].protocol())
        assert part_values(splits, "speaker") == [{"0a2b400e", "0b56bcfe"}, {"ffa76c4a"}, {"fffcabd1"}]
        assert splits.notes == ["protocol official: splits as the corpus's lists say"]

    def test_a_file_in_both_lists_is_told_with_both_lines(self, tmp_path):
        folder = tiny_corpora.write_speech_commands(tmp_path)
        write_lines(folder / "testing_list.txt", ["yes/fffcabd1_nohash_0.wav", "", "bed/ffa76c4a_nohash_0.wav"])
        with pytest.raises(DataError, match=r"testing_list\.txt, line 3: .*bed/ffa.* is already in .*ion_list.*line 1"):
            read_examples(folder)

    def test_a_listed_file_that_is_missing_is_told_with_its_line(self, tmp_path):
        folder = tiny_corpora.write_speech_commands(tmp_path)
        (folder / "yes" / "ffa76c4a_nohash_0.wav").unlink()
        with pytest.raises(DataError, match=r"1 of 4 listed .*yes/ffa76c4a.*validation_list\.txt, line 2"):
            read_examples(folder)

    def test_recordings_that_are_not_of_the_corpus_are_counted(self, tmp_path, monkeypatch):
        folder = tiny_corpora.write_speech_commands(tmp_path)
        corpus = CORPORA["speech_commands"]
        assert corpus.miscount(corpus.num_clips) is None
        assert corpus.miscount(corpus.num_clips + 2).endswith("2 are not of the corpus")
        write_wav(folder / "no" / "mine.wav")
        assert "mine" in {example.fields["speaker"] for example in corpus.read(folder)}


class TestFluentSpeechCommands:
    def test_intents_speakers_and_parts(self, tmp_path):
        examples = read_examples(tiny_corpora.write_fluent_speech_commands(tmp_path))
        intents = {"-".join(slots) for slots in INTENTS}
        assert intents == {"activate-lights-kitchen", "change language-none-none"}
        assert {example.label for example in examples} == {example.fields["intent"] for example in examples} == intents
        assert "" not in examples[0].fields
        assert examples[0].fields["transcription"] == "Please, do it"
        splits = split_by_protocol(examples, CORPORA["fluent_speech_commands"].protocol())
        assert part_values(splits, "speakerId") == [{"aLice1", "bOb2"}, {"cAr3"}, {"dAn4"}]

    def test_a_file_in_two_tables_is_told_with_both_lines(self, tmp_path):
        folder = tiny_corpora.write_fluent_speech_commands(tmp_path)
        train = (folder / "data" / "train_data.csv").read_text().splitlines()
        with (folder / "data" / "test_data.csv").open("a") as table:
            table.write(train[2] + "\n")
        with pytest.raises(DataError, match=r"test_data\.csv, line 4: .* is already in .*train_data\.csv, line 3"):
            read_examples(folder)


class TestIemocap:
    def test_four_classes_with_excited_as_happy(self, tmp_path):
        examples = read_examples(tiny_corpora.write_iemocap(tmp_path))
        assert set(CODES) - {example.fields["emotion"] for example in examples} == {"fru", "xxx"}
        # Two speakers in each of five sessions; happy and excited are one class.
        assert Counter(example.label for example in examples) == {"angry": 10, "happy": 20, "neutral": 10, "sad": 10}
        fields = examples[0].fields
        assert (fields["dialogue"], fields["valence"], fields["dominance"]) == ("Ses01F_impro01", 2.5, 3.5)

    @pytest.mark.parametrize(("test", "valid"), [("1", "2"), ("4", "5"), ("5", "1")])
    def test_no_speaker_or_session_is_in_two_parts(self, tmp_path, test, valid):
        examples = read_examples(tiny_corpora.write_iemocap(tmp_path))
        splits = split_by_protocol(examples, CORPORA["iemocap"].protocol(), test)
        assert part_values(splits, "session") == [set("12345") - {test, valid}, {valid}, {test}]
        speakers = part_values(splits, "speaker")
        assert speakers[2] == {f"Ses0{test}F", f"Ses0{test}M"}
        assert len(set.union(*speakers)) == sum(map(len, speakers)) == 10

    def test_a_malformed_line_is_named(self, tmp_path):
        evaluation = tiny_corpora.write_iemocap(tmp_path) / "Session3/dialog/EmoEvaluation/Ses03F_impro01.txt"
        lines = evaluation.read_text().splitlines()
        lines[6] = lines[6].replace("\thap\t", "\t")
        write_lines(evaluation, lines)
        with pytest.raises(DataError, match=r"Ses03F_impro01\.txt, line 7: is '\[1\.2901"):
            read_examples(tmp_path)

    def test_an_utterance_without_recording_is_named(self, tmp_path):
        folder = tiny_corpora.write_iemocap(tmp_path)
        (folder / "Session2/sentences/wav/Ses02F_impro01/Ses02F_impro01_M000.wav").unlink()
        with pytest.raises(DataError, match=r"Ses02F_impro01_M000\.wav \(.*Ses02F_impro01\.txt, line 31\)"):
            read_examples(folder)

    def test_a_missing_session_ends_the_folds_that_need_it(self, tmp_path):
        folder = tiny_corpora.write_iemocap(tmp_path)
        (folder / "Session2").rename(tmp_path / "elsewhere")
        examples = read_examples(folder)
        assert len(split_by_protocol(examples, CORPORA["iemocap"].protocol(), "3").test) == 10
        with pytest.raises(DataError, match=r"the test split of fold 2, session 2, has no recordings"):
            split_by_protocol(examples, CORPORA["iemocap"].protocol(), "2")


class TestTables:
    def test_a_row_without_its_recording_is_told_with_its_line(self, tmp_path):
        folder = tiny_corpora.write_urbansound8k(tmp_path)
        (folder / "audio" / "fold1" / "108-8-0-0.wav").unlink()
        with pytest.raises(DataError, match=r"1 of 40 listed recordings do not exist.*UrbanSound8K\.csv, line 4"):
            read_examples(folder)

    def test_a_row_listed_twice_is_told_with_both_lines(self, tmp_path):
        table = tiny_corpora.write_esc50(tmp_path) / "meta" / "esc50.csv"
        lines = table.read_text().splitlines()
        write_lines(table, [*lines, lines[1]])
        with pytest.raises(DataError, match=r"esc50\.csv, line 32: .* is already in .*esc50\.csv, line 2;"):
            read_examples(tmp_path)

    def test_a_missing_column_or_value_is_told(self, tmp_path):
        table = tiny_corpora.write_esc50(tmp_path) / "meta" / "esc50.csv"
        lines = table.read_text().splitlines()
        write_lines(table, [lines[0], lines[1].replace(",dog,", ",,")])
        with pytest.raises(DataError, match=r"esc50\.csv, line 2: 'category' is empty"):
            read_examples(tmp_path)
        write_lines(table, [line.rsplit(",", 4)[0] for line in lines])
        with pytest.raises(DataError, match=r"esc50\.csv: has no column 'category'; it has filename, fold, target"):
            read_examples(tmp_path)

    def test_another_label_with_gaps_is_told(self, tmp_path):
        folder = tiny_corpora.write_fluent_speech_commands(tmp_path)
        table = folder / "data" / "valid_data.csv"
        table.write_text(table.read_text().replace('"Please, do it"', "", 1))
        assert len(read_examples(folder)) == 8
        with pytest.raises(DataError, match=r"no 'transcription' in .*cAr3/.* \(1 of 8 rows\)"):
            read_examples(folder, label_column="transcription")

    def test_a_fold_that_does_not_exist_is_told(self, tmp_path):
        table = tiny_corpora.write_esc50(tmp_path) / "meta" / "esc50.csv"
        table.write_text(table.read_text().replace("B-0.wav,3,", "B-0.wav,6,"))
        with pytest.raises(DataError, match=r"3-1003-B-0\.wav: its fold is 6; protocol official knows 2, 3, 4, 5, 1"):
            split_by_protocol(read_examples(tmp_path), CORPORA["esc50"].protocol())


def test_a_manifest_goes_before_the_layout_and_a_name_before_the_manifest(tmp_path):
    folder = tiny_corpora.write_urbansound8k(tmp_path)
    write_lines(folder / "manifest.csv", ["path,label", "audio/fold1/103-3-0-0.wav,x"])
    assert find_corpus(folder) is None
    assert len(read_examples(folder)) == 1
    assert len(read_examples(f"urbansound8k:{folder}")) == 40


def test_other_data_are_no_corpus(tmp_path):
    write_wav(tmp_path / "dog" / "a.wav")
    for data in (tmp_path, str(tmp_path), "hf:owner/name", tmp_path / "dog" / "a.wav", None):
        assert find_corpus(data) is None
    with pytest.raises(DataError, match=r"esc5:.*or a corpus and its folder \(esc50:, esc10:"):
        read_examples(f"esc5:{tmp_path}")
