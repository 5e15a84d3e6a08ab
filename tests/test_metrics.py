"""Metrics against closed forms and against scipy, and against what they are blind to."""

import math

import numpy as np
import pytest
import torch
from conftest import normal
from scipy import linalg, stats
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

import tinydiff as td
from tinydiff import metrics

f64 = torch.float64


def test_energy_distance_against_scipy_in_one_dimension() -> None:
    """scipy gives sqrt(2 (E|X-Y|/..)) of the biased kind: sqrt(2 E|X-Y| - E|X-X'| - E|Y-Y'|) with pairs of equals."""
    x, y = normal(300, 1, seed=1), 0.5 + normal(200, 1, seed=2)
    biased = stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy()) ** 2
    within = lambda z: torch.cdist(z, z).mean().item() / (len(z) - 1)  # noqa: E731  what the unbiased mean adds
    assert metrics.energy_distance(x, y) == pytest.approx(biased - within(x) - within(y), rel=1e-9)


def test_energy_distance_and_mmd_have_their_expectation_for_shifted_gaussians() -> None:
    """In one dimension X - Y ~ N(m, 2): both distances are expectations of |.| and exp(-./2h^2) of normals."""
    m, h, n = 1.0, 0.7, 3000
    x, y = normal(n, 1, seed=1), m + normal(n, 1, seed=2)
    mean_abs = lambda m: 2 / math.sqrt(math.pi) * math.exp(-m * m / 4) + m * math.erf(m / 2)  # noqa: E731
    assert metrics.energy_distance(x, y) == pytest.approx(2 * mean_abs(m) - 2 * mean_abs(0), rel=0.1)
    kernel = lambda m: h / math.sqrt(h * h + 2) * math.exp(-m * m / (2 * (h * h + 2)))  # noqa: E731
    assert metrics.mmd2(x, y, h) == pytest.approx(2 * kernel(0) - 2 * kernel(m), rel=0.1)


@pytest.mark.parametrize("distance", [metrics.energy_distance, metrics.mmd2])
def test_unbiased_distances_are_zero_on_average_for_equal_laws(distance) -> None:
    values = torch.tensor([distance(normal(50, 2, seed=2 * i), normal(50, 2, seed=2 * i + 1)) for i in range(200)])
    assert abs(values.mean().item()) < 4 * values.std().item() / math.sqrt(200)
    assert (values < 0).any(), "an unbiased estimate of zero must fall below it at times"


def test_wasserstein_of_a_shift_and_a_scaling() -> None:
    x = normal(400, 2)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    shift = torch.tensor([0.3, -0.4], dtype=f64)
    assert metrics.wasserstein2(x, (x + shift)[order]) == pytest.approx(0.5, rel=1e-9)
    assert metrics.wasserstein2(x, (1.5 * x)[order]) == pytest.approx(0.5 * x.square().sum(1).mean().sqrt().item())


def test_sliced_wasserstein_of_a_shift_is_the_shift_over_root_d() -> None:
    x, generator = normal(100, 2), torch.Generator().manual_seed(0)
    moved = x + torch.tensor([3.0, 4.0], dtype=f64)
    value = metrics.sliced_wasserstein(x, moved, projections=20_000, generator=generator)
    assert value == pytest.approx(5 / math.sqrt(2), rel=0.02)
    assert metrics.sliced_wasserstein(x, x.flip(0), generator=generator) < 1e-12


def test_mode_counts_and_stds(mixture: td.GaussianMixture) -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.tensor([0] * 3000 + [1] * 1000 + [2] * 2000)
    x = mixture.sample(6000, generator, y=y)
    assert metrics.mode_counts(x, mixture.means).tolist() == pytest.approx([3000, 1000, 2000], abs=20)
    assert metrics.mode_stds(x, mixture.means).tolist() == pytest.approx([0.1, 0.2, 0.05], rel=0.06)
    lonely = torch.tensor([[0.0, 0.0], [100.0, 0.0]], dtype=f64)
    assert metrics.mode_counts(x, lonely).tolist() == [6000, 0]
    assert metrics.mode_stds(x, lonely)[1].isnan()


def skewed(n: int, d: int, seed: int) -> Tensor:
    """Points whose covariance has no axis in common with another seed's."""
    return normal(n, d, seed=seed) @ normal(d, d, seed=seed + 100) + normal(d, seed=seed + 200)


