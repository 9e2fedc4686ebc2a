"""The microphone as a stream of blocks."""

import queue
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from mambavox.data import Waveform
from mambavox.errors import AudioError, ConfigError

_WAIT_SECONDS = 10.0  # without any sound from the device; silence is sound, too


class Microphone:
    """Blocks of what is being said; ``with Microphone() as blocks: for block in blocks``.

    Sound that comes while a block is being worked on waits; nothing is lost.

    Args:
        sampling_rate: Hz wanted; the device's own is resampled.
        seconds: length of a block.
        device: number or part of the name, as ``python -m sounddevice`` lists them; default the system's.
        open_stream: takes what ``sounddevice.InputStream`` takes; default that.

    Raises:
        ConfigError: the extra ``microphone`` or its library is not installed.
        AudioError: there is no such microphone, or it stays silent.
    """

    def __init__(
        self,
        sampling_rate: int,
        seconds: float = 0.16,
        device: str | None = None,
        open_stream: Callable[..., Any] | None = None,
    ) -> None:
        self._rate = sampling_rate
        self._seconds = seconds
        self._device: int | str | None = int(device) if device is not None and device.isdigit() else device
        self._open = open_stream
        self._blocks: queue.Queue[NDArray[np.float32]] = queue.Queue()
        self._stream: Any = None

    def __enter__(self) -> Iterator[Waveform]:
        open_stream, rate = self._open, self._rate
        if open_stream is None:
            open_stream, rate = self._sounddevice()
        try:
            self._stream = open_stream(
                samplerate=rate,
                blocksize=round(self._seconds * rate),
                device=self._device,
                channels=1,
                dtype="float32",
                callback=self._take,
            )
            self._stream.start()
        except Exception as error:
            if isinstance(error, ConfigError | AudioError):
                raise
            # PortAudioError, or ValueError for a name that fits none or several.
            raise AudioError(
                f"no microphone{'' if self._device is None else f' {self._device!r}'} can be opened ({error}); "
                "`python -m sounddevice` lists the devices, --device-name chooses one"
            ) from error
        return self._listen(int(getattr(self._stream, "samplerate", rate)))

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.stop()
            self._stream.close()

    def _sounddevice(self) -> tuple[Callable[..., Any], int]:
        """What opens a stream, and the rate that the device has by itself."""
        try:
            import sounddevice
        except ImportError as error:
            raise ConfigError(
                "the microphone needs the package sounddevice: pip install 'mambavox[microphone]'"
            ) from error
        except OSError as error:
            raise ConfigError(
                f"sounddevice does not find PortAudio ({error}); on Debian or Ubuntu: apt install libportaudio2"
            ) from error
        try:
            about = sounddevice.query_devices(self._device, "input")
        except (sounddevice.PortAudioError, ValueError) as error:
            raise AudioError(
                f"no microphone{'' if self._device is None else f' {self._device!r}'} is found ({error}); "
                "`python -m sounddevice` lists the devices, --device-name chooses one"
            ) from error
        return sounddevice.InputStream, int(about["default_samplerate"])

    def _take(self, samples: NDArray[np.float32], *_: Any) -> None:
        """Called in a thread of the device's."""
        self._blocks.put(samples.mean(axis=1, dtype=np.float32))

    def _listen(self, rate: int) -> Iterator[Waveform]:
        resampler = None if rate == self._rate else soxr.ResampleStream(rate, self._rate, 1, dtype="float32")
        while True:
            try:
                block = self._blocks.get(timeout=_WAIT_SECONDS)
            except queue.Empty:
                raise AudioError(
                    f"the microphone has given nothing for {_WAIT_SECONDS:g} s; is it plugged in and allowed?"
                ) from None
            # What has come meanwhile is heard with it: a slow machine falls behind no further.
            waiting = [block]
            while not self._blocks.empty():
                waiting.append(self._blocks.get())
            block = np.concatenate(waiting)
            yield block if resampler is None else resampler.resample_chunk(block)
