"""An autoencoder of pictures: a small, smooth space for diffusion to work in, and the way back to pixels."""

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinydiff.diffuse import randn


class Block(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(1, width), nn.GroupNorm(1, width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, width, H, W)."""
        h: Tensor = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return x + h


class Autoencoder(nn.Module):
    """Two networks: the encoder says which latents z a picture may have, the decoder turns latents into a picture.

    The encoder's answer is a Gaussian, q(z | x) = N(mean, diag(exp(log_var))) (Kingma & Welling 2014). All but
    `posterior` count latents in units of `scale`, the standard deviation of z over a data set, so that they have unit
    variance, as noise schedules expect (cf. Rombach et al. 2022):

        sample(x) = z / scale, z ~ q(z | x),    encode(x) = mean / scale,    decode(z) = decoder(scale z).

    28x28 pixels become 3x8x8 latents. `info` is kept in the file: how the weights were made. Train it with
    `td.train(autoencoder, td.batches(x, size=128), loss=td.autoencoder_loss, seconds=60)` and call `set_scale(x)`.

    Args:
        channels: of the pictures, 1 for grey.
        latent: channels of the latents.
        width: channels at half the pictures' resolution; twice as many at the latents'.
    """

    scale: Tensor

    def __init__(self, channels: int = 1, latent: int = 3, width: int = 32) -> None:
        super().__init__()
        self.config = {"channels": channels, "latent": latent, "width": width}
        self.info: dict[str, Any] = {}
        wide, pixels = 2 * width, 4 * channels
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(pixels, width, 3, padding=1),  # (B, width, 14, 14)
            Block(width),
            nn.Conv2d(width, wide, 4, stride=2, padding=2),  # (B, 2 width, 8, 8)
            Block(wide),
            Block(wide),
            nn.GroupNorm(1, wide),
            nn.SiLU(),
            nn.Conv2d(wide, 2 * latent, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(latent, wide, 3, padding=1),  # (B, 2 width, 8, 8)
            Block(wide),
            Block(wide),
            nn.ConvTranspose2d(wide, width, 4, stride=2, padding=2),  # (B, width, 14, 14)
            Block(width),
            nn.GroupNorm(1, width),
            nn.SiLU(),
            nn.Conv2d(width, pixels, 3, padding=1),
            nn.PixelShuffle(2),
        )
        self.register_buffer("scale", torch.ones(()))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """mean and log_var of q(z | x), each (B, latent, H/4 + 1, W/4 + 1), for x (B, channels, H, W) in [-1, 1].

        Raises:
            ValueError: x has other channels, or sides that are no multiples of 4.
        """
        channels = self.config["channels"]
        if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % 4 or x.shape[3] % 4:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, but this autoencoder encodes pictures (B, {channels}, H, W) with H and "
                "W multiples of 4."
            )
        mean, log_var = self.encoder(x.contiguous(memory_format=torch.channels_last)).to(x.dtype).chunk(2, 1)
        return mean, log_var

    def encode(self, x: Tensor) -> Tensor:
        """The one latent that stands for a picture, mean / scale; shapes and errors as for `posterior`.

        Its variance is below that of `sample`, by what q(z | x) spreads.
        """
        return self.posterior(x)[0] / self.scale

    def sample(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A latent that a picture may have, z / scale with z ~ q(z | x): what latent denoisers are trained on."""
        return draw(*self.posterior(x), generator) / self.scale

    def decode(self, z: Tensor) -> Tensor:
        """Pictures (B, channels, 4h - 4, 4w - 4) from latents z (B, latent, h, w) in units of `scale`.

        Raises:
            ValueError: z has other channels, or sides below 2.
        """
        latent = self.config["latent"]
        if z.ndim != 4 or z.shape[1] != latent or min(z.shape[2:]) < 2:
            raise ValueError(
                f"z has shape {tuple(z.shape)}, but this autoencoder decodes latents (B, {latent}, h, w) with h and w "
                "at least 2, as encode makes them."
            )
        x: Tensor = self.decoder((self.scale * z).contiguous(memory_format=torch.channels_last)).to(z.dtype)
        return x

    @torch.no_grad()
    def set_scale(self, x: Tensor) -> Self:
        """Make `sample` of pictures x (N, channels, H, W) have unit variance: scale^2 = Var[mean] + E[exp(log_var)]."""
        parts = [self.posterior(part) for part in torch.split(x, 500)]
        mean, log_var = (torch.cat(part) for part in zip(*parts, strict=True))
        self.scale.copy_((mean.var(correction=0) + log_var.exp().mean()).sqrt())
        return self


def draw(mean: Tensor, log_var: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """mean + exp(log_var / 2) eps, eps ~ N(0, I): differentiable in both (Kingma & Welling 2014)."""
    return mean + (log_var / 2).exp() * randn(mean.shape, generator, mean)


def kl_divergence(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, diag(exp(log_var))) || N(0, I)) = 1/2 sum(mean^2 + exp(log_var) - 1 - log_var) in nats, (B,).

    Source: Kingma & Welling 2014, app. B.
    """
    return (mean.square() + log_var.exp() - 1 - log_var).flatten(1).sum(1) / 2


def autoencoder_loss(
    autoencoder: Autoencoder, x0: Tensor, *, kl: float = 0.02, generator: torch.Generator | None = None
) -> Tensor:
    """(1/2 |x0 - x|^2 + kl KL(q(z | x0) || N(0, I))) / D, x decoded from z ~ q(z | x0): a scalar, the batch's mean.

    D is the number of pixels. A decoder that claims p(x0 | z) = N(x, kl I) has the evidence lower bound

        log p(x0) >= E_q[log p(x0 | z)] - KL = -E_q|x0 - x|^2 / (2 kl) - D/2 log(2 pi kl) - KL,

    and the loss is -kl/D times that, but for a constant: the KL's weight is the variance of the noise that the decoder
    supposes in each pixel. kl = 1 is the plain VAE of unit variance: more noise than the digits have ink, so it blurs.
    A small kl keeps the strokes sharp and still pays for it with every nat by which z tells x0 from others, so that
    latents fill one cloud of about unit variance with no holes as wide as q; but their joint law is then far from
    N(0, I), and it takes a denoiser to sample it. kl = 0 asks for nothing but copies. The bound itself is highest where
    kl equals the mean squared error it leads to (cf. Rybkin et al. 2021).

    Args:
        x0: clean data (B, channels, H, W).
        kl: weight of the divergence, the variance of p(x0 | z), at least 0.
        generator: source of z's randomness; without it, torch's global one.

    Raises:
        ValueError: kl is negative, or x0 has the wrong shape.
    """
    if not kl >= 0:
        raise ValueError(f"kl = {kl} must be at least 0: it is the variance of the noise in each pixel.")
    mean, log_var = autoencoder.posterior(x0)
    x = autoencoder.decode(draw(mean, log_var, generator) / autoencoder.scale)
    return ((x0 - x).square().sum() / 2 + kl * kl_divergence(mean, log_var).sum()) / x0.numel()
