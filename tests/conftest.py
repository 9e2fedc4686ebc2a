"""What every room's tests share."""

import os
from pathlib import Path

import pytest
import torch

# A hub lookup must fail at once, not time out.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# On tiny models a second thread costs more than it gives; processes that tests start inherit the variable.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

RECORDINGS = Path(__file__).parents[1].parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def recordings() -> Path:
    """Folder of real recordings beside the checkout; the test is skipped where it is absent."""
    if not RECORDINGS.is_dir():
        pytest.skip("the real recordings (../shared/data) are not on this machine")
    return RECORDINGS
