"""Restoration in worlds where the exact conditional is known: what agrees with it, and what is biased."""

import math
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from conftest import normal
from torch import Tensor, nn

import tinydiff as td
from tinydiff.metrics import psnr
from tinydiff.observe import _solve
from tinydiff.restore import SDE

f64 = torch.float64
SCHEDULE = td.cosine()
LEFT = torch.tensor([True, False])  # the mask of the worlds in the plane: x1 is known


class Gaussian:
    """The exact denoiser of N(mean, cov) over the values of x (B, ...)."""

    def __init__(self, mean: Tensor, cov: Tensor) -> None:
        self.schedule, self.mean, self.cov = SCHEDULE, mean, cov

    def __call__(self, x: Tensor, t: Tensor | float, y: Tensor | None = None) -> Tensor:
        alpha, sigma = (c.reshape(-1, 1, 1) for c in SCHEDULE(t))
        noisy = alpha**2 * self.cov + sigma**2 * torch.eye(len(self.mean))
        gain = alpha * torch.linalg.solve(noisy, self.cov.expand_as(noisy))
        residual = x.flatten(1) - alpha[..., 0] * self.mean
        return (self.mean + torch.einsum("bij,bi->bj", gain.expand(len(x), -1, -1), residual)).reshape(x.shape)


PLANE = Gaussian(torch.tensor([0.2, -0.1], dtype=f64), torch.tensor([[0.25, 0.20], [0.20, 0.25]], dtype=f64))
PLANE_X1 = 0.8  # given which x2 ~ N(-0.1 + 0.8 (0.8 - 0.2), 0.25 (1 - 0.8^2))
PLANE_MEAN, PLANE_STD = 0.38, 0.3

MIXTURE = td.GaussianMixture(torch.tensor([[-0.6, -0.6], [0.0, 0.0], [0.6, 0.6]], dtype=f64), 0.25, [0.4, 0.3, 0.3])
MIXTURE_X1 = 0.5


def mixture_x2() -> tuple[float, float]:
    """Mean and standard deviation of x2 given x1 in the mixture."""
    weights = MIXTURE.weights * (-((MIXTURE_X1 - MIXTURE.means[:, 0]) ** 2) / (2 * 0.25**2)).exp()
    weights, centres = weights / weights.sum(), MIXTURE.means[:, 1]
    mean = (weights * centres).sum()
    return mean.item(), (0.25**2 + (weights * centres**2).sum() - mean**2).sqrt().item()


def known(x1: float) -> Tensor:
    return torch.tensor([[x1, 0.0]], dtype=f64)


def white(n: int, d: int) -> Tensor:
    """Noise with mean 0 and covariance I exactly, so that an affine sampler ends with its law's exact moments."""
    x = normal(n, d)
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T


def picture_world() -> Gaussian:
    """Smooth 4x4 pictures."""
    spots = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)).double()
    return Gaussian(0.1 * normal(16), 0.3 * (-torch.cdist(spots, spots) / 2).exp())


