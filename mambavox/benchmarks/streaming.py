"""What streaming costs: time of a step and bytes of the state of causal Mamba-HuBERTs, by the length of the past.

Weights are random: they change no time. Nothing is timed before streamed outputs have agreed with the whole model's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import Tensor

from mambavox.benchmarks.machine import find_dtype, machine_facts, working_threads
from mambavox.benchmarks.measure import Timing, interleave
from mambavox.benchmarks.report import Report, in_words
from mambavox.devices import find_device
from mambavox.errors import BackendError, ConfigError
from mambavox.hubert import SIZES, MambaHubertConfig, MambaHubertModel, MambaHubertState
from mambavox.hubert.streaming import AttentionState, LayerState
from mambavox.nn.streaming import StreamStep
from mambavox.plotting import add_legend, plain_log_axis, style_axes, styles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENCODERS = ("mamba", "mamba2", "causal-transformer")
HISTORIES = (10.0, 60.0, 300.0, 1200.0)
"""Seconds that the streams have lasted when steps are timed."""
PIECES = {"step": 0.02, "chunk": 0.32}
"""Seconds of the pieces that are timed."""

_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.1}
_CHECKED_SECONDS = 2.0
_MIB = 1 << 20


@dataclass(frozen=True)
class Row:
    """The figures of one model at one length of the past.

    Attributes:
        size: of the model.
        encoder: kind of its layers.
        history: seconds of the past.
        timings: of a piece of each kind.
        state_bytes: what the state holds, room for growth included.
    """

    size: str
    encoder: str
    history: float
    timings: Mapping[str, Timing]
    state_bytes: int

    def real_time_factor(self, piece: str) -> float:
        """Time of a piece by the time that it lasts."""
        return self.timings[piece].median / PIECES[piece]


@dataclass(frozen=True)
class StreamingReport(Report):
    """All figures.

    Attributes:
        facts: the machine and the settings, by name.
        parameters: of each model, by size and encoder.
        errors: largest difference of streamed outputs from the whole model's, by size and encoder.
        rows: in the order in which they were measured.
    """

    name = "streaming"

    facts: Mapping[str, Any]
    parameters: Mapping[str, int]
    errors: Mapping[str, float]
    rows: Sequence[Row]

    def markdown(self) -> str:
        """A table for each size."""
        lines = [
            "# streaming",
            "",
            in_words(self.facts)
            + ". One stream, random weights, front end included. Medians and quartiles; the real-time factor (RTF) is "
            "the time of a piece by the time it lasts. The past of the attention is put into its cache, not computed.",
        ]
        for size in dict.fromkeys(row.size for row in self.rows):
            rows = [row for row in self.rows if row.size == size]
            models = dict.fromkeys(row.encoder for row in rows)
            described = "; ".join(
                f"{encoder} {self.parameters[f'{size} {encoder}'] / 1e6:.1f} M parameters, streamed and whole differ "
                f"by at most {self.errors[f'{size} {encoder}']:.1e}"
                for encoder in models
            )
            pieces = " | ".join(
                f"{1e3 * seconds:.0f} ms {name}, ms [quartiles] | RTF" for name, seconds in PIECES.items()
            )
            lines += ["", f"## {size}", "", f"{described}.", "", f"| encoder | past, s | {pieces} | state, MiB |"]
            lines.append("|---|" + "--:|" * (2 + 2 * len(PIECES)))
            lines += [_line(row) for row in rows]
        return "\n".join(lines) + "\n"

    def to_mapping(self) -> dict[str, Any]:
        """For JSON."""
        rows = [
            {
                **asdict(row),
                "medians": {piece: timing.median for piece, timing in row.timings.items()},
                "real_time_factors": {piece: row.real_time_factor(piece) for piece in row.timings},
            }
            for row in self.rows
        ]
        return {**asdict(replace(self, rows=())), "rows": rows}

    def figure(self) -> "Figure":
        """Draw the time of a step and the bytes of the state against the past."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(12, 4.5), layout="constrained")
        panels = figure.subplots(1, len(PIECES) + 1)
        labels: list[str] = [f"{name} of {1e3 * seconds:.0f} ms, ms" for name, seconds in PIECES.items()]
        for axes, label in zip(panels, [*labels, "state, MiB"], strict=True):
            axes.set(xlabel="past of the stream, s", title=label, xscale="log", yscale="log")
            style_axes(axes)
        looks = styles(list(self.parameters))
        for model, style in looks.items():
            rows = [row for row in self.rows if f"{row.size} {row.encoder}" == model]
            past = [row.history for row in rows]
            curves = [[1e3 * row.timings[piece].median for row in rows] for piece in PIECES]
            for axes, curve in zip(panels, [*curves, [row.state_bytes / _MIB for row in rows]], strict=True):
                axes.plot(past, curve, color=style.color, marker=style.marker, label=model)
        for axes, seconds in zip(panels, PIECES.values(), strict=False):
            axes.axhline(1e3 * seconds, color="black", linestyle="--", linewidth=1, label="real time")
        for axes in panels:
            plain_log_axis(axes.xaxis)
            plain_log_axis(axes.yaxis)
        add_legend(figure)
        return figure


