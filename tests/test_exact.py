"""The exact worlds against independent calculus: autograd, numerical integration, Monte Carlo."""

import math

import pytest
import torch
from conftest import normal
from torch import Tensor

import tinydiff as td

f64 = torch.float64


def test_log_prob_integrates_to_one(mixture: td.GaussianMixture) -> None:
    axis = torch.linspace(-5, 5, 801, dtype=f64)
    points = torch.cartesian_prod(axis, axis)
    cell = (axis[1] - axis[0]).item() ** 2
    for t in (0, 300, 1000):
        mass = mixture.log_prob(points, td.linear(), t).exp().sum().item() * cell
        assert mass == pytest.approx(1, abs=1e-5)


def test_log_prob_of_one_gaussian_is_the_textbook_density() -> None:
    world = td.GaussianMixture(torch.tensor([[0.5, -1.0]], dtype=f64), 0.3)
    x, schedule = normal(20, 2), td.linear()
    for t in (0, 500):
        alpha, sigma = schedule(t)
        std = math.sqrt(alpha**2 * 0.09 + sigma**2)
        expected = torch.distributions.Normal(alpha * world.means[0], std).log_prob(x).sum(1)
        torch.testing.assert_close(world.log_prob(x, schedule, t), expected)


@pytest.mark.parametrize("t", [1, 100, 500, 1000])
def test_denoiser_is_tweedie(t: int, mixture: td.GaussianMixture) -> None:
    """x0_hat = (x + sigma^2 grad log p_t(x)) / alpha, the gradient by autograd."""
    schedule = td.linear()
    x = (2 * normal(50, 2)).requires_grad_()
    (score,) = torch.autograd.grad(mixture.log_prob(x, schedule, t).sum(), x)
    alpha, sigma = schedule(t)
    torch.testing.assert_close(mixture.denoiser(schedule)(x, t), (x + sigma**2 * score) / alpha, rtol=1e-8, atol=1e-8)


def test_conditional_denoiser_is_that_of_the_component(mixture: td.GaussianMixture) -> None:
    schedule, x = td.linear(), normal(4, 2)
    y = torch.tensor([2, 0, -1, 1])
    t = torch.tensor([100, 300, 500, 900])
    together = mixture.denoiser(schedule)(x, t, y=y)
    for i, k in enumerate(y.tolist()):
        world = mixture if k < 0 else td.GaussianMixture(mixture.means[k : k + 1], mixture.stds[k])
        torch.testing.assert_close(together[i : i + 1], world.denoiser(schedule)(x[i : i + 1], t[i]))


def test_classifier_is_bayes_rule(mixture: td.GaussianMixture) -> None:
    schedule, x, t = td.linear(), normal(30, 2), 250
    classify = mixture.classifier(schedule)
    joint = [
        math.log(w) + td.GaussianMixture(mixture.means[k : k + 1], mixture.stds[k]).log_prob(x, schedule, t)
        for k, w in enumerate([0.5, 0.3, 0.2])
    ]
    evidence = torch.stack(joint).logsumexp(0)
    for k in range(3):
        torch.testing.assert_close(classify(x, t, torch.full((30,), k)), joint[k] - evidence)


def test_sampling_has_the_right_moments_and_labels(mixture: td.GaussianMixture) -> None:
    n = 50_000
    x = mixture.sample(n, torch.Generator().manual_seed(0))
    assert x.dtype == f64
    mean = (mixture.weights[:, None] * mixture.means).sum(0)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=5 * 0.6 / math.sqrt(n))
    only = mixture.sample(n, torch.Generator().manual_seed(1), y=torch.full((n,), 1))
    torch.testing.assert_close(only.mean(0), mixture.means[1], rtol=0, atol=5 * 0.2 / math.sqrt(n))
    torch.testing.assert_close(only.std(0), torch.full((2,), 0.2, dtype=f64), rtol=5 / math.sqrt(2 * n), atol=0)
    assert torch.equal(x, mixture.sample(n, torch.Generator().manual_seed(0)))


