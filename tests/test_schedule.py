"""The schedule against the papers' products, evaluated independently in plain Python or numpy."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from conftest import normal
from hypothesis import given
from hypothesis import strategies as st

import tinydiff as td

f64 = torch.float64


def test_linear_is_ddpm_table() -> None:
    """alpha_bar_t = prod (1 - beta_s), with index n of DDPM's 0-based table at t = n + 1."""
    betas = np.linspace(1e-4, 0.02, 1000)
    products = [math.prod(1 - b for b in betas[:n]) for n in (1, 2, 500, 1000)]
    schedule = td.linear()
    assert schedule.T == 1000
    assert schedule.alpha_bar[0] == 1
    assert schedule.alpha_bar[[1, 2, 500, 1000]].numpy() == pytest.approx(products, rel=1e-12)
    assert schedule.betas.numpy() == pytest.approx(betas, rel=1e-12)
    assert schedule.alpha_bar[-1].item() == pytest.approx(4.0358e-5, rel=1e-4)  # published to these digits


@pytest.mark.parametrize("T", [25, 100, 400, 4000])
def test_linear_ends_in_noise_for_every_T(T: int) -> None:
    """log alpha_bar_T = -sum beta + O(sum beta^2): the same sum of betas whatever T, so about the same end."""
    assert td.linear(T).betas.sum().item() == pytest.approx(10.05, rel=1e-12)
    assert td.linear(T).alpha_bar[-1] < 4.5e-5


@pytest.mark.parametrize("T", [1, 2, 20])
def test_schedules_of_few_steps_are_capped_and_end_in_noise(T: int) -> None:
    for make in (td.linear, td.cosine, td.sigmoid):
        assert make(T).betas.max().item() <= 0.999 + 1e-12
        assert make(T).alpha_bar[-1] <= 0.0011


def test_cosine_formula() -> None:
    f = lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
    schedule = td.cosine(1000)
    for t in (1, 17, 500, 998):  # beta_1000 is the one that is capped
        assert schedule.alpha_bar[t].item() == pytest.approx(f(t / 1000) / f(0), rel=1e-10)
    assert schedule.betas[-1].item() == pytest.approx(0.999, rel=1e-12)


def test_sigmoid_formula() -> None:
    s = lambda z: 1 / (1 + math.exp(-z))  # noqa: E731
    schedule = td.sigmoid(1000)
    for t in (1, 17, 500, 990):
        expected = (s(3) - s(6 * t / 1000 - 3)) / (s(3) - s(-3))
        assert schedule.alpha_bar[t].item() == pytest.approx(expected, rel=1e-10)
    assert schedule.betas[-1].item() == pytest.approx(0.999, rel=1e-12)


def test_variance_preserving_and_clean_at_zero(schedule: td.Schedule) -> None:
    t = torch.linspace(0, schedule.T, 77, dtype=f64)
    alpha, sigma = schedule(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t), rtol=0, atol=1e-15)
    assert (alpha[0], sigma[0]) == (1, 0)
    assert math.copysign(1, sigma[0].item()) == 1, "sigma_0 must be +0, or its logarithm's limit turns into nan"
    whole = torch.arange(schedule.T + 1)
    torch.testing.assert_close(schedule(whole)[0] ** 2, schedule.alpha_bar, rtol=1e-14, atol=0)


def test_log_alpha_bar_is_linear_between_entries(schedule: td.Schedule) -> None:
    table = schedule.log_alpha_bar
    for left, fraction in ((0, 0.3), (3, 0.5), (schedule.T - 1, 0.9)):
        alpha, _ = schedule(torch.tensor(left + fraction, dtype=f64))
        expected = (1 - fraction) * table[left] + fraction * table[left + 1]
        assert 2 * alpha.log().item() == pytest.approx(expected.item(), rel=1e-9)


def test_half_log_snr_is_log_alpha_over_sigma(schedule: td.Schedule) -> None:
    t = torch.linspace(0.01, schedule.T, 50, dtype=f64)
    alpha, sigma = schedule(t)
    torch.testing.assert_close(schedule.half_log_snr(t), (alpha / sigma).log(), rtol=1e-11, atol=1e-11)
    assert schedule.half_log_snr(0) == math.inf


@given(st.sampled_from(["linear", "cosine", "sigmoid"]), st.floats(1e-6, 1))
def test_time_inverts_half_log_snr(name: str, fraction: float) -> None:
    schedule = getattr(td, name)(200)
    t = 200 * fraction
    assert schedule.time(schedule.half_log_snr(t)).item() == pytest.approx(t, rel=1e-9)


def test_time_at_the_ends(schedule: td.Schedule) -> None:
    ends = torch.tensor([math.inf, -1e3, -math.inf])
    assert schedule.time(ends).tolist() == [0, schedule.T, schedule.T]


