"""Samplers against exact flows, exact integrals, each other, and their own contract."""

import importlib
import inspect
import itertools
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy
import pytest
import torch
from conftest import normal
from torch import Tensor, nn

import tinydiff as td
from tinydiff.sample import launch, usual

f64 = torch.float64

# What each solver claims: the global order of convergence on the probability-flow ODE.
ORDERS = [
    (td.ddim, {}, 1),
    (td.dpm_solver_pp, {"order": 1}, 1),
    (td.dpm_solver_pp, {"order": 2}, 2),
    (td.dpm_solver_pp, {"order": 3}, 3),
    (td.dpm_solver_pp_singlestep, {"order": 1}, 1),
    (td.dpm_solver_pp_singlestep, {"order": 2}, 2),
    (td.dpm_solver_pp_singlestep, {"order": 3}, 3),
    (td.dpm_solver, {"order": 1}, 1),
    (td.dpm_solver, {"order": 2}, 2),
    (td.dpm_solver, {"order": 3}, 3),
    (td.heun, {}, 2),
]
MULTISTEP = ORDERS[:4]  # these take eta
SAMPLERS = [(td.ddpm, {}), (td.ddim, {"eta": 0.4}), *((s, options) for s, options, _ in ORDERS)]


def log_snr_times(schedule: td.Schedule, steps: int, last: float = 1.0) -> Tensor:
    """Evenly spaced in lambda from T to `last` > 0, where orders can be measured."""
    ends = schedule.half_log_snr(torch.tensor([schedule.T, last], dtype=f64))
    times = schedule.time(torch.linspace(0, 1, steps + 1, dtype=f64) * ends.diff() + ends[0])
    times[0] = schedule.T
    return times


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slope(h: list[float], errors: list[float]) -> float:
    """Least-squares slope of log error on log h."""
    x, y = torch.tensor(h, dtype=f64).log(), torch.tensor(errors, dtype=f64).log()
    x, y = x - x.mean(), y - y.mean()
    return ((x * y).sum() / (x * x).sum()).item()


class Prescribed:
    """A denoiser that ignores x and says x0_hat = sin(lambda): integrals of it are exact."""

    def __init__(self, schedule: td.Schedule) -> None:
        self.schedule = schedule

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.schedule.half_log_snr(t).sin().expand_as(x)


# --- convergence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sampler", "options", "order"), MULTISTEP)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_local_order_against_the_exact_integral(sampler, options, order: int, eta: float) -> None:
    """One step with full history against the integral of sin(lambda) over it; local order is global order + 1.

    With k = 1 + eta (1 for the ODE, 2 for the SDE): x_s = (sigma_s/sigma_t) e^{-(k-1)h} x + noise
    + alpha_s int k e^{-k (lambda_s - lambda)} sin(lambda) dlambda, and the integral is elementary.
    """
    schedule, k = td.linear(), 1 + eta
    hs, errors = [0.08, 0.04, 0.02, 0.01], []
    for h in hs:
        lam = torch.tensor([0, 1.0, 2.3, 3.1], dtype=f64)[: order + 1] * h - 0.3  # uneven, so that r0 and r1 matter
        times = schedule.time(lam)
        generator = torch.Generator().manual_seed(0)
        x = normal(1, 2, seed=1)
        states = [
            td.State(times[0], x, x),
            *sampler(Prescribed(schedule), x, times, eta=eta, generator=generator, **options),
        ]
        x_t, x_s, length = states[-2].x, states[-1].x, (lam[-1] - lam[-2]).item()
        (_, sigma_t), (alpha_s, sigma_s) = schedule(times[-2]), schedule(times[-1])
        primitive = lambda u, end=lam[-1]: k * (k * u.sin() - u.cos()) / (k * k + 1) * (-k * (end - u)).exp()  # noqa: E731
        exact = sigma_s / sigma_t * math.exp(-(k - 1) * length) * x_t + alpha_s * (
            primitive(lam[-1]) - primitive(lam[-2])
        )
        if eta:
            replay = torch.Generator().manual_seed(0)
            z = [torch.randn(1, 2, generator=replay, dtype=f64) for _ in states[1:]][-1]
            exact = exact + sigma_s * math.sqrt(1 - math.exp(-2 * length)) * z
        errors.append((x_s - exact).abs().max().item())
    assert slope(hs, errors) - 1 == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(("sampler", "options", "order"), [o for o in ORDERS if o is not MULTISTEP[3]])