class Recorder(nn.Module):
    """x0_hat = 0, and a memory of how it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule, self.conds = SCHEDULE, []

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        self.conds.append(cond)
        return 0 * x


# --- operators


def test_the_operators_by_hand() -> None:
    x = torch.arange(16, dtype=f64).reshape(1, 1, 4, 4)
    half = td.Downsample(2)
    assert half(x).tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]
    assert half.pinv(half(x))[0, 0].tolist() == [[2.5, 2.5, 4.5, 4.5]] * 2 + [[10.5, 10.5, 12.5, 12.5]] * 2
    assert td.Downsample(4)(x).tolist() == [[[[7.5]]]]
    rectangle = normal(2, 3, 4, 8)
    torch.testing.assert_close(half(half.pinv(half(rectangle))), half(rectangle), rtol=1e-14, atol=0)
    mask = td.Mask(torch.tensor([1, 0, 0, 1]))
    assert mask(x)[0, 0, 1].tolist() == [4, 0, 0, 7] == mask.pinv(x)[0, 0, 1].tolist()
    assert mask.merge(x, -x)[0, 0, 1].tolist() == [4, -5, -6, 7]


# --- Projected


@pytest.mark.parametrize("sampler", [td.ddpm, td.ddim, td.heun, td.dpm_solver, td.dpm_solver_pp, td.consistency])
def test_projected_samples_agree_with_the_observation(sampler: Any) -> None:
    world, truth = picture_world(), normal(3, 1, 4, 4, seed=5)
    for A in (td.Downsample(2), td.Downsample(4), td.Mask(torch.eye(4) > 0)):
        out = td.sample(td.Projected(world, A, A(truth)), (3, 1, 4, 4), steps=4, sampler=sampler)
        assert out.dtype == f64
        torch.testing.assert_close(A(out), A(truth), rtol=0, atol=1e-12)


def test_projected_changes_only_what_the_operator_sees() -> None:
    world, x, A = picture_world(), normal(2, 1, 4, 4), td.Downsample(2)
    t = torch.tensor([700.0, 200.0])
    plain, projected = world(x, t), td.Projected(world, A, normal(2, 1, 2, 2, seed=1))(x, t)
    torch.testing.assert_close(A(projected), normal(2, 1, 2, 2, seed=1), rtol=0, atol=1e-13)
    torch.testing.assert_close(projected - A.pinv(A(projected)), plain - A.pinv(A(plain)), rtol=0, atol=1e-13)


def test_projected_is_exact_where_the_rest_is_independent_and_biased_where_not() -> None:
    steps, x = td.uniform_angle(SCHEDULE, 100), white(300, 2)
    independent = Gaussian(PLANE.mean, torch.diag(PLANE.cov.diag()))
    out = td.final(td.dpm_solver_pp(td.Projected(independent, td.Mask(LEFT), known(PLANE_X1)), x, steps))[:, 1]
    assert out.mean().item() == pytest.approx(-0.1, abs=1e-3)
    assert out.std().item() == pytest.approx(0.5, abs=2e-3)
    out = td.final(td.dpm_solver_pp(td.Projected(PLANE, td.Mask(LEFT), known(PLANE_X1)), x, steps))[:, 1]
    assert 0.05 < out.mean() < 0.15  # of the way from -0.1 to 0.38 less than a half
    assert 0.35 < out.std() < 0.45  # 0.3 would be right


# --- consistency-model editing


class Exact:
    """The consistency function of pixels that are N(0.3, 0.4^2), each by itself."""

    schedule = SCHEDULE

    def __call__(self, x: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        return td.gaussian_flow(SCHEDULE, 0.3, 0.4, x, t, 0.0)


@pytest.mark.parametrize("A", [td.Mask(torch.tensor([1, 1, 0, 0])), td.Downsample(2)], ids=["inpaint", "x2"])
def test_editing_with_a_consistency_model_is_the_papers_algorithm_4_and_exact(A: Any) -> None:
    """The paper's steps in its own words, an orthogonal change of basis and a mask; then the law of the result."""
    n, generator, replay = 4000, torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    times, f, truth = torch.tensor([1000.0, 800.0, 500.0, 0.0], dtype=f64), Exact(), normal(1, 1, 4, 4, seed=8)
    x = normal(n, 1, 4, 4)
    out = td.final(td.consistency(td.Projected(f, A, A(truth)), x, times, generator=generator))

    columns = torch.stack([A.pinv(A(e)).flatten() for e in torch.eye(16, dtype=f64).reshape(16, 1, 1, 4, 4)], 1)
    values, basis = torch.linalg.eigh(columns)  # a projection: 1 where observed, 0 where free
    seen, target = values > 0.5, truth.flatten(1) @ basis
    for t, s in pairwise(times):
        x0 = torch.where(seen, target, f(x, t).flatten(1) @ basis) @ basis.T
        alpha, sigma = SCHEDULE(s)
        x = (alpha * x0).reshape(x.shape)
        x = x + sigma * torch.randn(x.shape, dtype=f64, generator=replay) if s > 0 else x
    torch.testing.assert_close(out, x, rtol=0, atol=1e-11)

    free = (out.flatten(1) - 0.3) @ basis[:, ~seen]  # of independent pixels: N(0, 0.4^2) each, whatever is observed
    assert free.mean(0).abs().max() < 4 * 0.4 / math.sqrt(n)
    torch.testing.assert_close(free.std(0), torch.full_like(free[0], 0.4), rtol=0.045, atol=0)


