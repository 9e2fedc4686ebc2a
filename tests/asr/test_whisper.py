"""Transcription with one Whisper and many adapters."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from tiny import save_whisper
from typer.testing import CliRunner

from mambavox.asr.text import normalize_text
from mambavox.asr.whisper import BASE, WhisperTranscriber, load_whisper
from mambavox.cli.application import app
from mambavox.errors import AudioError, ConfigError, DataError, HostError, RunError
from mambavox.evaluation.evaluate import EvaluationOptions, evaluate
from mambavox.training.run import run as do_run
from mambavox.training.whisper.config import WhisperConfig

RATE = 16_000
OPTIONS: dict[str, Any] = {"bottleneck_dim": 4, "d_state": 3, "d_conv": 4, "where": "both"}


def tone(seconds: float, frequency: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * frequency * np.arange(round(RATE * seconds)) / RATE)).astype(np.float32)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters of two new languages and one known one, on one Whisper; and one that was trained whole."""
    root = tmp_path_factory.mktemp("whisper")
    backbone, data = save_whisper(root / "backbone"), root / "data"
    data.mkdir()
    for number in range(4):
        soundfile.write(data / f"{number}.wav", tone(0.4 + 0.1 * number, 300.0 * (number + 1)), RATE)
    for language, words in {"ckb": "bad", "kab": "dab", "de": "ab"}.items():
        rows = [{"path": f"{n}.wav", "text": words[: n + 1], "split": "train"} for n in range(4)]
        (data / f"{language}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        train(root / "runs" / language, data / f"{language}.jsonl", backbone, language, 12)
    train(root / "whole" / "full", data / "de.jsonl", backbone, "de", 1, method="full", method_options={})
    return root


def train(output: Path, data: Path, backbone: Path, language: str, epochs: int, **changes: Any) -> None:
    values: dict[str, Any] = {"method_options": OPTIONS, "learning_rate": 3e-2, "batch_size": 2, **changes}
    do_run(
        WhisperConfig(
            data=str(data),
            output=str(output),
            backbone=str(backbone),
            language=language,
            epochs=epochs,
            valid_fraction=0.0,
            max_new_tokens=8,
            tensorboard=False,
            device="cpu",
            **values,
        )
    )


def test_one_of_many_gives_what_it_gives_alone(runs: Path) -> None:
    sounds = [tone(0.5), tone(0.9, 900.0), tone(0.05)]
    together = WhisperTranscriber.from_folder(runs / "runs", device="cpu")
    assert together.languages == {f"language-{code}": code for code in ("ckb", "de", "kab")}
    texts = {}
    for language in ("ckb", "kab", "de"):
        alone = WhisperTranscriber.from_pretrained(runs / "runs" / language, device="cpu").transcribe(sounds)
        assert together.transcribe(sounds, language) == alone
        assert {transcript.language for transcript in alone} == {language}
        texts[language] = [transcript.text for transcript in alone]
    assert len({tuple(text) for text in texts.values()}) > 1, "the adapters differ"
    mixed = together.transcribe(sounds, ["kab", "de", "ckb"])
    assert [item.text for item in mixed] == [texts["kab"][0], texts["de"][1], texts["ckb"][2]]
    # As with a method that cannot have an adapter for each row.
    together.mixes_languages = False
    assert together.transcribe(sounds, ["kab", "de", "ckb"]) == mixed
    together.mixes_languages = True
    timed = together.transcribe([*sounds, sounds[0]], ["kab", "de", "ckb", "de"], timestamps=True)
    for transcript, language, sound in zip(timed, ("kab", "de", "ckb", "de"), [*sounds, sounds[0]], strict=True):
        assert transcript == together.transcribe([sound], language, timestamps=True)[0]


def test_a_language_whose_code_is_in_the_prefix_of_a_method(runs: Path, tmp_path: Path) -> None:
    """Peft warns of an adapter called pt beside the prefix mambadapter_, and may not load it."""
    run = shutil.copytree(runs / "runs" / "ckb", tmp_path / "pt")
    (run / "run.yaml").write_text((run / "run.yaml").read_text().replace("language: ckb", "language: pt"))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Adapter name")
        WhisperTranscriber.from_pretrained(runs / "runs" / "de", run, device="cpu")


def test_folders_may_have_the_same_name(runs: Path, tmp_path: Path) -> None:
    best = [shutil.copytree(runs / "runs" / code, tmp_path / code / "best") for code in ("ckb", "kab")]
    together = WhisperTranscriber.from_pretrained(*best, device="cpu")
    assert list(together.languages.values()) == ["ckb", "kab"]


def test_two_tags_of_one_language_are_not_two_languages(runs: Path, tmp_path: Path) -> None:
    other = shutil.copytree(runs / "runs" / "de", tmp_path / "other")
    (other / "run.yaml").write_text((other / "run.yaml").read_text().replace("language: de", "language: German"))
    with pytest.raises(ConfigError, match="languages of de, other are de, German; expected a different one"):
        WhisperTranscriber.from_pretrained(runs / "runs" / "de", other, device="cpu")


def test_a_switch_takes_no_loading(runs: Path) -> None:
    transcriber = WhisperTranscriber.from_folder(runs / "runs", device="cpu")
    before = {name: p.data_ptr() for name, p in transcriber.model.named_parameters()}
    assert min(transcriber.switch(code) for code in ("kab", "de") * 5) < 0.1
    assert {name: p.data_ptr() for name, p in transcriber.model.named_parameters()} == before


def test_the_likeliest_language(runs: Path) -> None:
    """What an adapter was trained on is likeliest under that adapter; the three were trained on the same sounds."""
    transcriber = WhisperTranscriber.from_folder(runs / "runs", device="cpu")
    sound = tone(0.5)
    auto = transcriber.transcribe([sound, tone(0.6, 600.0)], "auto")
    for transcript, own in zip(auto, (sound, tone(0.6, 600.0)), strict=True):
        likelihood = {code: float(transcriber._likelihood([own], code)) for code in ("ckb", "kab", "de")}
        assert transcript.language == max(likelihood, key=lambda code: likelihood[code])
        assert transcript == transcriber.transcribe([own], transcript.language)[0]


@pytest.mark.parametrize("beams", [1, 3])
def test_recordings_of_every_length(runs: Path, beams: int) -> None:
    transcriber = WhisperTranscriber.from_folder(runs / "runs", device="cpu")
    transcriber.num_beams = beams
    sounds = [tone(2.7), np.zeros(RATE // 2, np.float32), np.clip(100 * tone(1.0), -1, 1), tone(0.002)]
    for timestamps in (False, True):
        heard = transcriber.transcribe(sounds, ["de", "ckb", "kab", "de"], timestamps=timestamps)
        assert len(heard) == 4
        for transcript, sound in zip(heard, sounds, strict=True):
            assert isinstance(transcript.text, str)
            for segment in transcript.segments:
                assert 0 <= segment.start <= segment.end <= len(sound) / RATE + 1e-6
    assert heard[0] == transcriber.transcribe([sounds[0]], "de", timestamps=True)[0]
    with pytest.raises(AudioError):
        transcriber.transcribe([np.zeros(0, np.float32)], "de")


def test_a_model_that_was_trained_whole(runs: Path) -> None:
    transcriber = WhisperTranscriber.from_pretrained(runs / "whole" / "full", device="cpu")
    assert transcriber.languages == {BASE: "de"}
    assert isinstance(transcriber.transcribe([tone(0.4)])[0].text, str)


def test_a_whisper_as_it_is(runs: Path, tmp_path: Path) -> None:
    transcriber = WhisperTranscriber.from_pretrained(runs / "backbone", device="cpu")
    sounds = [tone(0.4), tone(0.7, 900.0), tone(2.5)]
    german = transcriber.transcribe(sounds, "de")
    assert [item.language for item in german] == ["de"] * 3
    detected = transcriber.transcribe(sounds)
    assert detected == transcriber.transcribe(sounds, "auto")
    assert {item.language for item in detected} <= {"de", "en"}, "detected"
    for item, sound in zip(detected, sounds, strict=True):
        assert item == transcriber.transcribe([sound], item.language)[0]
    mixed = transcriber.transcribe(sounds[:2], ["en", "de"])
    assert mixed[1] == german[1] and mixed[0] == transcriber.transcribe(sounds[:1], "en")[0]
    with pytest.raises(ConfigError, match="language=ckb; the model knows de, en"):
        transcriber.transcribe(sounds, "ckb")
    soundfile.write(tmp_path / "a.wav", sounds[0], RATE)
    arguments = ["transcribe", str(tmp_path / "a.wav"), "--model", str(runs / "backbone"), "--device", "cpu", "--json"]
    done = CliRunner().invoke(app, [*arguments, "--language", "de", "--trim-encoder", "--temperature", "0,0.5"])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)
    assert row["language"] == "de" and all(segment["start"] <= segment["end"] for segment in row["segments"])


def test_a_folder_with_other_runs_in_it(runs: Path, tmp_path: Path) -> None:
    for name in ("ckb", "de"):
        (tmp_path / name).symlink_to(runs / "runs" / name)
    (tmp_path / "classifier").mkdir()
    (tmp_path / "classifier" / "run.yaml").write_text("task: classify\nbackbone: nano-ast\n")
    (tmp_path / "older").mkdir()
    (tmp_path / "older" / "run.yaml").write_text("task: asr\n")
    (tmp_path / "older" / "metrics.json").write_text("{}")
    (tmp_path / "classifier" / "metrics.json").write_text("{}")
    assert set(WhisperTranscriber.from_folder(tmp_path, device="cpu").languages.values()) == {"ckb", "de"}


def test_mistakes(runs: Path, tmp_path: Path) -> None:
    transcriber = WhisperTranscriber.from_folder(runs / "runs", device="cpu")
    with pytest.raises(ConfigError, match="3 adapters and no language is given"):
        transcriber.transcribe([tone(0.4)])
    with pytest.raises(ConfigError, match="language=nl; there are adapters of ckb, de, kab"):
        transcriber.transcribe([tone(0.4)], "nl")
    with pytest.raises(ConfigError, match="2 languages are given for 1 recordings"):
        transcriber.transcribe([tone(0.4)], ["de", "de"])
    with pytest.raises(RunError, match="holds no finished runs"):
        WhisperTranscriber.from_folder(tmp_path)
    with pytest.raises(ConfigError, match="need the same method and adapters"):
        WhisperTranscriber.from_pretrained(runs / "runs" / "ckb", runs / "whole" / "full")
    with pytest.raises(RunError, match="holds no run"):
        WhisperTranscriber.from_pretrained(tmp_path)


def test_commands(runs: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    flags = ["--data", str(runs / "data" / "ckb.jsonl"), "--backbone", str(runs / "backbone"), "--device", "cpu"]
    options = [
        "--where",
        "decoder",
        "--bottleneck-dim",
        "3",
        "--epochs",
        "1",
        "--no-tensorboard",
        "--valid-fraction",
        "0.3",
    ]
    output = str(tmp_path / "run")
    done = run(app, ["adapt", "--task", "whisper", "--language", "ckb", *flags, *options, "--output", output])
    assert done.exit_code == 0, done.output
    assert "valid: WER" in done.output and "<|ckb|> is a new token" in done.output
    again = run(app, ["adapt", "--output", output, "--resume"])
    assert again.exit_code == 0 and "valid: WER" in again.output
    assert run(app, ["adapt", "--task=whisper", "--bottleneck-dmi", "3"]).exit_code == 2

    soundfile.write(tmp_path / "a.wav", tone(0.5), RATE)
    soundfile.write(tmp_path / "b.wav", tone(1.6), RATE)
    (tmp_path / "c.wav").write_bytes(b"no sound")
    files = [str(tmp_path / f"{name}.wav") for name in "abc"]
    once = ["--temperature", "0"]
    heard = run(
        app, ["transcribe", *files, "--model", output, "--format", "srt,json,txt,vtt", "--device", "cpu", *once]
    )
    assert heard.exit_code == 1 and "c.wav" in heard.output
    lines = heard.stdout.splitlines()
    assert lines[0] == f"{files[0]}:" and f"{files[1]}:" in lines
    written = json.loads((tmp_path / "b.json").read_text())
    assert list(written) == ["file", "text", "language", "seconds", "confidence", "notes", "segments"]
    assert (written["file"], written["language"], written["seconds"]) == (files[1], "ckb", 1.6)
    assert all(segment["words"] for segment in written["segments"])
    assert (tmp_path / "a.srt").exists() and (tmp_path / "a.txt").exists() and not (tmp_path / "c.txt").exists()
    (tmp_path / "out" / "a.txt").mkdir(parents=True)
    flags = ["--output", str(tmp_path / "out"), "--device", "cpu", *once]
    heard = run(app, ["transcribe", *files[:2], "--model", output, *flags])
    assert heard.exit_code == 1 and "a.wav: its text cannot be written" in heard.output
    assert (tmp_path / "out" / "b.txt").exists()
    many = run(app, ["transcribe", files[0], "--model-dir", str(runs / "runs"), "--language", "auto", "--json", *once])
    assert many.exit_code == 0, many.output
    assert json.loads(many.stdout)[0]["language"] in ("ckb", "kab", "de")
    assert run(app, ["transcribe", files[0], "--model", output, "--model-dir", str(runs)]).exit_code == 2
    scored = run(app, ["evaluate", output, "--device", "cpu"])
    assert scored.exit_code == 0 and "WER" in scored.output
    beams = run(app, ["evaluate", output, "--beam-size", "4", "--device", "cpu", "--json"])
    assert beams.exit_code == 0 and json.loads(beams.stdout)["notes"], "cut at the run's number of tokens"


def test_a_run_is_scored_on_its_own_data_and_on_others(runs: Path, tmp_path: Path) -> None:
    run_folder = runs / "runs" / "ckb"
    flags = ["--split", "train", "--json", "--device", "cpu"]
    result = CliRunner().invoke(app, ["evaluate", str(run_folder), *flags])
    assert result.exit_code == 0, result.output
    (own,) = json.loads(result.stdout)["splits"].values()
    transcriber = WhisperTranscriber.from_pretrained(run_folder, device="cpu")
    transcriber.max_new_tokens = 8  # the run's
    transcripts = transcriber.transcribe([row["name"] for row in own["rows"]])
    heard = [normalize_text(item.text, "ckb") for item in transcripts]
    assert any(heard) and [row["hypothesis"] for row in own["rows"]] == heard
    assert {row["reference"] for row in own["rows"]} <= {"b", "ba", "bad"}
    other = evaluate(run_folder, EvaluationOptions(data=str(runs / "data" / "kab.jsonl"), device="cpu"))
    assert list(other.scores) == ["all"]
    assert [item.reference for item in other.scores["all"].utterances] == ["d", "da", "dab", "dab"]
    assert all(row["alignment"] for row in other.to_mapping()["splits"]["all"]["rows"])
    rows = [json.loads(line) for line in (runs / "data" / "kab.jsonl").read_text().splitlines()]
    languages = [{**row, "lang": code} for row, code in zip(rows, ("ckb", "kab", "ckb_iq", "kab"), strict=True)]
    (runs / "data" / "both.jsonl").write_text("".join(json.dumps(row) + "\n" for row in languages))
    one = shutil.copytree(run_folder, tmp_path / "one")
    yaml = (one / "run.yaml").read_text()
    (one / "run.yaml").write_text(yaml.replace("language_column: null", "language_column: lang"))
    some = evaluate(one, EvaluationOptions(data=str(runs / "data" / "both.jsonl"), device="cpu"))
    assert [item.reference for item in some.scores["all"].utterances] == ["d", "dab"]
    with pytest.raises(DataError, match="has no split valid; it has train, test"):
        evaluate(run_folder, EvaluationOptions(split="valid", device="cpu"))


def test_other_models_and_damaged_runs_are_told(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="is of type 'audio-spectrogram-transformer'; expected a Whisper"):
        load_whisper("nano-ast")
    run = shutil.copytree(runs / "runs" / "de", tmp_path / "run")
    (run / "run.yaml").write_text("task: whisper\nbackbone: x\n")
    with pytest.raises(RunError, match="lacks method, language, trim_encoder, num_beams"):
        WhisperTranscriber.from_pretrained(run)
    (run / "run.yaml").write_text("task: classify\n")
    soundfile.write(tmp_path / "a.wav", tone(0.4), RATE)
    done = CliRunner().invoke(app, ["transcribe", str(tmp_path / "a.wav"), "--model", str(run)])
    assert done.exit_code == 1 and f"use `mambavox predict {run} FILE`" in done.stderr
    with pytest.raises(ConfigError, match="device=cuda:9: torch finds"):
        WhisperTranscriber.from_pretrained(tmp_path / "none", device="cuda:9")
