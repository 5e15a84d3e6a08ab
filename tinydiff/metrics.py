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

    Raises:
        ValueError: a set has fewer than two points.
    """
    x, y = _pair(x, y)
    if min(len(x), len(y)) < 2:
        raise ValueError(
            f"The sets have {len(x)} and {len(y)} points, but each needs two: distances within are averaged."
        )
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


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and unbiased covariance (d, d) of points x (N, d), N > 1, in float64: all that Frechet's distance sees.

    Raises:
        ValueError: there are fewer than two points, or one of their numbers is not finite.
    """
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}, but must be (N, d) with N > 1: one point has no covariance.")
    if not torch.isfinite(x).all():
        raise ValueError("x holds nan or inf: look at the samples before measuring them.")
    x = x.detach().double()
    return x.mean(0), torch.cov(x.T).reshape(x.shape[1], x.shape[1])


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Squared Frechet (Wasserstein-2) distance of the Gaussians with the mean and covariance of x (N, d) and y (M, d).

    |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)): the FID when the points are features (Heusel et al. 2017, eq. 6).
    Small sets are farther apart than their laws are, by about 1/N: compare at one N only, and print the floor.

    Raises:
        ValueError: as `moments`, or x and y differ in d.
    """
    _pair(x, y)
    return frechet_distance_of_moments(moments(x), moments(y))


def frechet_distance_of_moments(p: tuple[Tensor, Tensor], q: tuple[Tensor, Tensor]) -> float:
    """`frechet_distance` from the (mean, covariance) of either side, as `moments` gives them."""
    (mean_p, cov_p), (mean_q, cov_q) = p, q
    # tr (PQ)^(1/2) is the sum of the singular values of P^(1/2) Q^(1/2): no root of a matrix that is not symmetric
    cross = torch.linalg.svdvals(_root(cov_p) @ _root(cov_q)).sum()
    return float((mean_p - mean_q).square().sum() + cov_p.trace() + cov_q.trace() - 2 * cross)


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """(share of fake within the manifold of real, share of real within that of fake) (Kynkaanniemi et al. 2019, eq. 1).

    A set's manifold is the union of balls around its points, each as wide as the distance to its k-th nearest
    neighbour. Precision falls with bad samples, recall with missing ones; both depend on N and M, so compare at one N.

    Args:
        real: (N, d).
        fake: (M, d).
        k: neighbours, 3 in the paper; below N and M.

    Raises:
        ValueError: k is not a whole number between 1 and N - 1 and M - 1.
    """
    real, fake = _pair(real, fake)
    if not 1 <= k < min(len(real), len(fake)):
        raise ValueError(f"k = {k} must be at least 1 and below the numbers of points, {len(real)} and {len(fake)}.")
    radius_real, radius_fake = _radii(real, k), _radii(fake, k)
    covered = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    precise = 0
    for rows in torch.split(fake, _CHUNK):
        distance = _fast_distances(rows, real)  # (chunk, N)
        precise += int((distance <= radius_real).any(1).sum())
        radius, radius_fake = radius_fake[: len(rows), None], radius_fake[len(rows) :]
        covered |= (distance <= radius).any(0)
    return precise / len(fake), covered.double().mean().item()


def nearest_distance(x: Tensor, reference: Tensor) -> Tensor:
    """Distance of each point of x (N, d) to the nearest of reference (M, d): (N,) float64.

    With training data as reference it tells memorisation: samples nearer to it than fresh real data are copies.
    """
    x, reference = _pair(x, reference)
    return torch.cat([_fast_distances(rows, reference).min(1).values for rows in torch.split(x, _CHUNK)])


def nearest_ratio(x: Tensor, reference: Tensor) -> Tensor:
    """Distance of each point of x (N, d) to the nearest of reference (M, d) over that to the second nearest: (N,).

    0 is a copy, 1 the most. Where the density of the data is flat over that distance, fresh points have P(ratio < r) =
    r^d, with d the dimensions that the data really fill: few fresh pictures are below 1/3 (the threshold of Yoon et al.
    2023), one in nine fresh points of a plane is. Blind to copies of a picture that the reference holds twice.

    Raises:
        ValueError: reference has fewer than two points.
    """
    x, reference = _pair(x, reference)
    if len(reference) < 2:
        raise ValueError(f"reference has {len(reference)} points, but a second nearest needs at least 2.")
    two = torch.cat([_fast_distances(rows, reference).topk(2, largest=False).values for rows in torch.split(x, _CHUNK)])
    return two[:, 0] / two[:, 1].clamp(min=torch.finfo(two.dtype).tiny)  # 0, not nan, on a pair of equal points


def class_entropy(y: Tensor) -> float:
    """-sum_k p_k log p_k of the shares p_k of the classes in y (N,), in nats: log K when K classes are equally common.

    For unconditional samples, classified: a lost class lowers it.
    """
    share = torch.bincount(_labels(y)).double() / len(y)
    return float(-torch.xlogy(share, share).sum()) + 0.0  # not -0.0


def class_agreement(y: Tensor, predicted: Tensor) -> float:
    """Share of samples whose class as seen by a classifier, predicted (N,), is the class y (N,) that was asked for."""
    if y.shape != predicted.shape:
        raise ValueError(f"y has shape {tuple(y.shape)} and predicted {tuple(predicted.shape)}: they must agree.")
    return float((_labels(y) == _labels(predicted)).double().mean())


_CHUNK = 500  # rows of a distance matrix held at a time: 40 MB against 10,000 points


def psnr(x: Tensor, y: Tensor, span: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio of each picture, 10 log10(span^2 / mean (x - y)^2) in dB: (N,) for x, y (N, ...).

    Args:
        span: width of the data's range, 2 for pixels in [-1, 1].

    Raises:
        ValueError: the shapes differ.
    """
    if x.shape != y.shape or x.ndim < 2:
        raise ValueError(f"x {tuple(x.shape)} and y {tuple(y.shape)} must be pictures of one shape (N, ...).")
    error = (x.detach().double() - y.detach().double()).square().flatten(1).mean(1)
    return 10 * (span**2 / error).log10()


def _fast_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j| by one matrix product, so that 10,000 x 10,000 take seconds; float64 has the digits to lose."""
    centre = y.mean(0)
    distance: Tensor = torch.cdist(x - centre, y - centre, compute_mode="use_mm_for_euclid_dist")
    return distance


def _radii(x: Tensor, k: int) -> Tensor:
    """Distance of each point to its k-th nearest neighbour among the others: (N,)."""
    # itself is the nearest, at about 0
    return torch.cat(
        [_fast_distances(rows, x).topk(k + 1, largest=False).values[:, k] for rows in torch.split(x, _CHUNK)]
    )


def _root(cov: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(cov)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T  # rounding makes zeros negative
    return root


def _labels(y: Tensor) -> Tensor:
    if y.ndim != 1 or not len(y) or y.is_floating_point() or y.min() < 0:
        raise ValueError(f"Labels of {y.dtype} and shape {tuple(y.shape)} must be a vector of whole numbers from 0 up.")
    return y.long()


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