def test_frechet_distance_is_the_published_formula() -> None:
    """With the square root of the product taken by scipy."""
    x, y = skewed(300, 7, seed=1), skewed(200, 7, seed=2)
    p, q = np.cov(x.numpy(), rowvar=False), np.cov(y.numpy(), rowvar=False)
    gap = (x.mean(0) - y.mean(0)).square().sum().item()
    expected = gap + np.trace(p + q - 2 * linalg.sqrtm(p @ q).real)
    assert metrics.frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert metrics.frechet_distance(y, x) == pytest.approx(expected, rel=1e-9)
    of_moments = metrics.frechet_distance_of_moments(metrics.moments(x), metrics.moments(y))
    assert of_moments == metrics.frechet_distance(x, y)


@pytest.mark.parametrize("n", [400, 5])  # of 8 dimensions: also where the covariance has no inverse
def test_frechet_distance_of_an_optimal_map(n: int) -> None:
    """x -> x A + b with A positive semi-definite is optimal transport: its mean squared length is the distance."""
    x, root, b = skewed(n, 8, seed=3), normal(8, 8, seed=4), normal(8, seed=5)
    y = x @ (root @ root.T) + b
    move = y - x
    mean, length = move.mean(0), (move - move.mean(0)).square().sum(1)
    expected = mean.square().sum().item() + length.sum().item() / (n - 1)
    assert metrics.frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert metrics.frechet_distance(x, x.flip(0)) == pytest.approx(0, abs=1e-9)
    assert metrics.frechet_distance(x, x + b) == pytest.approx(b.square().sum().item(), rel=1e-9)


def test_frechet_distance_of_scaled_normals() -> None:
    """sum_i (s_i - r_i)^2, and small sets are farther apart than large ones."""
    x, y = normal(100_000, 2, seed=1), normal(100_000, 2, seed=2) * torch.tensor([2.0, 0.5])
    assert metrics.frechet_distance(x, y) == pytest.approx(1.25, rel=0.02)
    floor = [metrics.frechet_distance(x[:n], x[n : 2 * n]) for n in (100, 1000, 10_000)]
    assert floor[0] > 3 * floor[1] > 9 * floor[2] > 0


def within(points: Tensor, manifold: Tensor, k: int) -> float:
    """Share of points inside a k-nearest-neighbour ball of the manifold, by scikit-learn."""
    finder = NearestNeighbors(algorithm="brute").fit(manifold.numpy())
    radius = finder.kneighbors(n_neighbors=k)[0][:, -1]  # without an argument it leaves out the point itself
    distance, index = finder.kneighbors(points.numpy(), n_neighbors=len(manifold))
    return float((distance <= radius[index]).any(1).mean())


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_recall_against_scikit_learn(k: int) -> None:
    real, fake = skewed(1101, 3, seed=1), 0.5 * skewed(1203, 3, seed=1) + 1.0  # sizes that no chunk divides
    precision, recall = metrics.precision_recall(real, fake, k)
    assert precision == pytest.approx(within(fake, real, k))
    assert recall == pytest.approx(within(real, fake, k))
    assert 0.1 < recall < precision < 0.99


def test_precision_recall_tell_missing_modes_from_bad_samples() -> None:
    modes = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0], [50.0, 50.0]], dtype=f64)
    real = normal(2000, 2, seed=1) + modes.repeat(500, 1)
    half = normal(2000, 2, seed=2) + modes[:2].repeat(1000, 1)
    precision, recall = metrics.precision_recall(real, half)
    assert precision > 0.9
    assert 0.4 < recall <= 0.5
    noisy = torch.cat([normal(1000, 2, seed=3) + modes.repeat(250, 1), normal(1000, 2, seed=4) + 25])
    precision, recall = metrics.precision_recall(real, noisy)
    assert 0.4 < precision <= 0.5
    assert recall > 0.9
    assert metrics.precision_recall(real, real) == (1.0, 1.0)


