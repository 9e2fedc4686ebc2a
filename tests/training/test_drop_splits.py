"""Splits that are named are left out by every task; data without classes or transcripts say what is missing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from mambavox.cli.application import app
from mambavox.errors import ConfigError, DataError
from mambavox.training.classify import data as labelled
from mambavox.training.configs import CONFIGS
from mambavox.training.pretraining.recordings import hold_back, read_examples
from mambavox.training.transcripts import load_all, load_transcripts

WORDS = ("train", "train", "valid", "test", "smoke", "extra")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of each of two classes in each of some splits."""
    folder, generator = tmp_path_factory.mktemp("splits"), np.random.default_rng(0)
    rows = []
    for number, split in enumerate(WORDS):
        for label in ("a", "b"):
            path = f"{label}{number}.wav"
            soundfile.write(folder / path, 0.1 * generator.standard_normal(1600), 16_000)
            rows.append({"path": path, "label": label, "text": label, "split": split})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def config(task: str, data: Any, **changes: Any) -> Any:
    return CONFIGS[task].from_mapping({"data": str(data), **changes})


def sizes(data: Any) -> dict[str, int]:
    return {name: len(split) for name, split in data.splits.items()}


def test_every_task_leaves_them_out(folder: Path) -> None:
    refused = r"holds extra, smoke; .*leave their recordings out with --drop-splits extra,smoke"
    for task, load in (("classify", labelled.load_labelled), ("ctc", load_transcripts), ("whisper", load_transcripts)):
        with pytest.raises(DataError, match=refused):
            load(config(task, folder))
        found = load(config(task, folder, drop_splits="smoke, extra"))
        assert sizes(found) == {"train": 4, "valid": 2, "test": 2}
        assert found.notes[0] == "4 recordings are left out by --drop-splits smoke,extra"
    assert sizes(labelled.load_all(config("classify", folder, drop_splits="smoke"))) == {"all": 10}
    assert sizes(load_all(config("ctc", folder, drop_splits="smoke"))) == {"all": 10}
    with pytest.raises(DataError, match=r"leave the recordings out \(--drop-splits\)"):
        read_examples(config("pretrain", folder))
    examples = read_examples(config("pretrain", folder, drop_splits="smoke,extra"))
    assert len(hold_back(examples, 0.1, 0).train) == 4 and len(examples) == 6


def test_shards_are_packed_without_them(folder: Path, tmp_path: Path) -> None:
    command = ["shards", "make", str(folder), "--output", str(tmp_path / "tars")]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 1 and "(--drop-splits)" in refused.stderr
    done = CliRunner().invoke(app, [*command, "--drop-splits", "smoke,extra"])
    assert done.exit_code == 0 and done.stdout.startswith("8 recordings"), done.output


def test_values_that_are_not_there_or_all_there_is(folder: Path) -> None:
    with pytest.raises(DataError, match=r"drop_splits names smok, but split holds train, valid, test, smoke, extra"):
        labelled.load_labelled(config("classify", folder, drop_splits="smok"))
    with pytest.raises(DataError, match="leaves out all of 12 recordings"):
        labelled.load_labelled(config("classify", folder, drop_splits=",".join(WORDS)))
    with pytest.raises(DataError, match=r"drop_splits names a, but text holds|splits names smoke, but text holds"):
        load_transcripts(config("ctc", folder, drop_splits="smoke", split_column="text"))


def test_a_flat_folder_says_what_is_missing(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, np.full(1600, 0.1), 16_000)
    with pytest.raises(DataError, match=r"holds 2 recordings whose classes nobody knows; expected a folder for each"):
        labelled.load_labelled(config("classify", tmp_path))
    with pytest.raises(DataError, match=r"holds 2 recordings without transcripts; expected a file .*metadata\.csv"):
        load_transcripts(config("ctc", tmp_path))
    assert len(read_examples(config("pretrain", tmp_path))) == 2


@pytest.mark.parametrize("task", CONFIGS)
@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
def test_no_number_is_infinite(tmp_path: Path, task: str, value: str) -> None:
    file = tmp_path / "run.yaml"
    for name, spec in CONFIGS[task].__dataclass_fields__.items():
        if isinstance(spec.default, int | float) and not isinstance(spec.default, bool):
            file.write_text(f"{name}: {value}\n")
            with pytest.raises(ConfigError, match=f"{name}=-?(inf|nan); expected"):
                CONFIGS[task].load(file)
