"""Each exercise solved once more, as a learner would: what is right must pass, whatever it looks like inside."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from tinydiff.check import EXERCISES


def lined_up(a, x):
    return a.reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype)


def q_sample(alpha_bar, x0, t, noise):
    a = lined_up(alpha_bar[t], x0)
    return a.sqrt() * x0 + (1 - a).sqrt() * noise


def jump(alpha_bar, x_s, s, t, generator):
    a = lined_up(alpha_bar[t], x_s) / lined_up(alpha_bar[s], x_s)
    return a.sqrt() * x_s + (1 - a).sqrt() * torch.randn(x_s.shape, generator=generator, dtype=x_s.dtype)


def posterior(alpha_bar, x0, x_t, t, s):
    at, as_ = lined_up(alpha_bar[t], x_t), lined_up(alpha_bar[s], x_t)
    beta = 1 - at / as_
    return (beta * as_.sqrt() * x0 + (1 - beta).sqrt() * (1 - as_) * x_t) / (1 - at), beta * (1 - as_) / (1 - at)


def ancestral_step(schedule, x, x0_hat, t, s, noise):
    (a, st), (c, ss) = schedule(t, like=x), schedule(s, like=x)
    beta = 1 - (a / c) ** 2
    return beta * c / st**2 * x0_hat + a / c * ss**2 / st**2 * x + (beta * ss**2 / st**2).sqrt() * noise


def ddim_step(schedule, x, x0_hat, t, s, eta, noise):
    (a, st), (c_, ss) = schedule(t, like=x), schedule(s, like=x)
    c = eta * ss / st * (1 - (a / c_) ** 2).sqrt()
    eps = (x - a * x0_hat) / st
    return c_ * x0_hat + (ss**2 - c**2).sqrt() * eps + c * noise


def score(schedule, x, x0_hat, t):
    a, s = schedule(t, like=x)
    return (a * x0_hat - x) / s**2


def x0_from_flow(flow, schedule, x, t):
    a, s = schedule(t, like=x)
    z, tau = x / (a + s), s / (a + s)
    return z - tau * flow(z, tau)


def edm_denoiser(denoiser, schedule, x, sigma):
    s = lined_up(sigma, x)
    return denoiser(x / (1 + s**2).sqrt(), schedule.time(-sigma.log()))


def update_2m(schedule, x, x0, x0_prev, t_prev, t, s):
    if s == 0:
        return x0
    (_, st), (as_, ss) = schedule(t, like=x), schedule(s, like=x)
    lam = schedule.half_log_snr
    h = lam(s) - lam(t)
    r0 = (lam(t) - lam(t_prev)) / h
    return ss / st * x - as_ * torch.expm1(-h).to(x) * (x0 + (x0 - x0_prev) / (2 * r0.to(x)))


def training_pair_loss(f, schedule, x0, t, s, eps):
    (a, st), (c, ss) = schedule(t, like=x0), schedule(s, like=x0)
    return ((f(a * x0 + st * eps, t) - f(c * x0 + ss * eps, s).detach()) ** 2).flatten(1).sum(1).mean()


def v_loss(net, schedule, x0, t, eps):
    a, s = schedule(t, like=x0)
    return ((net(a * x0 + s * eps, t) - (a * eps - s * x0)) ** 2).mean()


def keep_known(schedule, x, known, mask, s, noise):
    a, sg = schedule(s, like=x)
    return torch.where(mask, a * known + sg * noise, x)


def agree(x, c, f):
    return x + F.interpolate(c - F.avg_pool2d(x, f), scale_factor=f, mode="nearest")


def batched(denoiser, scale, x, t, y):
    t2 = torch.cat([t, t]) if t.ndim else t
    c, u = denoiser(torch.cat([x, x]), t2, y=torch.cat([y, -torch.ones_like(y)])).chunk(2)
    return u + scale * (c - u)


def multistep(f, schedule, x, times, generator):
    for t, s in itertools.pairwise(times):
        x0 = f(x, t)
        if s > 0:
            a, sg = schedule(s, like=x)
            x = a * x0 + sg * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return x0


def modulate(h, s, c):
    return h * (1 + s[:, :, None, None]) + c[:, :, None, None]


def dynamic_threshold(x, q):
    m = torch.quantile(x.flatten(1).abs(), q, dim=1).clamp(min=1.0).view(-1, *[1] * (x.ndim - 1))
    return torch.maximum(torch.minimum(x, m), -m) / m


def left_uncertain(C, A, s):
    return C - C @ A.mT @ torch.linalg.solve(A @ C @ A.mT + s**2 * torch.eye(len(A), dtype=A.dtype), A @ C)


def corrected(seen, C):
    return torch.linalg.inv(C.T) @ seen


def kl_between(m1, l1, m2, l2):
    return kl_divergence(Normal(m1, (l1 / 2).exp()), Normal(m2, (l2 / 2).exp())).flatten(1).sum(1)


def paired(a, b_):
    d = np.array(a) - np.array(b_)
    return d.mean(), d.std(ddof=1) / len(d) ** 0.5


def variance_after(schedule, V, t, s, eta):
    (a, st), (c_, ss) = schedule(t), schedule(s)
    c = eta * ss / st * (1 - (a / c_) ** 2).sqrt()
    k = (ss**2 - c**2).sqrt() / st
    w = c_ - k * a
    return (k + w * a) ** 2 * V + c**2


def weight_of(k, N, decay):
    x = 1 - min(decay, (1 + k) / (10 + k))
    for n in range(k + 1, N):
        x *= min(decay, (1 + n) / (10 + n))
    return x


def between(w, beta, bt):
    return beta**w * bt ** (1 - w)


def paired_in_torch(a, b):
    d = torch.tensor(a) - torch.tensor(b)
    return d.mean().item(), (d.std() / len(d) ** 0.5).item()


def weight_in_torch(k, N, decay):
    n = torch.arange(k + 1, N)
    return (1 - min(decay, (1 + k) / (10 + k))) * ((1 + n) / (10 + n)).clamp(max=decay).prod().item()


SOLUTIONS = {name: value for name, value in globals().items() if name in EXERCISES}


def test_every_exercise_is_solved_here():
    assert set(SOLUTIONS) == set(EXERCISES)


@pytest.mark.parametrize("name", EXERCISES)
def test_a_right_answer_passes_on_any_inputs(name):
    """In particular on bfloat16, whose three digits are lost by another order of operations."""
    for seed in range(20):
        verdict = EXERCISES[name].verdict(SOLUTIONS[name], seed)
        assert verdict, f"seed {seed}: {verdict.text()}"


@pytest.mark.parametrize(
    "shaped",
    [
        lambda var, x: var.expand_as(x),
        lambda var, x: var * torch.ones_like(x),
        lambda var, x: var.reshape(var.shape or (1,)),
        lambda var, x: var.reshape(-1, *[1] * (x.ndim - 1)),
    ],
)
def test_a_variance_may_have_any_shape_that_multiplies_the_data(shaped):
    def mine(alpha_bar, x0, x_t, t, s):
        mean, var = posterior(alpha_bar, x0, x_t, t, s)
        return mean, shaped(var, x_t)

    assert EXERCISES["posterior"].verdict(mine), EXERCISES["posterior"].verdict(mine).text()


def test_a_variance_for_each_sample_that_does_not_line_up_with_the_data_is_refused():
    def mine(alpha_bar, x0, x_t, t, s):
        mean, var = posterior(alpha_bar, x0, x_t, t, s)
        return mean, var.flatten() if t.ndim else var

    verdict = EXERCISES["posterior"].verdict(mine)
    assert not verdict.properties["a time of its own for each sample"]
    assert not verdict.properties["a batch as large as the pictures are wide"]
    assert verdict.properties["values"]


@pytest.mark.parametrize(("name", "short"), [("paired", paired_in_torch), ("weight_of", weight_in_torch)])
def test_python_numbers_may_pass_through_float32(name, short):
    """Where the arguments are lists and floats, torch.tensor(a) makes float32, and nothing in the task forbids it."""
    for seed in range(20):
        verdict = EXERCISES[name].verdict(short, seed)
        assert verdict, f"seed {seed}: {verdict.text()}"
