"""Tiny models, and recordings whose sounds tell what comes next."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from mambavox.training.pretraining.config import PretrainConfig

TINY: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "d_state": 4,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "proj_size": 8,
    "mask_length": 4,
    "num_clusters": 6,
}


def write_speech(folder: Path, clips: int = 16, seed: int = 0) -> Path:
    """Recordings of 0.6 to 1.2 s: syllables of four tones."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(clips):
        seconds = generator.uniform(0.6, 1.2)
        time = np.arange(round(seconds * 16_000)) / 16_000
        pitch = np.array([300.0, 600.0, 1200.0, 2400.0])[(time * 5 + generator.uniform(0, 4)).astype(int) % 4]
        wave = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / 16_000) + 0.01 * generator.normal(size=len(time))
        soundfile.write(folder / f"clip{number:02d}.wav", wave, 16_000)
    return folder


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of 16 short recordings without labels."""
    return str(write_speech(tmp_path_factory.mktemp("data") / "speech"))


def tiny_run(data: str, output: Path, **changes: Any) -> PretrainConfig:
    """A run of a few updates with dropout, LayerDrop, crops and two batches an update."""
    values: dict[str, Any] = {
        **TINY,
        "data": data,
        "output": str(output),
        "preset": "mamba-nano",
        "layerdrop": 0.3,
        "steps": 8,
        "batch_seconds": 4.0,
        "device_batch_seconds": 2.0,
        "crop_seconds": 1.0,
        "learning_rate": 3e-3,
        "valid_fraction": 0.2,
        "cluster_fraction": 1.0,
        "log_every": 2,
        "save_every": 2,
        "device": "cpu",
        "precision": "float32",
        "tensorboard": False,
    }
    return PretrainConfig.from_mapping({**values, **changes})
