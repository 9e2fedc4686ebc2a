"""A recogniser with random weights, which change neither time nor memory."""

from pathlib import Path

import torch
from transformers import Wav2Vec2FeatureExtractor

from mambavox.asr.tokenizer import train_tokenizer
from mambavox.hubert import MambaHubertConfig, MambaHubertForCTC

_LETTERS = "a b"  # few, so that words are short


def save_random_recognizer(folder: str | Path, encoder: str = "mamba") -> None:
    """Save a nano recogniser whose random frames differ in their letters.

    Args:
        folder: for model, tokenizer and extractor.
        encoder: kind of the layers.

    Raises:
        ConfigError: there is no such kind.
    """
    tokenizer = train_tokenizer([_LETTERS])
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        config = MambaHubertConfig.nano(encoder, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
        model = MambaHubertForCTC(config)
        model.lm_head.weight.mul_(20)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True).save_pretrained(folder)