def test_global_order_against_the_exact_flow(sampler, options, order: int) -> None:
    """Error against the closed-form ODE flow of one Gaussian, regressed on the step.

    Multistep order 3 is left to the local test: on this world its leading error vanishes and it looks like order 4.
    """
    schedule, (m, s) = td.linear(), (0.6, 0.3)
    denoiser = td.GaussianMixture(torch.tensor([[m, -m]], dtype=f64), s).denoiser(schedule)
    x, errors, counts = normal(64, 2), [], [40, 80, 160, 320]
    for n in counts:
        times = log_snr_times(schedule, n)
        exact = td.gaussian_flow(schedule, torch.tensor([m, -m], dtype=f64), s, x, times[0], times[-1])
        errors.append((td.final(sampler(denoiser, x, times, **options)) - exact).abs().mean().item())
    assert slope([1 / n for n in counts], errors) == pytest.approx(order, abs=0.15)


def test_third_order_started_below_T_is_of_order_two_as_its_docstring_says() -> None:
    schedule, (m, s) = td.cosine(), (0.6, 0.3)
    denoiser = td.GaussianMixture(torch.tensor([[m, -m]], dtype=f64), s).denoiser(schedule)
    ends, x = schedule.half_log_snr(torch.tensor([700.0, 100.0], dtype=f64)), normal(64, 2)
    errors, counts = [], [128, 256, 512]
    for n in counts:
        times = schedule.time(torch.linspace(0, 1, n + 1, dtype=f64) * ends.diff() + ends[0])
        exact = td.gaussian_flow(schedule, torch.tensor([m, -m], dtype=f64), s, x, times[0], times[-1])
        errors.append((td.final(td.dpm_solver_pp(denoiser, x, times, order=3)) - exact).abs().mean().item())
    assert slope([1 / n for n in counts], errors) == pytest.approx(2, abs=0.15)


def test_third_order_beats_second_on_the_mixture(mixture: td.GaussianMixture) -> None:
    """Global order 3 on a non-linear world down to t = 30, against a reference of many third-order steps."""
    schedule = td.linear()
    denoiser, x = mixture.denoiser(schedule), normal(32, 2)
    run = lambda n, order: td.final(td.dpm_solver_pp(denoiser, x, log_snr_times(schedule, n, 30.0), order=order))  # noqa: E731
    reference, counts = run(1200, 3), [75, 150, 300]
    median = lambda n, order: (run(n, order) - reference).abs().median().item()  # noqa: E731
    assert slope([1 / n for n in counts], [median(n, 3) for n in counts]) > 2.7
    assert median(300, 3) < median(300, 2) / 5


