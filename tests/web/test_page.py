"""The page in a real browser: a microphone that plays a real recording, and a recording that is opened.

With ``MAMBAVOX_SCREENSHOT=docs/figures/serve.png`` the picture that is taken at the end is written there, too.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

pytest.importorskip("uvicorn", reason="the extra serve is not installed")
pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("playwright", reason="playwright is not installed")

from playwright.sync_api import sync_playwright
from serving import RATE, new_recognizer, pcm_of, serving, waveform_of

from mambavox import assets
from mambavox.asr.live import Endpointing, LiveRecognizer
from mambavox.asr.recognizer import SpeechRecognizer
from mambavox.web.limits import Limits

CHROMIUM = next(
    (path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome")) if path), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")


def recognizer():
    return SpeechRecognizer.from_pretrained(assets.RECOGNISER, device="cpu")


@pytest.fixture(scope="module")
def served():
    with serving(live=LiveRecognizer(recognizer(), Endpointing(pause_seconds=0.4))) as served:
        yield served


@pytest.fixture
def open_page(served):
    """Opens the page in a browser whose microphone plays a file; nothing else than the server can be reached."""
    with sync_playwright() as driver:
        browsers = []

        def go(microphone=None, address=served.address, script=None):
            flags = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--no-sandbox"]
            if microphone is not None:
                flags.append(f"--use-file-for-fake-audio-capture={microphone}%noloop")
            browsers.append(driver.chromium.launch(executable_path=CHROMIUM, args=flags))
            page = browsers[-1].new_page(viewport={"width": 900, "height": 720})
            page.problems = []
            page.on("pageerror", lambda error: page.problems.append(str(error)))
            page.on(
                "console", lambda line: page.problems.append(line.text) if line.type in ("error", "warning") else None
            )
            page.route(lambda url: not url.startswith(address), lambda route: route.abort())
            if script is not None:
                page.add_init_script(script)
            page.goto(address)
            return page

        yield go
        for browser in browsers:
            browser.close()


def clip(recordings):
    """A real recording of a few seconds, 16-bit at 16 kHz."""
    rows = [
        json.loads(line) for line in (recordings / "librispeech_subset" / "manifest.jsonl").read_text().splitlines()
    ]
    row = next(row for row in rows if 3.0 < row["duration"] < 5.0)
    waveform, rate = soundfile.read(recordings / "librispeech_subset" / row["path"], dtype="float32")
    assert rate == RATE
    return waveform


def text_of(page):
    return " ".join(page.locator("#finals span").all_text_contents())


def wait_for(page, selector, condition):
    """Ask from outside: the page allows no code that is not its own."""
    for _ in range(600):
        if condition(page.locator(selector).text_content()):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"{selector} is {page.locator(selector).text_content()!r}; the page said {page.problems}")


def test_the_microphone_writes_what_is_said(open_page, served, recordings, tmp_path):
    waveform = clip(recordings)
    sound = tmp_path / "said.wav"
    # As a sound card has it: 48 kHz, two channels.
    soundfile.write(sound, np.repeat(soxr.resample(waveform, RATE, 48_000)[:, None], 2, axis=1), 48_000)
    page = open_page(sound)
    page.get_by_role("button", name="Start the microphone").click()
    wait_for(page, "#state", lambda state: state == "listening")
    wait_for(page, "#partial", lambda text: text)
    wait_for(page, "#heard", lambda heard: float(heard[:-2]) > len(waveform) / RATE - 0.3)
    page.get_by_role("button", name="Stop").click()
    wait_for(page, "#state", lambda state: state == "ready")
    assert page.problems == []
    assert page.locator("#error").is_hidden()
    assert len(text_of(page)) > 10
    assert page.locator("#partial").text_content() == ""
    delay = page.locator("#delay").text_content()
    assert delay.endswith(" ms")
    assert 0 < float(delay[:-3]) < 20_000
    served.wait_for_streams(0)
    picture = page.screenshot(path=tmp_path / "serve.png")
    if "MAMBAVOX_SCREENSHOT" in os.environ:
        Path(os.environ["MAMBAVOX_SCREENSHOT"]).write_bytes(picture)


def test_a_recording_that_is_opened_is_heard_as_the_recognizer_hears_it(open_page, served, recordings, tmp_path):
    # Decoded and written again by the browser at its own rate: exact, since that is the model's.
    pcm = pcm_of(clip(recordings))
    soundfile.write(tmp_path / "opened.wav", np.frombuffer(pcm, "<i2"), RATE)
    page = open_page()
    page.locator("#file").set_input_files(tmp_path / "opened.wav")
    page.wait_for_selector("#finals p", timeout=20_000)
    wait_for(page, "#state", lambda state: state == "ready")
    expected = recognizer().transcribe([waveform_of(pcm)])[0].text
    assert text_of(page) == expected
    assert page.problems == []


LATE = """
const sounds = [[MediaDevices.prototype, "getUserMedia"], [BaseAudioContext.prototype, "decodeAudioData"]];
for (const [object, name] of sounds) {
    const sound = object[name];
    object[name] = async function (...given) {
        await new Promise((resolve) => setTimeout(resolve, 2500));
        return (window.sound = await sound.apply(this, given));
    };
}
"""


def test_a_session_begins_when_the_sound_is_there(open_page, recordings, tmp_path):
    # The user may think about the permission for longer than a server waits.
    sound = tmp_path / "said.wav"
    soundfile.write(sound, soxr.resample(clip(recordings), RATE, 48_000), 48_000)
    limits = Limits(idle_seconds=1.0, max_seconds=2.0)
    with serving(limits, live=LiveRecognizer(new_recognizer(), Endpointing(pause_seconds=0.4))) as served:
        page = open_page(sound, served.address, LATE)
        page.get_by_role("button", name="Start the microphone").click()
        wait_for(page, "#partial", lambda text: text)
        assert page.locator("#error").is_hidden()
        # The server ends the session; the microphone is let go.
        wait_for(page, "#state", lambda state: state == "ready")
        assert "a session may hold 2 s" in page.locator("#error").text_content()
        assert page.evaluate("window.sound.active") is False
        soundfile.write(tmp_path / "short.wav", clip(recordings)[: int(1.5 * RATE)], RATE)
        page.locator("#file").set_input_files(tmp_path / "short.wav")
        wait_for(page, "#state", lambda state: state == "waiting for the sound")
        wait_for(page, "#state", lambda state: state == "ready")
        assert page.locator("#error").is_hidden()
        assert page.locator("#heard").text_content() == "1.5 s"


def test_what_is_no_recording_is_told(open_page, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    page = open_page()
    page.locator("#file").set_input_files(tmp_path / "letter.txt")
    page.wait_for_selector("#error:not([hidden])")
    assert "letter.txt is no recording that this browser can play" in page.locator("#error").text_content()
    wait_for(page, "#state", lambda state: state == "ready")


@pytest.mark.parametrize("rate", [44_100, 48_000, 8_000, 16_000])
def test_the_resampler_keeps_what_fits_and_nothing_else(open_page, rate):
    page = open_page()
    resample = """async ([samples, from, pieces]) => {
        const { Resampler } = await import("/resampler.js");
        const resampler = new Resampler(from, 16000);
        const output = [];
        for (let at = 0, index = 0; at < samples.length; index++) {
            const next = at + pieces[index % pieces.length];
            output.push(...resampler.push(Float32Array.from(samples.slice(at, next))));
            at = next;
        }
        return [...output, ...resampler.flush()];
    }"""

    def resampled(samples, pieces=(128,)):
        return np.array(page.evaluate(resample, [samples.tolist(), rate, list(pieces)]))

    time = np.arange(rate // 5) / rate
    low = sum(np.sin(2 * np.pi * hertz * time + hertz) for hertz in (100, 1000, 3300)) / 3
    got = resampled(low)
    expected = sum(np.sin(2 * np.pi * hertz * np.arange(len(got)) / RATE + hertz) for hertz in (100, 1000, 3300)) / 3
    assert abs(len(got) - RATE // 5) <= 1
    assert np.abs(got - expected)[100:-100].max() < 2e-3
    np.testing.assert_array_equal(resampled(low, (1, 50, 333)), got)
    if rate > 20_000:
        high = np.sin(2 * np.pi * 9500 * time)
        assert np.abs(resampled(high))[100:-100].max() < 2e-3