def measure_streaming(
    sizes: Sequence[str] = ("base",),
    encoders: Sequence[str] = ENCODERS,
    histories: Sequence[float] = HISTORIES,
    threads: int | None = None,
    repeats: int = 7,
    dtype: str = "float32",
    device: str = "cpu",
    console: Console | None = None,
) -> StreamingReport:
    """Measure steps of causal models with random weights.

    Args:
        sizes: of ``mambavox.hubert.SIZES``.
        encoders: kinds of layers, causal ones.
        histories: seconds that the stream has lasted, rising.
        threads: that work on the CPU; torch's present number where not given.
        repeats: repetitions, each through all models and pieces in turn.
        dtype: float32 or bfloat16.
        device: cpu or cuda.
        console: where progress goes; ``None`` is silent.

    Raises:
        ConfigError: an unknown name, a kind that is not causal, or a number out of range.
        BackendError: streamed outputs are not those of the whole model; no figure was printed.
    """
    for size in sizes:
        if size not in SIZES:
            raise ConfigError(f"shapes: there is no size {size!r}; expected {', '.join(SIZES)}")
    if not sizes or not encoders or not histories or min(histories) < 1 or repeats < 1:
        raise ConfigError(
            f"sizes={list(sizes)}, encoders={list(encoders)}, histories={list(histories)}, repeats={repeats}; expected "
            "at least one of each, and pasts of at least 1 s"
        )
    say: Callable[[str], Any] = (lambda line: None) if console is None else console.print
    place, element = find_device(device), find_dtype(dtype)
    with working_threads(threads):
        models = {}
        for size in sizes:
            for encoder in encoders:
                config = getattr(MambaHubertConfig, size)(encoder)
                models[size, encoder] = MambaHubertModel(config).eval().to(place, element)
        errors = {}
        for (size, encoder), model in models.items():
            errors[f"{size} {encoder}"] = check_streaming(model, f"{size} {encoder}")
            say(f"{size} {encoder}: streamed as whole, differences up to {errors[f'{size} {encoder}']:.1e}")
        rows = []
        for size in sizes:
            for history in histories:
                own = {encoder: models[size, encoder] for encoder in encoders}
                found = _measure(size, own, history, place, repeats)
                rows += found
                for row in found:
                    say(f"{size} {row.encoder}, {history:g} s: " + _figures(row))
        # Rows of a model together.
        rows.sort(key=lambda row: (sizes.index(row.size), encoders.index(row.encoder)))
        parameters = {
            f"{size} {encoder}": sum(parameter.numel() for parameter in model.parameters())
            for (size, encoder), model in models.items()
        }
        return StreamingReport(machine_facts(place, element), parameters, errors, rows)


