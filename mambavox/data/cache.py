"""Keep decoded waveforms in memory."""

from collections.abc import Sequence

from mambavox.data.audio import SAMPLING_RATE, Waveform
from mambavox.data.example import Example


class WaveformStore:
    """The waveforms of examples, each decoded when first asked for and kept while there is room.

    Once ``max_bytes`` are used, what is not yet kept is decoded anew every time. Each process that reads from a
    store (a ``DataLoader`` worker, say) fills its own.

    Args:
        examples: the recordings.
        sampling_rate: Hz of the waveforms.
        max_bytes: memory for waveforms; default 2 GiB, about 9 hours at 16 kHz.
    """

    def __init__(
        self, examples: Sequence[Example], sampling_rate: int = SAMPLING_RATE, max_bytes: int = 2 << 30
    ) -> None:
        self.examples = examples
        self.sampling_rate = sampling_rate
        self.max_bytes = max_bytes
        self._kept: dict[int, Waveform] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Waveform:
        """The waveform of one example: ``(samples,)`` mono float32, a copy of its own.

        Raises:
            AudioError: see :func:`mambavox.data.read_audio`.
            IndexError: there is no such example.
        """
        index = range(len(self.examples))[index]
        waveform = self._kept.get(index)
        if waveform is None:
            waveform = self.examples[index].read(self.sampling_rate)
            if self._bytes + waveform.nbytes <= self.max_bytes:
                self._kept[index] = waveform
                self._bytes += waveform.nbytes
        return waveform.copy()  # whoever changed a kept one in place would change every later epoch
