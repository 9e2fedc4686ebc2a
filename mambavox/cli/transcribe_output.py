"""The recordings of ``mambavox transcribe``, and what becomes of each: printed, written and told."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mambavox.asr.transcript import Format, Transcript, render
from mambavox.cli.console import OUT, print_error, print_json, print_warning
from mambavox.cli.transcribe_options import TranscribeOptions
from mambavox.errors import ConfigError, DataError
from mambavox.files import write_atomically

if TYPE_CHECKING:
    from mambavox.data import AudioSegment


@dataclass(frozen=True)
class Recording:
    """A recording to transcribe.

    Attributes:
        file: where it lies, or the stretch of a file that it is.
        below: its folder as seen from the folder, or the manifest's folder, that was given, if one was.
    """

    file: "Path | AudioSegment"
    below: Path = Path()

    @property
    def whole_file(self) -> Path:
        """The file that it is, or is a stretch of."""
        return self.file if isinstance(self.file, Path) else self.file.path

    def folder(self, output: Path | None) -> Path:
        """Where its files go.

        Args:
            output: the folder that was asked for; beside the recording where there is none.
        """
        return self.whole_file.parent if output is None else output / self.below

    def path(self, form: Format, output: Path | None) -> Path:
        """Where a file of it goes."""
        return self.folder(output) / f"{self.file.name.removesuffix(self.whole_file.suffix)}.{form}"


def find_recordings(paths: Sequence[Path]) -> list[Recording]:
    """Recordings, those below folders, and those that manifests list.

    Args:
        paths: of files, which may not be there, of folders, and of manifests or data folders of Kaldi.

    Raises:
        DataError: a folder holds no recordings, or a manifest is malformed.
    """
    from mambavox.data.class_folders import audio_files
    from mambavox.data.kaldi import is_kaldi, read_kaldi
    from mambavox.data.manifest import MANIFEST_SUFFIXES, read_manifest

    found = []
    for path in paths:
        listing = path.suffix.lower() in MANIFEST_SUFFIXES and path.is_file()
        if listing or is_kaldi(path):
            for example in (read_manifest if listing else read_kaldi)(path, label_column=None):
                file: Any = example.audio
                folder = Recording(file).whole_file.parent
                inside = folder.is_relative_to(path.parent)
                found.append(Recording(file, folder.relative_to(path.parent) if inside else Path()))
            continue
        if not path.is_dir():
            found.append(Recording(path))
            continue
        files = audio_files(path)
        if not files:
            raise DataError(f"{path}: holds no recordings; expected wav, flac, ogg or mp3 files in it or below it")
        found += [Recording(file, file.parent.relative_to(path)) for file in files]
    return found


def check_outputs(recordings: Sequence[Recording], forms: Sequence[Format], output: Path | None) -> None:
    """Make sure that what will be heard can be written; folders are made in ``output``.

    Args:
        recordings: that will be heard.
        forms: formats of the files to write.
        output: folder that they go into; beside each recording where there is none.

    Raises:
        ConfigError: two recordings would write the same file, or a folder cannot be written into.
    """
    owners: dict[Path, Recording] = {}
    for recording in recordings:
        for form in forms:
            path = recording.path(form, output)
            other = owners.setdefault(path.resolve(), recording)
            if other.whole_file.resolve() != recording.whole_file.resolve():
                raise ConfigError(
                    f"{other.file} and {recording.file} would both be written to {path}; rename one of them, or "
                    "transcribe them one after the other, each with an --output of its own"
                )
    for folder in dict.fromkeys(recording.folder(output) for recording in recordings) if forms else ():
        # A recording whose folder does not exist is told of in its turn.
        if output is not None or folder.is_dir():
            check_folder(folder)


def check_folder(folder: Path) -> None:
    """Make a folder, if it is not there, and make sure that it can be written into.

    Raises:
        ConfigError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"?")
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be written into ({error.strerror or error}); expected a folder for what is heard: "
            "--output"
        ) from error


class Results:
    """What becomes of each recording, whichever model hears it.

    A recording that cannot be read, or whose text cannot be written, is told of by name; the others are still done.

    Args:
        options: what was asked for.
        several: whether there are several recordings, so that each is printed under its name.
    """

    def __init__(self, options: TranscribeOptions, several: bool) -> None:
        self._options = options
        self._several = several
        self._rows: list[dict[str, Any]] = []
        self._failed = False

    def begin(self, recording: Recording) -> None:
        """Print the name of a recording above its text, where there are several."""
        if self._several and not self._options.as_json:
            OUT.print(f"{recording.file}:", markup=False)

    def missed(self, recording: Recording, error: Exception) -> None:
        """Tell that a recording cannot be read."""
        self._failed = True
        print_error(str(error))
        self._rows.append({"file": str(recording.file), "error": str(error)})

    def print_text(self, transcript: Transcript) -> None:
        """Print what a recording says."""
        if not self._options.as_json:
            OUT.print(render(transcript, "txt", timestamps=self._options.timestamps), end="", markup=False)

    def write(self, recording: Recording, transcript: Transcript, broken: Exception | None = None) -> bool:
        """Write the files of a recording.

        Args:
            recording: that was heard.
            transcript: what it says.
            broken: why it could not be read to its end.

        Returns:
            Whether they could be written.
        """
        options = self._options
        row = transcript.to_mapping(str(recording.file))
        self._rows.append(row)
        for note in transcript.notes:
            print_warning(f"{recording.file}: {note}")
        if broken is not None:
            self._failed = True
            print_error(f"{broken}. What was heard before is kept")
            row["error"] = str(broken)
        try:
            for form in options.formats:
                content = render(transcript, form, timestamps=options.timestamps, file=str(recording.file))
                write_atomically(recording.path(form, options.output), content)
        except OSError as error:
            self._failed = True
            print_error(f"{recording.file}: its text cannot be written ({error})")
            row["error"] = str(error)
            return False
        return True

    def finish(self) -> None:
        """Print JSON, if it was asked for.

        Raises:
            typer.Exit: something failed.
        """
        if self._options.as_json:
            print_json(self._rows)
        if self._failed:
            raise typer.Exit(1)
