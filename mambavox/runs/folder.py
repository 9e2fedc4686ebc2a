"""The folder of one run: who may write into it, what lies in it, which of its checkpoints are whole."""

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mambavox.errors import ConfigError, RunError
from mambavox.files import PARTIAL, watching_the_disk, write_atomically
from mambavox.runs.config import RUN_FILE, TASK_KEY, TASKS, RunConfig
from mambavox.runs.fields import read_yaml
from mambavox.runs.plots import PLOT_FILES
from mambavox.runs.predictions import PREDICTIONS_FILE

METRICS_FILE = "metrics.json"
"""Written last: a folder with it holds a finished run."""
LABELS_FILE = "labels.json"
"""The classes, in the order of the logits."""
HISTORY_FILE = "metrics.jsonl"
"""The figures of a pre-training as they come, one line a time."""
RECORDINGS_FILE = "recordings.json"
"""Lengths of a pre-training's recordings, and those that were left out."""
CARD_FILE = "README.md"
"""Model card."""
CHECKSUMS_FILE = "checksums.json"
"""In a checkpoint, written last: the hash of each of its files."""

RUN_FILES = (
    RUN_FILE,
    METRICS_FILE,
    LABELS_FILE,
    PREDICTIONS_FILE,
    HISTORY_FILE,
    *PLOT_FILES,
    RECORDINGS_FILE,
    CARD_FILE,
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "normalizer.json",
    "generation_config.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "config.json",
    "model.safetensors",
    "modeling_mamba_hubert.py",
)
"""What lies at the top of a run folder, of one task or another."""

_CHECKPOINTS = "checkpoints"
_TENSORBOARD = "tensorboard"
_TARGETS = "targets"
_EVALUATIONS = "evaluations"
_LOCK = ".lock"
_HOLDER = ".lock.json"

COMMANDS: Mapping[str, str] = {
    "classify": "mambavox adapt",
    "ctc": "mambavox adapt --task ctc",
    "whisper": "mambavox adapt --task whisper",
    "pretrain": "mambavox pretrain",
}
"""The command that makes a run, by task."""

USES: Mapping[str, str] = {
    "classify": "mambavox predict {run} FILE",
    "ctc": "mambavox transcribe FILE --model {run}",
    "whisper": "mambavox transcribe FILE --model {run}",
    "pretrain": "mambavox adapt --task ctc --backbone {run} --data DATA",
}
"""The command that uses a finished run, by task."""