def test_nearest_distance_against_scikit_learn() -> None:
    x, reference = 1e3 + normal(1203, 5, seed=1), 1e3 + normal(700, 5, seed=2)
    expected = NearestNeighbors(n_neighbors=1).fit(reference.numpy()).kneighbors(x.numpy())[0][:, 0]
    assert metrics.nearest_distance(x, reference).numpy() == pytest.approx(expected, rel=1e-9)
    assert metrics.nearest_distance(x[5:7], x).max() < 1e-5  # copies are found


def test_nearest_ratio_against_scikit_learn() -> None:
    x, reference = 1e3 + normal(1203, 5, seed=1), 1e3 + normal(700, 5, seed=2)
    first, second = NearestNeighbors(n_neighbors=2).fit(reference.numpy()).kneighbors(x.numpy())[0].T
    assert metrics.nearest_ratio(x, reference).numpy() == pytest.approx(first / second, rel=1e-8)
    assert metrics.nearest_ratio(x[5:7], x).max() < 1e-5  # copies are found
    assert metrics.nearest_ratio(x[:1], x[:1].repeat(3, 1)).isfinite().all()  # three times the same point


@pytest.mark.parametrize("d", [1, 2, 5])
def test_nearest_ratio_of_fresh_points_in_a_flat_density(d: int) -> None:
    """P(ratio < r) = r^d: within the ball of the second nearest the nearest lies anywhere."""
    reference = torch.rand(20_000, d, generator=torch.Generator().manual_seed(1), dtype=f64)
    x = 0.3 + 0.4 * torch.rand(1000, d, generator=torch.Generator().manual_seed(2), dtype=f64)  # away from the walls
    ratio = metrics.nearest_ratio(x, reference).numpy()
    assert stats.kstest(ratio**d, "uniform").pvalue > 0.01
    assert stats.kstest(ratio ** (d + 1), "uniform").pvalue < 1e-4


def test_class_entropy_and_agreement() -> None:
    y = torch.arange(10).repeat(7)
    assert metrics.class_entropy(y) == pytest.approx(math.log(10), rel=1e-12)
    assert metrics.class_entropy(y % 2) == pytest.approx(math.log(2), rel=1e-12)
    assert metrics.class_entropy(torch.tensor([0, 0, 0, 1])) == pytest.approx(stats.entropy([0.75, 0.25]))
    assert str(metrics.class_entropy(torch.tensor([9, 9]))) == "0.0"
    assert metrics.class_agreement(y, y) == 1
    assert metrics.class_agreement(torch.tensor([3, 1, 4, 1]), torch.tensor([3, 1, 4, 5])) == 0.75


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.energy_distance(normal(3, 2), normal(3, 1)), r"x \(3, 2\) and y \(3, 1\) must be point sets"),
        (lambda: metrics.energy_distance(normal(3, 2), normal(1, 2)), "3 and 1 points, but each needs"),
        (lambda: metrics.wasserstein2(normal(3, 2), normal(4, 2)), "3 and 4 points"),
        (lambda: metrics.sliced_wasserstein(normal(3, 2), normal(4, 2)), "3 and 4 points"),
        (lambda: metrics.mmd2(normal(3, 2), normal(3, 2), 0.0), "bandwidth = 0.0 must be greater than 0"),
        (lambda: metrics.frechet_distance(normal(3, 2), normal(3, 1)), r"x \(3, 2\) and y \(3, 1\) must be point sets"),
        (lambda: metrics.moments(normal(1, 2)), r"x has shape \(1, 2\), but must be \(N, d\) with N > 1"),
        (lambda: metrics.moments(normal(2, 2) / 0), "x holds nan or inf"),
        (lambda: metrics.precision_recall(normal(9, 2), normal(3, 2)), "k = 3 must be at least 1 and below .* 9 and 3"),
        (lambda: metrics.precision_recall(normal(9, 2), normal(9, 2), 0), "k = 0 must be at least 1"),
        (lambda: metrics.nearest_ratio(normal(9, 2), normal(1, 2)), "reference has 1 points, but a second"),
        (lambda: metrics.class_entropy(normal(3)), r"Labels of torch.float64 and shape \(3,\) must be"),
        (lambda: metrics.class_entropy(torch.tensor([-1])), "whole numbers from 0 up"),
        (lambda: metrics.class_agreement(torch.ones(2).long(), torch.ones(3).long()), r"\(2,\) and predicted \(3,\)"),
    ],
)
def test_bad_input_names_value_and_rule(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
