"""What every room's tests share."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

# Read when the libraries are imported. A hub lookup must fail at once, not time out; and on tiny models a second
# thread costs more than it gives. Processes that tests start inherit both.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from tiny import save_backbone, write_recordings

torch.set_num_threads(1)

RECORDINGS = Path(__file__).parents[1].parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _no_plots() -> Iterator[None]:
    """Hundreds of short runs are not drawn; tests of plots ask for the fixture ``plots``."""
    from mambavox.runs import plots

    patch = pytest.MonkeyPatch()
    for name in ("draw_run", "draw_predictions"):
        patch.setattr(plots, f"_{name}", getattr(plots, name), raising=False)
        patch.setattr(plots, name, lambda *arguments: None)
    yield
    patch.undo()


@pytest.fixture
def plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are drawn."""
    from mambavox.runs import plots

    for name in ("draw_run", "draw_predictions"):
        monkeypatch.setattr(plots, name, getattr(plots, f"_{name}"))


@pytest.fixture
def recordings() -> Path:
    """Folder of real recordings beside the checkout; the test is skipped where it is absent."""
    if not RECORDINGS.is_dir():
        pytest.skip("the real recordings (../shared/data) are not on this machine")
    return RECORDINGS


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