# --- Conditioned


def blur(x: Tensor) -> Tensor:
    return nn.functional.conv2d(x, torch.tensor([[[[0.5, 0.3], [0.1, -0.2]]]], dtype=f64), stride=2)


@pytest.mark.parametrize("A", [td.Mask(torch.eye(4)), td.Downsample(2), blur], ids=["mask", "x2", "blur"])
@pytest.mark.parametrize("std", [0.0, 0.3])
def test_conditioned_is_the_exact_conditional_mean_of_a_gaussian(A: Any, std: float) -> None:
    """E[x0 | x_t, observed] by stacking both into one linear observation; each sample at its own time."""
    world, x, t = picture_world(), normal(3, 1, 4, 4), torch.tensor([950.0, 500.0, 50.0], dtype=f64)
    observed = A(normal(3, 1, 4, 4, seed=3))
    ours = td.Conditioned(world, A, observed, std, iterations=8)(x, t)
    matrix = torch.stack([A(e).flatten() for e in torch.eye(16, dtype=f64).reshape(16, 1, 1, 4, 4)], 1)
    rows = matrix.abs().sum(1) > 0  # a mask's blanks observe nothing
    for i in range(3):
        alpha, sigma = SCHEDULE(t[i])
        H = torch.cat([alpha * torch.eye(16), matrix[rows]])
        R = torch.diag(torch.cat([sigma**2 * torch.ones(16), std**2 * torch.ones(int(rows.sum()))]).double())
        z = torch.cat([x[i].flatten(), observed[i].flatten()[rows]])
        mean = world.mean + world.cov @ H.T @ torch.linalg.solve(H @ world.cov @ H.T + R, z - H @ world.mean)
        torch.testing.assert_close(ours[i].flatten(), mean, rtol=0, atol=1e-7)


def test_unknown_values_of_a_masked_observation_do_not_matter() -> None:
    x, garbage = normal(3, 2), torch.tensor([[PLANE_X1, 7.0]], dtype=f64)
    for wrapper in (td.Projected, td.Conditioned):
        clean, dirty = (wrapper(PLANE, td.Mask(LEFT), o)(x, 500.0) for o in (known(PLANE_X1), garbage))
        assert torch.equal(clean, dirty)
    a, b = (
        td.inpaint(PLANE, x, [9.0, 5.0, 0.0], known=o, mask=LEFT, sampler=td.ddim) for o in (garbage, garbage * 0.5)
    )
    assert (td.final(a)[:, 0] - PLANE_X1).abs().max() < 1e-12 < (td.final(b)[:, 0] - PLANE_X1).abs().min()


@pytest.mark.parametrize("std", [0.0, 0.25])
def test_a_sampler_with_conditioned_ends_in_the_exact_conditional_of_a_gaussian(std: float) -> None:
    denoiser = td.Conditioned(PLANE, td.Mask(LEFT), known(PLANE_X1), std)
    out = td.final(td.dpm_solver_pp(denoiser, white(200, 2), td.uniform_angle(SCHEDULE, 100)))
    gain = PLANE.cov[:, 0] / (0.25 + std**2)
    mean = PLANE.mean + gain * (PLANE_X1 - 0.2)
    cov = PLANE.cov - torch.outer(gain, PLANE.cov[0])
    torch.testing.assert_close(out.mean(0), mean, rtol=0, atol=2e-3)
    torch.testing.assert_close(torch.cov(out.T), cov, rtol=0, atol=2e-3)


