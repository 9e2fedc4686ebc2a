"""From frames' log probabilities to text: greedy and beam search for CTC, times and confidences of words."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mambavox.asr.tokenizer import Vocabulary
from mambavox.asr.transcript import Word
from mambavox.errors import ConfigError, DataError

_NEVER = -math.inf


@dataclass(frozen=True)
class Hypothesis:
    """What a recording may say.

    Attributes:
        ids: its tokens, without blanks.
        log_probability: of all its alignments that were kept, by the model alone.
        score: what it was ranked by: the log probability and the bonus.
    """

    ids: tuple[int, ...]
    log_probability: float
    score: float


def greedy_search(log_probs: NDArray[np.floating], blank: int) -> list[int]:
    """Tokens of the likeliest alignment.

    Args:
        log_probs: ``(time, tokens)``.
        blank: number of the blank.
    """
    if not len(log_probs):
        return []
    best = log_probs.argmax(axis=1)
    changes = np.concatenate([[True], best[1:] != best[:-1]])
    return [int(token) for token in best[changes] if token != blank]


class _Prefix:
    """A text so far, in a tree: equal texts are the same object."""

    __slots__ = ("bonus", "children", "parent", "token")

    def __init__(self, parent: "_Prefix | None", token: int) -> None:
        self.parent = parent
        self.token = token
        self.children: dict[int, _Prefix] = {}
        self.bonus: float | None = None

    def child(self, token: int) -> "_Prefix":
        found = self.children.get(token)
        if found is None:
            found = self.children[token] = _Prefix(self, token)
        return found

    def ids(self) -> tuple[int, ...]:
        tokens: list[int] = []
        prefix: _Prefix | None = self
        while prefix is not None and prefix.parent is not None:
            tokens.append(prefix.token)
            prefix = prefix.parent
        return tuple(reversed(tokens))


def prefix_beam_search(
    log_probs: NDArray[np.floating],
    blank: int,
    *,
    beam_size: int = 16,
    token_margin: float = math.inf,
    bonus: Callable[[tuple[int, ...]], float] | None = None,
) -> list[Hypothesis]:
    """The likeliest texts, each by the sum of its alignments' probabilities.

    With a beam that holds every text the probabilities are exact.

    Args:
        log_probs: ``(time, tokens)``.
        blank: number of the blank.
        beam_size: texts that are kept after each frame.
        token_margin: tokens of a frame that are less likely than its best by more than this (in nats) are passed over.
        bonus: score of a text so far, added to its log probability; such as :class:`HotWords`.

    Returns:
        At most ``beam_size`` texts, the best first. Without frames, the empty one.

    Raises:
        ConfigError: a beam without room.

    Source:
        Graves 2012 (arXiv 1211.3711); Hannun et al. 2014 (arXiv 1408.2873), algorithm 1.
    """
    if beam_size < 1:
        raise ConfigError(f"beam_size={beam_size}; expected at least 1")

    def rank(item: tuple[_Prefix, tuple[float, float]]) -> float:
        prefix, (in_blank, in_token) = item
        if bonus is None:
            return _add(in_blank, in_token)
        if prefix.bonus is None:
            prefix.bonus = bonus(prefix.ids())
        return _add(in_blank, in_token) + prefix.bonus

    # Of each text: log probability of the alignments that end in a blank, and of those that end in its last token.
    beam: dict[_Prefix, tuple[float, float]] = {_Prefix(None, -1): (0.0, _NEVER)}
    for frame in np.asarray(log_probs, dtype=np.float64):
        likely = [int(token) for token in np.flatnonzero(frame >= frame.max() - token_margin) if token != blank]
        row = frame.tolist()
        following: dict[_Prefix, tuple[float, float]] = {}

        def gain(
            prefix: _Prefix,
            in_blank: float,
            in_token: float,
            following: dict[_Prefix, tuple[float, float]] = following,
        ) -> None:
            old_blank, old_token = following.get(prefix, (_NEVER, _NEVER))
            following[prefix] = (_add(old_blank, in_blank), _add(old_token, in_token))

        for prefix, (in_blank, in_token) in beam.items():
            either = _add(in_blank, in_token)
            stays = in_token + row[prefix.token] if prefix.parent is not None else _NEVER
            gain(prefix, either + row[blank], stays)
            for token in likely:
                # A token after itself is only another one behind a blank.
                before = in_blank if token == prefix.token else either
                if before > _NEVER:
                    gain(prefix.child(token), _NEVER, before + row[token])
        beam = dict(sorted(following.items(), key=rank, reverse=True)[:beam_size])
    ranked = sorted(beam.items(), key=rank, reverse=True)
    return [Hypothesis(item[0].ids(), _add(*item[1]), rank(item)) for item in ranked]


def _add(first: float, second: float) -> float:
    """Logarithm of the sum of two probabilities given as logarithms."""
    if first < second:
        first, second = second, first
    return first if second == _NEVER else first + math.log1p(math.exp(second - first))


class HotWords:
    """A bonus for words that are expected: names, terms.

    A word begun earns its share by letters, so that a beam does not lose it on the way, and loses it again when it
    turns into another word.

    Args:
        words: the words, in the form of the transcripts that the model has learned.
        vocabulary: of the model.
        weight: bonus of a whole word, in nats.

    Raises:
        ConfigError: a word is empty or more than one word, or the vocabulary cannot spell it.
    """

    def __init__(self, words: Sequence[str], vocabulary: Vocabulary, weight: float = 5.0) -> None:
        for word in words:
            if not word or len(word.split()) != 1:
                raise ConfigError(f"hot word {word!r}; expected single words without spaces")
        strange = [word for word in words if not vocabulary.spells(word)]
        if strange:
            raise ConfigError(
                f"hot words {', '.join(strange)} cannot be written with the tokens of this model; expected words in "
                "the form of its transcripts"
            )
        self.words = frozenset(words)
        self.vocabulary = vocabulary
        self.weight = weight
        self._begun: dict[str, int] = {}  # beginning -> letters of the shortest word with it
        for word in self.words:
            for length in range(1, len(word) + 1):
                known = self._begun.get(word[:length], len(word))
                self._begun[word[:length]] = min(known, len(word))

    def __call__(self, ids: tuple[int, ...]) -> float:
        """Bonus of a text."""
        pieces = "".join(self.vocabulary.tokens[token] for token in ids).split(" ")
        whole = sum(word in self.words for word in pieces[:-1])
        last = pieces[-1]
        return self.weight * (whole + (len(last) / self._begun[last] if last in self._begun else 0.0))


def align(log_probs: NDArray[np.floating], ids: Sequence[int], blank: int) -> list[tuple[int, int]]:
    """First frame and frame after the last of each token, in the likeliest alignment of a text.

    Args:
        log_probs: ``(time, tokens)``.
        ids: the text's tokens.
        blank: number of the blank.

    Raises:
        DataError: there are too few frames for the tokens, or their probability is 0.
    """
    if not ids:
        return []
    time = len(log_probs)
    states = np.full(2 * len(ids) + 1, blank)
    states[1::2] = ids
    # From a token to the next one, past the blank between them, unless they are equal.
    skips = np.zeros(len(states), dtype=bool)
    skips[3::2] = states[3::2] != states[1:-2:2]
    scores = np.full(len(states), -np.inf)
    back = np.zeros((time, len(states)), dtype=np.int8)
    for frame in range(time):
        emitted = np.asarray(log_probs[frame], dtype=np.float64)[states]
        if frame == 0:
            scores[:2] = emitted[:2]
            continue
        one = np.concatenate([[-np.inf], scores[:-1]])
        two = np.where(skips, np.concatenate([[-np.inf, -np.inf], scores[:-2]]), -np.inf)
        moves = np.stack([scores, one, two])
        back[frame] = moves.argmax(axis=0)
        scores = moves.max(axis=0) + emitted
    state = len(states) - 1 if time and scores[-1] >= scores[-2] else len(states) - 2
    if not time or not np.isfinite(scores[state]):
        raise DataError(f"{len(ids)} tokens cannot be written into {time} frames; expected a longer recording")
    spans = [[time, 0] for _ in ids]
    for frame in range(time - 1, -1, -1):
        if state % 2:
            span = spans[state // 2]
            span[0], span[1] = frame, max(span[1], frame + 1)
        state -= int(back[frame, state])
    return [(start, end) for start, end in spans]


def words_in(
    log_probs: NDArray[np.floating], ids: Sequence[int], vocabulary: Vocabulary, frame_seconds: float
) -> list[Word]:
    """Words of a text with their times and confidences.

    Args:
        log_probs: ``(time, tokens)``.
        ids: the text's tokens.
        vocabulary: of the model.
        frame_seconds: from one frame to the next.

    Raises:
        DataError: see :func:`align`.
    """
    words: list[Word] = []
    letters, start, end, logs = "", 0, 0, [0.0]
    for token, (first, after) in [*zip(ids, align(log_probs, ids, vocabulary.blank), strict=True), (None, (0, 0))]:
        text = " " if token is None else vocabulary.tokens[token]
        if text[:1] == " " and letters:
            words.append(Word(letters, start * frame_seconds, end * frame_seconds, float(np.exp(np.mean(logs)))))
            letters = ""
        piece = text.strip()
        if token is not None and piece:
            if not letters:
                start, logs = first, []
            letters, end = letters + piece, after
            logs.append(float(np.mean(np.asarray(log_probs[first:after, token], dtype=np.float64))))
    return words
