"""Train nano-whisper, a multilingual Whisper of under 12 MB in float16, from scratch.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 recipes/recognition/nano_whisper.py --data ../shared/data \
        --output runs/nano-whisper

It hears synthesised phrases in twelve languages (espeak-ng: voices, variants, rates, pitches, noise) and real speech,
and learns the format of Whisper: language, task and, half of the time, timestamps of beginning and end. Five further
languages (``speech.UNSEEN``) are kept for adaptation. The same command continues an interrupted training. Each process
has batches of its own, and their gradients are averaged; without ``torchrun`` there is one.

To learn on a CPU in an hour or two, it is told of synthesised speech what is known: a linear head on the encoder,
dropped in the end, learns which phone is heard in each frame, and two heads of the decoder's cross-attention
(``ALIGNED``) learn where the next token is heard, as guided attention does (Tachibana et al., 2018). These two then
tell the times of words. It begins with few words without noise, and sees windows that end with the longest clip of a
batch, but for some batches and the last updates, which are whole windows, as in use.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from checkpoints import load_state, save_state
from phones import PHONES, phone_classes, phone_loss
from speech import RATE, SEEN, Speech, Spoken, Texts, real_speech
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from mambavox.asr.metrics import TranscriptScores, score_transcripts
from mambavox.asr.text import normalize_text

SECONDS = 12
"""The window; Whisper's is 30."""
VOCABULARY = 1024
MOST_BYTES = 12_000_000
ALIGNED = ((1, 0), (2, 0))
"""Layer and head of the cross-attention that follows what is heard."""
ALIGNED_FRAMES = 5.0
"""Deviation, in frames of 20 ms, that this attention may have."""
PHONES_WEIGHT, ALIGNED_WEIGHT = 0.5, 0.2
EASY = 0.1
"""Share of the updates with few words without noise."""
WHOLE = 0.025
"""Share of the updates, the last ones, with whole windows alone."""
EASY_WORDS = 3
EASY_SECONDS = 4.0
LOG_STEPS = 100
"""Updates between lines of figures and checkpoints."""
_TASKS = ("<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>")


def make_tokenizer(sentences: list[str], languages: tuple[str, ...], size: int = VOCABULARY) -> WhisperTokenizer:
    """Byte pairs of some sentences, and Whisper's special tokens for some languages and the window."""
    pairs = Tokenizer(BPE())
    pairs.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(vocab_size=size, initial_alphabet=sorted(ByteLevel.alphabet()), show_progress=False)
    pairs.train_from_iterator([f" {sentence}" for sentence in sentences], trainer)
    model: dict[str, Any] = json.loads(pairs.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = WhisperTokenizer(vocab=model["vocab"], merges=merges)
    special = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in languages), *_TASKS]
    tokenizer.add_tokens([AddedToken(word, special=True, normalized=False) for word in special], special_tokens=True)
    stamps = [f"<|{0.02 * step:.2f}|>" for step in range(50 * SECONDS + 1)]
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in stamps])
    return tokenizer


def make_model(tokenizer: WhisperTokenizer, languages: tuple[str, ...]) -> WhisperForConditionalGeneration:
    """A new model for a tokenizer."""
    number = tokenizer.convert_tokens_to_ids
    end = number("<|endoftext|>")
    names = {"pad_token_id": end, "bos_token_id": end, "eos_token_id": end}
    names["decoder_start_token_id"] = number("<|startoftranscript|>")
    config = WhisperConfig(
        d_model=192,
        encoder_layers=5,
        decoder_layers=4,
        encoder_attention_heads=3,
        decoder_attention_heads=3,
        encoder_ffn_dim=768,
        decoder_ffn_dim=768,
        num_mel_bins=80,
        max_source_positions=50 * SECONDS,
        max_target_positions=224,
        vocab_size=len(tokenizer),
        dropout=0.0,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        **names,
    )
    model = WhisperForConditionalGeneration._from_config(config, attn_implementation="eager")
    # transformers' deviation of 0.02 is made for wider models.
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and "embed_positions" not in name and "embed_tokens" not in name:
            torch.nn.init.xavier_uniform_(parameter)
    model.generation_config = GenerationConfig(
        is_multilingual=True,
        lang_to_id={f"<|{code}|>": number(f"<|{code}|>") for code in languages},
        task_to_id={"translate": number("<|translate|>"), "transcribe": number("<|transcribe|>")},
        no_timestamps_token_id=number("<|notimestamps|>"),
        prev_sot_token_id=number("<|startofprev|>"),
        alignment_heads=[list(head) for head in ALIGNED],
        max_length=224,
        **names,
    )
    size = 2 * sum(parameter.numel() for parameter in model.parameters())
    assert size <= MOST_BYTES, f"{size} bytes in float16"
    return model


