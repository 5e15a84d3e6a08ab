"""Denoisers: a network and what it predicts. Everything that samples sees only `denoiser(x, t, **cond) -> x0_hat`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tinydiff.schedule import Schedule


class Denoiser(nn.Module):
    """A network with a schedule; subclasses say which quantity the network predicts.

    `denoiser(x, t, **cond)` returns the estimate of the clean data, x0_hat = E[x0 | x_t] for a perfect network.

    Args:
        net: called as `net(x, t, **cond)` with t of shape (B,), returns a tensor shaped like x.
        schedule: relates t to (alpha_t, sigma_t).

    `info` is a dict of anything JSON can hold, kept by `save` and given back by `load`: how the weights were made.
    """

    def __init__(self, net: nn.Module, schedule: Schedule) -> None:
        super().__init__()
        self.net = net
        self.schedule = schedule
        self.info: dict[str, Any] = {}

    def forward(self, x: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """x0_hat, shaped like x (B, ...), for t of shape () or (B,) in [0, T]."""
        alpha, sigma = self.schedule(t, like=x)
        return self.to_x0(x, self.predict(x, t, **cond), alpha, sigma)

    def predict(self, x: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """The network's raw output at (x, t), shaped like x."""
        dtype = torch.promote_types(x.dtype, torch.float32)  # half precision cannot count to 1000
        t = torch.as_tensor(t, dtype=dtype).to(x.device).expand(len(x))
        out: Tensor = self.net(x, t, **cond)
        if out.shape != x.shape:
            raise ValueError(
                f"The network returned {tuple(out.shape)} for x of shape {tuple(x.shape)}: they must agree."
            )
        return out

    def loss(self, x0: Tensor, t: Tensor | float, noise: Tensor, **cond: Any) -> Tensor:
        """Mean squared error of the network against its target at x_t = alpha_t x0 + sigma_t noise: a scalar.

        Args:
            x0: clean data (B, ...).
            t: time in [0, T], shape () or (B,).
            noise: standard normal, shaped like x0.
        """
        alpha, sigma = self.schedule(t, like=x0)
        out = self.predict(alpha * x0 + sigma * noise, t, **cond)
        return (out - self.target(x0, noise, alpha, sigma)).square().mean()

    def to_x0(self, x: Tensor, out: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """x0_hat from the network's output at x."""
        raise NotImplementedError

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the network's output is regressed on."""
        raise NotImplementedError


class EpsDenoiser(Denoiser):
    """The network predicts the noise eps: x0_hat = (x_t - sigma_t eps) / alpha_t (Ho et al. 2020, eq. 15)."""

    def to_x0(self, x: Tensor, out: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x - sigma * out) / alpha

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return noise


class X0Denoiser(Denoiser):
    """The network predicts the clean data itself (Ho et al. 2020, sec. 3.2; Salimans & Ho 2022, sec. 4)."""

    def to_x0(self, x: Tensor, out: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return out

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return x0


class VDenoiser(Denoiser):
    """The network predicts v = alpha_t eps - sigma_t x0: x0_hat = alpha_t x_t - sigma_t v (Salimans & Ho 2022, sec. 4).

    At t = 0 this is the identity whatever the network says.
    """

    def to_x0(self, x: Tensor, out: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha * x - sigma * out

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha * noise - sigma * x0


def layers(denoiser: Any) -> Iterator[Any]:
    """The denoiser, the one inside it if it is a wrapper, and so on to the innermost."""
    yield denoiser
    while hasattr(denoiser, "denoiser"):
        denoiser = denoiser.denoiser
        yield denoiser


def info_of(denoiser: Any) -> dict[str, Any]:
    """The `info` of a denoiser, or of the one inside its wrappers."""
    *_, inner = layers(denoiser)
    info = getattr(inner, "info", None)
    return info if isinstance(info, dict) else {}


@contextmanager
def eval_mode(denoiser: Any) -> Iterator[None]:
    """No module of the denoiser drops labels in here; every module's own mode is restored."""
    training = [m for m in denoiser.modules() if m.training] if getattr(denoiser, "training", False) else []
    try:
        if training:
            denoiser.eval()
        yield
    finally:
        for module in training:
            module.training = True
