"""Train nano-ast, the audio backbone that ships inside mambavox: a 2.75 M parameter AST, on a laptop's CPU.

    python recipes/nano_ast/train.py --data ../shared/data --output mambavox/assets/nano-ast --seed 0

It learns several things at once from labels that cost nothing: which word, language and voice espeak-ng was asked
for, which phones sound in every 160 ms patch column, which procedural sound was rendered, and to repair noisy
and partly hidden spectrograms of everything, real speech included. The heads are thrown away at the end.
"""

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from corpus import FLOOR, NUM_MEL_BINS, REAL, SENTENCE, SOUND, UNKNOWN, WORD, Corpus, load_or_build
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

MAX_FRAMES, PATCH, TIME_STRIDE = 512, 16, 12
LENGTHS = {98: 0.35, 130: 0.15, 160: 0.15, 200: 0.12, 250: 0.15, 498: 0.08}
"""Frames of a batch's clips (10 ms each) and how often; all clips of a batch are as long, so nothing is padded."""
TOKENS = 1800
"""Patches in a batch: short clips come in large batches."""
SHARES = {WORD: 0.52, SENTENCE: 0.12, REAL: 0.18, SOUND: 0.18}
CHECKPOINT_STEPS = 200
SINGLE_LABELS = {"language": 0.2, "speaker": 0.2, "sound": 0.7}
"""Loss weights of the labels that a clip has one of."""


