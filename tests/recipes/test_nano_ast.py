import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ASTFeatureExtractor, ASTModel

from mambavox import assets

RECIPE = Path(__file__).parents[2] / "recipes" / "nano_ast"


@pytest.fixture(autouse=True)
def recipe_path(monkeypatch):
    pytest.importorskip("espeakng_loader", reason="the extra synth is not installed")
    monkeypatch.syspath_prepend(str(RECIPE))
    yield
    for name in ("train", "corpus", "sounds"):
        sys.modules.pop(name, None)


def test_log_mel_is_the_feature_extractors():
    import corpus

    waveform = np.random.default_rng(0).standard_normal(16_000).astype(np.float32) * 0.1
    waveform[4000:8000] = 0
    features = corpus.log_mel(waveform)
    extractor = ASTFeatureExtractor(num_mel_bins=64, max_length=len(features), do_normalize=False)
    expected = extractor(waveform, sampling_rate=16_000, return_tensors="pt").input_values[0]
    assert features.shape == (98, 64)
    torch.testing.assert_close(features, expected, atol=1e-3, rtol=0)
    assert float(features[30:45].max()) == pytest.approx(corpus.FLOOR, abs=1e-4)


def test_encode_is_the_model_and_short_clips_take_the_first_columns():
    import train

    torch.manual_seed(0)
    model = train.make_model().eval()
    features = torch.randn(2, 512, 64)
    with torch.no_grad():
        torch.testing.assert_close(train.encode(model, features), model(features).last_hidden_state)
        short = train.encode(model, features[:, :98])
        model.config.max_length = 98
        rows = model.embeddings.position_embeddings[:, 2:].view(1, 4, 42, 192)[:, :, :7].reshape(1, 28, 192)
        table = torch.cat([model.embeddings.position_embeddings[:, :2], rows], 1)
        model.embeddings.position_embeddings = torch.nn.Parameter(table)
        torch.testing.assert_close(short, model(features[:, :98]).last_hidden_state)


def test_every_sound_is_finite_and_repeats_with_its_seed():
    import sounds

    for kind, maker in enumerate(sounds.MAKERS):
        first, rate, pitch = sounds.make_sound(kind, np.random.default_rng(kind), 1.0)
        again, _, _ = sounds.make_sound(kind, np.random.default_rng(kind), 1.0)
        assert first.shape == (16_000,) and np.isfinite(first).all(), maker.__name__
        assert 0.02 < np.abs(first).max() < 1.5, maker.__name__
        assert np.array_equal(first, again), maker.__name__
        assert not rate <= 0 and not pitch <= 0, maker.__name__


@pytest.fixture
def one_thread():
    # For products this small more threads cost more than they bring, above all on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="the recipe trains with Muon, which came with torch 2.9")
def test_training_goes_on_after_a_stop_and_exports(tmp_path, monkeypatch, one_thread):
    import corpus
    import train

    monkeypatch.setattr(train, "TOKENS", 16)
    monkeypatch.setattr(train, "LENGTHS", {98: 0.5, 200: 0.5})
    monkeypatch.setattr(train, "CHECKPOINT_STEPS", 2)
    torch.manual_seed(0)
    lengths = torch.randint(60, 200, (320,))
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    count, frames = len(lengths), int(starts[-1])
    kinds = torch.arange(count) // 80
    none = torch.full((count,), -1)
    sound = torch.arange(count) % 2
    # Two sounds that differ in their spectrum's slope.
    slope = torch.linspace(-4, 4, 64) * (2 * sound.repeat_interleave(lengths) - 1)[:, None]
    data = corpus.Corpus(
        features=(torch.randn(frames, 64) + slope - 6).half(),
        phones=torch.zeros(frames, dtype=torch.uint8),
        starts=starts,
        kinds=kinds,
        labels={
            "word": torch.where(kinds == corpus.WORD, sound, none),
            "language": none.masked_fill(kinds < corpus.SOUND, 0),
            "speaker": none.masked_fill(kinds < corpus.SOUND, 0),
            "sound": torch.where(kinds == corpus.SOUND, sound, none),
        },
        numbers=torch.full((count, 2), float("nan")).masked_fill((kinds == corpus.SOUND)[:, None], 0.5),
        classes={name: ["a", "b"] for name in ("word", "language", "speaker", "phone", "sound")},
    )
    whole, whole_objective = train.train(data, tmp_path / "a", 4, seed=0)

    validations = 0

    def stop_at_the_second(*arguments):
        nonlocal validations
        validations += 1
        if validations == 2:
            raise KeyboardInterrupt
        return {}

    with monkeypatch.context() as patch:
        patch.setattr(train, "validate", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            train.train(data, tmp_path / "b", 4, seed=0)
    resumed, _ = train.train(data, tmp_path / "b", 4, seed=0)
    start = train.make_model()
    for left, right in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(left, right)
    assert not torch.equal(whole.layers[0].mlp.fc1.weight, start.layers[0].mlp.fc1.weight)
    train.export(whole, whole_objective, tmp_path / "model")
    loaded = ASTModel.from_pretrained(tmp_path / "model")
    assert loaded.dtype == torch.float32
    assert (tmp_path / "model" / "model.safetensors").stat().st_size < 8e6
    extractor = ASTFeatureExtractor.from_pretrained(tmp_path / "model")
    assert (extractor.mean, extractor.std) == (round(whole_objective.mean, 4), round(whole_objective.std, 4))


@pytest.mark.skipif("nano-ast" not in assets.names(), reason="nano-ast is not in the package yet")
def test_embedded_model_loads_in_single_precision_and_hears():
    model = ASTModel.from_pretrained(assets.path("nano-ast"))
    extractor = ASTFeatureExtractor.from_pretrained(assets.path("nano-ast"))
    assert model.dtype == torch.float32
    assert (Path(assets.path("nano-ast")) / "model.safetensors").stat().st_size <= 8e6
    tone = np.sin(2 * np.pi * 440 * np.arange(80_000) / 16_000).astype(np.float32)
    noise = np.random.default_rng(0).standard_normal(80_000).astype(np.float32)
    inputs = extractor([tone, noise], sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        pooled = model(**inputs).pooler_output
    assert torch.isfinite(pooled).all()
    assert torch.nn.functional.cosine_similarity(pooled[0], pooled[1], dim=0) < 0.9
