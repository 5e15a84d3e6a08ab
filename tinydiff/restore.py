"""Restoration: what a denoiser of clean data knows, put to use on data that are noisy, incomplete, coarse or sketched.

Data are seen through a linear operator, observed = A x + noise: `Mask` (inpainting), `Downsample` (super-resolution),
or any linear function. `Projected` and `Conditioned` are denoisers that know what was observed, for any sampler. Which
answers are exact and which approximate is said in each docstring, and measured in tests/test_restore.py.
"""

import inspect
import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tinydiff.diffuse import q_sample, randn
from tinydiff.guide import Wrapper
from tinydiff.sample import State, ddpm, dpm_solver_pp, final
from tinydiff.schedule import Schedule, match, uniform_angle

SDE = partial(dpm_solver_pp, eta=1.0)
"""Draws noise on every step, and with 20 steps comes nearer to the exact posterior than `ddpm`."""


class Mask(nn.Module):
    """The operator that keeps the known values of x and blanks the others, A x = mask x; A^+ = A.

    Args:
        mask: True or 1 where known, False or 0 where not; broadcasts against x (B, ...), such as (H, W).

    Raises:
        ValueError: the mask holds other values; when called, its shape does not fit x.
    """

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        if not ((mask == 0) | (mask == 1)).all():
            raise ValueError("The mask must hold only 1 (known) and 0 (unknown): threshold it, mask > 0.5.")
        self.mask: Tensor
        self.register_buffer("mask", mask.bool(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, ...) where known, 0 elsewhere."""
        return self.merge(x, torch.zeros_like(x))

    def pinv(self, observed: Tensor) -> Tensor:
        """The same."""
        return self.merge(observed, torch.zeros_like(observed))

    def merge(self, known: Tensor, x: Tensor) -> Tensor:
        """`known` where known, x elsewhere, both (B, ...)."""
        mask: Tensor = self.mask
        shape = tuple(mask.shape)
        sides = zip(reversed(shape), reversed(x.shape), strict=False)
        if mask.ndim > x.ndim or any(m not in (1, n) for m, n in sides):
            raise ValueError(
                f"The mask has shape {shape}, but x has {tuple(x.shape)}: leave out sides on the left or make them 1."
            )
        return torch.where(mask, known, x)


class Downsample(nn.Module):
    """The operator that averages blocks of factor x factor pixels; A^+ repeats each pixel over its block.

    Args:
        factor: 2 halves the sides of a picture, 4 quarters them.

    Raises:
        ValueError: factor is no whole number of at least 1; when called, the sides of x are no multiples of it.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        if not (isinstance(factor, int) and factor >= 1):
            raise ValueError(f"factor = {factor!r} must be a whole number of at least 1, such as 2 or 4.")
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H/factor, W/factor) from (B, C, H, W)."""
        if x.ndim != 4 or x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, but must be (B, C, H, W) with sides that are multiples of "
                f"{self.factor}: crop or pad it."
            )
        return nn.functional.avg_pool2d(x, self.factor)

    def pinv(self, observed: Tensor) -> Tensor:
        """(B, C, H, W) from (B, C, H/factor, W/factor)."""
        return observed.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)


class Projected(Wrapper):
    """The denoiser's answer made to agree with the observation, x0_hat + A^+ (observed - A x0_hat) (Wang et al. 2023).

    A sampler that ends with x0_hat then ends with A x = observed, exactly. The rest is exact if it is independent of
    A x; otherwise it is an approximation, as x0_hat knows of the observation only what of it the noisy x_t shows. One
    network call, no gradient, no noise in the observation: DDNM, cf. their alg. 1. With a consistency model and the
    sampler `consistency` this is zero-shot editing, inpainting and super-resolution alike (Song et al. 2023, alg. 4).

        sample(Projected(denoiser, Downsample(4), coarse), (64, 1, 28, 28), sampler=ddpm, y=labels)
        sample(Projected(student, Mask(mask), picture), (64, 1, 28, 28), steps=4, sampler=consistency)

    Args:
        denoiser: any denoiser, or a consistency model.
        A: a linear operator with a method `pinv`, such as `Mask` or `Downsample`.
        observed: shaped like A(x), or with B = 1 to draw many x for one observation. Unknown values do not matter.
    """

    def __init__(self, denoiser: Any, A: Any, observed: Tensor) -> None:
        super().__init__(denoiser)
        self.A = A
        self.observed: Tensor
        self.register_buffer("observed", observed, persistent=False)

    def forward(self, x: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """x0_hat, shaped like x (B, ...).

        Raises:
            ValueError: `observed` is not shaped like A(x).
        """
        x0: Tensor = self.denoiser(x, t, **cond)
        corrected: Tensor = x0 + self.A.pinv(_residual(self.observed, self.A(x0)))
        return corrected


class Conditioned(Wrapper):
    """x0_hat given also observed = A x + std n: x0_hat + C A^T (A C A^T + std^2 I)^-1 (observed - A x0_hat).

    C = Cov[x0 | x_t] = (sigma_t^2/alpha_t) d x0_hat/d x_t, as the denoiser itself implies; its products with vectors
    are backward passes, and the linear system is solved iteratively: MMPS, Rozet et al. 2024. Exact for
    Gaussian data of any covariance, and so are the samplers that use it, up to their steps; an approximation otherwise,
    since given x_t it takes x0 for Gaussian: networks come close to the observation, not onto it. Costs
    one network call and iterations + 1 backward passes.

    Args:
        denoiser: differentiable in x.
        A: any linear function of x (B, ...), such as `Mask`, `Downsample` or a blur.
        observed: as for `Projected`.
        std: of the noise in the observation, n ~ N(0, I); in units of x.
        iterations: of the linear solver; as many as A(x) has values solve exactly, few do for networks.

    Raises:
        ValueError: std is negative or iterations is not positive.
    """

    def __init__(
        self, denoiser: Any, A: Callable[[Tensor], Tensor], observed: Tensor, std: float = 0.0, iterations: int = 3
    ) -> None:
        super().__init__(denoiser)
        if not std >= 0:
            raise ValueError(f"std = {std} must not be negative: 0 is an observation without noise.")
        if iterations < 1:
            raise ValueError(f"iterations = {iterations} must be at least 1: with none the observation does nothing.")
        self.A = A
        self.observed: Tensor
        self.register_buffer("observed", observed, persistent=False)
        self.std = std
        self.iterations = iterations

    def forward(self, x: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """x0_hat, shaped like x (B, ...), without gradient.

        Raises:
            ValueError: `observed` is not shaped like A(x).
        """
        with torch.enable_grad():  # samplers run without gradients
            leaf = x.detach().requires_grad_()
            x0 = self.denoiser(leaf, t, **cond)
            seen = self.A(x0)
        alpha, sigma = self.schedule(t)
        scale = match(sigma**2 / alpha, x)

        def pull(v: Tensor) -> Tensor:
            """C A^T v."""
            (gradient,) = torch.autograd.grad(seen, leaf, v, retain_graph=True)
            return scale * gradient

        with torch.no_grad():
            residual = _residual(self.observed, seen)
            if hasattr(self.A, "pinv"):  # what A cannot answer with, as where a mask blanks, observes nothing
                residual = self.A(self.A.pinv(residual))
            v = _solve(lambda v: self.A(pull(v)) + self.std**2 * v, residual, self.iterations)
            corrected: Tensor = x0 + pull(v)
        return corrected


def _residual(observed: Tensor, seen: Tensor) -> Tensor:
    """observed - A x0_hat, after a check."""
    if observed.shape[1:] != seen.shape[1:] or len(observed) not in (1, len(seen)):
        raise ValueError(
            f"observed has shape {tuple(observed.shape)}, but A(x) has {tuple(seen.shape)}: they must agree, or B be 1."
        )
    return observed.to(seen.dtype) - seen


def _solve(M: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """v with M v = b by generalised conjugate residuals (Eisenstat et al. 1983): each sample of b (B, ...) by itself.

    v in span(b, M b, M^2 b, ...) with the least |b - M v|, which never grows. Conjugate gradients need M symmetric and
    positive; a network's Jacobian is neither, and with them some digits ran away.
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return match((a * b).flatten(1).sum(1), a)

    v, r, past = torch.zeros_like(b), b, list[tuple[Tensor, Tensor]]()
    for _ in range(iterations):
        p, Mp = r, M(r)
        rounding = torch.finfo(b.dtype).eps * dot(Mp, Mp)
        for q, Mq in past:  # the Mq are of length 1, at right angles
            share = dot(Mp, Mq)
            p, Mp = p - share * q, Mp - share * Mq
        size = dot(Mp, Mp)
        scale = torch.where(size > rounding, size.rsqrt(), 0)  # else there is nothing new: solved
        p, Mp = scale * p, scale * Mp
        past.append((p, Mp))
        length = dot(r, Mp)
        v, r = v + length * p, r - length * Mp
    return v