def test_gaussian_flow_solves_the_ode(schedule: td.Schedule) -> None:
    """d(x/sigma)/dlambda = e^lambda x0_hat(x, lambda) along the flow, by central differences; and back again."""
    world = td.GaussianMixture(torch.tensor([[0.4, -0.7]], dtype=f64), 0.25)
    x, start = normal(5, 2), 0.9 * schedule.T
    flow = lambda x, t, s: td.gaussian_flow(schedule, world.means[0], 0.25, x, t, s)  # noqa: E731
    for t in (0.1 * schedule.T, 0.5 * schedule.T):
        lam = schedule.half_log_snr(t)
        low, high = schedule.time(lam - 1e-4), schedule.time(lam + 1e-4)
        scaled = [flow(x, start, s) / schedule(s)[1] for s in (low, high)]
        x0_hat = world.denoiser(schedule)(flow(x, start, t), t)
        torch.testing.assert_close((scaled[1] - scaled[0]) / 2e-4, lam.exp() * x0_hat, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(flow(flow(x, start, t), t, start), x)


def test_empirical_denoiser_is_a_mixture_of_points() -> None:
    """Against a mixture whose components shrink to the data, on image-shaped data; at t = 0 the nearest point."""
    data, schedule = normal(7, 1, 2, 3), td.linear()
    x = 0.5 * normal(4, 1, 2, 3, seed=1)
    empirical = td.EmpiricalDenoiser(data, schedule)
    points = td.GaussianMixture(data.flatten(1), 1e-7).denoiser(schedule)
    t = torch.tensor([50, 300, 700, 1000])
    torch.testing.assert_close(empirical(x, t).flatten(1), points(x.flatten(1), t), rtol=1e-6, atol=1e-6)
    nearest = data[torch.cdist(x.flatten(1), data.flatten(1)).argmin(1)]
    torch.testing.assert_close(empirical(x, 0), nearest)


def labelled(y: list[float]) -> Tensor:
    return td.GaussianMixture(normal(3, 2), 1.0).denoiser(td.linear())(normal(2, 2), 500, y=torch.tensor(y))


def classified(y: list[int]) -> Tensor:
    return td.GaussianMixture(normal(3, 2), 1.0).classifier(td.linear())(normal(2, 2), 500, torch.tensor(y))


def test_whole_numbers_are_means_too() -> None:
    assert td.GaussianMixture([[-1, 0], [1, 0]], 0.1).means.tolist() == [[-1, 0], [1, 0]]
    assert td.GaussianMixture(torch.tensor([[-1, 0]]), 0.1).sample(3).dtype == torch.get_default_dtype()


def test_worlds_follow_x_to_another_device() -> None:
    """`meta` stands in for a GPU: it has shapes and devices, and refuses to mix with the CPU."""
    x, data = torch.empty(4, 2, device="meta"), normal(3, 2)
    world = td.GaussianMixture(data, 0.3)
    for denoiser in (td.EmpiricalDenoiser(data, td.linear()), world.denoiser(td.linear())):
        assert denoiser(x, 500).device.type == "meta"
    y = torch.zeros(4, dtype=torch.long, device="meta")
    assert world.denoiser(td.linear())(x, 500, y=y).device.type == "meta"
    assert world.classifier(td.linear())(x, 500, y).device.type == "meta"


def test_dtype_follows_x(mixture: td.GaussianMixture) -> None:
    x = normal(3, 2, dtype=torch.float32)
    assert mixture.denoiser(td.linear())(x, 500).dtype == torch.float32
    assert mixture.log_prob(x).dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: td.GaussianMixture(torch.zeros(3), 1.0), r"means has shape \(3,\), but must be \(K, d\)"),
        (lambda: td.GaussianMixture(torch.zeros(3, 2), 0.0), "greater than 0"),
        (lambda: td.GaussianMixture(torch.zeros(3, 2), 1.0, [0.5, 0.5]), r"weights has shape \(2,\), but there are 3"),
        (lambda: td.GaussianMixture(torch.zeros(3, 2), [1.0, 2.0]), r"stds has shape \(2,\), but there are 3"),
        (lambda: td.GaussianMixture(torch.zeros(3, 2), 1.0).log_prob(torch.zeros(4, 3)), r"lives in \(B, 2\)"),
        (lambda: labelled([0, 3]), r"y contains 3, but must lie in 0\.\.2, or be -1"),
        (lambda: labelled([0.0, 1.0]), "y is torch.float32 of shape"),
        (lambda: labelled([0]), r"must be whole numbers of shape \(2,\)"),
        (lambda: classified([0, -1]), r"y contains -1, but must lie in 0\.\.2"),
    ],
)
def test_bad_input_names_value_and_rule(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