class RunFolder:
    """The folder of one run.

    Args:
        path: the folder; made when it is locked.

    Attributes:
        path: as given.
        checkpoints: folder of the training's checkpoints, removed once the run has ended well.
        tensorboard: folder of the TensorBoard logs.
        targets: folder of a pre-training's targets.
        evaluations: folder of the folders that `mambavox evaluate` leaves.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / _CHECKPOINTS
        self.tensorboard = self.path / _TENSORBOARD
        self.targets = self.path / _TARGETS
        self.evaluations = self.path / _EVALUATIONS

    @property
    def is_finished(self) -> bool:
        """Whether it holds a run that ended well."""
        return (self.path / METRICS_FILE).is_file()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing into the folder; the lock dies with the process that holds it.

        Where the run could not begin, nothing of it is left: neither a folder made for it, nor a lock in one of
        something else.

        Raises:
            RunError: another process holds the lock, or the folder cannot be written into.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path}: is a file; expected a folder to write the run into: --output")
        try:
            made = _make(self.path)
            lock = FileLock(self.path / _LOCK, blocking=False)
            lock.acquire()
        except Timeout as error:
            raise RunError(
                f"{self.path}: is being written by {self._holder()}; wait until it ends, or choose another --output"
            ) from error
        except OSError as error:
            raise RunError(
                f"{self.path}: cannot be written into ({error.strerror or error}); choose another --output"
            ) from error
        holder = self.path / _HOLDER
        try:
            with watching_the_disk(self.path, lambda: "Make room and start again"):
                write_atomically(holder, json.dumps({"process": os.getpid(), "machine": platform.node()}) + "\n")
            yield
        finally:
            holder.unlink(missing_ok=True)
            if not (self.path / RUN_FILE).is_file():
                (self.path / _LOCK).unlink(missing_ok=True)
            if not self._entries():
                for folder in made:
                    _remove_if_empty(folder)
            lock.release()

    def _holder(self) -> str:
        try:
            held = json.loads((self.path / _HOLDER).read_text(encoding="utf-8"))
            return f"process {held['process']} on {held['machine']}"
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return "another process"

    def _entries(self) -> list[str]:
        """What lies in it besides the lock and what a kill left half written."""
        names = (path.name for path in self.path.iterdir())
        return [
            name
            for name in names
            if name not in (_LOCK, _HOLDER) and not (name.startswith(".") and name.endswith(PARTIAL))
        ]

    def check(self, config: RunConfig, *, resume: bool, overwrite: bool) -> None:
        """Check that a run may be written here, before any work is done for it.

        Args:
            config: the run.
            resume: continue an unfinished run of the same configuration, if there is one.
            overwrite: replace another run.

        Raises:
            RunError: the folder holds something else, or a run that is to be neither continued nor replaced.
        """
        if resume and overwrite:
            raise RunError("--resume continues a run and --overwrite removes it; expected one of them")
        if not self.path.is_dir() or not self._entries():
            return
        if not (self.path / RUN_FILE).is_file():
            raise RunError(
                f"{self.path}: is not empty and holds no run ({RUN_FILE}); expected a new folder: "
                "choose another --output"
            )
        if resume:
            self._check_same(config)
        elif not overwrite:
            state = "a finished" if self.is_finished else "an unfinished"
            raise RunError(
                f"{self.path}: holds {state} run; expected a new folder: continue it with --resume, replace it with "
                "--overwrite, or choose another --output"
            )

    def _check_same(self, config: RunConfig) -> None:
        """Check that a run is resumed as it was begun."""
        task = task_of(self.path)
        if task != config.task:
            raise RunError(
                f"{self.path}: holds a run of `{COMMANDS[task]}`; continue it with that command, or choose another "
                "--output"
            )
        before = type(config).load(self.path / RUN_FILE).to_mapping()
        now, free = config.to_mapping(), config.free_fields()
        keys = [key for key in {**before, **now} if key not in free and before.get(key) != now.get(key)]
        if keys:
            changes = ", ".join(f"{key} was {before.get(key)} and is {now.get(key)}" for key in keys)
            raise RunError(
                f"{self.path}: --resume continues a run as it was begun, but {changes}; leave that as it was, or "
                "start anew with --overwrite"
            )

    def begin(self, config: RunConfig, *, resume: bool) -> None:
        """Make the folder ready and write the configuration; removes a run that is not resumed.

        Raises:
            RunError: the disk is full.
        """
        partial = self._partial()
        if not resume:
            self._remove_run(partial)
        with self.watching_the_disk():
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path / RUN_FILE, config.to_yaml())

    def _partial(self) -> Path:
        """Where files are written aside; what a kill left there is removed, and no link is followed."""
        partial = self.path / PARTIAL
        if partial.is_symlink() or partial.is_file():
            partial.unlink()
        shutil.rmtree(partial, ignore_errors=True)
        return partial

    def _remove_run(self, partial: Path) -> None:
        """Remove all of a run but run.yaml, by which --overwrite knows the folder after a kill on the way."""
        for name in (METRICS_FILE, *RUN_FILES):
            if name != RUN_FILE:
                (self.path / name).unlink(missing_ok=True)
        for folder in (self.checkpoints, self.tensorboard, self.targets, self.evaluations):
            if folder.is_dir():
                # At once: --resume after a kill finds a checkpoint whole or not at all.
                folder.replace(partial)
                shutil.rmtree(partial, ignore_errors=True)

    def last_checkpoint(self, tell: Callable[[str], None] = lambda message: None) -> Path | None:
        """The newest whole checkpoint.

        Those that a kill left incomplete are removed. A damaged one, whose files are not those that were written, is
        passed over and removed, too, when an older one takes its place.

        Args:
            tell: called with a sentence for each damaged checkpoint.

        Raises:
            RunError: there are checkpoints, and all of them are damaged.
        """
        whole: list[tuple[int, Path]] = []
        damaged: list[Path] = []
        for folder in self.checkpoints.glob("checkpoint-*"):
            if not (folder / CHECKSUMS_FILE).is_file():
                shutil.rmtree(folder, ignore_errors=True)
            elif (problem := _damage(folder)) is None:
                whole.append((int(folder.name.rpartition("-")[2]), folder))
            else:
                damaged.append(folder)
                tell(f"{folder}: is damaged ({problem}) and is passed over")
        if damaged and not whole:
            raise RunError(
                f"{self.checkpoints}: every checkpoint is damaged, such as {damaged[0].name} ({_damage(damaged[0])}); "
                "put an undamaged copy back, or start anew with --overwrite"
            )
        for folder in damaged:
            shutil.rmtree(folder, ignore_errors=True)
        return max(whole)[1] if whole else None

    def remove_checkpoints(self) -> None:
        """Remove the checkpoints of a run that has ended well."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def publish(self, write: Callable[[Path], None]) -> None:
        """Let files be written aside, then move each into the folder at once, ``metrics.json`` last.

        Args:
            write: writes the files into the folder that it is given.
        """
        partial = self._partial()
        partial.mkdir(parents=True)
        write(partial)
        mode = (self.path / RUN_FILE).stat().st_mode
        for file in sorted(partial.iterdir(), key=lambda file: (file.name == METRICS_FILE, file.name)):
            file.chmod(mode)  # safetensors writes for the owner alone
            file.replace(self.path / file.name)
        partial.rmdir()

    @contextmanager
    def watching_the_disk(self) -> Iterator[None]:
        """Turn the many errors of a full disk into one for the user.

        Raises:
            RunError: the disk is full.
        """
        with watching_the_disk(self.path, self._after_a_full_disk):
            yield

    def _after_a_full_disk(self) -> str:
        kept = self.last_checkpoint()
        begun = f"{kept.name} is kept in {self.checkpoints}; make room and continue" if kept else "Make room and start"
        return f"{begun} with --resume"


