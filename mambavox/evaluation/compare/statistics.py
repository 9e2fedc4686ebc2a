"""How sure a mean accuracy, or the difference of two, is: bootstrap over seeds and test recordings."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 10_000
"""Bootstrap samples."""
_LEVELS = (2.5, 97.5)


@dataclass(frozen=True)
class Interval:
    """A figure and the 95 % interval around it.

    Attributes:
        value: the figure.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """For a difference: ``ahead``, ``behind``, or ``no clear difference`` where the interval holds zero."""
        return "ahead" if self.low > 0 else "behind" if self.high < 0 else "no clear difference"


def bootstrap(folds: Sequence[NDArray[np.floating]], draws: int = DRAWS, seed: int = 0) -> Interval:
    """Mean over folds of the mean over seeds and recordings, with its percentile bootstrap interval.

    Each draw takes seeds with replacement, the same ones in every fold, and in each fold recordings with replacement.
    Given accuracies, the interval is that of a mean accuracy; given differences of two methods on the same recordings,
    it is the paired interval of their difference. With one seed it says nothing about other seeds.

    Args:
        folds: for each fold ``(seeds, recordings)``; the seeds are the same in each.
        draws: bootstrap samples.
        seed: of the draws.

    Source:
        Efron and Tibshirani 1993; Bisani and Ney 2004 for paired differences of recognisers.
    """
    generator = np.random.default_rng(seed)
    num_seeds = len(folds[0])
    weights = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=draws) / num_seeds
    means = np.zeros(draws)
    for values in folds:
        # Few patterns over the seeds occur, so that counts of patterns take the place of counts of recordings.
        patterns, counts = np.unique(values, axis=1, return_counts=True)
        drawn = generator.multinomial(counts.sum(), counts / counts.sum(), size=draws) / counts.sum()
        means += np.einsum("ds,sp,dp->d", weights, patterns, drawn, optimize=True) / len(folds)
    low, high = np.percentile(means, _LEVELS)
    return Interval(float(np.mean([values.mean() for values in folds])), float(low), float(high))
