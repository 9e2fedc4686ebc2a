"""The only driver: one run of any task, from its configuration to its folder. Read it from top to bottom."""

from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.console import Console

from mambavox.hub import quiet_transformers
from mambavox.runs.config import RunConfig
from mambavox.runs.folder import RunFolder
from mambavox.runs.result import RunResult
from mambavox.training.engine import takes_gpu
from mambavox.training.task import Task

_TASKS = {
    "classify": ("mambavox.training.classify.task", "ClassifyTask"),
    "ctc": ("mambavox.training.ctc.task", "CtcTask"),
    "whisper": ("mambavox.training.whisper.task", "WhisperTask"),
    "pretrain": ("mambavox.training.pretraining.task", "PretrainTask"),
}


def run(
    config: RunConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    keep_checkpoints: bool = False,
    console: Console | None = None,
) -> RunResult:
    """Do a run and write its folder, ``config.output_path``.

    The folder holds what was trained, what makes its inputs, ``run.yaml``, ``metrics.json``, ``predictions.csv`` (what
    became of each recording that was held back), plots, a model card and TensorBoard logs. Whatever is final is
    written at once, ``metrics.json`` last. Checkpoints lie in ``checkpoints/`` until the run has ended well. Under
    torchrun all processes call this.

    Args:
        config: what to do.
        resume: continue the folder's unfinished run, on a CPU to exactly the figures of an unbroken one; a finished
            run's result is returned as it is.
        overwrite: replace the folder's run.
        keep_checkpoints: leave ``checkpoints/`` in the folder.
        console: where progress goes; ``None`` is silent.

    Raises:
        ConfigError: a value does not fit the method, the backbone or this machine.
        DataError: there are no usable recordings, or a column, target or split is not what is needed.
        AudioError: recordings cannot be used and ``on_error`` is ``"raise"``.
        HostError: the backbone is of no known family, or its checkpoint lacks weights.
        RunError: the folder holds something else or is being written, or the disk is full.
        DivergedError: the run diverged.
    """
    folder = RunFolder(config.output_path)
    processes = PartialState(cpu=not takes_gpu(config))
    first = bool(processes.is_main_process)
    console = console if first else None
    with folder.locked() if first else nullcontext():
        if first:
            folder.check(config, resume=resume, overwrite=overwrite)
        processes.wait_for_everyone()
        if resume and folder.is_finished:
            return RunResult.load(folder.path)
        task = task_class(config.task)(config, folder, processes, console, resume=resume)
        task.prepare()
        if first:
            folder.begin(config, resume=resume)
        processes.wait_for_everyone()
        with folder.watching_the_disk(), quiet_transformers():
            trainer = task.make_trainer()
            task.learn(trainer, _checkpoint(folder, processes, console) if resume else None)
            result = task.result(trainer)
            if first:
                folder.publish(lambda path: task.write(path, trainer, result))
        if first and not keep_checkpoints:
            folder.remove_checkpoints()
        processes.wait_for_everyone()
    return result


def _checkpoint(folder: RunFolder, processes: PartialState, console: Console | None) -> Path | None:
    """The checkpoint to go on from; the first process removes those that are not whole."""
    if processes.is_main_process:
        folder.last_checkpoint(lambda message: None if console is None else console.print(message, markup=False))
    processes.wait_for_everyone()
    return folder.last_checkpoint()


def task_class(name: str) -> type[Task[Any, Any]]:
    """The class of a task's steps.

    Args:
        name: such as ``"ctc"``.
    """
    module, steps = _TASKS[name]
    found: type[Task[Any, Any]] = getattr(import_module(module), steps)
    return found


def is_first_process() -> bool:
    """Whether this process is the one of several that writes and prints."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0
