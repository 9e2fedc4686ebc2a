"""A tiny Mamba-HuBERT and three spoken clips."""

import json

import pytest
import soundfile
from tiny_hubert import tiny_config
from transformers import Wav2Vec2FeatureExtractor

from mambavox.data import synth
from mambavox.hubert import MambaHubertForCTC

SENTENCES = ("go left", "stop here", "seven cats")


@pytest.fixture(scope="session")
def spoken(tmp_path_factory):
    """Folder of three synthesised clips, each in train, valid and test, and their transcripts."""
    pytest.importorskip("espeakng_loader", reason="the extra synth is not installed")
    folder = tmp_path_factory.mktemp("spoken")
    rows = []
    for part in ("train", "valid", "test"):
        for number, sentence in enumerate(SENTENCES):
            path = f"{part}_{number}.wav"
            soundfile.write(folder / path, synth.synthesize(sentence, rate=250), synth.SAMPLING_RATE)
            rows.append({"path": path, "text": sentence.title() + "!", "split": part, "speaker": "one"})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


@pytest.fixture(scope="session")
def tiny_mamba(tmp_path_factory):
    """Folder of a tiny random Mamba-HuBERT with a front end of 20 ms."""
    import torch

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "mamba"
    config = tiny_config(
        hidden_size=64, conv_dim=(32, 32, 32), conv_kernel=(10, 8, 8), conv_stride=(5, 8, 8), feature_grad_mult=1.0
    )
    MambaHubertForCTC(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=True).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_mms(backbone, tmp_path_factory):
    """Folder of a tiny recogniser of the kind of MMS: wav2vec2 with adapters of a language of its own, and a head."""
    from transformers import AutoConfig, Wav2Vec2ForCTC

    folder = tmp_path_factory.mktemp("models") / "mms"
    config = AutoConfig.from_pretrained(backbone("wav2vec2"))
    config.update({"feat_extract_norm": "layer", "do_stable_layer_norm": True, "adapter_attn_dim": 4, "vocab_size": 11})
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=True).save_pretrained(folder)
    return str(folder)
