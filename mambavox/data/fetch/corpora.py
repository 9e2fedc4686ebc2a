"""The corpora that ``mambavox data get`` brings: addresses, checksums, licences, manifests."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from mambavox.data.columns import listed
from mambavox.data.datasets.esc50 import read_esc10, read_esc50
from mambavox.data.datasets.fsdd import read_fsdd
from mambavox.data.datasets.librispeech import read_librispeech
from mambavox.data.datasets.speech_commands import read_speech_commands
from mambavox.data.example import Example
from mambavox.data.fetch.download import Checksum, Progress, download, file_digest
from mambavox.data.fetch.unpack import files_digest, unpack
from mambavox.errors import DataError
from mambavox.files import watching_the_disk, write_atomically

MANIFEST = "manifest.jsonl"
"""Written last: a folder with it holds a whole corpus."""

_RECORDED = "checksums.json"
_ALGORITHM = "sha256"
_SLR31 = "https://www.openslr.org/resources/31"
_FSDD_COMMIT = "26eb9aaf76e81b692f806f9140c2d2777410d7a1"


@dataclass(frozen=True)
class Archive:
    """A file that a corpus is published as.

    Attributes:
        url: where.
        checksum: that is published for it; ``None``: that of the first download is kept, and later ones must have it.
    """

    url: str
    checksum: Checksum | None = None

    @property
    def name(self) -> str:
        """Of the file."""
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class CorpusSource:
    """Where a corpus comes from.

    Attributes:
        name: how it is asked for.
        title: what it is, in a line.
        licence: of the recordings.
        megabytes: about, of what is downloaded.
        archives: that it is published as.
        root: folder inside the archives that its reader takes; ``*`` stands for any name.
        reader: reads the recordings of that folder.
        use: how it is adapted to, behind ``mambavox adapt --data FOLDER``.
        recordings: how many there are; ``None`` where nobody says.
        files: folder below the root and the hash that its files have, see ``files_digest``.
    """

    name: str
    title: str
    licence: str
    megabytes: int
    archives: tuple[Archive, ...]
    root: str
    reader: Callable[[Path], list[Example]]
    use: str = ""
    recordings: int | None = None
    files: tuple[str, Checksum] | None = None


_ESC50 = Archive("https://github.com/karolpiczak/ESC-50/archive/master.zip")
_ESC_LICENCE = "CC BY-NC 3.0; ESC-10 CC BY 3.0"

SOURCES = {
    source.name: source
    for source in (
        CorpusSource(
            name="fsdd",
            title="Free Spoken Digit Dataset: 10 English digits, 6 speakers",
            licence="CC BY-SA 4.0",
            megabytes=17,
            archives=(Archive(f"https://github.com/Jakobovski/free-spoken-digit-dataset/archive/{_FSDD_COMMIT}.zip"),),
            root="free-spoken-digit-dataset-*",
            reader=read_fsdd,
            recordings=3000,
            files=(
                "recordings",
                Checksum(
                    _ALGORITHM,
                    "1ee7c51462e5e1101420e0d9b488e439a459b64780be69a5e589b7dabc0621db",
                    f"the repository's commit {_FSDD_COMMIT[:7]}",
                ),
            ),
        ),
        CorpusSource(
            name="esc50",
            title="ESC-50: 50 environmental sounds, 5 folds",
            licence=_ESC_LICENCE,
            megabytes=620,
            archives=(_ESC50,),
            root="ESC-50-*",
            reader=read_esc50,
            recordings=2000,
        ),
        CorpusSource(
            name="esc10",
            title="ESC-10: the 10 sounds of ESC-50 that its author chose as the easier ones, 5 folds",
            licence=_ESC_LICENCE,
            megabytes=620,
            archives=(_ESC50,),
            root="ESC-50-*",
            reader=read_esc10,
            recordings=400,
        ),
        CorpusSource(
            name="speech-commands",
            title="Speech Commands V2: 35 English words",
            licence="CC BY 4.0",
            megabytes=2429,
            archives=(
                Archive(
                    "https://download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
                    Checksum(
                        _ALGORITHM,
                        "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
                        "TensorFlow Datasets and torchaudio",
                    ),
                ),
            ),
            root="",
            reader=read_speech_commands,
            recordings=105_829,
        ),
        CorpusSource(
            name="librispeech-mini",
            title="Mini LibriSpeech: read English with transcripts, train-clean-5 and dev-clean-2",
            licence="CC BY 4.0",
            megabytes=458,
            archives=(
                Archive(
                    f"{_SLR31}/train-clean-5.tar.gz",
                    Checksum("md5", "5df7d4e78065366204ca6845bb08f490", "openslr.org/resources/31/md5sum.txt"),
                ),
                Archive(
                    f"{_SLR31}/dev-clean-2.tar.gz",
                    Checksum("md5", "6d7ab67ac6a1d2c993d050e16d61080d", "openslr.org/resources/31/md5sum.txt"),
                ),
            ),
            root="LibriSpeech",
            reader=read_librispeech,
            use=" --task ctc --backbone nano-mamba-hubert",
        ),
    )
}
"""Name -> source."""


def default_folder() -> Path:
    """Where corpora go: ``MAMBAVOX_DATA``, or ``mambavox`` in the user's cache (``XDG_CACHE_HOME`` or ``~/.cache``)."""
    if given := os.environ.get("MAMBAVOX_DATA"):
        return Path(given).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "mambavox"


