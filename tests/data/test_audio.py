"""Reading audio: formats, channels, rates, and every way a file can be bad."""

import io
import struct

import numpy as np
import pytest
import soundfile

from mambavox.data import SAMPLING_RATE, duration, read_audio, read_blocks
from mambavox.data.audio import decode_audio
from mambavox.errors import AudioError


def tone(seconds=0.5, rate=SAMPLING_RATE, hertz=440.0):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encoded(waveform, rate=SAMPLING_RATE, format="WAV", **options):
    file = io.BytesIO()
    soundfile.write(file, waveform, rate, format=format, **options)
    return file.getvalue()


def main_frequency(waveform):
    return np.argmax(np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))) * SAMPLING_RATE / len(waveform)


@pytest.mark.parametrize(
    ("suffix", "options", "error"),
    [
        (".wav", {}, 1e-4),
        (".wav", {"subtype": "FLOAT"}, 0),
        (".wav", {"subtype": "PCM_24"}, 1e-6),
        (".flac", {}, 1e-4),
        (".ogg", {}, 0.05),
        (".mp3", {}, 0.05),
    ],
)
def test_round_trip_of_each_format(tmp_path, suffix, options, error):
    path = tmp_path / f"tone{suffix}"
    soundfile.write(path, tone(), SAMPLING_RATE, **options)
    for source in (path, str(path), path.read_bytes(), {"path": str(path), "bytes": None}):
        waveform = read_audio(source)
        assert waveform.dtype == np.float32
        assert waveform.shape == (8000,)
        assert np.abs(waveform - tone()).max() <= error
    assert duration(path) == pytest.approx(0.5)


def test_opus_keeps_its_length_and_pitch():
    data = encoded(tone(), 16_000, "OGG", subtype="OPUS")
    waveform = read_audio(data)
    assert abs(len(waveform) - 8000) <= 800
    assert main_frequency(waveform[1000:7000]) == pytest.approx(440, abs=5)


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100, 48_000])
def test_resampling_keeps_pitch_level_and_length(rate):
    waveform = read_audio(encoded(tone(rate=rate), rate))
    assert len(waveform) == pytest.approx(8000, abs=1)
    assert main_frequency(waveform) == pytest.approx(440, abs=2)
    assert np.abs(waveform[1000:7000]).max() == pytest.approx(0.5, abs=0.01)


def test_resampling_removes_what_the_new_rate_cannot_hold():
    waveform = read_audio(encoded(tone(rate=44_100, hertz=12_000), 44_100))
    assert np.abs(waveform[1000:7000]).max() < 1e-3


def test_channels_are_averaged():
    stereo = np.stack([tone(), np.zeros(8000, np.float32)], axis=1)
    np.testing.assert_allclose(read_audio(encoded(stereo, subtype="FLOAT")), tone() / 2, atol=1e-7)
    for array in (stereo, stereo.T):
        np.testing.assert_allclose(read_audio((array, SAMPLING_RATE)), tone() / 2, atol=1e-7)


def test_arrays_with_and_without_a_rate():
    np.testing.assert_array_equal(read_audio(tone()), tone())
    np.testing.assert_array_equal(read_audio({"array": tone().tolist(), "sampling_rate": 16_000}), tone())
    assert len(read_audio((tone(rate=8000), 8000))) == 8000
    assert read_audio(np.array([-32768, 16384], np.int16)).tolist() == [-1.0, 0.5]


def test_reading_never_writes_into_the_given_array():
    given = tone()
    read_audio(given)[:] = 0
    np.testing.assert_array_equal(given, tone())


def test_decode_keeps_the_rate():
    waveform, rate = decode_audio(encoded(tone(rate=8000), 8000))
    assert (len(waveform), rate) == (4000, 8000)


def test_five_samples_are_a_recording():
    assert len(read_audio(encoded(np.ones(5) / 2))) == 5
    assert duration(encoded(np.ones(5) / 2)) == 5 / SAMPLING_RATE


def test_unicode_and_space_in_the_path(tmp_path, write_tone):
    path = write_tone(tmp_path / "Çağrı é 音" / "a b 'c'.flac")
    assert len(read_audio(path)) == 4000


def corrupt_flac():
    data = bytearray(encoded(np.random.default_rng(0).normal(size=8000) / 5, format="FLAC"))
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    return bytes(data)