class Batches(IterableDataset[dict[str, Tensor]]):
    """Batches of phrases of like length.

    Args:
        speech: the phrases.
        processor: of the model.
        batch_size: phrases in a batch.
        whole: how often a batch has the whole window, and not just its longest phrase.
        timestamps: how often a transcript has those of its beginning and end.
        seed: of what has timestamps and whole windows.
    """

    def __init__(
        self,
        speech: Speech,
        processor: WhisperProcessor,
        batch_size: int,
        whole: float = 0.08,
        timestamps: float = 0.5,
        seed: int = 0,
    ) -> None:
        self.speech, self.batch_size = speech, batch_size
        self.extractor, self.tokenizer = processor.feature_extractor, processor.tokenizer
        self.whole, self.timestamps = whole, timestamps
        self.generator = np.random.default_rng(seed)
        # The same in all processes, which then have batches of like length and need not wait for each other.
        self.order = np.random.default_rng(0)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        phrases = iter(self.speech)
        while True:
            pool = [next(phrases) for _ in range(8 * self.batch_size)]
            pool.sort(key=lambda spoken: len(spoken.waveform))
            for number in self.order.permutation(8):
                yield self.batch(pool[number * self.batch_size : (number + 1) * self.batch_size])

    def batch(self, items: list[Spoken]) -> dict[str, Tensor]:
        """Features; labels, before which the model puts the decoder's first token; and what is heard when.

        That is the frame in which each token is heard (``times``), and the class of each frame's phone (``phones``);
        less than 0 where it is not known.
        """
        whole = self.order.random() < self.whole
        extracted = self.extractor(
            [item.waveform for item in items],
            sampling_rate=RATE,
            return_tensors="pt",
            padding="max_length" if whole else "longest",
            pad_to_multiple_of=None if whole else RATE // 2,
        )
        frames = extracted.input_features.shape[-1] // 2
        found = [self._tokens(item) for item in items]
        rows = {
            "labels": ([tokens for tokens, _ in found], torch.long),
            "times": ([times for _, times in found], torch.float32),
            "phones": ([phone_classes(item, frames) for item in items], torch.long),
        }
        padded = {
            name: torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(row, dtype=kind) for row in values], batch_first=True, padding_value=-100
            )
            for name, (values, kind) in rows.items()
        }
        return {"input_features": extracted.input_features, **padded}

    def _tokens(self, item: Spoken) -> tuple[list[int], list[float]]:
        begin, end = "<|notimestamps|>", []
        if self.generator.random() < self.timestamps:
            begin, end = "<|0.00|>", [f"<|{0.02 * round(50 * len(item.waveform) / RATE):.2f}|>"]
        number = self.tokenizer.convert_tokens_to_ids
        before = number([f"<|{item.language}|>", "<|transcribe|>", begin])
        after = [*number(end), self.tokenizer.eos_token_id]
        said = self.tokenizer(f" {item.text}", add_special_tokens=False).input_ids
        times = [-100.0] * len(said)
        if item.letters:
            # Where each token's middle is in the text, which a space was put before.
            sizes = np.array([len(token) for token in self.tokenizer.convert_ids_to_tokens(said)])
            middles = (np.cumsum(sizes) - sizes / 2) / sizes.sum() * (len(item.text) + 1) - 1
            places, seconds = zip(*item.letters, strict=True)
            times = (50 * np.interp(middles, places, seconds)).tolist()
        return [*before, *said, *after], [*[-100.0] * len(before), *times, *[-100.0] * len(after)]


