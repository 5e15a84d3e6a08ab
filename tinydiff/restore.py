"""Restoration: what a denoiser of clean data knows, put to use on data that are noisy, incomplete or sketched.

Short functions for any denoiser and sampler; `tinydiff.observe` has the denoisers that know what was observed. Which
answers are exact and which approximate is said in each docstring, and measured in tests/test_restore.py.
"""

import itertools
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tinydiff.diffuse import q_sample, randn
from tinydiff.observe import Mask
from tinydiff.sample import Grid, Sampler, State, ddpm, dpm_solver_pp, final, launch, usual
from tinydiff.schedule import Schedule, match, uniform_angle

SDE = partial(dpm_solver_pp, eta=1.0)
"""Draws noise on every step, and with 20 steps comes nearer to the exact posterior than `ddpm`."""


def inpaint(
    denoiser: Any,
    x: Tensor,
    times: Tensor,
    *,
    known: Tensor,
    mask: Tensor,
    sampler: Sampler = ddpm,
    generator: torch.Generator | None = None,
    **cond: Any,
) -> Iterator[State]:
    """Inpainting by replacement: after each step the known values become a fresh draw of q(x_s | known).

    With decreasing times this is replacement (cf. Song et al. 2021b), which is biased unless the unknown values
    are independent of the known: each step sees the known values only under noise. Where times rise, x is noised again,
    x_t = (alpha_t/alpha_s) x_s + sqrt(1 - alpha_t^2/alpha_s^2) z, and the way down tried once more; on the walk made by
    `resampling` this is RePaint (Lugmayr et al. 2022, alg. 1), whose bias falls with the repeats, and as slowly as the
    unknown values forget at low noise. `Conditioned` is the other way to go.

        times = resampling(uniform_angle(denoiser.schedule, 100))
        final(inpaint(denoiser, torch.randn(64, 1, 28, 28), times, known=picture, mask=mask, y=labels))

    Args:
        x: noise at times[0], (B, ...).
        times: a walk that may rise and fall, usually from T to 0.
        known: the picture (B, ...) or (1, ...); its unknown values do not matter.
        mask: as for `Mask`, True where known.
        sampler: takes each single step down; best one that draws noise. Multistep solvers are of order 1 here.
        generator: source of all randomness.
        cond: passed to the denoiser, such as y=labels.

    Yields:
        `State` after each move, up or down.

    Raises:
        ValueError: the mask or the known values do not fit x, two times in a row are equal, or one leaves [0, T].
    """
    schedule, merge, x0 = denoiser.schedule, Mask(mask.to(x.device)).merge, x
    if known.shape[1:] != x.shape[1:] or len(known) not in (1, len(x)):
        raise ValueError(
            f"known has shape {tuple(known.shape)}, but x has {tuple(x.shape)}: they must agree, or B be 1."
        )
    known, times = known.to(x).expand_as(x), torch.as_tensor(times, dtype=torch.float64, device="cpu")
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(f"times has shape {tuple(times.shape)}, but must be a walk of at least two times.")
    if len(still := times[1:][times.diff() == 0]):
        raise ValueError(
            f"times holds {still[0]:g} twice in a row, but every move of the walk must change t: "
            "use torch.unique_consecutive(times)."
        )
    for t, s in itertools.pairwise(times):
        if s > t:
            ratio = schedule(s)[0] / schedule(t)[0]
            x = match(ratio, x) * x + match((1 - ratio**2).sqrt(), x) * randn(x.shape, generator, x)
        else:
            ((_, x, x0),) = launch(sampler, denoiser, x, torch.stack([t, s]), generator, cond)
            x = merge(q_sample(schedule, known, s, generator=generator) if s > 0 else known, x)
        yield State(s, x, x0)


def resampling(times: Tensor, jump: int = 5, repeats: int = 10) -> Tensor:
    """A walk that takes every `jump` steps of a grid `repeats` times, leaping back up between: a 1-D float64 tensor.

    The last step, to t = 0, is taken once: there x0_hat is an average, which repeats would sharpen into one answer.
    RePaint takes jump = repeats = 10 on 250 steps (Lugmayr et al. 2022); its small steps up are one leap here, the same
    in law. Small jumps leave less bias in the mean, but repeat the errors of single steps most: take many steps.

    Args:
        times: (steps+1,), decreasing.
        jump: >= 1.
        repeats: >= 1; 1 returns the grid itself. The walk takes about repeats x steps network calls.

    Raises:
        ValueError: jump or repeats is below 1.
    """
    if jump < 1 or repeats < 1:
        raise ValueError(f"jump = {jump} and repeats = {repeats} must both be at least 1.")
    last = len(times) - 2  # the last noisy time
    stretches = [times[i : min(i + jump, last) + 1] for i in range(0, last, jump)]
    walk = [stretch for stretch in stretches for _ in range(repeats)]
    joined: Tensor = torch.unique_consecutive(torch.cat([times[:1], *walk, times[-1:]]))  # stretches share their ends
    return joined


