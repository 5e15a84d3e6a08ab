"""Denoisers that know what was observed of the data, through a linear operator: observed = A x + noise.

A is `Mask` (inpainting), `Downsample` (super-resolution) or any linear function. `Projected` and `Conditioned` wrap any
denoiser for any sampler. Which answers are exact and which approximate is said in each docstring, and measured in
tests/test_restore.py.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tinydiff.guide import Wrapper
from tinydiff.schedule import match


class Mask(nn.Module):
    """The operator that keeps the known values of x and blanks the others, A x = mask x; A^+ = A.

    Args:
        mask: True or 1 where known, False or 0 where not; broadcasts against x (B, ...), such as (H, W).

    Raises:
        ValueError: the mask holds other values; when called, its shape does not fit x.
    """

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        if not ((mask == 0) | (mask == 1)).all():
            raise ValueError("The mask must hold only 1 (known) and 0 (unknown): threshold it, mask > 0.5.")
        self.mask: Tensor
        self.register_buffer("mask", mask.bool(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, ...) where known, 0 elsewhere."""
        return self.merge(x, torch.zeros_like(x))

    def pinv(self, observed: Tensor) -> Tensor:
        """The same."""
        return self.merge(observed, torch.zeros_like(observed))

    def merge(self, known: Tensor, x: Tensor) -> Tensor:
        """`known` where known, x elsewhere, both (B, ...)."""
        mask: Tensor = self.mask
        shape = tuple(mask.shape)
        sides = zip(reversed(shape), reversed(x.shape), strict=False)
        if mask.ndim > x.ndim or any(m not in (1, n) for m, n in sides):
            raise ValueError(
                f"The mask has shape {shape}, but x has {tuple(x.shape)}: leave out sides on the left or make them 1."
            )
        return torch.where(mask, known, x)


class Downsample(nn.Module):
    """The operator that averages blocks of factor x factor pixels; A^+ repeats each pixel over its block.

    Args:
        factor: 2 halves the sides of a picture, 4 quarters them.

    Raises:
        ValueError: factor is no whole number of at least 1; when called, the sides of x are no multiples of it.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        if not (isinstance(factor, int) and factor >= 1):
            raise ValueError(f"factor = {factor!r} must be a whole number of at least 1, such as 2 or 4.")
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H/factor, W/factor) from (B, C, H, W)."""
        if x.ndim != 4 or x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, but must be (B, C, H, W) with sides that are multiples of "
                f"{self.factor}: crop or pad it."
            )
        return nn.functional.avg_pool2d(x, self.factor)

    def pinv(self, observed: Tensor) -> Tensor:
        """(B, C, H, W) from (B, C, H/factor, W/factor)."""
        return observed.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)


