"""Corpora are brought whole or not at all, over cut connections, from a server on this machine."""

import hashlib
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from mambavox.cli import app
from mambavox.data import read_examples
from mambavox.data.fetch import SOURCES, default_folder, download, get_corpus
from mambavox.data.fetch.corpora import Archive
from mambavox.data.fetch.download import Checksum
from mambavox.data.fetch.unpack import files_digest, unpack
from mambavox.errors import DataError


@dataclass
class Server:
    """A web server with one file, which cuts the first connections off.

    Attributes:
        content: of the file.
        etag: which version it is; empty: it does not say, and sends it whole whatever is asked for.
        cuts: bytes after which each of the next connections is cut.
        status: that is answered in place of the file.
        asked: the ranges that were asked for, in order.
    """

    content: bytes
    etag: str = '"one"'
    cuts: list[int] = field(default_factory=list)
    status: int = 200
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers["Range"] or ""
        self.asked.append(asked)
        if self.status != 200:
            request.send_error(self.status)
            return
        start = 0
        if asked and self.etag and request.headers["If-Range"] == self.etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        if self.etag:
            request.send_header("ETag", self.etag)
        request.send_header("Content-Length", str(len(self.content) - start))
        request.end_headers()
        cut = self.cuts.pop(0) if self.cuts else len(self.content)
        request.wfile.write(self.content[start : start + cut])
        request.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server, on a free port; failed connections are tried again at once."""
    monkeypatch.setattr(download, "_PAUSE", 0.0)
    told = Server(np.random.default_rng(0).bytes(3_000_000))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told.answer(self)

        def log_message(self, *arguments: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told.url = f"http://127.0.0.1:{running.server_port}/corpus.zip"
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield told
    running.shutdown()
    running.server_close()


def test_a_cut_connection_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    server.cuts = [1_000_000, 1]
    seen = []
    path = download.download(server.url, tmp_path / "corpus.zip", lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == server.content
    assert server.asked == ["", "bytes=1000000-", "bytes=1000001-"]
    assert seen[-1] == (3_000_000, 3_000_000)
    assert [item.name for item in tmp_path.iterdir()] == ["corpus.zip"]


def test_a_stopped_download_is_gone_on_with_later(server: Server, tmp_path: Path) -> None:
    server.cuts = [1_000_000, *[0] * 20]
    with pytest.raises(DataError, match=r"corpus\.zip: broke off .* after 1,000,000 bytes.*same command"):
        download.download(server.url, tmp_path / "corpus.zip")
    assert not (tmp_path / "corpus.zip").exists()
    server.cuts.clear()
    server.asked.clear()
    assert download.download(server.url, tmp_path / "corpus.zip").read_bytes() == server.content
    assert server.asked == ["bytes=1000000-"]


@pytest.mark.parametrize("etag", ['"two"', ""])
def test_what_was_begun_of_another_file_is_not_mixed_in(server: Server, tmp_path: Path, etag: str) -> None:
    server.cuts = [1_000_000, *[0] * 20]
    with pytest.raises(DataError):
        download.download(server.url, tmp_path / "corpus.zip")
    server.cuts.clear()
    server.etag, server.content = etag, server.content[::-1]
    assert download.download(server.url, tmp_path / "corpus.zip").read_bytes() == server.content


def test_what_the_server_refuses(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(DataError, match=r"corpus\.zip: cannot be had: the server says 404 Not Found"):
        download.download(server.url, tmp_path / "corpus.zip")
    assert len(server.asked) == 1
    server.status = 503
    with pytest.raises(DataError, match=r"cannot be reached \(the server says 503"):
        download.download(server.url, tmp_path / "corpus.zip")
    with pytest.raises(DataError, match="expected http"):
        download.download("file:///etc/hostname", tmp_path / "corpus.zip")


@pytest.fixture
def digits(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    """A server of a small FSDD, whose address and files' hash are those of the corpus."""
    recordings = tmp_path / "published" / "recordings"
    recordings.mkdir(parents=True)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for digit in "07":
            for index in (0, 5, 12):
                file = recordings / f"{digit}_ann_{index}.wav"
                soundfile.write(file, np.full(800, 0.1 + 0.01 * index), 8000)
                archive.write(file, f"free-spoken-digit-dataset-abc/recordings/{file.name}")
    server.content = packed.getvalue()
    files = ("recordings", Checksum("sha256", files_digest(recordings), "its authors"))
    source = replace(SOURCES["fsdd"], archives=(Archive(server.url),), recordings=6, files=files)
    monkeypatch.setitem(SOURCES, "fsdd", source)
    monkeypatch.setenv("MAMBAVOX_DATA", str(tmp_path / "corpora"))
    return server