def starting_at(schedule: Schedule, steps: int, t: Tensor | float, grid: Grid = uniform_angle) -> Tensor:
    """A grid from t to 0 instead of from T: (steps+1,) float64, spaced as `grid` spaces a schedule that ends near t.

    A grid that leaves out the largest sigma/alpha, such as `karras` with sigma_max, leaves them out here, too.

    Raises:
        ValueError: t lies outside (0, T].
    """
    t = float(t)
    if not 0 < t <= schedule.T:
        raise ValueError(f"t = {t:g} must be greater than 0 and at most T = {schedule.T} to start sampling from.")
    n = math.ceil(t)  # a schedule's table ends at a whole time
    return t * (grid(Schedule(schedule.log_alpha_bar[: n + 1]), steps) / n)


def remove_noise(
    denoiser: Any,
    x: Tensor,
    std: float,
    *,
    steps: int = 20,
    sampler: Sampler = SDE,
    grid: Grid | None = None,
    generator: torch.Generator | None = None,
    **cond: Any,
) -> Tensor:
    """Clean data from x = clean + std n, n ~ N(0, I): alpha_t x is x_t, at the t with sigma_t/alpha_t = std.

    Exact but for the denoiser and the number of steps: a sampler that draws noise draws from p(clean | x). steps=1
    gives the mean of all of these, x0_hat, best in squared error. A solver of the ODE and a consistency model give one
    answer, the end of the ODE's path through x_t: typical of the data, but no draw.

    Args:
        x: noisy data (B, ...).
        std: in units of x; with data in [-1, 1], 0.5 is a quarter of their range.
        steps, sampler, grid, generator, cond: as for `sample`.

    Returns:
        Clean data, shaped like x.

    Raises:
        ValueError: std is not positive or above sigma_T/alpha_T.
    """
    schedule = denoiser.schedule
    most = math.exp(-schedule.half_log_snr(schedule.T))
    if not 0 < std <= most:
        raise ValueError(
            f"std = {std} must be greater than 0 and at most {most:g}, which is this schedule's noise at T."
        )
    t = schedule.time(-math.log(std))
    alpha, _ = schedule(t, like=x)
    return _downwards(denoiser, alpha * x, t, steps, sampler, grid, generator, cond)


def sdedit(
    denoiser: Any,
    x: Tensor,
    t: float,
    *,
    steps: int = 20,
    sampler: Sampler = SDE,
    grid: Grid | None = None,
    generator: torch.Generator | None = None,
    **cond: Any,
) -> Tensor:
    """SDEdit: noise a sketch to time t, then sample from there: x_t = alpha_t x + sigma_t z (Meng et al. 2022, alg. 1).

    Early t keep the sketch, late t obey the data. Data that are no sketch keep their law. With sampler=`consistency`:
    stroke-guided generation (cf. Song et al. 2023).

    Args:
        x: a sketch (B, ...).
        t: in (0, T].
        steps, sampler, grid, generator, cond: as for `sample`.

    Returns:
        Edited data, shaped like x.

    Raises:
        ValueError: t lies outside (0, T].
    """
    x_t = q_sample(denoiser.schedule, x, t, generator=generator)
    return _downwards(denoiser, x_t, t, steps, sampler, grid, generator, cond)


def _downwards(
    denoiser: Any,
    x: Tensor,
    t: Tensor | float,
    steps: int,
    sampler: Sampler,
    grid: Grid | None,
    generator: torch.Generator | None,
    cond: dict[str, Any],
) -> Tensor:
    """From x at time t to data."""
    sampler, steps, grid = usual(denoiser, sampler, steps, grid)
    times = starting_at(denoiser.schedule, steps, t, grid)
    return final(launch(sampler, denoiser, x, times, generator, cond))