def make_model() -> ASTModel:
    config = ASTConfig(
        hidden_size=192,
        num_hidden_layers=6,
        num_attention_heads=3,
        intermediate_size=768,
        patch_size=PATCH,
        frequency_stride=PATCH,
        time_stride=TIME_STRIDE,
        num_mel_bins=NUM_MEL_BINS,
        max_length=MAX_FRAMES,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    # For so few tokens the fused attention's backward pass is several times slower on a CPU.
    model = ASTModel._from_config(config, attn_implementation="eager")
    # transformers' own start (deviation 0.02 everywhere, no positions) is made for wider models and waits for a
    # checkpoint; from scratch this narrow one would idle for a thousand steps.
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    nn.init.trunc_normal_(model.embeddings.patch_embeddings.projection.weight, std=0.06)
    nn.init.trunc_normal_(model.embeddings.cls_token, std=0.02)
    nn.init.trunc_normal_(model.embeddings.distillation_token, std=0.02)
    rows, width = NUM_MEL_BINS // PATCH, config.hidden_size // 2
    places = torch.cat(
        [
            waves(rows, width, 20.0)[:, None].expand(-1, columns(MAX_FRAMES), -1),
            waves(columns(MAX_FRAMES), width, 200.0)[None].expand(rows, -1, -1),
        ],
        -1,
    )
    with torch.no_grad():
        model.embeddings.position_embeddings[0, 2:] = 0.3 * places.flatten(0, 1)
    return model


def waves(count: int, width: int, longest: float) -> Tensor:
    """Sines and cosines ``(count, width)`` of places 0, 1, ... with wave lengths from 6 to ``longest`` places."""
    frequencies = torch.logspace(0, 1, width // 2, longest / 6).reciprocal()
    angles = torch.arange(count)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


def columns(frames: int) -> int:
    """Patch columns of a clip."""
    return (frames - PATCH) // TIME_STRIDE + 1


def encode(model: ASTModel, features: Tensor) -> Tensor:
    """Hidden states ``(batch, 2 + 4 * columns, 192)`` of clips of any length.

    The position table is frequency-major; a short clip takes the first columns of each of its four rows.

    Args:
        model: the backbone.
        features: normalised log mels ``(batch, frames, 64)``.
    """
    embeddings, width = model.embeddings, model.config.hidden_size
    # The patch convolution as a matrix product, whose backward pass is faster.
    convolution = embeddings.patch_embeddings.projection
    windows = features.unfold(1, PATCH, TIME_STRIDE).unfold(2, PATCH, PATCH)
    patches = F.linear(
        windows.permute(0, 2, 1, 4, 3).flatten(3).flatten(1, 2), convolution.weight.flatten(1), convolution.bias
    )
    table = embeddings.position_embeddings
    rows = NUM_MEL_BINS // PATCH
    kept = table[:, 2:].reshape(1, rows, -1, width)[:, :, : columns(features.shape[1])].flatten(1, 2)
    special = torch.cat([embeddings.cls_token, embeddings.distillation_token], 1) + table[:, :2]
    hidden = torch.cat([special.expand(len(patches), -1, -1), patches + kept], 1)
    for layer in model.layers:
        hidden = layer(hidden)
    return model.layernorm(hidden)


@dataclass
class Batch:
    """Clips of one length. ``clean`` and ``noisy`` are raw log mels ``(batch, frames, 64)``."""

    clean: Tensor
    noisy: Tensor
    phones: Tensor
    words: Tensor
    labels: dict[str, Tensor]
    numbers: Tensor


class Sampler:
    """Draws batches from a corpus: crops, changes of speed and of vocal tract, then noise, rooms and channels."""

    def __init__(self, corpus: Corpus, held_out: bool) -> None:
        self.corpus = corpus
        chosen = torch.arange(len(corpus.kinds)) % 40 == 7
        self.pools = {kind: torch.where((corpus.kinds == kind) & (chosen == held_out))[0] for kind in SHARES}
        self.clip_lengths = corpus.starts.diff()

    def crops(self, clips: Tensor, frames: int) -> tuple[Tensor, Tensor, Tensor]:
        """A random window of each clip: features ``(clips, frames, 64)``, phones and whether the clip sounds there.

        A clip shorter than the window lies somewhere inside it, between digital silence.
        """
        speed = torch.empty(len(clips), 1).uniform_(0.85, 1.2)
        lengths = self.clip_lengths[clips][:, None] / speed
        start = torch.rand(len(clips), 1) * (lengths - frames)
        position = (start + torch.arange(frames)) * speed
        inside = (position >= 0) & (position <= self.clip_lengths[clips][:, None] - 1)
        position = position.clamp_min(0).minimum(self.clip_lengths[clips][:, None] - 1.0)
        before = position.long()
        after = (before + 1).minimum(self.clip_lengths[clips][:, None] - 1)
        offset = self.corpus.starts[clips][:, None]
        features = torch.lerp(
            self.corpus.features[offset + before].float(),
            self.corpus.features[offset + after].float(),
            (position - before)[..., None].float(),
        )
        features = torch.where(inside[..., None], features, FLOOR)
        phones = torch.where(inside, self.corpus.phones[offset + before], 0)
        # The silence around a recording is as unlabelled as the recording, or it would give away the kind of clip.
        known = self.corpus.kinds[clips][:, None] != REAL
        return warp_frequency(features), torch.where(known, phones, UNKNOWN), inside

    def draw(self, frames: int) -> Batch:
        """A batch of about ``TOKENS`` patches; in long clips several words follow each other."""
        size = max(16, TOKENS // (4 * columns(frames)))
        several = max(1, frames // 90)
        parts = []
        for kind, share in SHARES.items():
            count = max(1, round(size * share))
            repeats = several if kind == WORD else 1
            clips = self.pools[kind][torch.randint(len(self.pools[kind]), (count, repeats))]
            width = -(-frames // repeats)
            features, phones, inside = self.crops(clips.flatten(), width)
            parts.append(
                (
                    features.view(count, -1, NUM_MEL_BINS)[:, :frames],
                    phones.view(count, -1)[:, :frames],
                    inside.view(count, -1)[:, :frames],
                    F.pad(clips, (0, several - repeats), value=-1),
                )
            )
        features, phones, inside, clips = (torch.cat(column) for column in zip(*parts, strict=True))
        labels = {name: values[clips[:, 0]] for name, values in self.corpus.labels.items()}
        words = torch.where(clips >= 0, self.corpus.labels["word"][clips], -1)
        # A word that the window cuts in half, or a wake word in a long recording of which a part is seen, is no label.
        words[(self.clip_lengths[clips] > 1.2 * frames / (clips >= 0).sum(1, keepdim=True)) | (clips < 0)] = -1
        mixed = (clips[:, 1:] >= 0).any(1)
        for name in ("language", "speaker"):
            labels[name] = labels[name].masked_fill(mixed, -1)
        clean = (features + 2.0 * torch.randn(len(features), 1, 1) - 1.0).clamp_min(FLOOR)
        noisy = distort(clean)
        padding = self.padding(inside, clips)
        phones = phones.masked_fill(padding & (phones != UNKNOWN), 0)
        clean, noisy = (part.masked_fill(padding[..., None], 0.0) for part in (clean, noisy))
        return Batch(clean, noisy, phones, words, labels, self.corpus.numbers[clips[:, 0]])

    def padding(self, inside: Tensor, clips: Tensor) -> Tensor:
        """Frames ``(batch, frames)`` that hold zeros, with which ``ASTFeatureExtractor`` fills up short clips.

        Three clips in ten are short: a word as it is, anything else cut somewhere.
        """
        frames = inside.shape[1]
        end = torch.where(inside, torch.arange(frames), 0).amax(1, keepdim=True)
        cut = torch.empty(len(inside), 1).uniform_(0.3, 1.3) * frames
        is_word = (self.corpus.kinds[clips[:, 0]] == WORD)[:, None]
        end = torch.where(is_word, end, end.minimum(cut.long()))
        return (torch.arange(frames) > end) & (torch.rand(len(inside), 1) < 0.3)


def some(batch: int, probability: float) -> Tensor:
    return (torch.rand(batch, 1, 1) < probability).float()


def warp_frequency(features: Tensor) -> Tensor:
    """Stretch the mel axis by up to 12 %, as a longer or shorter vocal tract would."""
    bins = features.shape[-1]
    position = torch.arange(bins) * torch.empty(len(features), 1).uniform_(0.88, 1.12)
    position = position.clamp_max(bins - 1.001)
    low = position.long()[:, None].expand(-1, features.shape[1], -1)
    weight = (position - position.long())[:, None]
    return torch.lerp(features.gather(2, low), features.gather(2, low + 1), weight)


def distort(clean: Tensor) -> Tensor:
    """What rooms, other sounds, noise, microphones and narrow channels do, on log mels."""
    batch, frames, bins = clean.shape
    # Reverberation: energies smeared forwards by an exponential tail.
    constant = torch.empty(batch, 1, 1).uniform_(3, 15)
    tail = torch.exp(-torch.arange(24.0) / constant) / constant
    tail[..., 0] = 1
    power = F.pad(clean.exp().transpose(1, 2), (23, 0))
    smeared = torch.stack([F.conv1d(p[:, None], k.flip(-1)[None])[:, 0] for p, k in zip(power, tail, strict=True)])
    noisy = torch.where(some(batch, 0.25).bool(), smeared.transpose(1, 2).clamp_min(1e-7).log(), clean)
    # Another clip of the batch, then coloured noise, at chosen ratios of peak levels.
    level = clean.mean(2).amax(1)[:, None, None]
    other = clean.roll(1 + int(torch.randint(batch - 1, ())), 0)
    other = other - other.mean(2).amax(1)[:, None, None] + level - torch.empty(batch, 1, 1).uniform_(1.5, 6)
    noisy = torch.where(some(batch, 0.25).bool(), torch.logaddexp(noisy, other), noisy)
    axis = torch.linspace(-1, 1, bins)
    color = axis * torch.empty(batch, 1, 1).uniform_(-3, 2) + torch.cos(3 * axis) * torch.randn(batch, 1, 1)
    # The energy of one mel band of noise in one frame scatters like a mean of a few exponentials.
    scatter = torch.distributions.Gamma(3.0, 3.0).sample((batch, frames, bins)).clamp_min(1e-3).log()
    hiss = level + color + scatter - torch.empty(batch, 1, 1).uniform_(1.5, 10)
    noisy = torch.where(some(batch, 0.7).bool(), torch.logaddexp(noisy, hiss), noisy)
    # Microphone: a smooth gain curve; channel: nothing above a cut-off.
    curve = sum(torch.cos(k * math.pi * (axis + 1) / 2) * torch.randn(batch, 1, 1) for k in (1, 2, 3))
    noisy = noisy + 0.6 * curve
    cut = torch.randint(40, 64, (batch, 1, 1))
    noisy = noisy - some(batch, 0.2) * (torch.arange(bins) >= cut) * torch.empty(batch, 1, 1).uniform_(3, 12)
    return noisy.clamp_min(FLOOR)


def hide(features: Tensor) -> Tensor:
    """SpecAugment on normalised features: up to two stretches of time and one of frequency become the mean."""
    batch, frames, bins = features.shape
    for _ in range(2):
        width = torch.rand(batch, 1) * 0.18 * frames
        start = torch.rand(batch, 1) * (frames - width)
        hidden = (torch.arange(frames) >= start) & (torch.arange(frames) < start + width)
        features = features.masked_fill((hidden & (torch.rand(batch, 1) < 0.35))[:, :, None], 0.0)
    low = torch.randint(0, bins - 10, (batch, 1))
    band = (torch.arange(bins) >= low) & (torch.arange(bins) < low + torch.randint(2, 14, (batch, 1)))
    return features.masked_fill((band & (torch.rand(batch, 1) < 0.3))[:, None], 0.0)


class Objective(nn.Module):
    """The heads on top of the backbone and the sum of their losses."""

    def __init__(self, corpus: Corpus, mean: float, std: float, width: int = 192) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(names)) for name, names in corpus.classes.items()})
        self.heads["phone"] = nn.Linear(width * (NUM_MEL_BINS // PATCH), len(corpus.classes["phone"]))
        self.numbers = nn.Linear(width, 2)
        self.repair = nn.Linear(width, PATCH * PATCH)

    def normalise(self, features: Tensor) -> Tensor:
        return (features - self.mean) / (2 * self.std)

    def forward(self, model: ASTModel, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The loss to go down, and its parts with the word and sound accuracies for the log."""
        target = self.normalise(batch.clean)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = encode(model, hide(self.normalise(batch.noisy)))
            patches = hidden[:, 2:]
            stacked = patches.unflatten(1, (NUM_MEL_BINS // PATCH, -1)).transpose(1, 2).flatten(2)
            outputs = {"phone": self.heads["phone"](stacked)}
            # Both usual summaries shall be good: AST's own (class and distillation token) and the mean of the patches.
            pooled = torch.stack([hidden[:, :2].mean(1), patches.mean(1)])
            outputs |= {name: head(pooled) for name, head in self.heads.items() if name != "phone"}
            numbers, repaired = self.numbers(pooled), self.repair(patches)
        outputs = {name: output.float() for name, output in outputs.items()}
        losses: dict[str, Tensor] = {}
        # A clip of several words has a distribution over words as its target.
        present = batch.words >= 0
        shares = present / present.sum(1, keepdim=True).clamp_min(1)
        wanted = torch.zeros(len(present), outputs["word"].shape[-1]).scatter_add_(1, batch.words.clamp_min(0), shares)
        rows = present.any(1)
        losses["word"] = -(wanted * outputs["word"].log_softmax(-1)).sum(-1)[:, rows].mean()
        for name, weight in SINGLE_LABELS.items():
            labels = batch.labels[name].repeat(2)
            losses[name] = weight * F.cross_entropy(outputs[name].flatten(0, 1), labels, ignore_index=-1)
        known = ~batch.numbers.isnan()
        losses["numbers"] = (numbers.float() - batch.numbers.nan_to_num()).pow(2)[:, known].mean()
        windows = batch.phones.unfold(1, PATCH, TIME_STRIDE).long()
        heard = torch.zeros(*windows.shape[:2], 256).scatter_(2, windows, 1.0)
        usable = heard[..., UNKNOWN] == 0
        heard = heard[..., : outputs["phone"].shape[-1]]
        losses["phone"] = 30 * F.binary_cross_entropy_with_logits(outputs["phone"][usable], heard[usable])
        clean = target.unfold(1, PATCH, TIME_STRIDE).unfold(2, PATCH, PATCH).permute(0, 2, 1, 4, 3).flatten(1, 2)
        losses["repair"] = 4 * (repaired.float() - clean.flatten(2)).pow(2).mean()
        report = {name: float(loss.detach()) for name, loss in losses.items()}
        for name, labels in (("word", batch.words[:, 0]), ("sound", batch.labels["sound"])):
            single = (labels >= 0) & ((present.sum(1) == 1) if name == "word" else torch.tensor(True))
            if single.any():
                report[f"{name} accuracy"] = float((outputs[name].argmax(-1) == labels)[:, single].float().mean())
        return torch.stack(list(losses.values())).sum(), report


def make_optimizers(model: ASTModel, objective: Objective) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers (ahead of AdamW in trials of 200 steps), AdamW for everything else."""
    matrices = [parameter for parameter in model.layers.parameters() if parameter.ndim == 2]
    chosen = {id(parameter) for parameter in matrices}
    rest = [
        parameter for module in (model, objective) for parameter in module.parameters() if id(parameter) not in chosen
    ]
    return [
        torch.optim.Muon(matrices, lr=3e-3, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate: a short linear warm-up, then half a cosine down to 1 %."""
    warmup = min(100, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


@torch.no_grad()
def validate(model: ASTModel, objective: Objective, sampler: Sampler) -> dict[str, float]:
    """Mean report over the same held-out batches each time, distorted as in training."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        reports = [objective(model, sampler.draw(frames))[1] for frames in (98, 98, 130, 130, 250)]
    names = dict.fromkeys(name for report in reports for name in report)
    values = {name: [report[name] for report in reports if name in report] for name in names}
    return {name: sum(numbers) / len(numbers) for name, numbers in values.items()}


def train(corpus: Corpus, work: Path, steps: int, seed: int) -> tuple[ASTModel, Objective]:
    """Train from scratch, or go on from the checkpoint in ``work``."""
    sample = corpus.features[:: max(1, len(corpus.features) // 200_000)].float()
    torch.manual_seed(seed)
    model, objective = make_model(), Objective(corpus, float(sample.mean()), float(sample.std()))
    work.mkdir(parents=True, exist_ok=True)
    stateful = {"model": model, "objective": objective}
    optimizers = make_optimizers(model, objective)
    peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    stateful |= {f"optimizer {number}": optimizer for number, optimizer in enumerate(optimizers)}
    checkpoint, first = work / f"checkpoint-{seed}-{steps}.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        for name, part in stateful.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["random"])
        first = state["step"]
        print(f"going on from step {first}")
    sampler, held_out = Sampler(corpus, held_out=False), Sampler(corpus, held_out=True)
    shares = torch.tensor(list(LENGTHS.values()))
    started = time.monotonic()
    with Progress(BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn()) as progress:
        task = progress.add_task("training", total=steps, completed=first)
        for step in range(first, steps):
            for peak, group in zip(peaks, (g for o in optimizers for g in o.param_groups), strict=True):
                group["lr"] = peak * schedule(step, steps)
            frames = list(LENGTHS)[int(torch.multinomial(shares, 1))]
            loss, _ = objective(model, sampler.draw(frames))
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([*model.parameters(), *objective.parameters()], 1.0)
            for optimizer in optimizers:
                optimizer.step()
            progress.advance(task)
            if (step + 1) % CHECKPOINT_STEPS == 0 or step + 1 == steps:
                report = validate(model, objective, held_out)
                values = "  ".join(f"{name} {value:.3f}" for name, value in report.items())
                progress.print(f"step {step + 1}  {time.monotonic() - started:.0f} s  {values}", soft_wrap=True)
                state = {name: part.state_dict() for name, part in stateful.items()}
                state |= {"step": step + 1, "random": torch.get_rng_state()}
                # Written beside and renamed, so that a kill in the middle leaves the last one whole.
                torch.save(state, checkpoint.with_suffix(".new"))
                checkpoint.with_suffix(".new").replace(checkpoint)
    return model, objective


def export(model: ASTModel, objective: Objective, output: Path) -> None:
    """Write the backbone in half precision and its feature extractor; the heads stay behind."""
    model.half().save_pretrained(output)
    # Half precision is for the disk alone: what the configuration says is what from_pretrained makes of it.
    model.config.dtype = torch.float32
    model.config.save_pretrained(output)
    # safetensors leaves its file to its owner alone; this one is installed for everyone.
    (output / "model.safetensors").chmod(0o644)
    ASTFeatureExtractor(
        num_mel_bins=NUM_MEL_BINS, max_length=MAX_FRAMES, mean=round(objective.mean, 4), std=round(objective.std, 4)
    ).save_pretrained(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with texts, ssl_speech, librispeech_subset, ..."
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the model")
    parser.add_argument("--work", type=Path, default=Path("runs/nano-ast"), help="features and checkpoint (resumes)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--scale", type=float, default=1.0, help="size of the synthesised corpus")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    corpus = load_or_build(arguments.data, arguments.work, arguments.seed, arguments.scale)
    sizes = ", ".join(f"{len(names)} {name}s" for name, names in corpus.classes.items())
    print(f"{len(corpus.kinds)} clips, {len(corpus.features) / 360_000:.1f} hours, {sizes}")
    model, objective = train(corpus, arguments.work, arguments.steps, arguments.seed)
    export(model, objective, arguments.output)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