@pytest.mark.parametrize("noise_prediction", [False, True])
def test_third_order_singlestep_is_the_papers(noise_prediction: bool, mixture: td.GaussianMixture) -> None:
    """One step of order 3 written out with r1 = 1/3, r2 = 2/3: DPM-Solver-3 (Lu et al. 2022a, alg. 2), and the same for
    x0_hat, where alpha and sigma change places and h its sign, as in the authors' code. An order alone would not see
    every wrong coefficient of an inner stage."""
    schedule, x, (t, s) = td.linear(), normal(8, 2), torch.tensor([700.0, 400.0], dtype=f64)
    denoiser = mixture.denoiser(schedule)
    lam_t, lam_s = schedule.half_log_snr(t), schedule.half_log_snr(s)
    h, expm1 = (lam_s - lam_t).item(), math.expm1

    def model(x: Tensor, u: Tensor) -> Tensor:
        alpha, sigma = schedule(u)
        x0 = denoiser(x, u)
        return (x - alpha * x0) / sigma if noise_prediction else x0

    def ratio_and_factor(u: Tensor) -> tuple[Tensor, Tensor]:
        (alpha_t, sigma_t), (alpha_u, sigma_u) = schedule(t), schedule(u)
        return (alpha_u / alpha_t, sigma_u) if noise_prediction else (sigma_u / sigma_t, alpha_u)

    h = h if noise_prediction else -h
    u1, u2 = (schedule.time(lam_t + r * (lam_s - lam_t)) for r in (1 / 3, 2 / 3))
    (a1, b1), (a2, b2), (a3, b3) = map(ratio_and_factor, (u1, u2, s))
    m0 = model(x, t)
    d1 = model(a1 * x - b1 * expm1(h / 3) * m0, u1) - m0
    phi_22 = expm1(2 * h / 3) / (2 * h / 3) - 1
    d2 = model(a2 * x - b2 * expm1(2 * h / 3) * m0 - 2 * b2 * phi_22 * d1, u2) - m0
    expected = a3 * x - b3 * expm1(h) * m0 - 1.5 * b3 * (expm1(h) / h - 1) * d2
    sampler = td.dpm_solver if noise_prediction else td.dpm_solver_pp_singlestep
    ours = td.final(sampler(denoiser, x, torch.stack([t, s]), order=3))
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("grid", [td.uniform, td.karras, td.uniform_log_snr])
def test_last_step_to_zero_returns_the_denoisers_x0(order: int, eta: float, grid, mixture: td.GaussianMixture) -> None:
    schedule = td.linear()
    states = list(
        td.dpm_solver_pp(
            mixture.denoiser(schedule),
            normal(8, 2),
            grid(schedule, 6),
            order=order,
            eta=eta,
            generator=torch.Generator().manual_seed(1),
        )
    )
    assert torch.isfinite(states[-1].x).all()
    torch.testing.assert_close(states[-1].x, states[-1].x0, rtol=1e-12, atol=1e-12)
    assert states[-1].t == 0


# --- identities and moments ------------------------------------------------------------------------------------------


def test_step_at_eta_1_draws_from_the_posterior(schedule: td.Schedule) -> None:
    x, x0 = normal(3, 2, 4, 3, seed=1), normal(3, 2, 4, 3, seed=2)
    t = torch.tensor([1.0, schedule.T / 2, schedule.T])
    s = torch.tensor([0.0, schedule.T / 3, schedule.T - 1.0])
    mean, var = td.q_posterior(schedule, x0, x, t, s)
    x_s = td.step(schedule, x, x0, t, s, eta=1.0, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(x_s, mean + var.sqrt() * normal(3, 2, 4, 3, seed=3), rtol=1e-9, atol=1e-12)


def test_step_at_eta_0_keeps_the_noise(schedule: td.Schedule) -> None:
    """A point made of x0 and eps at t is made of the same two at s."""
    x0, eps = normal(4, 3, seed=1), normal(4, 3, seed=2)
    t, s = schedule.T * 0.8, schedule.T * 0.3
    x_t, x_s = (td.q_sample(schedule, x0, u, noise=eps) for u in (t, s))
    torch.testing.assert_close(td.step(schedule, x_t, x0, t, s), x_s, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_step_keeps_the_marginal(eta: float, schedule: td.Schedule) -> None:
    """For given x0, x_t ~ q(x_t|x0) goes to x_s ~ q(x_s|x0): mean and variance, whatever eta (DDIM, lemma 1)."""
    n, t, s = 200_000, schedule.T * 0.7, schedule.T * 0.4
    generator = torch.Generator().manual_seed(0)
    x0 = torch.full((n, 1), 0.8, dtype=f64)
    x_s = td.step(schedule, td.q_sample(schedule, x0, t, generator=generator), x0, t, s, eta, generator)
    alpha, sigma = schedule(s)
    assert x_s.mean().item() == pytest.approx(0.8 * alpha.item(), abs=5 * sigma.item() / math.sqrt(n))
    assert x_s.std().item() == pytest.approx(sigma.item(), rel=5 / math.sqrt(2 * n))


def test_ancestral_sampling_of_unit_gaussian_loses_the_known_variance() -> None:
    """N(0, 1) data and the exact x0_hat = alpha x: each step leaves x_s = a x + noise, a = alpha_t/alpha_s, of variance
    beta-tilde = (1 - a^2) sigma_s^2/sigma_t^2 where 1 - a^2 would keep the variance at 1. 0.71 is left."""
    schedule = td.linear()
    variance, alpha_bar = 1.0, schedule.alpha_bar[::50].flip(0).tolist()
    for ab_t, ab_s in itertools.pairwise(alpha_bar):
        variance = ab_t / ab_s * variance + (1 - ab_t / ab_s) * (1 - ab_s) / (1 - ab_t)
    assert variance == pytest.approx(0.71, abs=0.005)
    denoiser = td.GaussianMixture(torch.zeros(1, 1, dtype=f64), 1.0).denoiser(schedule)
    x = normal(100_000, 1)
    out = td.final(td.ddpm(denoiser, x, td.uniform(schedule, 20), generator=torch.Generator().manual_seed(1)))
    assert out.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / 100_000))


