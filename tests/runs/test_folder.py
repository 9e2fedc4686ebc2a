"""The folder of a run: what is written aside goes nowhere else."""

from pathlib import Path

from mambavox.runs.folder import METRICS_FILE, RUN_FILE, RunFolder


def test_a_link_in_the_place_of_what_is_written_aside_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    (folder.path / RUN_FILE).write_text("task: classify\n")
    for target in (elsewhere, elsewhere / "precious", tmp_path / "gone"):
        (folder.path / ".partial").symlink_to(target)
        folder.publish(lambda path: (path / METRICS_FILE).write_text("{}") and None)
        assert (folder.path / METRICS_FILE).read_text() == "{}"
        assert sorted(path.name for path in folder.path.iterdir()) == [METRICS_FILE, RUN_FILE]
    assert [path.name for path in elsewhere.iterdir()] == ["precious"]