def test_coefficients_match_the_sample(schedule: td.Schedule) -> None:
    """(B,) becomes (B, 1, 1, 1), also where B differs from the width; the dtype is the sample's."""
    x = normal(3, 1, 5, 4, dtype=torch.float32)
    alpha, sigma = schedule(torch.tensor([0, 1, schedule.T]), like=x)
    assert alpha.shape == sigma.shape == (3, 1, 1, 1)
    assert alpha.dtype == torch.float32
    assert schedule(1, like=x)[0].shape == ()
    torch.testing.assert_close(
        alpha[:, 0, 0, 0].double() ** 2, schedule.alpha_bar[[0, 1, schedule.T]], rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize(
    "grid", [td.uniform, td.quadratic, td.uniform_angle, td.root_angle, td.uniform_log_snr, td.karras]
)
def test_grids_run_from_T_to_zero(grid, steps: int, schedule: td.Schedule) -> None:
    times = grid(schedule, steps)
    assert times.shape == (steps + 1,)
    assert times.dtype == f64
    assert times[0] == schedule.T
    assert times[-1] == 0
    assert (times.diff() < 0).all()


def test_grids_are_even_in_their_own_measure() -> None:
    schedule = td.linear()
    even = {
        td.uniform: lambda t: t,
        td.quadratic: lambda t: t.sqrt(),
        td.uniform_angle: lambda t: torch.atan2(*schedule(t)[::-1]),
        td.root_angle: lambda t: torch.atan2(*schedule(t)[::-1]) ** 2,
        partial(td.root_angle, power=1 / 3): lambda t: torch.atan2(*schedule(t)[::-1]) ** 3,
        lambda s, n: td.uniform_log_snr(s, n)[:-1]: schedule.half_log_snr,
        lambda s, n: td.karras(s, n)[:-1]: lambda t: (-schedule.half_log_snr(t) / 7).exp(),
        lambda s, n: td.karras(s, n, sigma_max=80)[:-1]: lambda t: (-schedule.half_log_snr(t) / 7).exp(),
    }
    for grid, measure in even.items():
        gaps = measure(grid(schedule, 9)).diff()
        torch.testing.assert_close(gaps, gaps[:1].expand_as(gaps), rtol=1e-8, atol=0)
    for grid in (td.uniform_log_snr, td.karras):
        assert grid(schedule, 9)[-2].item() == pytest.approx(1, rel=1e-9)


def test_karras_starts_from_sigma_max_where_the_schedule_goes_beyond() -> None:
    schedule = td.cosine()
    times = td.karras(schedule, 9, sigma_max=80)
    assert (-schedule.half_log_snr(times[0])).exp().item() == pytest.approx(80, rel=1e-9)
    assert (times.diff() < 0).all()
    assert times[-1] == 0
    assert torch.equal(td.karras(schedule, 9, sigma_max=1e9), td.karras(schedule, 9))


def test_alpha_and_sigma_are_cosine_and_sine_of_the_angle(schedule: td.Schedule) -> None:
    t = torch.tensor([0, 0.3, 1, schedule.T / 3, schedule.T], dtype=f64)
    alpha, sigma = schedule(t)
    phi = schedule.angle(t)
    torch.testing.assert_close(phi.cos(), alpha, rtol=0, atol=1e-14)
    torch.testing.assert_close(phi.sin(), sigma, rtol=0, atol=1e-14)
    torch.testing.assert_close(schedule.time_at_angle(phi[1:]), t[1:], rtol=1e-9, atol=0)
    assert schedule.time_at_angle(math.pi / 2) == schedule.time_at_angle(1.6) == schedule.T


def test_even_angles_are_the_same_noise_levels_on_every_schedule() -> None:
    (alpha, sigma), *others = (s(td.uniform_angle(s, 12)[1:]) for s in (td.cosine(), td.cosine(4000)))
    for a, s in others:
        torch.testing.assert_close(a, alpha, rtol=0, atol=2e-4)  # both begin within 1e-4 of a right angle
        torch.testing.assert_close(s, sigma, rtol=0, atol=2e-4)
    linear = td.linear()(td.uniform_angle(td.linear(), 12)[1:])[1]
    torch.testing.assert_close(linear, sigma, rtol=0, atol=0.01)
    assert (td.uniform_angle(td.cosine(), 12) - td.uniform(td.cosine(), 12)).abs().max() < 10


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: td.linear(0), "T = 0 must be a whole number of at least 1"),
        (lambda: td.uniform(td.linear(), 2.5), "steps = 2.5 must be a whole number"),
        (
            lambda: td.karras(td.linear(), 5, sigma_max=0),
            "sigma_max = 0 must be above 0.01, this schedule's sigma/alpha",
        ),
        (lambda: td.karras(td.linear(), 5, rho=0), "rho = 0 must be greater than 0"),
        (lambda: td.root_angle(td.linear(), 5, power=-1), "power = -1 must be greater than 0"),
        (lambda: td.karras(td.linear(1), 5), "take steps = 1 for 5, or another grid"),
        (lambda: td.uniform_log_snr(td.linear(1), 2), "take steps = 1 for 2, or another grid"),
        (lambda: td.linear()(1001), "t = 1001 is not a time of this schedule"),
        (lambda: td.linear()(torch.tensor([5.0, -0.5])), "t = -0.5 is not a time"),
        (lambda: td.linear()(math.nan), "t = nan is not a time"),
        (lambda: td.from_betas([0.1, 1.0]), "strictly between 0 and 1"),
        (lambda: td.Schedule(torch.tensor([-0.1, -0.2])), "Prepend a zero"),
        (lambda: td.Schedule(torch.tensor([0.0, -0.2, -0.2])), "strictly decreasing"),
        (lambda: td.Schedule(torch.tensor([0.0, -math.inf])), "finite"),
        (lambda: td.Schedule(torch.zeros(1)), r"shape \(1,\)"),
    ],
)
def test_bad_input_names_value_and_rule(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
