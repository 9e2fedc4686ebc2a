"""Tars of recordings: packed, indexed, found and read; what is broken is named."""

import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from mambavox.cli import app
from mambavox.data import Example, read_examples, read_recordings, recording_keys
from mambavox.data.shards import pack
from mambavox.data.shards.ahead import ReadAhead
from mambavox.data.shards.archive import OpenTars
from mambavox.data.shards.examples import ShardedExamples, read_shards
from mambavox.data.shards.find import find_tars
from mambavox.data.shards.index import ShardIndex, index_path, index_shards
from mambavox.data.shards.pack import make_shards
from mambavox.errors import AudioError, DataError, DataWarning


def noise(number: int) -> np.ndarray[Any, Any]:
    """16-bit noise of a length of its own."""
    generator = np.random.default_rng(number)
    return generator.integers(-3000, 3000, size=3000 + 100 * number).astype(np.int16)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A manifest of 12 recordings of two speakers."""
    lines = []
    for number in range(12):
        path = tmp_path / "corpus" / f"speaker{number % 2}" / f"clip.{number:02d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise(number), 16_000)
        row = {
            "path": str(path.relative_to(tmp_path / "corpus")),
            "speaker": f"s{number % 2}",
            "text": f"said {number}",
        }
        lines.append(json.dumps(row))
    (tmp_path / "corpus" / "manifest.jsonl").write_text("\n".join(lines))
    return tmp_path / "corpus" / "manifest.jsonl"


def recordings_of(manifest: Path) -> list[Example]:
    return read_examples(manifest, label_column=None)


@pytest.mark.parametrize("audio", ["flac", "keep"])
def test_what_is_packed_is_what_is_read(corpus: Path, tmp_path: Path, audio: Any) -> None:
    examples = recordings_of(corpus)
    packed = make_shards(examples, tmp_path / "tars", shard_bytes=30_000, audio=audio, seed=None)
    assert packed.tars > 2 and packed.recordings == 12 and not packed.left_out
    found = read_shards(tmp_path / "tars")
    suffix = {"flac": "flac", "keep": "wav"}[audio]
    assert list(found.keys) == [f"speaker{number % 2}/clip_{number:02d}.{suffix}" for number in range(12)]
    assert found.samples.tolist() == [len(noise(number)) for number in range(12)]
    for number, example in enumerate(found):
        assert np.array_equal(np.rint(example.read() * 2**15), noise(number))
    if audio == "keep":
        assert found[3].source == Path(examples[3].audio).read_bytes()  # type: ignore[arg-type]
    told = read_examples(f"shards:{tmp_path}/tars/*.tar", label_column="speaker")
    assert [example.label for example in told] == ["s0", "s1"] * 6
    assert [example.fields["text"] for example in told] == [f"said {number}" for number in range(12)]
    with pytest.raises(DataError, match=r"has no 'class' in its JSON; it has speaker, text.*--label-column"):
        read_examples(str(tmp_path / "tars"), label_column="class")
    assert sum(path.stat().st_size for path in found.tars) == pytest.approx(packed.gigabytes * 1e9)


def test_webdataset_reads_what_is_packed(corpus: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    make_shards(recordings_of(corpus), tmp_path / "tars", shard_bytes=30_000)
    ours = read_shards(tmp_path / "tars")
    theirs = list(webdataset.WebDataset([str(path) for path in ours.tars], shardshuffle=False, empty_check=False))
    assert [f"{sample['__key__']}.flac" for sample in theirs] == list(ours.keys)
    for sample, example in zip(theirs, ours, strict=True):
        assert sample["flac"] == example.source
        assert json.loads(sample["json"])["samples"] == len(example.read())


def test_tars_of_webdataset_are_read(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    for shard in range(2):
        with webdataset.TarWriter(str(tmp_path / f"a-{shard}.tar")) as writer:
            for number in range(3):
                buffer = io.BytesIO()
                soundfile.write(buffer, noise(number + 3 * shard), 16_000, format="FLAC")
                # Numbered anew in each tar, with a member that is no recording.
                writer.write(
                    {"__key__": f"{number:04d}", "flac": buffer.getvalue(), "txt": "words", "json": {"label": "x"}}
                )
    with pytest.warns(DataWarning, match=r"6 members .* left out: 6 \.txt"):
        assert [len(index.keys) for index in index_shards(find_tars(tmp_path))] == [3, 3]
    found = read_shards(f"{tmp_path}/a-{{0..1}}.tar")
    assert list(found.keys) == [f"a-{shard}/{number:04d}.flac" for shard in range(2) for number in range(3)]
    for number, example in enumerate(found):
        assert np.array_equal(np.rint(example.read() * 2**15), noise(number))
    assert {example.label for example in read_examples(tmp_path)} == {"x"}


def test_tars_are_packed_anew(corpus: Path, tmp_path: Path) -> None:
    make_shards(recordings_of(corpus), tmp_path / "small", shard_bytes=20_000, audio="keep", seed=None)
    again = read_examples(f"shards:{tmp_path}/small", label_column=None)
    make_shards(again, tmp_path / "large", audio="keep", seed=None)
    small, large = read_shards(tmp_path / "small"), read_shards(tmp_path / "large")
    assert len(small.tars) > 2 and len(large.tars) == 1
    assert small.keys == large.keys and list(recording_keys(again)) == list(small.keys)
    assert [one.source for one in small] == [other.source for other in large]
    assert [example.fields["text"] for example in large.with_fields(None)] == [f"said {n}" for n in range(12)]


def test_an_index_may_lie_beside_links(corpus: Path, tmp_path: Path) -> None:
    make_shards(recordings_of(corpus), tmp_path / "theirs")
    index_path(tmp_path / "theirs" / "shard-000000.tar").unlink()
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "a.tar").symlink_to(tmp_path / "theirs" / "shard-000000.tar")
    index_shards(find_tars(tmp_path / "ours"))
    assert len(read_shards(tmp_path / "ours")) == 12
    assert not index_path(tmp_path / "theirs" / "shard-000000.tar").exists()


def test_tars_of_lhotse_are_read(tmp_path: Path) -> None:
    lhotse = pytest.importorskip("lhotse")
    for number in range(5):
        soundfile.write(tmp_path / f"{number}.wav", noise(number), 16_000)
    cuts = lhotse.CutSet.from_cuts(
        lhotse.Recording.from_file(tmp_path / f"{number}.wav").to_cut() for number in range(5)
    )
    (tmp_path / "shar").mkdir()
    cuts.to_shar(tmp_path / "shar", fields={"recording": "flac"}, shard_size=3)
    index_shards(find_tars(f"{tmp_path}/shar/recording.*.tar"))
    found = read_shards(f"{tmp_path}/shar/recording.*.tar")
    assert len(found) == 5 and len(found.tars) == 2
    for number, example in enumerate(found):
        assert np.array_equal(np.rint(example.read() * 2**15), noise(number))


def test_long_recordings_are_cut(corpus: Path, tmp_path: Path) -> None:
    # 3000 to 4100 samples: pieces of at most 1900 are two of the shorter ones and three of the longer.
    options: dict[str, Any] = {"shard_bytes": 30_000, "seed": None, "cut_seconds": 1900 / 16_000}
    packed = make_shards(recordings_of(corpus), tmp_path / "tars", audio="keep", **options)
    found = read_shards(tmp_path / "tars")
    pieces = [2 if len(noise(number)) <= 3800 else 3 for number in range(12)]
    assert packed.recordings == len(found) == sum(pieces) and packed.hours == pytest.approx(
        sum(len(noise(number)) for number in range(12)) / 16_000 / 3600
    )
    told = iter(found.with_fields(None))
    for number in range(12):
        parts = [next(told) for _ in range(pieces[number])]
        whole = np.concatenate([np.rint(part.read() * 2**15) for part in parts])
        assert np.array_equal(whole, noise(number)) and max(len(part.read()) for part in parts) <= 1900
        starts = np.cumsum([0, *(part.fields["samples"] for part in parts[:-1])]) / 16_000
        assert [part.fields["start"] for part in parts] == starts.tolist()
    assert list(found.keys)[:2] == [f"speaker0/clip_00_000{piece}.flac" for piece in (0, 1)]
    with pytest.raises(DataError, match=r"cut_seconds was 0\.11875 and is 1"):
        make_shards(recordings_of(corpus), tmp_path / "tars", audio="keep", **{**options, "cut_seconds": 1.0})


def test_parts_have_tars_of_their_own(corpus: Path, tmp_path: Path) -> None:
    examples = [
        replace(example, fields={**example.fields, "split": "dev" if number % 4 == 3 else "train"})
        for number, example in enumerate(recordings_of(corpus))
    ]
    make_shards(examples, tmp_path / "tars", shard_bytes=30_000, seed=1)
    found = read_shards(tmp_path / "tars")
    assert {path.name.split("-")[0] for path in found.tars} == {"train", "valid"}
    valid = {
        key for key, part in zip(found.keys, np.array(found.parts())[found.shards], strict=True) if part == "valid"
    }
    assert valid == {f"speaker1/clip_{number:02d}.flac" for number in (3, 7, 11)}
    # Packed in an order of the seed.
    train = [key for key in found.keys if key not in valid]
    assert train != sorted(train)


def test_an_interrupted_call_goes_on(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = recordings_of(corpus)
    options: dict[str, Any] = {"shard_bytes": 30_000, "seed": 4, "num_workers": 1}
    make_shards(examples, tmp_path / "whole", **options)
    write = pack._write

    def fail_at_the_third(tar: Path, *arguments: Any) -> ShardIndex:
        if tar.name == "shard-000002.tar":
            tar.with_name(f".{tar.name}.partial").write_bytes(b"half a tar")
            tar.write_bytes(b"a tar without index")
            raise KeyboardInterrupt
        return write(tar, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(pack, "_write", fail_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            make_shards(examples, tmp_path / "broken", **options)
    read = []
    original = Example.read
    monkeypatch.setattr(Example, "read", lambda self, rate=16_000: read.append(self.name) or original(self, rate))
    make_shards(examples, tmp_path / "broken", **options)
    contents = [
        {path.name: path.read_bytes() for path in sorted((tmp_path / name).iterdir())} for name in ("whole", "broken")
    ]
    assert contents[0] == contents[1]
    packed_before = sum(len(ShardIndex.load(tmp_path / f"whole/shard-00000{number}.tar").keys) for number in (0, 1))
    assert len(read) == 12 - packed_before > 0
    for change, message in (({"seed": 5}, "seed was 4 and is 5"), ({"audio": "keep"}, "audio was flac and is keep")):
        with pytest.raises(DataError, match=message):
            make_shards(examples, tmp_path / "broken", **{**options, **change})
    with pytest.raises(DataError, match="recordings was 12 and is 11"):
        make_shards(examples[1:], tmp_path / "broken", **options)
    with pytest.raises(DataError, match="expected a new folder"):
        make_shards(examples, corpus.parent, **options)


KILLED = """
import os, signal, sys
from pathlib import Path
from mambavox.data import read_examples
from mambavox.data.shards.index import ShardIndex
from mambavox.data.shards.pack import make_shards
save = ShardIndex.save
def die_between(self, path):
    if path.name.startswith("shard-000001"):
        os.kill(os.getpid(), signal.SIGKILL)  # the tar is there, its index is not
    save(self, path)
