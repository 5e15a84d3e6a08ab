"""The autoencoder: its loss is the evidence lower bound that it claims to be, its latents have unit variance."""

import math
from functools import partial

import pytest
import torch
from conftest import normal
from torch import Tensor
from torch.distributions import Normal, kl_divergence

import tinydiff as td
from tinydiff import pretrained
from tinydiff.autoencoder import draw
from tinydiff.evaluate import measure

f64 = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def small() -> td.Autoencoder:
    torch.manual_seed(0)
    autoencoder = td.Autoencoder(width=8).double()
    autoencoder.scale.fill_(0.7)
    return autoencoder


def test_shapes_and_size(small: td.Autoencoder) -> None:
    assert sum(p.numel() for p in td.Autoencoder().parameters()) < 500_000
    for side, latent in ((28, 8), (8, 3), (32, 9)):
        x = normal(2, 1, side, side)
        z = small.encode(x)
        assert z.shape == small.sample(x, seeded()).shape == (2, 3, latent, latent)
        assert small.decode(z).shape == x.shape
    colour = td.Autoencoder(channels=3, latent=5, width=8)
    assert colour.decode(colour.encode(torch.zeros(1, 3, 12, 16))).shape == (1, 3, 12, 16)


def test_kl_is_the_integral_of_its_definition() -> None:
    """In one dimension by quadrature, in many beside torch's, each pair on its own."""
    z = torch.linspace(-30, 30, 200_001, dtype=f64)
    for mean, log_var in ((0.0, 0.0), (1.3, -2.0), (-0.4, 1.5), (3.0, 0.1)):
        log_q = -((z - mean) ** 2) / (2 * math.exp(log_var)) - (math.log(2 * math.pi) + log_var) / 2
        log_p = -(z**2) / 2 - math.log(2 * math.pi) / 2
        integral = torch.trapezoid(log_q.exp() * (log_q - log_p), z).item()
        ours = td.kl_divergence(torch.tensor([[mean]], dtype=f64), torch.tensor([[log_var]], dtype=f64))
        assert ours.item() == pytest.approx(integral, abs=1e-9)
    mean, log_var = normal(4, 3, 2, 2), normal(4, 3, 2, 2, seed=1)
    torch_says = kl_divergence(Normal(mean, (log_var / 2).exp()), Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(td.kl_divergence(mean, log_var), torch_says)


def test_draws_have_the_mean_and_variance_asked_for_and_pass_gradients_to_both() -> None:
    mean, log_var = torch.tensor([2.0, -1.0], dtype=f64), torch.tensor([1.0, -3.0], dtype=f64)
    z = draw(mean.expand(200_000, 2), log_var.expand(200_000, 2), seeded())
    torch.testing.assert_close(z.mean(0), mean, atol=0.02, rtol=0)
    torch.testing.assert_close(z.var(0), log_var.exp(), rtol=0.02, atol=0)
    assert torch.autograd.gradcheck(lambda m, v: draw(m, v, seeded()), (normal(3).requires_grad_(), normal(3)))
    assert torch.autograd.gradcheck(lambda v: draw(mean, v, seeded()), log_var.clone().requires_grad_())


@pytest.mark.parametrize("kl", [0.02, 1.0, 3.0])
def test_loss_is_the_evidence_lower_bound_of_a_decoder_with_pixel_variance_kl(small: td.Autoencoder, kl: float) -> None:
    """-kl/D times the bound made of torch's own distributions, but for the Gaussian's constant."""
    x = normal(5, 1, 8, 8).clamp(-1, 1)
    mean, log_var = small.posterior(x)
    q = Normal(mean, (log_var / 2).exp())
    z = mean + q.scale * torch.randn(mean.shape, generator=seeded(), dtype=f64)
    decoded = small.decoder(z)
    log_p = Normal(decoded, math.sqrt(kl)).log_prob(x).sum((1, 2, 3))
    bound = log_p - kl_divergence(q, Normal(0.0, 1.0)).sum((1, 2, 3))
    constant = kl / 2 * math.log(2 * math.pi * kl)
    expected = -kl / 64 * bound.mean() - constant
    torch.testing.assert_close(td.autoencoder_loss(small, x, kl=kl, generator=seeded()), expected)


def test_bound_bounds_the_likelihood_and_meets_it_at_the_exact_posterior() -> None:
    """A linear decoder x = a z + noise of variance kl, whose evidence and posterior are closed form."""
    a, kl, x0 = 1.5, 0.3, torch.tensor([0.8], dtype=f64).reshape(1, 1, 1, 1)
    exact_mean, exact_var = a * x0 / (a**2 + kl), kl / (a**2 + kl)

    class Linear(td.Autoencoder):
        def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
            shape = (200_000, 1, 1, 1)
            return (exact_mean + shift).expand(shape), torch.tensor(exact_var * stretch, dtype=f64).log().expand(shape)

        def decode(self, z: Tensor) -> Tensor:
            return a * z

    evidence = Normal(0.0, math.sqrt(a**2 + kl)).log_prob(x0).item()
    gaps = []
    for shift, stretch in ((0.0, 1.0), (0.3, 1.0), (0.0, 2.0), (0.0, 0.4)):
        loss = td.autoencoder_loss(Linear(), x0.expand(200_000, 1, 1, 1), kl=kl, generator=seeded()).item()
        gaps.append(evidence + loss / kl + math.log(2 * math.pi * kl) / 2)
        q = Normal(exact_mean + shift, math.sqrt(exact_var * stretch))
        assert gaps[-1] == pytest.approx(kl_divergence(q, Normal(exact_mean, math.sqrt(exact_var))).item(), abs=0.01)
    assert abs(gaps[0]) < 0.01 < min(gaps[1:])


def test_without_kl_only_the_error_counts(small: td.Autoencoder) -> None:
    x = normal(3, 1, 8, 8)
    error = (x - small.decode(small.sample(x, seeded()))).square().mean() / 2
    torch.testing.assert_close(td.autoencoder_loss(small, x, kl=0, generator=seeded()), error)


def test_scale_gives_latents_unit_variance_and_nothing_else(small: td.Autoencoder) -> None:
    x = normal(700, 1, 8, 8)
    loss, picture = td.autoencoder_loss(small, x[:5], generator=seeded()), small.decode(small.encode(x[:5]))
    assert small.set_scale(x) is small
    assert small.scale != 0.7
    assert small.sample(x, seeded()).std().item() == pytest.approx(1, abs=0.02)
    mean, log_var = small.posterior(x)
    assert small.encode(x).std().item() == pytest.approx((mean.std() / small.scale).item())
    assert log_var.exp().mean() > 0.1  # so that a scale without it would be seen above
    torch.testing.assert_close(small.decode(small.encode(x[:5])), picture)
    torch.testing.assert_close(td.autoencoder_loss(small, x[:5], generator=seeded()), loss)


def test_td_train_trains_it_on_real_digits() -> None:
    x, _ = td.digits()
    torch.manual_seed(0)
    autoencoder = td.Autoencoder(width=16)
    ema, loss = td.EMA(autoencoder, 0.9), partial(td.autoencoder_loss, kl=0.05)
    source = td.batches(x[:1500], size=64, generator=seeded())
    for _ in td.train(autoencoder, source, ema=ema, steps=150, loss=loss, generator=seeded()):
        pass
    trained = ema.denoiser.set_scale(x[:1500])
    error = (trained.decode(trained.encode(x[1500:])) - x[1500:]).square().mean()
    assert error < 0.3 * x.var()  # 0.16 of it after these seconds


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: a.encode(torch.zeros(2, 3, 28, 28)), r"^x has shape \(2, 3, 28, 28\), but this autoencoder encodes"),
        (lambda a: a.posterior(torch.zeros(1, 28, 28)), r"^x has shape \(1, 28, 28\), but"),
        (lambda a: a.sample(torch.zeros(1, 1, 28, 26)), r"pictures \(B, 1, H, W\) with H and W multiples of 4\.$"),
        (lambda a: a.decode(torch.zeros(2, 4, 8, 8)), r"^z has shape \(2, 4, 8, 8\), but this autoencoder decodes lat"),
        (lambda a: a.decode(torch.zeros(2, 1, 28, 28)), r"latents \(B, 3, h, w\) with h and w at least 2, as encode"),
        (lambda a: a.decode(torch.zeros(3, 8, 8)), r"^z has shape \(3, 8, 8\), but"),
        (lambda a: a.decode(torch.zeros(2, 3, 1, 8)), r"^z has shape \(2, 3, 1, 8\), but"),
        (lambda a: td.autoencoder_loss(a, torch.zeros(1, 1, 8, 8), kl=-0.1), r"^kl = -0\.1 must be at least 0: it is"),
        (lambda a: td.autoencoder_loss(a, torch.zeros(1, 1, 8, 8), kl=math.nan), r"^kl = nan must be"),
    ],
)
def test_what_does_not_fit_is_said(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(td.Autoencoder(width=8))


def test_shipped_autoencoder_keeps_digits_and_cannot_invent_them(mnist_test: tuple[Tensor, Tensor]) -> None:
    """Unseen digits come back as themselves, also from a draw of q; N(0, I), the plain VAE's way, gives no digits."""
    autoencoder, (x, y) = td.load_autoencoder(), (part[:2000] for part in mnist_test)
    assert not autoencoder.training
    assert {p.dtype for p in autoencoder.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in autoencoder.parameters())
    parts = torch.split(x, 500)
    z = torch.cat([autoencoder.sample(part, seeded(i)) for i, part in enumerate(parts)])
    assert z.shape == (2000, 3, 8, 8)
    assert z.std().item() == pytest.approx(1, abs=0.03)
    assert abs(z.mean()) < 0.1
    floor = measure(x, y)
    for back in (
        torch.cat([autoencoder.decode(autoencoder.encode(part)) for part in parts]),
        torch.cat([autoencoder.decode(part) for part in torch.split(z, 500)]),
    ):
        assert (back - x).square().mean() < 0.015  # of a variance of 0.38
        quality = measure(back, y)
        assert quality.frechet < 1.3 * floor.frechet
        assert quality.agreement > 0.985
    invented = torch.cat([autoencoder.decode(normal(500, 3, 8, 8, seed=i, dtype=x.dtype)) for i in range(2)])
    assert measure(invented).frechet > 20 * floor.frechet


def test_shipped_autoencoder_is_told_from_denoisers() -> None:
    with pytest.raises(
        ValueError, match=r"^'mnist-autoencoder' is not a shipped.*load_autoencoder\(\) gives the autoe"
    ):
        td.load_pretrained("mnist-autoencoder")
    with pytest.raises(
        ValueError, match=r"mnist-autoencoder\.safetensors holds no denoiser.*load_autoencoder\(\) read"
    ):
        td.load(pretrained.WEIGHTS / "mnist-autoencoder.safetensors")


def test_pictures_are_decoded_only_where_info_says_so() -> None:
    latent, autoencoder = td.load_pretrained("mnist-latent"), td.load_autoencoder()
    z = normal(3, 3, 8, 8, dtype=torch.float32)
    x = autoencoder.decode(z)
    torch.testing.assert_close(pretrained.pictures(td.ClassifierFree(latent, 2.0), z), x)
    assert pretrained.pictures(td.load_pretrained("mnist"), x) is x
    assert pretrained.pictures(lambda x, t: x, x) is x
    latent.info["autoencoder"] = "mine"
    with pytest.raises(
        ValueError, match=r"^These samples are latents of 'mine', and only 'mnist-autoencoder' is known"
    ):
        pretrained.pictures(latent, z)
