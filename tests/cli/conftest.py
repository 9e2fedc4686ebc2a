"""Tiny backbones and recordings for the tests of the command line."""

from collections.abc import Callable

import pytest
import torch
from tiny import save_backbone, write_recordings

# Models this small are only slowed down by more, above all where other tests run beside these.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Folder of a tiny backbone of a family, made when first asked for."""
    folder = tmp_path_factory.mktemp("backbones")

    def path(family: str) -> str:
        if not (folder / family).is_dir():
            save_backbone(family, folder / family)
        return str(folder / family)

    return path


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of 12 short recordings of two classes, with a manifest."""
    return str(write_recordings(tmp_path_factory.mktemp("data") / "tones"))