class Projected(Wrapper):
    """The denoiser's answer made to agree with the observation, x0_hat + A^+ (observed - A x0_hat) (Wang et al. 2023).

    A sampler that ends with x0_hat then ends with A x = observed, exactly. The rest is exact if it is independent of
    A x; otherwise it is an approximation, as x0_hat knows of the observation only what of it the noisy x_t shows. One
    network call, no gradient, no noise in the observation: DDNM, cf. their alg. 1. With a consistency model and the
    sampler `consistency` this is zero-shot editing, inpainting and super-resolution alike (Song et al. 2023, alg. 4).

        sample(Projected(denoiser, Downsample(4), coarse), (64, 1, 28, 28), sampler=ddpm, y=labels)
        sample(Projected(student, Mask(mask), picture), (64, 1, 28, 28), steps=4, sampler=consistency)

    Args:
        denoiser: any denoiser, or a consistency model.
        A: a linear operator with a method `pinv`, such as `Mask` or `Downsample`.
        observed: shaped like A(x), or with B = 1 to draw many x for one observation. Unknown values do not matter.
    """

    def __init__(self, denoiser: Any, A: Any, observed: Tensor) -> None:
        super().__init__(denoiser)
        self.A = A
        self.observed: Tensor
        self.register_buffer("observed", observed, persistent=False)

    def forward(self, x: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """x0_hat, shaped like x (B, ...).

        Raises:
            ValueError: `observed` is not shaped like A(x).
        """
        x0: Tensor = self.denoiser(x, t, **cond)
        corrected: Tensor = x0 + self.A.pinv(_residual(self.observed, self.A(x0)))
        return corrected


class Conditioned(Wrapper):
    """x0_hat given also observed = A x + std n: x0_hat + C A^T (A C A^T + std^2 I)^-1 (observed - A x0_hat).

    C = Cov[x0 | x_t] = (sigma_t^2/alpha_t) d x0_hat/d x_t, as the denoiser itself implies; its products with vectors
    are backward passes, and the linear system is solved iteratively: MMPS, Rozet et al. 2024. Exact for
    Gaussian data of any covariance, and so are the samplers that use it, up to their steps; an approximation otherwise,
    since given x_t it takes x0 for Gaussian: networks come close to the observation, not onto it. Costs
    one network call and iterations + 1 backward passes.

    Args:
        denoiser: differentiable in x.
        A: any linear function of x (B, ...), such as `Mask`, `Downsample` or a blur.
        observed: as for `Projected`.
        std: of the noise in the observation, n ~ N(0, I); in units of x.
        iterations: of the linear solver; as many as A(x) has values solve exactly, few do for networks.

    Raises:
        ValueError: std is negative or iterations is not positive.
    """

    def __init__(
        self, denoiser: Any, A: Callable[[Tensor], Tensor], observed: Tensor, std: float = 0.0, iterations: int = 3
    ) -> None:
        super().__init__(denoiser)
        if not std >= 0:
            raise ValueError(f"std = {std} must not be negative: 0 is an observation without noise.")
        if iterations < 1:
            raise ValueError(f"iterations = {iterations} must be at least 1: with none the observation does nothing.")
        self.A = A
        self.observed: Tensor
        self.register_buffer("observed", observed, persistent=False)
        self.std = std
        self.iterations = iterations

    def forward(self, x: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        """x0_hat, shaped like x (B, ...), without gradient.

        Raises:
            ValueError: `observed` is not shaped like A(x).
        """
        with torch.enable_grad():  # samplers run without gradients
            leaf = x.detach().requires_grad_()
            x0 = self.denoiser(leaf, t, **cond)
            seen = self.A(x0)
        alpha, sigma = self.schedule(t)
        scale = match(sigma**2 / alpha, x)

        def pull(v: Tensor) -> Tensor:
            """C A^T v."""
            (gradient,) = torch.autograd.grad(seen, leaf, v, retain_graph=True)
            return scale * gradient

        with torch.no_grad():
            residual = _residual(self.observed, seen)
            if hasattr(self.A, "pinv"):  # what A cannot answer with, as where a mask blanks, observes nothing
                residual = self.A(self.A.pinv(residual))
            v = _solve(lambda v: self.A(pull(v)) + self.std**2 * v, residual, self.iterations)
            corrected: Tensor = x0 + pull(v)
        return corrected


def _residual(observed: Tensor, seen: Tensor) -> Tensor:
    """observed - A x0_hat, after a check."""
    if observed.shape[1:] != seen.shape[1:] or len(observed) not in (1, len(seen)):
        raise ValueError(
            f"observed has shape {tuple(observed.shape)}, but A(x) has {tuple(seen.shape)}: they must agree, or B be 1."
        )
    return observed.to(seen.dtype) - seen


def _solve(M: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """v with M v = b by generalised conjugate residuals (Eisenstat et al. 1983): each sample of b (B, ...) by itself.

    v in span(b, M b, M^2 b, ...) with the least |b - M v|, which never grows. Conjugate gradients need M symmetric and
    positive; a network's Jacobian is neither, and with them some digits ran away.
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return match((a * b).flatten(1).sum(1), a)

    v, r, past = torch.zeros_like(b), b, list[tuple[Tensor, Tensor]]()
    for _ in range(iterations):
        p, Mp = r, M(r)
        rounding = torch.finfo(b.dtype).eps * dot(Mp, Mp)
        for q, Mq in past:  # the Mq are of length 1, at right angles
            share = dot(Mp, Mq)
            p, Mp = p - share * q, Mp - share * Mq
        size = dot(Mp, Mp)
        scale = torch.where(size > rounding, size.rsqrt(), 0)  # else there is nothing new: solved
        p, Mp = scale * p, scale * Mp
        past.append((p, Mp))
        length = dot(r, Mp)
        v, r = v + length * p, r - length * Mp
    return v
