"""Word and character error rates of transcripts, with intervals, the worst utterances and what was confused."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import jiwer
import numpy as np
from numpy.typing import NDArray

from mambavox.asr.text import words_of
from mambavox.errors import DataError

_RESAMPLES = 1000
_CHUNK = 1 << 22  # drawn indices at a time


@dataclass(frozen=True)
class ErrorCounts:
    """Edits that turn a reference into a hypothesis, as few as can be.

    Attributes:
        hits: units that are right.
        substitutions: units that became others.
        deletions: units that are missing.
        insertions: units that were not said.
    """

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    @property
    def errors(self) -> int:
        """All three kinds."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def length(self) -> int:
        """Units of the reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def rate(self) -> float:
        """Errors by units of the reference; against an empty reference 0.0 if nothing was heard, and 1.0 otherwise."""
        return self.errors / self.length if self.length else float(self.errors > 0)

    def __add__(self, other: "ErrorCounts") -> "ErrorCounts":
        return ErrorCounts(
            self.hits + other.hits,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )


@dataclass(frozen=True)
class ErrorRate:
    """An error rate over many utterances.

    Attributes:
        rate: errors by units of all references; 0.1 is 10 %. Insertions can make it more than 1.
        low: lower end of its 95 % interval.
        high: upper end.
        counts: what it is made of.
    """

    rate: float
    low: float
    high: float
    counts: ErrorCounts

    def __str__(self) -> str:
        return f"{100 * self.rate:.2f} % [{100 * self.low:.2f}, {100 * self.high:.2f}]"

    def to_mapping(self) -> dict[str, Any]:
        """For JSON."""
        return {"rate": self.rate, "low": self.low, "high": self.high, **asdict(self.counts)}


@dataclass(frozen=True)
class Utterance:
    """What was said and what was heard.

    Attributes:
        name: of the recording.
        reference: what was said.
        hypothesis: what was heard.
        words: edits between their words.
        characters: edits between their characters, spaces included.
        alignment: the words of both, one pair an edit: ``("=", "cat", "cat")``, ``("S", "cat", "hat")``,
            ``("D", "cat", "")`` or ``("I", "", "hat")``.
    """

    name: str
    reference: str
    hypothesis: str
    words: ErrorCounts
    characters: ErrorCounts
    alignment: tuple[tuple[str, str, str], ...]

    def aligned(self) -> tuple[str, str]:
        """Reference and hypothesis, word under word: stars stand for a missing word, errors are in capitals."""
        lines: tuple[list[str], list[str]] = ([], [])
        for kind, *pair in self.alignment:
            width = max(map(len, pair))
            for line, word in zip(lines, pair, strict=True):
                line.append(((word if kind == "=" else word.upper()) or "*" * width).ljust(width))
        return " ".join(lines[0]).rstrip(), " ".join(lines[1]).rstrip()

    def to_mapping(self) -> dict[str, Any]:
        """For JSON and tables: the rates and counts, without the alignment."""
        return {
            "name": self.name,
            "reference": self.reference,
            "hypothesis": self.hypothesis,
            "wer": self.words.rate,
            "cer": self.characters.rate,
            "word_errors": self.words.errors,
            "words": self.words.length,
            "character_errors": self.characters.errors,
            "characters": self.characters.length,
        }


@dataclass(frozen=True)
class TranscriptScores:
    """Scores of transcripts.

    Attributes:
        wer: word error rate.
        cer: character error rate.
        utterances: each one, in the order given.
    """

    wer: ErrorRate
    cer: ErrorRate
    utterances: tuple[Utterance, ...]

    @property
    def rates(self) -> dict[str, float]:
        """``wer`` and ``cer`` alone."""
        return {"wer": self.wer.rate, "cer": self.cer.rate}

    @property
    def empty_references(self) -> int:
        """Utterances in which nothing was said."""
        return sum(not utterance.reference for utterance in self.utterances)

    @property
    def empty_hypotheses(self) -> int:
        """Utterances in which nothing was heard."""
        return sum(not utterance.hypothesis for utterance in self.utterances)

    def worst(self, count: int = 10) -> list[Utterance]:
        """The utterances with the most word errors by words; among equals those with more errors, then as given."""
        wrong = [utterance for utterance in self.utterances if utterance.words.errors]
        return sorted(wrong, key=lambda utterance: (-utterance.words.rate, -utterance.words.errors))[:count]

    def confusions(self, kind: Literal["S", "D", "I"], count: int = 10) -> list[tuple[str, str, int]]:
        """The most frequent substitutions, deletions or insertions.

        Args:
            kind: which.
            count: how many.

        Returns:
            Word said, word heard, how often; the missing one is empty.
        """
        pairs = Counter(
            (said, heard) for utterance in self.utterances for edit, said, heard in utterance.alignment if edit == kind
        )
        ranked = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
        return [(said, heard, times) for (said, heard), times in ranked[:count]]

    def to_mapping(self) -> dict[str, Any]:
        """For JSON: the rates and the counts; :attr:`utterances` have their own rows."""
        return {
            "wer": self.wer.to_mapping(),
            "cer": self.cer.to_mapping(),
            "utterances": len(self.utterances),
            "empty_references": self.empty_references,
            "empty_hypotheses": self.empty_hypotheses,
        }


def score_transcripts(
    references: Sequence[str],
    hypotheses: Sequence[str],
    *,
    names: Sequence[str] | None = None,
    language: str | None = None,
    seed: int = 0,
) -> TranscriptScores:
    """Compare transcripts with what was said.

    Nothing is normalised here: give both sides through :func:`mambavox.asr.text.normalize_text`, or neither.

    A rate is the sum of all errors by the sum of all reference units, not a mean of rates. Its interval is a
    percentile bootstrap over utterances; of a single utterance, or without any error, it is a point and says nothing.
    An empty reference adds what was heard to the insertions; an empty hypothesis adds what was said to the deletions.

    Args:
        references: what was said.
        hypotheses: what was heard.
        names: of the recordings; default their numbers from 1.
        language: its words are counted, see :func:`mambavox.asr.text.words_of`.
        seed: of the bootstrap.

    Raises:
        DataError: there are no utterances, or not as many of one as of the other.

    Source:
        Bisani and Ney 2004, Bootstrap estimates for confidence intervals in ASR performance evaluation.
    """
    names = [str(number) for number in range(1, len(references) + 1)] if names is None else names
    if not len(references) == len(hypotheses) == len(names):
        raise DataError(
            f"{len(references)} references, {len(hypotheses)} hypotheses and {len(names)} names; expected equal numbers"
        )
    if not references:
        raise DataError("no transcripts to score; expected at least one reference")
    spoken = [words_of(text, language) for text in references]
    heard = [words_of(text, language) for text in hypotheses]
    word_edits = [_align(said, got) for said, got in zip(spoken, heard, strict=True)]
    character_edits = [_align(list(said), list(got)) for said, got in zip(references, hypotheses, strict=True)]
    utterances = tuple(
        Utterance(name, reference, hypothesis, _count(words), _count(characters), words)
        for name, reference, hypothesis, words, characters in zip(
            names, references, hypotheses, word_edits, character_edits, strict=True
        )
    )
    return TranscriptScores(
        wer=_error_rate([utterance.words for utterance in utterances], seed),
        cer=_error_rate([utterance.characters for utterance in utterances], seed),
        utterances=utterances,
    )


def _align(said: list[str], heard: list[str]) -> tuple[tuple[str, str, str], ...]:
    """Pairs of an optimal alignment."""
    if said == heard:
        return tuple(("=", unit, unit) for unit in said)
    if not said or not heard:
        return (*(("D", unit, "") for unit in said), *(("I", "", unit) for unit in heard))
    # Numbers for units: jiwer splits texts at spaces, and a unit may be one.
    number_of = {unit: str(number) for number, unit in enumerate(dict.fromkeys([*said, *heard]))}
    texts = (" ".join(number_of[unit] for unit in units) for units in (said, heard))
    pairs: list[tuple[str, str, str]] = []
    for chunk in jiwer.process_words(*texts).alignments[0]:
        before = said[chunk.ref_start_idx : chunk.ref_end_idx]
        after = heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "delete":
            pairs += [("D", unit, "") for unit in before]
        elif chunk.type == "insert":
            pairs += [("I", "", unit) for unit in after]
        else:
            kind = "=" if chunk.type == "equal" else "S"
            pairs += [(kind, unit, other) for unit, other in zip(before, after, strict=True)]
    return tuple(pairs)


def _count(pairs: Sequence[tuple[str, str, str]]) -> ErrorCounts:
    kinds = Counter(kind for kind, _, _ in pairs)
    return ErrorCounts(kinds["="], kinds["S"], kinds["D"], kinds["I"])


def _error_rate(counts: Sequence[ErrorCounts], seed: int) -> ErrorRate:
    total = sum(counts, ErrorCounts())
    errors = np.array([count.errors for count in counts], dtype=np.float64)
    lengths = np.array([count.length for count in counts], dtype=np.float64)
    low, high = np.quantile(_resampled_rates(errors, lengths, seed), (0.025, 0.975))
    return ErrorRate(total.rate, float(low), float(high), total)


def _resampled_rates(errors: NDArray[np.float64], lengths: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Rates of samples of utterances, drawn with replacement."""
    generator = np.random.default_rng(seed)
    rates: list[NDArray[np.float64]] = []
    at_once = max(_CHUNK // len(errors), 1)
    for start in range(0, _RESAMPLES, at_once):
        chosen = generator.integers(0, len(errors), (min(at_once, _RESAMPLES - start), len(errors)))
        wrong, units = errors[chosen].sum(axis=1), lengths[chosen].sum(axis=1)
        rates.append(np.where(units > 0, wrong / np.maximum(units, 1), wrong > 0))
    return np.concatenate(rates)