def test_a_corpus_is_ready_to_be_adapted_to(digits: Server, tmp_path: Path) -> None:
    digits.cuts = [100]
    result = CliRunner().invoke(app, ["data", "get", "fsdd"])
    folder = tmp_path / "corpora" / "fsdd"
    assert result.exit_code == 0, result.output
    assert f"try: mambavox adapt --data {folder}" in result.stdout
    examples = read_examples(folder)
    assert [(item.label, item.fields["split"]) for item in examples] == [
        (digit, split) for digit in "07" for split in ("test", "train", "valid")
    ]
    assert all(len(item.read()) == 1600 for item in examples)
    assert [path.name for path in (tmp_path / "corpora" / "archives").glob("*.zip")] == []
    asked = len(digits.asked)
    assert get_corpus("fsdd") == folder
    assert len(digits.asked) == asked, "what is there was brought again"
    assert "fsdd              there " in CliRunner().invoke(app, ["data", "list"]).stdout


def test_a_wrong_checksum(digits: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    right = SOURCES["fsdd"]
    wrong = Archive(digits.url, Checksum("md5", "0" * 32, "its authors"))
    monkeypatch.setitem(SOURCES, "fsdd", replace(right, archives=(wrong,)))
    result = CliRunner().invoke(app, ["data", "get", "fsdd"])
    found = hashlib.md5(digits.content).hexdigest()
    assert result.exit_code == 1
    for told in (digits.url, f"{len(digits.content):,} bytes", f"md5 {found}", "its authors it is 000", "was removed"):
        assert told in result.stderr
    assert not (tmp_path / "corpora" / "fsdd").exists()
    assert not (tmp_path / "corpora" / "archives" / "corpus.zip").exists()
    # The files inside are checked, too, however they were packed.
    assert right.files is not None
    monkeypatch.setitem(SOURCES, "fsdd", replace(right, files=("recordings", Checksum("sha256", "0" * 64, "them"))))
    with pytest.raises(DataError, match=r"corpus\.zip: its files in recordings/ are not those of them"):
        get_corpus("fsdd")
    monkeypatch.setitem(SOURCES, "fsdd", replace(right, recordings=7))
    with pytest.raises(DataError, match="holds 6 recordings; expected 7"):
        get_corpus("fsdd")
    assert not (tmp_path / "corpora" / "fsdd").exists()
    assert not (tmp_path / "corpora" / "archives" / "checksums.json").exists()


def test_the_first_download_says_what_later_ones_must_be(digits: Server, tmp_path: Path) -> None:
    get_corpus("fsdd")
    recorded = tmp_path / "corpora" / "archives" / "checksums.json"
    assert json.loads(recorded.read_text()) == {digits.url: hashlib.sha256(digits.content).hexdigest()}
    (tmp_path / "corpora" / "fsdd" / "manifest.jsonl").unlink()
    digits.content, digits.etag = digits.content + b"!", '"two"'
    with pytest.raises(DataError, match=r"by the first download, kept in .*checksums\.json.*remove its line"):
        get_corpus("fsdd")


def test_a_corpus_of_two_archives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Archives that are there already, such as those another machine brought, are checked and not brought again."""
    archives = tmp_path / "archives"
    archives.mkdir()
    published = []
    for archive in SOURCES["librispeech-mini"].archives:
        subset = archive.name.removesuffix(".tar.gz")
        chapter = tmp_path / "LibriSpeech" / subset / "84" / "121"
        chapter.mkdir(parents=True)
        soundfile.write(chapter / "84-121-0000.flac", np.full(1600, 0.1), 16_000)
        (chapter / "84-121.trans.txt").write_text(f"84-121-0000 FROM {subset.upper()}\n")
        with tarfile.open(archives / archive.name, "w:gz") as tar:
            tar.add(chapter.parents[1], f"./LibriSpeech/{subset}")
        digest = hashlib.md5((archives / archive.name).read_bytes()).hexdigest()
        published.append(Archive(archive.url, Checksum("md5", digest, "openslr.org")))
    source = replace(SOURCES["librispeech-mini"], archives=tuple(published))
    monkeypatch.setitem(SOURCES, "librispeech-mini", source)
    examples = read_examples(get_corpus("librispeech-mini", tmp_path), label_column=None)
    assert [(item.fields["split"], item.fields["text"]) for item in examples] == [
        ("train", "FROM TRAIN-CLEAN-5"),
        ("valid", "FROM DEV-CLEAN-2"),
    ]


def test_names_and_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"fsd: is no corpus.*fsdd.*librispeech-mini"):
        get_corpus("fsd")
    monkeypatch.delenv("MAMBAVOX_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "mambavox"


@pytest.mark.parametrize("name", ["../out.wav", "/tmp/out.wav", "a/../../out.wav"])
def test_archives_that_reach_out_of_their_folder(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, "")
    for file in ("a.tar.gz", "a.zip"):
        with pytest.raises(DataError, match=r"out\.wav, which lies outside"):
            unpack(tmp_path / file, tmp_path / "into")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "a.zip"]


def test_links_and_damage(tmp_path: Path) -> None:
    link = tarfile.TarInfo("a/link.wav")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.addfile(link)
    with pytest.raises(DataError, match=r"link\.wav, which is no file"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "into")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.wav", np.random.default_rng(0).bytes(10_000))
    whole = (tmp_path / "a.zip").read_bytes()
    for damaged in (whole[:5000], whole[:5000] + b"!" + whole[5001:], b"nothing"):
        (tmp_path / "a.zip").write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.zip: is no whole archive"):
            unpack(tmp_path / "a.zip", tmp_path / "into")
