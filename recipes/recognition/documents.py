"""How a recogniser fares on documents of any length, and on a stream that it hears in chunks."""

import json
from pathlib import Path

import numpy as np
import torch

from mambavox.asr.decoding import greedy_search
from mambavox.asr.metrics import TranscriptScores, score_transcripts
from mambavox.asr.recognizer import SpeechRecognizer
from mambavox.asr.text import normalize_text
from mambavox.data import Waveform, read_audio
from mambavox.hubert import stream_in_chunks

LENGTHS = (1, 2, 4, 8, 16, 32)
"""Recordings that are joined to a document."""
CHUNKS = ((0.32, 0.16), (0.64, 0.32), (1.28, 0.64), (2.56, 1.28))
"""Seconds of a chunk and of what it waits for behind it."""
RATE = 16_000

Said = tuple[Waveform, str]
"""A waveform at 16 kHz and its normalised transcript."""


def recordings(manifest: Path, split: str) -> list[Said]:
    """All of a part of a manifest, in its order."""
    rows = (json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines())
    return [
        (read_audio(manifest.parent / row["path"], RATE), normalize_text(row["text"], "en"))
        for row in rows
        if row["split"] == split
    ]


def readings(folder: Path) -> tuple[list[Said], list[Said]]:
    """Readings of minutes: their pieces, and the wholes."""
    pieces, wholes = [], []
    for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        waveform = read_audio(folder / row["path"], RATE)
        parts = [(part, normalize_text(part["text"], "en")) for part in row["segments"]]
        pieces += [(waveform[round(part["start"] * RATE) : round(part["end"] * RATE)], text) for part, text in parts]
        wholes.append((waveform, " ".join(text for _, text in parts)))
    return pieces, wholes


def join(said: list[Said], length: int) -> list[Said]:
    """Documents of some recordings each, one after the other; the last may have fewer."""
    groups = [said[start : start + length] for start in range(0, len(said), length)]
    return [(np.concatenate([sound for sound, _ in group]), " ".join(text for _, text in group)) for group in groups]


def score(recognizer: SpeechRecognizer, said: list[Said]) -> TranscriptScores:
    """Of documents, each heard as a whole and alone."""
    heard = [recognizer.transcribe([waveform])[0].text for waveform, _ in said]
    return score_transcripts([text for _, text in said], heard)


@torch.inference_mode()
def score_chunks(recognizer: SpeechRecognizer, said: list[Said], chunk: float, look_ahead: float) -> TranscriptScores:
    """Of recordings that the model, which looks ahead, hears in chunks."""
    vocabulary, heard = recognizer.vocabulary, []
    for waveform, _ in said:
        samples = torch.from_numpy(waveform)[None].to(recognizer.model.device)
        logits = torch.cat(list(stream_in_chunks(recognizer.model, [samples], chunk, look_ahead)), dim=1)
        ids = greedy_search(logits[0].float().log_softmax(-1).cpu().numpy(), vocabulary.blank)
        heard.append(vocabulary.text(ids))
    return score_transcripts([text for _, text in said], heard)
