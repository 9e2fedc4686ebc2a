"""Tiny Mamba-HuBERTs: a frame in 20 samples, two layers."""

import torch

from mambavox.hubert import ENCODER_KINDS, MambaHubertConfig

KINDS = tuple(ENCODER_KINDS)
CAUSAL_KINDS = tuple(name for name, kind in ENCODER_KINDS.items() if kind.causal)
HYBRID = ("mamba", "causal-transformer", "mamba2", "mamba-mlp")


def tiny_config(encoder="mamba", **overrides):
    layers = 2 if isinstance(encoder, str) else len(encoder)
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "mamba_intermediate_size": 24,
        "d_state": 4,
        "expand": 2,
        "headdim": 8,
        "conv_dim": (8, 8, 8),
        "conv_kernel": (10, 3, 3),
        "conv_stride": (5, 2, 2),
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
        "num_clusters": 12,
        "proj_size": 8,
        "classifier_proj_size": 8,
        "layerdrop": 0.0,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "feat_proj_dropout": 0.0,
        "final_dropout": 0.0,
    }
    return MambaHubertConfig(encoder=encoder, **{**sizes, **overrides})


def padded_batch(lengths, samples, padding=0.0):
    """Waveforms of some lengths with their attention mask; ``padding`` fills what lies behind them."""
    waveforms = torch.randn(len(lengths), samples)
    mask = (torch.arange(samples) < torch.tensor(lengths)[:, None]).long()
    return torch.where(mask.bool(), waveforms, torch.tensor(padding)), mask
