"""A student that learns the layers of a teacher: any speech model of 50 frames a second."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tiny import save_whisper
from training.pretraining.conftest import TINY, tiny_run
from training.pretraining.test_processes import _together
from training.pretraining.test_resume import _kill_after, assert_same
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForCTC,
    HubertConfig,
    HubertModel,
    Wav2Vec2FeatureExtractor,
)
from typer.testing import CliRunner

from mambavox.cli import app
from mambavox.errors import ConfigError, HostError, MambavoxError, RunError
from mambavox.hubert import MambaHubertConfig, MambaHubertModel
from mambavox.runs.result import RunResult
from mambavox.training.pretraining.config import PretrainConfig
from mambavox.training.pretraining.distillation import DistillationFigures, DistillationModel
from mambavox.training.pretraining.objective import PretrainTrainer
from mambavox.training.pretraining.plan import plan
from mambavox.training.pretraining.progress import read_history
from mambavox.training.pretraining.teacher import Teacher, distilled_layers
from mambavox.training.run import run as train

WIDTH, LAYERS = 16, 3
_UNITS = ("num_clusters", "proj_size", "mask_length")
STUDENT: dict[str, Any] = {key: value for key, value in TINY.items() if key not in _UNITS}
STUDENT |= {"num_hidden_layers": LAYERS, "conv_bias": False}
NO_DROPOUT = dict.fromkeys(("hidden_dropout", "attention_dropout", "feat_proj_dropout"), 0.0)


def save_teacher(folder: Path, *, do_normalize: bool = False, **changes: Any) -> str:
    """A tiny random HuBERT of 50 frames a second, whose sizes are those of STUDENT."""
    torch.manual_seed(1)
    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "conv_dim": [8] * 7,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
        "feat_extract_norm": "layer",
        "initializer_range": 0.1,
    }
    HubertModel(HubertConfig(**{**sizes, **changes})).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=do_normalize, return_attention_mask=True).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny teacher."""
    return save_teacher(tmp_path_factory.mktemp("teachers") / "hubert")


def run(data: str, output: Path, teacher: str, **changes: Any) -> PretrainConfig:
    """A distillation of a few updates, of two batches each."""
    values = {key: value for key, value in tiny_run(data, output).to_mapping().items() if key not in TINY}
    del values["layerdrop"]
    return PretrainConfig.from_mapping({**values, **STUDENT, "teacher": teacher, **changes})


def student_of(config: PretrainConfig) -> MambaHubertConfig:
    return config.model_config()


@pytest.mark.parametrize("preset", ["transformer-nano", "mamba-nano"])
def test_a_student_comes_near_its_teacher(speech: str, teacher: str, tmp_path: Path, preset: str) -> None:
    config = run(
        speech,
        tmp_path / "run",
        teacher,
        preset=preset,
        steps=200,
        save_every=100,
        log_every=50,
        learning_rate=1e-2,
        teacher_front_end=True,
        feature_grad_mult=1.0,
        **NO_DROPOUT,
    )
    result = train(config)
    history = [line for line in read_history(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert history[-1]["distillation_loss"] < 0.6 * history[0]["distillation_loss"]
    for layer in (1, 2, 3):
        assert result.scores["valid"][f"cosine_{layer}"] > 0.94
        # The mean frame has a cosine of about 0.8, too, but explains nothing.
        assert result.scores["valid"][f"explained_{layer}"] > 0.75

    # The figures of the whole student, on recordings as AutoModel's users would give them to it.
    model = AutoModel.from_pretrained(tmp_path / "run")
    assert type(model) is MambaHubertModel
    assert not [name for name in load_file(tmp_path / "run" / "model.safetensors") if "head" in name]
    assert result.parameters["encoder"] == sum(parameter.numel() for parameter in model.parameters())
    heads = LAYERS * 2 * (WIDTH * WIDTH + WIDTH)
    assert result.parameters["whole"] == result.parameters["encoder"] + heads == plan(config).parameters["whole"]
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "run")
    assert not extractor.do_normalize
    waveform = 0.1 * np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    inputs = extractor(waveform, sampling_rate=16_000, return_tensors="pt")
    whole = model.eval()(inputs.input_values).last_hidden_state
    assert whole.shape == (1, 24, WIDTH) and whole.isfinite().all()
    assert AutoModelForCTC.from_pretrained(tmp_path / "run").lm_head.in_features == WIDTH
    if model.config.causal:
        state, parts = model.init_streaming_state(), []
        for piece in inputs.input_values.split(3000, dim=1):
            output, state = model.stream(piece, state)
            parts.append(output.last_hidden_state)
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-4)

    card = (tmp_path / "run" / "README.md").read_text()
    assert f"layers 1 (from the student's 1), 2 (from the student's 2), 3 (from the student's 3) of {teacher}" in card
    assert "distilled on speech" in card and "AutoModelForPreTraining" not in card
    assert (tmp_path / "run" / "curve.png").stat().st_size > 10_000


