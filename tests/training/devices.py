"""A machine of several GPUs, pretended."""

from functools import cached_property

import pytest
import torch
from transformers import TrainingArguments


def pretend_two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``Trainer`` believe that one process has two GPUs."""
    set_up = TrainingArguments.__dict__["_setup_devices"].func

    def two_gpus(arguments: TrainingArguments) -> torch.device:
        device: torch.device = set_up(arguments)
        arguments._n_gpu = 2
        return device

    fake = cached_property(two_gpus)
    fake.__set_name__(TrainingArguments, "_setup_devices")
    monkeypatch.setattr(TrainingArguments, "_setup_devices", fake)
