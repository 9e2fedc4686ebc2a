"""Splits: no recording in two parts, none lost, seeded, stratified, groups whole."""

from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mambavox.data import Example, make_splits, take_shots
from mambavox.errors import DataError


def clips(labels, **columns):
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    rows = rows or [{} for _ in labels]
    return [
        Example(Path(f"{number}.wav"), label, row) for number, (label, row) in enumerate(zip(labels, rows, strict=True))
    ]


def parts_of(splits):
    return splits.train, splits.valid, splits.test


def sizes(splits):
    return tuple(map(len, parts_of(splits)))


def names(splits):
    return [[example.name for example in part] for part in parts_of(splits)]


LABELS = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=120)
SEEDS = st.integers(0, 2**32 - 1)


class TestDraw:
    @settings(max_examples=60, deadline=None)
    @given(LABELS, SEEDS, st.floats(0, 0.45), st.floats(0, 0.45))
    def test_disjoint_complete_deterministic_stratified(self, labels, seed, valid_fraction, test_fraction):
        examples = clips(labels)
        options = {"valid_fraction": valid_fraction, "test_fraction": test_fraction, "seed": seed}
        counts = Counter(labels)
        try:
            splits = make_splits(examples, **options)
        except DataError:
            # Only where no class can spare a recording for every part that is asked for.
            assert max(counts.values()) < 1 + (valid_fraction > 0) + (test_fraction > 0)
            return
        assert sorted(example.name for part in parts_of(splits) for example in part) == sorted(
            example.name for example in examples
        )
        assert names(make_splits(examples, **options)) == names(splits)
        assert {example.label for example in splits.train} == set(labels)
        for part, fraction in ((splits.test, test_fraction), (splits.valid, valid_fraction)):
            for label, count in Counter(example.label for example in part).items():
                assert abs(count - fraction * counts[label]) <= 1.5 or count == 1

    def test_default_is_ten_percent_each(self):
        splits = make_splits(clips(["a"] * 100 + ["b"] * 200))
        assert sizes(splits) == (240, 30, 30)
        assert Counter(example.label for example in splits.test) == {"a": 10, "b": 20}
        assert Counter(example.label for example in splits.valid) == {"a": 10, "b": 20}

    def test_seeds_differ(self):
        examples = clips(["a"] * 50)
        assert names(make_splits(examples, seed=1)) != names(make_splits(examples, seed=2))

    def test_the_order_of_the_source_is_kept(self):
        examples = clips(["a", "b"] * 30)
        for part in parts_of(make_splits(examples)):
            assert [examples.index(example) for example in part] == sorted(examples.index(example) for example in part)

    def test_small_classes_stay_in_train_and_are_named(self):
        splits = make_splits(clips(["a"] * 10 + ["rare"] + ["pair"] * 2))
        assert {"a", "rare", "pair"} == {example.label for example in splits.train}
        assert "test lacks rare: one recording each, which train keeps" in splits.notes
        assert "valid lacks rare, pair: one recording each, which train keeps" in splits.notes

    def test_too_few_for_any_part(self):
        with pytest.raises(DataError, match="3 recordings are too few to draw a test split"):
            make_splits(clips(["a", "b", "c"]))
        assert sizes(make_splits(clips(["a", "b", "c"]), valid_fraction=0, test_fraction=0)) == (3, 0, 0)

    def test_without_labels(self):
        assert sizes(make_splits(clips([None] * 20))) == (16, 2, 2)

    @pytest.mark.parametrize(("valid", "test"), [(-0.1, 0.1), (0.5, 0.5), (1.0, 0)])
    def test_impossible_fractions(self, valid, test):
        with pytest.raises(DataError, match=r"expected at least 0 each"):
            make_splits(clips(["a"] * 9), valid_fraction=valid, test_fraction=test)

    def test_nothing_to_divide(self):
        with pytest.raises(DataError):
            make_splits([])


