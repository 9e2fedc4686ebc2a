"""The folder of one run: who may write into it, and what lies in it."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mambavox.errors import ConfigError, RunError
from mambavox.files import PARTIAL, is_empty, watching_the_disk, write_atomically
from mambavox.training.run_config import RUN_FILE, RunConfig

METRICS_FILE = "metrics.json"
"""Written last: a folder with it holds a finished run."""
LABELS_FILE = "labels.json"
"""The classes, in the order of the logits."""
PREDICTIONS_FILE = "predictions.csv"
"""What became of each recording that was held back."""
HISTORY_FILE = "metrics.jsonl"
"""The figures of a pre-training as they come, one line a time."""
CURVE_FILE = "curve.png"
"""Plot of a pre-training's figures."""
RECORDINGS_FILE = "recordings.json"
"""Lengths of a pre-training's recordings, and those that were left out."""

RUN_FILES = (
    RUN_FILE,
    METRICS_FILE,
    LABELS_FILE,
    PREDICTIONS_FILE,
    HISTORY_FILE,
    CURVE_FILE,
    RECORDINGS_FILE,
    "README.md",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "normalizer.json",
    "generation_config.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "config.json",
    "model.safetensors",
    # Of a recogniser: what was said and heard, its tokenizer, its code.
    "transcripts.csv",
    "tokenizer_config.json",
    "tokenizer.json",
    "vocab.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "modeling_mamba_hubert.py",
)
"""What lies at the top of a run folder, of one method or another."""
_CHECKPOINTS = "checkpoints"
_TENSORBOARD = "tensorboard"
_TARGETS = "targets"


class RunFolder:
    """The folder of one run.

    Args:
        path: the folder; made by ``begin``.

    Attributes:
        path: as given.
        checkpoints: folder of the training's checkpoints, removed once the run has ended well.
        tensorboard: folder of the TensorBoard logs.
        targets: folder of a pre-training's targets.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / _CHECKPOINTS
        self.tensorboard = self.path / _TENSORBOARD
        self.targets = self.path / _TARGETS

    @property
    def is_finished(self) -> bool:
        """Whether it holds a run that ended well."""
        return (self.path / METRICS_FILE).is_file()

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
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path}: is a file; expected a folder to write the run into: --output")
        if not self.path.is_dir() or is_empty(self.path):
            return
        if not (self.path / RUN_FILE).is_file():
            raise RunError(
                f"{self.path}: is not empty and holds no run ({RUN_FILE}); expected a new folder: "
                "choose another --output"
            )
        if resume:
            try:
                before = type(config).load(self.path / RUN_FILE).to_mapping()
            except ConfigError as error:
                raise RunError(f"{error}: no run of `mambavox {config.command}`; choose another --output") from error
            now = config.to_mapping()
            keys = [key for key in {**before, **now} if key not in config.free and before.get(key) != now.get(key)]
            if keys:
                changes = ", ".join(f"{key} was {before.get(key)} and is {now.get(key)}" for key in keys)
                raise RunError(
                    f"{self.path}: --resume continues a run as it was begun, but {changes}; leave that as it was, or "
                    "start anew with --overwrite"
                )
        elif not overwrite:
            state = "a finished" if self.is_finished else "an unfinished"
            raise RunError(
                f"{self.path}: holds {state} run; expected a new folder: continue it with --resume, replace it with "
                "--overwrite, or choose another --output"
            )

    def begin(self, config: RunConfig, *, resume: bool) -> None:
        """Make the folder ready and write the configuration; removes a run that is not resumed.

        Raises:
            RunError: the disk is full.
        """
        partial = self.path / PARTIAL
        shutil.rmtree(partial, ignore_errors=True)
        if not resume:
            self._remove_run(partial)
        with self.watching_the_disk():
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path / RUN_FILE, config.to_yaml())

    def _remove_run(self, partial: Path) -> None:
        """Remove all of a run but run.yaml, by which --overwrite knows the folder after a kill on the way."""
        for name in (METRICS_FILE, *RUN_FILES):
            if name != RUN_FILE:
                (self.path / name).unlink(missing_ok=True)
        for folder in (self.checkpoints, self.tensorboard, self.targets):
            if folder.is_dir():
                # At once: --resume after a kill finds a checkpoint whole or not at all.
                folder.replace(partial)
                shutil.rmtree(partial, ignore_errors=True)

    def last_checkpoint(self) -> Path | None:
        """The newest complete checkpoint; those that a kill left incomplete are removed."""
        complete: list[tuple[int, Path]] = []
        for folder in self.checkpoints.glob("checkpoint-*"):
            try:
                # The last file that Trainer writes into a checkpoint.
                state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
                complete.append((int(state["global_step"]), folder))
            except (OSError, ValueError, KeyError):
                shutil.rmtree(folder, ignore_errors=True)
        return max(complete)[1] if complete else None

    def remove_checkpoints(self) -> None:
        """Remove the checkpoints of a run that has ended well."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def publish(self, write: Callable[[Path], None]) -> None:
        """Let files be written aside, then move each into the folder at once, ``metrics.json`` last.

        Args:
            write: writes the files into the folder that it is given.
        """
        partial = self.path / PARTIAL
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        for file in sorted(partial.iterdir(), key=lambda file: (file.name == METRICS_FILE, file.name)):
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