@pytest.mark.parametrize("twist", [0.0, 3.0])
def test_more_iterations_come_nearer_and_the_solver_knows_when_it_is_done(twist: float) -> None:
    """Also where M is not symmetric, as networks' Jacobians are not: there conjugate gradients run away."""
    root, b = normal(3, 5, 5), normal(3, 5, seed=1)
    M = root @ root.mT + torch.eye(5) + twist * (root - root.mT)
    exact = torch.linalg.solve(M, b)
    v = {n: _solve(lambda v: torch.einsum("bij,bj->bi", M, v), b, n) for n in (1, 2, 3, 5, 9)}
    left = [(torch.einsum("bij,bj->bi", M, v[n]) - b).norm(dim=1) for n in (1, 2, 3, 5)]
    assert all((late < early).all() for early, late in pairwise([b.norm(dim=1), *left]))
    torch.testing.assert_close(v[5], exact, rtol=0, atol=1e-9)
    torch.testing.assert_close(v[9], exact, rtol=0, atol=1e-9)


def test_the_solver_minimises_what_is_left_over_the_span_of_its_directions() -> None:
    M, b = normal(5, 5) + 4 * torch.eye(5), normal(1, 5, seed=1)
    span = torch.stack([torch.linalg.matrix_power(M, i) @ b[0] for i in range(3)], 1)
    expected = span @ torch.linalg.lstsq(M @ span, b.T).solution
    torch.testing.assert_close(_solve(lambda v: v @ M.T, b, 3), expected.T, rtol=1e-9, atol=0)
    for scale in (1e-7, 1e7):
        torch.testing.assert_close(_solve(lambda v: v @ M.T, scale * b, 3), scale * expected.T, rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [f64, torch.float32])
def test_the_solver_survives_what_has_no_solution(dtype: torch.dtype) -> None:
    b = normal(3, 4, dtype=dtype)
    assert torch.equal(_solve(lambda v: v, torch.zeros(2, 3), 4), torch.zeros(2, 3))
    torch.testing.assert_close(_solve(lambda v: -v, b, 4), -b)
    assert torch.equal(_solve(torch.zeros_like, b, 4), torch.zeros_like(b))
    seen = torch.tensor([0.3, 0.6, 0, 0], dtype=dtype)  # of rank 2: the rest of b is out of reach
    torch.testing.assert_close(seen * _solve(lambda v: seen * v, b, 9), torch.where(seen > 0, b, 0))


def test_conditioned_networks_sample_reproducibly_and_keep_no_gradient() -> None:
    inner = td.VDenoiser(td.MLP(hidden=8, classes=3), SCHEDULE)
    denoiser = td.Conditioned(inner, td.Mask(LEFT), torch.tensor([[0.5, 0.0]]), 0.1)
    y = torch.tensor([0, 1, 2, 1])
    a, b = (td.sample(denoiser, (4, 2), steps=3, generator=torch.Generator().manual_seed(0), y=y) for _ in "ab")
    assert torch.equal(a, b)
    assert a.dtype == torch.float32
    assert not a.requires_grad
    assert inner.training
    assert all(p.grad is None for p in inner.parameters())


# --- inpainting by replacement


