"""Files that ``mambavox transcribe`` writes, and what can be known of them before anything is heard."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from mambavox.errors import ConfigError
from mambavox.files import write_atomically


def check_outputs(files: Sequence[Path], forms: Sequence[str], output_dir: Path | None) -> None:
    """Make sure that what will be heard can be written; ``output_dir`` is made.

    Args:
        files: the recordings.
        forms: endings of the files to write.
        output_dir: where they go; beside each recording where not given.

    Raises:
        ConfigError: two recordings would write the same file, or a folder cannot be written into.
    """
    owners: dict[Path, Path] = {}
    for file in files:
        for form in forms:
            path = _path(file, form, output_dir)
            other = owners.setdefault(path.resolve(), file)
            if other.resolve() != file.resolve():
                raise ConfigError(
                    f"{other} and {file} would both be written to {path}; rename one of them, or transcribe them one "
                    "after the other, each with an --output-dir of its own"
                )
    if output_dir is not None and forms:
        check_folder(output_dir)
    # A recording whose folder does not exist is told of in its turn.
    for folder in dict.fromkeys(file.parent for file in files) if output_dir is None and forms else ():
        if folder.is_dir():
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
            "--output-dir"
        ) from error


def write_outputs(file: Path, contents: Mapping[str, str], output_dir: Path | None) -> None:
    """Write what a recording says.

    Args:
        file: the recording.
        contents: of the files by their endings.
        output_dir: where they go; beside the recording where not given.

    Raises:
        OSError: a file cannot be written.
    """
    for form, content in contents.items():
        write_atomically(_path(file, form, output_dir), content)


def _path(file: Path, form: str, output_dir: Path | None) -> Path:
    return (output_dir or file.parent) / f"{file.stem}.{form}"
