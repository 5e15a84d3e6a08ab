"""How far one set of samples is from another: pure functions of x (N, d) and y (M, d), computed in float64.

A distance means little alone. Print beside it the floor: the same distance between two real sets of the same sizes.
"""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, with pairs of distinct points: unbiased, 0 for equal laws (can be below 0).

    Source: Szekely & Rizzo 2013. Unit: that of x.
    """
    x, y = _pair(x, y)
    return float(2 * _distances(x, y).mean() - _mean_distinct(_distances(x, x)) - _mean_distinct(_distances(y, y)))


def mmd2(x: Tensor, y: Tensor, bandwidth: float = 0.2) -> float:
    """Squared maximum mean discrepancy, unbiased, kernel exp(-|x - y|^2 / (2 bandwidth^2)).

    Source: Gretton et al. 2012, eq. 3.

    Args:
        bandwidth: length at which the kernel looks, in units of x; about the width of a mode.
    """
    x, y = _pair(x, y)
    if bandwidth <= 0:
        raise ValueError(f"bandwidth = {bandwidth} must be greater than 0.")
    k_xy, k_xx, k_yy = ((-(_distances(*pair) ** 2) / (2 * bandwidth**2)).exp() for pair in ((x, y), (x, x), (y, y)))
    return float(_mean_distinct(k_xx) + _mean_distinct(k_yy) - 2 * k_xy.mean())


def wasserstein2(x: Tensor, y: Tensor) -> float:
    """W2(x, y) = sqrt(min over pairings of the mean |x_i - y_pi(i)|^2), exact; N = M up to a few thousand.

    Raises:
        ValueError: the sets have different sizes.
    """
    x, y = _pair(x, y)
    _same_size(x, y)
    cost = _distances(x, y).square().cpu().numpy()
    return float(np.sqrt(cost[linear_sum_assignment(cost)].mean()))


def sliced_wasserstein(
    x: Tensor, y: Tensor, *, projections: int = 128, generator: torch.Generator | None = None
) -> float:
    """sqrt(E over directions u of W2(u.x, u.y)^2), with N = M (Bonneel et al. 2015); each 1-D W2 pairs sorted points.

    Args:
        projections: number of random directions.
        generator: source of the directions.
    """
    x, y = _pair(x, y)
    _same_size(x, y)
    u = torch.randn(x.shape[1], projections, generator=generator, dtype=x.dtype).to(x.device)
    u = u / u.norm(dim=0)
    return float(((x @ u).sort(0).values - (y @ u).sort(0).values).square().mean().sqrt())


def mode_counts(x: Tensor, means: Tensor) -> Tensor:
    """How many points of x (N, d) lie nearest to each of the means (K, d): (K,) int64."""
    return torch.bincount(_distances(*_pair(x, means)).argmin(1), minlength=len(means))


def mode_stds(x: Tensor, means: Tensor) -> Tensor:
    """Root mean squared distance per coordinate from each mean (K, d) of the points nearest to it: (K,) float64.

    For samples of a mixture with well-separated N(m_k, s_k^2 I) this estimates s_k; nan where a mean has no point.
    """
    distance, nearest = _distances(*_pair(x, means)).min(1)
    total = torch.zeros(len(means), dtype=distance.dtype, device=distance.device)
    total.index_add_(0, nearest, distance.square())
    return (total / (mode_counts(x, means) * x.shape[1])).sqrt()


def _distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")  # the product form loses short distances


def _mean_distinct(matrix: Tensor) -> Tensor:
    """Mean over pairs of distinct points of a symmetric (N, N) matrix."""
    n = len(matrix)
    return (matrix.sum() - matrix.diagonal().sum()) / (n * (n - 1))


def _pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"x {tuple(x.shape)} and y {tuple(y.shape)} must be point sets (N, d) and (M, d) of the same d."
        )
    return x.detach().double(), y.detach().double()


def _same_size(x: Tensor, y: Tensor) -> None:
    if len(x) != len(y):
        raise ValueError(f"The sets have {len(x)} and {len(y)} points, but pairing them needs equally many.")
