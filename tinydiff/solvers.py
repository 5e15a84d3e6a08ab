"""More ways to feed `step`: singlestep DPM-Solver++, its noise-predicting forerunner DPM-Solver, Heun, and inversion.

All solve the probability-flow ODE and take the arguments of `ddim` but eta and generator. Within a step from t to s,
h = lambda_s - lambda_t long, they look ahead at times between; where h is infinite (s = 0) a step is of order 1.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor

from tinydiff.sample import GRIDS, State, estimate, intervals, step
from tinydiff.schedule import Schedule, karras, uniform_angle


def dpm_solver_pp_singlestep(
    denoiser: Any, x: Tensor, times: Tensor, *, order: int = 2, **cond: Any
) -> Iterator[State]:
    """Singlestep DPM-Solver++: `order` network calls a step, x0_hat taken also at times between t and s.

    Order 2 steps with x0_hat at lambda_t + h/2 (2S: Lu et al. 2022b, alg. 1 with r = 1/2); order 3 with a line through
    x0_hat at lambda_t and lambda_t + 2h/3.

    Args:
        order: 1 (= DDIM), 2 or 3: calls a step and global order of convergence.

    Raises:
        ValueError: order is not 1, 2 or 3; times as for `ddim`.
    """
    schedule = denoiser.schedule
    for t, s in intervals(schedule, times):
        x0 = estimate(denoiser, x, t, cond)
        look = partial(_look_x0, denoiser, x, t, s, cond)
        x = step(schedule, x, _mean(look, x0, _length(schedule, t, s), order), t, s)
        yield State(s, x, x0)


def dpm_solver(denoiser: Any, x: Tensor, times: Tensor, *, order: int = 2, **cond: Any) -> Iterator[State]:
    """DPM-Solver: like `dpm_solver_pp_singlestep`, but what it takes between t and s is the noise, eps_hat.

    x_s = (alpha_s/alpha_t) x - sigma_s (e^h - 1) eps, with eps the mean of eps_hat over the step: eps_hat at t (1, =
    DDIM), at lambda_t + h/2 (2), or a line through lambda_t and lambda_t + 2h/3 (3): Lu et al. 2022a, algs. 1 and 2.
    The baseline that large guidance scales break (Lu et al. 2022b, sec. 3).

    Args:
        order: 1, 2 or 3: calls a step and global order of convergence.

    Raises:
        ValueError: order is not 1, 2 or 3; times as for `ddim`.
    """
    schedule = denoiser.schedule
    for t, s in intervals(schedule, times):
        x0 = estimate(denoiser, x, t, cond)
        look = partial(_look_eps, denoiser, x, t, s, cond)
        eps = _mean(look, _eps(schedule, x, x0, t), -_length(schedule, t, s), order)
        x = step(schedule, x, _x0(schedule, x, eps, t), t, s)
        yield State(s, x, x0)


def heun(denoiser: Any, x: Tensor, times: Tensor, **cond: Any) -> Iterator[State]:
    """Heun's method in sigma/alpha: step with the mean of eps_hat at t and s (Karras et al. 2022, alg. 1). Order 2.

    Two network calls a step, one for a step to t = 0. It wants small steps in sigma/alpha: few of them from where that
    is huge, 2e4 at the T of `cosine`, end far off (44 floors on MNIST with 50 calls, benchmarks/README.md). So `sample`
    starts it, as its authors do, where sigma/alpha = 80, on their grid `karras`; in the plane, with few calls, even
    angles serve it better (on moons with 9 calls by a factor of twelve, there, too).
    """
    schedule = denoiser.schedule
    for t, s in intervals(schedule, times):
        x0 = guess = estimate(denoiser, x, t, cond)
        if s > 0:
            euler = step(schedule, x, x0, t, s)
            ends = _eps(schedule, x, x0, t), _eps(schedule, euler, estimate(denoiser, euler, s, cond), s)
            guess = _x0(schedule, x, (ends[0] + ends[1]) / 2, t)
        x = step(schedule, x, guess, t, s)
        yield State(s, x, x0)


def from_80(schedule: Schedule, steps: int) -> Tensor:
    """`karras` from sigma/alpha = 80; `uniform_angle` on a schedule of a single noisy time, which that cannot space."""
    return karras(schedule, steps, sigma_max=80.0) if schedule.T > 1 else uniform_angle(schedule, steps)


GRIDS[heun] = from_80


def invert(denoiser: Any, x0: Tensor, times: Tensor, **cond: Any) -> Iterator[State]:
    """DDIM run upwards: the noise from which `ddim` over the same times comes back to x0, up to its error.

    At t = 0, where x0 leaves the noise open, eps_hat is taken at the next time (Song et al. 2021, DDIM, sec. 5.4).

    Args:
        x0: clean data (B, ...).
        times: the decreasing times of the `ddim` to be inverted; they are walked from their end.

    Raises:
        ValueError: times as for `ddim`.
    """
    schedule, x = denoiser.schedule, x0
    for s, t in reversed(list(intervals(schedule, times))):
        u = t if t > 0 else s
        guess = estimate(denoiser, x, u, cond)
        alpha, sigma = schedule(s, like=x)
        x = step(schedule, x, guess, t, s) if t > 0 else alpha * x + sigma * _eps(schedule, x, guess, s)
        yield State(s, x, guess)


def _mean(look: Callable[[Tensor, float], Tensor], f: Tensor, h: float, order: int) -> Tensor:
    """The mean over u in [0, 1] of f (x0_hat or eps_hat) with weight e^{-h (1-u)}, f known at u = 0 and by looking.

    look(f, r) is f at u = r, a point reached with f held constant. The mean of a line is f + w(h) f', w ~ 1/2.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order = {order!r} must be 1, 2 or 3: there are no other singlestep solvers here.")
    if order == 1 or math.isinf(h):
        return f
    if order == 2:
        return look(f, 1 / 2)
    slope = (look(f, 1 / 3) - f) * 3
    slope = (look(f + _centre(h * 2 / 3) * slope * 2 / 3, 2 / 3) - f) * 3 / 2
    return f + _centre(h) * slope


