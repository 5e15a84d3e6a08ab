"""Step by step against diffusers: same noise, same denoiser, same grid, float64 on our side.

diffusers' table index n is t = n + 1 here; its schedulers get our alpha_bar, so that only the
update rules are compared.
"""

import math

import diffusers
import pytest
import torch
from torch import Tensor

import tinydiff as td

f64 = torch.float64
SCHEDULE = td.linear()


def start(n: int = 16) -> tuple[Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 2, generator=generator, dtype=f64), generator


def eps(mixture: td.GaussianMixture, x: Tensor, n: Tensor) -> Tensor:
    """The exact noise prediction at diffusers' index n."""
    alpha, sigma = SCHEDULE(n.to(f64) + 1)
    return (x - alpha * mixture.denoiser(SCHEDULE)(x, n.to(f64) + 1)) / sigma


def feed(scheduler) -> None:
    """Our float64 alpha_bar in place of diffusers' float32 product."""
    scheduler.alphas_cumprod = SCHEDULE.alpha_bar[1:]
    scheduler.alphas = 1 - SCHEDULE.betas
    scheduler.betas = SCHEDULE.betas
    scheduler.one, scheduler.final_alpha_cumprod = torch.ones((), dtype=f64), torch.ones((), dtype=f64)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps", [10, 50])
def test_ddim(eta: float, steps: int, mixture: td.GaussianMixture) -> None:
    peer = diffusers.DDIMScheduler(
        trained_betas=SCHEDULE.betas.tolist(), clip_sample=False, timestep_spacing="trailing"
    )
    feed(peer)
    peer.set_timesteps(steps)
    theirs, generator = start()
    for n in peer.timesteps:
        noise = torch.randn(16, 2, generator=generator, dtype=f64) if eta else None
        theirs = peer.step(eps(mixture, theirs, n), n, theirs, eta=eta, variance_noise=noise).prev_sample
    x, generator = start()
    ours = td.final(td.ddim(mixture.denoiser(SCHEDULE), x, td.uniform(SCHEDULE, steps), eta=eta, generator=generator))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)


def test_ddpm_1000_steps(mixture: td.GaussianMixture) -> None:
    peer = diffusers.DDPMScheduler(
        trained_betas=SCHEDULE.betas.tolist(), clip_sample=False, variance_type="fixed_small"
    )
    feed(peer)
    peer.set_timesteps(1000)
    theirs, generator = start()
    for n in peer.timesteps:
        theirs = peer.step(eps(mixture, theirs, n), n, theirs, generator=generator).prev_sample
    x, generator = start()
    ours = td.final(td.ddpm(mixture.denoiser(SCHEDULE), x, td.uniform(SCHEDULE, 1000), generator=generator))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("order", "eta"), [(1, 0.0), (2, 0.0), (2, 1.0)])
@pytest.mark.parametrize("steps", [10, 40])
def test_dpm_solver_pp(order: int, eta: float, steps: int, mixture: td.GaussianMixture) -> None:
    peer = diffusers.DPMSolverMultistepScheduler(
        trained_betas=SCHEDULE.betas.tolist(),
        algorithm_type="sde-dpmsolver++" if eta else "dpmsolver++",
        solver_order=order,
        timestep_spacing="trailing",
        lower_order_final=False,
        final_sigmas_type="zero",
    )
    peer.set_timesteps(steps)
    times = td.uniform(SCHEDULE, steps)
    assert (peer.timesteps + 1).tolist() == times[:-1].tolist()
    peer.sigmas = (-SCHEDULE.half_log_snr(times)).exp()  # diffusers' sigma is our sigma/alpha
    theirs, generator = start()
    for i, n in enumerate(peer.timesteps):
        noise = torch.randn(16, 2, generator=generator, dtype=f64) if eta and i < steps - 1 else torch.zeros(16, 2)
        theirs = peer.step(eps(mixture, theirs, n), n, theirs, variance_noise=noise if eta else None).prev_sample
    x, generator = start()
    ours = td.final(td.dpm_solver_pp(mixture.denoiser(SCHEDULE), x, times, order=order, eta=eta, generator=generator))
    torch.testing.assert_close(ours, theirs.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_where_third_order_differs_ours_is_the_exact_integral(eta: float) -> None:
    """x0_hat = sin(lambda) over four uneven times: our last step errs by less than a fifth of diffusers', whose third
    order has half the curvature term (ODE) or its sign wrong (SDE). Both start from the same x."""
    h, k = 0.05, 1 + eta
    lam = torch.tensor([0, 1.0, 2.1, 3.0], dtype=f64) * h + 1.0  # where sin is curved
    times = SCHEDULE.time(lam)

    class Prescribed:
        schedule = SCHEDULE

        def __call__(self, x: Tensor, t: Tensor) -> Tensor:
            return SCHEDULE.half_log_snr(t).sin().expand_as(x)

    x, generator = start(1)
    ours = [td.State(times[0], x, x)]
    ours += td.dpm_solver_pp(Prescribed(), x, times, order=3, eta=eta, generator=generator)

    peer = diffusers.DPMSolverMultistepScheduler(
        trained_betas=SCHEDULE.betas.tolist(),
        algorithm_type="sde-dpmsolver++" if eta else "dpmsolver++",
        prediction_type="sample",
        solver_order=3,
        lower_order_final=False,
        final_sigmas_type="zero",
    )
    peer.set_timesteps(4)  # one more than is run: its very last step would be of order 1
    peer.sigmas = torch.cat([(-lam).exp(), torch.zeros(1, dtype=f64)])
    z = torch.zeros(1, 2, dtype=f64)
    for i in range(3):
        theirs = peer.step(lam[i].sin().expand(1, 2), peer.timesteps[i], ours[i].x, variance_noise=z).prev_sample

    (_, sigma_t), (alpha_s, sigma_s) = SCHEDULE(times[2]), SCHEDULE(times[3])
    last = (lam[3] - lam[2]).item()
    primitive = lambda u: k * (k * u.sin() - u.cos()) / (k * k + 1) * (-k * (lam[3] - u)).exp()  # noqa: E731
    exact = sigma_s / sigma_t * math.exp(-eta * last) * ours[2].x + alpha_s * (primitive(lam[3]) - primitive(lam[2]))
    _, replay = start(1)
    noise = [torch.randn(1, 2, generator=replay, dtype=f64) for _ in range(3)][-1] if eta else 0
    our_error = (ours[3].x - sigma_s * math.sqrt(1 - math.exp(-2 * last)) * noise - exact).abs().max()
    assert our_error < 0.2 * (theirs.double() - exact).abs().max()
