"""Files are the old or the new ones."""

import os
import stat

import numpy as np
import pytest
from safetensors.numpy import save_file

from mambavox.errors import RunError
from mambavox.files import is_empty, make_readable, replacing, to_json, watching_the_disk, write_atomically


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "some.txt"
    write_atomically(path, "old")
    with pytest.raises(RuntimeError), replacing(path) as partial:
        partial.write_text("half of the new")
        assert path.read_text() == "old"
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    write_atomically(path, "new ü")
    assert path.read_text(encoding="utf-8") == "new ü" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
@pytest.mark.parametrize("sync", [False, True])
def test_others_may_read_what_safetensors_writes_for_its_owner(tmp_path, sync):
    path = tmp_path / "some.safetensors"
    before = os.umask(0o022)
    try:
        with replacing(path, sync=sync) as partial:
            save_file({"x": np.zeros(3)}, partial)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_weights_are_as_readable_as_any_new_file(tmp_path, umask, mode):
    save_file({"x": np.zeros(3)}, tmp_path / "model.safetensors")
    secret = tmp_path / "secret.txt"
    secret.touch(0o600)
    (tmp_path / "link.safetensors").symlink_to(secret)
    before = os.umask(umask)
    try:
        make_readable(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model.safetensors").stat().st_mode) == mode
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert len(list(tmp_path.iterdir())) == 3


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".some.txt.partial").symlink_to(victim)
    write_atomically(tmp_path / "some.txt", "new")
    assert victim.read_text() == "precious"
    assert (tmp_path / "some.txt").read_text() == "new" and not (tmp_path / "some.txt").is_symlink()
    assert len(list(tmp_path.iterdir())) == 2


def test_json_is_readable():
    assert to_json({"a": "ü"}) == '{\n  "a": "ü"\n}\n'


def test_leftovers_of_a_kill_are_nothing(tmp_path):
    assert is_empty(tmp_path)
    (tmp_path / ".some.txt.partial").touch()
    assert is_empty(tmp_path)
    (tmp_path / ".hidden").touch()
    assert not is_empty(tmp_path)


def test_a_full_disk_is_told(tmp_path):
    with (
        pytest.raises(RunError, match=r"the disk is full\. Make room$"),
        watching_the_disk(tmp_path, lambda: "Make room"),
    ):
        raise OSError(28, "No space left on device")
    with pytest.raises(FileNotFoundError), watching_the_disk(tmp_path, lambda: "Make room"):
        raise FileNotFoundError(2, "No such file")