def test_inpainting_written_out() -> None:
    """Down, up and down again: known values are fresh draws of q(x_s | known), the others the sampler's."""
    times, eta = torch.tensor([800.0, 300.0, 600.0, 100.0, 0.0], dtype=f64), 0.7
    denoiser, x, picture = MIXTURE.denoiser(SCHEDULE), normal(5, 2), normal(5, 2, seed=2)
    states = list(
        td.inpaint(
            denoiser,
            x,
            times,
            known=picture,
            mask=LEFT,
            sampler=partial(td.ddim, eta=eta),
            generator=torch.Generator().manual_seed(4),
        )
    )
    replay = torch.Generator().manual_seed(4)

    def draw() -> Tensor:
        return torch.randn(5, 2, dtype=f64, generator=replay)

    for state, (t, s) in zip(states, pairwise(times), strict=True):
        if s > t:
            kept = SCHEDULE(s)[0] / SCHEDULE(t)[0]
            x = kept * x + (1 - kept**2).sqrt() * draw()
        else:
            x0 = denoiser(x, t)
            x = td.step(SCHEDULE, x, x0, t, s, eta, replay)
            alpha, sigma = SCHEDULE(s)
            x[:, 0] = (alpha * picture + sigma * draw())[:, 0] if s > 0 else picture[:, 0]
        assert state.t == s
        torch.testing.assert_close(state.x, x, rtol=0, atol=1e-12)
        torch.testing.assert_close(state.x0, x0, rtol=0, atol=1e-12)
    assert torch.equal(states[-1].x[:, 0], picture[:, 0])


@pytest.mark.parametrize(
    "sampler", [td.ddpm, td.ddim, td.heun, td.dpm_solver_pp, td.dpm_solver_pp_singlestep, td.consistency]
)
def test_inpainting_takes_any_sampler_and_any_grid(sampler: Any) -> None:
    options = {"known": known(0.5), "mask": LEFT, "sampler": sampler}
    a, b = (
        td.sample(
            MIXTURE.denoiser(SCHEDULE),
            (6, 2),
            steps=9,
            sampler=partial(td.inpaint, **options),
            grid=lambda schedule, steps: td.resampling(td.uniform(schedule, steps), jump=3, repeats=2),
            generator=torch.Generator().manual_seed(0),
        )
        for _ in "ab"
    )
    assert torch.equal(a, b)
    assert torch.isfinite(a).all()
    torch.testing.assert_close(a[:, 0], torch.full((6,), 0.5))


def test_resampling_by_hand() -> None:
    grid = torch.tensor([5.0, 4, 3, 2, 1, 0], dtype=f64)
    assert td.resampling(grid, jump=2, repeats=2).tolist() == [5, 4, 3, 5, 4, 3, 2, 1, 3, 2, 1, 0]
    assert td.resampling(grid, jump=3, repeats=3).tolist() == [5, 4, 3, 2] + [5, 4, 3, 2] * 2 + [1, 2, 1, 2, 1, 0]
    assert td.resampling(grid, jump=1, repeats=1).tolist() == grid.tolist()
    assert td.resampling(grid[-2:], jump=1, repeats=3).tolist() == [1, 0]


def inpainted(denoiser: Any, x1: float, n: int, repeats: int) -> Tensor:
    times = td.resampling(td.uniform_angle(SCHEDULE, 50), jump=1, repeats=repeats)
    generator = torch.Generator().manual_seed(0)
    return td.final(td.inpaint(denoiser, normal(n, 2), times, known=known(x1), mask=LEFT, generator=generator))[:, 1]


@pytest.mark.parametrize("world", ["gaussian", "mixture"])
def test_replacement_is_biased_and_resampling_takes_the_bias_away(world: str) -> None:
    """The mean of x2 falls short of the exact one by 0.18 (Gaussian) and 0.27 (mixture); repeats bring it there."""
    if world == "gaussian":
        denoiser, x1, mean, std = PLANE, PLANE_X1, PLANE_MEAN, PLANE_STD
    else:
        denoiser, x1, (mean, std) = MIXTURE.denoiser(SCHEDULE), MIXTURE_X1, mixture_x2()
    bias = {repeats: mean - inpainted(denoiser, x1, 600, repeats).mean().item() for repeats in (1, 3, 12)}
    error = std / math.sqrt(600)
    assert bias[1] > 0.13 + 3 * error / 2
    assert bias[1] / 5 < bias[3] < bias[1] * 0.65
    assert abs(bias[12]) < 0.02 + 3 * error


