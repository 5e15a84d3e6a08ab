"""A small classifier of 28x28 digits, clean or noisy: the eye behind the metrics, and a guide for samplers.

Its blocks are its own, not nets.py's: a measuring instrument must not change when the networks it measures do.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinydiff.diffuse import q_sample
from tinydiff.schedule import Schedule, cosine
from tinydiff.train import Progress, batches, train


class Block(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), the second norm scaled and shifted by what is known of t."""

    def __init__(self, width: int, emb_width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(1, width), nn.GroupNorm(1, width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.scale_shift = nn.Linear(emb_width, 2 * width)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (B, width, H, W), emb (B, emb_width)."""
        scale, shift = self.scale_shift(emb)[:, :, None, None].chunk(2, 1)
        h: Tensor = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return x + h


class Classifier(nn.Module):
    """p(y | x_t) of a digit seen through noise of level t, one network for all t; t = 0 is a clean digit.

    No layer looks at other pictures of the batch (group norms, no batch norms) or behaves otherwise in training, so
    that a picture has one answer. `info` is kept in the file: how the weights were made.

    Args:
        width: channels at 14x14; twice as many at 7x7, and as many features.
        classes: number of classes.
        schedule: of the noise that t counts; `cosine()` by default.
    """

    def __init__(self, width: int = 32, classes: int = 10, schedule: Schedule | None = None) -> None:
        super().__init__()
        self.config = {"width": width, "classes": classes}
        self.schedule = cosine() if schedule is None else schedule
        self.info: dict[str, object] = {}
        wide = 2 * width
        self.time = nn.Linear(64, wide)
        self.stem = nn.Conv2d(4, width, 3, padding=1)
        self.fine = Block(width, wide)
        self.shrink = nn.Conv2d(width, wide, 2, stride=2)
        self.coarse = Block(wide, wide)
        self.norm = nn.GroupNorm(1, wide)
        self.pool = nn.Parameter(torch.full((wide, 7, 7), 1 / 49))  # a mean over positions, its weights learnt
        self.head = nn.Linear(wide, classes)

    def features(self, x: Tensor, t: Tensor | float = 0.0) -> Tensor:
        """What the last layer sees: (B, 2 width), from x (B, 1, 28, 28) in [-1, 1] at time t, () or (B,).

        Raises:
            ValueError: x has another shape.
        """
        if x.shape[1:] != (1, 28, 28):
            raise ValueError(
                f"x has shape {tuple(x.shape)}, but this classifier sees (B, 1, 28, 28): grey 28x28 digits."
            )
        t = torch.as_tensor(t).to(x).expand(len(x)) * (1000 / self.schedule.T)
        angle = t[:, None] * torch.exp(torch.arange(32, dtype=x.dtype, device=x.device) * (-math.log(10000) / 32))
        emb = F.silu(self.time(torch.cat([angle.cos(), angle.sin()], 1)))
        h = self.stem(F.pixel_unshuffle(x, 2).to(memory_format=torch.channels_last))  # (B, width, 14, 14)
        h = self.fine(h, emb)
        h = self.coarse(self.shrink(h), emb)  # (B, 2 width, 7, 7)
        return (F.silu(self.norm(h)) * self.pool).sum((2, 3))

    def forward(self, x: Tensor, t: Tensor | float = 0.0) -> Tensor:
        """Logits (B, classes)."""
        out: Tensor = self.head(self.features(x, t))
        return out

    def log_prob(self, x_t: Tensor, t: Tensor | float, y: Tensor) -> Tensor:
        """log p(y | x_t), (B,), differentiable in x_t: for `ClassifierGuided(denoiser, classifier.log_prob, scale)`.

        The denoiser must count t on the same schedule.

        Args:
            x_t: (B, 1, 28, 28), as from q_sample(classifier.schedule, x0, t).
            t: time in [0, T], () or (B,).
            y: (B,) of whole numbers.
        """
        log_p: Tensor = self(x_t, t).log_softmax(1)
        return log_p.gather(1, y[:, None])[:, 0]


def augment(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Each picture turned (std 6 degrees), stretched (std 6 % a side), slanted and shifted (std 1 pixel) at random."""
    noise = torch.randn(len(x), 6, generator=generator).to(x)
    turn, stretch_x, stretch_y, slant = (noise[:, :4] * torch.tensor([0.1, 0.06, 0.06, 0.1]).to(x)).unbind(1)
    shift = noise[:, 4:] * (2 / x.shape[-1])  # the picture is 2 wide
    rows = [1 + stretch_x, slant - turn, shift[:, 0], turn, 1 + stretch_y, shift[:, 1]]
    grid = F.affine_grid(torch.stack(rows, 1).reshape(-1, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x + 1, grid, align_corners=False) - 1  # outside the picture is 0, and paper is -1


def classifier_loss(
    classifier: Classifier, x0: Tensor, y: Tensor, *, generator: torch.Generator | None = None
) -> Tensor:
    """Cross-entropy of the augmented batch, a scalar: one half clean (t = 0), the other noisy at t ~ U[0, T]."""
    x0 = augment(x0, generator)
    t = torch.rand(len(x0), generator=generator).to(x0.device) * classifier.schedule.T
    t[: len(t) // 2] = 0
    return F.cross_entropy(classifier(q_sample(classifier.schedule, x0, t, generator=generator), t), y)


def train_classifier(
    classifier: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    steps: int = 4000,
    batch: int = 256,
    lr: float = 4e-3,
    generator: torch.Generator | None = None,
) -> Iterator[Progress]:
    """Train on x (N, 1, 28, 28) and y (N,), yielding after every step as `train` does."""
    source = batches(x, y, size=batch, generator=generator)
    yield from train(classifier, source, steps=steps, lr=lr, loss=classifier_loss, generator=generator)  # type: ignore[arg-type]
