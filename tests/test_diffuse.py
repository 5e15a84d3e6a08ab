"""The forward process against its own definition as a chain, Bayes' rule and exact likelihoods."""

import math

import mpmath
import pytest
import torch
from conftest import normal
from torch import nn

import tinydiff as td


def test_q_sample_is_the_chain_in_one_line() -> None:
    """The chain x_s = sqrt(1 - beta_s) x_{s-1} + sqrt(beta_s) eps_s is linear in x0 and the eps: compare the factor of
    x0 and the total variance of the noise with those of the one line."""
    schedule = td.linear(100)
    factor, variance = 1.0, 0.0
    for t, beta in enumerate(schedule.betas.tolist(), start=1):
        factor, variance = factor * math.sqrt(1 - beta), variance * (1 - beta) + beta
        one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
        assert td.q_sample(schedule, one, t, noise=zero).item() == pytest.approx(factor, rel=1e-12)
        assert td.q_sample(schedule, zero, t, noise=one).item() ** 2 == pytest.approx(variance, rel=1e-12)


def test_q_sample_draws_standard_normal_noise_from_the_generator_only() -> None:
    schedule, x0 = td.linear(), normal(3, 1, 5, 4)
    state = torch.get_rng_state()
    a, b = (
        td.q_sample(schedule, x0, torch.tensor([0, 500, 1000]), generator=torch.Generator().manual_seed(1))
        for _ in "ab"
    )
    assert torch.equal(a, b)
    assert torch.equal(a[0], x0[0])
    alpha, sigma = schedule(torch.tensor([0, 500, 1000]), like=x0)
    torch.testing.assert_close(a, alpha * x0 + sigma * normal(3, 1, 5, 4, seed=1))
    assert torch.equal(state, torch.get_rng_state())


def test_q_sample_refuses_noise_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"noise has shape \(1, 2\), but x0 has \(3, 2\)"):
        td.q_sample(td.linear(), normal(3, 2), 5, noise=normal(1, 2))


@pytest.mark.parametrize("t_s", [(1.0, 0.0), (2.0, 1.0), (1000.0, 999.0), (700.0, 300.0), (1000.0, 0.5)])
def test_q_posterior_is_bayes_rule(t_s: tuple[float, float], schedule: td.Schedule) -> None:
    """q(x_s | x_t, x0) ~ q(x_t | x_s) q(x_s | x0): precisions and precision-weighted means add up."""
    t, s = (u * schedule.T / 1000 for u in t_s)
    x0, x_t = normal(4, 3, seed=1), normal(4, 3, seed=2)
    mean, var = td.q_posterior(schedule, x0, x_t, t, s)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    if s == 0:
        assert var == 0
        torch.testing.assert_close(mean, x0, rtol=1e-10, atol=1e-10)
        return
    a = alpha_t / alpha_s  # x_t = a x_s + sqrt(beta) eps
    beta = sigma_t**2 - a**2 * sigma_s**2
    precision = a**2 / beta + 1 / sigma_s**2
    torch.testing.assert_close(var, 1 / precision, rtol=1e-9, atol=0)
    torch.testing.assert_close(mean, (a * x_t / beta + alpha_s * x0 / sigma_s**2) / precision, rtol=1e-9, atol=1e-12)


def test_q_posterior_takes_a_time_per_sample() -> None:
    x0, x_t = normal(3, 2, 4, 3, seed=1), normal(3, 2, 4, 3, seed=2)
    t, s = torch.tensor([10, 500, 1000]), torch.tensor([0, 400, 999])
    mean, var = td.q_posterior(td.linear(), x0, x_t, t, s)
    assert var.shape == (3, 1, 1, 1)
    for i in range(3):
        mean_i, var_i = td.q_posterior(td.linear(), x0[i : i + 1], x_t[i : i + 1], t[i], s[i])
        torch.testing.assert_close(mean[i : i + 1], mean_i)
        torch.testing.assert_close(var[i].squeeze(), var_i)


class _Recorder(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor, **cond: torch.Tensor) -> torch.Tensor:
        self.x, self.t, self.cond = x, t, cond
        return torch.zeros_like(x)


