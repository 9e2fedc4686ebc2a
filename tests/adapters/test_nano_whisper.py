"""The embedded Whisper with adapters in encoder and decoder: generation with the cache is generation without it."""

from typing import Any

import numpy as np
import pytest
import torch
from adapters.conftest import trainable
from peft import PeftModel, get_peft_model
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from mambavox import assets
from mambavox.adapters import MambAdapterConfig
from mambavox.data.synth import synthesize, synthesizer

pytestmark = pytest.mark.skipif("nano-whisper" not in assets.names(), reason="nano-whisper is not in the package yet")
PHRASES = {"en": "the boat was slow", "de": "das haus ist alt und klein", "nl": "een mooie dag"}
VOICES = {"en": "en-us", "de": "de", "nl": "nl"}


@pytest.fixture(scope="module")
def processor() -> Any:
    return WhisperProcessor.from_pretrained(assets.path("nano-whisper"))


@pytest.fixture(scope="module")
def waveforms() -> list[Any]:
    return [synthesize(text, VOICES[language]) for language, text in PHRASES.items()]


@pytest.fixture(scope="module")
def model() -> PeftModel:
    """Adapters that change what is heard."""
    host = WhisperForConditionalGeneration.from_pretrained(assets.path("nano-whisper"), dtype=torch.float32)
    config = MambAdapterConfig(bottleneck_dim=16, d_state=8, where="both", placement="both", train_norms=False)
    adapted = get_peft_model(host, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainable(adapted).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return adapted.eval()


def both_ways(model: PeftModel, **options: Any) -> list[Any]:
    return [model.generate(use_cache=use_cache, **options) for use_cache in (True, False)]


@pytest.mark.parametrize("beams", [1, 5])
@pytest.mark.parametrize("timestamps", [False, True])
def test_a_batch_of_languages(
    model: PeftModel, processor: Any, waveforms: list[Any], beams: int, timestamps: bool
) -> None:
    features = processor.feature_extractor(waveforms, sampling_rate=16_000, return_tensors="pt").input_features
    options: dict[str, Any] = {
        "input_features": features,
        "language": [f"<|{language}|>" for language in PHRASES],
        "task": "transcribe",
        "return_timestamps": timestamps,
        "num_beams": beams,
        "max_new_tokens": 20,
        "output_scores": True,
        "return_dict_in_generate": True,
    }
    cached, plain = both_ways(model, **options)
    assert torch.equal(cached["sequences"], plain["sequences"])
    scores, expected_scores = ([] if timestamps else found["scores"] for found in (cached, plain))
    assert timestamps or len(scores) > 3
    for step, expected in zip(scores, expected_scores, strict=True):
        finite = torch.isfinite(expected)
        torch.testing.assert_close(step[finite], expected[finite], rtol=1e-5, atol=1e-4)
    if not timestamps:
        with model.disable_adapter():
            host = model.generate(**options)
        assert (host["scores"][0] - cached["scores"][0]).abs().nan_to_num().max() > 1e-2, "the adapters act"


def test_prompts_of_different_lengths(model: PeftModel, processor: Any, waveforms: list[Any]) -> None:
    tokenizer = processor.tokenizer
    features = processor.feature_extractor(waveforms, sampling_rate=16_000, return_tensors="pt").input_features
    begin = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    prompts = [
        tokenizer.convert_tokens_to_ids(begin) + tokenizer(text, add_special_tokens=False).input_ids
        for text in ("", " the", " a long beginning of words")
    ]
    longest = max(map(len, prompts))
    ids = torch.tensor([[tokenizer.eos_token_id] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    options: dict[str, Any] = {"decoder_input_ids": ids, "decoder_attention_mask": mask, "max_new_tokens": 12}
    cached, plain = both_ways(model, input_features=features, **options)
    assert torch.equal(cached, plain)


@pytest.mark.parametrize("beams", [1, 5])
def test_long_form(model: PeftModel, processor: Any, waveforms: list[Any], beams: int) -> None:
    """Several windows, each beginning where the last timestamp of the one before is."""
    long = np.concatenate(waveforms * 8)
    assert len(long) > 2 * 12 * 16_000
    inputs = processor.feature_extractor(
        [long, long[: len(long) * 2 // 3]],
        sampling_rate=16_000,
        return_tensors="pt",
        truncation=False,
        padding="longest",
        return_attention_mask=True,
    )
    cached, plain = both_ways(
        model,
        **inputs,
        language="<|de|>",
        task="transcribe",
        return_timestamps=True,
        return_segments=True,
        num_beams=beams,
        max_new_tokens=40,
    )
    assert torch.equal(cached["sequences"], plain["sequences"])
    assert min(len(row) for row in cached["segments"]) >= 2, "several windows were decoded"


def test_times_of_tokens(processor: Any) -> None:
    """The cross-attention of the heads that the model names tells when a token is heard."""
    host = WhisperForConditionalGeneration.from_pretrained(assets.path("nano-whisper")).eval()
    waveform, _, words = synthesizer().synthesize_words("promover relaciones amistosas entre las naciones", "es")
    inputs = processor.feature_extractor(
        waveform, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True
    )
    output = host.generate(**inputs, language="<|es|>", task="transcribe", return_token_timestamps=True)
    pieces = processor.tokenizer.convert_ids_to_tokens(output["sequences"][0].tolist())
    times = output["token_timestamps"][0].tolist()
    starts = [time for piece, time in zip(pieces, times, strict=True) if piece.startswith("Ġ")]
    for known in (words[1].start, words[2].start, words[-1].start):
        assert min(abs(time - known) for time in starts) < 0.25
    assert times == sorted(times) and times[-1] == pytest.approx(len(waveform) / 16_000, abs=0.4)