def seal_checkpoint(folder: Path) -> None:
    """Write the hash of each file of a checkpoint, by which :meth:`RunFolder.last_checkpoint` knows it is whole.

    Args:
        folder: of the checkpoint, complete.
    """
    write_atomically(folder / CHECKSUMS_FILE, json.dumps(_checksums(folder), sort_keys=True) + "\n")


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS_FILE)
    return {path.relative_to(folder).as_posix(): _checksum(path) for path in files}


def _checksum(path: Path) -> str:
    digest = hashlib.blake2b()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint; ``None`` where it is whole."""
    try:
        expected = json.loads((folder / CHECKSUMS_FILE).read_text(encoding="utf-8"))
        found = _checksums(folder)
    except (OSError, ValueError, RecursionError) as error:
        return str(error)
    for name, checksum in expected.items():
        if name not in found:
            return f"{name} is missing"
        if found[name] != checksum:
            return f"{name} is not as it was written"
    return None


def _make(folder: Path) -> list[Path]:
    """Make a folder and those above it; returns those that were not there, the innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def is_run(path: str | Path) -> bool:
    """Whether a folder holds a run, finished or not."""
    return (Path(path).expanduser() / RUN_FILE).is_file()


def task_of(run: str | Path) -> str:
    """The task of a run, as its ``run.yaml`` says.

    Args:
        run: its folder.

    Raises:
        RunError: the folder holds no run, or one of an earlier version.
    """
    path = Path(run).expanduser()
    if not is_run(path):
        inside = ", ".join(sorted(item.name for item in path.iterdir())[:5]) if path.is_dir() else ""
        holds = f"it holds {inside}" if inside else ("it is empty" if path.is_dir() else "there is no such folder")
        raise RunError(
            f"{run}: holds no run ({RUN_FILE}; {holds}); expected a folder that `mambavox adapt` or "
            "`mambavox pretrain` wrote"
        )
    try:
        task = read_yaml(path / RUN_FILE).get(TASK_KEY)
    except ConfigError as error:
        raise RunError(f"{error}; expected what a run of mambavox writes") from error
    if task not in TASKS:
        raise RunError(
            f"{path / RUN_FILE}: says task: {task}; expected one of {', '.join(TASKS)}. A run of an earlier version "
            "has no task or another name of it: write the line `task: classify`, `ctc`, `whisper` or `pretrain`, and "
            "rename the keys that the next error names"
        )
    return str(task)


def read_run(run: str | Path, tasks: Sequence[str], command: str) -> dict[str, Any]:
    """The configuration of a finished run, as flat keys.

    Args:
        run: its folder.
        tasks: those that the command takes.
        command: the command that was given, for the message.

    Raises:
        RunError: the folder holds no finished run of one of the tasks; the message names the right command.
    """
    task = task_of(run)
    if task not in tasks:
        raise RunError(
            f"{run}: holds a run of `{COMMANDS[task]}`, which `{command}` does not take; use "
            f"`{USES[task].format(run=run)}`"
        )
    if not RunFolder(Path(run).expanduser()).is_finished:
        raise not_finished(run)
    return read_yaml(Path(run).expanduser() / RUN_FILE)


def not_finished(run: str | Path) -> RunError:
    """The error about a run that has not ended yet."""
    return RunError(f"{run}: the run is not finished; end it with `{COMMANDS[task_of(run)]} --output {run} --resume`")
