"""Whisper's window: an option to encode no more of it than sound lies in."""

import copy
from typing import Any

from torch import Tensor


class TrimmedEncoder:
    """Lets a Whisper's encoder run on the frames up to the end of the longest clip of a batch, not on the whole window.

    The first positions of the position table are used, so that each frame is computed as in the window; but it no
    longer attends to the padding behind the clip, which Whisper was trained with, and the decoder does not see it
    either. Results differ from Whisper's own, the more so the shorter the clip. Windows that are full stay as they
    are. Not for threads that share the model.

    Args:
        model: a ``WhisperForConditionalGeneration``, adapted or not; it is changed until :meth:`remove`.
        step: frames of the encoder to whose next multiple a batch is cut; 50 are one second.
    """

    def __init__(self, model: Any, step: int = 50) -> None:
        self.encoder = model.get_encoder()
        self.step = step
        self._forward = self.encoder.forward
        self.encoder.forward = self._trimmed

    def remove(self) -> None:
        """Let the encoder see the whole window again."""
        self.encoder.__dict__.pop("forward", None)

    def _trimmed(self, input_features: Tensor, *args: Any, **kwargs: Any) -> Any:
        # With peft, seconds of import that an untrimmed Whisper does without.
        from mambavox.adapters.hosts import window_lengths
        from mambavox.adapters.taps import WINDOW_PADDING

        encoder = self.encoder
        longest = (int(window_lengths(input_features).max()) + 1) // 2
        frames = min(-(-longest // self.step) * self.step, encoder.config.max_source_positions)
        config, positions = encoder.config, encoder.embed_positions.num_embeddings
        if WINDOW_PADDING in kwargs:
            kwargs = {**kwargs, WINDOW_PADDING: kwargs[WINDOW_PADDING] - (positions - frames)}
        encoder.config = copy.copy(config)
        encoder.config.max_source_positions = encoder.embed_positions.num_embeddings = frames
        try:
            return self._forward(input_features[..., : 2 * frames], *args, **kwargs)
        finally:
            encoder.config, encoder.embed_positions.num_embeddings = config, positions
