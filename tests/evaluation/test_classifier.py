"""The saved classifier gives what the training saw."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from tiny import FAMILIES

from mambavox.data import read_examples
from mambavox.errors import AudioError, ConfigError, DataError, RunError
from mambavox.evaluation.classifier import AudioClassifier
from mambavox.evaluation.evaluate import Classification, EvaluationOptions, evaluate
from mambavox.runs.result import RunResult
from mambavox.training.classify.config import ClassifyConfig
from mambavox.training.run import run as train


@pytest.fixture(scope="module")
def runs(backbone: Callable[[str], str], tones: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folder of a short run, made when first asked for."""
    folder = tmp_path_factory.mktemp("runs")

    def path(family: str, method: str = "mambadapter", **changes: Any) -> Path:
        output = folder / "-".join([family, method, *changes.values()])
        if not output.is_dir():
            train(
                ClassifyConfig(
                    data=tones,
                    backbone=backbone(family),
                    output=str(output),
                    method=method,
                    epochs=3,
                    learning_rate=0.02,
                    tensorboard=False,
                    device="cpu",
                    **changes,
                )
            )
        return output

    return path


@pytest.mark.parametrize(
    ("family", "method"),
    [*((family, "mambadapter") for family in FAMILIES), ("ast", "full"), ("ast", "linear"), ("hubert", "lora")],
)
def test_a_saved_run_equals_the_training(runs: Callable[..., Path], family: str, method: str) -> None:
    run = runs(family, method)
    trained = RunResult.load(run).scores
    for split in ("valid", "test"):
        scores = evaluate(run, EvaluationOptions(split=split, device="cpu")).scores[split]
        assert isinstance(scores, Classification)
        assert scores.figures == trained[split]
        assert scores.confusion.sum() == trained[split]["recordings"]
        assert np.trace(scores.confusion) == trained[split]["correct"]


@pytest.mark.parametrize("method", ["mambadapter", "full"])
def test_a_saved_run_in_the_papers_settings(runs: Callable[..., Path], method: str) -> None:
    run = runs("ast", method, pooling="mean", position_embeddings="zero")
    scores = evaluate(run, EvaluationOptions(split="test", device="cpu")).scores["test"]
    assert isinstance(scores, Classification) and scores.figures == RunResult.load(run).scores["test"]
    loaded = AudioClassifier.from_pretrained(run, device="cpu").model
    positions = next(p for name, p in loaded.named_parameters() if name.endswith("position_embeddings"))
    assert positions.any() == (method == "full"), "only full fine-tuning trains the table"
    card = (run / "README.md").read_text()
    assert "mean of all tokens" in card
    assert "AutoModelForAudioClassification" not in card


