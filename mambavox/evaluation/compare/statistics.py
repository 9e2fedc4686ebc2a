"""How sure a score, or the difference of two, is: bootstrap over seeds and test recordings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

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

    def verdict(self, *, higher_is_better: bool = True) -> str:
        """For a difference: ``ahead``, ``behind``, or ``no clear difference`` where the interval holds zero.

        Args:
            higher_is_better: whether a positive difference is a better score.
        """
        low, high = (self.low, self.high) if higher_is_better else (-self.high, -self.low)
        return "ahead" if low > 0 else "behind" if high < 0 else "no clear difference"


class FoldValues(NamedTuple):
    """What the scores of one fold are made of.

    Attributes:
        values: ``(seeds, recordings)``; the seeds are the same in each fold.
        counts: ``(recordings,)``; a seed's score is the sum of its values over the sum of the counts.
    """

    values: NDArray[np.floating]
    counts: NDArray[np.floating]

    @property
    def by_seed(self) -> NDArray[np.floating]:
        """``(seeds,)`` scores."""
        return np.asarray(self.values.sum(axis=1) / max(float(self.counts.sum()), 1.0))


def bootstrap(folds: Sequence[FoldValues], draws: int = DRAWS, seed: int = 0) -> Interval:
    """Mean over folds of the mean score over seeds, with its percentile bootstrap interval.

    Each draw takes seeds with replacement, the same ones in every fold, and in each fold recordings with replacement.
    Given one method's values, the interval is that of its score; given differences of two methods' values on the same
    recordings, it is the paired interval of their difference. With one seed it says nothing about other seeds.

    Args:
        folds: accuracies count 1 a recording; error rates count its words or characters.
        draws: bootstrap samples.
        seed: of the draws.

    Source:
        Efron and Tibshirani 1993; Bisani and Ney 2004 for paired differences of recognisers.
    """
    generator = np.random.default_rng(seed)
    num_seeds = len(folds[0].values)
    weights = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=draws) / num_seeds
    means = np.zeros(draws)
    for fold in folds:
        # Few patterns over the seeds occur, so that counts of patterns take the place of counts of recordings.
        table = np.vstack([fold.values, fold.counts[None]])
        patterns, times = np.unique(table, axis=1, return_counts=True)
        drawn = generator.multinomial(times.sum(), times / times.sum(), size=draws) / times.sum()
        totals = np.einsum("ds,sp,dp->d", weights, patterns[:-1], drawn, optimize=True)
        if not (patterns[-1] == 1).all():
            totals = totals / np.maximum(drawn @ patterns[-1], 1e-12)
        means += totals / len(folds)
    low, high = np.percentile(means, _LEVELS)
    return Interval(float(np.mean([fold.by_seed.mean() for fold in folds])), float(low), float(high))
