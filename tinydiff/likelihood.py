"""The exact log-likelihood of any denoiser: the probability-flow ODE carries each point and the density around it."""

import math
from typing import Any

import torch
from torch import Tensor

from tinydiff.denoise import eval_mode
from tinydiff.sample import intervals
from tinydiff.schedule import Schedule, float64, match


def log_likelihood(denoiser: Any, x: Tensor, times: Tensor, *, probes: Tensor | None = None, **cond: Any) -> Tensor:
    """log p_s(x) at s = times[-1], in nats: integrate the probability-flow ODE and its divergence up to the prior at T.

    In the angle phi, where alpha = cos phi and sigma = sin phi, the ODE is dx/dphi = v(x) = (alpha x - x0_hat)/sigma
    (Salimans & Ho 2022, app. D), and along it d log p/dphi = -div v, so log p_s(x) = log N(x_T; 0, I) + int div v dphi
    (Song et al. 2021b, sec. 4.3 and app. D.2). By the classical Runge-Kutta method in phi: order 4, four denoiser calls
    a step.

    Times may end at t = 0, where v = 0/0 for an exact denoiser. There v is taken to be 0, its limit for any smooth
    density (v ~ -sigma (score + x)), and the denoiser is not asked. Where data lie on a surface or take few values
    their density is infinite: end the times at some s > 0, or add noise to the data.

    Bits per dimension are bits_per_dim(-log_likelihood(...), x), to be read beside `variational_bound` with
    bin_width=None. For data in bins, such as 8-bit pixels with bin_width = 2/255, give x + bin_width (u - 1/2), u
    uniform in [0, 1), and subtract log2(bin_width); that compares with `variational_bound` of the same bin_width.

    Args:
        denoiser: any `denoiser(x, t, **cond) -> x0_hat` with a `.schedule`, differentiable in x; called in eval mode.
        x: points at time times[-1], (B, ...).
        times: (steps+1,), strictly decreasing from T, where the prior holds; `quadratic` is a good grid.
        probes: (K, 1, ...) or (K, B, ...), random with E[p p^T] = I: the divergence is estimated as the mean of
            p^T (dv/dx) p over the K of them, K backward passes a call, and the result is unbiased (Hutchinson 1989).
            Signs such as torch.randint(2, (8, *x.shape)) * 2 - 1 scatter least. Without probes the divergence is
            exact, in as many backward passes as a sample has values: for points, not for pictures.
        cond: passed to the denoiser, such as y=labels.

    Returns:
        (B,), float64, without gradient.

    Raises:
        ValueError: the times do not decrease from T or leave [0, T], x is not floating point, the probes' shape does
            not fit x, or the denoiser's answer has no gradient.
    """
    schedule = denoiser.schedule
    pairs = list(intervals(schedule, times))
    if pairs[0][0] != schedule.T:
        raise ValueError(
            f"times start at {pairs[0][0]:g}, but must start at T = {schedule.T}: only there is x N(0, I)."
        )
    if not x.is_floating_point() or x.ndim < 2:
        raise ValueError(
            f"x is {x.dtype} of shape {tuple(x.shape)}, but must be floating point of shape (B, ...), as in training."
        )
    if probes is None:  # sqrt(d) times each unit vector: the mean of p^T J p over them is the trace of J
        d = x.shape[1:].numel()
        probes = math.sqrt(d) * torch.eye(d).to(x).reshape(d, 1, *x.shape[1:])
    if len(probes) == 0 or probes.shape[1:] not in (x.shape, (1, *x.shape[1:])):
        raise ValueError(
            f"probes has shape {tuple(probes.shape)}, but must be (K, {', '.join(map(str, x.shape))}): K for each x."
        )
    probes = probes.to(x)

    x, volume = x.detach(), torch.zeros((), dtype=torch.float64)
    with eval_mode(denoiser):
        for t, s in reversed(pairs):
            middle, h = _halfway(schedule, t, s)
            v1, div1 = _velocity(denoiser, x, s, probes, cond)
            v2, div2 = _velocity(denoiser, x + h / 2 * v1, middle, probes, cond)
            v3, div3 = _velocity(denoiser, x + h / 2 * v2, middle, probes, cond)
            v4, div4 = _velocity(denoiser, x + h * v3, t, probes, cond)
            x = x + h / 6 * (v1 + 2 * v2 + 2 * v3 + v4)
            volume = volume + h / 6 * (div1 + 2 * div2 + 2 * div3 + div4)
    return volume - (float64(x).square() + math.log(2 * math.pi)).flatten(1).sum(1) / 2


def _halfway(schedule: Schedule, t: Tensor, s: Tensor) -> tuple[Tensor, float]:
    """The time in the middle of s and t by the angle, and the angle h from s to t."""
    low, high = schedule.angle(s), schedule.angle(t)
    return schedule.time_at_angle((low + high) / 2), (high - low).item()


def _velocity(denoiser: Any, x: Tensor, t: Tensor, probes: Tensor, cond: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """v = (alpha x - x0_hat)/sigma, shaped like x, and its divergence as the probes see it: (B,) or () float64."""
    if t == 0:
        return torch.zeros_like(x), torch.zeros((), dtype=torch.float64)
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        x0 = denoiser(leaf, t, **cond)
        trace = torch.stack([_product(x0, leaf, p) for p in probes.expand(-1, *x.shape)]).mean(0)
    size = float64(probes).square().flatten(2).sum(2).mean(0)  # p^T p, d on average
    alpha, sigma = denoiser.schedule(t)
    v = match(alpha / sigma, x) * x - match(1 / sigma, x) * x0.detach()
    return v, (alpha * size - trace) / sigma


def _product(x0: Tensor, leaf: Tensor, p: Tensor) -> Tensor:
    """p^T (dx0/dleaf) p for each sample: (B,) float64."""
    gradient = None
    if x0.requires_grad:
        (gradient,) = torch.autograd.grad(x0, leaf, p, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise ValueError(
            "The denoiser's x0_hat has no gradient with respect to x, which the divergence needs: remove "
            "torch.no_grad, detach and numpy from its __call__."
        )
    return float64(gradient * p).flatten(1).sum(1)
