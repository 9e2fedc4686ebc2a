"""The commands of recognition, as a user types them."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from peft import get_peft_model
from tiny_hubert import tiny_config
from transformers import Wav2Vec2FeatureExtractor
from typer.testing import CliRunner

from mambavox.adapters import MambAdapterConfig
from mambavox.cli import app
from mambavox.hubert import MambaHubertForCTC

FORMS = ("json", "srt", "txt", "vtt")


def _run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.stdout, result.stderr


def spell(text):
    """A tone of 80 ms for each letter."""
    time = np.arange(1280) / 16_000
    tones = [0.5 * (letter != " ") * np.sin(2 * np.pi * (200 + 150 * (ord(letter) - 97)) * time) for letter in text]
    return np.concatenate(tones) + 0.01 * np.random.default_rng(0).standard_normal(1280 * len(text))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of clips and the run of a recogniser that has learned two words of tones by heart."""
    folder = tmp_path_factory.mktemp("tones")
    rows = []
    for part in ("train", "valid", "test"):
        for text in ("Low one.", "High"):
            path = f"{part}_{text.split()[0].lower()}.wav"
            soundfile.write(folder / path, spell(text.lower().strip(".")), 16_000)
            rows.append({"path": path, "text": text, "split": part})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = folder / "model"
    torch.manual_seed(0)
    MambaHubertForCTC(
        tiny_config(
            hidden_size=64, conv_dim=(32,) * 3, conv_kernel=(10, 8, 8), conv_stride=(5, 8, 8), feature_grad_mult=1
        )
    ).save_pretrained(model)
    Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=True).save_pretrained(model)
    flags = ("--epochs", 80, "--learning-rate", "1e-2", "--train-front", "--mask-prob", 0, "--mask-channel-prob", 0)
    out, _ = _run(
        "adapt", "--task", "ctc", "--backbone", model, "--data", folder, "--output", folder / "run", "--device", "cpu",
        "--no-tensorboard", "--language", "en", "--batch-size", 2, *flags,
    )  # fmt: skip
    assert "epoch 80/80" in out
    assert "test: WER 0.00 % [0.00, 0.00], CER 0.00 %" in out
    assert f"mambavox transcribe FILE --model {folder / 'run'}" in out
    return folder


def test_transcribe_prints_and_writes_every_format(trained, tmp_path):
    files = (trained / "test_low.wav", trained / "test_high.wav")
    out, _ = _run(
        "transcribe", *files, "--model", trained / "run", "--format", "txt,json,srt,vtt", "--output", tmp_path
    )
    assert out == f"{files[0]}:\nlow one\n{files[1]}:\nhigh\n"
    assert (tmp_path / "test_low.txt").read_text() == "low one\n"
    written = json.loads((tmp_path / "test_low.json").read_text())
    (segment,) = written["segments"]
    assert [word["text"] for word in segment["words"]] == ["low", "one"]
    assert (written["file"], written["language"], written["seconds"]) == (str(files[0]), "en", 0.56)
    assert all(0 < word["confidence"] <= 1 and word["start"] < word["end"] <= 0.56 for word in segment["words"])
    subtitles = (tmp_path / "test_low.srt").read_text()
    assert subtitles.startswith("1\n00:00:00,") and subtitles.endswith("\nlow one\n")
    assert (tmp_path / "test_low.vtt").read_text().startswith("WEBVTT\n\n00:00:00.")
    out, _ = _run("transcribe", files[0], "--model", trained / "run", "--timestamps", "--beam-size", 4)
    assert out.startswith("[00:00:00.") and out.endswith("] low one\n")
    out, _ = _run("transcribe", files[1], "--model", trained / "run", "--json", "--hot-words", "low")
    assert json.loads(out)[0]["text"] == "high"


