"""Train English recognisers on pre-trained nano Mamba-HuBERTs: causal Mamba against causal Transformer, by CTC.

    python recipes/recognition/nano_recognizer.py --data ../shared/data --output runs/ctc

With ``--pretrained runs/nano-hubert --encoders mamba causal-transformer ext-bimamba`` a bidirectional one, too; with
``--score nano-mamba-ctc`` in place of ``--output`` the error rates of a recogniser that there is.

They hear what english.py makes: synthesised phrases without end, LibriSpeech recordings and wake words. To learn on a
CPU in little more than an hour, they are told of synthesised speech what is known: a linear head, dropped in the end,
learns which phone is heard in each frame. Tested are LibriSpeech (``valid``, ``test_other``), synthesised phrases of
held-out sentences, and documents: recordings of ``test_other`` joined, and a reading of minutes, in pieces and as a
whole. The bidirectional one shows what hearing a stream in chunks costs. The same command continues where it was
interrupted.
"""

import argparse
import json
import statistics
import string
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import documents
import english
import numpy as np
import torch
from checkpoints import load_state, save_state
from documents import CHUNKS, LENGTHS, RATE, Said
from matplotlib.figure import Figure
from phones import PHONES, phone_classes, phone_loss
from speech import Spoken
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import AutoFeatureExtractor

from mambavox import assets
from mambavox.asr.metrics import TranscriptScores
from mambavox.asr.model import load_ctc_model
from mambavox.asr.recognizer import SpeechRecognizer
from mambavox.asr.tokenizer import encode, train_tokenizer
from mambavox.files import to_json, write_atomically
from mambavox.plotting import add_inner_legend, plain_log_axis, save, style_axes, styles
from mambavox.training.ctc.objective import tri_stage
from mambavox.training.parameter_groups import parameter_groups

CAUSAL = {"mamba": "nano-mamba-hubert", "causal-transformer": "nano-transformer-hubert"}
"""Causal encoders, and the embedded models that they begin with where no others are given."""
BIDIRECTIONAL = "ext-bimamba"
LEARNING_RATES = {"mamba": 1e-3, "causal-transformer": 4e-4, "ext-bimamba": 1e-3}
"""Peaks. At 1e-3 the Transformer, whose layers are normalised behind their sums, learns slowly and not steadily."""
SEEDS = (0, 1, 2)
"""Of the causal ones; the bidirectional one has the first."""
LETTERS = string.ascii_lowercase + "'"
POOL = 48
"""Recordings of which batches are made, by their lengths."""
BATCH_SECONDS = 24.0
"""Of a batch, with its padding."""
DELAY = 0.06
"""Seconds that the heads of phones may listen on."""
PHONES_WEIGHT = 1.0
DROPOUTS = (
    "activation_dropout",
    "attention_dropout",
    "feat_proj_dropout",
    "final_dropout",
    "hidden_dropout",
    "layerdrop",
)
"""What is off: there is no end of speech to hear, and little time, so that nothing is gained by hiding some of it."""
LOG_STEPS = 100
"""Updates between lines of figures and checkpoints."""
TEST_PHRASES = 400

Rates = dict[str, dict[str, float]]
"""Word and character error rates (``wer``, ``cer``) by what was recognised."""


class Batches(IterableDataset[dict[str, Any]]):
    """Batches of recordings of like length.

    Args:
        speech: the recordings.
        tokenizer: of the model.
        frames: frames of the model by samples.
    """

    def __init__(self, speech: english.English, tokenizer: Any, frames: Callable[[int], int]) -> None:
        self.speech, self.tokenizer, self.frames = speech, tokenizer, frames

    def __iter__(self) -> Iterator[dict[str, Any]]:
        speech, order = iter(self.speech), np.random.default_rng(self.speech.seed)
        while True:
            pool = sorted((next(speech) for _ in range(POOL)), key=lambda spoken: len(spoken.waveform))
            batches: list[list[Spoken]] = [[]]
            for spoken in pool:
                if (len(batches[-1]) + 1) * len(spoken.waveform) > BATCH_SECONDS * RATE and batches[-1]:
                    batches.append([])
                batches[-1].append(spoken)
            for number in order.permutation(len(batches)):
                yield self.batch(batches[number])

    def batch(self, items: list[Spoken]) -> dict[str, Any]:
        """Padded waveforms with their mask, tokens, and the class of each frame's phone."""
        lengths = torch.tensor([len(item.waveform) for item in items])
        samples = _padded([torch.from_numpy(item.waveform) for item in items], 0.0)
        shift = DELAY - 400 / RATE  # a frame has heard 400 samples from its first on
        frames = [self.frames(len(item.waveform)) for item in items]
        phones = [torch.tensor(phone_classes(item.moved(shift), n)) for item, n in zip(items, frames, strict=True)]
        return {
            "input_values": samples,
            "attention_mask": (torch.arange(samples.shape[1]) < lengths[:, None]).long(),
            "labels": _padded([torch.tensor(encode(self.tokenizer, item.text)) for item in items], -100),
            "phones": _padded(phones, -100),
        }