def window(model: Any, frames: int) -> None:
    """Let the encoder take windows of some frames of features."""
    positions = frames // 2
    model.model.encoder.embed_positions.num_embeddings = model.config.max_source_positions = positions


def losses(model: Any, head: torch.nn.Linear, batch: dict[str, Tensor]) -> Tensor:
    """``(3,)``: the model's own loss, that of the phones, and that of the aligned attention."""
    features = batch["input_features"]
    window(model, features.shape[-1])
    encoded = model.model.encoder(features)
    output = model(encoder_outputs=encoded, labels=batch["labels"], output_attentions=True)
    window(model, 100 * SECONDS)
    hidden = encoded.last_hidden_state
    phones = phone_loss(head, hidden, batch["phones"])
    timed = batch["times"] >= 0
    frame = torch.arange(hidden.shape[1], device=hidden.device)
    near = torch.exp(-0.5 * ((frame - batch["times"][timed][:, None]) / ALIGNED_FRAMES) ** 2)
    weights = torch.stack([output.cross_attentions[layer][:, place][timed] for layer, place in ALIGNED]).float()
    aligned = -(weights * near).sum(-1).clamp(min=1e-6).log().sum() / (len(ALIGNED) * timed.sum().clamp(min=1))
    return torch.stack((output.loss.float(), phones, aligned))


def average_gradients(learners: torch.nn.Module) -> None:
    """Give all processes the mean of their gradients."""
    gradients = [parameter.grad for parameter in learners.parameters() if parameter.grad is not None]
    vector_to_parameters(reduce(parameters_to_vector(gradients), "mean"), gradients)


@torch.inference_mode()
def error_rates(model: Any, processor: Any, spoken: list[Spoken], batch_size: int = 16) -> dict[str, TranscriptScores]:
    """Scores of greedy transcripts by language, of synthesised (whose phones are known) and real recordings apart."""
    device = model.device
    by_language: dict[str, tuple[list[str], list[str]]] = {}
    for start in range(0, len(spoken), batch_size):
        items = spoken[start : start + batch_size]
        waveforms = [item.waveform for item in items]
        features = processor.feature_extractor(waveforms, sampling_rate=RATE, return_tensors="pt").input_features
        languages = [f"<|{item.language}|>" for item in items]
        tokens = model.generate(features.to(device), language=languages, task="transcribe", max_new_tokens=100)
        for item, text in zip(items, processor.batch_decode(tokens, skip_special_tokens=True), strict=True):
            said, heard = by_language.setdefault(item.language + ("" if item.phones else ", real"), ([], []))
            said.append(item.text)
            heard.append(normalize_text(text, item.language))
    return {
        name: score_transcripts(said, heard, language=name[:2]) for name, (said, heard) in sorted(by_language.items())
    }


