"""Read a data set of any supported form."""

import os
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Union

from mambavox.data.audio import AudioSegment
from mambavox.data.class_folders import (
    FolderContent,
    files_in,
    folder_content,
    holds_recordings,
    is_hidden,
    read_class_folders,
)
from mambavox.data.columns import listed
from mambavox.data.datasets import CORPORA, SPEECH_CORPORA, Corpus
from mambavox.data.example import Example
from mambavox.data.examples import Examples, ListedExamples
from mambavox.data.file_names import is_file
from mambavox.data.hf_dataset import is_saved_dataset, load_hub, load_saved, read_hf_dataset
from mambavox.data.kaldi import is_kaldi, read_kaldi
from mambavox.data.keys import file_of
from mambavox.data.manifest import MANIFEST_NAMES, MANIFEST_SUFFIXES, find_manifest, read_manifest
from mambavox.data.shards.examples import read_shards
from mambavox.data.shards.find import SCHEME
from mambavox.data.splits import part_led_by
from mambavox.errors import DataError, DataWarning

if TYPE_CHECKING:
    import datasets


_KNOWN = {**CORPORA, **SPEECH_CORPORA}


def split_scheme(data: str) -> tuple[str | None, str]:
    """Divide ``"esc50:/its/folder"`` into the corpus and the folder; the corpus is ``None`` where none is named."""
    name, colon, path = data.partition(":")
    return (name, path) if colon and name in _KNOWN else (None, data)