def _centre(h: float) -> float:
    """phi2/E = 1/(1 - e^{-h}) - 1/h: the mean of u in [0, 1] with weight e^{-h (1-u)}, about 1/2 + h/12."""
    return -1 / math.expm1(-h) - 1 / h


def _look_x0(denoiser: Any, x: Tensor, t: Tensor, s: Tensor, cond: dict[str, Any], x0: Tensor, r: float) -> Tensor:
    u = _between(denoiser.schedule, t, s, r)
    return estimate(denoiser, step(denoiser.schedule, x, x0, t, u), u, cond)


def _look_eps(denoiser: Any, x: Tensor, t: Tensor, s: Tensor, cond: dict[str, Any], eps: Tensor, r: float) -> Tensor:
    schedule = denoiser.schedule
    u = _between(schedule, t, s, r)
    x_u = step(schedule, x, _x0(schedule, x, eps, t), t, u)
    return _eps(schedule, x_u, estimate(denoiser, x_u, u, cond), u)


def _between(schedule: Schedule, t: Tensor, s: Tensor, r: float) -> Tensor:
    """The time at lambda_t + r h."""
    return schedule.time(schedule.half_log_snr(t) + r * _length(schedule, t, s))


def _length(schedule: Schedule, t: Tensor, s: Tensor) -> float:
    """h = lambda_s - lambda_t."""
    return (schedule.half_log_snr(s) - schedule.half_log_snr(t)).item()


def _eps(schedule: Schedule, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    alpha, sigma = schedule(t, like=x)
    return (x - alpha * x0) / sigma


def _x0(schedule: Schedule, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    alpha, sigma = schedule(t, like=x)
    return (x - sigma * eps) / alpha
