"""Languages of a Whisper: those that it knows, and new ones that it learns with an adapter."""

import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE
from transformers.tokenization_utils_base import AddedToken

from mambavox.asr.text import language_code
from mambavox.errors import ConfigError, HostError

_TOKEN = re.compile(r"<\|[a-z]{2,4}\|>")
_WHISPERS_OWN = {"jv": "jw", "nb": "no", "fil": "tl"}
"""Codes that Whisper has for what other tags call so."""


def language_token(language: str) -> str:
    """The token of a language: ``ckb``, ``<|ckb|>``, ``sv-SE``, ``nld``, and English names of Whisper's languages.

    Raises:
        ConfigError: it cannot be a code.
    """
    code = language.strip().lower().removeprefix("<|").removesuffix("|>")
    code = TO_LANGUAGE_CODE.get(code, code)
    if code not in LANGUAGES:
        code = language_code(code)
        code = _WHISPERS_OWN.get(code, code)
    token = f"<|{code}|>"
    if not _TOKEN.fullmatch(token):
        raise ConfigError(f"language={language!r}; expected a code of two or three letters, such as ckb or nl")
    return token


def known_languages(model: Any) -> dict[str, int]:
    """Token and id of each language that a Whisper can be asked for; empty for an English-only one."""
    return dict(getattr(model.generation_config, "lang_to_id", None) or {})


def add_language(model: Any, tokenizer: Any, language: str, like: str | None = None) -> int | None:
    """Let a Whisper be asked for a language, with a new token where it has none; model and tokenizer are changed.

    The new token's row starts as that of a related language, or the mean of all languages', so that the decoder takes
    it for a language from the first step. It is never generated: it lies behind the timestamps, and would pass for one.

    Args:
        model: a ``WhisperForConditionalGeneration``, not adapted yet.
        tokenizer: its tokenizer.
        language: a code, such as ``ckb``.
        like: a language that Whisper knows, whose row the new one starts as.

    Returns:
        The id of the token if it is new, whose row is to be trained; ``None`` where Whisper knows the language.

    Raises:
        ConfigError: no code, or ``like`` is no known language.
        HostError: the model is English-only, so that no token tells it a language.
    """
    token, known = language_token(language), known_languages(model)
    if not known:
        raise HostError(
            f"a language ({language}) is asked of a Whisper whose generation_config has no lang_to_id: it was made for "
            "one language; leave language out, or take a multilingual checkpoint"
        )
    if like is not None and language_token(like) not in known:
        raise ConfigError(f"language_like={like}; expected a language that the model knows: {_listed(known)}")
    if token in known:
        return None
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False)], special_tokens=True)
    index = int(tokenizer.convert_tokens_to_ids(token))
    rows = model.get_input_embeddings().weight.shape[0]
    with torch.no_grad():
        if index >= rows:
            model.resize_token_embeddings(index + 1, mean_resizing=False)
        weight = model.get_input_embeddings().weight
        sources = [known[language_token(like)]] if like is not None else sorted(known.values())
        weight[index] = weight[sources].mean(0)
    _configure(model, token, index)
    return index


def prepare_for(model: Any, tokenizer: Any) -> None:
    """Give a fresh base model the rows and settings that a tokenizer with new languages needs; adapters bring the rest.

    New languages of several adapters may share one row, since each adapter puts its own in its place.

    Args:
        model: a ``WhisperForConditionalGeneration``.
        tokenizer: the one that was saved with an adapter.
    """
    known = known_languages(model)
    for token, index in tokenizer.get_added_vocab().items():
        if known and token not in known and _TOKEN.fullmatch(token):
            if index >= model.get_input_embeddings().weight.shape[0]:
                model.resize_token_embeddings(index + 1, mean_resizing=False)
            _configure(model, token, index)


def _configure(model: Any, token: str, index: int) -> None:
    config = model.generation_config
    config.lang_to_id = {**(getattr(config, "lang_to_id", None) or {}), token: index}
    config.suppress_tokens = sorted({*(config.suppress_tokens or ()), index})


def prefix_ids(model: Any, language: str | None, task: str = "transcribe") -> list[int]:
    """Tokens with which a transcript begins: start, language, task, no timestamps.

    Args:
        model: a ``WhisperForConditionalGeneration``, whose generation configuration names the tokens.
        language: a code; ``None`` for a model of one language.
        task: ``"transcribe"`` or ``"translate"``.

    Raises:
        ConfigError: the model does not know the language.
    """
    config = model.generation_config
    ids = [int(config.decoder_start_token_id)]
    if language is not None:
        token, known = language_token(language), known_languages(model)
        if token not in known:
            raise ConfigError(f"language={language}; the model knows {_listed(known)}")
        ids.append(known[token])
    task_to_id = getattr(config, "task_to_id", None)
    if language is not None and task_to_id:
        ids.append(int(task_to_id[task]))
    no_timestamps = getattr(config, "no_timestamps_token_id", None)
    return ids if no_timestamps is None else [*ids, int(no_timestamps)]


def generation_options(model: Any, language: str | None, task: str = "transcribe") -> dict[str, Any]:
    """Keywords of ``generate`` by which a Whisper is asked for a language.

    Raises:
        ConfigError: the model does not know the language.
    """
    if language is None or not known_languages(model):
        return {}
    prefix_ids(model, language, task)
    return {"language": language_token(language), "task": task}


def token_rows(model: nn.Module, adapter: str = "default") -> Tensor | None:
    """The trained rows of an adapter's language tokens, ``(tokens, d_model)``; ``None`` where it trains none."""
    for name, parameter in model.named_parameters():
        if name.endswith(f"trainable_tokens_delta.{adapter}"):
            return parameter
    return None


def _listed(known: dict[str, int]) -> str:
    return ", ".join(token[2:-2] for token in sorted(known))