def find_corpus(data: object) -> tuple[Corpus, Path] | None:
    """The well-known corpus that :func:`read_examples` takes its argument for, and the corpus's folder.

    Args:
        data: what ``read_examples`` reads.

    Returns:
        ``None`` where it is something else: whatever is no folder, and a folder with a manifest or a saved data set.
    """
    if not isinstance(data, (str, Path)):
        return None
    name, path = split_scheme(str(data))
    folder = Path(path).expanduser()
    if name is not None:
        return _KNOWN[name], folder
    if is_saved_dataset(folder) or find_manifest(folder):
        return None
    return next(((corpus, folder) for corpus in _KNOWN.values() if corpus.is_at(folder)), None)


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
            - a data folder of Kaldi or ESPnet, with ``wav.scp``;
            - the folder of a corpus of ``CORPORA`` or ``SPEECH_CORPORA``, known by its layout or named:
              ``"esc10:/data/ESC-50"``;
            - a folder of one folder per class. Folders above these whose names all begin with ``train``, ``valid``,
              ``test`` (or another word for them) become the field ``split``;
            - tars: ``"shards:/data/train-{000000..000999}.tar"``, or a folder of them;
            - a ``datasets`` data set, the folder that its ``save_to_disk`` wrote, or ``"hf:owner/name"``.
        label_column: column of the class; ``None`` reads no labels. ``"label"`` is a corpus's own class, whatever
            its table calls it; with a folder per class it is the folder's name whatever this says.
        audio_column: column of the recordings; ``None`` finds it by its name.

    Returns:
        An example a recording, in the order of the source. Files exist, but have not been opened.

    Raises:
        DataError: the source, a column or an audio file is missing, a line is malformed, or a recording is listed
            twice.

    Warns:
        DataWarning: a corpus has not the number of recordings that it is published with, a manifest has columns that
            would change what is heard and are not read, or a folder holds files that are no recordings.
    """
    corpus = find_corpus(data)
    if corpus is not None:
        examples = corpus[0].read(corpus[1], label_column)
        miscount = corpus[0].miscount(len(examples))
        if miscount is not None:
            warnings.warn(miscount, DataWarning, stacklevel=2)
        return examples
    if is_sharded(data):
        return read_shards(str(data)).with_fields(label_column)
    if isinstance(data, str) and data.startswith("hf:"):
        dataset = load_hub(data.removeprefix("hf:"))
        examples = read_hf_dataset(dataset, label_column=label_column, audio_column=audio_column, where=data)
    elif isinstance(data, (str, Path)):
        path = Path(data).expanduser()
        if path.is_dir():
            content = FolderContent()
            examples = _read_folder(path, label_column, audio_column, content)
            content.warn_of_left_out(path)
        elif path.suffix.lower() not in MANIFEST_SUFFIXES:
            there = "is no list of recordings" if path.exists() else "there is no such file or folder"
            raise DataError(
                f"{path}: {there}; expected a folder, a manifest ({listed(sorted(MANIFEST_SUFFIXES))}), hf:owner/name, "
                f"{SCHEME}PATTERN.tar, or a corpus and its folder ({', '.join(f'{name}:' for name in _KNOWN)})"
            )
        elif not path.is_file():
            raise DataError(f"{path}: no such file")
        else:
            examples = read_manifest(path, label_column=label_column, audio_column=audio_column)
    else:
        examples = read_hf_dataset(data, label_column=label_column, audio_column=audio_column)
    _check_files(examples, str(data) if isinstance(data, (str, Path)) else "the data set")
    return examples


def read_recordings(
    data: Union[str, Path, "datasets.Dataset", "datasets.DatasetDict"], *, audio_column: str | None = None
) -> Examples:
    """Read a data set of any supported form without labels; of one in shards nothing but the index.

    Args:
        data: see :func:`read_examples`.
        audio_column: see :func:`read_examples`.

    Raises:
        DataError: see :func:`read_examples`.
    """
    if is_sharded(data):
        return read_shards(str(data))
    return ListedExamples(read_examples(data, label_column=None, audio_column=audio_column))


def is_sharded(data: object) -> bool:
    """Whether a data set lies in tars: ``shards:...``, a tar, or a folder with tars at its top and no manifest."""
    if not isinstance(data, (str, Path)):
        return False
    path = Path(data).expanduser()
    if str(data).startswith(SCHEME) or path.suffix == ".tar":
        return True
    return path.is_dir() and find_manifest(path) is None and any(path.glob("[!.]*.tar"))


def _read_folder(
    folder: Path, label_column: str | None, audio_column: str | None, content: FolderContent
) -> list[Example]:
    if is_saved_dataset(folder):
        dataset = load_saved(folder)
        return read_hf_dataset(dataset, label_column=label_column, audio_column=audio_column, where=str(folder))
    manifest = find_manifest(folder)
    if manifest is not None:
        return read_manifest(manifest, label_column=label_column, audio_column=audio_column)
    if is_kaldi(folder):
        return read_kaldi(folder, label_column=label_column)
    folders = [path for path in sorted(folder.iterdir()) if path.is_dir() and not is_hidden(path)]
    parts = [path for path in folders if find_manifest(path) or is_kaldi(path) or holds_recordings(path)]
    named = {part_led_by(path.name) for path in parts}
    # Where labels do not matter, a folder beside train and test is of an unknown split rather than a class.
    if parts and (None not in named or (label_column is None and {"train", "test"} <= named)):
        beside = files_in(folder)
        if beside.recordings:
            raise DataError(
                f"{folder}: recordings lie beside the folders {listed([path.name for path in parts])} "
                f"({listed([path.name for path in beside.recordings])}); move each into one of them"
            )
        content.left_out_with(beside)
        for path in folders:
            if path not in parts:
                content.left_out_with(folder_content(path))
        return [
            replace(example, fields={**example.fields, "split": path.name})
            for path in parts
            for example in _read_folder(path, label_column, audio_column, content)
        ]
    examples = read_class_folders(folder, labels_matter=label_column is not None, content=content)
    return examples if label_column is not None else [replace(example, label=None) for example in examples]


def _real_paths(files: Iterable[Path]) -> dict[Path, str]:
    """The file behind each path; folders, of which there are few, are followed once."""
    folders: dict[Path, str] = {}
    real = {}
    for file in files:
        if file.parent not in folders:
            folders[file.parent] = os.path.realpath(file.parent)
        real[file] = os.path.realpath(file) if file.is_symlink() else f"{folders[file.parent]}/{file.name}"
    return real


def _check_files(examples: list[Example], where: str) -> None:
    if not examples:
        raise DataError(
            f"{where}: holds no recordings; expected a manifest ({', '.join(MANIFEST_NAMES)}), "
            "a folder per class, or a saved datasets.Dataset"
        )
    found = {id(example): file for example in examples if (file := file_of(example)) is not None}
    files = dict.fromkeys(found.values())
    missing = [file for file in files if not is_file(file)]
    if missing:
        raise DataError(f"{where}: {len(missing)} of {len(files)} audio files do not exist: {listed(missing)}")
    # Links to one file are one recording; but where the hub's files lie, they link to what has the same content.
    real = {file: os.path.normpath(file) for file in files} if where.startswith("hf:") else _real_paths(files)
    times_listed: dict[tuple[str, str], list[str]] = {}
    for example in examples:
        if id(example) in found:
            times = example.audio.times if isinstance(example.audio, AudioSegment) else ""
            times_listed.setdefault((real[found[id(example)]], times), []).append(str(example.audio))
    repeated = [" = ".join(dict.fromkeys(names)) for names in times_listed.values() if len(names) > 1]
    if repeated:
        raise DataError(
            f"{where}: lists {len(repeated)} recordings more than once: {listed(repeated)}; keep one line each"
        )
