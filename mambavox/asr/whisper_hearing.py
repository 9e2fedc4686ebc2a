"""A batch of windows through a Whisper: encoded once, searched, judged, aligned."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutput

from mambavox.asr.transcript import Word
from mambavox.asr.whisper_alignment import AlignmentHeads, token_times, words_of_tokens
from mambavox.asr.whisper_decoding import RepetitionGuard, WhisperDecoding, without_repetition
from mambavox.asr.whisper_language import generation_options, known_languages, prefix_ids
from mambavox.errors import ConfigError
from mambavox.hub import without_adapters

_LOGITS = 2**25  # numbers in the logits of the texts that are judged at once


@dataclass(frozen=True)
class Asked:
    """What is asked of the rows of a batch.

    Attributes:
        languages: of each row; ``None`` where it is to be detected, or the model knows one only.
        adapters: name of each row's adapter; ``None`` where the active one is each row's.
        timestamps: let the model write timestamps.
        words: find out when each word is said.
    """

    languages: Sequence[str | None]
    adapters: Sequence[str] | None = None
    timestamps: bool = False
    words: bool = False

    def take(self, rows: Sequence[int]) -> "Asked":
        """The same of some rows."""
        names = None if self.adapters is None else [self.adapters[row] for row in rows]
        return replace(self, languages=[self.languages[row] for row in rows], adapters=names)


@dataclass(frozen=True)
class Heard:
    """What was heard in one window.

    Attributes:
        tokens: that were generated, with timestamps where these were asked for; none where nothing is said.
        text: of the tokens.
        language: that was asked for or detected; ``None`` where the model knows one only.
        times: seconds from the window's beginning at which each token that is no timestamp begins, and the last one
            ends; none where words were not asked for.
        scores: log probabilities of the same tokens; none where nothing judges them.
        logprob: mean log probability of the text's tokens and its end; nan where nothing judges it.
        no_speech: probability that nothing is said.
        repeats: whether the text repeated itself without end, and was cut behind the first round.
        unfinished: whether the text was longer than the decoder takes, or than it was allowed to be.
    """

    tokens: tuple[int, ...]
    text: str
    language: str | None
    times: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()
    logprob: float = float("nan")
    no_speech: float = 0.0
    repeats: bool = False
    unfinished: bool = False


class WindowHearing:
    """Hears windows with a Whisper, adapted or not.

    Args:
        model: a Whisper or a ``PeftModel`` around one, in evaluation mode.
        tokenizer: of the model.
        decoding: how texts are searched.
        max_new_tokens: of a text at most; ``None``: as many as the decoder takes.

    Raises:
        ConfigError: the model cannot translate, or the prompt is too long.
    """

    def __init__(
        self, model: Any, tokenizer: Any, decoding: WhisperDecoding, max_new_tokens: int | None = None
    ) -> None:
        self.model = model
        self.host = host = without_adapters(model)
        self.tokenizer = tokenizer
        self.decoding = decoding
        config = host.generation_config
        if decoding.task == "translate" and not getattr(config, "task_to_id", None):
            raise ConfigError("a Whisper that was made for one language cannot translate; take a multilingual one")
        self._end = int(config.eos_token_id)
        no_timestamps = getattr(config, "no_timestamps_token_id", None)
        self.timestamp_begin = None if no_timestamps is None else int(no_timestamps) + 1
        self._prompt = self._prompt_ids()
        most = host.config.max_target_positions - 4 - len(self._prompt)
        self.max_new_tokens = most if max_new_tokens is None else min(max_new_tokens, most)
        self.fills_decoder = self.max_new_tokens == most
        known = known_languages(host)
        self._own_tokens = set(known.values())
        suppressed = set(config.suppress_tokens or ())
        # A new language's token, which is never generated, has no sound of its own: an adapter brings it.
        self._detectable = {index: token[2:-2] for token, index in known.items() if index not in suppressed}
        self._heads = AlignmentHeads(host)

    def _prompt_ids(self) -> list[int]:
        if not self.decoding.prompt.strip():
            return []
        ids = [int(token) for token in self.tokenizer.get_prompt_ids(self.decoding.prompt.strip())]
        if len(ids) > (most := self.host.config.max_target_positions // 2 - 1):
            raise ConfigError(f"the prompt has {len(ids) - 1} tokens; expected at most {most - 1}: shorten it")
        return ids

    @property
    def detects(self) -> bool:
        """Whether a language that is not given is detected."""
        return bool(self._detectable)

    @torch.inference_mode()
    def hear(self, features: Tensor, frames: Sequence[int], asked: Asked) -> list[Heard]:
        """Hear some windows.

        Args:
            features: ``(batch, mel, frames)``.
            frames: of each window that hold sound.
            asked: what is asked of each.
        """
        like = next(self.host.parameters())
        encoded, first = self._encode(features.to(like.device, like.dtype), asked)
        languages = self._detect(first, asked.languages)
        asked = replace(asked, languages=languages)
        probabilities = first.softmax(-1)
        silence = None if self.timestamp_begin is None else probabilities[:, self.timestamp_begin - 2].tolist()
        first_one, *higher = self.decoding.temperatures

        def hear(rows: Sequence[int], temperature: float) -> list[Heard]:
            chosen, its = encoded[list(rows)], asked.take(rows)
            no_speech = None if silence is None else [silence[row] for row in rows]
            found = self._search(chosen, its, temperature)
            return self._judge(chosen, [frames[row] for row in rows], found, no_speech, its)

        # What is drawn is drawn alone, so that a row is the same in any batch.
        batches = [[row] for row in range(len(features))] if first_one > 0 else [range(len(features))]
        heard = [item for rows in batches for item in hear(rows, first_one)]
        for row, item in enumerate(heard):
            tried = [item]
            for temperature in higher:
                if not self._failed(tried[-1]):
                    break
                tried += hear([row], temperature)
            # Where all have failed, the last is drawn most wildly, and seldom the best.
            heard[row] = tried[-1] if not self._failed(tried[-1]) else max(tried, key=self._rank)
        return heard

    def _failed(self, heard: Heard) -> bool:
        return heard.repeats or (bool(heard.tokens) and self.decoding.fails(heard.text, heard.logprob))

    def _rank(self, heard: Heard) -> tuple[bool, bool, float]:
        """By which one of several failed texts is better than another."""
        logprob = -math.inf if math.isnan(heard.logprob) else heard.logprob
        return not heard.repeats, not self.decoding.repeats(heard.text), logprob

    def _encode(self, features: Tensor, asked: Asked) -> tuple[Tensor, Tensor]:
        """States of the encoder, and the logits ``(batch, tokens)`` of what comes first in a text."""
        start = torch.full((len(features), 1), int(self.host.generation_config.decoder_start_token_id))
        options = {} if asked.adapters is None else {"adapter_names": list(asked.adapters)}
        output = self.model(
            input_features=features, decoder_input_ids=start.to(features.device), use_cache=False, **options
        )
        return output.encoder_last_hidden_state, output.logits[:, 0].float()

    def _detect(self, first: Tensor, languages: Sequence[str | None]) -> list[str | None]:
        """Languages with those that are to be detected."""
        names = self._detectable
        if not names or None not in languages:
            return list(languages)
        ids = torch.tensor(list(names), device=first.device)
        likeliest = ids[first[:, ids].argmax(-1)].tolist()
        return [names[index] if code is None else code for index, code in zip(likeliest, languages, strict=True)]

    def _search(self, encoded: Tensor, asked: Asked, temperature: float) -> list[tuple[list[int], bool]]:
        """Tokens of each row, and whether they came to their end."""
        options: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.decoding.num_beams,
            "do_sample": False,
        }
        if temperature > 0:
            options.update(num_beams=1, do_sample=True, temperature=temperature, top_k=0)
        prompts = [generation_options(self.host, code, self.decoding.task) for code in asked.languages]
        if prompts[0]:
            tokens = [prompt["language"] for prompt in prompts]
            options.update(prompts[0], language=tokens if len(set(tokens)) > 1 else tokens[0])
        if asked.adapters is not None:
            options["adapter_names"] = list(asked.adapters)
        if asked.timestamps:
            options["return_timestamps"] = True
        if self._prompt:
            options["prompt_ids"] = torch.tensor(self._prompt, device=encoded.device)
        with torch.random.fork_rng(enabled=temperature > 0):
            if temperature > 0:
                torch.manual_seed(0)
            sequences = self.model.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
                # One pass over what is given; else windows would be cut out of features that are not there.
                force_unique_generate_call=True,
                stopping_criteria=[RepetitionGuard(self.timestamp_begin if asked.timestamps else None)],
                **options,
            )
        begins = [len(self._prefix(code)) - int(asked.timestamps) for code in asked.languages]
        rows = []
        for row, begin in zip(sequences.tolist(), begins, strict=True):
            new = row[begin:]
            ended = self._end in new
            rows.append((new[: new.index(self._end)] if ended else new, ended))
        return rows

    def _prefix(self, language: str | None) -> list[int]:
        """What a text without timestamps begins with."""
        return [*self._prompt, *prefix_ids(self.host, language, self.decoding.task)]

    def _judge(
        self,
        encoded: Tensor,
        frames: Sequence[int],
        found: Sequence[tuple[list[int], bool]],
        silence: Sequence[float] | None,
        asked: Asked,
    ) -> list[Heard]:
        """What the tokens say, how likely they are, and when."""
        heard = []
        begin = self.timestamp_begin if asked.timestamps else None
        for (tokens, ended), language in zip(found, asked.languages, strict=True):
            cut, repeats = without_repetition(tokens, begin)
            unfinished = not ended and not repeats and len(tokens) >= self.max_new_tokens
            text = self.tokenizer.decode(self.spoken(cut), skip_special_tokens=True).strip()
            heard.append(Heard(tuple(cut), text, language, repeats=repeats, unfinished=unfinished))
        if not asked.words and not self.decoding.judges:
            return heard
        results = list(heard)
        for rows in self._portions(heard):
            texts = [self.spoken(heard[row].tokens) for row in rows]
            log_probs, weights = self._read(encoded[rows], texts, asked.take(rows))
            for place, (row, text) in enumerate(zip(rows, texts, strict=True)):
                scores = log_probs[place][: len(text) + 1].tolist()
                logprob, no_speech = float(np.mean(scores)), 0.0 if silence is None else silence[row]
                if self.decoding.is_silent(no_speech, logprob):
                    results[row] = Heard((), "", heard[row].language, logprob=logprob, no_speech=no_speech)
                    continue
                times: tuple[float, ...] = ()
                if asked.words:
                    found_times = token_times(weights[place][:, : len(text) + 1], (frames[row] + 1) // 2)
                    times = tuple(found_times.tolist())
                results[row] = replace(
                    heard[row], times=times, scores=tuple(scores[:-1]), logprob=logprob, no_speech=no_speech
                )
        return results

    def written_in(self, language: str | None) -> str | None:
        """The language of the text, of what is spoken in some language."""
        return "en" if self.decoding.task == "translate" else language

    def words(self, heard: Heard, first: int = 0, last: int | None = None, offset: float = 0.0) -> tuple[Word, ...]:
        """Words that were heard, with their times.

        Args:
            heard: with times.
            first: the first of the tokens that are no timestamps.
            last: the one behind the last of them; default the end.
            offset: seconds at which the window begins.
        """
        spoken = self.spoken(heard.tokens)
        last = len(spoken) if last is None else last
        times = np.asarray(heard.times[first : last + 1]) + offset
        language = self.written_in(heard.language)
        return words_of_tokens(spoken[first:last], times, heard.scores[first:last], self.tokenizer, language)

    def spoken(self, tokens: Sequence[int]) -> list[int]:
        """Tokens without timestamps, and without the language tokens that lie behind these."""
        last = self.timestamp_begin
        return [i for i in tokens if i not in self._own_tokens and (last is None or i < last - 1) and i != self._end]

    def _portions(self, heard: Sequence[Heard]) -> list[list[int]]:
        """Rows that are read at once, by their logits' share of the memory."""
        longest = max(len(item.tokens) for item in heard) + len(self._prompt) + 5
        size = max(1, _LOGITS // (longest * self.host.config.vocab_size))
        return [list(range(start, min(start + size, len(heard)))) for start in range(0, len(heard), size)]

    def _read(self, encoded: Tensor, texts: Sequence[Sequence[int]], asked: Asked) -> tuple[Tensor, Tensor]:
        """Log probabilities ``(batch, tokens)`` of texts and their ends, and the attention by which they are aligned.

        Tokens that are never generated are left out of the probabilities, as in the search.
        """
        prefixes = [self._prefix(code) for code in asked.languages]
        rows = [torch.tensor([*prefix, *text]) for prefix, text in zip(prefixes, texts, strict=True)]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self._end).to(encoded.device)
        options: dict[str, Any] = {} if asked.adapters is None else {"adapter_names": list(asked.adapters)}
        recorded: list[Tensor] = []

        def read() -> Tensor:
            output = self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
                decoder_input_ids=ids,
                use_cache=False,
                **options,
            )
            logits: Tensor = output.logits
            return logits

        if asked.words:
            with self._heads.recording() as recorded:
                logits = read()
        else:
            logits = read()
        first = len(prefixes[0]) - 1
        scores = logits[:, first:].float()
        if suppressed := self.host.generation_config.suppress_tokens:
            scores[:, :, suppressed] = -torch.inf
        targets = functional.pad(ids[:, first + 1 :], (0, 1), value=self._end)
        chosen = scores.log_softmax(-1).gather(-1, targets[:, :, None])[:, :, 0]
        weights = torch.cat(recorded, dim=1)[:, :, first:] if recorded else torch.zeros(0)
        return chosen, weights