def test_ddpm_loss_draws_t_from_1_to_T_and_fresh_noise() -> None:
    net = _Recorder()
    denoiser = td.EpsDenoiser(net, td.linear(4))
    x0 = torch.zeros(8000, 2, dtype=torch.float64)
    y = torch.arange(8000)
    loss = td.ddpm_loss(denoiser, x0, generator=torch.Generator().manual_seed(0), y=y)
    counts = torch.bincount(net.t.long(), minlength=5).tolist()
    assert counts[0] == 0
    assert min(counts[1:]) > 2000 - 5 * math.sqrt(1500)  # 5 standard deviations of a binomial(8000, 1/4)
    assert loss.item() == pytest.approx(1, abs=5 * math.sqrt(2 / 16000))  # the net says 0, so the loss is E eps^2
    sigma = denoiser.schedule(net.t)[1]
    noise = net.x / sigma[:, None]
    for t in (1, 2, 3, 4):  # x0 = 0: what the net sees is sigma_t eps
        assert noise[net.t == t].std().item() == pytest.approx(1, abs=5 / math.sqrt(2 * 3500))
    assert torch.equal(net.cond["y"], y)
    assert loss.item() == td.ddpm_loss(denoiser, x0, generator=torch.Generator().manual_seed(0)).item()


def test_bound_of_gaussian_data_has_its_exact_expectation() -> None:
    """x0 ~ N(0, v I_2) has E|x0 - x0_hat|^2 = 2 v sigma^2 / (alpha^2 v + sigma^2): each term has a closed form."""
    v, schedule, generator = 0.04, td.linear(300), torch.Generator().manual_seed(0)
    world = td.GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), math.sqrt(v))
    t = torch.arange(1, 301)
    (alpha, sigma), snr = schedule(t), (2 * schedule.half_log_snr(t)).exp()
    mmse = 2 * v * sigma**2 / (alpha**2 * v + sigma**2)
    kl_T = sigma[-1] ** 2 + alpha[-1] ** 2 * v - 1 - 2 * sigma[-1].log()
    L_0 = mmse[0] * snr[0] / 2 + (2 * math.pi / snr[0]).log()
    expected = kl_T + ((snr[:-1] - snr[1:]) / 2 * mmse[1:]).sum() + L_0

    x0 = world.sample(4000, generator)
    bound = td.variational_bound(world.denoiser(schedule), x0, generator=generator)
    assert bound.shape == (4000,)
    error = bound.std().item() / math.sqrt(4000)
    assert error < 0.05
    assert bound.mean().item() == pytest.approx(expected.item(), abs=4 * error)


def test_bound_lies_above_the_exact_likelihood(mixture: td.GaussianMixture) -> None:
    """The slack of the exact denoiser is at most sum_t (r - 1 - log r) d/2, r = SNR_{t-1}/SNR_t: r is about 2 at the
    first step however large T is, so some slack stays (0.9 nats here in two dimensions)."""
    schedule, generator = td.linear(300), torch.Generator().manual_seed(0)
    snr = (2 * schedule.half_log_snr(torch.arange(1, 301))).exp()
    ratio = snr[:-1] / snr[1:]
    x0 = mixture.sample(1000, generator)
    gap = td.variational_bound(mixture.denoiser(schedule), x0, generator=generator) + mixture.log_prob(x0)
    error = gap.std().item() / math.sqrt(1000)
    assert 0 < gap.mean().item() < (ratio - 1 - ratio.log()).sum().item() + 4 * error


def test_bound_sees_a_worse_denoiser(mixture: td.GaussianMixture) -> None:
    schedule = td.linear(100)
    exact = mixture.denoiser(schedule)

    class Shrunk:
        def __init__(self) -> None:
            self.schedule = schedule

        def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return 0.9 * exact(x, t)

    x0 = mixture.sample(500, torch.Generator().manual_seed(0))
    good, bad = (
        td.variational_bound(d, x0, generator=torch.Generator().manual_seed(1)).mean() for d in (exact, Shrunk())
    )
    assert bad > good + 1