def output_moments(monkeypatch: pytest.MonkeyPatch, states_of, n: int) -> tuple[float, float]:
    """Mean and variance of what n steps on an affine denoiser return, without a random number.

    The output is affine in x_T and in each step's noise: row 0 of the batch gets zeros in their place, row k + 1 a one
    in place of the k-th. What row k + 1 gains over row 0 is the output's coefficient of the k-th unit normal.
    """
    units = iter(torch.eye(n + 1, dtype=f64)[:, 1:].T[:, :, None])  # x_T, then one noise a step: (n + 1, 1) each
    x = next(units)
    module = importlib.import_module("tinydiff.sample")  # td.sample is the function
    monkeypatch.setattr(module, "randn", lambda *_: next(units))
    out = td.final(states_of(x))[:, 0]
    return out[0].item(), (out[1:] - out[0]).square().sum().item()


def expected_moments(schedule: td.Schedule, times: Tensor, m: float, s: float, order: int) -> tuple[float, float]:
    """The same for SDE-DPM-Solver++ on N(m, s^2) data, from the integral that it approximates:
    x_s = (sigma_s/sigma_t) e^{-h} x + alpha_s int 2 e^{-2 (lambda_s - u)} x0_hat(u) du + sigma_s sqrt(1 - e^{-2h}) z,
    with x0_hat(u) constant, a line whose slope counts half the step, or a parabola integrated by quadrature."""
    x, past = torch.zeros(len(times) + 1, dtype=f64), []  # the mean, then the coefficients of x_T and of each noise
    x[1] = 1
    nodes, weights = map(torch.from_numpy, numpy.polynomial.legendre.leggauss(40))
    for k, (t, end) in enumerate(itertools.pairwise(times)):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(end)
        gain = alpha_t * s**2 / (alpha_t**2 * s**2 + sigma_t**2)
        x0 = gain * x
        x0[0] += m - gain * alpha_t * m
        if end == 0:
            x = x0
            break
        lam, lam_s = schedule.half_log_snr(t), schedule.half_log_snr(end)
        past, h = [(lam, x0), *past[: order - 1]], lam_s - lam
        kernel = 1 - torch.exp(-2 * h)
        if len(past) == 1:
            integral = kernel * x0
        elif len(past) == 2:
            integral = kernel * (x0 + (x0 - past[1][1]) / (lam - past[1][0]) * h / 2)
        else:
            u = lam + h * (nodes + 1) / 2
            mass = weights * h / 2 * 2 * torch.exp(-2 * (lam_s - u))
            (a, f), (b, g), (c, e) = past
            integral = (
                (mass * (u - b) * (u - c) / ((a - b) * (a - c))).sum() * f
                + (mass * (u - a) * (u - c) / ((b - a) * (b - c))).sum() * g
                + (mass * (u - a) * (u - b) / ((c - a) * (c - b))).sum() * e
            )
        x = sigma_s / sigma_t * torch.exp(-h) * x + alpha_s * integral
        x[k + 2] = sigma_s * kernel.sqrt()
    return x[0].item(), x[1:].square().sum().item()


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("grid", [td.uniform, td.uniform_log_snr, td.quadratic])
@pytest.mark.parametrize(("m", "s"), [(0.0, 1.0), (0.6, 0.3)])
def test_moments_of_the_sde_samplers_are_exact(monkeypatch, m: float, s: float, grid, order: int) -> None:
    schedule = td.linear()
    denoiser, times = td.GaussianMixture(torch.tensor([[m]], dtype=f64), s).denoiser(schedule), grid(schedule, 20)
    mean, variance = expected_moments(schedule, times, m, s, order)
    run = lambda x: td.dpm_solver_pp(denoiser, x, times, order=order, eta=1.0)  # noqa: E731
    assert output_moments(monkeypatch, run, 20) == pytest.approx((mean, variance), rel=1e-9, abs=1e-12)
    if order == 1:
        run = lambda x: td.ddpm(denoiser, x, times)  # noqa: E731
        assert output_moments(monkeypatch, run, 20) == pytest.approx((mean, variance), rel=1e-9, abs=1e-12)


