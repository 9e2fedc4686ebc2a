"""Files are the old or the new ones."""

import os
import stat

import numpy as np
import pytest
from safetensors.numpy import save_file

from mambavox.files import replacing, to_json, write_atomically


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


def test_json_is_readable():
    assert to_json({"a": "ü"}) == '{\n  "a": "ü"\n}\n'