class TestGroups:
    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 7)), min_size=2, max_size=100), SEEDS)
    def test_groups_never_straddle_and_nothing_is_lost(self, rows, seed):
        examples = clips([label for label, _ in rows], speaker=[speaker for _, speaker in rows])
        try:
            splits = make_splits(examples, group_column="speaker", seed=seed)
        except DataError as error:
            assert "group" in str(error)
            return
        home = defaultdict(set)
        for number, part in enumerate(parts_of(splits)):
            for example in part:
                home[example.fields["speaker"]].add(number)
        assert all(len(parts) == 1 for parts in home.values())
        assert sum(sizes(splits)) == len(rows)
        assert min(sizes(splits)) > 0
        assert {example.label for example in splits.train} == {label for label, _ in rows}
        assert names(splits) == names(make_splits(examples, group_column="speaker", seed=seed))

    def test_many_speakers_give_about_the_fraction(self):
        speakers = [f"s{number % 40}" for number in range(800)]
        splits = make_splits(clips(["a", "b"] * 400, speaker=speakers), group_column="speaker")
        assert all(60 <= size <= 100 for size in sizes(splits)[1:])

    def test_a_class_of_one_speaker_stays_in_train(self):
        labels = ["a", "b"] * 20 + ["only ann"] * 4
        speakers = [f"s{number % 5}" for number in range(40)] + ["ann"] * 4
        splits = make_splits(clips(labels, speaker=speakers), group_column="speaker")
        assert "only ann" in {example.label for example in splits.train}

    def test_impossible_groups(self):
        with pytest.raises(DataError, match="has one group"):
            make_splits(clips(["a"] * 9, speaker=["x"] * 9), group_column="speaker")
        with pytest.raises(DataError, match="no group of column 'speaker' can be held out"):
            make_splits(clips(["a", "b"] * 9, speaker=["x", "y"] * 9), group_column="speaker")

    def test_missing_groups(self):
        with pytest.raises(DataError, match=r"no column 'voice' among speaker; .*--group-column"):
            make_splits(clips(["a"] * 2, speaker=["x", "y"]), group_column="voice")
        with pytest.raises(DataError, match=r"column 'speaker' \(--group-column\) is empty for 1\.wav"):
            make_splits(clips(["a"] * 3, speaker=["x", None, "y"]), group_column="speaker")

    def test_a_split_column_that_straddles_groups_is_refused(self):
        examples = clips(["a"] * 4, split=["train", "train", "valid", "test"], speaker=["x", "y", "z", "x"])
        with pytest.raises(DataError, match="the group speaker = x is in train and in test"):
            make_splits(examples, group_column="speaker")
        assert sum(sizes(make_splits(examples, group_column="speaker", split_column="none"))) == 4


class TestSplitColumn:
    @pytest.mark.parametrize(
        "words", [("train", "valid", "test"), ("training", "validation", "testing"), ("Train", " val ", "heldout")]
    )
    def test_words(self, words):
        splits = make_splits(clips(["a"] * 6, split=[words[0]] * 3 + [words[1]] * 2 + [words[2]]))
        assert sizes(splits) == (3, 2, 1)

    def test_a_missing_valid_part_is_drawn_from_train(self):
        splits = make_splits(clips(["a"] * 25, split=["train"] * 20 + ["test"] * 5))
        assert sizes(splits) == (18, 2, 5)
        assert {example.fields["split"] for example in splits.valid} == {"train"}

    def test_a_missing_test_part_stays_empty_unless_asked(self):
        examples = clips(["a"] * 25, split=["train"] * 20 + ["dev"] * 5)
        splits = make_splits(examples)
        assert sizes(splits) == (20, 5, 0)
        assert any("no test split" in note for note in splits.notes)
        assert sizes(make_splits(examples, test_fraction=0.25)) == (15, 5, 5)

    def test_another_column(self):
        examples = clips(["a"] * 3, split=["x", "y", "z"], official=["train", "valid", "test"])
        assert sizes(make_splits(examples, split_column="official")) == (1, 1, 1)

    def test_unknown_words_are_refused_and_named(self):
        examples = clips(["a"] * 3, split=["train", "smoke", "test"])
        with pytest.raises(DataError, match=r"column 'split' holds smoke; expected train, .*--split-column"):
            make_splits(examples)
        assert sizes(make_splits(examples, split_column="none")) == (1, 1, 1)

    def test_a_column_that_is_missing_or_has_holes(self):
        with pytest.raises(DataError, match=r"no column 'part' among split; .*--split-column"):
            make_splits(clips(["a"] * 2, split=["train", "test"]), split_column="part")
        with pytest.raises(DataError, match=r"is empty for 1\.wav"):
            make_splits(clips(["a"] * 2, split=["train", None]))

    def test_no_train_part(self):
        with pytest.raises(DataError, match="but no train split"):
            make_splits(clips(["a"] * 2, split=["valid", "test"]))

    def test_a_column_that_only_says_train_does_not_divide(self):
        assert sizes(make_splits(clips(["a"] * 20, split=["train"] * 20))) == (16, 2, 2)
        by_fold = make_splits(clips(["a"] * 20, split=["train"] * 20, fold=[1, 2, 3, 4] * 5))
        assert {example.fields["fold"] for example in by_fold.test} == {4}

    def test_a_label_that_train_lacks_is_named(self):
        with pytest.raises(DataError, match=r"2\.wav: its label is 'lion' and it is in test; train has none"):
            make_splits(clips(["a", "a", "lion"], split=["train", "valid", "test"]))

    def test_one_recording_in_two_parts_is_refused(self):
        examples = clips(["a"] * 3, split=["train", "valid", "test"])
        again = Example(examples[0].audio, "a", {"split": "test"})
        with pytest.raises(DataError, match=r"the recording 0\.wav is in train and in test"):
            make_splits([*examples, again])


