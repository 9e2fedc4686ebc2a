"""Whisper's byte-level tokens in the scripts of languages that it was not made for."""

import unicodedata
from pathlib import Path
from typing import Any

import pytest
from real.conftest import rows_of

from mambavox.asr.text import normalize_text
from mambavox.asr.whisper_decoding import CAREFUL
from mambavox.data import read_examples
from mambavox.errors import DataError
from mambavox.training.front_end import FrontEnd
from mambavox.training.whisper.data import TranscriptDataset, as_written

pytestmark = pytest.mark.real
LANGUAGES = ("hsb", "ckb", "yo", "am", "lb")


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("normalized", [True, False])
def test_every_transcript_comes_back_from_its_tokens(
    language: str, normalized: bool, loaded: tuple[Any, Any], recordings: Path
) -> None:
    tokenizer = loaded[1].tokenizer
    texts = [row["text"] for row in rows_of(recordings / "lowresource_asr", language=language)]
    texts = [normalize_text(text, language) if normalized else " ".join(text.split()) for text in texts]
    encoded = [tokenizer(text, add_special_tokens=False).input_ids for text in as_written(texts, language)]
    decoded = tokenizer.batch_decode(encoded, skip_special_tokens=True)
    wrong = [pair for pair in zip(texts, decoded, strict=True) if pair[0] != pair[1].strip()]
    assert not wrong, wrong[:3]
    longest = max(map(len, encoded))
    assert longest < 440, f"{longest} tokens"
    if not normalized and language == "yo":
        assert any(unicodedata.combining(c) for text in texts for c in unicodedata.normalize("NFD", text))
    if not normalized and language in ("am", "lb"):
        assert any(not c.isalnum() and c not in " '" for text in texts for c in text), "punctuation"
    if not normalized and language == "lb":
        assert any(text != text.lower() for text in texts), "case"


def test_a_transcript_of_more_tokens_than_the_decoder_takes_is_an_error(
    loaded: tuple[Any, Any], recordings: Path
) -> None:
    """Half a minute of Amharic may have more than 448, of which a letter takes three."""
    model, processor = loaded
    rows = rows_of(recordings / "lowresource_asr", language="am")
    longest = max((row["text"] for row in rows), key=len)
    text = f"{longest} {longest}"
    assert len(text) < 448 < len(processor.tokenizer(text).input_ids)
    examples = read_examples(str(recordings / "lowresource_asr"), label_column=None)[:1]
    with pytest.raises(DataError, match=r"transcripts of 1 recordings have more than the 448 tokens .* shorter ones"):
        TranscriptDataset(
            examples,
            [text],
            FrontEnd(processor.feature_extractor, model.config, 30.0),
            prefix=[50258, 50334, 50359, 50363],
            tokenizer=processor.tokenizer,
            max_tokens=model.config.max_target_positions,
        )


def test_no_true_transcript_passes_for_endless_repetition(recordings: Path) -> None:
    for language in LANGUAGES:
        texts = [row["text"] for row in rows_of(recordings / "lowresource_asr", language=language)]
        assert not any(CAREFUL.fails(text, 0.0) for text in texts), language
