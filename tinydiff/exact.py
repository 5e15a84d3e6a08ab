"""Worlds with a known answer: closed-form denoisers, densities and flows to test samplers and networks against.

All are computed in float64 and returned in the dtype of x.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tinydiff.nets import classes_for
from tinydiff.schedule import Schedule, float64


class GaussianMixture:
    """p(x) = sum_k w_k N(x; m_k, s_k^2 I): after the forward process it is a mixture still, so all is closed form.

    p_t(x) = sum_k w_k N(x; alpha_t m_k, (alpha_t^2 s_k^2 + sigma_t^2) I).

    Args:
        means: (K, d); samples have its dtype.
        stds: (K,) or one number for all; standard deviations > 0.
        weights: (K,), positive, normalised to sum 1; equal when absent.

    Raises:
        ValueError: the shapes disagree, or a std or weight is not positive.
    """

    def __init__(
        self,
        means: Tensor | Sequence[Sequence[float]],
        stds: Tensor | Sequence[float] | float,
        weights: Tensor | Sequence[float] | None = None,
    ) -> None:
        self.means = torch.as_tensor(means)
        if not self.means.is_floating_point():
            self.means = self.means.to(torch.get_default_dtype())
        if self.means.ndim != 2:
            raise ValueError(
                f"means has shape {tuple(self.means.shape)}, but must be (K, d), K centres in d dimensions."
            )
        k = len(self.means)
        self.stds = torch.as_tensor(stds, dtype=torch.float64)
        if self.stds.shape not in ((), (k,)):
            raise ValueError(
                f"stds has shape {tuple(self.stds.shape)}, but there are {k} means: it must be () or ({k},)."
            )
        self.stds = self.stds.expand(k)
        weights = torch.ones(k) if weights is None else weights
        self.weights = torch.as_tensor(weights, dtype=torch.float64)
        if self.weights.shape != (k,):
            raise ValueError(
                f"weights has shape {tuple(self.weights.shape)}, but there are {k} means: it must be ({k},)."
            )
        if not (self.stds > 0).all() or not (self.weights > 0).all():
            raise ValueError("stds and weights must all be greater than 0.")
        self.weights = self.weights / self.weights.sum()

    def sample(self, n: int, generator: torch.Generator | None = None, y: Tensor | None = None) -> Tensor:
        """n draws from p(x), or from the components y (n,) where given: (n, d)."""
        if y is None:
            y = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[y] + self.stds[y, None].to(self.means.dtype) * noise

    def log_prob(self, x: Tensor, schedule: Schedule | None = None, t: Tensor | float = 0.0) -> Tensor:
        """log p_t(x) in nats for x (B, d): (B,). Without a schedule, of the data themselves (t = 0)."""
        return self._log_joint(x, schedule, t).logsumexp(1).to(x)

    def denoiser(self, schedule: Schedule) -> "MixtureDenoiser":
        """The exact denoiser E[x0 | x_t], also given a component: `denoiser(x, t, y=None)`."""
        return MixtureDenoiser(self, schedule)

    def classifier(self, schedule: Schedule) -> Callable[[Tensor, Tensor | float, Tensor], Tensor]:
        """log_prob(x_t, t, y) = log p(y | x_t) for components y (B,): (B,), differentiable in x_t."""

        def log_prob(x: Tensor, t: Tensor | float, y: Tensor) -> Tensor:
            log_joint = self._log_joint(x, schedule, t)
            known = classes_for(y, x, len(self.means), least=0).to(log_joint.device)
            return log_joint.log_softmax(1).gather(1, known[:, None])[:, 0].to(x)

        return log_prob

    def _log_joint(self, x: Tensor, schedule: Schedule | None, t: Tensor | float) -> Tensor:
        """log w_k + log N(x; alpha m_k, (alpha^2 s_k^2 + sigma^2) I): (B, K) float64."""
        residual, variance, _ = self._components(x, schedule, t)
        d = self.means.shape[1]
        log_normal = -(residual.square().sum(2) / variance + d * (2 * torch.pi * variance).log()) / 2
        return log_normal + self.weights.to(log_normal.device).log()

    def _components(self, x: Tensor, schedule: Schedule | None, t: Tensor | float) -> tuple[Tensor, ...]:
        """Per component k: x - alpha m_k (B, K, d), its variance and x0's gain alpha s_k^2 / variance (B or 1, K)."""
        if x.ndim != 2 or x.shape[1] != self.means.shape[1]:
            raise ValueError(f"x has shape {tuple(x.shape)}, but this mixture lives in (B, {self.means.shape[1]}).")
        x64 = float64(x)
        means, stds = self.means.to(x64), self.stds.to(x64)
        alpha, sigma = (torch.ones(()), torch.zeros(())) if schedule is None else schedule(t)
        alpha, sigma = (c.to(x64).reshape(-1, 1) for c in (alpha, sigma))
        variance = alpha**2 * stds**2 + sigma**2
        return x64[:, None] - alpha[..., None] * means, variance, alpha * stds**2 / variance


