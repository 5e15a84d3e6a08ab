"""The forward process q and the losses that come from it."""

import math
from typing import Any

import torch
from torch import Tensor

from tinydiff.denoise import Denoiser, eval_mode
from tinydiff.schedule import Schedule, float64, floating, match


def randn(shape: torch.Size | tuple[int, ...], generator: torch.Generator | None, like: Tensor) -> Tensor:
    """One standard normal draw on the generator's own device, so that a CPU generator gives a GPU the same noise."""
    device = like.device if generator is None else generator.device
    return torch.randn(shape, generator=generator, dtype=floating(like).dtype, device=device).to(like.device)


def q_sample(
    schedule: Schedule,
    x0: Tensor,
    t: Tensor | float,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw x_t ~ q(x_t | x0) in one line: x_t = alpha_t x0 + sigma_t eps (Ho et al. 2020, eq. 4).

    Args:
        x0: clean data (B, ...).
        t: time in [0, T], shape () or (B,).
        noise: eps, standard normal and shaped like x0; drawn from `generator` when absent.

    Returns:
        x_t, shaped like x0.

    Raises:
        ValueError: t lies outside [0, T], or noise has another shape than x0.
    """
    if noise is None:
        noise = randn(x0.shape, generator, x0)
    if noise.shape != x0.shape:
        raise ValueError(f"noise has shape {tuple(noise.shape)}, but x0 has {tuple(x0.shape)}: they must agree.")
    alpha, sigma = schedule(t, like=x0)
    return alpha * x0 + sigma * noise


def q_posterior(
    schedule: Schedule, x0: Tensor, x_t: Tensor, t: Tensor | float, s: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Mean and variance of q(x_s | x_t, x0) for s < t (Ho et al. 2020, eqs. 6-7, with any s in place of t-1).

    With beta = 1 - alpha_bar_t / alpha_bar_s:
    mean = [beta sqrt(alpha_bar_s) x0 + sqrt(1 - beta) (1 - alpha_bar_s) x_t] / (1 - alpha_bar_t),
    var = beta (1 - alpha_bar_s) / (1 - alpha_bar_t).

    Args:
        x0, x_t: (B, ...).
        t, s: times with 0 <= s < t <= T, shape () or (B,).

    Returns:
        mean shaped like x_t, var of shape () or (B, 1, ..., 1).

    Raises:
        ValueError: s does not lie below t.
    """
    t, s = float64(t), float64(s)
    if t.device.type == "cpu" and not (s < t).all():  # elsewhere the check would stall the device
        raise ValueError(f"s = {s.tolist()} must lie below t = {t.tolist()}: the posterior looks back in time.")
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    beta = 1 - (alpha_t / alpha_s) ** 2
    weight_x0 = beta * alpha_s / sigma_t**2
    weight_x_t = alpha_t / alpha_s * (sigma_s / sigma_t) ** 2
    mean = match(weight_x0, x_t) * x0 + match(weight_x_t, x_t) * x_t
    return mean, match(beta * (sigma_s / sigma_t) ** 2, x_t)


def ddpm_loss(denoiser: Denoiser, x0: Tensor, *, generator: torch.Generator | None = None, **cond: Any) -> Tensor:
    """The simple loss E ||target - net(x_t, t)||^2 with t ~ U{1..T} and fresh noise (Ho et al. 2020, eq. 14): a scalar.

    Args:
        x0: clean data (B, ...).
        generator: source of t and of the noise.
        cond: passed to the network, each of shape (B, ...).
    """
    device = x0.device if generator is None else generator.device
    t = torch.randint(1, denoiser.schedule.T + 1, (len(x0),), generator=generator, device=device).to(x0.device)
    return denoiser.loss(x0, t, randn(x0.shape, generator, x0), **cond)


def stratified_times(schedule: Schedule, n: int, generator: torch.Generator | None = None) -> Tensor:
    """n times in {1..T} spread evenly, t_i = 1 + floor(T ((u + i/n) mod 1)) with one u ~ U[0, 1): (n,) int64.

    Each is U{1..T} by itself; together they cover all noise levels, which lowers the variance of a batch's loss
    (Kingma et al. 2021, app. I.1). Drawn on the generator's device.
    """
    device = None if generator is None else generator.device
    u = torch.rand((), generator=generator, dtype=torch.float64, device=device)
    return 1 + (schedule.T * ((u + torch.arange(n, device=device) / n) % 1)).long()


@torch.no_grad()
def variational_bound(
    denoiser: Any,
    x0: Tensor,
    *,
    bin_width: float | None = None,
    generator: torch.Generator | None = None,
    **cond: Any,
) -> Tensor:
    """Monte-Carlo estimate of DDPM's upper bound on -log p(x0) in nats, all T terms: (B,).

    L_T = KL(q(x_T | x0) || N(0, I)); L_t = (SNR_s - SNR_t)/2 ||x0 - x0_hat||^2 for s = t-1 >= 1;
    L_0 = -log p(x0 | x_1), a Gaussian around x0_hat(x_1) of variance 1/SNR_1 (what x_1 leaves open about x0), as a
    density or integrated over the bin of x0. One fresh noise per term; T network calls.
    Sources: Ho et al. 2020, eqs. 5 and 13; Kingma et al. 2021, eq. 13.

    Args:
        denoiser: any `denoiser(x, t, **cond) -> x0_hat` with a `.schedule`.
        x0: clean data (B, ...).
        bin_width: spacing of discrete data, 2/255 for 8-bit pixels in [-1, 1]; None means x0 is continuous.

    Returns:
        (B,) in nats per sample; `bits_per_dim` converts.

    Raises:
        ValueError: bin_width is not positive.
    """
    if bin_width is not None and not bin_width > 0:
        raise ValueError(f"bin_width = {bin_width} must be greater than 0, or None for continuous data.")
    schedule = denoiser.schedule
    times = torch.arange(schedule.T, 0, -1, dtype=torch.float64)
    snr = (2 * schedule.half_log_snr(times)).exp()

    alpha, sigma = schedule(schedule.T, like=x0)
    bound = _sum((sigma**2 + (alpha * x0) ** 2 - 1) / 2 - sigma.log())
    for i, t in enumerate(times):
        with eval_mode(denoiser):
            x0_hat = denoiser(q_sample(schedule, x0, t, generator=generator), t, **cond)
        error = x0 - x0_hat
        if t > 1:
            bound += match((snr[i + 1] - snr[i]) / 2, bound) * _sum(error**2)
        else:
            bound += _sum(_gaussian_nll(error, x0, match(snr[i] ** -0.5, x0), bin_width))
    return bound


def bits_per_dim(nats: Tensor, x0: Tensor) -> Tensor:
    """nats / (d log 2), with d the number of values in one sample of x0 (B, ...)."""
    return nats / (x0[0].numel() * math.log(2))


def _sum(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1)


def _gaussian_nll(error: Tensor, x0: Tensor, std: Tensor, bin_width: float | None) -> Tensor:
    """-log N(error; 0, std^2) per element, or minus the log of its mass over the bin of x0, open-ended at +-1."""
    if bin_width is None:
        return (error / std) ** 2 / 2 + std.log() + math.log(2 * math.pi) / 2
    dtype, half = x0.dtype, bin_width / 2
    error, x0, std = (v.to(torch.promote_types(dtype, torch.float32)) for v in (error, x0, std))
    low = torch.where(x0 <= -1 + half, -torch.inf, (error - half) / std)
    high = torch.where(x0 >= 1 - half, torch.inf, (error + half) / std)
    low, high = torch.where(low > 0, -high, low), torch.where(low > 0, -low, high)  # the lower tail keeps its digits
    below_high, below_low = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    nll: Tensor = -below_high - (-torch.expm1(below_low - below_high)).log()  # also where both masses underflow
    return nll.to(dtype)
