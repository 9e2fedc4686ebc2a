import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from mambavox.data import synth
from mambavox.errors import ConfigError

pytest.importorskip("espeakng_loader", reason="the extra synth is not installed")

DIGEST_SCRIPT = """
import hashlib
from mambavox.data import synth
{before}
clips = synth.spoken_commands(words=("go", "stop"), clips_per_word=5, seed=3)
print(hashlib.md5(b"".join(clip.waveform.tobytes() for clip in clips)).hexdigest())
"""


def digest(waveform):
    return hashlib.md5(waveform.tobytes()).hexdigest()


@pytest.fixture(scope="module")
def clips():
    return synth.spoken_commands(words=("go", "stop", "left"), clips_per_word=12, seed=1)


def test_waveform_is_16_khz_mono_float32_of_a_plausible_length():
    waveform = synth.synthesize("one two three four five")
    assert waveform.dtype == np.float32 and waveform.ndim == 1
    assert 1.0 < waveform.size / synth.SAMPLING_RATE < 3.0
    assert 0.05 < np.abs(waveform).max() <= 1.0


def test_rate_pitch_variant_and_voice_all_change_the_speech():
    plain = synth.synthesize("seven")
    assert synth.synthesize("seven", rate=300).size < plain.size < synth.synthesize("seven", rate=100).size
    others = [
        synth.synthesize("seven", pitch=90),
        synth.synthesize("seven", variant="f3"),
        synth.synthesize("seven", voice="de"),
    ]
    assert len({digest(waveform) for waveform in (plain, *others)}) == 4


def test_higher_pitch_has_a_higher_fundamental():
    def fundamental(waveform):
        frame = waveform[waveform.size // 3 :][:2048]
        correlation = np.correlate(frame, frame, "full")[frame.size :]
        lags = slice(synth.SAMPLING_RATE // 400, synth.SAMPLING_RATE // 60)
        return synth.SAMPLING_RATE / (np.argmax(correlation[lags]) + lags.start + 1)

    low, high = (fundamental(synth.synthesize("moo", pitch=p, variant="f3")) for p in (5, 95))
    assert 100 < low < 170 < 250 < high < 400


def test_speech_does_not_depend_on_what_was_spoken_before():
    first = [digest(synth.synthesize("seven", variant=name)) for name in ("f3", "klatt", "whisper")]
    for text in ("something else", "yet another sentence"):
        synth.synthesize(text, voice="sw", variant="m7", rate=300)
    again = [digest(synth.synthesize("seven", variant=name)) for name in ("f3", "klatt", "whisper")]
    assert again == first


def test_phones_follow_the_audio():
    waveform, phones = synth.synthesizer().synthesize("hello world", variant="m3")
    symbols = "".join(phone.symbol for phone in phones)
    starts = [phone.start for phone in phones]
    assert symbols.startswith("h") and symbols.endswith("d") and len(phones) >= 6
    assert starts == sorted(starts) and starts[0] >= 0 and starts[-1] < waveform.size / synth.SAMPLING_RATE


def test_voices_and_variants_list_what_can_be_spoken():
    assert {"en-us", "en-gb", "de", "sw", "ar"} <= set(synth.voices())
    assert set(synth.ACCENTS) <= set(synth.voices())
    speakers = [name for names in synth.SPEAKERS.values() for name in names]
    assert len(set(speakers)) == len(speakers)
    assert set(speakers) <= set(synth.variants())
    # en-gb and fr-fr are listed by espeak under codes that it does not take as names.
    for voice in ("en-gb", "fr-fr", "cmn"):
        assert synth.synthesize("42", voice=voice).size > 4000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"voice": "en-uk"}, "near ones: .*en-us"),
        ({"variant": "f33"}, "near ones: f3"),
        ({"rate": 20}, "rate=20 .* 80 to 450"),
        ({"pitch": 100}, "pitch=100 .* 0 to 99"),
    ],
)
def test_unknown_settings_say_what_would_do(arguments, message):
    with pytest.raises(ConfigError, match=message):
        synth.synthesize("seven", **arguments)


