"""Recordings with transcripts, divided, limited and checked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console
from rich.progress import Progress

from mambavox.asr.text import normalize_text
from mambavox.data import Example, check_audio, duration, make_splits, read_examples
from mambavox.data.columns import listed, require_column
from mambavox.data.splits import draw_part
from mambavox.errors import ConfigError, DataError
from mambavox.training.recognition.config import RecognitionConfig

TEXT_COLUMNS = ("text", "sentence", "transcript", "transcription", "wrd", "words")
"""Names under which transcripts are found, in this order."""


@dataclass
class SpeechPart:
    """Recordings of one part and what they say.

    Attributes:
        examples: the recordings.
        texts: their transcripts, normalised.
        seconds: their lengths.
    """

    examples: list[Example] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.examples)

    def take(self, rows: Sequence[int]) -> "SpeechPart":
        """Some rows of it."""
        return SpeechPart(
            [self.examples[row] for row in rows], [self.texts[row] for row in rows], [self.seconds[row] for row in rows]
        )


@dataclass
class SpeechParts:
    """The parts of a run.

    Attributes:
        train: to fit on.
        valid: to choose on.
        tests: to report on, by name.
        left_out: name and reason of the recordings that are in no part.
        notes: how the parts came about.
    """

    train: SpeechPart
    valid: SpeechPart
    tests: dict[str, SpeechPart]
    left_out: list[dict[str, str]]
    notes: list[str]


def load_parts(config: RecognitionConfig, console: Console | None = None) -> SpeechParts:
    """Read the recordings of a run, divide them, and leave out what cannot be used.

    Args:
        config: what to read.
        console: where progress goes.

    Raises:
        ConfigError: no data are given.
        DataError: there are no recordings or transcripts, or a part is not what is needed.
        AudioError: recordings cannot be used and ``on_error`` is ``"raise"``.
    """
    examples, column = _read(config)
    named, notes = _divide(examples, config)
    left_out: list[dict[str, str]] = []
    usable: dict[str, SpeechPart] = {}
    total = sum(map(len, named.values()))
    with Progress(console=console, transient=True, disable=console is None or not console.is_terminal) as bar:
        task = bar.add_task("checking recordings", total=total)
        for name, members in named.items():
            part, dropped = _usable(name, members, column, config, lambda: bar.advance(task))
            usable[name] = part
            left_out += dropped
    train, valid = usable.pop("train"), usable.pop("valid")
    if not len(train):
        first = f", such as {left_out[0]['name']}: {left_out[0]['reason']}" if left_out else ""
        raise DataError(f"{config.data}: no training recording is left{first}")
    notes += _shared_speakers(train, {"valid": valid, **usable})
    return SpeechParts(train, valid, usable, left_out, notes)


def load_all(config: RecognitionConfig, console: Console | None = None) -> tuple[SpeechPart, list[dict[str, str]]]:
    """All recordings of some data, to be tested on, and those that cannot be used.

    Args:
        config: what to read.
        console: where progress goes.

    Raises:
        ConfigError, DataError, AudioError: as :func:`load_parts`.
    """
    examples, column = _read(config)
    with Progress(console=console, transient=True, disable=console is None or not console.is_terminal) as bar:
        task = bar.add_task("checking recordings", total=len(examples))
        return _usable("all", examples, column, config, lambda: bar.advance(task))


def _read(config: RecognitionConfig) -> tuple[list[Example], str]:
    """All recordings, and the column of their transcripts."""
    if config.data is None:
        raise ConfigError("no data given; expected a manifest, a corpus or hf:owner/name: --data PATH")
    examples = read_examples(config.data, label_column=None, audio_column=config.audio_column)
    return examples, _text_column(examples, config)


def _text_column(examples: Sequence[Example], config: RecognitionConfig) -> str:
    columns = list(dict.fromkeys(key for example in examples for key in example.fields))
    if config.text_column is not None:
        require_column(config.text_column, columns, "--text-column", str(config.data))
        return config.text_column
    for column in TEXT_COLUMNS:
        if column in columns:
            return column
    raise DataError(
        f"{config.data}: no column of transcripts ({', '.join(TEXT_COLUMNS)}); it has {listed(columns)}. Name the "
        "right one with --text-column"
    )


def _divide(examples: list[Example], config: RecognitionConfig) -> tuple[dict[str, list[Example]], list[str]]:
    """Examples of each part, and notes."""
    if not config.train_split:
        splits = make_splits(
            examples,
            split_column=config.split_column,
            group_column=config.group_column,
            valid_fraction=config.valid_fraction,
            test_fraction=config.test_fraction,
            seed=config.split_seed,
        )
        parts = {"train": splits.train, "valid": splits.valid}
        return {**parts, **({"test": splits.test} if splits.test else {})}, list(splits.notes)
    # A corpus's official names, and the parts that they belong to.
    columns = [config.split_column] if config.split_column else ["subset", "split"]
    chosen: dict[str, list[Example]] = {"train": [], "valid": []}
    for part, names in (("train", config.train_split), ("valid", config.valid_split), ("test", config.test_split)):
        for name in (word.strip() for word in (names or "").split(",") if word.strip()):
            if part == "test" and name in ("train", "valid"):
                raise DataError(
                    f"test_split names {name!r}, which is a part of its own; name other values: --test-split"
                )
            chosen.setdefault(part if part != "test" else name, []).extend(
                _named(examples, columns, name, part, config)
            )
    both = {id(example) for example in chosen["train"]}
    for part, members in chosen.items():
        if part != "train" and any(id(example) in both for example in members):
            raise DataError(f"{config.data}: {part} shares recordings with train; name other values: --train-split")
    notes = [f"parts as named, by {' or '.join(columns)}"]
    if config.valid_split:
        return chosen, notes
    if not config.valid_fraction:
        why = "none is named (--valid-split), and --valid-fraction 0 draws none"
        return chosen, [*notes, f"no valid part: {why}; the last epoch is kept"]
    chosen["train"], chosen["valid"], drawn = draw_part(
        chosen["train"], "valid", config.valid_fraction, group_column=config.group_column, seed=config.split_seed
    )
    return chosen, [*notes, *drawn]


def _named(
    examples: list[Example], columns: Sequence[str], name: str, part: str, config: RecognitionConfig
) -> list[Example]:
    """Recordings whose first of some columns that has a name, has it."""
    for column in columns:
        found = [example for example in examples if str(example.fields.get(column)) == name]
        if found:
            return found
    there = dict.fromkeys(str(item.fields[column]) for column in columns for item in examples if column in item.fields)
    raise DataError(
        f"{config.data}: no recording has {' or '.join(columns)} {name!r}; it has {listed(list(there))}: --{part}-split"
    )


def _usable(
    part: str, examples: list[Example], column: str, config: RecognitionConfig, advance: Callable[[], None]
) -> tuple[SpeechPart, list[dict[str, str]]]:
    """Recordings of a part that can be used, and those that cannot with the reason."""
    left_out: list[dict[str, str]] = []
    training = part == "train"
    longest = config.max_seconds if training else config.max_eval_seconds
    kept = SpeechPart()
    for example in examples:
        value = example.fields.get(column)
        if value is None or not isinstance(value, str):
            reason = f"{column!r} is {value!r}; expected a transcript"
            if config.on_error == "raise" and value is not None:
                raise DataError(f"{example.name}: {reason}. Name another column with --text-column")
            left_out.append({"name": example.name, "part": part, "reason": reason})
            continue
        text = normalize_text(value, config.language) if config.normalize else " ".join(value.split())
        # What is silent has nothing to teach, but may be tested on: an empty transcript is then right.
        if training and not text:
            left_out.append({"name": example.name, "part": part, "reason": "its transcript is empty"})
            continue
        kept.examples.append(example)
        kept.texts.append(text)
    if not kept.examples:
        return kept, left_out
    text_of = {id(example): text for example, text in zip(kept.examples, kept.texts, strict=True)}
    good, problems = check_audio(
        kept.examples,
        min_seconds=config.min_seconds,
        on_error=config.on_error,
        progress=lambda done, total: advance(),
    )
    left_out += [{"name": problem.name, "part": part, "reason": problem.reason} for problem in problems]
    result = SpeechPart()
    for example in good:
        seconds = duration(example.source)
        if longest is not None and seconds > longest:
            reason = f"{seconds:.2f} s is longer than {longest:g} s"
            left_out.append({"name": example.name, "part": part, "reason": reason})
            continue
        result.examples.append(example)
        result.texts.append(text_of[id(example)])
        result.seconds.append(seconds)
    limits = {"train": config.train_seconds, "valid": config.valid_seconds}
    limit = limits.get(part, config.test_seconds)
    return (result if limit is None else result.take(within(result.seconds, limit, config.split_seed))), left_out


def within(seconds: Sequence[float], limit: float, seed: int) -> list[int]:
    """Rows drawn until a total length is reached, in their order; with one seed a smaller total is among a larger one.

    Args:
        seconds: length of each row.
        limit: total that is not exceeded.
        seed: of the draw.
    """
    chosen, total = [], 0.0
    for row in np.random.default_rng(seed).permutation(len(seconds)).tolist():
        if total + seconds[row] > limit:
            break
        total += seconds[row]
        chosen.append(row)
    return sorted(chosen)


def _shared_speakers(train: SpeechPart, others: dict[str, SpeechPart]) -> list[str]:
    """Notes on parts that are not disjoint in speakers."""

    def speakers(part: SpeechPart) -> set[str]:
        return {str(item.fields["speaker"]) for item in part.examples if item.fields.get("speaker") not in (None, "")}

    known = speakers(train)
    return [
        f"{len(shared)} of {len(speakers(part))} speakers of {name} are in train, too, such as {min(shared)}: its "
        "error rates are not those of unknown speakers (--group-column speaker)"
        for name, part in others.items()
        if (shared := speakers(part) & known)
    ]
