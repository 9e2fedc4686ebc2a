"""The benchmark: what it writes, what it refuses, what it says about what it left out. No timing is judged here."""

import dataclasses
import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from typer.testing import CliRunner

from mambavox.benchmarks import limits, measure
from mambavox.benchmarks.benchmark import benchmark
from mambavox.benchmarks.limits import Rates, limit, measure_rates
from mambavox.benchmarks.measure import Timing, interleave
from mambavox.benchmarks.memory import peak_extra_bytes
from mambavox.benchmarks.operation_report import OperationReport
from mambavox.benchmarks.parity import check_small
from mambavox.benchmarks.registry import OPERATIONS, Candidate, Operation, make_problem
from mambavox.cli import app
from mambavox.errors import BackendError, ConfigError
from mambavox.ops import native

CPU = torch.device("cpu")
TINY = {
    "scan": {"T1": {"batch": 2, "d_inner": 16, "d_state": 4, "time": 33}},
    "conv": {"T1": {"batch": 2, "d_inner": 16, "width": 4, "time": 33}},
    "ssd": {"T1": {"batch": 2, "heads": 2, "head_dim": 4, "d_state": 4, "time": 33}},
}
LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux only")
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_TRIAD", {"cpu": 1 << 16})
    monkeypatch.setattr(limits, "_SECONDS", 0.02)
    monkeypatch.setattr(measure, "_TURN_SECONDS", 0.0)
    for name, shapes in TINY.items():
        small = {**shapes["T1"], "time": 20}
        monkeypatch.setitem(OPERATIONS, name, dataclasses.replace(OPERATIONS[name], shapes=shapes, small=small))


def only(monkeypatch: pytest.MonkeyPatch, name: str, *candidates: Candidate) -> Operation:
    """Let an operation have these candidates and no others."""
    operation = dataclasses.replace(OPERATIONS[name], candidates=candidates)
    monkeypatch.setitem(OPERATIONS, name, operation)
    return operation


def candidate(operation: str, name: str) -> Candidate:
    return next(item for item in OPERATIONS[operation].candidates if item.name == name)


def run(name: str, **options: Any) -> OperationReport:
    return benchmark(name, **{"threads": 1, "repeats": 2, "memory": False, **options})


class TestReport:
    @pytest.mark.parametrize("name", sorted(TINY))
    def test_every_operation_is_timed_and_written(self, name: str, tmp_path: Path) -> None:
        report = run(name)
        report.write(tmp_path / "new", name)
        table = (tmp_path / "new" / f"{name}.md").read_text()
        figures = json.loads((tmp_path / "new" / f"{name}.json").read_text())
        assert (tmp_path / "new" / f"{name}.png").read_bytes().startswith(PNG)
        for row in figures["rows"]:
            assert f"| {row['candidate']} |" in table
            assert len(row["seconds"]) == 2
            assert row["quartiles"][0] <= row["median"] <= row["quartiles"][1]
            assert row["ratio_to_limit"] > 0
            assert row["parity"] < 1e-5
        timed = {(row["candidate"], row["pass"]) for row in figures["rows"]}
        assert {("mambavox torch", "forward"), ("mambavox torch", "both"), ("transformers", "both")} <= timed
        assert {row["ratio_to_first"] for row in figures["rows"][:1]} == {1.0}
        assert {"operation", "facts", "rates", "rows", "left_out"} == figures.keys()
        assert {"machine", "threads", "torch", "dtype"} <= figures["facts"].keys()

    def test_each_candidate_is_timed_or_named_with_its_reason(self) -> None:
        report = run("scan")
        timed = {name for row in report.measurements for name in row.timings}
        left_out = {item.candidate for item in report.left_out}
        assert timed | left_out == {item.name for item in OPERATIONS["scan"].candidates}
        assert "mamba-ssm: runs on cuda, not on cpu" in report.markdown()

    def test_the_threads_of_the_caller_are_given_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before, seen = torch.get_num_threads(), []

        def failing(**tensors: Tensor) -> Tensor:
            seen.append(torch.get_num_threads())
            raise ValueError

        only(monkeypatch, "conv", Candidate("failing", failing, ours=True))
        with pytest.raises(BackendError):
            run("conv", threads=before + 1)
        assert seen == [before + 1]
        assert torch.get_num_threads() == before

    def test_bfloat16_keeps_the_decay_in_float32(self) -> None:
        problem = make_problem(OPERATIONS["scan"], TINY["scan"]["T1"], CPU, torch.bfloat16)
        kinds = {name: tensor.dtype for name, tensor in problem.tensors.items()}
        assert kinds["A"] == kinds["D"] == torch.float32
        assert {kinds[name] for name in ("x", "dt", "B", "C")} == {torch.bfloat16}
        report = run("scan", dtype="bfloat16", passes=["forward"])
        assert 1e-4 < report.measurements[0].parity < 2e-2


