"""What every room's tests share."""

import os
from pathlib import Path

import pytest
import torch

# Two test processes on two cores must not fight over them; a hub lookup must fail at once, not time out.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

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