def test_killed_and_continued(speech: str, teacher: str, tmp_path: Path) -> None:
    config = run(speech, tmp_path / "broken", teacher, steps=24, save_every=4, log_every=4, layerdrop=0.3)
    _kill_after(config, "checkpoint-8", tmp_path / "log")
    assert not (tmp_path / "broken" / "metrics.json").exists()
    checkpoint = load_file(next((tmp_path / "broken" / "checkpoints").glob("*/model.safetensors")))
    assert {name.partition(".")[0] for name in checkpoint} == {"mamba_hubert", "heads"}  # and no teacher
    train(config, resume=True)
    # Another cache and other evaluations change nothing that is learned.
    train(config.replace(output=str(tmp_path / "whole"), cache_gb=0.0, num_workers=1))
    assert_same(tmp_path / "broken", tmp_path / "whole")
    train(config.replace(output=str(tmp_path / "seldom"), eval_every=24))
    weights, others = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "seldom"))
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_another_teacher_of_the_same_name_is_told(speech: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run(speech, tmp_path / "run", save_teacher(tmp_path / "teacher"))
    with monkeypatch.context() as patch:
        patch.setattr(PretrainTrainer, "train", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(config)
    save_teacher(tmp_path / "teacher", initializer_range=0.2)
    with pytest.raises(RunError, match=r"its weights are not those that the run was begun with"):
        train(config, resume=True)


def test_the_loss_by_its_formula() -> None:
    config = student_of(run("x", Path("y"), "z", preset="transformer-nano", num_hidden_layers=2))
    model = DistillationModel(config, [1, 2], 5).eval()
    waveforms = torch.randn(2, 4000)
    waveforms[1, 3000:] = 0
    attention_mask = (torch.arange(4000) < torch.tensor([[4000], [3000]])).long()
    targets = torch.randn(2, 2, 12, 5)
    labels = torch.zeros(2, 12, dtype=torch.int64)
    labels[1, 9:] = -100
    states = model.mamba_hubert(waveforms, attention_mask=attention_mask, output_hidden_states=True).hidden_states
    expected = torch.zeros(())
    cosines = []
    for number, layer in enumerate((1, 2)):
        predicted = model.heads[number](states[layer])
        found = []
        for row, time in ((0, 12), (1, 9)):
            for frame in range(time):
                ours, theirs = predicted[row, frame], targets[number, row, frame]
                cosine = ours @ theirs / ours.norm() / theirs.norm()
                expected = expected + (ours - theirs).abs().mean() - torch.log(torch.sigmoid(cosine))
                found.append(cosine)
        cosines.append(torch.stack(found).mean())
    output = model(waveforms, targets, labels, attention_mask=attention_mask)
    torch.testing.assert_close(output.loss, expected / 2 / 21)
    torch.testing.assert_close(output.cosines, torch.stack(cosines))
    # Batches of a step add up to their union, whatever lies in the padding.
    targets[:, 1, 9:] = 1e6
    parts = [
        model(waveforms[:1], targets[:, :1], labels[:1], num_items_in_batch=21).loss,
        model(waveforms[1:, :3000], targets[:, 1:, :9], labels[1:, :9], num_items_in_batch=21).loss,
    ]
    torch.testing.assert_close(sum(parts), output.loss)
    torch.testing.assert_close(model(waveforms, targets, labels, attention_mask=attention_mask).loss, output.loss)


@pytest.mark.parametrize("preset", ["mamba-nano", "transformer-nano"])
@pytest.mark.parametrize("pre_norm", [False, True])
def test_every_trainable_tensor_gets_a_gradient(preset: str, pre_norm: bool) -> None:
    config = student_of(run("x", Path("y"), "z", preset=preset, do_stable_layer_norm=pre_norm))
    model = DistillationModel(config, [2, 3], 5)
    labels = torch.zeros(2, 24, dtype=torch.int64)
    model(torch.randn(2, 8000), torch.randn(2, 2, 24, 5), labels).loss.backward()
    without = [name for name, tensor in model.named_parameters() if tensor.requires_grad and tensor.grad is None]
    assert not without


def test_figures_are_those_of_the_union() -> None:
    config = student_of(run("x", Path("y"), "z", preset="transformer-nano"))
    model = DistillationModel(config, [3], 5).eval()
    waveforms, targets = torch.randn(3, 8000), torch.randn(1, 3, 24, 5) + 2
    labels = torch.zeros(3, 24, dtype=torch.int64)
    labels[0, 20:] = -100
    figures = DistillationFigures([7], 5, torch.device("cpu"), 16_000)
    for rows in (slice(0, 1), slice(1, 3)):
        figures.add(model(waveforms[rows], targets[:, rows], labels[rows]), labels[rows], waveforms[rows].numel())
    found = figures.take()
    predicted = model.heads[0](model.mamba_hubert(waveforms).last_hidden_state)[labels == 0].detach()
    wanted = targets[0][labels == 0]
    variance = (wanted - wanted.mean(dim=0)).square().sum()
    assert found["explained_7"] == pytest.approx(float(1 - (predicted - wanted).square().sum() / variance), rel=1e-4)
    assert found["cosine_7"] == pytest.approx(float(F.cosine_similarity(predicted, wanted).mean()), rel=1e-5)
    assert found["distance_7"] == pytest.approx(float((predicted - wanted).abs().mean()), rel=1e-5)
    assert found["hours"] == pytest.approx(1.5 / 3600)
    assert figures.take()["hours"] == 0


class TestTeacher:
    @pytest.mark.parametrize("norm", ["layer", "group"])
    @pytest.mark.parametrize("do_normalize", [False, True])
    def test_targets_are_its_hidden_states(self, tmp_path: Path, norm: str, do_normalize: bool) -> None:
        folder = save_teacher(tmp_path / "teacher", feat_extract_norm=norm, do_normalize=do_normalize)
        config = run("x", tmp_path / "run", folder, teacher_layers="1,3")
        teacher = Teacher(config, student_of(config), torch.device("cpu"))
        generator = np.random.default_rng(0)
        waveforms = [0.05 * generator.standard_normal(samples).astype(np.float32) for samples in (8000, 8000, 5000)]
        found = teacher(waveforms, 24)
        assert found.shape == (2, 3, 24, WIDTH) and not found.requires_grad
        model = HubertModel.from_pretrained(folder).eval()
        extractor = AutoFeatureExtractor.from_pretrained(folder)
        for row, waveform in enumerate(waveforms):
            inputs = extractor(waveform, sampling_rate=16_000, return_tensors="pt")
            with torch.no_grad():
                states = model(inputs.input_values, output_hidden_states=True).hidden_states
            time = states[0].shape[1]
            for place, layer in enumerate((1, 3)):
                torch.testing.assert_close(found[place, row, :time], states[layer][0], rtol=1e-4, atol=1e-4)
            assert not found[:, row, time:].any()
        torch.manual_seed(5)
        drawn = torch.rand(3)
        torch.manual_seed(5)
        teacher(waveforms, 24)
        assert torch.equal(torch.rand(3), drawn)  # it draws none of the student's random numbers

    def test_whispers_frames_are_the_nearest(self, tmp_path: Path) -> None:
        folder = str(save_whisper(tmp_path / "whisper"))
        config = run("x", tmp_path / "run", folder, teacher_layers="0,2")
        student = student_of(config)
        teacher = Teacher(config, student, torch.device("cpu"))
        # Centres lie at 0, 20, 40... ms, the student's at 12.5, 32.5...
        waveform = 0.05 * np.random.default_rng(0).standard_normal(8000).astype(np.float32)
        (states,) = teacher.features.all_layers([np.pad(waveform, (0, 320))])
        for samples in (8000, 7999, 7760, 7759, 4000):
            time = (samples - 400) // 320 + 1
            assert teacher.features.num_frames(samples + 320) - 1 >= time
        found = teacher([waveform], 24)
        np.testing.assert_allclose(found[1, 0].numpy(), states[2][1:25], atol=1e-5)

    def test_a_mamba_teaches(self, speech: str, tmp_path: Path) -> None:
        config = run("x", tmp_path / "run", "y", preset="ext-bimamba-nano", num_hidden_layers=2)
        MambaHubertModel(student_of(config)).save_pretrained(tmp_path / "teacher")
        result = train(run(speech, tmp_path / "run", str(tmp_path / "teacher"), steps=2, student_layers="3"))
        assert result.details["targets"] == f"{tmp_path / 'teacher'}:1,2" and result.details["student_layers"] == [3, 3]
        assert result.details["num_clusters"] is None and math.isfinite(result.scores["valid"]["distillation_loss"])

    def test_convolutions_are_taken_where_they_fit(self, tmp_path: Path) -> None:
        def taken(teacher: str, **changes: Any) -> set[str]:
            config = run("x", tmp_path / "run", teacher, **changes)
            student = MambaHubertModel(student_of(config))
            before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
            model = Teacher(config, student_of(config), torch.device("cpu"))
            model.give_front_end(student)
            names = set(model.given)
            given = model.features.model.state_dict()
            for name, tensor in student.state_dict().items():
                assert torch.equal(tensor, given[name] if name in names else before[name]), name
            return names

        convolutions = {f"feature_extractor.conv_layers.{layer}.conv.weight" for layer in range(7)}
        norms = {
            f"feature_extractor.conv_layers.{layer}.layer_norm.{part}"
            for layer in range(7)
            for part in ("weight", "bias")
        }
        projection = {
            f"feature_projection.{module}.{part}"
            for module in ("layer_norm", "projection")
            for part in ("weight", "bias")
        }
        biases = {name.replace("weight", "bias") for name in convolutions}
        first_bias = "feature_extractor.conv_layers.0.conv.bias"
        same = save_teacher(tmp_path / "same")
        assert taken(same) == convolutions | norms | projection
        assert taken(same, hidden_size=32) == convolutions | norms | {
            name for name in projection if "layer_norm" in name
        }
        group = save_teacher(tmp_path / "group", feat_extract_norm="group")
        assert taken(group) == convolutions | projection
        loud = save_teacher(tmp_path / "loud", conv_bias=True, do_normalize=True)
        assert taken(loud, conv_bias=True) == convolutions | norms | projection | (biases - {first_bias})
        quiet = save_teacher(tmp_path / "quiet", conv_bias=True)
        assert taken(quiet, conv_bias=True) == convolutions | norms | projection | biases


@pytest.mark.parametrize(
    ("options", "layers", "expected"),
    [
        ({}, (12, 12), {4: 4, 8: 8, 12: 12}),
        ({}, (24, 6), {8: 2, 16: 4, 24: 6}),
        ({}, (2, 3), {1: 2, 2: 3}),
        ({"teacher_layers": "6"}, (12, 8), {6: 8}),
        ({"teacher_layers": "0,6"}, (12, 8), {0: 0, 6: 8}),
        ({"teacher_layers": 0}, (12, 8), {0: 8}),
        ({"student_layers": "2"}, (12, 2), {4: 2, 8: 2, 12: 2}),
        ({"teacher_layers": "9, 3", "student_layers": "4,1"}, (12, 4), {9: 4, 3: 1}),
    ],
)
def test_layers_are_matched_by_depth(
    options: dict[str, Any], layers: tuple[int, int], expected: dict[int, int]
) -> None:
    config = PretrainConfig.from_mapping({"teacher": "x", **options})
    assert distilled_layers(config, *layers) == expected


def test_recipes_and_layerdrop() -> None:
    config = PretrainConfig(teacher="x", preset="mamba-base")
    assert (config.num_steps, config.seconds_a_step, config.peak_learning_rate) == (200_000, 300, 2e-4)
    assert config.model_config().layerdrop == 0
    assert PretrainConfig(preset="mamba-base").model_config().layerdrop == 0.05
    assert PretrainConfig.from_mapping({"teacher": "x", "layerdrop": 0.1}).model_config().layerdrop == 0.1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"teacher_layers": "4"}, "teacher_layers=4, but there is no teacher: --teacher MODEL"),
        ({"teacher_front_end": True}, "teacher_front_end=True, but there is no teacher"),
        ({"teacher": "x", "targets": "runs/it1:6"}, "targets=runs/it1:6 and teacher=x; expected units .* not both"),
        ({"teacher": "x", "num_clusters": 100}, "num_clusters=100 and teacher=x"),
        ({"teacher": "x", "teacher_layers": "4;8"}, "teacher_layers=4;8; expected numbers of layers, such as 4,8,12"),
        ({"teacher": "x", "teacher_layers": "4,-1"}, "expected numbers of layers"),
        ({"teacher": "x", "teacher_layers": "4,4"}, "expected each layer once"),
    ],
)
def test_contradictions_are_told(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PretrainConfig.from_mapping(values)


@pytest.mark.parametrize(
    ("made", "changes", "error", "message"),
    [
        ({}, {"teacher_layers": "1,7"}, ConfigError, r"teacher_layers=1,7: .* has no layer 7; expected 0 .* to 3"),
        ({}, {"student_layers": "1,4,3"}, ConfigError, r"student_layers=1,4,3: the student has no layer 4; .* to 3"),
        (
            {},
            {"student_layers": "1,2"},
            ConfigError,
            r"student_layers=1,2 for teacher_layers=1,2,3; expected one layer",
        ),
        ({}, {"student_layers": "2"}, ConfigError, r"behind layer 2 would learn nothing; .* --num-hidden-layers 2"),
        (
            {"conv_stride": [5, 2, 2, 2, 2, 2, 1]},
            {},
            ConfigError,
            r"teacher=.*gives 100 frames a second; the student 16000 Hz and 50; expected the same.*--conv-stride",
        ),
        (
            {"conv_kernel": [10, 3, 3, 3, 3, 2, 8]},
            {},
            ConfigError,
            r"teacher=.*centre at 42\.5 ms and the student's at 12\.5 ms.*--conv-kernel",
        ),
        (
            {"conv_dim": [4] * 7},
            {"teacher_front_end": True},
            ConfigError,
            r"teacher_front_end: conv_dim of .* is \[4, 4, .* of the student \[8, 8, .*--conv-dim",
        ),
    ],
)
def test_teachers_that_do_not_fit_are_told(
    speech: str,
    tmp_path: Path,
    made: dict[str, Any],
    changes: dict[str, Any],
    error: type[MambavoxError],
    message: str,
) -> None:
    config = run(speech, tmp_path / "run", save_teacher(tmp_path / "teacher", **made), **changes)
    with pytest.raises(error, match=message):
        train(config)
    assert not (tmp_path / "run").exists()  # nothing was begun


def test_what_is_no_speech_model_is_told(speech: str, backbone: Callable[[str], str], tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"teacher=.*expected a speech model with a frame-level encoder"):
        train(run(speech, tmp_path / "run", backbone("ast")))
    with pytest.raises(ConfigError, match=r"teacher=.*nowhere: there is no such folder"):
        train(run(speech, tmp_path / "run", str(tmp_path / "nowhere")))


def test_command(speech: str, teacher: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(run(speech, tmp_path / "run", teacher, steps=2).to_yaml())
    options = ["pretrain", "--config", str(tmp_path / "run.yaml"), "--teacher-layers", "2,3"]
    dry = CliRunner().invoke(app, [*options, "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert "2 updates of at most 4 s" in dry.output and not (tmp_path / "run").exists()
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, done.output
    assert "explained_3" in done.output
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["details"]["targets"] == f"{teacher}:2,3"
    assert RunResult.load(tmp_path / "run").details["student_layers"] == [2, 3]
    wrong = CliRunner().invoke(app, ["pretrain", "--data", speech, "--teacher-layers", "2"])
    assert wrong.exit_code == 1 and "there is no teacher" in wrong.output


@pytest.mark.parametrize("precision", ["bfloat16", "auto"])
def test_precisions(speech: str, teacher: str, tmp_path: Path, precision: str) -> None:
    config = run(speech, tmp_path / "run", teacher, steps=2, precision=precision, gradient_checkpointing=True)
    result = train(config.replace(device="auto"))
    assert math.isfinite(result.scores["valid"]["distillation_loss"])
    assert AutoModel.from_pretrained(tmp_path / "run").dtype == torch.float32


def test_two_processes_distil_what_one_does(speech: str, teacher: str, tmp_path: Path) -> None:
    alone = run(speech, tmp_path / "alone", teacher, steps=4, log_every=1, **NO_DROPOUT)
    train(alone)
    for process in _together(alone.replace(output=str(tmp_path / "together")), tmp_path):
        assert process.returncode == 0, process.stdout
    assert RunResult.load(tmp_path / "together").details["processes"] == 2
    weights, others = (load_file(tmp_path / name / "model.safetensors") for name in ("alone", "together"))
    for name, expected in weights.items():
        torch.testing.assert_close(others[name], expected, rtol=1e-5, atol=1e-5, msg=name)
    first, second = (RunResult.load(tmp_path / name).scores["valid"] for name in ("alone", "together"))
    for layer in (1, 2, 3):
        assert first[f"explained_{layer}"] == pytest.approx(second[f"explained_{layer}"], rel=1e-4)
