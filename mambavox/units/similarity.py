"""How much of one description of the same things lies in another one, linearly: CCA, PWCCA and CKA."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mambavox.errors import DataError
from mambavox.units.phones import PhoneSegment

Matrix = NDArray[np.floating]

_RANK = 1e-6  # of the largest singular value: directions below are noise of single precision


def cca(x: Matrix, y: Matrix) -> NDArray[np.float64]:
    """Canonical correlations.

    Args:
        x: ``(things, dim)``.
        y: ``(things, other dim)``; the same things.

    Returns:
        Correlations in falling order, as many as the smaller rank.

    Raises:
        DataError: the numbers of things differ, or there are fewer than three.

    Source:
        Björck and Golub 1973: singular values of the product of orthonormal bases.
    """
    return np.clip(np.linalg.svd(_basis(x, y).T @ _basis(y, x), compute_uv=False), 0.0, 1.0)


def pwcca(x: Matrix, y: Matrix) -> float:
    """Mean of the canonical correlations, weighted by how much of ``x`` their directions make up.

    Args:
        x: ``(things, dim)``, such as hidden states.
        y: ``(things, other dim)``, such as one-hot phones.

    Returns:
        0 (nothing in common) to 1.

    Raises:
        DataError: see :func:`cca`.

    Source:
        Morcos et al. 2018 (arXiv 1806.05759); used on speech models by Pasad et al. 2021 (arXiv 2107.04734).
    """
    left, _, _ = _centered_svd(x, y)
    turn, correlations, _ = np.linalg.svd(left.T @ _basis(y, x), full_matrices=False)
    weights = np.abs((left @ turn).T @ (x - x.mean(axis=0))).sum(axis=1)
    total = weights.sum()
    return float(np.clip(correlations, 0, 1) @ weights / total) if total > 0 else 0.0


def held_out_cca(x: Matrix, y: Matrix, test_x: Matrix, test_y: Matrix) -> float:
    """Mean correlation, on other things, along the canonical directions of some.

    With few things and many dimensions CCA finds correlations in noise; these do not carry over.

    Args:
        x: ``(things, dim)`` to find directions in.
        y: ``(things, other dim)``.
        test_x: ``(other things, dim)`` to correlate along them.
        test_y: ``(other things, other dim)``.

    Returns:
        -1 to 1; 0 in expectation where nothing is in common.

    Raises:
        DataError: see :func:`cca`.
    """
    left, spread_x, axes_x = _centered_svd(x, y)
    right, spread_y, axes_y = _centered_svd(y, x)
    turn_x, correlations, turn_y = np.linalg.svd(left.T @ right, full_matrices=False)
    along_x = (test_x - x.mean(axis=0)) @ (axes_x.T / spread_x) @ turn_x
    along_y = (test_y - y.mean(axis=0)) @ (axes_y.T / spread_y) @ turn_y.T
    if not len(correlations):
        return 0.0
    return float(np.mean([_correlation(a, b) for a, b in zip(along_x.T, along_y.T, strict=True)]))


def linear_cka(x: Matrix, y: Matrix) -> float:
    """Centred kernel alignment with linear kernels.

    Args:
        x: ``(things, dim)``.
        y: ``(things, other dim)``.

    Returns:
        0 to 1; 1 where one is the other turned and scaled.

    Raises:
        DataError: see :func:`cca`.

    Source:
        Kornblith et al. 2019 (arXiv 1905.00414), equation 3.
    """
    _check(x, y)
    x = np.asarray(x, np.float64) - np.mean(x, axis=0, dtype=np.float64)
    y = np.asarray(y, np.float64) - np.mean(y, axis=0, dtype=np.float64)
    scale = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.linalg.norm(x.T @ y) ** 2 / scale) if scale > 0 else 0.0


def one_hot(labels: Sequence[str]) -> NDArray[np.float64]:
    """``(things, classes)``, 1 at the class of each; classes in alphabetical order."""
    classes, indices = np.unique(np.asarray(labels), return_inverse=True)
    return np.eye(len(classes))[indices]


def segment_means(
    features: NDArray[np.float32], phones: Sequence[PhoneSegment], frame_rate: float, first_center: float
) -> tuple[NDArray[np.float32], list[str]]:
    """Means of features over phones.

    Args:
        features: ``(time, dim)``.
        phones: in order.
        frame_rate: frames a second.
        first_center: seconds at which the first frame's centre lies.

    Returns:
        ``(segments, dim)`` and their phones; segments in which no frame's centre lies are left out.
    """
    centers = first_center + np.arange(len(features)) / frame_rate
    means, symbols = [], []
    for segment in phones:
        inside = (centers >= segment.start) & (centers < segment.end)
        if inside.any():
            means.append(features[inside].mean(axis=0))
            symbols.append(segment.phone)
    return np.array(means, np.float32).reshape(-1, features.shape[1]), symbols


def _check(x: Matrix, y: Matrix) -> None:
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < 3:
        raise DataError(
            f"descriptions have shapes {x.shape} and {y.shape}; expected (things, dim) of the same things, at least 3"
        )


def _centered_svd(x: Matrix, other: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    _check(x, other)
    centered = np.asarray(x, np.float64) - np.mean(x, axis=0, dtype=np.float64)
    left, spread, axes = np.linalg.svd(centered, full_matrices=False)
    kept = spread > _RANK * max(spread.max(initial=0.0), np.finfo(np.float64).tiny)
    return left[:, kept], spread[kept], axes[kept]


def _basis(x: Matrix, other: Matrix) -> Matrix:
    return _centered_svd(x, other)[0]


def _correlation(a: Matrix, b: Matrix) -> float:
    scale = a.std() * b.std()
    return float(((a - a.mean()) * (b - b.mean())).mean() / scale) if scale > 0 else 0.0