def test_reloaded_logits_are_those_of_the_trained_model(
    backbone: Callable[[str], str], tones: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal scores of a few clips could be luck; equal logits are not."""
    from mambavox.training.classify import task as module

    seen = []
    predict = module.predict_logits
    monkeypatch.setattr(module, "predict_logits", lambda *args: seen.append(predict(*args)) or seen[-1])
    config = ClassifyConfig(
        data=tones, backbone=backbone("ast"), output=str(tmp_path / "run"), epochs=2, tensorboard=False, device="cpu"
    )
    train(config.replace(learning_rate=0.05))
    examples = [example for example in read_examples(tones) if example.fields["split"] == "test"]
    logits = AudioClassifier.from_pretrained(tmp_path / "run", device="cpu").logits(examples)
    np.testing.assert_array_equal(logits, seen[1])
    assert np.ptp(logits) > 0


def test_every_form_of_a_recording(runs: Callable[..., Path], tones: str) -> None:
    classifier = AudioClassifier.from_pretrained(runs("ast"), device="cpu")
    file = f"{tones}/low_0.wav"
    waveform, rate = soundfile.read(file, dtype="float32")
    expected = classifier(file)
    assert [item["label"] for item in expected] in (["high", "low"], ["low", "high"])
    assert expected[0]["score"] >= expected[1]["score"]
    assert sum(item["score"] for item in expected) == pytest.approx(1.0)
    for source in (Path(file), Path(file).read_bytes(), waveform, (waveform, rate), {"path": file, "bytes": None}):
        assert classifier(source) == expected
    assert classifier([]) == []
    batch = classifier([file, f"{tones}/high_0.wav", file], batch_size=2)
    assert len(batch) == 3
    assert batch[0][0]["score"] == pytest.approx(expected[0]["score"], abs=1e-6)
    with pytest.raises(AudioError, match=r"gone\.wav"):
        classifier("gone.wav")


@pytest.mark.parametrize("family", ["ast", "hubert", "wav2vec2"])
def test_a_broken_recording_among_long_ones(runs: Callable[..., Path], tmp_path: Path, family: str) -> None:
    """Windows of several recordings share batches; one that breaks off takes none of its neighbours' along."""
    classifier = AudioClassifier.from_pretrained(runs(family), device="cpu")
    generator = np.random.default_rng(0)
    sound = [0.1 * generator.standard_normal(size).astype(np.float32) for size in (20_000, 3_000, 20_000)]
    broken = sound[0].copy()
    broken[15_000] = np.nan
    cut_off = tmp_path / "cut.wav"  # which is found at its end, when its windows wait beside others
    soundfile.write(cut_off, sound[0], 16_000)
    cut_off.write_bytes(cut_off.read_bytes()[:-8000])
    sources = [sound[0], tmp_path / "gone.wav", sound[1], broken, cut_off, sound[2]]
    found = list(classifier.predict(sources, batch_size=4, on_error="return"))
    assert [isinstance(item, AudioError) for item in found] == [False, True, False, True, True, False]
    for source, item in zip(sources, found, strict=True):
        if isinstance(item, AudioError):
            continue
        assert item.seconds == len(source) / 16_000
        for window in item.windows:
            part = source[round(window["start"] * 16_000) : round(window["end"] * 16_000)]
            assert len(part) == min(len(source), classifier.front_end.max_samples)
            alone = {row["label"]: row["score"] for row in classifier(part)}
            assert {row["label"]: row["score"] for row in window["predictions"]} == pytest.approx(alone, abs=1e-5)
    with pytest.raises(AudioError, match=r"gone\.wav"):
        list(classifier.predict(sources))


def test_no_run(tmp_path: Path, runs: Callable[..., Path]) -> None:
    with pytest.raises(RunError, match="holds no run"):
        AudioClassifier.from_pretrained(tmp_path)
    (tmp_path / "run.yaml").write_bytes((runs("ast") / "run.yaml").read_bytes())
    with pytest.raises(RunError, match=r"not finished.*--resume"):
        AudioClassifier.from_pretrained(tmp_path)


def test_a_backbone_that_has_moved(runs: Callable[..., Path], tmp_path: Path, backbone: Callable[[str], str]) -> None:
    for file in runs("ast").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = ClassifyConfig.load(tmp_path / "run.yaml", {"backbone": "gone/away"})
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    with pytest.raises(ConfigError, match="gone/away"):
        AudioClassifier.from_pretrained(tmp_path)
    moved = AudioClassifier.from_pretrained(tmp_path, backbone=backbone("ast"), device="cpu")
    waveform = np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    assert moved(waveform) == AudioClassifier.from_pretrained(runs("ast"), device="cpu")(waveform)


def test_evaluation_of_other_data(runs: Callable[..., Path], tmp_path: Path) -> None:
    for label in ("low", "high"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(2):
            soundfile.write(tmp_path / "data" / label / f"{number}.wav", np.full(4000, 0.1), 16_000)
    (tmp_path / "data" / "low" / "broken.wav").write_bytes(b"nothing")
    options = EvaluationOptions(data=str(tmp_path / "data"), device="cpu")
    with pytest.raises(AudioError, match=r"broken\.wav"):
        evaluate(runs("ast"), options)
    options = replace(options, on_error="skip")
    evaluation = evaluate(runs("ast"), options)
    scores = evaluation.scores["all"]
    assert isinstance(scores, Classification)
    assert (list(evaluation.scores), scores.figures["recordings"], len(evaluation.left_out)) == (["all"], 4, 1)
    # Equal recordings of two classes: one class right, the other wholly mistaken for it.
    worst, best = scores.classes()
    assert (worst.recall, worst.mistaken_for, best.recall) == (0.0, best.label, 1.0)
    (tmp_path / "data" / "middle").mkdir()
    soundfile.write(tmp_path / "data" / "middle" / "0.wav", np.full(4000, 0.1), 16_000)
    with pytest.raises(DataError, match=r"not trained on: middle; it knows high, low"):
        evaluate(runs("ast"), options)
