"""What adapters cost on large hosts: time of a training step and of inference, and memory, beside the frozen host.

Weights are random: they change no time. Features are not counted.
"""

import copy
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn
from transformers import ASTConfig, AutoModelForAudioClassification, PretrainedConfig, WhisperConfig

from mambavox.adapters import METHODS, apply_method, trainable_parameters
from mambavox.adapters.budget import fit_budget, size_option
from mambavox.benchmarks.machine import working_threads
from mambavox.benchmarks.measure import Timing, interleave
from mambavox.benchmarks.memory import extra_bytes, measure_apart
from mambavox.benchmarks.report import Report
from mambavox.devices import find_device
from mambavox.errors import ConfigError
from mambavox.hub import load_config, quiet_transformers
from mambavox.training.classify.backbone import set_max_length
from mambavox.training.front_end import patched_frames
from mambavox.training.modes import set_training_mode

SHAPES: Mapping[str, Callable[[], PretrainedConfig]] = {
    "whisper-small": lambda: WhisperConfig(
        d_model=768, encoder_layers=12, encoder_attention_heads=12, encoder_ffn_dim=3072
    ),
    "ast-base": ASTConfig,
}
"""Hosts by name; any other name is a backbone whose configuration is taken."""

FROZEN, LORA = "linear", "lora"
"""What the others are measured against: inference of the frozen host under its head, and LoRA's training step."""

_METHODS = (FROZEN, LORA, "bottleneck", "conformer", "mambadapter")
_RATE = 16_000
_CLASSES = 35
_MIB = 1 << 20


@dataclass(frozen=True)
class Load:
    """What is measured.

    Attributes:
        seconds: lengths of the clip of inference; a host with a window of its own always hears that.
        train_seconds: length of the clips of a training step.
        batch_size: clips of a training step.
        repeats: repetitions, each through all methods in turn.
        threads: that work on the CPU.
        device: cpu or cuda.
        bf16: bfloat16 autocast.

    Raises:
        ConfigError: a value is out of range, or there is no such device.
    """

    seconds: tuple[float, ...] = (1.0, 5.0, 10.0, 30.0)
    train_seconds: float = 5.0
    batch_size: int = 4
    repeats: int = 7
    threads: int = 1
    device: str = "cpu"
    bf16: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "repeats", "threads", "train_seconds"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)}; expected above 0")
        if not self.seconds or min(self.seconds) <= 0:
            raise ConfigError(f"seconds={self.seconds}; expected lengths above 0")
        object.__setattr__(self, "device", str(find_device(self.device)))


@dataclass(frozen=True)
class Adapted:
    """A method with its options.

    Attributes:
        name: what the table calls it.
        method: a key of ``METHODS``.
        options: of the method.
    """

    name: str
    method: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class HostFigures:
    """The figures of one host.

    Attributes:
        host: its name.
        methods: what was measured; the names in the other figures are theirs.
        parameters: trained ones of each method, the head not counted.
        inference: for each length in seconds the time of one clip, by method.
        training: time of a training step, by method.
        peaks: bytes that a training step takes beyond the model, by method, or why they were not measured.
    """

    host: str
    methods: tuple[Adapted, ...]
    parameters: Mapping[str, int]
    inference: Mapping[float, Mapping[str, Timing]]
    training: Mapping[str, Timing]
    peaks: Mapping[str, int | str]


