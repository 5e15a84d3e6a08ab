"""Two networks that map (x, t, y) to something shaped like x: `MLP` for points, `UNet` for pictures.

Nothing here knows about diffusion: t is a number about the size of 1000, y a class, and what the output means is the
denoiser's business.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def one_for_each(y: Tensor, x: Tensor) -> Tensor:
    """y, or a sentence where it is no tensor of whole numbers with one for each sample of x."""
    if not isinstance(y, Tensor) or y.shape != x.shape[:1] or y.is_floating_point():
        found = f"{y.dtype} of shape {tuple(y.shape)}" if isinstance(y, Tensor) else repr(y)[:40]
        raise ValueError(
            f"y is {found}, but must be whole numbers of shape ({len(x)},), one for each sample: "
            f"torch.full(({len(x)},), 7) asks for class 7."
        )
    return y


def classes_for(y: Tensor, x: Tensor, classes: int, least: int = -1) -> Tensor:
    """y as int64, or a sentence where it is not one class in least..classes-1 for each sample of x."""
    y = one_for_each(y, x)
    if y.device.type == "cpu" and len(y) and not least <= y.min() <= y.max() < classes:  # a GPU would stall here
        worst = y.min() if y.min() < least else y.max()
        no_class = ", or be -1 for no class" if least < 0 else ""
        raise ValueError(f"y contains {worst}, but must lie in 0..{classes - 1}{no_class}.")
    return y.long()


class TimeAndClass(nn.Module):
    """All that a network is told besides x, as one vector: emb = MLP(sinusoids of t) + row y of a table.

    The table has one row more than there are classes, for "no class". In training mode each label is replaced by it
    with probability `label_dropout`, so that one network learns both for classifier-free guidance
    (Ho & Salimans 2022, alg. 1). The sinusoids are those of Vaswani et al. 2017, sec. 3.5.
    """

    def __init__(self, width: int, classes: int, label_dropout: float) -> None:
        super().__init__()
        if classes < 0 or not 0 <= label_dropout <= 1:
            raise ValueError(
                f"classes = {classes} must be at least 0 and label_dropout = {label_dropout} within [0, 1]."
            )
        self.classes, self.label_dropout = classes, label_dropout
        self.time1, self.time2 = nn.Linear(64, width), nn.Linear(width, width)
        self.table = nn.Embedding(classes + 1, width) if classes else None

    def forward(self, t: Tensor, y: Tensor | None) -> Tensor:
        """(B, width) from t (B,) and y None or (B,) of whole numbers, -1 for "no class"."""
        angle = t[:, None] * torch.exp(torch.arange(32, dtype=t.dtype, device=t.device) * (-math.log(10000) / 32))
        waves = torch.cat([angle.cos(), angle.sin()], 1).to(self.time1.weight.dtype)  # (B, 64)
        emb: Tensor = self.time2(F.silu(self.time1(waves)))  # (B, width)
        if self.table is None:
            if y is not None:
                raise ValueError(
                    "This network was built with classes=0 and cannot use y: leave y out, or build it with classes=10."
                )
            return emb
        y = torch.full(t.shape, -1, device=t.device) if y is None else classes_for(y, t, self.classes)
        if self.training and self.label_dropout:
            # drawn on the CPU, so that one random state is all there is to save
            dropped = torch.rand(len(y)) < self.label_dropout
            y = y.masked_fill(dropped.to(y.device), -1)
        row: Tensor = self.table(y.where(y >= 0, self.classes))
        return emb + row


class MLP(nn.Module):
    """A residual network for points: `net(x, t, y=None)`, x (B, dim), t (B,), y (B,) or None, returns (B, dim).

    It sees x and sin, cos of x, 2x and 4x: with those features edges and thin curves are learnt in a fraction of the
    time (Tancik et al. 2020).

    Args:
        dim: numbers per point.
        hidden: width of every layer.
        layers: residual blocks.
        classes: number of classes y may name; 0 for none.
        label_dropout: probability of forgetting a label while training.
    """

    def __init__(
        self, dim: int = 2, hidden: int = 128, layers: int = 3, classes: int = 0, label_dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.config = {
            "dim": dim,
            "hidden": hidden,
            "layers": layers,
            "classes": classes,
            "label_dropout": label_dropout,
        }
        self.emb = TimeAndClass(hidden, classes, label_dropout)
        self.first = nn.Linear(7 * dim, hidden)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
            for _ in range(layers)
        )
        self.last = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Shaped like x."""
        if x.ndim != 2 or x.shape[1] != self.config["dim"]:
            raise ValueError(f"x has shape {tuple(x.shape)}, but this network takes (B, {self.config['dim']}).")
        emb = self.emb(t, y)
        waves = torch.cat([x, 2 * x, 4 * x], 1)
        h = self.first(torch.cat([x, waves.sin(), waves.cos()], 1))  # (B, 7 dim) -> (B, hidden)
        for block in self.blocks:
            h = h + block(h + emb)
        out: Tensor = self.last(F.silu(h))
        return out.to(x.dtype)


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), the second norm scaled and shifted by emb (Dhariwal & Nichol 2021)."""

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


class UNet(nn.Module):
    """A small U-Net for pictures: `net(x, t, y=None)`, x (B, channels, H, W), t (B,), y (B,) or None, returns like x.

    Space to depth by `patch`, residual blocks at that resolution, the same at half of it and four times the width, and
    back up with the skip added (after Ho et al. 2020, app. B, slimmed for CPUs: most weights where pixels are few).

    Args:
        channels: 1 for grey, 3 for colour.
        width: channels at the finer resolution; multiples of 32 run fastest.
        blocks: residual blocks per stage; there are three stages: down, middle and up.
        patch: pixels per side folded into channels before the first convolution: 1 for 8x8, 2 for 28x28 or 32x32.
        classes: number of classes y may name; 0 for none.
        label_dropout: probability of forgetting a label while training.

    Raises:
        ValueError: H or W is not a multiple of 2 patch, or y is not what `classes` promised.
    """

    def __init__(
        self,
        channels: int = 1,
        width: int = 32,
        blocks: int = 1,
        patch: int = 2,
        classes: int = 0,
        label_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        labels = {"classes": classes, "label_dropout": label_dropout}
        self.config = {"channels": channels, "width": width, "blocks": blocks, "patch": patch, **labels}
        self.channels, self.patch = channels, patch
        wide, pixels = 4 * width, channels * patch**2
        self.emb = TimeAndClass(wide, classes, label_dropout)
        self.stem = nn.Conv2d(pixels, width, 3, padding=1)
        self.down = nn.ModuleList(ResBlock(width, wide) for _ in range(blocks))
        self.shrink = nn.Conv2d(width, wide, 2, stride=2)
        self.middle = nn.ModuleList(ResBlock(wide, wide) for _ in range(2 * blocks))
        self.grow = nn.ConvTranspose2d(wide, width, 2, stride=2)
        self.up = nn.ModuleList(ResBlock(width, wide) for _ in range(blocks))
        self.norm, self.head = nn.GroupNorm(1, width), nn.Conv2d(width, pixels, 3, padding=1)
        nn.init.zeros_(self.head.weight)  # start from "predict 0": the loss begins at the target's variance
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Shaped like x."""
        channels, patch = self.channels, self.patch
        if x.ndim != 4 or x.shape[1] != channels:
            raise ValueError(f"x has shape {tuple(x.shape)}, but this network takes (B, {channels}, H, W).")
        if x.shape[2] % (2 * patch) or x.shape[3] % (2 * patch):
            raise ValueError(
                f"Pictures of {x.shape[2]}x{x.shape[3]} do not fit this U-Net: with patch={patch} both sides must be "
                f"multiples of {2 * patch}; pad the pictures or choose another patch."
            )
        emb = F.silu(self.emb(t, y))
        h = self.stem(F.pixel_unshuffle(x, patch).to(memory_format=torch.channels_last))  # (B, width, H/patch, W/patch)
        for block in self.down:
            h = block(h, emb)
        skip, h = h, self.shrink(h)  # (B, 4 width, H/2patch, W/2patch)
        for block in self.middle:
            h = block(h, emb)
        h = skip + self.grow(h)
        for block in self.up:
            h = block(h, emb)
        return F.pixel_shuffle(self.head(F.silu(self.norm(h))), patch).to(x.dtype)
