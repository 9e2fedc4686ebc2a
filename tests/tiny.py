"""Tiny random backbones of every family, and tiny recordings."""

import json
from pathlib import Path

import numpy as np
import soundfile
import torch
from tokenizers import AddedToken
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    GenerationConfig,
    HubertConfig,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

FAMILIES = ("ast", "whisper", "wav2vec2", "hubert", "wavlm")

_WAVEFORM = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (8, 8, 8),
    "conv_kernel": (10, 8, 4),
    "conv_stride": (5, 8, 4),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 8,
}


def save_backbone(family: str, folder: Path) -> Path:
    """Write a bare pre-trained model (no classification head) of random weights and its feature extractor."""
    torch.manual_seed(0)
    if family == "ast":
        model = ASTModel(
            ASTConfig(
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=32,
                num_mel_bins=32,
                max_length=96,
                patch_size=16,
                frequency_stride=16,
                time_stride=8,
            )
        )
        # The table of a new AST is zero, which no test could tell from a lost one.
        torch.nn.init.normal_(model.embeddings.position_embeddings, std=0.05)
        extractor = ASTFeatureExtractor(num_mel_bins=32, max_length=96)
    elif family == "whisper":
        model = WhisperForConditionalGeneration(
            WhisperConfig(
                d_model=16,
                encoder_layers=2,
                decoder_layers=1,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=32,
                decoder_ffn_dim=32,
                num_mel_bins=16,
                max_source_positions=50,
                vocab_size=32,
                classifier_proj_size=8,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                decoder_start_token_id=1,
            )
        )
        extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    else:
        config, model_class = {
            "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model),
            "hubert": (HubertConfig, HubertModel),
            "wavlm": (WavLMConfig, WavLMModel),
        }[family]
        # One family without attention mask, the way the released base models are; the others with it.
        masked = family != "wav2vec2"
        norm = {"feat_extract_norm": "layer", "do_stable_layer_norm": True} if masked else {}
        model = model_class(config(**_WAVEFORM, **norm))
        extractor = Wav2Vec2FeatureExtractor(return_attention_mask=masked, do_normalize=True)
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


def write_recordings(folder: Path, per_class: int = 6, seconds: float = 0.3) -> Path:
    """Write two classes of noisy tones with a manifest: a third each to train, valid and test."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    rows = []
    for label, frequency in (("low", 300.0), ("high", 2500.0)):
        for number in range(per_class):
            samples = round(16_000 * seconds * (0.8 + 0.2 * number / per_class))
            tone = np.sin(2 * np.pi * frequency * np.arange(samples) / 16_000)
            path = f"{label}_{number}.wav"
            soundfile.write(folder / path, 0.3 * tone + 0.1 * generator.standard_normal(samples), 16_000)
            rows.append({"path": path, "label": label, "split": ("train", "valid", "test")[number % 3]})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>")
AFTER = ("<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>")


def whisper_tokenizer() -> WhisperTokenizer:
    """Whisper's tokens in small: bytes, two languages, tasks, timestamps up to two seconds."""
    words = {character: index for index, character in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = WhisperTokenizer(vocab=words, merges=[])
    tokenizer.add_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL + AFTER], True)
    tokenizer.add_tokens([AddedToken(f"<|{0.02 * step:.2f}|>", normalized=False) for step in range(101)])
    return tokenizer


def save_whisper(folder: Path, seconds: int = 1) -> Path:
    """Write a tiny random multilingual Whisper for speech recognition, with its processor."""
    torch.manual_seed(0)
    tokenizer = whisper_tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL + AFTER}
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    names = {"pad_token_id": end, "bos_token_id": end, "eos_token_id": end, "decoder_start_token_id": start}
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            d_model=16,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            num_mel_bins=16,
            max_source_positions=50 * seconds,
            max_target_positions=96,
            vocab_size=len(tokenizer),
            suppress_tokens=None,
            begin_suppress_tokens=None,
            **names,
        )
    )
    model.generation_config = GenerationConfig(
        is_multilingual=True,
        lang_to_id={token: ids[token] for token in ("<|en|>", "<|de|>")},
        task_to_id={"translate": ids["<|translate|>"], "transcribe": ids["<|transcribe|>"]},
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        max_length=96,
        **names,
    )
    model.save_pretrained(folder)
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=seconds)
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
    return folder