def get_corpus(
    name: str,
    folder: Path | None = None,
    *,
    progress: Callable[[str], Progress] = lambda file: lambda done, total: None,
    keep_archives: bool = False,
) -> Path:
    """Bring a corpus, unless it is there: download, check, unpack, and write its manifest.

    Args:
        name: a key of ``SOURCES``.
        folder: that holds a folder for each corpus; default :func:`default_folder`.
        progress: for the name of a file, what is told of its bytes.
        keep_archives: leave what was downloaded beside what was unpacked.

    Returns:
        The corpus's folder, with ``manifest.jsonl``, whose paths are relative to it.

    Raises:
        DataError: no such corpus, another process is bringing it, it cannot be had, or it is not what was published.
        RunError: the disk is full.
        OSError: the folder cannot be written into.
    """
    if name not in SOURCES:
        raise DataError(f"{name}: is no corpus that can be had here; expected {listed(list(SOURCES))}")
    source = SOURCES[name]
    folder = (folder or default_folder()).expanduser()
    target = folder / name
    if (target / MANIFEST).is_file():
        return target
    archives = folder / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    try:
        with (
            FileLock(archives / ".lock", blocking=False),
            watching_the_disk(folder, lambda: "Make room, and give the same command again"),
        ):
            _bring(source, target, archives, progress)
            if not keep_archives:
                _remove_archives(source, archives)
    except Timeout as error:
        raise DataError(f"{folder}: another process brings a corpus into it; wait until it ends") from error
    return target


def _bring(source: CorpusSource, target: Path, archives: Path, progress: Callable[[str], Progress]) -> None:
    files = []
    for archive in source.archives:
        path = archives / archive.name
        if not path.is_file():
            download(archive.url, path, progress(archive.name))
        _check(archive, path, archives / _RECORDED)
        files.append(path)
    target.mkdir(exist_ok=True)
    try:
        parts = [target / f"part{number}" if len(files) > 1 else target / "corpus" for number in range(len(files))]
        for file, part in zip(files, parts, strict=True):
            unpack(file, part)
        examples = [example for part in parts for example in source.reader(_root(part, source))]
        _check_contents(source, parts, len(examples))
    except DataError:
        # What is whole and yet wrong would be wrong again.
        _remove_archives(source, archives)
        shutil.rmtree(target)
        raise
    _record(source, archives)
    _write_manifest(examples, target)


def _check_contents(source: CorpusSource, parts: Sequence[Path], recordings: int) -> None:
    addresses = ", ".join(archive.url for archive in source.archives)
    if source.recordings not in (None, recordings):
        raise DataError(f"{addresses}: holds {recordings} recordings; expected {source.recordings}. It was removed")
    if source.files is None:
        return
    below, checksum = source.files
    found = files_digest(_root(parts[0], source) / below)
    if found != checksum.digest:
        raise DataError(
            f"{addresses}: its files in {below}/ are not those of {checksum.publisher} ({checksum.algorithm} {found}; "
            f"expected {checksum.digest}). It was removed"
        )


def _remove_archives(source: CorpusSource, archives: Path) -> None:
    for archive in source.archives:
        (archives / archive.name).unlink(missing_ok=True)


def _root(part: Path, source: CorpusSource) -> Path:
    if not source.root:
        return part
    found = sorted(part.glob(source.root))
    if len(found) != 1:
        raise DataError(f"{part}: holds no folder {source.root}; expected what {source.archives[0].url} holds")
    return found[0]


def _check(archive: Archive, path: Path, recorded: Path) -> None:
    """Compare a file with the checksum that is published, or else with that of its first download."""
    checksum = archive.checksum
    kept = _read_recorded(recorded).get(archive.url)
    if checksum is None and kept:
        checksum = Checksum(_ALGORITHM, kept, f"the first download, kept in {recorded}")
    if checksum is None or (found := file_digest(path, checksum.algorithm)) == checksum.digest:
        return
    size = path.stat().st_size
    path.unlink()
    changed = "" if archive.checksum else "; if its authors have changed it, remove its line there"
    raise DataError(
        f"{archive.url}: {path.name} ({size:,} bytes) has the {checksum.algorithm} {found}, and by "
        f"{checksum.publisher} it is {checksum.digest}; it was removed: give the same command to get it again{changed}"
    )


def _record(source: CorpusSource, archives: Path) -> None:
    """Keep the checksums of archives for which none is published."""
    path = archives / _RECORDED
    found = {
        archive.url: file_digest(archives / archive.name, _ALGORITHM)
        for archive in source.archives
        if archive.checksum is None
    }
    if found:
        write_atomically(path, json.dumps({**_read_recorded(path), **found}, indent=2) + "\n")


def _read_recorded(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); remove it") from error
    return {str(url): str(digest) for url, digest in found.items()} if isinstance(found, dict) else {}


def _write_manifest(examples: Sequence[Example], folder: Path) -> None:
    lines = []
    for example in examples:
        assert isinstance(example.audio, Path)
        label = {} if example.label is None else {"label": example.label}
        row = {"path": example.audio.relative_to(folder).as_posix(), **label, **example.fields}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_atomically(folder / MANIFEST, "".join(lines))
