"""When a pre-training has diverged."""

import math
import shutil
import statistics
from collections import deque
from pathlib import Path

from mambavox.errors import DivergedError

_WINDOW = 200  # updates whose median is the usual norm
_NEEDED = 50  # updates before there is a usual norm
_FACTOR = 100.0  # times the usual norm: exploding
_PATIENCE = 20  # exploding updates in a row


class DivergenceGuard:
    """Watches the norm of the gradient, before it is clipped and applied.

    A run has diverged when a norm is no number or infinite (a loss that is makes all gradients so), or when the norms
    of 20 updates in a row are above 100 times the median of the last 200 updates. Checkpoints from after the last good
    update are removed then, so that a resumed run begins with a good one.

    Args:
        checkpoints: folder of the checkpoints.
        learning_rate: peak, for the message.
    """

    def __init__(self, checkpoints: Path, learning_rate: float) -> None:
        self.checkpoints, self.learning_rate = checkpoints, learning_rate
        self._norms: deque[float] = deque(maxlen=_WINDOW)
        self._exploding = 0

    @property
    def is_exploding(self) -> bool:
        """Whether the last norms may be the beginning of a divergence: checkpoints from before are to be kept."""
        return self._exploding > 0

    def check(self, norm: float, step: int) -> None:
        """Look at the norm of one update's gradient.

        Args:
            norm: before clipping.
            step: number of the update, from 1.

        Raises:
            DivergedError: the run has diverged. The update has not been applied.
        """
        if not math.isfinite(norm):
            raise self._error(f"the gradient's norm is {norm} in update {step}", step - self._exploding)
        usual = statistics.median(self._norms) if len(self._norms) >= _NEEDED else math.inf
        self._exploding = self._exploding + 1 if norm > _FACTOR * usual else 0
        if self._exploding >= _PATIENCE:
            raise self._error(
                f"the gradient's norm is {norm:.3g} in update {step} and has been above {_FACTOR:g} times its usual "
                f"{usual:.3g} for {_PATIENCE} updates",
                step - _PATIENCE + 1,
            )
        self._norms.append(norm)

    def _error(self, what: str, first_bad: int) -> DivergedError:
        steps = {
            int(folder.name.rpartition("-")[2]): folder
            for folder in self.checkpoints.glob("checkpoint-*")
            if (folder / "trainer_state.json").is_file()
        }
        # A checkpoint is of what its update made; the update before the first bad one is good.
        for step in [step for step in steps if step >= first_bad]:
            shutil.rmtree(steps.pop(step), ignore_errors=True)
        kept = (
            f"the last good checkpoint, checkpoint-{max(steps)}, is kept in {self.checkpoints}, and --resume would "
            "begin there"
            if steps
            else "there is no earlier checkpoint"
        )
        return DivergedError(
            f"{what}: the run has diverged; {kept}. Begin anew with a lower learning rate (it is "
            f"{self.learning_rate:g}) or a longer warm-up: --learning-rate, --warmup-ratio"
        )