@pytest.mark.parametrize("text", ["", " , "])
def test_text_without_speech_is_an_error(text):
    with pytest.raises(ConfigError, match="nothing to say"):
        synth.synthesize(text)


def test_missing_extra_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ConfigError, match=r"pip install 'mambavox\[synth\]'"):
        synth.Synthesizer()


def test_same_clips_in_two_processes_and_after_other_speech():
    digests = [
        subprocess.run(
            [sys.executable, "-c", DIGEST_SCRIPT.format(before=before)], capture_output=True, text=True, check=True
        ).stdout
        for before in ("", "synth.synthesize('something else', variant='whisper')")
    ]
    assert digests[0] == digests[1] and len(digests[0].strip()) == 32


def test_clips_have_the_asked_form(clips):
    assert len(clips) == 36
    for clip in clips:
        assert clip.waveform.shape == (16_000,) and clip.waveform.dtype == np.float32
        assert 0.02 < np.abs(clip.waveform).max() <= 1.0 and np.isfinite(clip.waveform).all()
        assert 0 <= clip.snr <= 20 and clip.noise in synth.NOISES
    assert {(clip.label, clip.split) for clip in clips} == {
        (label, split) for label in ("go", "stop", "left") for split in ("train", "valid", "test")
    }
    assert len({digest(clip.waveform) for clip in clips}) == 36


def test_splits_share_no_speaker(clips):
    for clip in clips:
        assert clip.speaker in synth.SPEAKERS[clip.split]


def test_seed_changes_the_clips(clips):
    other = synth.spoken_commands(words=("go",), clips_per_word=12, seed=2)
    assert {digest(clip.waveform) for clip in clips}.isdisjoint(digest(clip.waveform) for clip in other)


def test_a_word_has_the_same_clips_whatever_follows_it(clips):
    alone = synth.spoken_commands(words=("go",), clips_per_word=12, seed=1)
    assert [digest(clip.waveform) for clip in alone] == [digest(clip.waveform) for clip in clips[:12]]


@pytest.mark.parametrize(
    "arguments", [{"clips_per_word": 3}, {"words": ("go", "go")}, {"words": ()}, {"duration": 0.0}, {"snr": (5, 0)}]
)
def test_impossible_tasks_are_errors(arguments):
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        synth.spoken_commands(**arguments)


@pytest.mark.parametrize(("color", "exponent"), synth.NOISES.items())
def test_noise_falls_with_its_exponent(color, exponent):
    noise = synth.colored_noise(1 << 16, exponent, np.random.default_rng(0))
    power = np.abs(np.fft.rfft(noise)) ** 2
    band = slice(1 << 10, 1 << 14)
    slope = np.polyfit(np.log(np.arange(power.size)[band]), np.log(power[band]), 1)[0]
    assert slope == pytest.approx(-exponent, abs=0.1)
    assert np.sqrt(np.mean(noise**2)) == pytest.approx(1.0, abs=1e-3)


def test_mix_reaches_the_asked_ratio():
    speech = synth.synthesize("seven")
    noise = synth.colored_noise(speech.size, 1.0, np.random.default_rng(0))
    added = synth.mix_at_snr(speech, noise, 7.0) - speech
    assert 10 * np.log10(np.mean(speech**2) / np.mean(added**2)) == pytest.approx(7.0, abs=0.01)


def test_written_folder_lists_its_clips(tmp_path):
    manifest = synth.write_spoken_commands(tmp_path, words=("go", "stop"), clips_per_word=4, seed=1)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    clips = synth.spoken_commands(words=("go", "stop"), clips_per_word=4, seed=1)
    assert [row["label"] for row in rows] == ["go"] * 4 + ["stop"] * 4
    assert {row["split"] for row in rows} == {"train", "valid", "test"}
    for row, clip in zip(rows, clips, strict=True):
        waveform, rate = soundfile.read(tmp_path / row["path"], dtype="float32")
        assert rate == 16_000 and row["duration"] == waveform.size / rate == 1.0
        # 16-bit storage rounds to one part in 32768.
        np.testing.assert_allclose(waveform, clip.waveform, atol=1.1 / 32768)