def test_higher_orders_keep_the_variance_better(monkeypatch) -> None:
    """N(0, 1) data: at 20 uniform steps DDPM keeps 0.711 of the variance. What is missing, or too much, falls faster
    the higher the order: as 1/n, 1/n^2, and on its way to 1/n^3."""
    schedule = td.linear()
    denoiser = td.GaussianMixture(torch.zeros(1, 1, dtype=f64), 1.0).denoiser(schedule)

    def variance(order: int, times: Tensor) -> float:
        run = lambda x: td.dpm_solver_pp(denoiser, x, times, order=order, eta=1.0)  # noqa: E731
        return output_moments(monkeypatch, run, len(times) - 1)[1]

    assert variance(1, td.uniform(schedule, 20)) == pytest.approx(0.711, abs=5e-4)
    counts = [40, 80, 160]
    for order, least, bound in ((1, 0.85, 0.06), (2, 1.9, 0.0012), (3, 2.3, 0.0004)):
        errors = [abs(variance(order, td.uniform_log_snr(schedule, n)) - 1) for n in counts]
        assert slope([1 / n for n in counts], errors) > least
        assert errors[-1] < bound


def test_identities(mixture: td.GaussianMixture) -> None:
    schedule = td.linear()
    denoiser, x, times = mixture.denoiser(schedule), normal(16, 2), td.uniform(schedule, 12)
    run = lambda sampler, **options: td.final(  # noqa: E731
        sampler(denoiser, x, times, generator=torch.Generator().manual_seed(5), **options)
    )
    assert torch.equal(run(td.ddpm), run(td.ddim, eta=1.0))
    assert torch.equal(run(td.dpm_solver_pp, order=1), run(td.ddim))
    assert torch.equal(run(td.dpm_solver_pp, order=1, eta=1.0), run(td.ddpm))
    assert not torch.allclose(run(td.dpm_solver_pp, order=2), run(td.ddim), atol=1e-3)
    for first_order in (td.dpm_solver, td.dpm_solver_pp_singlestep):
        same = td.final(first_order(denoiser, x, times, order=1))
        torch.testing.assert_close(same, run(td.ddim), rtol=1e-9, atol=1e-9)


def test_inversion_and_sampling_are_inverse_up_to_the_step() -> None:
    """One Gaussian: the noise found nears the exact flow's (a little slower than the step falls, for its start at
    t = 0 is a guess), and the way back nears x0 with order 1."""
    schedule, world = td.linear(), td.GaussianMixture(torch.tensor([[0.3, -0.2]], dtype=f64), 0.3)
    denoiser, x0 = world.denoiser(schedule), world.sample(32, torch.Generator().manual_seed(0))
    noise = td.gaussian_flow(schedule, world.means[0], 0.3, x0, 0, 1000)
    there, back, counts = [], [], [50, 100, 200, 400]
    for n in counts:
        times = td.uniform(schedule, n)
        states = list(td.invert(denoiser, x0, times))
        assert torch.equal(torch.stack([s.t for s in states]), times.flip(0)[1:])
        there.append((states[-1].x - noise).abs().mean().item())
        back.append((td.final(td.ddim(denoiser, states[-1].x, times)) - x0).abs().mean().item())
    assert there[-1] < min(0.01, there[0] / 3)
    assert slope([1 / n for n in counts], back) == pytest.approx(1, abs=0.2)