def _padded(rows: list[Tensor], value: float) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def losses(model: Any, head: torch.nn.Linear, batch: dict[str, Tensor]) -> Tensor:
    """``(2,)``: of the letters (CTC, for each letter) and of the phones (cross entropy, for each frame)."""
    phones = batch.pop("phones")
    output = model(**batch, output_hidden_states=True)
    return torch.stack((output.loss.float(), phone_loss(head, output.hidden_states[-1], phones)))


def train(run: Path, pretrained: str, seed: int, learning_rate: float, arguments: argparse.Namespace) -> None:
    """Train a recogniser and write it into a folder; a training that was interrupted is continued."""
    if (run / "model.safetensors").is_file():
        return
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    tokenizer = train_tokenizer([LETTERS])
    model = load_ctc_model(
        pretrained, vocab_size=len(tokenizer), blank=tokenizer.pad_token_id, **dict.fromkeys(DROPOUTS, 0.0)
    )
    head = torch.nn.Linear(model.config.hidden_size, PHONES)
    learners = torch.nn.ModuleDict({"model": model, "head": head})
    optimizer = torch.optim.AdamW(parameter_groups(learners, 0.01), lr=learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, tri_stage(arguments.steps, 0.05, 0.4))
    trained = {"learners": learners, "optimizer": optimizer, "schedule": schedule}
    step = load_state(run / "state.pt", **trained)
    # Another stream for what comes after an interruption: the one before has been heard.
    speech = english.English(arguments.data, arguments.real_share, 10_000 * seed + step)
    frames = model._get_feat_extract_output_lengths
    stream = iter(DataLoader(Batches(speech, tokenizer, frames), None, num_workers=arguments.num_workers))
    learners.train()
    totals, began = torch.zeros(2), time.perf_counter()
    while step < arguments.steps:
        batch = next(stream)
        with torch.autocast("cpu", torch.bfloat16):
            found = losses(model, head, batch)
        (found[0] + PHONES_WEIGHT * found[1]).backward()
        torch.nn.utils.clip_grad_norm_(learners.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        step += 1
        totals += found.detach()
        if step % LOG_STEPS == 0 or step == arguments.steps:
            letters, phones = (totals / (step % LOG_STEPS or LOG_STEPS)).tolist()
            figures = f"letters {letters:.3f}  phones {phones:.3f}  {time.perf_counter() - began:.0f} s"
            print(f"{run.name}: {step}/{arguments.steps}  {figures}", flush=True)
            totals.zero_()
            save_state(run / "state.pt", step, **trained)
    tokenizer.save_pretrained(run)
    AutoFeatureExtractor.from_pretrained(assets.locate(pretrained)).save_pretrained(run)
    model.save_pretrained(run)


def test(run: Path, data: Path, *, chunked: bool) -> Rates:
    """Error rates of a run, computed once."""
    kept = run / "rates.json"
    if kept.is_file():
        found: Rates = json.loads(kept.read_text(encoding="utf-8"))
        return found
    rates = score(run, data, chunked=chunked)
    write_atomically(kept, to_json(rates))
    return rates


def score(model: str | Path, data: Path, *, chunked: bool = False) -> Rates:
    """Error rates of a recogniser on recordings, on documents, and in chunks.

    Args:
        model: run folder, or an embedded recogniser.
        data: folder of the recordings and texts.
        chunked: hear ``test_other`` in chunks, too; for models that look ahead.
    """
    recognizer = SpeechRecognizer.from_pretrained(model, device="cpu")
    manifest = data / "librispeech_subset" / "manifest.jsonl"
    said = documents.recordings(manifest, "test_other")
    phrases: dict[str, list[Said]] = {"espeak-ng": [], "flite": []}
    for number, spoken in enumerate(english.held_out(data, TEST_PHRASES)):
        phrases[("espeak-ng", "flite")[number % 2]].append((spoken.waveform, spoken.text))
    scores: dict[str, TranscriptScores] = {
        "valid": documents.score(recognizer, documents.recordings(manifest, "valid")),
        **{f"phrases of {name}": documents.score(recognizer, items) for name, items in phrases.items()},
    }
    if chunked:
        for chunk, look_ahead in CHUNKS:
            scores[_chunk(chunk, look_ahead)] = documents.score_chunks(recognizer, said, chunk, look_ahead)
    for length in LENGTHS:
        scores[_joined(length)] = documents.score(recognizer, documents.join(said, length))
    pieces, wholes = documents.readings(data / "longform_en")
    scores["reading, pieces"] = documents.score(recognizer, pieces)
    scores["reading, whole"] = documents.score(recognizer, wholes)
    return {name: score.rates for name, score in scores.items()}


def _joined(length: int) -> str:
    return f"test_other, {length} joined"


def _chunk(chunk: float, look_ahead: float) -> str:
    return f"test_other, chunks of {chunk:g} + {look_ahead:g} s"


def table(found: dict[str, list[Rates]]) -> str:
    """Markdown: a line for each thing recognised, a column for each encoder and rate, mean and deviation over seeds."""
    columns = [(encoder, rate) for encoder in found for rate in ("wer", "cer")]
    lines = ["| % | " + " | ".join(f"{encoder} {rate.upper()}" for encoder, rate in columns) + " |"]
    lines.append("|---|" + "--:|" * len(columns))
    names = dict.fromkeys(name for runs in found.values() for name in runs[0])
    for name in names:
        cells = [_cell([run[name][rate] for run in found[encoder] if name in run]) for encoder, rate in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(rates: list[float]) -> str:
    if not rates:
        return ""
    percent = [100 * rate for rate in rates]
    deviation = f" ± {statistics.stdev(percent):.1f}" if len(percent) > 1 else ""
    return f"{statistics.mean(percent):.1f}{deviation}"


def plot(found: dict[str, list[Rates]], seconds: Callable[[int], float], path: Path) -> None:
    """Error rates by the length of documents.

    Args:
        found: by encoder, of each seed.
        seconds: mean length of a document of some recordings.
        path: of the picture.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, rate in zip(figure.subplots(1, 2), ("wer", "cer"), strict=True):
        looks = styles(list(found))
        for encoder, runs in found.items():
            values = [[100 * run[_joined(length)][rate] for run in runs] for length in LENGTHS]
            axes.errorbar(
                [seconds(length) for length in LENGTHS],
                [statistics.mean(value) for value in values],
                yerr=[statistics.stdev(value) if len(value) > 1 else 0.0 for value in values],
                color=looks[encoder].color,
                marker=looks[encoder].marker,
                capsize=2,
                label=encoder,
            )
        # From zero: a difference that seeds make must not fill the plot.
        axes.set(xscale="log", xlabel="seconds of a document", ylabel=f"{rate.upper()} in %", ylim=(0, None))
        plain_log_axis(axes.xaxis)
        style_axes(axes)
        add_inner_legend(axes)
    save(figure, path)


def main() -> None:
    """Read the arguments, train and test what is not done yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pretrained", type=Path, help="folder of recipes/nano_hubert/pretrain.py (default: embedded)")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--output", type=Path, help="folder of the runs")
    what.add_argument("--score", metavar="MODEL", help="train nothing: print the error rates of a recogniser")
    parser.add_argument("--encoders", nargs="+", choices=(*CAUSAL, BIDIRECTIONAL), default=list(CAUSAL))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--steps", type=int, default=5000, help="updates, each of about 20 s of speech")
    parser.add_argument("--learning-rate", type=float, help="peak; default: of the encoder")
    parser.add_argument("--real-share", type=float, default=0.2, help="how often a recording is a real one")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that synthesise")
    arguments = parser.parse_args()
    if arguments.score:
        print(table({arguments.score: [score(arguments.score, arguments.data)]}))
        return
    if BIDIRECTIONAL in arguments.encoders and arguments.pretrained is None:
        parser.error(f"no {BIDIRECTIONAL} is embedded; expected --pretrained")
    found: dict[str, list[Rates]] = {}
    for encoder in arguments.encoders:
        for seed in arguments.seeds if encoder in CAUSAL else arguments.seeds[:1]:
            run = arguments.output / f"{encoder}-seed{seed}"
            folder = arguments.pretrained
            rate = arguments.learning_rate or LEARNING_RATES[encoder]
            train(run, str(folder / encoder / "it2") if folder else CAUSAL[encoder], seed, rate, arguments)
            found.setdefault(encoder, []).append(test(run, arguments.data, chunked=encoder == BIDIRECTIONAL))
    said = documents.recordings(arguments.data / "librispeech_subset" / "manifest.jsonl", "test_other")

    def seconds(length: int) -> float:
        return statistics.mean(len(waveform) for waveform, _ in documents.join(said, length)) / RATE

    plot(found, seconds, arguments.output / "documents.png")
    text = table(found)
    write_atomically(arguments.output / "table.md", text)
    print(text)


if __name__ == "__main__":
    main()