def train(arguments: argparse.Namespace) -> dict[str, TranscriptScores]:
    """Train, write the model and return its error rates."""
    torch.manual_seed(arguments.seed)
    rank = PartialState(cpu=arguments.device == "cpu").process_index
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    languages = tuple(SEEN)
    texts = Texts.read(arguments.data / "texts", languages)
    real = real_speech(arguments.data, "train", SECONDS)
    state = output / "state.pt"
    if state.is_file():
        # What it has learned to write are these tokens, whatever the texts are by now.
        processor = WhisperProcessor.from_pretrained(output)
    else:
        everything = [text for sentences in texts.sentences.values() for text in sentences] + [
            text for _, text, _ in real
        ]
        tokenizer = make_tokenizer(everything, languages)
        processor = WhisperProcessor(WhisperFeatureExtractor(feature_size=80, chunk_length=SECONDS), tokenizer)
        if rank == 0:
            processor.save_pretrained(output)
    device = torch.device(arguments.device)
    model = make_model(processor.tokenizer, languages).to(device)
    head = torch.nn.Linear(model.config.d_model, PHONES).to(device)
    learners = torch.nn.ModuleDict({"model": model, "head": head})
    optimizer = torch.optim.AdamW(
        learners.parameters(), lr=arguments.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    warmup = max(arguments.steps // 20, 1)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min((step - warmup) / max(arguments.steps - warmup, 1), 1)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    trained = {"learners": learners, "optimizer": optimizer, "schedule": schedule}
    step = load_state(state, **trained)
    if step:
        print(f"continues at step {step}")

    easy_end, last = round(EASY * arguments.steps), round((1 - WHOLE) * arguments.steps)

    def seed() -> int:
        # Another stream for what comes after an interruption: the one before has been heard.
        return int(arguments.seed + step + arguments.steps * rank)

    def batches() -> Iterator[dict[str, Tensor]]:
        options: dict[str, Any] = {"real_share": arguments.real_share, "seed": seed()}
        size, whole = arguments.batch_size, 0.08 if step < last else 1.0
        if step < easy_end:
            options |= {"most_words": EASY_WORDS, "noise": 0.0, "seconds": EASY_SECONDS}
            size, whole = 2 * size, 0.0
        speech = Speech(texts, SEEN, real, **{"seconds": SECONDS, **options})
        made = Batches(speech, processor, size, whole=whole, seed=seed())
        return iter(DataLoader(made, None, num_workers=arguments.num_workers))

    stream = batches()
    learners.train()
    weights = torch.tensor((1.0, PHONES_WEIGHT, ALIGNED_WEIGHT), device=device)
    totals, began = torch.zeros(3), time.perf_counter()
    while step < arguments.steps:
        if step in (easy_end, last):
            stream = batches()
        batch = {name: tensor.to(device) for name, tensor in next(stream).items()}
        with torch.autocast(device.type, torch.bfloat16):
            found = losses(model, head, batch)
        (weights * found).sum().backward()
        average_gradients(learners)
        torch.nn.utils.clip_grad_norm_(learners.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        step += 1
        totals += found.detach().cpu()
        if rank == 0 and (step % LOG_STEPS == 0 or step == arguments.steps):
            loss, phones, aligned = (totals / (step % LOG_STEPS or LOG_STEPS)).tolist()
            figures = f"loss {loss:.3f}  phones {phones:.3f}  alignment {aligned:.3f}"
            print(f"step {step}/{arguments.steps}  {figures}  {time.perf_counter() - began:.0f} s", flush=True)
            totals.zero_()
            save_state(state, step, **trained)
    if rank > 0:
        return {}
    rates = score(model, processor, arguments)
    model.half().save_pretrained(output)
    return rates


def score(model: Any, processor: Any, arguments: argparse.Namespace) -> dict[str, TranscriptScores]:
    """Print and return the error rates of a model on what is held out."""
    rates = error_rates(model.eval(), processor, held_out(arguments.data, arguments.test_phrases, arguments.seed))
    for name, scores in rates.items():
        print(f"{name}: WER {100 * scores.wer.rate:.1f} %, CER {100 * scores.cer.rate:.1f} %")
    return rates


def held_out(data: Path, phrases: int, seed: int) -> list[Spoken]:
    """Synthesised phrases of held-out sentences, a number of each language, and the real valid recordings."""
    texts = Texts.read(data / "texts", tuple(SEEN), held_out=True)
    found = []
    for language, voice in SEEN.items():
        if voice is not None:
            stream = iter(Speech(texts, {language: voice}, [], seconds=SECONDS, seed=seed + 1))
            found += [next(stream) for _ in range(phrases)]
    from mambavox.data import read_audio

    return found + [Spoken(read_audio(path, RATE), *rest) for path, *rest in real_speech(data, "valid", SECONDS)]


def main() -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of texts and of real transcribed speech")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=7500)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--real-share", type=float, default=0.1)
    parser.add_argument("--test-phrases", type=int, default=20)
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--score", action="store_true", help="train nothing: print the error rates of the model there is"
    )
    arguments = parser.parse_args()
    if arguments.score:
        model = WhisperForConditionalGeneration.from_pretrained(arguments.output, dtype=torch.float32)
        score(model, WhisperProcessor.from_pretrained(arguments.output), arguments)
    else:
        train(arguments)


if __name__ == "__main__":
    main()
