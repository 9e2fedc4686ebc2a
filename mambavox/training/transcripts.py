"""Recordings with transcripts, divided, limited and checked: one reader for every task of speech recognition."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from mambavox.asr.text import language_code, normalize_text
from mambavox.data import Example, check_audio, duration, make_splits, read_examples
from mambavox.data.columns import listed, require_column
from mambavox.data.segments import notes_on_segments
from mambavox.data.splits import draw_part, drop_splits
from mambavox.errors import AudioError, ConfigError, DataError
from mambavox.runs.config import TranscriptConfig
from mambavox.training.splits import ALL, RunData, Split, checking, left_out_rows

TEXT_COLUMNS = ("text", "sentence", "transcript", "transcription", "wrd", "words")
"""Names under which the column of transcripts is found, in this order."""


def load_transcripts(
    config: TranscriptConfig,
    console: Console | None = None,
    *,
    longest: float | None = None,
    learns_silence: bool = False,
) -> RunData:
    """Read the recordings of a run, divide them, and leave out what cannot be used.

    Only what is drawn is decoded: of a large corpus a few hours may be wanted.

    Args:
        config: what to read, and how to divide it.
        console: where progress goes.
        longest: seconds that the model hears at once; longer recordings are left out of every split.
        learns_silence: whether a training recording may have an empty transcript.

    Raises:
        ConfigError: no data are given, or more seconds than the model hears.
        DataError: there are no recordings or transcripts, or a split is not what is needed.
        AudioError: recordings cannot be used and ``on_error`` is ``"raise"``.
    """
    for name in ("drop_longer_than", "drop_eval_longer_than"):
        value = getattr(config, name)
        if longest is not None and value is not None and value > longest:
            raise ConfigError(f"{name}={value:g}; expected at most {longest:g}, which is all that the model hears")
    examples, column, dropped = read_transcribed(config)
    named, notes = _divide(examples, config)
    limits = {name: config.drop_longer_than if name == "train" else config.drop_eval_longer_than for name in named}
    left_out: list[dict[str, str]] = []
    splits: dict[str, Split] = {}
    with checking(sum(map(len, named.values())), console) as advance:
        for name, members in named.items():
            split, silent = _transcribed(members, column, name, config, learns_silence or name != "train")
            split, too_long = _measured(split, name, config, limits[name] or longest)
            seconds = {"train": config.train_seconds, "valid": config.valid_seconds}.get(name, config.test_seconds)
            if seconds is not None:
                split = split.take(within(split.seconds, seconds, config.split_seed))
            splits[name], problems = _checked(split, name, config, advance)
            left_out += [*silent, *too_long, *problems]
    if not len(splits["train"]):
        first = f", such as {left_out[0]['name']}: {left_out[0]['reason']}" if left_out else ""
        raise DataError(f"{config.data}: no training recording is left{first}")
    segments = notes_on_segments({name: split.examples for name, split in splits.items()})
    return RunData(splits, left_out, [*dropped, *notes, *segments, *_shared_speakers(splits)])


def load_all(config: TranscriptConfig, console: Console | None = None) -> RunData:
    """All recordings of some data as one split, to be tested on, whatever their length.

    Args:
        config: what to read.
        console: where progress goes.

    Raises:
        ConfigError, DataError, AudioError: as :func:`load_transcripts`.
    """
    examples, column, notes = read_transcribed(config)
    split, dropped = _transcribed(examples, column, ALL, config, True)
    split, unreadable = _measured(split, ALL, config, None)
    with checking(len(split), console) as advance:
        split, problems = _checked(split, ALL, config, advance)
    return RunData({ALL: split}, [*dropped, *unreadable, *problems], notes)


def read_transcribed(config: TranscriptConfig) -> tuple[list[Example], str, list[str]]:
    """All recordings of the language, the column of their transcripts, and what is said of splits that are left out.

    Raises:
        ConfigError: no data are given.
        DataError: there are no recordings of the language, or no column of transcripts.
    """
    source = config.given_data
    found = read_examples(source, label_column=None, audio_column=config.audio_column)
    examples, notes = drop_splits(found, config.drop_splits, _split_columns(config))
    if config.language_column is not None:
        wanted = language_code(config.language)
        examples = [item for item in examples if language_code(str(item.fields.get(config.language_column))) == wanted]
        if not examples:
            raise DataError(
                f"{source}: no recording has {config.language} in column {config.language_column!r}; name another "
                "column with --language-column, or leave it out"
            )
    columns = list(dict.fromkeys(key for example in examples for key in example.fields))
    if config.text_column is not None:
        require_column(config.text_column, columns, "--text-column", source)
        return examples, config.text_column, notes
    for column in TEXT_COLUMNS:
        if column in columns:
            return examples, column, notes
    if set(columns) <= {"label", "split"} and Path(source).expanduser().is_dir():
        raise DataError(
            f"{source}: holds {len(examples)} recordings without transcripts; expected a file {source}/metadata.csv "
            "with the columns file_name and text"
        )
    raise DataError(
        f"{source}: no column of transcripts ({', '.join(TEXT_COLUMNS)}); it has {listed(columns)}. Name the right one "
        "with --text-column"
    )


def _divide(examples: list[Example], config: TranscriptConfig) -> tuple[dict[str, list[Example]], list[str]]:
    """Examples of each split, and notes on how they came about."""
    if not config.train_split:
        splits = make_splits(
            examples,
            split_column=config.split_column,
            group_column=config.group_column,
            valid_fraction=config.valid_fraction,
            test_fraction=config.test_fraction,
            seed=config.split_seed,
        )
        test = {"test": splits.test} if splits.test else {}
        return {"train": splits.train, "valid": splits.valid, **test}, list(splits.notes)
    # A corpus's official names, and the splits that they belong to.
    columns = _split_columns(config)
    chosen: dict[str, list[Example]] = {"train": [], "valid": []}
    for split, names in (("train", config.train_split), ("valid", config.valid_split), ("test", config.test_split)):
        for name in (word.strip() for word in (names or "").split(",") if word.strip()):
            if split == "test" and name in chosen:
                raise DataError(f"test_split names {name!r}, which is a split of its own; name others: --test-split")
            rows = _named(examples, columns, name, split, config)
            chosen.setdefault(name if split == "test" else split, []).extend(rows)
    train = {id(example) for example in chosen["train"]}
    for split, members in chosen.items():
        if split != "train" and any(id(example) in train for example in members):
            raise DataError(f"{config.data}: {split} shares recordings with train; name other values: --train-split")
    notes = [f"splits as named, by {' or '.join(columns)}"]
    if config.valid_split:
        return chosen, notes
    if not config.valid_fraction:
        why = "none is named (--valid-split), and --valid-fraction 0 draws none"
        return chosen, [*notes, f"no valid split: {why}; the last epoch is kept"]
    chosen["train"], chosen["valid"], drawn = draw_part(
        chosen["train"], "valid", config.valid_fraction, group_column=config.group_column, seed=config.split_seed
    )
    return chosen, [*notes, *drawn]


def _split_columns(config: TranscriptConfig) -> list[str]:
    """Where the names of splits stand."""
    return [config.split_column] if config.split_column else ["subset", "split"]


def _named(
    examples: list[Example], columns: Sequence[str], name: str, split: str, config: TranscriptConfig
) -> list[Example]:
    """Recordings whose first of some columns that has a name, has it."""
    for column in columns:
        found = [example for example in examples if str(example.fields.get(column)) == name]
        if found:
            return found
    there = dict.fromkeys(str(item.fields[column]) for column in columns for item in examples if column in item.fields)
    raise DataError(
        f"{config.data}: no recording has {' or '.join(columns)} {name!r}; it has {listed(list(there))}: "
        f"--{split}-split"
    )


def _transcribed(
    examples: Sequence[Example], column: str, name: str, config: TranscriptConfig, may_be_empty: bool
) -> tuple[Split, list[dict[str, str]]]:
    """Recordings of a split that have a transcript, and those that have none.

    Raises:
        DataError: some have none and ``on_error`` is ``"raise"``, or all.
    """
    split = Split()
    left_out = []
    missing = [example for example in examples if not isinstance(example.fields.get(column), str)]
    if missing and (config.on_error == "raise" or len(missing) == len(examples)):
        mend = "skip them with --on-error skip" if len(missing) < len(examples) else "name another with --text-column"
        raise DataError(
            f"{config.data}: no transcript in column {column!r} of {listed([item.name for item in missing])}; {mend}"
        )
    without = set(map(id, missing))
    for example in examples:
        if id(example) in without:
            reason = f"no transcript in column {column!r}"
            left_out.append({"name": example.name, "split": name, "reason": reason})
            continue
        as_it_is = " ".join(example.fields[column].split())
        normalized = normalize_text(as_it_is, config.language)
        text = normalized if config.normalize else as_it_is
        if not text and not may_be_empty:
            left_out.append({"name": example.name, "split": name, "reason": "its transcript is empty"})
            continue
        split.examples.append(example)
        split.targets.append(normalized)
        split.written.append(text)
    return split, left_out


def _measured(
    split: Split, name: str, config: TranscriptConfig, limit: float | None
) -> tuple[Split, list[dict[str, str]]]:
    """A split with the lengths of its recordings, as their files' headers say, without those above a limit.

    Raises:
        AudioError: headers cannot be read and ``on_error`` is ``"raise"``.
    """
    rows, seconds, left_out, unreadable = [], [], [], []
    for row, example in enumerate(split.examples):
        try:
            length = duration(example.source)
        except AudioError as error:
            unreadable.append(example)
            left_out.append({"name": example.name, "split": name, "reason": str(error)})
            continue
        if limit is not None and length > limit:
            reason = f"{length:.2f} s is longer than {limit:g} s"
            left_out.append({"name": example.name, "split": name, "reason": reason})
            continue
        rows.append(row)
        seconds.append(length)
    if unreadable and config.on_error == "raise":
        check_audio(unreadable)  # names them all
    measured = split.take(rows)
    measured.seconds = seconds
    return measured, left_out


def _checked(
    split: Split, name: str, config: TranscriptConfig, advance: Callable[[], None]
) -> tuple[Split, list[dict[str, str]]]:
    """A split's recordings that can be decoded, and those that cannot.

    Raises:
        AudioError: some cannot and ``on_error`` is ``"raise"``.
        DataError: none can.
    """
    if not len(split):
        return split, []
    usable, problems = check_audio(
        split.examples,
        min_seconds=config.min_seconds,
        on_error=config.on_error,
        progress=lambda done, total: advance(),
    )
    kept = set(map(id, usable))
    rows = [row for row, example in enumerate(split.examples) if id(example) in kept]
    return split.take(rows), left_out_rows(problems, name)


def within(seconds: Sequence[float], limit: float, seed: int) -> list[int]:
    """Rows drawn until a total length is reached, in their order, at least one.

    With one seed, the rows of a smaller total are among those of a larger one.

    Args:
        seconds: length of each row.
        limit: total that is not exceeded.
        seed: of the draw.
    """
    order = np.random.default_rng(seed).permutation(len(seconds))
    fitting = int((np.cumsum(np.asarray(seconds)[order]) <= limit).sum())
    return sorted(order[: max(fitting, 1)].tolist())


def _shared_speakers(splits: Mapping[str, Split]) -> list[str]:
    """Notes on splits whose speakers are heard in training, too."""

    def speakers(split: Split) -> set[str]:
        return {str(item.fields["speaker"]) for item in split.examples if item.fields.get("speaker") not in (None, "")}

    known = speakers(splits["train"])
    return [
        f"{len(shared)} of {len(speakers(split))} speakers of {name} are in train, too, such as {min(shared)}: its "
        "error rates are not those of unknown speakers (--group-column speaker)"
        for name, split in splits.items()
        if name != "train" and (shared := speakers(split) & known)
    ]
