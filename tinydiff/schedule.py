"""Noise schedules and time grids: how much signal and how much noise a sample holds at time t.

A schedule is one table, log alpha_bar at t = 0, 1, ..., T, read linearly in between. t = 0 is clean data.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def floating(x: Tensor) -> Tensor:
    """x itself, or a sentence where its numbers are whole: every coefficient would be cut to 0 or 1."""
    if not x.is_floating_point():
        raise ValueError(f"x holds {x.dtype}, but must be floating point: scale pixels first, x.float() / 127.5 - 1.")
    return x


def match(value: Tensor, like: Tensor) -> Tensor:
    """Cast a float64 coefficient of shape () or (B,) to `like`: its dtype, its device, () or (B, 1, ..., 1)."""
    if value.ndim:
        value = value.reshape(-1, *[1] * (like.ndim - 1))
    return value.to(floating(like).dtype).to(like.device)  # in this order: some devices have no float64


def float64(value: Tensor | float) -> Tensor:
    """`value` in float64, on the CPU if its device has no such type."""
    if not isinstance(value, Tensor):  # a Python number: through float32 it would lose digits
        return torch.as_tensor(value, dtype=torch.float64)
    return (value.cpu() if value.device.type == "mps" else value).to(torch.float64)


@dataclass(frozen=True, eq=False)
class Schedule:
    """A variance-preserving noise schedule, x_t = alpha_t x0 + sigma_t eps with alpha_t^2 + sigma_t^2 = 1.

    Holds log alpha_bar_t at t = 0..T (alpha_t = sqrt(alpha_bar_t)), linear in t between the entries. That is DDPM's
    table (Ho et al. 2020, sec. 2) and DPM-Solver's continuation of it (Lu et al. 2022a, app. D.2) in one: whole t give
    the papers' numbers, real t serve the solvers.

    Args:
        log_alpha_bar: (T+1,), converted to float64; entry 0 is 0 (clean data), then strictly decreasing.

    Raises:
        ValueError: the table has another shape, does not start at 0, does not decrease, or is not finite.
    """

    log_alpha_bar: Tensor

    def __post_init__(self) -> None:
        table = torch.as_tensor(self.log_alpha_bar).detach().to("cpu", torch.float64)
        if table.ndim != 1 or len(table) < 2:
            raise ValueError(
                f"log_alpha_bar has shape {tuple(table.shape)}, but must be (T+1,): one entry for each t = 0..T."
            )
        if table[0] != 0:
            raise ValueError(
                f"log_alpha_bar[0] is {table[0].item():g}, but must be 0: t = 0 is clean data. Prepend a zero."
            )
        if not (torch.isfinite(table).all() and (table.diff() < 0).all()):
            raise ValueError(
                "log_alpha_bar must be finite and strictly decreasing: every step adds some noise, none adds all of it."
            )
        object.__setattr__(self, "log_alpha_bar", table)

    @property
    def T(self) -> int:
        """Number of steps; t runs from 0 (clean) to T (noise)."""
        return len(self.log_alpha_bar) - 1

    @property
    def alpha_bar(self) -> Tensor:
        """(T+1,) float64: alpha_bar_t = prod_{s <= t} (1 - beta_s)."""
        return self.log_alpha_bar.exp()

    @property
    def betas(self) -> Tensor:
        """(T,) float64: beta_t = 1 - alpha_bar_t / alpha_bar_{t-1} for t = 1..T (so betas[0] is beta_1)."""
        return -torch.expm1(self.log_alpha_bar.diff())

    def _read(self, t: Tensor | float) -> Tensor:
        """log alpha_bar at real t, float64, same shape as t."""
        t = float64(t)
        if t.device.type == "cpu":  # elsewhere the check would stall the device
            outside = t[~((t >= 0) & (t <= self.T))]
            if outside.numel():
                raise ValueError(
                    f"t = {outside[0].item():g} is not a time of this schedule: t must lie between 0 and T = {self.T}."
                )
        table = self.log_alpha_bar.to(t.device)
        left = t.long().clamp(max=self.T - 1)
        return torch.lerp(table[left], table[left + 1], t - left)

    def __call__(self, t: Tensor | float, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(alpha_t, sigma_t) = (sqrt(alpha_bar_t), sqrt(1 - alpha_bar_t)).

        Args:
            t: time in [0, T], shape () or (B,).
            like: cast to this tensor's dtype and device and reshape (B,) to (B, 1, ..., 1), so that the result
                multiplies it. Without it the result is float64 of t's shape.

        Raises:
            ValueError: t lies outside [0, T].
        """
        log_alpha_bar = self._read(t)
        alpha, sigma = (log_alpha_bar / 2).exp(), torch.expm1(log_alpha_bar).abs().sqrt()  # abs: -expm1(0) is -0.0
        return (alpha, sigma) if like is None else (match(alpha, like), match(sigma, like))

    def half_log_snr(self, t: Tensor | float) -> Tensor:
        """lambda_t = log(alpha_t / sigma_t), float64: half the log signal-to-noise ratio, +inf at t = 0."""
        log_alpha_bar = self._read(t)
        return (log_alpha_bar - torch.expm1(log_alpha_bar).abs().log()) / 2

    def time(self, half_log_snr: Tensor | float) -> Tensor:
        """t with lambda_t = half_log_snr, float64: the inverse of `half_log_snr`; values below lambda_T give T."""
        lam = float64(half_log_snr)
        table = self.log_alpha_bar.to(lam.device)
        log_alpha_bar = -torch.logaddexp(-2 * lam, torch.zeros_like(lam))  # from alpha^2 + sigma^2 = 1
        log_alpha_bar = log_alpha_bar.clamp(min=table[-1])
        right = torch.searchsorted(-table, -log_alpha_bar).clamp(1, self.T)
        a, b = table[right - 1], table[right]
        return right - (log_alpha_bar - b) / (a - b)

    def angle(self, t: Tensor | float) -> Tensor:
        """phi_t in [0, pi/2) with alpha_t = cos phi_t and sigma_t = sin phi_t, float64 (Salimans & Ho 2022, app. D)."""
        alpha, sigma = self(t)
        return torch.atan2(sigma, alpha)

    def time_at_angle(self, phi: Tensor | float) -> Tensor:
        """t with phi_t = phi > 0, float64: the inverse of `angle`; values above phi_T give T."""
        return self.time(-float64(phi).clamp(max=torch.pi / 2).tan().log())