class TestWhatIsRefused:
    @pytest.fixture
    def wrong_gradient(self) -> Callable[..., Tensor]:
        right = candidate("conv", "mambavox torch").run
        # Right in value; the bias gets twice its gradient.
        return lambda x, weight, bias: right(x, weight, 2 * bias - bias.detach())

    @pytest.mark.parametrize("ours", [True, False])
    def test_a_wrong_output_stops_everything_before_the_first_figure(
        self, monkeypatch: pytest.MonkeyPatch, ours: bool
    ) -> None:
        right = candidate("conv", "mambavox torch")
        wrong = Candidate("wrong", lambda **tensors: 1.001 * right.run(**tensors), ours=ours)
        only(monkeypatch, "conv", right, wrong)
        console = Console(record=True)
        with pytest.raises(BackendError, match=r"wrong at .*: the output differs .* no figures"):
            run("conv", console=console)
        assert " ms" not in console.export_text()

    def test_a_wrong_gradient_is_named(
        self, monkeypatch: pytest.MonkeyPatch, wrong_gradient: Callable[..., Tensor]
    ) -> None:
        only(monkeypatch, "conv", Candidate("wrong", wrong_gradient))
        with pytest.raises(BackendError, match="the gradient of bias differs"):
            run("conv", passes=["both"])
        assert run("conv", passes=["forward"]).measurements

    def test_nan_is_wrong(self, monkeypatch: pytest.MonkeyPatch) -> None:
        only(monkeypatch, "conv", Candidate("nan", lambda x, weight, bias: x * weight.sum() * bias.sum() * math.nan))
        with pytest.raises(BackendError, match="differs from the definition in float64 by nan"):
            run("conv")

    def test_ours_wrong_at_the_timed_shape_alone_is_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        right = candidate("scan", "mambavox torch")
        time = TINY["scan"]["T1"]["time"]

        def wrong_when_long(x: Tensor, **tensors: Tensor) -> Tensor:
            return right.run(x=x, **tensors) * (1.001 if x.shape[1] == time else 1.0)

        only(monkeypatch, "scan", Candidate("wrong", wrong_when_long, ours=True))
        with pytest.raises(BackendError, match=f"wrong at .*time {time}: the output"):
            run("scan")

    def test_ours_may_not_fail_and_a_peer_may(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def failing(**tensors: Tensor) -> Tensor:
            raise NotImplementedError("no such pass\nsecond line")

        right = candidate("conv", "mambavox torch")
        only(monkeypatch, "conv", right, Candidate("peer", failing))
        report = run("conv", passes=["forward"])
        assert [str(item) for item in report.left_out] == [
            "peer (forward): cannot do it, NotImplementedError: no such pass"
        ]
        assert list(report.measurements[0].timings) == ["mambavox torch"]
        only(monkeypatch, "conv", right, Candidate("ours", failing, ours=True))
        with pytest.raises(BackendError, match="ours fails: no such pass"):
            run("conv")

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"name": "scn"}, "'scn'; expected scan, conv, ssd"),
            ({"shapes": ["S9"]}, "'S9'; expected T1"),
            ({"shapes": []}, "shapes is empty"),
            ({"passes": ["backward"]}, "'backward'; expected forward, both"),
            ({"passes": []}, "passes is empty"),
            ({"dtype": "int8"}, "'int8'; expected float32, bfloat16"),
            ({"device": "tpu"}, "device=tpu: .*; expected auto, cpu or cuda"),
            ({"repeats": 0}, "repeats=0"),
            ({"threads": 0}, "threads=0"),
        ],
    )
    def test_mistakes_are_told(self, options: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            run(**{"name": "scan", **options})

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_a_gpu_that_is_not_there_is_told(self) -> None:
        with pytest.raises(ConfigError, match="no CUDA GPUs; expected auto or cpu"):
            run("scan", device="cuda")


class TestWhatIsLeftOut:
    def test_an_absent_peer_is_named_with_how_to_get_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = candidate("scan", "mambapy")
        monkeypatch.setitem(sys.modules, "mambapy.pscan", None)
        only(monkeypatch, "scan", candidate("scan", "mambavox torch"), real)
        report = run("scan", passes=["forward"])
        (item,) = report.left_out
        assert item.candidate == "mambapy"
        assert "cannot be imported" in item.reason
        assert "pip install mambapy" in item.reason
        assert f"- {item}" in report.markdown()

    @pytest.mark.parametrize(
        ("name", "shape", "passes"),
        [
            ("transformers", "S1-1500", {"both"}),
            ("transformers", "S1-500", set()),
            ("mambapy", "S2-3000", set()),
            ("mambapy", "S3", {"both"}),
            ("associative_scan", "S3", {"both"}),
            ("definition", "S2-3000", {"both"}),
        ],
    )
    def test_passes_of_minutes_are_told_by_their_shape(self, name: str, shape: str, passes: set[str]) -> None:
        from mambavox.benchmarks.registry import _SCAN

        for direction in ("forward", "both"):
            reason = candidate("scan", name).too_long(_SCAN.shapes[shape], direction, CPU)  # type: ignore[arg-type]
            assert (reason is not None) == (direction in passes)
            assert reason is None or "minutes" in reason

    def test_the_report_says_at_which_shape(self, monkeypatch: pytest.MonkeyPatch) -> None:
        slow = dataclasses.replace(candidate("conv", "transformers"), too_long=lambda *_: "would run for minutes")
        only(monkeypatch, "conv", candidate("conv", "mambavox torch"), slow)
        assert [str(item) for item in run("conv", passes=["both"]).left_out] == [
            "transformers (T1, forward + backward): would run for minutes"
        ]


class TestLimits:
    def test_rates_are_positive(self) -> None:
        rates = measure_rates(CPU, threads=1)
        assert rates.bandwidth > 0
        assert (rates.vector_operations is None) == bool(rates.note) == (native.why_not() is not None)
        assert rates.vector_operations is None or rates.vector_operations > 0

    def test_the_limit_is_the_longer_of_arithmetic_and_memory(self) -> None:
        scan, sizes = OPERATIONS["scan"], {"batch": 2, "d_inner": 10, "d_state": 5, "time": 100}
        slow_memory = limit(scan, sizes, "forward", torch.float32, Rates(1e12, 1e6, ""))
        assert slow_memory.seconds == slow_memory.memory == pytest.approx(4 * 2000 * 4 / 1e6)
        slow_arithmetic = limit(scan, sizes, "both", torch.float32, Rates(1e6, 1e12, ""))
        assert slow_arithmetic.seconds == slow_arithmetic.compute == pytest.approx(34 * 10_000 / 1e6)
        unknown = limit(scan, sizes, "both", torch.bfloat16, Rates(None, 1e6, "no compiler"))
        assert unknown.seconds == pytest.approx(13 * 2000 * 2 / 1e6)

    def test_without_the_native_library_the_limit_is_that_of_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(native, "why_not", lambda: "was not built")
        rates = measure_rates(CPU, threads=1)
        assert rates.vector_operations is None
        assert "was not built" in rates.note


class TestMeasuring:
    def test_repetitions_go_through_all_calls_in_turn(self) -> None:
        order: list[str] = []
        turns: list[None] = []
        timings = interleave(
            {name: lambda name=name: order.append(name) for name in "ab"},
            CPU,
            repeats=2,
            progress=lambda: turns.append(None),
        )
        assert order == list("ababab"), "the first repetition warms up"
        assert {name: len(timing.seconds) for name, timing in timings.items()} == {"a": 2, "b": 2}
        assert len(turns) == 6

    def test_a_slow_call_makes_fewer_repetitions_but_one(self) -> None:
        timings = interleave({"a": lambda: None}, CPU, repeats=5, budget=0.0)
        assert len(timings["a"].seconds) == 1

    def test_quartiles(self) -> None:
        assert Timing([3.0]).quartiles == (3.0, 3.0)
        timing = Timing([5.0, 1.0, 2.0, 4.0, 3.0])
        assert (timing.median, timing.quartiles) == (3.0, (2.0, 4.0))

    def test_layouts_do_not_change_the_results(self) -> None:
        """A channels-first candidate passes only if its output and gradients are turned back rightly."""
        operation = OPERATIONS["scan"]
        able, left_out = check_small(
            operation, [candidate("scan", "transformers")], CPU, torch.float32, ["forward", "both"]
        )
        assert not left_out
        assert [item.name for item in able["both"]] == ["transformers"]

    @LINUX
    def test_peak_memory_counts_the_gradients(self) -> None:
        sizes = {"batch": 1, "d_inner": 1024, "width": 4, "time": 4096}
        peak = peak_extra_bytes("conv", "mambavox torch", sizes, CPU, torch.float32, threads=1)
        assert isinstance(peak, int), peak
        # The output and the gradient of x, 16 MiB each, and not the whole process.
        assert 2 * 16 << 20 <= peak < 400 << 20

    @LINUX
    def test_a_measurement_of_memory_that_fails_gives_a_reason(self, monkeypatch: pytest.MonkeyPatch) -> None:
        only(monkeypatch, "conv", candidate("conv", "mambavox torch"))
        monkeypatch.setattr(sys, "executable", shutil.which("false"))
        (item,) = run("conv", passes=["both"], memory=True).left_out
        assert str(item) == "mambavox torch, memory (T1): the process ended with 1: no message"


class TestCommand:
    def test_the_command_prints_the_table_and_writes_three_files(self, tmp_path: Path) -> None:
        flags = ["--threads", "1", "--repeats", "1", "--passes", "forward, both", "--no-memory"]
        result = CliRunner().invoke(app, ["bench", "conv", "--shapes", "T1", "--output", str(tmp_path), *flags])
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith("# causal_conv1d")
        assert "| mambavox torch |" in result.stdout
        assert "T1, forward: mambavox torch" in result.stderr
        assert {file.name for file in tmp_path.iterdir()} == {"conv.md", "conv.json", "conv.png"}

    def test_a_mismatch_ends_with_an_error_and_without_files(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        only(monkeypatch, "conv", Candidate("wrong", lambda x, weight, bias: x * weight.sum() + bias))
        output = tmp_path / "bench"
        result = CliRunner().invoke(app, ["bench", "conv", "--output", str(output), "--no-memory"])
        assert result.exit_code == 1
        assert result.stderr.startswith("error: wrong at ")
        assert "no figures" in result.stderr
        assert " ms" not in result.output
        assert not output.exists()

    def test_an_unknown_operation_is_told(self) -> None:
        result = CliRunner().invoke(app, ["bench", "scn"])
        assert result.exit_code == 2
        assert "No such command 'scn'" in result.stderr
