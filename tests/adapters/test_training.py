"""Compiled, in two processes, and resumed: one case for each kind of adapter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from adapters.conftest import FAMILY, HOSTS, METHOD_OPTIONS, Host, Noise, logits, make_ast, make_hubert, train_step
from transformers import Trainer, TrainingArguments

from mambavox.adapters import apply_method

AST = HOSTS[0]


@pytest.mark.slow
@pytest.mark.parametrize("row", FAMILY)
def test_compiled_in_one_graph(row: str) -> None:
    torch._dynamo.reset()
    host = Host("ast", lambda: make_ast(num_hidden_layers=1), "input_values", (2, 16, 8))
    models = [apply_method(host.model(), *METHOD_OPTIONS[row], check=False).eval() for _ in range(2)]
    compiled = torch.compile(models[1].get_base_model(), backend="aot_eager", fullgraph=True)
    for model in (models[0], compiled):
        train_step(model, host.inputs(), steps=2)
    torch.testing.assert_close(logits(compiled, host.inputs()), logits(models[0], host.inputs()))
    assert not torch.equal(logits(models[0], host.inputs()), logits(host.model(), host.inputs()))


@pytest.mark.slow
def test_compiled_with_lengths() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    base = make_hubert(num_hidden_layers=1)
    model = apply_method(base, "conformer", {"bottleneck_dim": 4}, check=False).eval()
    inputs = {"input_values": torch.randn(2, 400), "attention_mask": torch.ones(2, 400, dtype=torch.int64)}
    inputs["attention_mask"][1, 200:] = 0
    train_step(model, inputs, steps=2)
    compiled = torch.compile(model.get_base_model(), backend="aot_eager")
    expected = logits(model, inputs)
    torch.testing.assert_close(logits(compiled, inputs), expected)
    del inputs["attention_mask"]
    assert not torch.allclose(logits(compiled, inputs)[1], expected[1])


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which two processes have trained every kind of adapter, and what they said."""
    folder = tmp_path_factory.mktemp("ddp")
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("ddp_worker.py"))]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(folder)],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    return folder, "\n".join(process.communicate(timeout=200)[0] for process in processes)


@pytest.mark.slow
@pytest.mark.parametrize("row", FAMILY)
def test_two_processes_train_what_one_does(row: str, two_processes: tuple[Path, str]) -> None:
    folder, said = two_processes
    assert [(folder / f"{row}.{rank}").is_file() for rank in range(2)] == [True, True], said[-2000:]


@pytest.mark.parametrize("row", FAMILY)
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(row: str, tmp_path: Path) -> None:
    def train(steps: int, resume: str | None = None) -> dict[str, torch.Tensor]:
        model = apply_method(AST.model(), *METHOD_OPTIONS[row], check=False)
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=4,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            save_strategy="steps",
            save_steps=2,
            use_cpu=True,
            report_to=[],
            remove_unused_columns=False,
            label_names=["labels"],
            disable_tqdm=True,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=Noise(AST))
        assert trainer.train(resume_from_checkpoint=resume).global_step == steps
        return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    whole = train(4)
    resumed = train(4, resume=str(tmp_path / "checkpoint-2"))
    for name, parameter in whole.items():
        torch.testing.assert_close(resumed[name], parameter, msg=lambda text, name=name: f"{name}: {text}")