@dataclass(frozen=True)
class LatencyReport(Report):
    """The figures of all hosts.

    Attributes:
        load: what was measured.
        machine: where.
        hosts: figures of each.
    """

    name = "latency"

    load: Load
    machine: str
    hosts: tuple[HostFigures, ...]

    def markdown(self) -> str:
        """A table for each host."""
        load = self.load
        precision = "bfloat16 autocast" if load.bf16 else "float32"
        lines = [
            "# latency",
            "",
            f"{self.machine}, torch {torch.__version__}, {precision}. Medians of {load.repeats} repetitions, each "
            f"through all methods in turn; random weights, features not counted. Training step: {load.batch_size} "
            f"clips of {load.train_seconds:g} s, AdamW included; memory: what the step takes beyond the model. "
            f"Inference: one clip. In brackets multiples of {LORA}'s step and of the frozen model's inference, which "
            f"{FROZEN} is.",
        ]
        for figures in self.hosts:
            lines += ["", f"## {figures.host}", "", *_table(figures)]
        return "\n".join(lines) + "\n"

    def to_mapping(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measure_latency(
    hosts: Sequence[str] = tuple(SHAPES),
    methods: Sequence[Adapted] | None = None,
    budget: int = 270_000,
    load: Load | None = None,
    *,
    memory: bool = True,
    console: Console | None = None,
) -> LatencyReport:
    """Measure what methods cost on hosts with random weights.

    Args:
        hosts: keys of ``SHAPES``, or backbones.
        methods: to measure, the frozen host besides; default LoRA, bottleneck, Conformer adapter and MambAdapter.
        budget: trained parameters to which methods without a given size are fitted; the default is that of the
            MambAdapter paper's baselines on AST.
        load: what is measured.
        memory: also measure the peak memory of a training step, on the CPU in processes of its own.
        console: where progress goes; ``None`` is silent.

    Raises:
        ConfigError: there is no such host or device, or an option does not fit.
        HostError: a backbone is no known host.
    """
    load = load or Load()
    with working_threads(load.threads):
        figures = tuple(_measure_host(host, methods, budget, load, memory, console) for host in hosts)
    machine = torch.cuda.get_device_name() if load.device == "cuda" else f"CPU, {load.threads} threads"
    return LatencyReport(load, machine, figures)


def _measure_host(
    host: str, methods: Sequence[Adapted] | None, budget: int, load: Load, memory: bool, console: Console | None
) -> HostFigures:
    config, device = _host_config(host), torch.device(load.device)
    given = [Adapted(name, name, {}) for name in _METHODS if name in METHODS] if methods is None else methods
    with quiet_transformers():
        if FROZEN not in {item.method for item in given}:
            given = [Adapted(FROZEN, FROZEN, {}), *given]
        sized = [_sized(item, config, budget) for item in given]
        host_model = AutoModelForAudioClassification.from_config(config)
        models = {item.name: _adapt(host_model, item).to(device) for item in sized}
    parameters = {name: trainable_parameters(model)["adapter"] for name, model in models.items()}
    say = (lambda line: None) if console is None else console.print
    inference = {}
    for seconds in _lengths(config, load.seconds):
        calls = {name: _inference(model, seconds, load) for name, model in models.items()}
        inference[seconds] = interleave(calls, device, load.repeats)
        say(f"{host}: inference of {seconds:g} s measured")
    calls = {name: _training_step(model, load) for name, model in models.items()}
    training = interleave(calls, device, load.repeats)
    say(f"{host}: training step measured")
    del calls, models, host_model
    peaks = {item.name: _peak(host, item, load) for item in sized} if memory else {}
    return HostFigures(host, tuple(sized), parameters, inference, training, peaks)


def _host_config(host: str) -> PretrainedConfig:
    config = SHAPES[host]() if host in SHAPES else load_config(host)
    config.num_labels = _CLASSES
    return config


def _sized(item: Adapted, config: PretrainedConfig, budget: int) -> Adapted:
    size = size_option(item.method)
    if size is None or size in item.options:
        return item
    options = fit_budget(config, item.method, item.options, budget)
    return replace(item, name=f"{item.name} {size}={options[size]}", options=options)


def _adapt(host: nn.Module, item: Adapted) -> nn.Module:
    """A method on a copy of the host that shares its weights, unless they are trained."""
    shared = {} if item.method == "full" else {id(parameter): parameter for parameter in host.parameters()}
    copied: Any = copy.deepcopy(host, shared)
    return apply_method(copied, item.method, item.options)


def _lengths(config: PretrainedConfig, seconds: Sequence[float]) -> Sequence[float]:
    """Lengths that make a difference: Whisper pads every clip to its window."""
    return (config.max_source_positions / 50,) if config.model_type == "whisper" else seconds


def _inputs(model: Any, seconds: float, batch: int) -> dict[str, Tensor]:
    """Random inputs of a length; an AST's position table is made to fit."""
    host: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    config, device = host.config, next(host.parameters()).device
    if config.model_type == "audio-spectrogram-transformer":
        set_max_length(host, patched_frames(config, round(100 * seconds)))
        return {"input_values": torch.randn(batch, config.max_length, config.num_mel_bins, device=device)}
    if config.model_type == "whisper":
        return {
            "input_features": torch.randn(batch, config.num_mel_bins, 2 * config.max_source_positions, device=device)
        }
    return {"input_values": torch.randn(batch, round(seconds * _RATE), device=device)}


def _inference(model: nn.Module, seconds: float, load: Load) -> Callable[[], Any]:
    inputs = _inputs(model, seconds, batch=1)

    def call() -> Any:
        # The position table is of the length measured last.
        with torch.inference_mode(), torch.autocast(load.device, torch.bfloat16, enabled=load.bf16):
            return model(**inputs).logits

    model.eval()
    return call


def _training_step(model: nn.Module, load: Load) -> Callable[[], Any]:
    inputs = _inputs(model, load.train_seconds, load.batch_size)
    targets = torch.zeros(load.batch_size, dtype=torch.int64, device=next(model.parameters()).device)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad], fused=True
    )

    def call() -> None:
        set_training_mode(model)
        optimizer.zero_grad()
        with torch.autocast(load.device, torch.bfloat16, enabled=load.bf16):
            logits = model(**inputs).logits
        F.cross_entropy(logits.float(), targets).backward()
        optimizer.step()

    return call


def _peak(host: str, item: Adapted, load: Load) -> int | str:
    task = {"host": host, "method": item.method, "options": dict(item.options), "load": asdict(load)}
    return measure_apart("mambavox.benchmarks.latency", task, torch.device(load.device))


def _table(figures: HostFigures) -> list[str]:
    lengths = list(figures.inference)
    header = ["method", "parameters", "training step", "its memory", *(f"{seconds:g} s" for seconds in lengths)]
    first = {item.method: item.name for item in reversed(figures.methods)}
    rows = []
    for name, count in figures.parameters.items():
        peak = figures.peaks.get(name, "not measured")
        inference = [_time(figures.inference[seconds], name, first[FROZEN]) for seconds in lengths]
        memory = f"{peak / _MIB:,.0f} MiB" if isinstance(peak, int) else peak
        rows.append([name, f"{count:,}", _time(figures.training, name, first.get(LORA)), memory, *inference])
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _time(timings: Mapping[str, Timing], name: str, reference: str | None) -> str:
    median = timings[name].median
    ratio = "" if reference is None else f" ({median / timings[reference].median:.2f}x)"
    return f"{1e3 * median:.1f} ms{ratio}"


def _main() -> None:
    task = json.loads(sys.argv[1])
    load = Load(**{**task["load"], "seconds": tuple(task["load"]["seconds"])})
    torch.set_num_threads(load.threads)
    with quiet_transformers():
        host = AutoModelForAudioClassification.from_config(_host_config(task["host"]))
        model = _adapt(host, Adapted("", task["method"], task["options"])).to(load.device)
    # What is loaded and started at the first step belongs to no step.
    _training_step(model, replace(load, batch_size=1, train_seconds=1.0))()
    print(extra_bytes(_training_step(model, load), torch.device(load.device)))


if __name__ == "__main__":
    _main()
