"""The microphone as a stream of blocks."""

import contextlib
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
    """Blocks of what is being said; ``with Microphone(...) as blocks: for block in blocks``.

    Sound that comes while a block is being worked on waits; nothing is lost, if :meth:`rest` is asked for at the end.

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
        self._resampler: soxr.ResampleStream | None = None

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
        given = int(getattr(self._stream, "samplerate", rate))
        self._resampler = None if given == self._rate else soxr.ResampleStream(given, self._rate, 1, dtype="float32")
        return self._listen()

    def __exit__(self, *_: object) -> None:
        # A device that is gone can neither be stopped nor closed, and what it gave before is still wanted.
        for end in (self._stream.stop, self._stream.close):
            with contextlib.suppress(Exception):
                end()

    def rest(self) -> Waveform:
        """What has come behind the last block, and what the resampler holds back; nothing comes behind it."""
        block = self._waiting([np.zeros(0, dtype=np.float32)])
        return block if self._resampler is None else self._resampler.resample_chunk(block, last=True)

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

    def _listen(self) -> Iterator[Waveform]:
        while True:
            try:
                block = self._blocks.get(timeout=_WAIT_SECONDS)
            except queue.Empty:
                raise AudioError(
                    f"the microphone has given nothing for {_WAIT_SECONDS:g} s; is it plugged in and allowed?"
                ) from None
            # What has come meanwhile is heard with it: a slow machine falls behind no further.
            block = self._waiting([block])
            yield block if self._resampler is None else self._resampler.resample_chunk(block)

    def _waiting(self, blocks: list[Waveform]) -> Waveform:
        """Some blocks and those that wait, in one."""
        while not self._blocks.empty():
            blocks.append(self._blocks.get())
        return np.concatenate(blocks)
