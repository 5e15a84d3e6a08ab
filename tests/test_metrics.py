"""Metrics against closed forms and against scipy, and against what they are blind to."""

import math

import pytest
import torch
from conftest import normal
from scipy import stats

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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.energy_distance(normal(3, 2), normal(3, 1)), r"x \(3, 2\) and y \(3, 1\) must be point sets"),
        (lambda: metrics.wasserstein2(normal(3, 2), normal(4, 2)), "3 and 4 points"),
        (lambda: metrics.sliced_wasserstein(normal(3, 2), normal(4, 2)), "3 and 4 points"),
        (lambda: metrics.mmd2(normal(3, 2), normal(3, 2), 0.0), "bandwidth = 0.0 must be greater than 0"),
    ],
)
def test_bad_input_names_value_and_rule(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