def test_hot_words_are_taken_as_transcripts_are(trained, causal, tmp_path):
    def heard(words, run):
        flags = ("--model", run, "--hot-words", words, "--hot-word-weight", 100)
        return _run("transcribe", trained / "test_low.wav", *flags)[0]

    assert "lo lo" in heard("lo", trained / "run")
    assert heard("lo,one", trained / "run") == heard("Lo!, ONE", trained / "run")
    run = shutil.copytree(causal, tmp_path / "run")
    (run / "run.yaml").unlink()
    # Only the vocabulary says now that the transcripts have no capitals.
    assert heard("lo", run) == heard("LO", run) != heard("one", run)
    _, err = _run("transcribe", "a.wav", "--model", trained / "run", "--hot-words", "Low,Kurdistan,one", code=1)
    assert "hot words kurdistan cannot be written" in err and "a.wav" not in err


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3"])
def test_transcribe_reads_other_formats_and_rates(trained, tmp_path, suffix):
    waveform, rate = soundfile.read(trained / "test_high.wav")
    file = tmp_path / f"clip.{suffix}"
    soundfile.write(file, np.repeat(np.repeat(waveform, 2)[:, None], 2, axis=1), 2 * rate)
    out, _ = _run("transcribe", file, "--model", trained / "run", "--json")
    assert json.loads(out)[0]["seconds"] == pytest.approx(0.32, abs=0.1)


@pytest.mark.parametrize(
    ("name", "waveform"),
    [
        ("short", 0.1 * np.ones(800)),
        ("shorter than a frame", 0.1 * np.ones(3)),
        ("long", 0.1 * np.random.default_rng(0).standard_normal(40 * 16_000)),
        ("silent", np.zeros(16_000)),
        ("clipped", np.sign(np.sin(np.arange(16_000) / 5))),
    ],
)
def test_odd_recordings_are_transcribed(trained, tmp_path, name, waveform):
    soundfile.write(tmp_path / "clip.wav", waveform, 16_000)
    out, _ = _run("transcribe", tmp_path / "clip.wav", "--model", trained / "run", "--json")
    assert isinstance(json.loads(out)[0]["text"], str), name


def test_what_cannot_be_transcribed_is_named_and_the_rest_is_done(trained, tmp_path):
    soundfile.write(tmp_path / "nan.wav", np.full(1600, np.nan, dtype=np.float32), 16_000, subtype="FLOAT")
    good = trained / "test_high.wav"
    out, err = _run("transcribe", tmp_path / "nan.wav", tmp_path / "none.wav", good, "--model", trained / "run", code=1)
    assert out == f"{good}:\nhigh\n"
    assert "nan.wav: some samples are NaN or infinite, the first at 0.000 s" in err
    assert "none.wav: no such file" in err
    _, err = _run("transcribe", good, "--model", trained / "model", code=1)
    assert "holds no tokenizer" in err
    _run("transcribe", good, "--model", trained / "run", "--format", "doc", code=2)
    assert "torch finds no CUDA GPU" in _run("transcribe", good, "--model", "/no", "--device", "cuda", code=1)[1]
    assert "'auto', 'cpu', 'cuda'" in _run("transcribe", good, "--device", "tpu", code=2)[1]