def from_betas(betas: Tensor) -> Schedule:
    """The schedule with alpha_bar_t = prod_{s <= t} (1 - beta_s) (Ho et al. 2020, eq. 4).

    Args:
        betas: (T,), each strictly between 0 and 1; betas[0] is beta_1.

    Raises:
        ValueError: a beta lies outside (0, 1).
    """
    betas = torch.as_tensor(betas, dtype=torch.float64)
    if betas.ndim != 1 or not ((betas > 0) & (betas < 1)).all():
        raise ValueError(f"betas must be a vector of numbers strictly between 0 and 1, got {betas.tolist()!r:.80}.")
    return Schedule(torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-betas).cumsum(0)]))


def _from_curve(alpha_bar: Callable[[Tensor], Tensor], T: int) -> Schedule:
    """The schedule along alpha_bar(u)/alpha_bar(0), u = t/T, with beta <= 0.999 so that the last step stays finite."""
    curve = alpha_bar(torch.linspace(0, 1, _steps(T, "T") + 1, dtype=torch.float64))
    return from_betas((1 - curve[1:] / curve[:-1]).clamp(max=0.999))


def _steps(n: int, name: str) -> int:
    if not (isinstance(n, int) and n >= 1):
        raise ValueError(f"{name} = {n!r} must be a whole number of at least 1.")
    return n


def linear(T: int = 1000, start: float = 1e-4, end: float = 0.02) -> Schedule:
    """DDPM's schedule: beta_t linear in t from `start` to `end` (Ho et al. 2020, sec. 4), scaled by 1000/T.

    The scaling keeps alpha_bar_T near 1e-5 from T = 50 on (4e-5 at 1000); below that it is less. Without it T = 100
    would leave alpha_bar_T = 0.36, still a picture. Scaled betas are capped at 0.999, which matters below T = 21.
    """
    betas = torch.linspace(end, start, _steps(T, "T"), dtype=torch.float64).flip(0)  # from the end: T = 1 keeps beta_T
    return from_betas((betas * (1000 / T)).clamp(max=0.999))


def cosine(T: int = 1000) -> Schedule:
    """alpha_bar_t = f(t)/f(0), f(t) = cos^2((t/T + 0.008)/1.008 pi/2), beta <= 0.999 (Nichol & Dhariwal 2021)."""
    return _from_curve(lambda u: torch.cos((u + 0.008) / 1.008 * torch.pi / 2) ** 2, T)


def sigmoid(T: int = 1000) -> Schedule:
    """alpha_bar_t = (s(3) - s(6t/T - 3)) / (s(3) - s(-3)), s logistic, beta <= 0.999 (Jabri et al. 2022)."""
    high = torch.sigmoid(torch.tensor(3.0, dtype=torch.float64))
    return _from_curve(lambda u: high - torch.sigmoid(6 * u - 3), T)