def test_bound_terms_against_a_sum_by_hand() -> None:
    """One value, T = 2, a denoiser that always says 0.1: each term written out from its definition."""
    schedule = td.from_betas([0.3, 0.6])
    ab = schedule.alpha_bar.tolist()

    class Constant:
        def __init__(self) -> None:
            self.schedule = schedule

        def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return torch.full_like(x, 0.1)

    x0 = torch.tensor([[0.5]], dtype=torch.float64)
    kl_T = (1 - ab[2] + ab[2] * 0.25 - 1 - math.log(1 - ab[2])) / 2
    L_2 = (ab[1] / (1 - ab[1]) - ab[2] / (1 - ab[2])) * 0.4**2 / 2
    var = (1 - ab[1]) / ab[1]
    density = 0.4**2 / (2 * var) + math.log(2 * math.pi * var) / 2
    assert td.variational_bound(Constant(), x0).item() == pytest.approx(kl_T + L_2 + density, rel=1e-12)

    cdf = lambda z: (1 + math.erf(z / math.sqrt(2 * var))) / 2  # noqa: E731
    for value, low, high in ((0.5, 0.25, 0.75), (1.0, 0.75, math.inf), (-1.0, -math.inf, -0.75)):
        mass = cdf(high - 0.1) - cdf(low - 0.1)
        kl = (1 - ab[2] + ab[2] * value**2 - 1 - math.log(1 - ab[2])) / 2
        L_2 = (ab[1] / (1 - ab[1]) - ab[2] / (1 - ab[2])) * (value - 0.1) ** 2 / 2
        bound = td.variational_bound(Constant(), torch.full((1, 1), value, dtype=torch.float64), bin_width=0.5)
        assert bound.item() == pytest.approx(kl + L_2 - math.log(mass), rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("error", [0.0, 0.05, -0.1, 0.4, -0.4])
def test_a_bins_mass_is_right_however_far_off_it_is(error: float, dtype: torch.dtype) -> None:
    """Against 1,200 digits: with cosine's 1/SNR_1 an error of 0.4 is 63 standard deviations, a mass of e^-1950."""
    schedule, x0, width = td.cosine(), 0.1, 2 / 255
    std = mpmath.mpf((-schedule.half_log_snr(1)).exp().item())
    with mpmath.workdps(1200):
        low, high = ((abs(error) + side * width / 2) / std for side in (-1, 1))
        expected = -mpmath.log(mpmath.erfc(low / mpmath.sqrt(2)) / 2 - mpmath.erfc(high / mpmath.sqrt(2)) / 2)

    class Off:
        def __init__(self) -> None:
            self.schedule = schedule

        def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return torch.full_like(x, x0 - error if t == 1 else x0)

    data = torch.full((1, 1), x0, dtype=dtype)
    bound, rest = (td.variational_bound(denoiser, data, bin_width=width) for denoiser in (Off(), Sure(schedule, x0)))
    last = -math.log(math.erf(width / 2 / float(std) / math.sqrt(2)))  # Sure's last term
    assert (bound - rest).item() + last == pytest.approx(float(expected), rel=1e-4 if dtype == torch.float32 else 1e-9)


def test_the_bound_takes_half_precision() -> None:
    x0 = torch.full((2, 3), 0.5, dtype=torch.bfloat16)
    bound = td.variational_bound(Sure(td.cosine(20), 0.5), x0, bin_width=2 / 255)
    assert bound.dtype == torch.bfloat16
    assert torch.isfinite(bound).all()


class Sure:
    def __init__(self, schedule: td.Schedule, x0: float) -> None:
        self.schedule, self.x0 = schedule, x0

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x, self.x0)


def test_the_bound_is_taken_in_eval_mode() -> None:
    torch.manual_seed(0)
    denoiser, x0 = td.VDenoiser(td.MLP(hidden=8, layers=1, classes=3, label_dropout=0.5), td.linear(20)), normal(4, 2)
    bounds = []
    for training in (True, False):
        denoiser.double().train(training)
        generator, y = torch.Generator().manual_seed(0), torch.tensor([0, 1, 2, 0])
        bounds.append(td.variational_bound(denoiser, x0, generator=generator, y=y))
        assert denoiser.training is denoiser.net.training is training
    assert torch.equal(*bounds)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: td.q_posterior(s, normal(2, 2), normal(2, 2), 500, 600), "s = 600.0 must lie below t = 500.0"),
        (lambda s: td.variational_bound(Sure(s, 0), normal(2, 2), bin_width=0.0), "bin_width = 0.0 must be greater"),
        (lambda s: td.q_sample(s, torch.ones(2, 3).byte(), 500), "x holds torch.uint8, but must be floating point"),
        (lambda s: td.q_sample(s, torch.ones(2, 3).long(), 500, noise=normal(2, 3)), "x holds torch.int64"),
        (lambda s: td.ddpm_loss(td.VDenoiser(td.MLP(), s), torch.ones(2, 2).long()), "x holds torch.int64"),
        (lambda s: td.ddpm_loss(td.VDenoiser(Narrow(), s), normal(5, 2)), r"returned \(5, 1\) for x of shape \(5, 2\)"),
    ],
)
def test_bad_input_names_value_and_rule(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(td.linear())


class Narrow(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x[:, :1]


def test_bits_per_dim() -> None:
    assert td.bits_per_dim(torch.tensor([6 * math.log(2)]), torch.zeros(1, 1, 2, 3)).item() == pytest.approx(1)


def test_stratified_times_are_uniform_and_cover_all_levels() -> None:
    """Each time is U{1..T}, and of n times every stretch of T/n holds one."""
    schedule, generator = td.linear(40), torch.Generator().manual_seed(0)
    draws = torch.stack([td.stratified_times(schedule, 10, generator) for _ in range(4000)])
    assert torch.equal(draws.sort(1).values.sub(1) // 4, torch.arange(10).expand(4000, 10))
    counts = torch.bincount(draws[:, 3], minlength=41)
    assert counts[0] == 0
    assert (counts[1:] - 100).abs().max() < 5 * math.sqrt(100)
