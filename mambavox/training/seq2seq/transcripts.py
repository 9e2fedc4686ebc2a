"""Transcribed recordings as Whisper's inputs and targets."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mambavox.asr.text import UNSPACED, language_code, normalize_text
from mambavox.data import AudioProblem, Example, Splits, check_audio, duration, make_splits, read_examples
from mambavox.data.columns import listed
from mambavox.errors import AudioError, ConfigError, DataError
from mambavox.training.features import FeatureDataset
from mambavox.training.front_end import FrontEnd
from mambavox.training.seq2seq.config import Seq2SeqConfig

TEXT_COLUMNS = ("text", "sentence", "transcription", "transcript")
"""Names under which the column of transcripts is found, in this order."""
IGNORED = -100
"""Target that adds nothing to the loss."""


class TranscriptDataset(FeatureDataset):
    """Features of each recording and the tokens of its transcript.

    Args:
        examples: the recordings.
        texts: what is said in each, as it is to be written.
        front_end: makes the features.
        prefix: tokens with which every transcript begins.
        tokenizer: of the model.
        max_tokens: tokens that the decoder takes.

    Attributes:
        texts: as given.

    Raises:
        DataError: a transcript is too long.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        texts: Sequence[str],
        front_end: FrontEnd,
        *,
        prefix: Sequence[int],
        tokenizer: Any,
        max_tokens: int,
    ) -> None:
        super().__init__(examples, None, front_end)
        self.texts = texts
        ends = [tokenizer.eos_token_id]
        # Nothing is said in an empty transcript: the decoder learns to end at once.
        encoded = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        self.tokens = [[*prefix, *ids, *ends] for ids in encoded]
        long = [example.name for example, ids in zip(examples, self.tokens, strict=True) if len(ids) > max_tokens]
        if long:
            raise DataError(
                f"transcripts of {len(long)} recordings have more than the {max_tokens} tokens that the decoder takes: "
                f"{listed(long)}; cut those recordings into shorter ones"
            )

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``features`` and ``tokens`` of one recording.

        Raises:
            AudioError: the recording cannot be read.
        """
        return {**super().__getitem__(index), "tokens": self.tokens[index]}


class TranscriptCollator:
    """Makes a batch of a :class:`TranscriptDataset`'s items: the model's keyword arguments.

    The first token, with which every decoder begins, is no target: transformers puts it before the labels.

    Args:
        front_end: batches the features.
    """

    def __init__(self, front_end: FrontEnd) -> None:
        self.front_end = front_end

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Batch some items."""
        batch = self.front_end.collate([item["features"] for item in items])
        targets = [torch.tensor(item["tokens"][1:]) for item in items]
        batch["labels"] = torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=IGNORED)
        return batch


def load_transcripts(config: Seq2SeqConfig, longest: float) -> tuple[Splits, list[AudioProblem], int]:
    """Read and check a run's recordings and divide them.

    Args:
        config: what to read, and how to divide it.
        longest: seconds that the model hears.

    Returns:
        The parts, the recordings that cannot be used, and how many are left out because they are too long.

    Raises:
        ConfigError: no data are given, or more seconds than the model hears.
        DataError: there are no recordings or transcripts, or a part is not what is needed.
        AudioError: recordings cannot be used and ``on_error`` is ``"raise"``.
    """
    limit = longest if config.max_seconds is None else config.max_seconds
    if limit > longest:
        raise ConfigError(f"max_seconds={limit:g}; expected at most {longest:g}: Whisper hears no more at once")
    examples, problems = read_transcribed(config)
    readable, unreadable = _with_lengths(examples)
    if unreadable and config.on_error == "raise":
        check_audio(unreadable)  # names them all
    problems += [AudioProblem(example.name, f"{example.name}: cannot be read") for example in unreadable]
    fitting = [example for example, seconds in readable if seconds <= limit]
    if not fitting:
        raise DataError(f"{config.data}: every recording is longer than {limit:g} s; cut them into shorter ones")
    splits = make_splits(
        fitting,
        split_column=config.split_column,
        group_column=config.group_column,
        valid_fraction=config.valid_fraction,
        test_fraction=config.test_fraction,
        seed=config.split_seed,
    )
    # Only what is drawn is decoded: of a large corpus a few hours may be wanted.
    totals = ((splits.train, config.train_seconds), (splits.valid, config.valid_seconds))
    for part, seconds in (*totals, (splits.test, config.test_seconds)):
        if part and seconds is not None:
            part[:] = take_seconds(part, seconds, config.split_seed)
    drawn = [*splits.train, *splits.valid, *splits.test]
    usable, unusable = check_audio(drawn, min_seconds=config.min_seconds, on_error=config.on_error)
    kept = set(map(id, usable))
    for part in (splits.train, splits.valid, splits.test):
        part[:] = [example for example in part if id(example) in kept]
    if not splits.train:
        raise DataError(f"{config.data}: no training recording can be used, such as {unusable[0].reason}")
    return splits, [*problems, *unusable], len(readable) - len(fitting)


