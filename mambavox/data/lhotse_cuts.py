"""Rows of lhotse's cuts (``.jsonl``), as a manifest has them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mambavox.errors import DataError

_FIELDS = ("text", "speaker", "language", "gender")
_HARMLESS = ("Resample",)  # what is heard is resampled anyway


def is_cut(row: Mapping[str, Any]) -> bool:
    """Whether a row is a cut of lhotse."""
    recording = row.get("recording")
    return (isinstance(recording, Mapping) and "sources" in recording) or isinstance(row.get("tracks"), list)


def flatten_cut(row: Mapping[str, Any], folder: Path, place: str) -> dict[str, Any]:
    """A cut as a row with ``audio``, ``start``, ``duration`` and what its supervisions say.

    Args:
        row: the cut.
        folder: of the manifest.
        place: file and line, for messages.

    Raises:
        DataError: it is a mix or has been altered, so that its file holds something else; or it lies in no file.
    """
    recording = row.get("recording")
    if not isinstance(recording, Mapping):
        raise DataError(f"{place}: is a mix of cuts; save its audio (lhotse's CutSet.save_audios), and the new cuts")
    altered = [str(item.get("name")) for item in recording.get("transforms") or () if isinstance(item, Mapping)]
    if any(name not in _HARMLESS for name in altered):
        raise DataError(
            f"{place}: its recording is altered ({', '.join(altered)}), which is not done here; save its audio "
            "(lhotse's CutSet.save_audios), and the new cuts"
        )
    sources = recording.get("sources")
    source = sources[0] if isinstance(sources, list) and len(sources) == 1 else None
    if not isinstance(source, Mapping) or source.get("type") != "file" or not isinstance(source.get("source"), str):
        raise DataError(f"{place}: its recording lies in {sources!r:.200}; expected one file")
    path = Path(source["source"])  # relative to the working folder, as lhotse has it, or to the manifest
    audio = path.absolute() if not (folder / path).exists() and path.exists() else path
    kept = {key: value for key, value in row.items() if key not in ("recording", "supervisions", "type")}
    return {"audio": str(audio), **kept, **_said(row.get("supervisions"), place)}


def _said(supervisions: Any, place: str) -> dict[str, str]:
    """What supervisions say: their texts in order of time, and what is the same of all."""
    if not supervisions:
        return {}
    try:
        ordered = sorted(supervisions, key=lambda item: float(item["start"]))
        found = {field: [str(item[field]) for item in ordered if item.get(field) is not None] for field in _FIELDS}
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise DataError(f"{place}: its supervisions cannot be read ({error!r}); expected those of lhotse") from error
    said = {field: values[0] for field, values in found.items() if len(set(values)) == 1}
    return said | ({"text": " ".join(found["text"])} if found["text"] else {})