def uniform(schedule: Schedule, steps: int) -> Tensor:
    """Times evenly spaced from T to 0: (steps+1,) float64. diffusers calls this spacing "trailing"."""
    return torch.linspace(schedule.T, 0, _steps(steps, "steps") + 1, dtype=torch.float64)


def quadratic(schedule: Schedule, steps: int) -> Tensor:
    """Times t_i = T (1 - i/steps)^2, dense near the data: (steps+1,) float64 (Song et al. 2021, DDIM, app. D.2)."""
    return schedule.T * torch.linspace(1, 0, _steps(steps, "steps") + 1, dtype=torch.float64) ** 2


def uniform_log_snr(schedule: Schedule, steps: int) -> Tensor:
    """Times evenly spaced in lambda from T to t = 1, then 0, where lambda is infinite: (steps+1,) float64.

    Source: Lu et al. 2022a (DPM-Solver), sec. 3.4, with t = 1 as the last noisy time.
    """
    _at_least_two_noisy_times(schedule, steps)
    ends = schedule.half_log_snr(torch.tensor([schedule.T, 1.0]))
    return _to_zero(schedule, torch.linspace(0, 1, _steps(steps, "steps"), dtype=torch.float64) * ends.diff() + ends[0])


def uniform_angle(schedule: Schedule, steps: int) -> Tensor:
    """Times evenly spaced in phi from T to 0, alpha = cos phi and sigma = sin phi: (steps+1,) float64.

    Whatever the schedule, the same noise levels; on `cosine` nearly `uniform`. The angle is the clock in which v is the
    velocity of the probability-flow ODE (Salimans & Ho 2022, app. D).
    """
    return _at_angles(schedule, torch.linspace(1, 0, _steps(steps, "steps") + 1, dtype=torch.float64))


def root_angle(schedule: Schedule, steps: int, power: float = 1 / 2) -> Tensor:
    """Times at phi_i = phi_T (1 - i/steps)^power, for power < 1 dense near the noise: (steps+1,) float64.

    For consistency models, whose answers change most there along a path: with 1/2 it says how much noise `consistency`
    should put back (64 degrees for the second of two steps), with 1/3 what `distill` teaches, both by measurement.

    Raises:
        ValueError: power is not positive.
    """
    _positive("power", power)
    return _at_angles(schedule, torch.linspace(1, 0, _steps(steps, "steps") + 1, dtype=torch.float64) ** power)


def _at_angles(schedule: Schedule, share: Tensor) -> Tensor:
    """Times at those shares of phi_T, which fall from 1 to 0."""
    times = schedule.time_at_angle(share[:-1] * schedule.angle(schedule.T))
    times[0] = schedule.T  # exactly, not within rounding
    return torch.cat([times, torch.zeros(1, dtype=torch.float64)])


def karras(schedule: Schedule, steps: int, rho: float = 7.0, sigma_max: float = math.inf) -> Tensor:
    """Times evenly spaced in (sigma_t/alpha_t)^(1/rho) from T to t = 1, then 0: (steps+1,) float64.

    Where sigma/alpha exceeds `sigma_max` at T, they start from where it is that: 80 with EDM, which leaves 1/80 of the
    data's scale in what is then taken for pure noise. Source: Karras et al. 2022 (EDM), eq. 5 and table 1.

    Raises:
        ValueError: rho is not positive, or sigma_max not above sigma/alpha at t = 1.
    """
    _at_least_two_noisy_times(schedule, steps)
    _positive("rho", rho)
    low, high = (-schedule.half_log_snr(torch.tensor([1.0, schedule.T]))).exp().tolist()
    if not sigma_max > low:
        raise ValueError(f"sigma_max = {sigma_max} must be above {low:.3g}, this schedule's sigma/alpha at t = 1.")
    start, end = min(high, sigma_max) ** (1 / rho), low ** (1 / rho)
    ramp = start + torch.linspace(0, 1, _steps(steps, "steps"), dtype=torch.float64) * (end - start)
    return _to_zero(schedule, -rho * ramp.log())


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} = {value} must be greater than 0.")


def _at_least_two_noisy_times(schedule: Schedule, steps: int) -> None:
    if schedule.T == 1 and steps > 1:
        raise ValueError(
            f"This grid spaces its times between T and t = 1, which are the same here: take steps = 1 for {steps}, "
            "or another grid, such as uniform."
        )


def _to_zero(schedule: Schedule, half_log_snr: Tensor) -> Tensor:
    """Times of a rising lambda grid, with t = 0 appended."""
    times = schedule.time(half_log_snr)
    if times[0] > (1 - 1e-9) * schedule.T:
        times[0] = schedule.T  # exactly, not within rounding
    return torch.cat([times, torch.zeros(1, dtype=torch.float64)])