def test_per_sample_times_equal_a_loop() -> None:
    schedule, x, x0 = td.linear(), normal(3, 2, 4, 3, seed=1), normal(3, 2, 4, 3, seed=2)
    t, s = torch.tensor([1000.0, 500.5, 2.0]), torch.tensor([900.0, 1.0, 0.0])
    together = td.step(schedule, x, x0, t, s)
    alone = torch.cat([td.step(schedule, x[i : i + 1], x0[i : i + 1], t[i], s[i]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-13, atol=0)


# --- the contract ----------------------------------------------------------------------------------------------------


class Dropout(nn.Module):
    """A network whose answer differs in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.frozen = nn.BatchNorm1d(2).eval()
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        assert not torch.is_grad_enabled()
        return self.frozen(self.drop(x)) * 0.5


@pytest.mark.parametrize(("sampler", "options"), SAMPLERS)
def test_samplers_run_in_eval_mode_once_a_step_and_restore_the_mode(sampler, options) -> None:
    denoiser = td.VDenoiser(Dropout(), td.linear()).train()
    denoiser.net.frozen.eval()
    x, times = normal(5, 2, dtype=torch.float32), td.uniform(denoiser.schedule, 7)
    with torch.enable_grad():
        runs = [td.final(sampler(denoiser, x, times, **generators(sampler), **options)) for _ in range(2)]
    assert torch.equal(*runs)
    assert denoiser.net.calls == 2 * network_calls(sampler, options, 7)
    assert denoiser.training
    assert denoiser.net.drop.training
    assert not denoiser.net.frozen.training, "a part the caller froze must stay frozen"
    assert not runs[0].requires_grad


def network_calls(sampler, options, steps: int) -> int:
    """A call a step, and where it looks ahead more, but not in the last step to t = 0."""
    if sampler in (td.dpm_solver, td.dpm_solver_pp_singlestep):
        return options["order"] * (steps - 1) + 1
    return 2 * (steps - 1) + 1 if sampler is td.heun else steps


def generators(sampler) -> dict[str, torch.Generator]:
    accepts = "generator" in inspect.signature(sampler).parameters
    return {"generator": torch.Generator().manual_seed(7)} if accepts else {}


@pytest.mark.parametrize(("sampler", "options"), SAMPLERS)
def test_samplers_yield_a_state_a_step_and_leave_the_global_rng_alone(sampler, options, mixture) -> None:
    schedule = td.linear()
    x, times = normal(4, 2, dtype=torch.float32), td.uniform(schedule, 5)
    before, kept = torch.get_rng_state(), x.clone()
    states = sampler(mixture.denoiser(schedule), x, times, **generators(sampler), **options)
    assert isinstance(states, Iterator)
    states = list(states)
    assert torch.equal(torch.stack([s.t for s in states]), times[1:])
    assert all(s.x.shape == s.x0.shape == (4, 2) and s.x.dtype == torch.float32 for s in states)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(x, kept), "the caller's noise must not be overwritten"


@pytest.mark.parametrize(("eta", "draws"), [(0.0, 0), (0.5, 4), (1.0, 4)])
@pytest.mark.parametrize("sampler", [td.ddim, td.dpm_solver_pp])
def test_one_draw_per_noisy_step(sampler, eta: float, draws: int, mixture: td.GaussianMixture) -> None:
    """Five steps, the last to t = 0 where no noise is added."""
    schedule, generator = td.linear(), torch.Generator().manual_seed(2)
    td.final(sampler(mixture.denoiser(schedule), normal(3, 2), td.uniform(schedule, 5), eta=eta, generator=generator))
    replay = torch.Generator().manual_seed(2)
    for _ in range(draws):
        torch.randn(3, 2, generator=replay, dtype=f64)
    assert torch.equal(generator.get_state(), replay.get_state())


def test_history_does_not_survive_a_run(mixture: td.GaussianMixture) -> None:
    schedule = td.linear()
    denoiser, x, times = mixture.denoiser(schedule), normal(4, 2), td.uniform(schedule, 6)
    first = td.dpm_solver_pp(denoiser, x, times, order=3)
    next(first), next(first)  # abandoned half way
    runs = [td.final(td.dpm_solver_pp(denoiser, x, times, order=3)) for _ in range(2)]
    assert torch.equal(*runs)


def test_sample_is_noise_through_the_sampler(mixture: td.GaussianMixture) -> None:
    schedule = td.linear()
    denoiser = mixture.denoiser(schedule)
    y = torch.tensor([0, 1, 2, 2])
    x = td.sample(denoiser, (4, 2), steps=9, sampler=td.ddpm, generator=torch.Generator().manual_seed(4), y=y)
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(4, 2, generator=generator)
    expected = td.final(td.ddpm(denoiser, noise, td.uniform_angle(schedule, 9), generator=generator, y=y))
    assert torch.equal(x, expected)


def test_sample_follows_the_networks_dtype_and_defaults_to_2m_even_in_the_angle() -> None:
    denoiser = td.VDenoiser(nn.Sequential(), td.linear())
    denoiser.net = _Scale().double()
    x = td.sample(denoiser, (3, 2), generator=torch.Generator().manual_seed(0))
    assert x.dtype == f64
    states = td.dpm_solver_pp(denoiser, normal(3, 2), td.uniform_angle(denoiser.schedule, 20), order=2)
    assert torch.equal(x, td.final(states))


@pytest.mark.parametrize(
    ("sampler", "steps", "made", "grid"),
    [
        (None, 20, td.dpm_solver_pp, td.uniform_angle),
        (td.ddpm, 20, td.ddpm, td.uniform_angle),
        (td.heun, 20, td.heun, partial(td.karras, sigma_max=80.0)),
        (partial(td.consistency), 2, td.consistency, td.root_angle),
        (partial(td.heun), 20, td.heun, partial(td.karras, sigma_max=80.0)),
        (td.consistency, 2, td.consistency, td.root_angle),
    ],
)
def test_what_is_not_said_suits_the_sampler(sampler, steps: int, made, grid, mixture: td.GaussianMixture) -> None:
    denoiser = mixture.denoiser(td.cosine())
    x, (noise, noisy) = td.sample(denoiser, (4, 2), sampler=sampler, generator=seeded(4)), (seeded(4), {})
    start = torch.randn(4, 2, generator=noise)
    if "generator" in inspect.signature(made).parameters:
        noisy = {"generator": noise}
    assert torch.equal(x, td.final(made(denoiser, start, grid(denoiser.schedule, steps), **noisy)))


def test_a_consistency_model_is_sampled_as_one_also_within_a_wrapper(mixture: td.GaussianMixture) -> None:
    model = td.X0Denoiser(_Scale(), td.cosine())
    model.info = {"teacher": "mnist"}
    for denoiser in (model, td.Clipped(model)):
        x = td.sample(denoiser, (4, 2), generator=seeded(1))
        assert torch.equal(x, td.sample(denoiser, (4, 2), steps=2, sampler=td.consistency, generator=seeded(1)))
        assert not torch.equal(x, td.sample(denoiser, (4, 2), sampler=td.dpm_solver_pp, generator=seeded(1)))


@pytest.mark.parametrize(
    ("sampler", "generator", "warns"),
    [
        (lambda d, x, t, **k: td.ddpm(d, x, t, **k), seeded(0), True),
        (lambda d, x, t, **k: iter(list(td.ddpm(d, x, t, **k))), seeded(0), True),
        (lambda d, x, t, **k: td.heun(d, x, t, **k), seeded(0), False),
        (lambda d, x, t, **k: td.ddpm(d, x, t, **k), None, False),
        (td.ddpm, torch.default_generator, False),
    ],
)
def test_a_sampler_that_leaves_the_generator_aside_is_told_of(sampler, generator, warns: bool, mixture) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        td.final(launch(sampler, mixture.denoiser(td.linear()), normal(2, 2), [9.0, 5.0, 0.0], generator, {}))
    assert ["the sampler takes none" in str(w.message) for w in told] == [True] * warns


@dataclass
class _Own:
    """A sampler that is an object, without a hash, as a user may write one."""

    eta: float = 0.0

    def __call__(self, denoiser, x, times, **cond) -> Iterator[td.State]:
        return td.ddim(denoiser, x, times, eta=self.eta, **cond)


def test_denoisers_and_samplers_need_no_more_than_their_contract(mixture: td.GaussianMixture) -> None:
    class Bare:
        schedule = td.linear()

        def __call__(self, x: Tensor, t: Tensor) -> Tensor:
            return mixture.denoiser(self.schedule)(x, t)

        def info(self) -> str:
            return "not a dict"

    assert td.sample(Bare(), (4, 2), steps=3, sampler=_Own()).shape == (4, 2)


def test_heun_starts_anywhere(mixture: td.GaussianMixture) -> None:
    denoiser = mixture.denoiser(td.cosine())
    assert torch.isfinite(td.sdedit(denoiser, normal(4, 2), 1.0, sampler=td.heun)).all()
    assert torch.isfinite(td.sample(mixture.denoiser(td.linear(1)), (4, 2), sampler=td.heun)).all()


def test_heun_is_sane_where_its_grid_is_not_said() -> None:
    """On `cosine` sigma/alpha is 2e4 at T: with steps even in the angle the first is far too long for a rule in it."""
    world, schedule, x = td.GaussianMixture(torch.tensor([[0.5, -0.3]], dtype=f64), 0.25), td.cosine(), normal(500, 2)
    exact = td.gaussian_flow(schedule, world.means[0], world.stds[0], x, schedule.T, 0)
    errors = [
        (td.final(td.heun(world.denoiser(schedule), x, grid(schedule, 10))) - exact).norm(dim=1).mean().item()
        for grid in (usual(world.denoiser(schedule), td.heun)[2], td.uniform_angle)
    ]
    assert errors[0] < 0.25 / 2  # half the world's standard deviation
    assert errors[1] > 5 * errors[0]


class _Cut:
    def __init__(self, denoiser) -> None:
        self.denoiser, self.schedule = denoiser, denoiser.schedule

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.denoiser(x, t)[:, :1]


class _Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.weight * x


def test_samples_of_the_mixture_are_the_mixture(mixture: td.GaussianMixture) -> None:
    """25 steps of 2M with the exact denoiser: energy distance to real samples near the floor of two real sets."""
    from tinydiff.metrics import energy_distance

    schedule, generator = td.linear(), torch.Generator().manual_seed(0)
    real, other = mixture.sample(3000, generator), mixture.sample(3000, generator)
    ours = td.final(td.dpm_solver_pp(mixture.denoiser(schedule), normal(3000, 2, seed=9), td.uniform(schedule, 25)))
    assert energy_distance(ours, real) < 0.004 + energy_distance(other, real)
    assert energy_distance(0.9 * ours, real) > 0.004 + energy_distance(other, real)  # the bound sees 10 % shrinkage


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d, x: td.ddim(d, x, torch.tensor([5.0, 5.0, 0.0])), "strictly decreasing"),
        (lambda d, x: td.ddim(d, x, torch.tensor([0.0, 500.0])), "strictly decreasing"),
        (lambda d, x: td.ddim(d, x, torch.tensor([1000.0, 500.0, -1.0])), r"within \[0, T = 1000\]"),
        (lambda d, x: td.ddim(d, x, torch.tensor([1001.0, 0.0])), r"within \[0, T = 1000\]"),
        (lambda d, x: td.ddim(d, x, torch.tensor([1000.0])), "at least two times"),
        (lambda d, x: td.ddim(d, x, torch.tensor([1000.0, 0.0]), eta=1.5), "eta = 1.5 must lie between 0"),
        (lambda d, x: td.dpm_solver_pp(d, x, torch.tensor([1000.0, 0.0]), order=4), "order = 4 must be 1, 2 or 3"),
        (lambda d, x: td.dpm_solver(d, x, torch.tensor([1000.0, 0.0]), order=0), "order = 0 must be 1, 2 or 3"),
        (lambda d, x: iter(()), "yielded no state"),
        (lambda d, x: [td.State(0, td.step(d.schedule, x, x, 0, 10), x)], "t = 0.0 must be greater than 0"),
        (lambda d, x: td.ddim(_Cut(d), x, torch.tensor([9.0, 0.0])), r"returned \(2, 1\) for x of shape \(2, 2\)"),
    ],
)
def test_bad_input_names_value_and_rule(call, message: str, mixture: td.GaussianMixture) -> None:
    with pytest.raises(ValueError, match=message):
        td.final(call(mixture.denoiser(td.linear()), normal(2, 2)))
