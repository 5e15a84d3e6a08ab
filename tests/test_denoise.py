"""Denoisers: targets and x0 round trips, with networks that know the right answer."""

import pytest
import torch
from conftest import normal
from torch import Tensor, nn

import tinydiff as td

KINDS = [td.EpsDenoiser, td.X0Denoiser, td.VDenoiser]


class Oracle(nn.Module):
    """Returns a prescribed output and remembers how it was called."""

    def __init__(self, out: Tensor) -> None:
        super().__init__()
        self.out = out

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        self.x, self.t, self.cond = x, t, cond
        return self.out


def expected_target(kind: type, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """v is the velocity of the circle x = cos(phi) x0 + sin(phi) eps, by automatic differentiation."""
    if kind is td.EpsDenoiser:
        return noise
    if kind is td.X0Denoiser:
        return x0
    phi = torch.atan2(sigma, alpha)
    circle = lambda phi: torch.cos(phi) * x0 + torch.sin(phi) * noise  # noqa: E731
    return torch.func.jvp(circle, (phi,), (torch.ones_like(phi),))[1]


@pytest.mark.parametrize("kind", KINDS)
def test_perfect_network_has_zero_loss_and_returns_x0(kind: type, schedule: td.Schedule) -> None:
    x0, noise = normal(5, 2, 3, 4, seed=1), normal(5, 2, 3, 4, seed=2)
    t = torch.tensor([1, 2, schedule.T // 2, schedule.T - 1, schedule.T])
    alpha, sigma = schedule(t, like=x0)
    net = Oracle(expected_target(kind, x0, noise, alpha, sigma))
    denoiser = kind(net, schedule)

    assert denoiser.loss(x0, t, noise).item() < 1e-24
    x_t = (alpha * x0 + sigma * noise).clone()
    torch.testing.assert_close(net.x, x_t, rtol=1e-13, atol=1e-13)  # the network sees x_t
    torch.testing.assert_close(denoiser(x_t, t), x0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_the_mean_squared_error_to_the_target(kind: type) -> None:
    schedule, x0, noise = td.cosine(), normal(4, 3, seed=1), normal(4, 3, seed=2)
    t = torch.tensor([10, 300, 600, 990])
    off = normal(4, 3, seed=3)
    alpha, sigma = schedule(t, like=x0)
    denoiser = kind(Oracle(expected_target(kind, x0, noise, alpha, sigma) + off), schedule)
    assert denoiser.loss(x0, t, noise).item() == pytest.approx(off.square().mean().item(), rel=1e-12)
    assert denoiser.loss(x0, t, noise).shape == ()


@pytest.mark.parametrize("kind", KINDS)
def test_per_sample_t_equals_a_loop(kind: type) -> None:
    """B = 3 beside a width of 3 in other places: coefficients must go along the batch, not the width."""
    x, out, t = normal(3, 2, 4, 3, seed=4), normal(3, 2, 4, 3, seed=5), torch.tensor([1.0, 400.5, 1000.0])
    schedule = td.linear()
    together = kind(Oracle(out), schedule)(x, t)
    alone = torch.cat([kind(Oracle(out[i : i + 1]), schedule)(x[i : i + 1], t[i]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-14, atol=0)


def test_v_denoiser_is_the_identity_at_zero() -> None:
    x = normal(6, 2)
    assert torch.equal(td.VDenoiser(Oracle(1e3 * normal(6, 2, seed=1)), td.linear())(x, 0), x)


@pytest.mark.parametrize(
    ("dtype", "seen"), [(torch.float64,) * 2, (torch.float32,) * 2, (torch.bfloat16, torch.float32)]
)
def test_network_sees_a_batch_of_times_precise_enough_to_count(dtype: torch.dtype, seen: torch.dtype) -> None:
    x = normal(3, 2).to(dtype)
    net = Oracle(x)
    out = td.EpsDenoiser(net, td.linear())(x, torch.tensor(999, dtype=torch.float64), y=torch.tensor([1, 2, 3]))
    assert net.t.tolist() == [999] * 3
    assert net.t.dtype == seen
    assert net.cond["y"].tolist() == [1, 2, 3]
    assert out.dtype == dtype


def test_a_python_number_reaches_a_float64_network_with_all_its_digits() -> None:
    x = normal(2, 2)
    net = Oracle(x)
    td.EpsDenoiser(net, td.linear())(x, 123.456789012345)
    assert net.t.tolist() == [123.456789012345] * 2
