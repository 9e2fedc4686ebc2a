"""The bootstrap: right where the answer is known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from mambavox.evaluation.compare.statistics import FoldValues, Interval, bootstrap


def fold(values: NDArray[np.floating]) -> FoldValues:
    """Accuracies: each recording counts one."""
    return FoldValues(values, np.ones(values.shape[1]))


def test_an_error_rate_is_of_all_words_not_a_mean_of_rates() -> None:
    interval = bootstrap([FoldValues(np.array([[1.0, 0.0]]), np.array([1.0, 9.0]))])
    assert interval.value == pytest.approx(0.1)
    assert interval.low == 0.0 and interval.high == 1.0  # a draw of the first recording alone


def test_one_proportion_has_its_binomial_interval() -> None:
    values = np.zeros((1, 400))
    values[0, :300] = 1
    interval = bootstrap([fold(values)])
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert interval.value == 0.75
    assert interval.low == pytest.approx(0.75 - half, abs=0.004)
    assert interval.high == pytest.approx(0.75 + half, abs=0.004)


def test_the_difference_is_paired() -> None:
    """Two methods that fail on the same recordings differ surely, however few they are."""
    first, second = np.zeros((1, 400)), np.zeros((1, 400))
    first[0, :300], second[0, :280] = 1, 1
    paired = bootstrap([fold(first - second)])
    assert paired.value == pytest.approx(0.05)
    assert paired.high - paired.low == pytest.approx(2 * 1.96 * np.sqrt(0.05 * 0.95 / 400), rel=0.1)
    shuffled = np.random.default_rng(0).permutation(second[0])[None]
    apart = bootstrap([fold(first - shuffled)])
    assert apart.value == pytest.approx(0.05)
    assert apart.low < 0 < apart.high


def test_seeds_widen_the_interval() -> None:
    steady = np.tile([1.0, 1.0, 0.0, 1.0] * 500, (4, 1))
    interval = bootstrap([fold(steady)])
    wild = steady.copy()
    wild[0], wild[1] = 1, 0.5
    assert bootstrap([fold(wild)]).high - bootstrap([fold(wild)]).low > 3 * (interval.high - interval.low)


def test_folds_count_alike_whatever_their_size() -> None:
    interval = bootstrap([fold(np.ones((2, 10))), fold(np.zeros((2, 1000)))])
    assert interval == Interval(0.5, 0.5, 0.5)


def test_the_same_seed_draws_the_same() -> None:
    values = np.random.default_rng(1).integers(0, 2, (3, 50)).astype(float)
    assert bootstrap([fold(values)]) == bootstrap([fold(values)])
    assert bootstrap([fold(values)], seed=1) != bootstrap([fold(values)])


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        (Interval(0.1, 0.01, 0.2), "ahead"),
        (Interval(-0.1, -0.2, -0.01), "behind"),
        (Interval(0.1, -0.01, 0.2), "no clear difference"),
        (Interval(0.1, 0.0, 0.2), "no clear difference"),
    ],
)
def test_verdicts(interval: Interval, verdict: str) -> None:
    assert interval.verdict() == verdict
    opposite = {"ahead": "behind", "behind": "ahead"}.get(verdict, verdict)
    assert interval.verdict(higher_is_better=False) == opposite
