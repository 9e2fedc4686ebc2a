"""Whisper's byte-level tokens in the scripts of languages that it was not made for."""

import unicodedata
from pathlib import Path
from typing import Any

import pytest
from real.conftest import rows_of

from mambavox.asr.text import normalize_text
from mambavox.training.whisper.data import as_written

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