def test_folders_are_heard_and_their_form_is_kept(trained, tmp_path):
    for name, clip in (("b/low.wav", "test_low.wav"), ("a/low.wav", "test_low.wav"), ("high.wav", "test_high.wav")):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(trained / clip, tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("no recording")
    out, _ = _run("transcribe", tmp_path / "in", "--model", trained / "run", "--output", tmp_path / "out")
    names = ("a/low", "b/low", "high")
    texts = ("low one", "low one", "high")
    assert out == "".join(f"{tmp_path}/in/{name}.wav:\n{text}\n" for name, text in zip(names, texts, strict=True))
    written = sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.*"))
    assert written == [Path(f"{name}.txt") for name in names]
    (tmp_path / "empty").mkdir()
    assert "empty: holds no recordings" in _run("transcribe", tmp_path / "empty", code=1)[1]


def test_the_shell_completes_formats():
    from mambavox.cli.transcribe_options import _complete_formats

    assert _complete_formats("s") == ["srt"]
    assert _complete_formats("txt,s") == ["txt,srt"]
    assert "txt,txt" not in _complete_formats("txt,")


def test_a_run_of_another_task_names_its_command(trained, tmp_path):
    run = shutil.copytree(trained / "run", tmp_path / "run")
    (run / "run.yaml").write_text("task: classify\n")
    for command in (("transcribe", trained / "test_low.wav"), ("serve",)):
        _, err = _run(*command, "--model", run, code=1)
        assert f"use `mambavox predict {run} FILE`" in err
    (run / "metrics.json").unlink()
    (run / "run.yaml").write_text("task: ctc\n")
    _, err = _run("transcribe", trained / "test_low.wav", "--model", run, code=1)
    assert "is not finished" in err


@pytest.fixture(scope="module")
def causal(trained):
    """The same recogniser with an extractor that does not normalise, which can be streamed."""
    run = trained / "causal"
    shutil.copytree(trained / "run", run)
    extractor = json.loads((run / "preprocessor_config.json").read_text())
    (run / "preprocessor_config.json").write_text(json.dumps(extractor | {"do_normalize": False}))
    return run


def long_recording(path, words, rate=16_000):
    """Words of tones, with a second of silence behind each."""
    parts = [part for word in words for part in (spell(word), 0.01 * np.random.default_rng(1).standard_normal(16_000))]
    soundfile.write(path, 1.4 * np.concatenate(parts), rate)  # about as loud as if it had been normalised
    return path


def test_a_longer_recording_is_heard_block_by_block(trained, causal, tmp_path):
    file = long_recording(tmp_path / "long.flac", ["low one", "high"] * 4)
    flags = ("--whole-seconds", 1, "--pause-seconds", 0.4, "--format", "txt,json,srt,vtt", "--output", tmp_path / "out")
    out, err = _run("transcribe", file, "--model", causal, *flags)
    assert "chunks" not in err and "real-time factor" in err
    lines = out.splitlines()
    assert len(lines) >= 8 and out.count("igh") == 4, out
    assert (tmp_path / "out" / "long.txt").read_text() == out
    written = json.loads((tmp_path / "out" / "long.json").read_text())
    assert written["text"] == out.strip() and written["seconds"] == pytest.approx(len(soundfile.read(file)[0]) / 16_000)
    assert "\n".join(segment["text"] for segment in written["segments"]) == written["text"]
    starts = [word["start"] for segment in written["segments"] for word in segment["words"]]
    assert starts == sorted(starts) and starts[-1] > 8
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"long.{form}" for form in FORMS]
    # The same letters as when it is heard as a whole; a pause ends a word without being a space.
    whole, _ = _run("transcribe", file, "--model", causal, "--whole-seconds", 100)
    assert "".join(whole.split()) == "".join(out.split())
    timed, _ = _run("transcribe", file, "--model", causal, "--whole-seconds", 1, "--timestamps")
    assert all(line.startswith("[00:00:") for line in timed.splitlines())
    again, err = _run("transcribe", file, "--model", trained / "run", "--whole-seconds", 1, "--json", "--beam-size", 2)
    assert "overlapping chunks" in err and "do_normalize" in err
    assert "igh" in json.loads(again)[0]["text"]


def killed(monkeypatch, *flags, blocks=3):
    """Run a command that is killed behind some blocks, each with a checkpoint; returns the samples heard."""
    from mambavox.asr.long_form import LongFormStream
    from mambavox.cli import transcribe_long

    feed, heard = LongFormStream.feed, []

    def feed_until_killed(stream, samples, **options):
        if len(heard) == blocks:
            raise KeyboardInterrupt
        heard.append(len(samples))
        return feed(stream, samples, **options)

    with monkeypatch.context() as patch:
        patch.setattr(transcribe_long, "_CHECKPOINT_SECONDS", 0.0)
        patch.setattr(LongFormStream, "feed", feed_until_killed)
        CliRunner().invoke(app, [str(flag) for flag in flags])
    return sum(heard)


