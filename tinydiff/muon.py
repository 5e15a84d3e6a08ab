"""Muon, the optimiser: the momentum of each convolution made orthogonal before it is added."""

from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = 3.4445, -4.7750, 2.0315
MOMENTUM = 0.95
LEAST = 32  # rows and columns of a matrix worth it: not those of the first and last layers


class Muon(torch.optim.AdamW):
    """Muon for convolutions, AdamW for all other parameters (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    A convolution's weight is the matrix W (out, in * height * width). With its gradient G: B <- mu B + (1 - mu) G and
    W <- W - lr (0.2 sqrt(max(rows, columns)) O + decay W), where O is (1 - mu) G + mu B made `orthogonal`: every
    direction that the gradients agree on is followed equally far, not only the strongest. The factor gives the step
    the root mean square of one of AdamW's, so that both share one lr (Liu et al. 2025, arXiv:2502.16982, sec. 2.2).
    Linear layers stay with AdamW: for the MLP the time that Muon takes is better spent on more steps.

    mu = 0.95. Arguments as for torch.optim.AdamW.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step from the gradients at hand; a closure is not called."""
        held: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None or p.ndim < 3 or min(len(p), p[0].numel()) < LEAST:
                    continue
                state, grad = self.state[p], p.grad
                if "momentum" not in state:
                    state["step"] = torch.zeros(())  # AdamW looks for one when a checkpoint is loaded
                    state["momentum"] = torch.zeros_like(p)
                momentum: Tensor = state["momentum"].lerp_(grad, 1 - MOMENTUM)
                update = orthogonal(grad.lerp(momentum, MOMENTUM).flatten(1))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.reshape(p.shape), alpha=-group["lr"] * 0.2 * max(update.shape) ** 0.5)
                held.append((p, grad))
                p.grad = None  # which makes AdamW leave it alone
        super().step()
        for p, grad in held:
            p.grad = grad


def orthogonal(x: Tensor) -> Tensor:
    """Nearly U V^T of x = U S V^T, (rows, columns): singular values end up about 0.7 to 1.2, the tiniest below.

    Five Newton-Schulz steps X <- a X + b A X + c A^2 X, A = X X^T, taken on the small matrix A alone: X's is P X.
    """
    if len(x) > x.shape[1]:
        return orthogonal(x.T).T
    a, b, c = COEFFICIENTS
    x = x / x.norm().clamp(min=1e-12)
    gram = x @ x.T  # A
    one = torch.eye(len(x), dtype=x.dtype, device=x.device)
    total = one  # P
    for _ in range(5):
        factor = torch.addmm(torch.add(a * one, gram, alpha=b), gram, gram, alpha=c)
        total, gram = factor @ total, factor @ gram @ factor
    return total @ x
