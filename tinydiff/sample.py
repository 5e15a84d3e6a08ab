"""Samplers: one update rule, `step`, and what each algorithm feeds it.

Every sampler is a generator of `State`: it takes a denoiser, noise x and decreasing times, and yields once a step.
The caller decides what to draw, log or stop.
"""

import inspect
import itertools
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from tinydiff.denoise import eval_mode, info_of
from tinydiff.diffuse import q_sample, randn
from tinydiff.schedule import Schedule, float64, match, root_angle, uniform_angle


class State(NamedTuple):
    """Where a sampler stands after a step."""

    t: Tensor  # (), float64: the time reached
    x: Tensor  # (B, ...): the sample at that time
    x0: Tensor  # (B, ...): the denoiser's latest estimate of the clean data


def step(
    schedule: Schedule,
    x: Tensor,
    x0: Tensor,
    t: Tensor | float,
    s: Tensor | float,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Move x from time t to s, believing that the clean data is x0 (Song et al. 2021, DDIM, eq. 12).

    x_s = alpha_s x0 + sqrt(sigma_s^2 - c^2) eps + c z with eps = (x - alpha_t x0) / sigma_t, z ~ N(0, I)
    and c = eta (sigma_s/sigma_t) sqrt(1 - alpha_t^2/alpha_s^2) (DDIM eq. 16).

    Args:
        x, x0: (B, ...).
        t, s: times with 0 <= s < t <= T, shape () or (B,).
        eta: 0 is deterministic (DDIM), 1 draws from q(x_s | x, x0) (DDPM); a ratio of standard deviations.
        generator: source of z. No number is drawn when c = 0.

    Returns:
        x_s, shaped like x.

    Raises:
        ValueError: eta lies outside [0, 1], or t is 0.
    """
    keep, weight, noise = _weights(schedule, t, s, eta)
    x_s = match(keep, x) * x + match(weight, x) * x0
    return x_s + match(noise, x) * randn(x.shape, generator, x) if noise.any() else x_s


def _weights(schedule: Schedule, t: Tensor | float, s: Tensor | float, eta: float) -> tuple[Tensor, Tensor, Tensor]:
    """`step` solved for its three ingredients, in float64: x_s = keep x + weight x0 + noise z."""
    if not 0 <= eta <= 1:
        raise ValueError(f"eta = {eta} must lie between 0 (DDIM, deterministic) and 1 (DDPM).")
    t = float64(t)
    if t.device.type == "cpu" and not (t > 0).all():  # elsewhere the check would stall the device
        raise ValueError(f"t = {t.tolist()} must be greater than 0: clean data have no noise to move along.")
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    noise = eta * (sigma_s / sigma_t) * (1 - (alpha_t / alpha_s) ** 2).clamp(min=0).sqrt()  # 0 on the way up
    keep = (sigma_s**2 - noise**2).sqrt() / sigma_t
    return keep, alpha_s - keep * alpha_t, noise


def ddpm(
    denoiser: Any, x: Tensor, times: Tensor, *, generator: torch.Generator | None = None, **cond: Any
) -> Iterator[State]:
    """Ancestral sampling: each step draws from q(x_s | x_t, x0_hat), variance beta-tilde (Ho et al. 2020, alg. 2).

    With fewer than T steps beta is that of the longer stride, 1 - alpha_bar_t/alpha_bar_s. Arguments as for `ddim`.
    """
    return ddim(denoiser, x, times, eta=1.0, generator=generator, **cond)


def ddim(
    denoiser: Any,
    x: Tensor,
    times: Tensor,
    *,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    **cond: Any,
) -> Iterator[State]:
    """DDIM with any eta on any grid: x0_hat = denoiser(x, t), then `step` (Song et al. 2021, eq. 12). Order 1.

    Args:
        denoiser: any `denoiser(x, t, **cond) -> x0_hat` with a `.schedule`; called once a step, without
            gradient and in eval mode.
        x: noise at times[0], (B, ...).
        times: (steps+1,), strictly decreasing in [0, T]; usually from T to 0.
        eta: 0 is deterministic, 1 is DDPM.
        generator: source of the noise of the steps; one draw a step, none where a step adds no noise.
        cond: passed to the denoiser, such as y=labels.

    Yields:
        `State` after each step.

    Raises:
        ValueError: the times do not decrease or leave [0, T], or eta lies outside [0, 1].
    """
    for move in _moves(denoiser.schedule, times, eta):
        x0 = estimate(denoiser, x, move.t, cond)
        x = _combine(move, x, [x0], generator)
        yield State(move.s, x, x0)


def dpm_solver_pp(
    denoiser: Any,
    x: Tensor,
    times: Tensor,
    *,
    order: int = 2,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    **cond: Any,
) -> Iterator[State]:
    """Multistep DPM-Solver++ (Lu et al. 2022b): `step` with x0_hat extrapolated in lambda; one network call a step.

    The exact solution weighs x0_hat(lambda) over the interval; order 1 holds it constant (= DDIM), order 2 draws a line
    through the last two estimates (2M, their alg. 2), order 3 a parabola through three. The first steps use what
    estimates there are; a step to t = 0, where lambda is infinite, is of order 1. Arguments, yields and errors as for
    `ddim`, and:

    Args:
        order: 1, 2 or 3, the number of past estimates used and the global order of convergence at eta = 0; order 3
            only from T, where x0_hat hardly changes in the first two steps, of orders 1 and 2: else they leave O(h^2).
        eta: 0 solves the probability-flow ODE; 1 is SDE-DPM-Solver++ (their app. B).

    Raises:
        ValueError: order is not 1, 2 or 3.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order = {order!r} must be 1, 2 or 3: DPM-Solver++ has no other multistep orders.")
    past: list[Tensor] = []  # x0_hat, the newest first
    for move in _moves(denoiser.schedule, times, eta, order):
        past = [estimate(denoiser, x, move.t, cond), *past[: order - 1]]
        x = _combine(move, x, past, generator)
        yield State(move.s, x, past[0])


def _shares(lams: list[float], H: float) -> list[float]:
    """In what shares `step` takes the past x0_hat to give what a polynomial in lambda through them would give.

    Over a step of length h in lambda x0 is weighed by the kernel H e^{-H (1-u)}, u = (lambda - lambda_t)/h in [0, 1]:
    H = h for the ODE, 2h for the SDE. The kernel's moments are E = 1 - e^{-H}, phi2 = 1 - E/H (of u) and -2 phi3 with
    phi3 = phi2/H - 1/2 (of u^2). With d0 = (x0 - x1)/r0 and d1 = (x1 - x2)/r1 the polynomial is x0 + slope u +
    curvature u^2, slope = d0 + (d0 - d1) r0/(r0 + r1), curvature = (d0 - d1)/(r0 + r1), and its mean x0 + p d0 +
    q (d0 - d1). Order 2 has q = 0 and takes p = phi2/E ~ 1/2, as Lu et al. 2022b do (alg. 2). Order 3 weighs the
    curvature by the full -2 phi3; with half of it, as in the authors' code, the solver is of order 2.

    Args:
        lams: lambda at s, at t, and at the times of older x0_hat.

    Returns:
        As many as lams less one, the newest first, of sum 1; only the newest where h is infinite.
    """
    lam_s, lam, *older = lams
    h = lam_s - lam
    if not older or math.isinf(h):
        return [1.0]
    r0 = (lam - older[0]) / h
    if len(older) == 1:
        a = 1 / (2 * r0)
        return [1 + a, -a]
    r1 = (older[0] - older[1]) / h
    E = -math.expm1(-H)
    phi2 = 1 - E / H
    phi3 = phi2 / H - 0.5
    p = phi2 / E
    q = (p * r0 - 2 * phi3 / E) / (r0 + r1)
    a, b = (p + q) / r0, q / r1
    return [1 + a, -a - b, b]


class _Move(NamedTuple):
    """A step of a grid from t to s in numbers: x_s = keep x + sum of weights x0_hat + noise z."""

    t: Tensor
    s: Tensor
    keep: float
    weights: list[float]  # of the past x0_hat, the newest first
    noise: float


def _moves(schedule: Schedule, times: Tensor, eta: float, order: int = 1) -> Iterator[_Move]:
    """The steps of a grid. Their numbers are computed at once: one by one they cost more than small networks do."""
    pairs = list(intervals(schedule, times))
    t, s = (torch.stack(ends) for ends in zip(*pairs, strict=True))
    keep, weight, noise = _weights(schedule, t, s, eta)
    H = -torch.log1p(-weight / schedule(s)[0])  # weight = alpha_s (1 - e^{-H})
    lam = schedule.half_log_snr(torch.cat([t, s[-1:]])).tolist()
    rows = torch.stack([keep, weight, noise, H], 1).tolist()
    for n, (pair, (k, w, z, H_n)) in enumerate(zip(pairs, rows, strict=True), start=1):
        shares = _shares(lam[max(0, n - order) : n + 1][::-1], H_n)
        yield _Move(*pair, k, [w * share for share in shares], z)


def _combine(move: _Move, x: Tensor, x0s: list[Tensor], generator: torch.Generator | None) -> Tensor:
    """`step`, with a sum of several x0: one new tensor, to which the others are added in place."""
    x_s = move.keep * x
    for weight, x0 in zip(move.weights, x0s, strict=False):  # a step to t = 0 takes only the newest
        x_s.add_(x0, alpha=weight)
    return x_s.add_(randn(x.shape, generator, x), alpha=move.noise) if move.noise else x_s


def consistency(
    denoiser: Any, x: Tensor, times: Tensor, *, generator: torch.Generator | None = None, **cond: Any
) -> Iterator[State]:
    """Multistep consistency sampling: denoise, re-noise, repeat (Song et al. 2023, alg. 1).

    x0 = f(x_t, t), then x_s = alpha_s x0 + sigma_s z with fresh z ~ N(0, I). One step is the denoiser's answer itself.
    Arguments, yields and errors as for `ddim`. The times say how much noise is put back: best as much as `root_angle`
    does; for one step no grid matters.
    """
    schedule = denoiser.schedule
    for t, s in intervals(schedule, times):
        x0 = estimate(denoiser, x, t, cond)
        x = q_sample(schedule, x0, s, generator=generator) if s > 0 else x0
        yield State(s, x, x0)


def final(states: Iterable[State]) -> Tensor:
    """The last x of a sampler: runs it to the end.

    Raises:
        ValueError: the sampler yielded nothing.
    """
    last = deque(states, maxlen=1)
    if not last:
        raise ValueError("The sampler yielded no state; it needs at least two times.")
    return last[0].x


Sampler = Callable[..., Iterator[State]]
Grid = Callable[[Schedule, int], Tensor]
GRIDS: dict[Sampler, Grid] = {consistency: root_angle}  # of samplers that `uniform_angle` does not suit


def sample(
    denoiser: Any,
    shape: tuple[int, ...],
    *,
    steps: int | None = None,
    sampler: Sampler | None = None,
    grid: Grid | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
    **cond: Any,
) -> Tensor:
    """Draw samples: start from N(0, I) at t = T and run `sampler` over `grid(schedule, steps)` down to t = 0.

    Args:
        denoiser: any `denoiser(x, t, **cond) -> x0_hat` with a `.schedule`; its parameters set the dtype and device.
        shape: (B, ...), the number of samples first.
        steps: number of steps, for most samplers also of network calls; 20 if not said, 2 for `consistency`.
        sampler: such as `ddim`; set its options with functools.partial(ddim, eta=0.5). If not said `dpm_solver_pp`, and
            `consistency` for a consistency model.
        grid: makes the times, such as `uniform`. If not said what suits the sampler: `uniform_angle`, for `heun`
            `karras` from sigma/alpha = 80, for `consistency` `root_angle`. On 2-D data `quadratic` does better still
            with 10 steps (measured in benchmarks/README.md).
        generator: source of all randomness; the same seed gives the same samples.
        progress: show a progress bar.
        cond: passed to the denoiser, such as y=labels of shape (B,).

    Returns:
        Samples of that shape.
    """
    tensors = [*denoiser.parameters(), *denoiser.buffers()] if isinstance(denoiser, nn.Module) else []
    x = randn(tuple(shape), generator, tensors[0] if tensors else torch.empty(0))
    sampler, steps, grid = usual(denoiser, sampler, steps, grid)
    states = launch(sampler, denoiser, x, grid(denoiser.schedule, steps), generator, cond)
    return final(tqdm(states, total=steps, desc="sampling", disable=not progress))


def usual(
    denoiser: Any, sampler: Sampler | None = None, steps: int | None = None, grid: Grid | None = None
) -> tuple[Sampler, int, Grid]:
    """What is said of (sampler, steps, grid), and for the rest what `sample` takes by itself."""
    if sampler is None:
        sampler = consistency if "teacher" in info_of(denoiser) else dpm_solver_pp
    made = getattr(sampler, "func", sampler)  # of a functools.partial
    if steps is None:
        steps = 2 if made is consistency else 20
    return sampler, steps, grid or next((g for s, g in GRIDS.items() if s is made), uniform_angle)


def launch(
    sampler: Sampler, denoiser: Any, x: Tensor, times: Tensor, generator: torch.Generator | None, cond: dict[str, Any]
) -> Iterator[State]:
    """sampler(denoiser, x, times, **cond), and the generator to samplers that take one.

    Warns where one was given to a sampler that takes none, and torch's global generator was drawn from meanwhile.
    """
    if "generator" in inspect.signature(sampler).parameters:
        yield from sampler(denoiser, x, times, **cond, generator=generator)
        return
    before = torch.get_rng_state()
    yield from sampler(denoiser, x, times, **cond)
    if generator not in (None, torch.default_generator) and not torch.equal(before, torch.get_rng_state()):
        warnings.warn(
            "A generator was given, but the sampler takes none and torch's global one was drawn from: set options by "
            "functools.partial, or give your function a parameter `generator` to pass on.",
            stacklevel=2,
        )


def intervals(schedule: Schedule, times: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The pairs (t, s) of consecutive times, after a check."""
    times = torch.as_tensor(times, dtype=torch.float64, device="cpu")
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(f"times has shape {tuple(times.shape)}, but must be (steps+1,) with at least two times.")
    if not (times.diff() < 0).all():
        raise ValueError(
            "times must be strictly decreasing, from noise to data; drop repeated times, flip a rising grid."
        )
    if not (times[0] <= schedule.T and times[-1] >= 0):
        raise ValueError(f"times run from {times[0]:g} to {times[-1]:g}, but must stay within [0, T = {schedule.T}].")
    return itertools.pairwise(times)


@torch.no_grad()
def estimate(denoiser: Any, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
    """denoiser(x, t, **cond) without gradient and in eval mode; every module's own mode is restored."""
    with eval_mode(denoiser):
        x0: Tensor = denoiser(x, t, **cond)
    if x0.shape != x.shape:
        raise ValueError(f"The denoiser returned {tuple(x0.shape)} for x of shape {tuple(x.shape)}: they must agree.")
    return x0
