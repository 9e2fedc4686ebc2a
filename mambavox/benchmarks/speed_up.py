"""What :func:`mambavox.speed_up` gives: a transformers language model's prompt and its generated tokens, on a CPU.

Weights are random: they change no time.
"""

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from transformers import DynamicCache, MambaConfig, MambaForCausalLM

from mambavox.benchmarks.machine import machine_facts, working_threads
from mambavox.benchmarks.measure import Timing, interleave
from mambavox.benchmarks.report import Report, in_words
from mambavox.errors import BackendError, ConfigError
from mambavox.hub import quiet_transformers
from mambavox.nn.speed_up import speed_up

SIZES: Mapping[str, int] = {"hidden_size": 768, "num_hidden_layers": 24, "vocab_size": 50280}
"""Of ``state-spaces/mamba-130m``."""

WORSE = 2.0
"""Ours may be so many times as far from transformers in float64 as transformers is in float32, whose rounding adds up
over 24 layers, too."""

_PASSES = {"read_prompt": "prompt", "step": "a token after it"}
_OURS, _THEIRS = "mambavox.speed_up", "transformers"


@dataclass(frozen=True)
class SpeedUpReport(Report):
    """Times of a model of transformers as it is and sped up.

    Attributes:
        facts: the machine and the settings, by name.
        tokens: of the prompt.
        errors: by pass, then by model: relative distance of the logits from transformers in float64, norm by norm.
        timings: by pass, then by model.
    """

    name = "speed_up"

    facts: Mapping[str, Any]
    tokens: int
    errors: Mapping[str, Mapping[str, float]]
    timings: Mapping[str, Mapping[str, Timing]]

    def ratio(self, name: str) -> float:
        """How many times as long transformers takes for a pass."""
        return self.timings[name][_THEIRS].median / self.timings[name][_OURS].median

    def markdown(self) -> str:
        """One table."""
        lines = [
            "# speed_up",
            "",
            in_words(self.facts),
            "",
            f"A prompt of {self.tokens} tokens, then one token at a time with the cache; one sequence, random weights. "
            "Relative distance of the logits from transformers in float64: "
            + "; ".join(
                f"{_PASSES[name]} {errors[_OURS]:.1e} ours, {errors[_THEIRS]:.1e} transformers"
                for name, errors in self.errors.items()
            )
            + ".",
            "",
            f"| | {_OURS}, ms [quartiles] | {_THEIRS}, ms [quartiles] | ratio |",
            "|---|--:|--:|--:|",
        ]
        for name, timings in self.timings.items():
            cells = [_PASSES[name], _cell(timings[_OURS]), _cell(timings[_THEIRS]), f"{self.ratio(name):.3g}"]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"

    def to_mapping(self) -> dict[str, Any]:
        """Everything, for JSON: seconds and ratios as numbers."""
        rows = [
            {"pass": name, "model": model, "seconds": timing.seconds, "median": timing.median}
            for name, timings in self.timings.items()
            for model, timing in timings.items()
        ]
        return {
            "facts": dict(self.facts),
            "tokens": self.tokens,
            "errors": {name: dict(errors) for name, errors in self.errors.items()},
            "ratios": {name: self.ratio(name) for name in self.timings},
            "rows": rows,
        }


def measure_speed_up(
    threads: int | None = None, repeats: int = 7, tokens: int = 512, console: Console | None = None
) -> SpeedUpReport:
    """Compare and time a ``MambaForCausalLM`` and the same model sped up. Nothing is timed before the logits agree.

    They agree where ours are at most ``WORSE`` times as far from transformers in float64 as transformers is in float32.

    Args:
        threads: that work; torch's present number where not given.
        repeats: repetitions, at most; a model that takes a minute makes fewer.
        tokens: of the prompt.
        console: where a line about each pass goes; ``None`` is silent.

    Raises:
        ConfigError: a number below 1.
        BackendError: the logits differ; no figure was printed.
    """
    for name, value in (("repeats", repeats), ("tokens", tokens)):
        if value < 1:
            raise ConfigError(f"{name}={value}; expected at least 1")
    with working_threads(threads):
        with quiet_transformers(), torch.random.fork_rng():
            torch.manual_seed(0)
            plain = MambaForCausalLM(MambaConfig(**SIZES)).eval()
            prompt = torch.randint(0, SIZES["vocab_size"], (1, tokens))
            models = {_OURS: speed_up(copy.deepcopy(plain)), _THEIRS: plain}
            with torch.inference_mode():
                runs = {name: _Run(model, prompt) for name, model in models.items()}
                exact = _Run(copy.deepcopy(plain).double(), prompt)
                errors = {name: _compare(name, runs, exact) for name in _PASSES}
                del exact
                timings = {}
                for name in _PASSES:
                    calls: dict[str, Callable[[], Any]] = {model: getattr(run, name) for model, run in runs.items()}
                    timings[name] = interleave(calls, torch.device("cpu"), repeats)
                    report = SpeedUpReport(machine_facts(torch.device("cpu"), torch.float32), tokens, errors, timings)
                    if console is not None:
                        console.print(f"{_PASSES[name]}: {report.ratio(name):.3g} x", markup=False)
        return report


class _Run:
    """A model, its prompt and the cache after it."""

    def __init__(self, model: nn.Module, prompt: Tensor) -> None:
        self.model, self.prompt = model, prompt
        # Its name since transformers 5.24.
        self.argument = "cache" if "cache" in inspect.signature(model.forward).parameters else "cache_params"
        self.cache: DynamicCache | None = None

    def read_prompt(self) -> Tensor:
        """A new cache, filled."""
        self.cache = DynamicCache(config=self.model.config)
        return self._logits(self.prompt)

    def step(self) -> Tensor:
        """One token more."""
        return self._logits(self.prompt[:, :1])

    def _logits(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.model(tokens, use_cache=True, **{self.argument: self.cache}).logits
        return found


def _compare(name: str, runs: Mapping[str, _Run], exact: _Run) -> dict[str, float]:
    truth = getattr(exact, name)()
    errors = {model: float((getattr(run, name)() - truth).norm() / truth.norm()) for model, run in runs.items()}
    # NaN compares as false.
    if not errors[_OURS] <= WORSE * errors[_THEIRS]:
        raise BackendError(
            f"speed_up: the logits of the {_PASSES[name]} differ from transformers in float64 by {errors[_OURS]:.1e}, "
            f"those of transformers in float32 by {errors[_THEIRS]:.1e}; no figures"
        )
    return errors


def _cell(timing: Timing) -> str:
    lower, upper = (1e3 * seconds for seconds in timing.quartiles)
    return f"{1e3 * timing.median:.4g} [{lower:.4g}, {upper:.4g}]"
