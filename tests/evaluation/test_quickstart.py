"""The quickstart, with a tiny backbone in the place of the embedded one."""

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from mambavox import assets
from mambavox.data.synth import COMMANDS
from mambavox.errors import RunError
from mambavox.evaluation.quickstart import QUICK_METHODS, loading_lines, quickstart

pytest.importorskip("espeakng_loader", reason="the extra `synth` is not installed")


def test_quickstart(backbone: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(backbone("ast"), tmp_path / "assets" / "nano-ast")
    monkeypatch.setattr(assets, "_FOLDER", tmp_path / "assets")
    monkeypatch.chdir(tmp_path)
    stream = io.StringIO()
    results = quickstart("runs/quickstart", clips_per_word=4, epochs=1, console=Console(file=stream, width=80))
    folder = tmp_path / "runs" / "quickstart"
    assert tuple(results) == QUICK_METHODS
    content = json.loads((folder / "results.json").read_text())
    for method, result in results.items():
        figures = content["methods"][method]
        assert figures["scores"]["test"]["accuracy"] == result.scores["test"]["accuracy"]
        assert figures["parameters"]["total"] == result.parameters["total"] > 0
        assert f"{result.parameters['total']:,}" in stream.getvalue()
        assert result.recordings == {"train": 24, "valid": 12, "test": 12}
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")

    # The lines that are printed really run.
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(loading_lines("runs/quickstart"), {})
    assert any(f"'label': '{word}'" in printed.getvalue() for word in COMMANDS)

    with pytest.raises(RunError, match="--overwrite"):
        quickstart("runs/quickstart")
    (folder / "mine.txt").touch()
    with pytest.raises(RunError, match=r"mine\.txt"):
        quickstart("runs/quickstart", overwrite=True)
    assert (folder / "results.json").is_file()
    (folder / "mine.txt").unlink()
    (folder / "evaluations").mkdir()  # of `mambavox evaluate`
    again = quickstart("runs/quickstart", methods=("mambadapter",), clips_per_word=4, epochs=1, overwrite=True)
    for method, result in again.items():
        assert result.learning_curve == results[method].learning_curve
