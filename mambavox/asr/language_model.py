"""Beam search with an n-gram language model of words, by flashlight-text and kenlm (extra ``lm``)."""

import gzip
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mambavox.asr.tokenizer import Vocabulary, encode
from mambavox.errors import ConfigError

_SURE = 0.0
_IMPOSSIBLE = -50.0  # nats
_OTHERS = ("<s>", "</s>", "<unk>")


class LanguageModelSearch:
    """Finds the text whose sound and words are likeliest together. Only words of the lexicon are written.

    ``BEAM_SIZE`` is the default of ``beam_size``.

    Args:
        path: n-gram model: ``.arpa``, ``.arpa.gz`` or kenlm's binary form.
        tokenizer: of characters.
        words: the lexicon; default the words of an ``.arpa`` file.
        weight: of the language model's log probabilities (base 10, as kenlm has them).
        word_score: added for each word.
        beam_size: hypotheses that are kept.
        beam_threshold: those that score less than the best by more than this are dropped.

    Raises:
        ConfigError: the extra is not installed, the file cannot be read, there is no lexicon, or the vocabulary is not
            one of characters.
    """

    BEAM_SIZE: ClassVar[int] = 100

    def __init__(
        self,
        path: str | Path,
        tokenizer: Any,
        *,
        words: Iterable[str] | None = None,
        weight: float = 2.0,
        word_score: float = 0.0,
        beam_size: int = BEAM_SIZE,
        beam_threshold: float = 50.0,
    ) -> None:
        try:
            from flashlight.lib.text import decoder as flashlight
            from flashlight.lib.text.decoder.kenlm import KenLM
            from flashlight.lib.text.dictionary import Dictionary
        except ImportError as error:
            raise ConfigError(
                f"a language model needs kenlm and flashlight-text ({error}); install them with: "
                "pip install 'mambavox[lm]'"
            ) from error
        path = Path(path).expanduser()
        if not path.is_file():
            raise ConfigError(f"{path}: no such file; expected an n-gram model (.arpa, .arpa.gz or kenlm's binary)")
        self.tokenizer = tokenizer
        self.vocabulary = Vocabulary.of(tokenizer)
        pieces = any(len(token) > 1 and token[0] == " " for token in self.vocabulary.tokens)
        if pieces or " " not in self.vocabulary.tokens:
            raise ConfigError("a language model needs a vocabulary of characters with a space; this one has pieces")
        self._space = self.vocabulary.tokens.index(" ")
        lexicon = sorted(set(_words_of_arpa(path) if words is None else words))
        spelled = {word: encode(tokenizer, word) for word in lexicon}
        # What the model has no letters for can never be heard.
        spelled = {word: ids for word, ids in spelled.items() if ids and self.vocabulary.unknown not in ids}
        if not spelled:
            raise ConfigError(
                f"{path}: none of its {len(lexicon)} words can be written with the tokens of this model; expected "
                "words in the form of its transcripts (lower case, without punctuation)"
            )
        dictionary = Dictionary()
        for word in ("<unk>", *spelled):
            dictionary.add_entry(word)
        dictionary.set_default_index(0)
        try:
            model = KenLM(str(path), dictionary)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ConfigError(f"{path}: is no n-gram model that kenlm reads ({reason})") from error
        trie = flashlight.Trie(len(self.vocabulary.tokens), self._space)
        start = model.start(False)
        for word, ids in spelled.items():
            index = dictionary.get_index(word)
            _, score = model.score(start, index)
            trie.insert([*ids, self._space], index, score)
        trie.smear(flashlight.SmearingMode.MAX)
        options = flashlight.LexiconDecoderOptions(
            beam_size=beam_size,
            beam_size_token=len(self.vocabulary.tokens),
            beam_threshold=beam_threshold,
            lm_weight=weight,
            word_score=word_score,
            unk_score=-math.inf,
            sil_score=0.0,
            log_add=True,
            criterion_type=flashlight.CriterionType.CTC,
        )
        self._dictionary = dictionary
        # The decoder keeps no hold of what it is made of.
        self._parts = (model, trie, options)
        self._decoder = flashlight.LexiconDecoder(
            options, trie, model, self._space, self.vocabulary.blank, dictionary.get_index("<unk>"), [], False
        )

    def __call__(self, log_probs: NDArray[np.floating]) -> list[int]:
        """Tokens of the best text.

        Args:
            log_probs: ``(time, tokens)``.
        """
        if not len(log_probs):
            return []
        # Words end with a space in the lexicon, and the last one of a recording is followed by none.
        ending = np.full((1, log_probs.shape[1]), _IMPOSSIBLE)
        ending[0, self._space] = _SURE
        emissions = np.ascontiguousarray(np.concatenate([log_probs, ending]), dtype=np.float32)
        found = self._decoder.decode(emissions.ctypes.data, *emissions.shape)
        if not found:
            return []
        words = [self._dictionary.get_entry(index) for index in found[0].words if index >= 0]
        return encode(self.tokenizer, " ".join(words))


def _words_of_arpa(path: Path) -> Iterator[str]:
    """Words of the list of 1-grams."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
            inside = False
            for line in lines:
                if line.startswith("\\"):
                    if inside:
                        return
                    inside = line.strip() == "\\1-grams:"
                elif inside and line.strip():
                    word = line.split()[1]
                    if word not in _OTHERS:
                        yield word
    except (UnicodeDecodeError, IndexError) as error:
        raise ConfigError(
            f"{path}: its words cannot be read, as of a binary model; give a list of them, one a line (--lm-words), or "
            "the .arpa file"
        ) from error
