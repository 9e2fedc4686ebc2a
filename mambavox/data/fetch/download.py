"""Download one file: over cut connections, on from where it was left, and checked."""

import hashlib
import http.client
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mambavox.errors import DataError
from mambavox.files import write_atomically

PART = ".part"
"""End of the name of what has not come whole yet."""

_TRIES = 4  # in a row that bring nothing
_CONNECTIONS = 100  # in all
_PAUSE = 0.5  # seconds after the first of them, doubled each time
_TIMEOUT = 60.0  # seconds without a byte
_BLOCK = 1 << 18  # bytes
# Not every OSError: a full disk is none of them.
_BROKEN = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
_GOES_ON = 206
_BEYOND_THE_END = 416
_CLIENT_ERRORS = range(400, 500)
_TEMPORARY = (408, 425, 429)

Progress = Callable[[int, int | None], None]
"""Is told the bytes that are there, and those of the whole where the server says."""


@dataclass(frozen=True)
class Checksum:
    """A hash of a file.

    Attributes:
        algorithm: name of it, as ``hashlib`` has it.
        digest: in hexadecimal digits.
        publisher: who says so.
    """

    algorithm: str
    digest: str
    publisher: str


def download(url: str, path: Path, progress: Progress = lambda done, total: None) -> Path:
    """Bring a file; one that was begun is gone on with, if the server still has the same.

    Args:
        url: where it lies, http or https.
        path: where it goes; until it is whole it lies beside, as ``NAME.part``.
        progress: told of every block.

    Returns:
        The file.

    Raises:
        DataError: it cannot be had; the message names the address, and what there is of it is kept.
        OSError: it cannot be written.
    """
    if not url.startswith(("http://", "https://")):
        raise DataError(f"{url}: is no address of the web; expected http:// or https://")
    part = path.with_name(path.name + PART)
    reason: Exception = ConnectionError("nothing came")
    tries = 0
    for _ in range(_CONNECTIONS):
        before = _size(part)
        try:
            _bring(url, part, progress)
        except urllib.error.HTTPError as error:
            if error.code in _CLIENT_ERRORS and error.code not in _TEMPORARY:
                raise DataError(f"{url}: cannot be had: the server says {error.code} {error.reason}") from error
            reason = error
        except _BROKEN as error:
            reason = error
        else:
            part.replace(path)
            _facts_of(part).unlink(missing_ok=True)
            return path
        tries = 0 if _size(part) > before else tries + 1
        if tries == _TRIES:
            break
        time.sleep(_PAUSE * 2**tries if tries else 0)
    if not _size(part):
        raise DataError(
            f"{url}: cannot be reached ({_words(reason)}); check the connection, and give the same command again"
        ) from reason
    raise DataError(
        f"{url}: broke off ({_words(reason)}) after {_size(part):,} bytes, which are kept in {part}; give the same "
        "command to go on from there"
    ) from reason


def _bring(url: str, part: Path, progress: Progress) -> None:
    """One connection: bring what is not there yet."""
    there, facts = _size(part), _read_facts(part)
    headers = {"User-Agent": f"mambavox/{version('mambavox')}", "Accept-Encoding": "identity"}
    if there and facts.get("state"):
        # A server whose file is another one by now sends that one whole.
        headers |= {"Range": f"bytes={there}-", "If-Range": facts["state"]}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != _BEYOND_THE_END or not there:
            raise
        if there == facts.get("bytes"):
            return
        part.unlink()
        raise ConnectionError("what was there did not fit the server's file and was removed") from error
    with response:
        goes_on, sent = response.status == _GOES_ON, response.headers["Content-Range"] or ""
        if goes_on and not sent.startswith(f"bytes {there}-"):
            part.unlink(missing_ok=True)
            raise ConnectionError(f"the server sent {sent}, not from byte {there} on")
        there = there if goes_on else 0
        length = response.headers["Content-Length"]
        total = None if length is None else there + int(length)
        state = response.headers["ETag"] or response.headers["Last-Modified"] or ""
        if state.startswith("W/"):  # two files may share it
            state = ""
        write_atomically(_facts_of(part), json.dumps({"state": state, "bytes": total}) + "\n")
        with part.open("ab" if goes_on else "wb") as file:
            while block := response.read(_BLOCK):
                file.write(block)
                there += len(block)
                progress(there, total)
    if total is not None and there != total:
        raise ConnectionError(f"{there:,} of {total:,} bytes came")


def _facts_of(part: Path) -> Path:
    """File beside a part, of what the server said of the whole."""
    return part.with_name(part.name + ".json")


def _read_facts(part: Path) -> dict[str, Any]:
    try:
        facts = json.loads(_facts_of(part).read_text(encoding="utf-8"))
        return facts if isinstance(facts, dict) else {}
    except (OSError, ValueError):
        return {}


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _words(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server says {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return getattr(error.reason, "strerror", None) or str(error.reason)
    return str(error) or type(error).__name__


def file_digest(path: Path, algorithm: str) -> str:
    """Hash of a file, in hexadecimal digits.

    Args:
        path: the file.
        algorithm: as ``hashlib`` names it.
    """
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