def test_a_killed_transcription_goes_on_where_it_was(causal, tmp_path, monkeypatch):
    from mambavox.asr.long_form import LongFormStream

    file = long_recording(tmp_path / "long.wav", ["low one", "high"] * 8)
    flags = ("transcribe", file, "--model", causal, "--whole-seconds", 1, "--pause-seconds", 0.4, "--format", "json")
    expected, _ = _run(*flags)
    result = (tmp_path / "long.json").read_text()
    (tmp_path / "long.json").unlink()
    heard = killed(monkeypatch, *flags)
    assert not (tmp_path / "long.json").exists()
    assert (tmp_path / ".long.wav.transcript" / "state.safetensors").exists()
    counted, feed = [], LongFormStream.feed
    monkeypatch.setattr(
        LongFormStream, "feed", lambda stream, samples, **o: counted.append(len(samples)) or feed(stream, samples, **o)
    )
    out, err = _run(*flags)
    assert "goes on from 00:00:15.000" in err
    assert out == expected and (tmp_path / "long.json").read_text() == result
    assert sum(counted) + heard == len(soundfile.read(file)[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.json", "long.wav"]


def test_progress_is_gone_on_with_by_what_it_depends_on(causal, tmp_path, monkeypatch):
    file = long_recording(tmp_path / "long.wav", ["low one", "high"] * 4)
    run = shutil.copytree(causal, tmp_path / "run")
    flags = ("transcribe", file, "--whole-seconds", 1, "--model")
    killed(monkeypatch, *flags, run, blocks=1)
    monkeypatch.chdir(tmp_path)
    killed(monkeypatch, *flags, "./run", blocks=0)
    assert "goes on from 00:00:05.000" in _run(*flags, "run", "--json")[1]  # another name of the same folder
    words = tmp_path / "words.txt"
    words.write_text("low")
    adapted = tmp_path / "adapted"
    model = MambaHubertForCTC.from_pretrained(causal)
    get_peft_model(model, MambAdapterConfig(bottleneck_dim=4, placement="attention")).save_pretrained(adapted)
    for name in ("tokenizer_config.json", "vocab.json", "preprocessor_config.json"):
        shutil.copy(causal / name, adapted / name)
    for name, model, *other in (
        ("pause_seconds", run, "--pause-seconds", 0.5),
        ("word_score", run, "--word-score", 1.0),
        ("lm_words", run, "--lm-words", words),
        ("backbone", adapted, "--backbone", run),
    ):
        killed(monkeypatch, *flags, model, blocks=1)
        _, err = _run(*flags, model, *other)
        assert f"begins anew, not where it was interrupted: it was begun with another {name}" in err
    killed(monkeypatch, *flags, run, "--lm-words", words, blocks=1)
    words.write_text("low one")
    assert "it was begun with another lm_words" in _run(*flags, run, "--lm-words", words)[1]
    killed(monkeypatch, *flags, run, blocks=1)
    (tmp_path / ".long.wav.transcript" / "state.safetensors").write_bytes(b"?")
    assert "begins anew, not where it was interrupted" in _run(*flags, run)[1]
    assert "begins anew" not in _run(*flags, run)[1]
    killed(monkeypatch, *flags, run, blocks=1)
    extractor = json.loads((run / "preprocessor_config.json").read_text())
    (run / "preprocessor_config.json").write_text(json.dumps(extractor | {"do_normalize": True}))
    _, err = _run(*flags, run)
    assert "begins anew, not where it was interrupted: the state is of a stream that another model or in another" in err


def test_what_cannot_be_written_is_told_before_anything_is_heard(tmp_path):
    (tmp_path / "file").touch()
    into = ("--output", tmp_path / "file" / "in")
    for model in (("--model", "/no/such/model"), ("--model-dir", "/no/such/models")):
        _, err = _run("transcribe", "a.wav", *model, *into, code=1)
        assert f"{tmp_path}/file/in: cannot be written into (Not a directory)" in err and "--output" in err
        for pair in ((tmp_path / "a.wav", tmp_path / "a.flac"), (tmp_path / "one/a.wav", tmp_path / "two/a.wav")):
            flags = ("--format", "srt,txt", "--output", tmp_path / "out")
            _, err = _run("transcribe", *pair, *model, *flags, code=1)
            assert f"{pair[0]} and {pair[1]} would both be written to {tmp_path}/out/a.txt" in err
    _, err = _run("transcribe", "--microphone", "--model", "/no/such/model", *into, code=1)
    assert "cannot be written into" in err


def test_what_cannot_be_written_of_one_recording_is_told_and_the_others_are_done(trained, tmp_path):
    files = (trained / "test_low.wav", trained / "test_high.wav")
    (tmp_path / "test_low.txt").mkdir()
    flags = ("--model", trained / "run", "--format", "txt", "--output", tmp_path)
    out, err = _run("transcribe", *files, *flags, code=1)
    assert out == f"{files[0]}:\nlow one\n{files[1]}:\nhigh\n"
    assert "test_low.wav: its text cannot be written" in err
    assert (tmp_path / "test_high.txt").read_text() == "high\n"
    rows = json.loads(_run("transcribe", *files, *flags, "--json", code=1)[0])
    assert [(row["text"], "error" in row) for row in rows] == [("low one", True), ("high", False)]


def test_a_long_recording_that_cannot_be_saved_meanwhile_is_heard_to_its_end(causal, tmp_path, monkeypatch):
    from mambavox.asr.journal import Journal
    from mambavox.cli import transcribe_long

    def full(*_):
        raise OSError(28, "No space left on device")

    file = long_recording(tmp_path / "long.wav", ["low one", "high"] * 4)
    flags = ("transcribe", file, "--model", causal, "--whole-seconds", 1)
    expected, _ = _run(*flags)
    monkeypatch.setattr(transcribe_long, "_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(Journal, "checkpoint", full)
    out, err = _run(*flags)
    assert out == expected and "what was heard lately cannot be saved: [Errno 28] No space left" in err
    # What cannot be written at the end can be written later.
    monkeypatch.undo()
    monkeypatch.setattr(transcribe_long, "_CHECKPOINT_SECONDS", 0.0)
    (tmp_path / "long.txt").mkdir()
    out, err = _run(*flags, "--format", "txt", code=1)
    assert out == expected and "its text cannot be written" in err
    (tmp_path / "long.txt").rmdir()
    out, err = _run(*flags, "--format", "txt")
    assert "goes on from" in err and (tmp_path / "long.txt").read_text() == out == expected


def test_a_long_recording_that_cannot_be_read_leaves_nothing_behind(causal, tmp_path):
    soundfile.write(tmp_path / "nan.wav", np.full(48_000, np.nan, dtype=np.float32), 16_000, subtype="FLOAT")
    _, err = _run("transcribe", tmp_path / "nan.wav", "--model", causal, "--whole-seconds", 1, code=1)
    assert "nan.wav" in err
    assert [path.name for path in tmp_path.iterdir()] == ["nan.wav"]


def test_what_was_heard_before_a_recording_breaks_off_is_kept(causal, tmp_path):
    file = long_recording(tmp_path / "whole.wav", ["low one", "high"] * 8)
    content = file.read_bytes()
    (tmp_path / "half.wav").write_bytes(content[: len(content) // 2])
    flags = ("--model", causal, "--whole-seconds", 1, "--pause-seconds", 0.4, "--format", "txt")
    out, err = _run("transcribe", tmp_path / "half.wav", *flags, code=1)
    assert "half.wav: is cut off after" in err and "What was heard before is kept" in err
    assert "igh" in out and (tmp_path / "half.txt").read_text() == out


@pytest.mark.usefixtures("plots")
def test_evaluate_tells_error_rates(trained, tmp_path):
    out, _ = _run("evaluate", trained / "run", "--device", "cpu")
    assert "test: 2 recordings" in out
    assert "WER 0.00 % [0.00, 0.00], CER 0.00 %" in out
    rows = [
        {"path": str(trained / "test_low.wav"), "said": "slow one"},
        {"path": str(trained / "test_high.wav"), "said": ""},
    ]
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out, _ = _run("evaluate", trained / "run", "--data", other, "--text-column", "said")
    assert "WER 100.00 %" in out
    assert "1 substitutions, 0 deletions, 1 insertions in 2 words" in out
    assert "most often substituted: slow -> low (1)" in out
    assert "said:  SLOW one" in out and "heard: LOW  one" in out
    (left,) = (trained / "run" / "evaluations").glob("*-all")
    assert (left / "errors.png").is_file()
    lines = list(csv.DictReader((left / "predictions.csv").open(encoding="utf-8")))
    assert [(line["target"], line["predicted"], line["wer"]) for line in lines] == [
        ("slow one", "low one", "0.5"),
        ("", "high", "1.0"),
    ]
    out, _ = _run("evaluate", trained / "run", "--split", "all", "--json")
    splits = json.loads(out)["splits"]
    assert splits.keys() == {"train", "valid", "test"}
    assert len(splits["train"]["rows"]) == 2
    _, err = _run("evaluate", trained / "run", "--split", "nothing", code=1)
    assert "has no split nothing; it has train, valid, test" in err
    _, err = _run("evaluate", trained / "run", "--data", other, code=1)
    assert "no column of transcripts" in err and "--text-column" in err


def test_resume_takes_the_configuration_from_the_run(trained):
    out, _ = _run("adapt", "--output", trained / "run", "--resume")
    assert "test: WER 0.00 %" in out
    _, err = _run("adapt", "--task", "ctc", "--output", trained / "run", "--backbone", "x", "--data", "y", code=1)
    assert "--overwrite" in err
    _, err = _run("adapt", "--task", "ctc", "--data", "y", "--backbone", "x", "--mask-probb", "0.1", code=2)
    assert "did you mean mask_prob" in err
    _, err = _run("adapt", "--task", "ctc", "--data", Path("y"), code=1)
    assert "--backbone" in err


def test_transcribe_with_a_language_model(trained, tmp_path):
    pytest.importorskip("flashlight.lib.text.decoder.kenlm", reason="the extra lm is not installed")
    arpa = tmp_path / "tiny.arpa"
    unigrams = "-1\t<unk>\n0\t<s>\t-0.3\n-1\t</s>\n-1\tlow\t-0.3\n-1\tone\t-0.3\n"
    arpa.write_text(f"\\data\\\nngram 1=5\nngram 2=1\n\n\\1-grams:\n{unigrams}\n\\2-grams:\n-0.1\tlow one\n\n\\end\\\n")
    out, _ = _run("transcribe", trained / "test_low.wav", "--model", trained / "run", "--lm", arpa)
    assert out == "low one\n"
    (tmp_path / "words.txt").write_text("low\n")
    flags = ("--lm", arpa, "--lm-words", tmp_path / "words.txt", "--lm-weight", 0.5)
    out, _ = _run("transcribe", trained / "test_low.wav", "--model", trained / "run", *flags)
    assert set(out.split()) == {"low"}
    _, err = _run("transcribe", trained / "test_low.wav", "--model", trained / "run", "--lm", tmp_path / "no", code=1)
    assert "no such file" in err


def test_the_search_with_a_language_model_is_as_wide_as_asked(trained, tmp_path, monkeypatch):
    from mambavox.asr import language_model

    made = []

    class Search(language_model.LanguageModelSearch):
        def __init__(self, path, tokenizer, **options):
            made.append(options)

        def __call__(self, log_probs):
            return []

    monkeypatch.setattr(language_model, "LanguageModelSearch", Search)
    flags = ("transcribe", trained / "test_low.wav", "--model", trained / "run", "--lm", tmp_path / "lm.arpa")
    _run(*flags)
    _run(*flags, "--beam-size", 7)
    assert [options["beam_size"] for options in made] == [100, 7]
    _, err = _run(*flags, "--lm-words", tmp_path / "none.txt", code=1)
    assert "none.txt: cannot be read" in err and "--lm-words" in err
    assert "hot words and another search" in _run(*flags, "--hot-words", "low", code=1)[1]