def inpaint(
    denoiser: Any,
    x: Tensor,
    times: Tensor,
    *,
    known: Tensor,
    mask: Tensor,
    sampler: Callable[..., Iterator[State]] = ddpm,
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
            ((_, x, x0),) = sampler(denoiser, x, torch.stack([t, s]), **_with_generator(sampler, generator, cond))
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


def starting_at(
    schedule: Schedule, steps: int, t: Tensor | float, grid: Callable[[Schedule, int], Tensor] = uniform_angle
) -> Tensor:
    """A grid from t to 0 instead of from T: (steps+1,) float64, spaced as `grid` spaces a schedule that ends near t.

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
    sampler: Callable[..., Iterator[State]] = SDE,
    grid: Callable[[Schedule, int], Tensor] = uniform_angle,
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
    sampler: Callable[..., Iterator[State]] = SDE,
    grid: Callable[[Schedule, int], Tensor] = uniform_angle,
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
    sampler: Callable[..., Iterator[State]],
    grid: Callable[[Schedule, int], Tensor],
    generator: torch.Generator | None,
    cond: dict[str, Any],
) -> Tensor:
    """From x at time t to data."""
    times = starting_at(denoiser.schedule, steps, t, grid)
    return final(sampler(denoiser, x, times, **_with_generator(sampler, generator, cond)))


def _with_generator(
    sampler: Callable[..., Iterator[State]], generator: torch.Generator | None, cond: dict[str, Any]
) -> dict[str, Any]:
    """The keyword arguments of a sampler, which need not know generators."""
    return {**cond, "generator": generator} if "generator" in inspect.signature(sampler).parameters else cond
