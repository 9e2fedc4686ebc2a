"""The configurations of the tasks by name; importing this does not import torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mambavox.errors import ConfigError, RunError
from mambavox.runs.config import RUN_FILE, TASK_KEY, RunConfig
from mambavox.runs.fields import nearest, read_yaml
from mambavox.runs.folder import COMMANDS, is_run, task_of
from mambavox.training.classify.config import ClassifyConfig
from mambavox.training.ctc.config import CtcConfig
from mambavox.training.pretraining.config import PretrainConfig
from mambavox.training.whisper.config import WhisperConfig

CONFIGS: Mapping[str, type[RunConfig]] = {
    config.task: config for config in (ClassifyConfig, CtcConfig, WhisperConfig, PretrainConfig)
}
"""By the name of the task."""
ADAPT_TASKS = ("classify", "ctc", "whisper")
"""The tasks of ``mambavox adapt``."""


def config_class(task: str) -> type[RunConfig]:
    """The class of a task's configuration.

    Raises:
        ConfigError: there is no such task.
    """
    if task not in CONFIGS:
        raise ConfigError(f"task={task}; {nearest(task, CONFIGS)}")
    return CONFIGS[task]


def load_config(run: str | Path) -> RunConfig:
    """The configuration of a run.

    Args:
        run: its folder.

    Raises:
        RunError: the folder holds no run, or its configuration is damaged.
    """
    folder = Path(run).expanduser()
    try:
        return config_class(task_of(folder)).load(folder / RUN_FILE)
    except ConfigError as error:
        raise RunError(f"{error}; expected what a run of mambavox writes") from error


def from_flags(
    task: str | None, file: Path | None, given: Mapping[str, Any], *, resume: bool, tasks: Sequence[str]
) -> RunConfig:
    """A configuration from a command line: of a file, of the run to resume, or of the flags alone.

    Args:
        task: as it was given.
        file: YAML of flags, which the given ones override.
        given: flags, as keys.
        resume: whether the run in ``given["output"]`` is continued: then it says what is not given.
        tasks: those of the command; the first one where nothing says the task.

    Raises:
        ConfigError: a key or value is wrong, or the file's task is another one, or is none of the command's.
        RunError: the run to resume is damaged.
    """
    output = given.get("output")
    if file is None and resume and output is not None and is_run(output):
        file = Path(output).expanduser() / RUN_FILE
    said = None if file is None else str(read_yaml(file).get(TASK_KEY, tasks[0]))
    if said is not None and said in CONFIGS and said not in tasks:
        raise ConfigError(f"{file}: its task is {said!r}, which `{COMMANDS[said]}` takes; use that command")
    if task is not None and said is not None and task != said:
        raise ConfigError(f"{file}: its task is {said!r}, and --task says {task!r}; leave out one of them")
    kind = config_class(task or said or tasks[0])
    if file is None:
        return kind.from_mapping(given, "the command line")
    return kind.load(file, given)