def test_on_the_mixture_conditioned_is_nearer_than_projected_but_not_exact() -> None:
    mean, _ = mixture_x2()
    x, times = normal(1500, 2), td.uniform_angle(SCHEDULE, 30)
    bias = {}
    for wrapper, observed in ((td.Projected, known(MIXTURE_X1)), (td.Conditioned, known(MIXTURE_X1))):
        denoiser = wrapper(MIXTURE.denoiser(SCHEDULE), td.Mask(LEFT), observed)
        out = td.final(SDE(denoiser, x, times, generator=torch.Generator().manual_seed(0)))
        bias[wrapper] = mean - out[:, 1].mean().item()
    assert 0.2 < bias[td.Projected] < 0.3
    assert 0.04 < bias[td.Conditioned] < 0.11


# --- starting partway: denoising and SDEdit


def test_grids_that_start_partway() -> None:
    ramp = torch.linspace(1, 0, 5, dtype=f64)
    torch.testing.assert_close(td.starting_at(SCHEDULE, 4, 300.0, td.uniform), 300 * ramp, rtol=1e-14, atol=0)
    torch.testing.assert_close(td.starting_at(SCHEDULE, 4, 0.25, td.quadratic), 0.25 * ramp**2, rtol=1e-14, atol=0)
    angles = SCHEDULE.angle(td.starting_at(SCHEDULE, 4, 300))
    torch.testing.assert_close(angles, angles[0] * ramp, rtol=1e-9, atol=1e-12)
    for t in (0.3, 17.5, 999.5, 1000.0):
        for grid in (td.uniform_angle, td.quadratic, td.root_angle):
            times = td.starting_at(SCHEDULE, 6, t, grid)
            assert (times[0].item(), times[-1].item(), len(times)) == (t, 0, 7)
            assert (times.diff() < 0).all()
    assert torch.equal(td.starting_at(SCHEDULE, 6, 1000, td.karras), td.karras(SCHEDULE, 6))


