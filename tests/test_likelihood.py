"""The exact log-likelihood against densities known in closed form, in float64."""

import math

import pytest
import torch
from conftest import normal
from torch import Tensor, nn

import tinydiff as td

f64 = torch.float64


def even_angles(schedule: td.Schedule, steps: int, end: float = 0.0) -> Tensor:
    """Times evenly spaced in the angle phi = arctan(sigma/alpha) from T to `end`, where the order can be measured."""
    start, stop = (math.exp(-schedule.half_log_snr(t).item()) for t in (schedule.T, end))
    phi = torch.linspace(math.atan(start), math.atan(stop), steps + 1, dtype=f64)
    times = schedule.time(-phi.tan().log())
    times[0], times[-1] = schedule.T, end
    return times


def signs(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(2, shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class Pictures:
    """A mixture's exact denoiser on pictures of shape (1, 2, 1) in place of points."""

    def __init__(self, mixture: td.GaussianMixture, schedule: td.Schedule) -> None:
        self.points, self.schedule = mixture.denoiser(schedule), schedule

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.points(x.flatten(1), t).reshape(x.shape)


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [0.0, 40.0])
def test_order_four_on_one_gaussian(end: float) -> None:
    """Against the closed form of the model itself: N(0, I) at T carried down by the exact flow to time s,
    log p_s(x) = log N(x_T; 0, I) + d log(dx_T/dx). Its difference from log N(x; m, s^2) is that of p_T from N(0, I)."""
    schedule, mean, std = td.linear(), torch.tensor([0.6, -0.3], dtype=f64), 0.3
    world = td.GaussianMixture(mean[None], std)
    x = world.sample(64, torch.Generator().manual_seed(0))
    (alpha, sigma), (alpha_T, sigma_T) = schedule(end), schedule(schedule.T)
    x = alpha * x + sigma * normal(64, 2)
    x_T = td.gaussian_flow(schedule, mean, std, x, end, schedule.T)
    stretch = ((alpha_T**2 * std**2 + sigma_T**2) / (alpha**2 * std**2 + sigma**2)).log() / 2
    expected = -(x_T.square() + math.log(2 * math.pi)).sum(1) / 2 + 2 * stretch
    assert (expected - world.log_prob(x, schedule, end)).abs().max() < 0.02

    counts, errors = [40, 80, 160, 320], []
    for steps in counts:
        ours = td.log_likelihood(world.denoiser(schedule), x, even_angles(schedule, steps, end))
        errors.append((ours - expected).abs().mean().item())
    h, e = torch.tensor(counts, dtype=f64).reciprocal().log(), torch.tensor(errors, dtype=f64).log()
    slope = (((h - h.mean()) * (e - e.mean())).sum() / (h - h.mean()).square().sum()).item()
    assert slope == pytest.approx(4, abs=0.15)
    assert errors[-1] < 1e-9


def test_unit_gaussian_needs_no_step() -> None:
    """N(0, I) data stay where they are: v = 0 and the answer is exact with one step of any length."""
    schedule, x = td.linear(), normal(5, 3)
    world = td.GaussianMixture(torch.zeros(1, 3, dtype=f64), 1.0)
    ours = td.log_likelihood(world.denoiser(schedule), x, torch.tensor([1000.0, 0.0]))
    torch.testing.assert_close(ours, world.log_prob(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("t", [0, 20, 300])
def test_mixture_converges_to_its_density(t: int, mixture: td.GaussianMixture) -> None:
    """At samples and between the modes, of the data and at later times, under a schedule that ends in pure noise."""
    schedule = td.cosine()
    x = torch.cat([mixture.sample(20, torch.Generator().manual_seed(0)), 0.5 * normal(20, 2)])
    x = td.q_sample(schedule, x, t, generator=torch.Generator().manual_seed(1))
    truth, denoiser = mixture.log_prob(x, schedule, t), mixture.denoiser(schedule)
    errors = [
        (td.log_likelihood(denoiser, x, even_angles(schedule, n, t)) - truth).abs().max().item() for n in (40, 80, 240)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3 * truth.abs().max().item()


@pytest.mark.parametrize("grid", [td.uniform, td.quadratic, td.karras, td.uniform_log_snr])
def test_every_sampling_grid_serves(grid, mixture: td.GaussianMixture) -> None:
    """DDPM's schedule leaves alpha_T = 0.006, so the prior N(0, I) differs from p_T by up to about 0.003 nats."""
    schedule, x = td.linear(), mixture.sample(50, torch.Generator().manual_seed(0))
    ours = td.log_likelihood(mixture.denoiser(schedule), x, grid(schedule, 160))
    torch.testing.assert_close(ours, mixture.log_prob(x), rtol=0, atol=5e-3)


def test_conditional_likelihood_is_the_components_density(mixture: td.GaussianMixture) -> None:
    """Labels pass through, and exact classifier guidance of scale 1 is the same model, its Hessian included."""
    schedule = td.cosine()
    y = torch.tensor([0, 1, 2, 1, -1])
    x = 0.4 * normal(5, 2)
    truth = torch.cat(
        [
            (mixture if k < 0 else td.GaussianMixture(mixture.means[k : k + 1], mixture.stds[k])).log_prob(x[i : i + 1])
            for i, k in enumerate(y.tolist())
        ]
    )
    times = even_angles(schedule, 120)
    ours = td.log_likelihood(mixture.denoiser(schedule), x, times, y=y)
    torch.testing.assert_close(ours, truth, rtol=1e-3, atol=1e-3)
    guided = td.ClassifierGuided(mixture.denoiser(schedule), mixture.classifier(schedule), 1.0)
    assert torch.allclose(td.log_likelihood(guided, x[:4], times, y=y[:4]), ours[:4], rtol=1e-6)
    free = td.ClassifierFree(mixture.denoiser(schedule), 1.0)
    assert torch.allclose(td.log_likelihood(free, x, times, y=y), ours, rtol=1e-9)


def test_bound_lies_above_the_exact_likelihood_in_bits_per_dimension(mixture: td.GaussianMixture) -> None:
    schedule, generator = td.linear(300), torch.Generator().manual_seed(0)
    denoiser, x = mixture.denoiser(schedule), mixture.sample(500, generator)
    exact = td.bits_per_dim(-td.log_likelihood(denoiser, x, td.quadratic(schedule, 80)), x)
    assert exact.mean().item() == pytest.approx(td.bits_per_dim(-mixture.log_prob(x), x).mean().item(), abs=1e-3)
    gap = td.bits_per_dim(td.variational_bound(denoiser, x, generator=generator), x) - exact
    assert gap.mean() > 4 * gap.std() / math.sqrt(500)
    assert gap.mean() < 1


def test_binned_data_read_like_the_binned_bound() -> None:
    """The docstring's rule: spread each value over its bin, subtract log2(bin width). Against the entropy of the bins,
    summed exactly; the bound with the same bins lies above."""
    schedule, std, width, generator = td.linear(300), 0.3, 2 / 255, torch.Generator().manual_seed(0)
    world = td.GaussianMixture(torch.zeros(1, 2, dtype=f64), std)
    centres = torch.arange(256, dtype=f64) * width - 1
    cdf = lambda z: torch.special.ndtr(z / std)  # noqa: E731
    mass = cdf(centres + width / 2) - cdf(centres - width / 2)
    entropy = -(mass * mass.log2()).sum().item()

    x = ((world.sample(1000, generator) + 1) / width).round().clamp(0, 255) * width - 1
    spread = x + width * (torch.rand(x.shape, generator=generator, dtype=f64) - 0.5)
    nats = -td.log_likelihood(world.denoiser(schedule), spread, td.quadratic(schedule, 40))
    bits = td.bits_per_dim(nats, x) - math.log2(width)
    error = bits.std().item() / math.sqrt(1000)
    assert bits.mean().item() == pytest.approx(entropy, abs=4 * error)
    bound = td.bits_per_dim(td.variational_bound(world.denoiser(schedule), x, bin_width=width, generator=generator), x)
    assert bound.mean() > bits.mean()


# --- Hutchinson ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [signs, normal], ids=["signs", "normal"])
def test_hutchinson_is_unbiased(draw, mixture: td.GaussianMixture) -> None:
    """4000 single-probe estimates of one point: their mean is the exact answer within 4 standard errors, and K probes
    in one call are the mean of K calls."""
    schedule, n = td.linear(), 4000
    denoiser, times, point = mixture.denoiser(schedule), td.quadratic(schedule, 20), 0.5 * normal(1, 2)
    exact = td.log_likelihood(denoiser, point, times).item()
    probes = draw(1, n, 2)
    estimates = td.log_likelihood(denoiser, point.expand(n, 2), times, probes=probes)
    error = estimates.std().item() / math.sqrt(n)
    assert 0 < error < 0.05
    assert estimates.mean().item() == pytest.approx(exact, abs=4 * error)
    together = td.log_likelihood(denoiser, point, times, probes=probes[0, :8, None])
    torch.testing.assert_close(together[0], estimates[:8].mean(), rtol=1e-9, atol=1e-9)


def test_the_exact_divergence_is_hutchinson_with_all_unit_vectors(mixture: td.GaussianMixture) -> None:
    schedule, x = td.linear(), 0.5 * normal(4, 2)
    times = td.quadratic(schedule, 10)
    units = math.sqrt(2) * torch.eye(2, dtype=f64)[:, None]
    torch.testing.assert_close(
        td.log_likelihood(mixture.denoiser(schedule), x, times, probes=units),
        td.log_likelihood(mixture.denoiser(schedule), x, times),
    )


# --- the contract ----------------------------------------------------------------------------------------------------


def test_shapes_and_dtypes(mixture: td.GaussianMixture) -> None:
    """(B,) in float64, whatever the shape of a sample and its dtype; every sample alone gives the same."""
    schedule, x = td.linear(), mixture.sample(3, torch.Generator().manual_seed(0))
    times = td.quadratic(schedule, 40)
    points = td.log_likelihood(mixture.denoiser(schedule), x, times)
    assert points.shape == (3,)
    assert points.dtype == f64
    pictures = Pictures(mixture, schedule)
    torch.testing.assert_close(td.log_likelihood(pictures, x.reshape(3, 1, 2, 1), times), points)
    probes = signs(5, 3, 1, 2, 1)
    together = td.log_likelihood(pictures, x.reshape(3, 1, 2, 1), times, probes=probes)
    alone = [
        td.log_likelihood(pictures, x[i].reshape(1, 1, 2, 1), times, probes=probes[:, i : i + 1]) for i in range(3)
    ]
    torch.testing.assert_close(together, torch.cat(alone))
    single = td.log_likelihood(mixture.denoiser(schedule), x.float(), times)
    assert single.dtype == f64
    torch.testing.assert_close(single, points, rtol=1e-3, atol=1e-3)
    assert td.log_likelihood(mixture.denoiser(schedule), x[:0], times).shape == (0,)


class Net(nn.Module):
    """A network that drops in training mode, with a frozen part."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.drop = nn.Parameter(torch.ones(2, dtype=f64)), nn.Dropout(0.5)
        self.frozen = nn.BatchNorm1d(2).double().eval()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.frozen(self.drop(x * self.scale)).tanh()


@pytest.mark.parametrize("grad", [True, False])
def test_mode_gradients_and_input_are_left_alone(grad: bool) -> None:
    denoiser = td.VDenoiser(Net(), td.linear()).train()
    denoiser.net.frozen.eval()
    x = normal(4, 2).requires_grad_(grad)
    before = x.detach().clone()
    with torch.set_grad_enabled(grad):
        first, second = (td.log_likelihood(denoiser, x, td.uniform(denoiser.schedule, 4)) for _ in range(2))
        assert torch.is_grad_enabled() == grad
    assert torch.equal(first, second), "dropout must be off"
    assert denoiser.training
    assert denoiser.net.drop.training
    assert not denoiser.net.frozen.training
    assert not first.requires_grad
    assert denoiser.net.scale.grad is None
    assert x.grad is None
    assert torch.equal(x.detach(), before)


def test_the_denoiser_is_never_asked_at_zero_and_four_times_a_step(mixture: td.GaussianMixture) -> None:
    schedule, asked = td.linear(), []
    exact = mixture.denoiser(schedule)

    class Witness:
        def __init__(self) -> None:
            self.schedule = schedule

        def __call__(self, x: Tensor, t: Tensor) -> Tensor:
            asked.append(float(t))
            return exact(x, t)

    td.log_likelihood(Witness(), 0.3 * normal(2, 2), td.karras(schedule, 6))
    assert min(asked) > 0
    assert max(asked) == 1000
    assert len(asked) == 4 * 6 - 1


def test_mode_is_restored_after_an_error() -> None:
    denoiser = td.VDenoiser(Net(), td.linear()).train()
    with pytest.raises(TypeError):
        td.log_likelihood(denoiser, normal(4, 2), td.uniform(denoiser.schedule, 4), y=3)
    assert denoiser.training


def _blind(x: Tensor, t: Tensor) -> Tensor:
    return x.detach()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"times": torch.tensor([900.0, 0.0])}, "times start at 900, but must start at T = 1000"),
        ({"times": torch.tensor([0.0, 1000.0])}, "strictly decreasing"),
        ({"times": torch.tensor([1000.0])}, "at least two times"),
        ({"x": torch.zeros(4, 2, dtype=torch.uint8)}, r"x is torch.uint8 of shape \(4, 2\), but must be floating"),
        ({"x": torch.zeros(4)}, r"of shape \(4,\), but must be floating point of shape \(B, ...\)"),
        ({"probes": torch.ones(4, 2)}, r"probes has shape \(4, 2\), but must be \(K, 4, 2\)"),
        ({"probes": torch.ones(0, 4, 2)}, r"probes has shape \(0, 4, 2\)"),
        ({"denoiser": _blind}, "no gradient with respect to x"),
        ({"denoiser": lambda x, t: nn.Parameter(torch.ones(4, 2))}, "no gradient with respect to x"),
    ],
)
def test_bad_input_names_value_and_rule(change, message: str, mixture: td.GaussianMixture) -> None:
    schedule = td.linear()

    class Blind:
        def __init__(self) -> None:
            self.schedule = schedule

        def __call__(self, x: Tensor, t: Tensor) -> Tensor:
            return change["denoiser"](x, t)

    arguments = {"x": normal(4, 2), "times": td.uniform(schedule, 3), "denoiser": mixture.denoiser(schedule)} | change
    if "denoiser" in change:
        arguments["denoiser"] = Blind()
    with pytest.raises(ValueError, match=message):
        td.log_likelihood(**arguments)
