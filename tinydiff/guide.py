"""Guidance and its repairs: wrappers around a denoiser that are denoisers themselves, composed in any order."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tinydiff.denoise import layers
from tinydiff.nets import one_for_each
from tinydiff.schedule import Schedule, match


class Wrapper(nn.Module):
    """A denoiser around another denoiser. A module, so that device, mode and parameters reach the network inside."""

    def __init__(self, denoiser: Any) -> None:
        super().__init__()
        self.denoiser = denoiser

    @property
    def schedule(self) -> Schedule:
        """The inner denoiser's."""
        schedule: Schedule = self.denoiser.schedule
        return schedule


class ClassifierFree(Wrapper):
    """Classifier-free guidance: x0_hat = x0_u + scale (x0_c - x0_u) (Ho & Salimans 2022, eq. 6, scale = 1 + their w).

    scale 0 is unconditional, 1 conditional, above 1 exaggerates the class. One batched network call.

    Args:
        denoiser: takes y=labels, -1 for "no class".
        scale: a number.

    Raises:
        ValueError: the network was trained with label_dropout = 0, and a scale other than 1 needs its "no class".
    """

    def __init__(self, denoiser: Any, scale: float) -> None:
        super().__init__(denoiser)
        *_, inner = layers(denoiser)
        config = getattr(getattr(inner, "net", None), "config", None)
        config = config if isinstance(config, dict) else {}  # that of tinydiff's own networks
        if config.get("classes") and config.get("label_dropout") == 0 and scale != 1:
            raise ValueError(
                f'Guidance with scale = {scale} asks for "no class", which this network with label_dropout = 0 has not '
                "learnt: train one with label_dropout=0.1, or use the denoiser unguided."
            )
        self.scale = scale

    def forward(self, x: Tensor, t: Tensor | float, y: Tensor | None = None, **cond: Any) -> Tensor:
        """x0_hat for x (B, ...), t () or (B,), y (B,); cond is for both halves, tensors (B, ...) are repeated.

        Raises:
            ValueError: y is missing, or not a class for each sample.
        """
        if y is None:
            raise ValueError("Classifier-free guidance needs classes: pass y=labels, or use the denoiser unguided.")
        y = one_for_each(y, x)
        twice = {name: torch.cat([c, c]) if isinstance(c, Tensor) else c for name, c in cond.items()}
        t = torch.cat([t, t]) if isinstance(t, Tensor) and t.ndim else t
        both = self.denoiser(torch.cat([x, x]), t, y=torch.cat([y, torch.full_like(y, -1)]), **twice)
        conditional, unconditional = both.chunk(2)
        guided: Tensor = unconditional + self.scale * (conditional - unconditional)
        return guided


class ClassifierGuided(Wrapper):
    """Classifier guidance: x0_hat + scale (sigma_t^2/alpha_t) grad_x log p(y | x_t) (Dhariwal & Nichol 2021, alg. 2).

    That is eps_hat - scale sigma_t grad log p. scale 1 turns the exact unconditional denoiser into the conditional one.
    Where y is -1, "no class", it is the denoiser's own answer.

    Args:
        denoiser: called without y, unless it is guided itself.
        log_prob: log_prob(x_t, t, y) -> (B,), differentiable in x_t, with t of shape () or (B,). Where it is the method
            of a module, that module's device and dtype follow the wrapper's.
        scale: a number.
    """

    def __init__(self, denoiser: Any, log_prob: Callable[[Tensor, Any, Tensor], Tensor], scale: float = 1.0) -> None:
        super().__init__(denoiser)
        self.log_prob = log_prob
        self.scale = scale
        owner = getattr(log_prob, "__self__", None)
        self.classifier = owner if isinstance(owner, nn.Module) else None
        self.guided = any(isinstance(d, ClassifierFree | ClassifierGuided) for d in layers(denoiser))

    def forward(self, x: Tensor, t: Tensor | float, y: Tensor | None = None, **cond: Any) -> Tensor:
        """x0_hat for x (B, ...), t () or (B,) and y (B,).

        Raises:
            ValueError: y is missing, or not a class for each sample.
        """
        if y is None:
            raise ValueError("Classifier guidance needs classes: pass y=labels, or use the denoiser unguided.")
        y = one_for_each(y, x)
        if self.guided:
            cond["y"] = y
        graph = torch.is_grad_enabled() and x.requires_grad  # log_likelihood differentiates the guided x0_hat
        with torch.enable_grad():  # samplers run without gradients
            leaf = x if graph else x.detach().requires_grad_()
            log_p = self.log_prob(leaf, t, y.clamp(min=0))
            (gradient,) = torch.autograd.grad(log_p.sum(), leaf, create_graph=graph)
        gradient = gradient.where((y >= 0).reshape(-1, *[1] * (x.ndim - 1)), 0)
        alpha, sigma = self.schedule(t)
        guided: Tensor = self.denoiser(x, t, **cond) + match(self.scale * sigma**2 / alpha, x) * gradient
        return guided


class Clipped(Wrapper):
    """x0_hat clipped to [-limit, limit], the range of the data; samplers derive eps_hat from the clipped x0_hat."""

    def __init__(self, denoiser: Any, limit: float = 1.0) -> None:
        super().__init__(denoiser)
        if not limit > 0:
            raise ValueError(f"limit = {limit} must be greater than 0: data in [-1, 1] have limit 1.")
        self.limit = limit

    def forward(self, x: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """Shaped like x."""
        x0: Tensor = self.denoiser(x, t, **cond)
        return x0.clamp(-self.limit, self.limit)


class DynamicThreshold(Wrapper):
    """Dynamic thresholding: per sample, m = max(1, quantile of |x0_hat|), x0_hat <- clamp(x0_hat, -m, m) / m.

    Source: Saharia et al. 2022 (Imagen), sec. 2.3. For pixels in [-1, 1]; not for latents, which have no such range.

    Args:
        quantile: of |x0_hat| over a sample's values, in (0, 1].
    """

    def __init__(self, denoiser: Any, quantile: float = 0.995) -> None:
        super().__init__(denoiser)
        if not 0 < quantile <= 1:
            raise ValueError(f"quantile = {quantile} must lie in (0, 1]: 0.995 lets one value in 200 saturate.")
        self.quantile = quantile

    def forward(self, x: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """Shaped like x."""
        x0: Tensor = self.denoiser(x, t, **cond)
        size = x0.detach().flatten(1).abs()
        size = size.to(torch.promote_types(size.dtype, torch.float32))  # quantile knows no half precision
        m = match(torch.quantile(size, self.quantile, dim=1).clamp(min=1), x0)
        return x0.clamp(-m, m) / m