def posterior(x: Tensor, std: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the mixture's x0 given x = x0 + std n: a mixture again."""
    variance = 0.25**2 + std**2
    weights = (MIXTURE.weights.log() - (x - MIXTURE.means).square().sum(1) / (2 * variance)).softmax(0)
    centres = MIXTURE.means + 0.25**2 / variance * (x - MIXTURE.means)
    mean = weights @ centres
    return mean, 0.25**2 * std**2 / variance * torch.eye(2) + torch.einsum(
        "k,ki,kj->ij", weights, centres - mean, centres - mean
    )


@pytest.mark.parametrize("std", [0.003, 0.5, 3.0])
def test_one_step_of_noise_removal_is_the_posterior_mean(std: float) -> None:
    denoiser, x = MIXTURE.denoiser(SCHEDULE), normal(4, 2)
    expected = torch.stack([posterior(row, std)[0] for row in x])
    for sampler in (SDE, td.ddim, td.ddpm, td.consistency):
        torch.testing.assert_close(td.remove_noise(denoiser, x, std, steps=1, sampler=sampler), expected)


def test_noise_removal_draws_from_the_exact_posterior() -> None:
    x, std, n, generator = torch.tensor([0.25, 0.0], dtype=f64), 0.5, 10_000, torch.Generator().manual_seed(0)
    denoiser, (mean, cov) = MIXTURE.denoiser(SCHEDULE), posterior(x, std)
    out = td.remove_noise(denoiser, x.expand(n, 2), std, steps=40, generator=generator)
    torch.testing.assert_close(out.mean(0), mean, rtol=0, atol=0.015)
    torch.testing.assert_close(torch.cov(out.T), cov, rtol=0.05, atol=0)
    ode = td.remove_noise(denoiser, x.expand(2, 2), std, steps=40, sampler=td.dpm_solver_pp)
    assert torch.equal(ode[0], ode[1])  # one answer, and not the mean
    assert (ode[0] - mean).norm() > 0.03


def test_noise_removal_by_a_consistency_model_follows_the_path() -> None:
    x, std = normal(3, 2), 0.8
    t = SCHEDULE.time(-math.log(std))
    expected = td.gaussian_flow(SCHEDULE, 0.3, 0.4, x / math.sqrt(1 + std**2), t, 0.0)
    out = td.remove_noise(Exact(), x, std, steps=1, sampler=td.consistency)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("sampler", [SDE, td.dpm_solver_pp])
def test_edited_data_keep_their_law(sampler: Any) -> None:
    x = MIXTURE.sample(6000, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    out = td.sdedit(MIXTURE.denoiser(SCHEDULE), x, 600, sampler=sampler, generator=generator)
    torch.testing.assert_close(out.mean(0), x.mean(0), rtol=0, atol=0.03)
    torch.testing.assert_close(torch.cov(out.T), torch.cov(x.T), rtol=0.05, atol=0)


@pytest.mark.parametrize("t", [300.0, 700.0])
def test_sdedit_of_one_sketch_has_the_exact_moments_of_a_gaussian(t: float) -> None:
    """x0 | x_t is N(m + G (x_t - alpha m), (I - alpha G) C), x_t ~ N(alpha sketch, sigma^2 I)."""
    sketch, n = torch.tensor([1.5, -1.0], dtype=f64), 6000
    out = td.sdedit(PLANE, sketch.expand(n, 2), t, steps=40, generator=torch.Generator().manual_seed(0))
    alpha, sigma = SCHEDULE(t)
    G = alpha * PLANE.cov @ torch.linalg.inv(alpha**2 * PLANE.cov + sigma**2 * torch.eye(2))
    mean = PLANE.mean + alpha * G @ (sketch - PLANE.mean)
    cov = PLANE.cov - alpha * G @ PLANE.cov + sigma**2 * G @ G.T
    torch.testing.assert_close(out.mean(0), mean, rtol=0, atol=0.025)
    torch.testing.assert_close(torch.cov(out.T), cov, rtol=0.05, atol=0.004)


# --- the contract


def test_labels_reach_the_denoiser_and_seeds_reproduce() -> None:
    y, x = torch.tensor([1, 0, 2]), normal(3, 2)
    inner = Recorder()
    runs = (
        lambda g: td.final(td.inpaint(inner, x, td.uniform(SCHEDULE, 3), known=x, mask=LEFT, generator=g, y=y, hint=5)),
        lambda g: td.remove_noise(inner, x, 0.5, steps=3, generator=g, y=y, hint=5),
        lambda g: td.sdedit(inner, x, 500, steps=3, generator=g, y=y, hint=5),
        lambda g: td.sample(
            td.Projected(inner, td.Mask(LEFT), x), (3, 2), steps=3, sampler=td.ddpm, generator=g, y=y, hint=5
        ),
        lambda g: td.sample(
            td.Conditioned(inner, td.Mask(LEFT), td.Mask(LEFT)(x)), (3, 2), steps=3, generator=g, y=y, hint=5
        ),
        lambda g: td.remove_noise(inner, x, 0.5, steps=3, sampler=td.heun, generator=g, y=y, hint=5),
    )
    for run in runs:
        inner.conds.clear()
        state = torch.get_rng_state()
        a, b = (run(torch.Generator().manual_seed(0)) for _ in "ab")
        assert torch.equal(a, b)
        assert torch.equal(torch.get_rng_state(), state)
        assert len(inner.conds) >= 6
        assert all(set(cond) == {"y", "hint"} and cond["y"] is y and cond["hint"] == 5 for cond in inner.conds)


def test_psnr_by_hand() -> None:
    x = normal(2, 1, 3, 3, dtype=torch.float32)
    noisy = x + torch.tensor([0.2, -0.02]).reshape(2, 1, 1, 1)
    assert psnr(x, noisy).tolist() == pytest.approx([20, 40], abs=1e-4)
    assert psnr(x, noisy, span=1.0).tolist() == pytest.approx(
        [20 - 20 * math.log10(2), 40 - 20 * math.log10(2)], abs=1e-4
    )


PICTURES = normal(2, 1, 4, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: td.Mask(torch.tensor([0.0, 0.5])), "must hold only 1"),
        (lambda d: td.Mask(torch.tensor([0.0, math.nan])), "must hold only 1"),
        (lambda d: td.Mask(torch.ones(3))(PICTURES), r"mask has shape \(3,\), but x has \(2, 1, 4, 4\)"),
        (lambda d: td.Mask(torch.ones(1, 2, 1, 4, 4))(PICTURES), r"mask has shape \(1, 2, 1, 4, 4\)"),
        (lambda d: td.Mask(torch.ones(3, 1, 1, 4))(PICTURES), r"mask has shape \(3, 1, 1, 4\)"),
        (lambda d: td.Downsample(0), "factor = 0 must be a whole number of at least 1"),
        (lambda d: td.Downsample(2.0), "factor = 2.0 must be a whole number"),
        (lambda d: td.Downsample(3)(PICTURES), "multiples of 3"),
        (lambda d: td.Downsample(2)(normal(2, 2)), r"x has shape \(2, 2\)"),
        (lambda d: td.Projected(d, td.Mask(LEFT), normal(3, 2))(normal(2, 2), 5), r"observed has shape \(3, 2\)"),
        (lambda d: td.Conditioned(d, td.Mask(LEFT), normal(2, 3))(normal(2, 2), 5), r"observed has shape \(2, 3\)"),
        (lambda d: td.Conditioned(d, td.Mask(LEFT), normal(2, 2), -0.1), "std = -0.1 must not be negative"),
        (lambda d: td.Conditioned(d, td.Mask(LEFT), normal(2, 2), iterations=0), "iterations = 0 must be at least 1"),
        (lambda d: list(td.inpaint(d, normal(2, 2), [5.0, 0.0], known=normal(3, 2), mask=LEFT)), "known has shape"),
        (
            lambda d: list(td.inpaint(d, normal(2, 2), [5.0, 0.0], known=normal(2, 2), mask=torch.ones(3))),
            "mask has sh",
        ),
        (
            lambda d: list(td.inpaint(d, normal(2, 2), [9.0, 5.0, 5.0, 0.0], known=normal(2, 2), mask=LEFT)),
            "times holds 5 twice in a row",
        ),
        (lambda d: list(td.inpaint(d, normal(2, 2), [5.0, 2000.0], known=normal(2, 2), mask=LEFT)), "t = 2000 is not"),
        (lambda d: list(td.inpaint(d, normal(2, 2), [5.0], known=normal(2, 2), mask=LEFT)), "at least two"),
        (lambda d: td.resampling(td.uniform(SCHEDULE, 5), jump=0), "jump = 0 and repeats = 10 must both be at least 1"),
        (lambda d: td.resampling(td.uniform(SCHEDULE, 5), repeats=0), "repeats = 0 must both be at least 1"),
        (lambda d: td.starting_at(SCHEDULE, 5, 0), "t = 0 must be greater than 0"),
        (lambda d: td.remove_noise(d, normal(2, 2), -0.5), "std = -0.5 must be greater than 0 and at most"),
        (lambda d: td.remove_noise(d, normal(2, 2), 0.0), "std = 0.0 must be greater than 0 and at most"),
        (lambda d: td.remove_noise(d, normal(2, 2), 1e6), "std = 1000000.0 must be greater than 0 and at most"),
        (lambda d: td.sdedit(d, normal(2, 2), 0), "t = 0 must be greater than 0"),
        (lambda d: td.sdedit(d, normal(2, 2), 1001), "must lie between 0 and T = 1000"),
        (lambda d: psnr(normal(2, 3), normal(3, 3)), "must be pictures of one shape"),
    ],
)
def test_bad_input_names_value_and_rule(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(MIXTURE.denoiser(SCHEDULE))