def read_transcribed(config: Seq2SeqConfig) -> tuple[list[Example], list[AudioProblem]]:
    """All recordings of the language that have a transcript, and those that have none.

    Raises:
        ConfigError: no data are given.
        DataError: there are no recordings or transcripts, or some are missing and ``on_error`` is ``"raise"``.
    """
    if config.data is None:
        raise ConfigError("no data given; expected a manifest or hf:owner/name: --data PATH")
    examples = read_examples(config.data, label_column=None, audio_column=config.audio_column)
    if config.language_column is not None:
        wanted = language_code(config.language)
        examples = [item for item in examples if language_code(str(item.fields.get(config.language_column))) == wanted]
        if not examples:
            raise DataError(
                f"{config.data}: no recording has {config.language} in column {config.language_column!r}; name another "
                "one with --language-column, or leave it out"
            )
    column = text_column(examples, config.text_column, config.data)
    missing = [example for example in examples if not isinstance(example.fields.get(column), str)]
    if missing and config.on_error == "raise":
        names = listed([example.name for example in missing])
        raise DataError(f"{config.data}: no transcript in column {column!r} of {names}; skip them with --on-error skip")
    problems = [AudioProblem(example.name, f"{example.name}: no transcript in {column!r}") for example in missing]
    without = set(map(id, missing))
    if len(missing) == len(examples):
        raise DataError(f"{config.data}: no recording has a transcript in column {column!r}")
    return [example for example in examples if id(example) not in without], problems


def _with_lengths(examples: Sequence[Example]) -> tuple[list[tuple[Example, float]], list[Example]]:
    """Recordings and their seconds, as the files' headers say, and those without a readable header."""
    readable, unreadable = [], []
    for example in examples:
        try:
            readable.append((example, duration(example.source)))
        except AudioError:
            unreadable.append(example)
    return readable, unreadable


def text_column(examples: Sequence[Example], asked: str | None, where: str) -> str:
    """Name of the column of transcripts.

    Raises:
        DataError: there is none.
    """
    columns = list(dict.fromkeys(column for example in examples for column in example.fields))
    wanted = TEXT_COLUMNS if asked is None else (asked,)
    found = next((column for column in wanted if column in columns), None)
    if found is None:
        raise DataError(
            f"{where}: has no column {' or '.join(map(repr, wanted))} of transcripts; it has {listed(columns)}. "
            "Name the right one with --text-column"
        )
    return found


def take_seconds(examples: Sequence[Example], seconds: float, seed: int) -> list[Example]:
    """Draw recordings until they last so many seconds, and keep them in their order; at least one.

    With one seed fewer seconds are among the more.
    """
    order = np.random.default_rng(seed).permutation(len(examples)).tolist()
    lengths = np.cumsum([duration(examples[index].source) for index in order])
    kept = max(int((lengths <= seconds).sum()), 1)
    return [examples[index] for index in sorted(order[:kept])]


def texts_of(examples: Sequence[Example], column: str, language: str | None, *, normalize: bool) -> list[str]:
    """Transcripts as they are compared: in one line."""
    texts = [" ".join(str(example.fields[column]).split()) for example in examples]
    return [normalize_text(text, language) for text in texts] if normalize else texts


def as_written(texts: Sequence[str], language: str | None) -> list[str]:
    """Transcripts as Whisper writes them: with a space before the first word, where words have spaces between them."""
    spaced = language_code(language) not in UNSPACED
    return [f" {text}" if text and spaced else text for text in texts]