class MixtureDenoiser:
    """E[x0 | x_t] = sum_k p(k | x_t) [m_k + alpha s_k^2 / (alpha^2 s_k^2 + sigma^2) (x_t - alpha m_k)].

    Called as `denoiser(x, t, y=None)` with x (B, d), t () or (B,), and y (B,) components, -1 or None for "no class".
    """

    def __init__(self, mixture: GaussianMixture, schedule: Schedule) -> None:
        self.mixture = mixture
        self.schedule = schedule

    def __call__(self, x: Tensor, t: Tensor | float, y: Tensor | None = None) -> Tensor:
        residual, _, gain = self.mixture._components(x, self.schedule, t)
        means = self.mixture.means.to(residual) + gain[..., None] * residual  # (B, K, d), of each component's posterior
        log_joint = self.mixture._log_joint(x, self.schedule, t)
        if y is not None:
            y = classes_for(y, x, log_joint.shape[1]).to(log_joint.device)[:, None]
            others = torch.arange(log_joint.shape[1], device=log_joint.device) != y
            log_joint = log_joint.masked_fill(others & (y >= 0), -torch.inf)
        return torch.einsum("bk,bkd->bd", log_joint.softmax(1), means).to(x)


class EmpiricalDenoiser:
    """The exact denoiser of a finite data set: E[x0 | x_t] = sum_i softmax_i(-|x_t - alpha x_i|^2 / 2 sigma^2) x_i.

    What a network that drives its training loss to the minimum would compute; sampling with it returns the data.

    Args:
        data: (N, ...).
        schedule: relates t to (alpha_t, sigma_t).
    """

    def __init__(self, data: Tensor, schedule: Schedule) -> None:
        self.data = data
        self.schedule = schedule

    def __call__(self, x: Tensor, t: Tensor | float) -> Tensor:
        x64 = float64(x).flatten(1)
        data = self.data.to(x64).flatten(1)
        alpha, sigma = (c.to(x64.device).reshape(-1, 1) for c in self.schedule(t))
        distance = x64.square().sum(1, keepdim=True) - 2 * alpha * x64 @ data.T + alpha**2 * data.square().sum(1)
        log_weights = -distance / (2 * sigma**2).clamp(min=1e-30)  # at t = 0 the nearest point takes all
        return (log_weights.softmax(1) @ data).reshape(x.shape).to(x)


def gaussian_flow(
    schedule: Schedule, mean: Tensor | float, std: Tensor | float, x: Tensor, t: Tensor | float, s: Tensor | float
) -> Tensor:
    """The probability-flow ODE of N(mean, std^2) data, solved exactly from t to s (ODE: Song et al. 2021b, eq. 13).

    x_s = alpha_s m + sqrt((alpha_s^2 std^2 + sigma_s^2) / (alpha_t^2 std^2 + sigma_t^2)) (x_t - alpha_t m).

    Args:
        mean, std: broadcast against x (B, ...).
        t, s: times in [0, T], shape () or (B,); s may lie above t.

    Returns:
        x_s, shaped like x.
    """
    x64 = float64(x)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t, like=x64), schedule(s, like=x64)
    scale = ((alpha_s**2 * std**2 + sigma_s**2) / (alpha_t**2 * std**2 + sigma_t**2)).sqrt()
    return (alpha_s * mean + scale * (x64 - alpha_t * mean)).to(x)
