"""Read a data set of the Hugging Face ``datasets`` library, leaving its audio undecoded."""

from pathlib import Path
from typing import Any

from mambavox.data.columns import find_audio_column, require_column, to_labels
from mambavox.data.example import DatasetAudio, Example
from mambavox.errors import DataError


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder was written by ``save_to_disk``."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def load_saved(folder: Path) -> Any:
    """Load what ``save_to_disk`` wrote.

    Raises:
        DataError: the folder is incomplete.
    """
    import datasets  # takes a second to import

    try:
        return datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: cannot be loaded as a saved datasets.Dataset ({error})") from error


def load_hub(name: str) -> Any:
    """Load a data set from the Hugging Face hub.

    Args:
        name: ``owner/name``, or ``owner/name:configuration``.

    Raises:
        DataError: it cannot be loaded; the message says why.
    """
    import datasets

    repository, _, configuration = name.partition(":")
    try:
        return datasets.load_dataset(repository, configuration or None)
    except Exception as error:  # the hub, the network and the parser each raise their own kinds
        raise DataError(f"hf:{name}: cannot be loaded ({type(error).__name__}: {error})") from error


def read_hf_dataset(
    dataset: Any, *, label_column: str | None = "label", audio_column: str | None = None, where: str = "the data set"
) -> list[Example]:
    """Read the rows of a ``Dataset``, or of each split of a ``DatasetDict``.

    The audio column becomes ``Audio(decode=False)``, so that neither torchcodec nor ffmpeg is needed; audio stored
    in the data set stays in its Arrow file until it is read.

    Args:
        dataset: ``datasets.Dataset`` or ``datasets.DatasetDict``.
        label_column: column of the class; its ``ClassLabel`` numbers become names. ``None`` reads no labels.
        audio_column: column of the recordings; ``None`` takes the first ``Audio`` column, else finds it by name.
        where: what messages call the data set.

    Returns:
        An example a row; those of a ``DatasetDict`` have the name of their split in the field ``split``.

    Raises:
        DataError: it is neither, or lacks a column, or a row has no audio.
    """
    import datasets

    if isinstance(dataset, datasets.DatasetDict):
        return [
            Example(example.audio, example.label, {**example.fields, "split": split}, example.name)
            for split, part in dataset.items()
            for example in read_hf_dataset(
                part, label_column=label_column, audio_column=audio_column, where=f"{where}, split {split!r}"
            )
        ]
    if not isinstance(dataset, datasets.Dataset):
        raise DataError(
            f"{where}: is {type(dataset).__name__}; expected a path, a datasets.Dataset or a datasets.DatasetDict "
            "(not a streaming one)"
        )
    features = dataset.features
    audio_features = [column for column, feature in features.items() if isinstance(feature, datasets.Audio)]
    if audio_column is None and audio_features:
        audio_column = audio_features[0]
    audio_column = find_audio_column(audio_column, list(features), where)
    for column in audio_features:
        dataset = dataset.cast_column(column, datasets.Audio(decode=False))

    table = dataset.with_format("arrow").remove_columns(sorted({*audio_features, audio_column}))
    rows = table[:].to_pylist() if table.column_names else [{} for _ in range(len(dataset))]
    for column, feature in features.items():
        if isinstance(feature, datasets.ClassLabel):
            for row in rows:
                # -1 is how datasets marks the hidden labels of a test set.
                row[column] = feature.int2str(row[column]) if row[column] not in (None, -1) else None
    labels: list[str | None] = [None] * len(rows)
    if label_column is not None:
        require_column(label_column, list(features), "--label-column", where)
        places = [f"row {row}" for row in range(len(rows))]
        labels = to_labels([row[label_column] for row in rows], places, label_column, where)
    return [
        Example(audio, label, row, name)
        for (audio, name), label, row in zip(_audio(dataset, audio_column, where), labels, rows, strict=True)
    ]


def _audio(dataset: Any, column: str, where: str) -> list[tuple[Path | DatasetAudio, str]]:
    """The recording of each row and its name, without loading stored bytes."""
    table = dataset.with_format("arrow").select_columns([column])[:].flatten()  # a struct becomes "column.part"
    nothing: list[Any] = [None] * len(dataset)
    paths = nothing
    for part in (column, f"{column}.path"):
        if part in table.column_names:
            paths = table[part].to_pylist()
    stored = nothing
    for part in (f"{column}.bytes", f"{column}.array"):
        if part in table.column_names:
            stored = table[part].is_valid().to_pylist()
    found: list[tuple[Path | DatasetAudio, str]] = []
    for row, (path, is_stored) in enumerate(zip(paths, stored, strict=True)):
        name = f"{where}, row {row}" + (f" ({path})" if path else "")
        if is_stored:
            found.append((DatasetAudio(dataset, row, column), name))
        elif isinstance(path, str) and path:
            found.append((Path(path), path))
        else:
            raise DataError(f"{name}: column {column!r} holds no audio; expected a path or stored bytes")
    return found
