"""What training costs by length: speed and peak memory of an encoder's forward and backward pass on one recording.

Beside our encoders stands transformers' ``HubertModel`` of the sizes of our Transformer. Weights are random: they
change no time. Every figure comes from a process of its own, and repetitions go through all models in turn.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from mambavox.benchmarks.machine import DTYPES, find_dtype, machine_facts
from mambavox.benchmarks.measure import Timing
from mambavox.benchmarks.memory import extra_bytes
from mambavox.benchmarks.report import Report, in_words
from mambavox.devices import find_device
from mambavox.errors import ConfigError
from mambavox.hubert import SIZES, MambaHubertConfig, MambaHubertModel
from mambavox.hubert.conversion import to_hubert
from mambavox.plotting import add_legend, plain_log_axis, style_axes, styles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PEER = "HubertModel"
"""transformers' own, of the sizes of ``transformer``."""
ENCODERS = ("mamba", "ext-bimamba", "transformer", PEER)
LENGTHS = (10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
"""Seconds of the recording."""

_RATE = 16_000
_WARM_SECONDS = 1.0
_TIMEOUT_SECONDS = 1800
_MIB = 1 << 20


@dataclass(frozen=True)
class Row:
    """The figures of one model at one length.

    Attributes:
        encoder: kind of its layers, or ``PEER``.
        length: seconds of the recording.
        timing: of a pass; ``None`` where it failed.
        bytes: most that the pass takes beyond weights and gradients.
        failure: why there are no figures.
    """

    encoder: str
    length: float
    timing: Timing | None = None
    bytes: int = 0
    failure: str = ""

    @property
    def speed(self) -> float:
        """Seconds of audio a second."""
        assert self.timing is not None
        return self.length / self.timing.median


@dataclass(frozen=True)
class TrainingReport(Report):
    """All figures.

    Attributes:
        facts: the machine and the settings, by name.
        size: of the models.
        parameters: of each model.
        rows: by model, then by length.
    """

    name = "training"

    facts: Mapping[str, Any]
    size: str
    parameters: Mapping[str, int]
    rows: Sequence[Row]

    def markdown(self) -> str:
        """A table of speeds, of speeds relative to the first model, and of peaks."""
        models = list(self.parameters)
        lengths = list(dict.fromkeys(row.length for row in self.rows))
        found = {(row.encoder, row.length): row for row in self.rows}
        named = " | ".join(f"{model} ({self.parameters[model] / 1e6:.1f} M)" for model in models)
        head = [f"| seconds of audio | {named} |", "|--:|" + "--:|" * len(models)]
        lines = [
            f"# training, {self.size}",
            "",
            in_words(self.facts)
            + ". Forward and backward pass of the encoder, front end included, one recording, random weights; each "
            "figure from a process of its own. Medians and quartiles.",
        ]

        def table(title: str, cell: Callable[[Row], str]) -> None:
            lines.extend(["", f"## {title}", "", *head])
            for length in lengths:
                cells = [cell(row) if (row := found[model, length]).timing else row.failure for model in models]
                lines.append(f"| {length:g} | " + " | ".join(cells) + " |")

        def speed(row: Row) -> str:
            assert row.timing is not None
            slow, fast = (row.length / seconds for seconds in reversed(row.timing.quartiles))
            return f"{row.speed:.2f} [{slow:.2f}, {fast:.2f}]"

        def ratio(row: Row) -> str:
            first = found[models[0], row.length]
            return f"{first.speed / row.speed:.2f}" if first.timing else "-"

        table("Seconds of audio a second", speed)
        table(f"Times that {models[0]} is as fast", ratio)
        table("Peak memory beyond weights and gradients, MiB", lambda row: f"{row.bytes / _MIB:,.0f}")
        return "\n".join(lines) + "\n"

    def to_mapping(self) -> dict[str, Any]:
        """For JSON."""
        rows = [{**asdict(row), **({"audio_seconds_a_second": row.speed} if row.timing else {})} for row in self.rows]
        return {**asdict(replace(self, rows=())), "rows": rows}

    def figure(self) -> "Figure":
        """Draw speed and peak memory against the length."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 4.5), layout="constrained")
        speed, memory = figure.subplots(1, 2)
        for axes, label in (
            (speed, "seconds of audio a second"),
            (memory, "peak memory beyond weights and gradients, MiB"),
        ):
            axes.set(xlabel="length of the recording, s", title=label, xscale="log", yscale="log")
            style_axes(axes)
        for model, look in styles(list(self.parameters)).items():
            rows = [row for row in self.rows if row.encoder == model and row.timing]
            style: dict[str, Any] = {"color": look.color, "marker": look.marker, "label": model}
            speed.plot([row.length for row in rows], [row.speed for row in rows], **style)
            memory.plot([row.length for row in rows], [row.bytes / _MIB for row in rows], **style)
        for axes in (speed, memory):
            plain_log_axis(axes.xaxis)
            plain_log_axis(axes.yaxis)
        add_legend(figure)
        return figure


def measure_training(
    size: str = "base",
    encoders: Sequence[str] = ENCODERS,
    lengths: Sequence[float] = LENGTHS,
    threads: int | None = None,
    repeats: int = 3,
    dtype: str = "float32",
    device: str = "cpu",
    console: Console | None = None,
) -> TrainingReport:
    """Measure forward and backward passes of models with random weights.

    Args:
        size: of ``mambavox.hubert.SIZES``.
        encoders: kinds of layers, or ``PEER``; the first is what the others are compared with.
        lengths: seconds of the recording, rising.
        threads: that work on the CPU; torch's present number where not given.
        repeats: repetitions, each through all models in turn, each in a new process.
        dtype: float32, or bfloat16 (autocast).
        device: cpu or cuda.
        console: where progress goes; ``None`` is silent.

    Raises:
        ConfigError: an unknown name, or a number out of range.
    """
    if size not in SIZES:
        raise ConfigError(f"shapes: there is no size {size!r}; expected one of {', '.join(SIZES)}")
    if not encoders or not lengths or min(lengths) < 0.1 or repeats < 1:
        raise ConfigError(
            f"encoders={list(encoders)}, lengths={list(lengths)}, repeats={repeats}; expected at least one of each, "
            "and lengths of at least 0.1 s"
        )
    place, element = find_device(device), find_dtype(dtype)
    parameters = {
        encoder: sum(parameter.numel() for parameter in _model(size, encoder).parameters()) for encoder in encoders
    }
    threads = threads or torch.get_num_threads()
    rows = []
    for length in lengths:
        seconds: dict[str, list[float]] = {encoder: [] for encoder in encoders}
        peaks: dict[str, int] = dict.fromkeys(encoders, 0)
        failures: dict[str, str] = {}
        for _ in range(repeats):
            for encoder in encoders:
                if encoder in failures:
                    continue
                task = {"size": size, "encoder": encoder, "length": length, "threads": threads}
                found = _apart({**task, "dtype": dtype, "device": device})
                if isinstance(found, str):
                    failures[encoder] = found
                else:
                    seconds[encoder].append(found[0])
                    peaks[encoder] = max(peaks[encoder], round(found[1]))
        for encoder in encoders:
            failure = failures.get(encoder, "")
            timing = None if failure else Timing(seconds[encoder])
            row = Row(encoder, length, timing, peaks[encoder], failure)
            rows.append(row)
            if console is not None:
                said = failure or f"{row.speed:.2f} s of audio a second, {row.bytes / _MIB:,.0f} MiB"
                console.print(f"{size} {encoder}, {length:g} s: {said}", markup=False)
    rows.sort(key=lambda row: encoders.index(row.encoder))
    facts = {**machine_facts(place, element), "threads": threads}
    return TrainingReport(facts, size, parameters, rows)


def _model(size: str, encoder: str) -> Any:
    """A model with random weights and without dropout and LayerDrop."""
    config = getattr(MambaHubertConfig, size)(
        "transformer" if encoder == PEER else encoder,
        layerdrop=0.0,
        **dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"), 0.0),
    )
    model = MambaHubertModel(config)
    if encoder != PEER:
        return model
    return to_hubert(model)


def _apart(task: Mapping[str, Any]) -> tuple[float, float] | str:
    """Seconds and bytes of a pass in a process of its own, or why there are none."""
    command = [sys.executable, "-m", "mambavox.benchmarks.training", json.dumps(task)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        return f"took more than {_TIMEOUT_SECONDS} s"
    if done.returncode < 0:
        return "ended by the system, out of memory"
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no message"])[-1]
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return float(seconds), float(peak)


def _main() -> None:
    task = json.loads(sys.argv[1])
    torch.set_num_threads(task["threads"])
    device = torch.device(task["device"])
    model = _model(task["size"], task["encoder"]).train().to(device)

    def run(seconds: float) -> None:
        waveform = torch.randn(1, round(seconds * _RATE), device=device)
        with torch.autocast(device.type, DTYPES[task["dtype"]], enabled=task["dtype"] != "float32"):
            output = model(waveform).last_hidden_state
        output.float().square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    run(_WARM_SECONDS)
    times = []

    def timed() -> None:
        start = time.perf_counter()
        run(task["length"])
        times.append(time.perf_counter() - start)

    peak = extra_bytes(timed, device)
    print(json.dumps([times[0], peak]))


if __name__ == "__main__":
    _main()