class TestFolds:
    @pytest.mark.parametrize(
        ("test_fold", "valid_fold", "expected"),
        [(None, None, (5, 4)), (5, None, (5, 4)), ("1", None, (1, 5)), (2, None, (2, 1)), (2, 4, (2, 4))],
    )
    def test_folds(self, test_fold, valid_fold, expected):
        examples = clips(["a"] * 20, fold=[1, 2, 3, 4, 5] * 4)
        splits = make_splits(examples, test_fold=test_fold, valid_fold=valid_fold)
        test, valid = expected
        assert {example.fields["fold"] for example in splits.test} == {test}
        assert {example.fields["fold"] for example in splits.valid} == {valid}
        assert {example.fields["fold"] for example in splits.train} == {1, 2, 3, 4, 5} - {test, valid}
        assert f"test is fold {test}, valid is fold {valid}" in splits.notes[0]

    def test_the_last_of_ten_folds_is_the_tenth(self):
        splits = make_splits(clips(["a"] * 10, fold=[f"fold{number}" for number in range(1, 11)]))
        assert [example.fields["fold"] for example in splits.test + splits.valid] == ["fold10", "fold9"]

    def test_two_folds_draw_valid_from_train(self):
        splits = make_splits(clips(["a"] * 20, fold=[1, 2] * 10))
        assert sizes(splits) == (9, 1, 10)

    def test_asking_for_a_fold_goes_before_a_split_column(self):
        examples = clips(["a"] * 6, split=["train", "valid", "test"] * 2, fold=[1, 1, 2, 2, 3, 3])
        assert sizes(make_splits(examples)) == (2, 2, 2)
        assert [example.fields["fold"] for example in make_splits(examples, test_fold=1).test] == [1, 1]

    def test_another_column(self):
        examples = clips(["a"] * 3, split=["fold1", "fold2", "fold3"])
        assert make_splits(examples, fold_column="split").test[0].fields["split"] == "fold3"

    def test_what_cannot_be(self):
        examples = clips(["a"] * 9, fold=[1, 2, 3] * 3)
        with pytest.raises(DataError, match=r"test_fold is 7; column 'fold' has the folds 1, 2, 3"):
            make_splits(examples, test_fold=7)
        with pytest.raises(DataError, match="test_fold and valid_fold are both 2"):
            make_splits(examples, test_fold=2, valid_fold=2)
        with pytest.raises(DataError, match="has one fold"):
            make_splits(clips(["a"] * 2, fold=[1, 1]))
        with pytest.raises(DataError, match="leave none to train on"):
            make_splits(clips(["a"] * 2, fold=[1, 2]), test_fold=1, valid_fold=2)
        with pytest.raises(DataError, match="choose one of them"):
            make_splits(examples, test_fold=1, split_column="none")
        with pytest.raises(DataError, match=r"no column 'fold'.*--fold-column"):
            make_splits(clips(["a"] * 9), test_fold=1)


class TestShots:
    EXAMPLES = clips(["a", "b", "c"] * 20, split=(["train"] * 8 + ["valid", "test"]) * 6)

    @pytest.mark.parametrize("shots", [1, 2, 4])
    def test_train_keeps_so_many_of_each_class_and_the_rest_is_untouched(self, shots):
        whole = make_splits(self.EXAMPLES)
        few = take_shots(whole, shots, seed=3)
        assert Counter(example.label for example in few.train) == dict.fromkeys("abc", shots)
        assert set(names(few)[0]) <= set(names(whole)[0])
        assert names(few)[1:] == names(whole)[1:]
        assert few.notes[-1] == f"train: {shots} of each class, {3 * shots} of 48 recordings, drawn with seed 3"

    def test_the_seed_decides_and_fewer_are_among_the_more(self):
        whole = make_splits(self.EXAMPLES)
        draws = [set(names(take_shots(whole, shots, seed=1))[0]) for shots in (1, 2, 5, 13)]
        assert draws[0] < draws[1] < draws[2] < draws[3]
        assert names(take_shots(whole, 5, seed=1)) == names(take_shots(whole, 5, seed=1))
        assert names(take_shots(whole, 5, seed=1)) != names(take_shots(whole, 5, seed=2))

    def test_the_order_of_the_source_is_kept(self):
        train = take_shots(make_splits(self.EXAMPLES), 5).train
        rows = [self.EXAMPLES.index(example) for example in train]
        assert rows == sorted(rows)

    def test_what_cannot_be(self):
        splits = make_splits(clips(["a"] * 9 + ["b"] * 3), valid_fraction=0, test_fraction=0)
        with pytest.raises(DataError, match=r"shots is 4, but train has fewer of b \(3\); .*--shots"):
            take_shots(splits, 4)
        with pytest.raises(DataError, match="shots is 0; expected at least 1"):
            take_shots(splits, 0)
