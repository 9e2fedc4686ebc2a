import numpy as np
import pytest
from sklearn.cross_decomposition import CCA

from mambavox.errors import DataError
from mambavox.units.phones import PhoneSegment
from mambavox.units.similarity import cca, held_out_cca, linear_cka, one_hot, pwcca, segment_means


@pytest.fixture
def data():
    generator = np.random.default_rng(0)
    return generator, generator.standard_normal((400, 6))


def rotation(generator, dim):
    return np.linalg.qr(generator.standard_normal((dim, dim)))[0]


def test_cca_of_a_linear_map_is_one(data):
    generator, x = data
    np.testing.assert_allclose(cca(x, x @ generator.standard_normal((6, 6)) + 3), 1.0, atol=1e-9)
    assert pwcca(x, x @ generator.standard_normal((6, 9))) == pytest.approx(1.0)


def test_cca_is_sklearns(data):
    generator, x = data
    y = np.column_stack([x[:, 0] + generator.standard_normal(400), generator.standard_normal((400, 2))])
    left, right = CCA(3, max_iter=5000, tol=1e-10).fit_transform(x, y)
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(left.T, right.T, strict=True)]
    np.testing.assert_allclose(cca(x, y), expected, atol=1e-4)


def test_known_correlations_are_found():
    # Orthogonal columns by construction, so that the correlations are exactly those put in.
    columns = np.linalg.qr(np.column_stack([np.ones(50), np.random.default_rng(0).standard_normal((50, 4))]))[0][:, 1:]
    y = np.column_stack([0.8 * columns[:, 0] + 0.6 * columns[:, 2], 0.28 * columns[:, 1] + 0.96 * columns[:, 3]])
    x = columns[:, :2]
    np.testing.assert_allclose(cca(x, y), [0.8, 0.28], atol=1e-12)
    # The first direction is ten times as long in x.
    assert pwcca(x * [10, 1], y) == pytest.approx((np.array([0.8, 0.28]) @ weights(x * [10, 1], x)), abs=1e-9)


def weights(x, directions):
    sizes = np.abs(directions.T @ (x - x.mean(axis=0))).sum(axis=1)
    return sizes / sizes.sum()


def test_a_constant_or_repeated_dimension_changes_nothing(data):
    generator, x = data
    y = x[:, :2] + generator.standard_normal((400, 2))
    widened = np.column_stack([x, x[:, 0], np.ones(400)])
    np.testing.assert_allclose(cca(widened, y), cca(x, y), atol=1e-9)
    assert pwcca(np.ones((400, 3)), y) == 0.0


def test_held_out_cca_sees_through_noise():
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((60, 50)), generator.standard_normal((60, 5))
    test_x, test_y = generator.standard_normal((4000, 50)), generator.standard_normal((4000, 5))
    assert cca(x, y).mean() > 0.8
    assert abs(held_out_cca(x, y, test_x, test_y)) < 0.1
    mapped = generator.standard_normal((50, 5))
    x = generator.standard_normal((300, 50))
    assert held_out_cca(x, x @ mapped, test_x, test_x @ mapped) == pytest.approx(1.0)


def test_cka_by_its_definition_with_gram_matrices(data):
    generator, x = data
    y = np.column_stack([x[:, :2] * 3, generator.standard_normal((400, 2))])
    center = np.eye(400) - 1 / 400
    k, m = center @ x @ x.T @ center, center @ y @ y.T @ center
    expected = (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())
    assert linear_cka(x, y) == pytest.approx(expected)
    assert linear_cka(x, 5 * x @ rotation(generator, 6) + 1) == pytest.approx(1.0)
    assert linear_cka(x, np.ones((400, 2))) == 0.0


def test_one_hot_and_segment_means():
    np.testing.assert_array_equal(one_hot(["b", "a", "b"]), [[0, 1], [1, 0], [0, 1]])
    features = np.arange(10, dtype=np.float32)[:, None]
    segments = [PhoneSegment("x", 0.0, 0.03), PhoneSegment("gone", 0.031, 0.034), PhoneSegment("y", 0.05, 0.07)]
    means, phones = segment_means(features, segments, 100.0, 0.005)
    np.testing.assert_allclose(means[:, 0], [1.0, 5.5])
    assert phones == ["x", "y"]


def test_other_things_are_refused(data):
    _, x = data
    for function in (cca, pwcca, linear_cka):
        with pytest.raises(DataError, match="same things"):
            function(x, x[:-1])