ShardIndex.save = die_between
make_shards(read_examples(sys.argv[1], label_column=None), Path(sys.argv[2]), shard_bytes=30_000, seed=4)
"""


def test_a_killed_process_loses_no_tar(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    process = subprocess.run([sys.executable, "-c", KILLED, str(corpus), str(folder)], capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    first = (folder / "shard-000000.tar").stat().st_mtime_ns
    with pytest.raises(DataError, match=r"shard-000001\.tar: has no index.*mambavox shards index"):
        read_shards(folder)
    make_shards(recordings_of(corpus), folder, shard_bytes=30_000, seed=4)
    assert (folder / "shard-000000.tar").stat().st_mtime_ns == first
    make_shards(recordings_of(corpus), tmp_path / "whole", shard_bytes=30_000, seed=4)
    assert list(read_shards(folder).keys) == list(read_shards(tmp_path / "whole").keys)


def test_broken_recordings_are_named(corpus: Path, tmp_path: Path) -> None:
    examples = recordings_of(corpus)
    torn = Path(examples[5].audio)  # type: ignore[arg-type]
    torn.write_bytes(torn.read_bytes()[:2000])
    options: dict[str, Any] = {"shard_bytes": 30_000, "seed": None}
    with pytest.raises(AudioError, match=r"(?s)clip\.05\.wav: is cut off.*--on-error skip"):
        make_shards(examples, tmp_path / "tars", **options)
    packed = make_shards(examples, tmp_path / "tars", on_error="skip", **options)
    assert packed.recordings == 11 and [problem.name for problem in packed.left_out] == [str(torn)]
    found = read_shards(tmp_path / "tars")
    assert [problem.name for problem in found.left_out] == [str(torn)] and len(found) == 11
    # Nothing is left to do, and nothing is counted twice.
    again = make_shards(examples, tmp_path / "tars", on_error="skip", **options)
    assert again == packed
    kept = tmp_path / "foreign.tar"
    with tarfile.open(kept, "w") as file:
        for path in (torn, Path(examples[0].audio)):  # type: ignore[arg-type]
            file.add(path, path.name)
    with pytest.raises(AudioError, match=r"(?s)foreign\.tar: 1 of 2 recordings.*clip\.05\.wav: is cut off"):
        index_shards([kept])
    assert not index_path(kept).exists()
    assert index_shards([kept], on_error="skip")[0].keys == ["clip.00.wav"]


@pytest.mark.parametrize("damage", ["cut", "missing", "unindexed", "index"])
def test_a_damaged_tar_is_named(damage: str, corpus: Path, tmp_path: Path) -> None:
    make_shards(recordings_of(corpus), tmp_path / "tars", shard_bytes=30_000)
    tar = tmp_path / "tars" / "shard-000001.tar"
    message = {
        "cut": r"shard-000001\.tar: is cut off: it has 9000 bytes.*copy it again",
        "missing": r"1 of 2 tars are not there, such as .*shard-000001\.tar; bring them back",
        "unindexed": r"shard-000001\.tar: has no index.*make it with: mambavox shards index",
        "index": r"shard-000001\.index\.safetensors: is no complete index.*remove it",
    }[damage]
    if damage == "cut":
        os.truncate(tar, 9000)
    elif damage == "missing":
        tar.unlink()
    elif damage == "unindexed":
        index_path(tar).unlink()
    else:
        os.truncate(index_path(tar), 100)
    with pytest.raises(DataError, match=message):
        read_shards(f"shards:{tmp_path}/tars/shard-{{000000..000001}}.tar")


@pytest.mark.parametrize("where", ["header", "recording", "end"])
def test_a_cut_tar_gets_no_index(where: str, corpus: Path, tmp_path: Path) -> None:
    make_shards(recordings_of(corpus), tmp_path / "tars", shard_bytes=30_000)
    tar = tmp_path / "tars" / "shard-000000.tar"
    index = ShardIndex.load(tar)
    end = int(index.fields[-1].sum()) // 512 * 512 + 512
    os.truncate(tar, {"header": int(index.starts[1]) - 300, "recording": int(index.starts[1]) + 99, "end": end}[where])
    index_path(tar).unlink()
    with pytest.raises((DataError, AudioError), match=r"shard-000000\.tar.*cut off|no complete tar"):
        index_shards([tar])
    assert not index_path(tar).exists()


def test_a_tar_cut_after_its_index_was_read_is_named(corpus: Path, tmp_path: Path) -> None:
    make_shards(recordings_of(corpus), tmp_path / "tars")
    found = read_shards(tmp_path / "tars")
    os.truncate(found.tars[0], int(found[11].audio.start) + 10)  # type: ignore[union-attr]
    found[10].read()
    with pytest.raises(AudioError, match=r"shard-000000\.tar: is cut off.*copy it again"):
        found[11].read()


def test_patterns(tmp_path: Path) -> None:
    for name in ("train-000", "train-001", "train-002", "extra-000", "deep/other-000"):
        path = tmp_path / f"{name}.tar"
        path.parent.mkdir(exist_ok=True)
        path.touch()

    def names(pattern: str) -> list[str]:
        return [path.stem for path in find_tars(f"shards:{tmp_path}/{pattern}")]

    assert names("train-{001..002}.tar") == ["train-001", "train-002"]
    assert names("{extra,train}-00[01].tar") == ["extra-000", "train-000", "train-001"]
    assert names("train-*.tar") == ["train-000", "train-001", "train-002"]
    assert names("deep/other-000.tar") == ["other-000"]
    assert names("") == ["other-000", "extra-000", "train-000", "train-001", "train-002"]
    for pattern, message in (
        ("train-{000..004}.tar", r"2 of 5 tars are not there, such as .*train-003\.tar"),
        ("none-*.tar", "no tars in"),
        ("{train-000,train-000}.tar", "more than once"),
        ("train-{3..1}.tar", "ends before it begins"),
    ):
        with pytest.raises(DataError, match=message):
            names(pattern)


def test_few_tars_are_open_at_a_time(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number}").write_bytes(bytes([number]) * 100)
    before = len(list(Path("/proc/self/fd").iterdir()))
    tars = OpenTars(most=4)
    with ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(lambda number: tars.read(tmp_path / str(number % 40), 3, 5), range(2000)))
    assert contents == [bytes([number % 40]) * 5 for number in range(2000)]
    assert len(tars) == 4 and len(list(Path("/proc/self/fd").iterdir())) <= before + 4
    copy = pickle.loads(pickle.dumps(tars))
    assert len(copy) == 0 and copy.read(tmp_path / "7", 0, 1) == b"\7"


def test_recordings_are_made_when_asked_for(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_shards(recordings_of(corpus), tmp_path / "tars", shard_bytes=30_000, seed=None)
    monkeypatch.setattr(OpenTars, "read", lambda *_: pytest.fail("reads a tar"))
    found = read_recordings(f"shards:{tmp_path}/tars")
    assert isinstance(found, ShardedExamples)
    some = found.select([7, 2])
    assert list(some.keys) == ["speaker1/clip_07.flac", "speaker0/clip_02.flac"]
    assert some.samples.tolist() == [3700, 3200] and [example.name for example in some] == [
        f"{found.tars[found.shards[row]]}: {found.keys[row]}" for row in (7, 2)
    ]
    assert list(found[3:6].keys) == list(found.keys)[3:6] and list(found.keys[3:6]) == list(found.keys)[3:6]
    assert pickle.loads(pickle.dumps(some)).keys == some.keys


def test_tars_are_read_ahead_in_order_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{number}.tar" for number in range(5)]
    for path in paths[:4]:
        path.write_bytes(b"x" * 100)
    read: list[int] = []
    original = ReadAhead._read
    monkeypatch.setattr(ReadAhead, "_read", lambda self, shard: read.append(shard) or original(self, shard))
    ahead = ReadAhead(paths)
    ahead([2, 0])
    assert ahead.wait() == [2, 0]
    ahead([0, 3])
    assert ahead.wait() == [0, 3]
    ahead([4])  # is not there, which is told when a recording of it is read
    assert ahead.wait() == [4] and read == [2, 0, 3, 4]


def test_commands(corpus: Path, tmp_path: Path) -> None:
    make = ["shards", "make", str(corpus), "--output", str(tmp_path / "tars"), "--gb", "0.00003"]
    done = CliRunner().invoke(app, make)
    assert done.exit_code == 0, done.output
    assert "12 recordings" in done.output and "0 left out" in done.output
    for path in (tmp_path / "tars").glob("*.index.safetensors"):
        path.unlink()
    done = CliRunner().invoke(app, ["shards", "index", str(tmp_path / "tars")])
    assert done.exit_code == 0 and "12 recordings" in done.output, done.output
    assert len(read_shards(tmp_path / "tars")) == 12
    wrong = CliRunner().invoke(app, [*make, "--seed", "3"])
    assert wrong.exit_code == 1 and "seed was 0 and is 3" in wrong.output


def test_speed(corpus: Path, tmp_path: Path) -> None:
    make_shards(recordings_of(corpus), tmp_path / "tars", shard_bytes=30_000)
    for data, count in ((str(corpus), 2), (str(tmp_path / "tars"), 3)):
        done = CliRunner().invoke(app, ["shards", "speed", data, "--json"])
        assert done.exit_code == 0, done.output
        found = json.loads(done.output)
        assert len(found) == count and all(speed["recordings"] == 12 for speed in found)
        assert all(speed["hours_an_hour"] > 0 and speed["megabytes_a_second"] > 0 for speed in found)


def test_real_recordings(recordings: Path, tmp_path: Path) -> None:
    examples = read_examples(recordings / "ssl_speech", label_column=None)[::150]
    make_shards(examples, tmp_path / "tars", shard_bytes=500_000, audio="keep", seed=None)
    found = read_shards(tmp_path / "tars")
    assert len(found) == len(examples) > 20
    for one, other in zip(found, examples, strict=True):
        assert np.array_equal(one.read(), other.read())


def test_a_recording_in_a_tar_is_found_whatever_it_is_called(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in (("a.caf", "CAF"), ("b", "NIST"), ("c.dat", "MP3")):
            buffer = io.BytesIO()
            soundfile.write(buffer, noise(0), 16_000, format=kind)
            member = tarfile.TarInfo(name)
            member.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(member, buffer)
    (index,) = index_shards([tmp_path / "a.tar"])
    assert index.keys == ["a.caf", "b", "c.dat"]