@torch.inference_mode()
def check_streaming(model: MambaHubertModel, name: str) -> float:
    """Compare a model's streamed outputs with those of the whole waveform.

    Args:
        model: a causal one.
        name: for the error.

    Returns:
        The largest difference; outputs are of the order of 1.

    Raises:
        BackendError: it is too large.
    """
    like = next(model.parameters())
    waveform = torch.randn(1, round(_CHECKED_SECONDS * model.config.sampling_rate), device=like.device)
    expected = model(waveform).last_hidden_state
    worst = 0.0
    for seconds in PIECES.values():
        state, outputs = model.init_streaming_state(), []
        for piece in waveform.split(round(seconds * model.config.sampling_rate), dim=1):
            output, state = model.stream(piece, state)
            outputs.append(output.last_hidden_state)
        streamed = torch.cat([frames for frames in outputs if frames is not None], dim=1)
        worst = max(worst, (streamed - expected).abs().max().item())
    if not worst <= _TOLERANCE[like.dtype] * max(1.0, expected.abs().max().item()):
        raise BackendError(
            f"{name} is wrong: streamed outputs differ from the whole model's by {worst:.1e}; no figures are given"
        )
    return worst


def aged(model: MambaHubertModel, seconds: float) -> MambaHubertState:
    """The state of a stream that has lasted some time: as large as a real one, and as costly to go on from.

    Args:
        model: a causal one.
        seconds: how long.
    """
    samples = round(seconds * model.config.sampling_rate)
    # The samples of whole frames, and those that wait for the next one.
    samples -= (samples - model.config.receptive_field) % model.config.inputs_to_logits_ratio
    frames = model._get_feat_extract_output_lengths(samples)
    state = model.init_streaming_state()
    step = StreamStep(frames, [frames], [0], state.waveform.device)
    layers = []
    for layer in state.layers:
        mixer = layer.mixer
        if isinstance(mixer, AttentionState):
            mixer = mixer.extend(_past(mixer.key, frames), _past(mixer.value, frames), step)
        layers.append(LayerState(mixer, layer.feed_forward))
    return replace(state, layers=tuple(layers), samples=[samples])


def _past(empty: Tensor, frames: int) -> Tensor:
    """Keys or values of so many frames: a few random ones, again and again."""
    batch, heads, _, width = empty.shape
    few = torch.randn(batch, heads, 100, width, dtype=empty.dtype, device=empty.device)
    return few.repeat(1, 1, -(-frames // 100), 1)[:, :, :frames]


def _measure(
    size: str, models: Mapping[str, MambaHubertModel], history: float, device: torch.device, repeats: int
) -> list[Row]:
    with torch.inference_mode():
        streams = {encoder: _Stream(model, history) for encoder, model in models.items()}
        sizes = {encoder: stream.state.nbytes for encoder, stream in streams.items()}
        calls = {
            (encoder, piece): (lambda stream=stream, seconds=seconds: stream.go_on(seconds))
            for piece, seconds in PIECES.items()
            for encoder, stream in streams.items()
        }
        found = interleave({" ".join(key): call for key, call in calls.items()}, device, repeats)
    return [
        Row(size, encoder, history, {piece: found[f"{encoder} {piece}"] for piece in PIECES}, sizes[encoder])
        for encoder in models
    ]


class _Stream:
    """A stream that goes on from call to call."""

    def __init__(self, model: MambaHubertModel, history: float) -> None:
        self.model = model
        self.state = aged(model, history)
        self.device = self.state.waveform.device

    def go_on(self, seconds: float) -> None:
        """One piece more."""
        waveform = torch.randn(1, round(seconds * self.model.config.sampling_rate), device=self.device)
        _, self.state = self.model.stream(waveform, self.state)


def _figures(row: Row) -> str:
    times = (
        f"{piece} {1e3 * timing.median:.4g} ms (RTF {row.real_time_factor(piece):.3f})"
        for piece, timing in row.timings.items()
    )
    return f"{', '.join(times)}, state {row.state_bytes / _MIB:,.1f} MiB"


def _line(row: Row) -> str:
    cells = [row.encoder, f"{row.history:g}"]
    for piece, timing in row.timings.items():
        lower, upper = (1e3 * seconds for seconds in timing.quartiles)
        cells += [f"{1e3 * timing.median:.4g} [{lower:.4g}, {upper:.4g}]", f"{row.real_time_factor(piece):.3f}"]
    return "| " + " | ".join([*cells, f"{row.state_bytes / _MIB:,.1f}"]) + " |"
