"""Read a data set of any supported form."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Union

from mambavox.data.class_folders import audio_files, is_hidden, read_class_folders
from mambavox.data.columns import listed
from mambavox.data.datasets.esc50 import is_esc50, read_esc50
from mambavox.data.example import Example
from mambavox.data.hf_dataset import is_saved_dataset, load_hub, load_saved, read_hf_dataset
from mambavox.data.manifest import MANIFEST_SUFFIXES, read_manifest
from mambavox.data.splits import part_named
from mambavox.errors import DataError

if TYPE_CHECKING:
    import datasets

MANIFEST_NAMES = (
    "manifest.jsonl",
    "manifest.tsv",
    "manifest.csv",
    "metadata.jsonl",
    "metadata.csv",
)
"""Manifests looked for in a folder, in this order; ``metadata`` is the name that ``datasets`` uses."""


def read_examples(
    data: Union[str, Path, "datasets.Dataset", "datasets.DatasetDict"],
    *,
    label_column: str | None = "label",
    audio_column: str | None = None,
) -> list[Example]:
    """Read a data set of any supported form.

    Args:
        data: one of

            - a manifest: ``.jsonl``, ``.tsv`` or ``.csv``, with paths relative to its folder;
            - a folder with ``manifest.*`` or ``metadata.*``;
            - a clone of ESC-50;
            - a folder of one folder per class. Folders all named ``train``, ``valid``, ``test`` (or another word
              for them) above these become the field ``split``;
            - a ``datasets`` data set, the folder that its ``save_to_disk`` wrote, or ``"hf:owner/name"``.
        label_column: column of the class; ``None`` reads no labels. ESC-50's is ``category`` unless named
            otherwise; with a folder per class it is the folder's name whatever this says.
        audio_column: column of the recordings; ``None`` finds it by its name.

    Returns:
        An example a recording, in the order of the source. Files exist, but have not been opened.

    Raises:
        DataError: the source, a column or an audio file is missing, a line is malformed, or a recording is listed
            twice.
    """
    if isinstance(data, str) and data.startswith("hf:"):
        dataset = load_hub(data.removeprefix("hf:"))
        examples = read_hf_dataset(dataset, label_column=label_column, audio_column=audio_column, where=data)
    elif isinstance(data, (str, Path)):
        path = Path(data).expanduser()
        if path.is_dir():
            examples = _read_folder(path, label_column, audio_column)
        elif path.suffix.lower() not in MANIFEST_SUFFIXES:
            raise DataError(
                f"{path}: expected a folder, a manifest ({listed(sorted(MANIFEST_SUFFIXES))}), or hf:owner/name"
            )
        elif not path.is_file():
            raise DataError(f"{path}: no such file")
        else:
            examples = read_manifest(path, label_column=label_column, audio_column=audio_column)
    else:
        examples = read_hf_dataset(data, label_column=label_column, audio_column=audio_column)
    _check_files(examples, str(data) if isinstance(data, (str, Path)) else "the data set")
    return examples


def _read_folder(folder: Path, label_column: str | None, audio_column: str | None) -> list[Example]:
    if is_saved_dataset(folder):
        dataset = load_saved(folder)
        return read_hf_dataset(dataset, label_column=label_column, audio_column=audio_column, where=str(folder))
    for name in MANIFEST_NAMES:
        if (folder / name).is_file():
            return read_manifest(folder / name, label_column=label_column, audio_column=audio_column)
    if is_esc50(folder):
        return read_esc50(folder, label_column="category" if label_column == "label" else label_column)
    parts = [path for path in sorted(folder.iterdir()) if path.is_dir() and not is_hidden(path) and audio_files(path)]
    if parts and all(part_named(path.name) for path in parts):
        return [
            replace(example, fields={**example.fields, "split": path.name})
            for path in parts
            for example in _read_folder(path, label_column, audio_column)
        ]
    examples = read_class_folders(folder)
    return examples if label_column is not None else [replace(example, label=None) for example in examples]


def _check_files(examples: list[Example], where: str) -> None:
    if not examples:
        raise DataError(
            f"{where}: holds no recordings; expected a manifest ({', '.join(MANIFEST_NAMES)}), "
            "a folder per class, or a saved datasets.Dataset"
        )
    files = [example.audio for example in examples if isinstance(example.audio, Path)]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DataError(f"{where}: {len(missing)} of {len(files)} audio files do not exist: {listed(missing)}")
    times_listed = Counter(os.path.normpath(file) for file in files)
    repeated = [file for file, times in times_listed.items() if times > 1]
    if repeated:
        raise DataError(
            f"{where}: lists {len(repeated)} recordings more than once: {listed(repeated)}; keep one line each"
        )