NOISE = np.random.default_rng(0).normal(size=50_000) / 5
BAD = {
    "no_bytes.wav": (b"", "empty"),
    "text.wav": (b"<html>404 not found</html>", "formats read are wav, flac, ogg"),
    "header.wav": (b"RIFX????" + encoded(tone())[8:], "not a readable recording"),
    "corrupt_header.flac": (b"fLaX" + encoded(tone(), format="FLAC")[4:], "not a readable recording"),
    "corrupt_middle.flac": (corrupt_flac(), "corrupt"),
    "cut.flac": (encoded(NOISE, format="FLAC")[:-4000], "cut off"),
    "cut.wav": (encoded(NOISE)[:-4000], "cut off after 3.00 s"),
    "cut.ogg": (encoded(NOISE, format="OGG")[:-4000], "cut off"),
    "cut.mp3": (encoded(NOISE, format="MP3")[:-4000], "cut off"),
    "no_samples.wav": (encoded(np.zeros(0)), "no samples"),
    "no_samples.flac": (encoded(np.zeros(0), format="FLAC"), "flac: "),
    "headerless.raw": (b"1234", "not a readable recording"),
    "nan.wav": (
        encoded(np.array([0, 0.5, np.nan]), subtype="FLOAT"),
        "samples are NaN or infinite, the first at 0.000 s",
    ),
    "infinite.wav": (encoded(np.array([0, np.inf]), subtype="FLOAT"), "samples are NaN or infinite"),
    "opposite_infinities.wav": (encoded(np.array([[np.inf, -np.inf]]), subtype="FLOAT"), "NaN or infinite"),
    "beyond_float32.wav": (encoded(np.array([1e300]), subtype="DOUBLE"), "NaN or infinite"),
    "one_sample_at_192_khz.wav": (encoded(np.ones(1), 192_000), "make none at 16000 Hz"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("error")
def test_a_bad_file_is_refused_by_name(tmp_path, name):
    data, reason = BAD[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(AudioError) as error:
        read_audio(path)
    assert str(error.value).startswith(f"{path}: ")
    assert reason in str(error.value)


@pytest.mark.parametrize("name", ["cut.wav", "cut.ogg", "cut.mp3", "cut.flac", "nan.wav"])
def test_bad_bytes_are_refused_under_the_name_given(name):
    with pytest.raises(AudioError, match=r"^clip 7: "):
        read_audio(BAD[name][0], name="clip 7")


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(AudioError, match=r"gone\.wav: no such file"):
        read_audio(tmp_path / "gone.wav")
    with pytest.raises(AudioError, match="is a folder"):
        read_audio(tmp_path)
    with pytest.raises(AudioError, match="no such file"):
        duration(tmp_path / "gone.wav")


def test_bad_arrays():
    with pytest.raises(AudioError, match="no samples"):
        read_audio(np.zeros(0))
    with pytest.raises(AudioError, match=r"shape \(1, 2, 3\)"):
        read_audio(np.zeros((1, 2, 3)))
    with pytest.raises(AudioError, match="an array of uint8"):
        read_audio(np.zeros(3, np.uint8))
    with pytest.raises(AudioError, match="int64, which has no full scale"):
        read_audio(np.array([-3, 100]))
    for kind in (np.int64, np.uint64):
        array = np.array([3, 100], kind)
        for source in ({"array": array, "sampling_rate": 16_000}, (array, 16_000)):
            with pytest.raises(AudioError, match=f"array of {kind.__name__}"):
                read_audio(source)
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(AudioError, match=r"given as an array: some samples are NaN or infinite, .* at 0\.000 s"):
            read_audio(np.array([0, bad]))
    with pytest.raises(AudioError, match="an array of object"):
        read_audio({"array": [0.1, None], "sampling_rate": 16_000})
    for source in ({"array": [[0.1], [0.1, 0.2]], "sampling_rate": 16_000}, {"array": [0.1], "sampling_rate": "high"}):
        with pytest.raises(AudioError, match="no array of samples and its rate"):
            read_audio(source)
    with pytest.raises(AudioError, match="0 Hz"):
        read_audio((tone(), 0))
    with pytest.raises(AudioError, match="'bytes', 'path', or 'array' and 'sampling_rate'"):
        read_audio({"array": tone()})


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000])
def test_a_wav_written_to_a_pipe_is_whole(size):
    """Writers that cannot seek back leave a placeholder for the size."""
    data = bytearray(encoded(tone()))
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", size)
    assert len(read_audio(bytes(data))) == 8000


def test_an_mp3_without_a_length_tag_is_whole():
    """Its header's length is a guess from the first frame's bit rate, here far too long."""
    quiet_then_loud = np.concatenate([np.zeros(50_000), NOISE])
    data = encoded(quiet_then_loud, format="MP3", bitrate_mode="AVERAGE", compression_level=0.5)
    tag = max(data.find(b"Xing"), data.find(b"Info"))
    second_frame = data.index(data[:2], tag)
    untagged = data[second_frame:]
    with soundfile.SoundFile(io.BytesIO(untagged)) as file:
        assert file.frames > 1.5 * len(quiet_then_loud)
    assert len(read_audio(untagged)) == duration(untagged) * SAMPLING_RATE
    assert len(read_audio(untagged)) == pytest.approx(len(quiet_then_loud), abs=3000)


def test_joined_mp3s_are_read_to_the_end_of_the_last(tmp_path):
    parts = [tone(1.5, 24_000), 0.3 * tone(2.25, 24_000, 700)]
    path = tmp_path / "all.mp3"
    tags = b"TAG" + bytes(125), b"ID3\x04\x00\x00\x00\x00\x02\x00" + bytes(256)
    path.write_bytes(b"".join((encoded(parts[0], 24_000, "MP3"), *tags, encoded(parts[1], 24_000, "MP3"))))
    waveform, rate = decode_audio(path)
    assert rate == 24_000 and len(waveform) == 3.75 * rate == duration(path) * rate
    for part, heard in zip(parts, np.split(waveform, [len(parts[0])]), strict=True):
        assert np.abs(part - heard).max() < 0.05
    np.testing.assert_array_equal(np.concatenate(list(read_blocks(path, rate, 0.1))), waveform)


def test_an_mp3_of_variable_rate_that_guesses_too_short_is_whole():
    loud_then_quiet = np.concatenate([NOISE, np.zeros(50_000)])
    data = encoded(loud_then_quiet, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5)
    untagged = data[data.index(data[:2], max(data.find(b"Xing"), data.find(b"Info"))) :]
    with soundfile.SoundFile(io.BytesIO(untagged)) as file:
        assert file.frames < 0.6 * len(loud_then_quiet)
    assert len(read_audio(untagged)) == duration(untagged) * SAMPLING_RATE >= len(loud_then_quiet)


def test_what_an_mp3_cannot_be_read_as_is_refused():
    mp3 = encoded(tone(), format="MP3")
    with pytest.raises(AudioError, match="goes on at 8000 Hz and one channel from byte"):
        read_audio(mp3 + encoded(tone(rate=8000), 8000, "MP3"))
    with pytest.raises(AudioError, match="is damaged at byte"):
        duration(mp3[: len(mp3) // 2] + b"lost" * 100 + mp3[len(mp3) // 2 :])
    with pytest.raises(AudioError, match="cut off"):
        frame = mp3.rindex(mp3[:2])
        read_audio(mp3[:frame] + mp3)


def without_length(flac, length=0):
    """A FLAC whose header states another number of samples: 0 as a recorder or a pipe leaves it."""
    data = bytearray(flac)
    data[21] &= 0xF0
    data[22:26] = struct.pack(">I", length)
    return bytes(data)


@pytest.mark.parametrize("opening", [b"", b"ID3\x04\x00\x00\x00\x00\x02\x00" + bytes(256)], ids=["", "tagged"])
def test_a_streamed_flac_has_the_length_that_it_has(tmp_path, opening):
    path = tmp_path / "meeting.flac"
    path.write_bytes(opening + without_length(encoded(NOISE, format="FLAC")))
    assert duration(path) == len(NOISE) / SAMPLING_RATE
    np.testing.assert_allclose(read_audio(path), NOISE, atol=1e-4)
    assert sum(map(len, read_blocks(path))) == len(NOISE)
    path.write_bytes(path.read_bytes()[:-3000])
    for read in (read_audio, duration, lambda path: list(read_blocks(path))):
        with pytest.raises(AudioError, match="corrupt or cut off"):
            read(path)


def test_a_flac_longer_than_it_says_is_refused():
    flac = encoded(NOISE, format="FLAC")
    with pytest.raises(AudioError, match=r"holds 3\.12 s, and its header states 1\.00 s"):
        read_audio(without_length(flac, 16_000))
    with pytest.raises(AudioError, match="corrupt"):
        read_audio(flac + flac)


@pytest.mark.parametrize("format", ["WAV", "AIFF", "CAF", "W64", "RF64", "AU", "NIST", "OGG"])
def test_joined_files_and_cut_ones_are_refused(format):
    data = encoded(NOISE, format=format)
    assert len(read_audio(data)) == len(NOISE)
    for wrong in (data + data, data[:-8000]):
        with pytest.raises(AudioError, match=r"behind (the|its)|cut off|not a readable|corrupt"):
            read_audio(wrong)


@pytest.mark.parametrize("seconds", [0.5, 1, 2])
def test_a_wav_whose_size_is_too_small_is_refused(seconds):
    """As a recorder leaves it that was stopped."""
    data = bytearray(encoded(NOISE))
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", round(seconds * 2 * SAMPLING_RATE))
    for read in (read_audio, duration):
        with pytest.raises(AudioError, match=f"behind the {seconds:.2f} s that its header states"):
            read(bytes(data))


def test_chunks_and_tags_behind_the_sound_are_no_sound():
    data = encoded(tone())
    for more in (b"LIST" + struct.pack("<I", 1000) + b"x" * 1000, b"ID3" + b"x" * 2000, bytes(2000)):
        assert len(read_audio(data + more)) == 8000


def test_length_is_looked_up_again_when_a_file_changes(tmp_path):
    path = tmp_path / "a.wav"
    for seconds in (0.5, 0.25):
        path.write_bytes(encoded(tone(seconds)))
        assert duration(path) == seconds


@pytest.mark.parametrize("rate", [1, 999, 1_000_001])
def test_rates_that_would_take_the_memory_are_refused(rate):
    data = encoded(np.zeros(100), rate)
    for read in (read_audio, duration):
        with pytest.raises(AudioError, match=f"its sampling rate is {rate} Hz"):
            read(data)
    with pytest.raises(AudioError, match=f"its sampling rate is {rate} Hz"):
        read_audio((np.zeros(100), rate))


def test_blocks_of_many_channels_are_smaller(tmp_path, monkeypatch):
    path = tmp_path / "many.wav"
    soundfile.write(path, np.zeros((3000, 200)), SAMPLING_RATE)
    monkeypatch.setattr("mambavox.data.audio_file._BLOCK", 100_000)
    assert [len(block) for block in read_blocks(path, seconds=5)] == [500] * 6


def test_a_recording_of_more_than_a_day_is_only_read_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("mambavox.data.audio.MAX_HOURS", 0.4 / 3600)
    path = tmp_path / "long.wav"
    path.write_bytes(encoded(tone()))
    with pytest.raises(AudioError, match="longer than"):
        read_audio(path)
    assert sum(map(len, read_blocks(path))) == 8000


def test_every_real_recording_format(recordings):
    for pack in ("fsdd", "esc10", "ssl_speech"):
        path = sorted((recordings / pack / "audio").rglob("*.*"))[0]
        waveform = read_audio(path)
        assert len(waveform) / SAMPLING_RATE == pytest.approx(duration(path), abs=1e-3)
        assert 0 < np.abs(waveform).max() <= 1.1


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_blocks_end_to_end_are_the_whole(tmp_path, suffix, rate):
    stereo = np.stack([tone(1.3, rate), 0.3 * tone(1.3, rate, 1000)], axis=1)
    path = tmp_path / f"clip.{suffix}"
    soundfile.write(path, stereo, rate)
    blocks = list(read_blocks(path, seconds=0.11))
    assert 11 <= len(blocks) <= 13 and all(0 < len(block) < 4000 for block in blocks)
    whole = read_audio(path)
    np.testing.assert_array_equal(np.concatenate(blocks), whole)
    assert blocks[0].dtype == np.float32


def test_a_bad_recording_is_refused_by_name_in_blocks_too(tmp_path):
    def blocks_of(name, content):
        path = tmp_path / name
        path.write_bytes(content)
        return read_blocks(path, seconds=0.1)

    flac = encoded(np.random.default_rng(0).uniform(-1, 1, 16_000).astype(np.float32), format="FLAC")
    heard = blocks_of("half.flac", flac[: len(flac) // 2])
    assert len(next(heard)) == 1600
    with pytest.raises(AudioError, match=r"half.flac: is c"):
        list(heard)
    wav = encoded(tone())
    with pytest.raises(AudioError, match=r"half.wav: is cut off after 0.2"):
        list(blocks_of("half.wav", wav[: len(wav) // 2]))
    late = tone().copy()
    late[4000] = np.nan
    with pytest.raises(AudioError, match=r"nan.wav: some samples are NaN.* at 0.250 s"):
        list(blocks_of("nan.wav", encoded(late, subtype="FLOAT")))
    with pytest.raises(AudioError, match=r"none.wav: has no samples"):
        list(blocks_of("none.wav", encoded(tone()[:0])))
    with pytest.raises(AudioError, match="no such file"):
        list(read_blocks(tmp_path / "missing.wav"))


def test_the_length_in_an_mp3_is_found_behind_its_tags(tmp_path):
    mp3 = encoded(tone(2.0), format="MP3")
    assert b"Xing" in mp3[:4096] or b"Info" in mp3[:4096]
    size = 200_000  # of a picture
    tagged = b"ID3\x03\x00\x00" + bytes(size >> shift & 127 for shift in (21, 14, 7, 0)) + bytes(size) + mp3
    (tmp_path / "whole.mp3").write_bytes(tagged)
    assert len(read_audio(tmp_path / "whole.mp3")) > 31_000
    (tmp_path / "half.mp3").write_bytes(tagged[: size + len(mp3) // 2])
    with pytest.raises(AudioError, match="cut off"):
        read_audio(tmp_path / "half.mp3")
