"""How fast do small U-Nets train, and how good are they after the same time? tinydiff's against public ones, on MNIST.

    python benchmarks/train_speed.py                     # the table of speeds, about three minutes
    python benchmarks/train_speed.py --minutes 3         # then train each for three minutes and measure its samples

Needs MNIST (see datasets/README.md), diffusers, and for the third network `pip install azula`. Speeds are measured in
turns, several rounds each, and the median is printed: on a shared machine look at the ratios, not at the numbers.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import tinydiff as td


class Diffusers(nn.Module):
    """diffusers' UNet2DModel of 1.1 M parameters, unconditional, at 28x28."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        self.net = UNet2DModel(
            sample_size=28,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(32, 64, 64),
            down_block_types=("DownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "UpBlock2D"),
            norm_num_groups=8,
            add_attention=False,
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x, t, return_dict=False)[0]


class Azula(nn.Module):
    """azula's UNet with residual blocks, 28x28, its time embedding fed with ours."""

    def __init__(self) -> None:
        super().__init__()
        from azula.nn.unet import UNet

        self.embed = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 128))
        self.net = UNet(1, 1, mod_features=128, hid_channels=(32, 64, 128), hid_blocks=(1, 1, 1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angle = t[:, None] * torch.exp(torch.arange(32) * (-9.21 / 32))
        return self.net(x, self.embed(torch.cat([angle.cos(), angle.sin()], 1)))


NETS: dict[str, Callable[[], nn.Module]] = {
    "tinydiff UNet": lambda: td.UNet(),
    "diffusers UNet2DModel": Diffusers,
    "azula UNet": Azula,
}


def denoiser_of(name: str) -> td.Denoiser:
    torch.manual_seed(0)
    return td.VDenoiser(NETS[name](), td.cosine())


def training_rate(denoiser: td.Denoiser, x: Tensor, dtype: torch.dtype, seconds: float, batch: int) -> float:
    """Images a second through td.train, after three steps of warming up."""
    batches = td.batches(x, size=batch, generator=torch.Generator().manual_seed(0))
    states = td.train(denoiser, batches, steps=10**6, lr=1e-4, dtype=dtype)
    for _ in range(3):
        next(states)
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(states)
        steps += 1
    return batch * steps / (time.perf_counter() - start)


@torch.no_grad()
def forward_rate(denoiser: td.Denoiser, x: Tensor, dtype: torch.dtype, seconds: float, batch: int) -> float:
    """Images a second through the denoiser."""
    x, t = x[:batch], torch.full((batch,), 500.0)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        denoiser(x, t)
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            denoiser(x, t)
            steps += 1
    return batch * steps / (time.perf_counter() - start)


def speeds(x: Tensor, rounds: int, batch: int) -> None:
    fast = td.fast_dtype(x)
    dtypes = dict.fromkeys((torch.float32, fast))
    rates: dict[tuple[str, str, torch.dtype], list[float]] = {}
    for _ in range(rounds):
        for name in NETS:
            denoiser = denoiser_of(name)
            for dtype in dtypes:
                for kind, measure in (("forward", forward_rate), ("training", training_rate)):
                    rate = measure(denoiser, x, dtype, 3.0, batch)
                    rates.setdefault((name, kind, dtype), []).append(rate)
    columns = [(kind, dtype) for dtype in dtypes for kind in ("forward", "training")]
    print(f"images/s, batch {batch}, median of {rounds} rounds, {torch.get_num_threads()} threads")
    print(f"{'':22} {'params':>8}", *(f"{k + ' ' + str(d)[6:]:>18}" for k, d in columns))
    for name in NETS:
        count = sum(p.numel() for p in denoiser_of(name).parameters())
        print(f"{name:22} {count / 1e6:7.2f}M", *(f"{statistics.median(rates[name, k, d]):18.0f}" for k, d in columns))
    ours = {d: statistics.median(rates["tinydiff UNet", "training", d]) for d in dtypes}
    for name in list(NETS)[1:]:
        ratios = [f"{ours[d] / statistics.median(rates[name, 'training', d]):.1f}x in {str(d)[6:]}" for d in dtypes]
        print(f"training, tinydiff against {name}: {', '.join(ratios)}")


def quality(x: Tensor, minutes: float, batch: int, n: int) -> None:
    from tinydiff.evaluate import evaluate

    print(f"\nafter {minutes:g} minutes each, {n} samples of 20 DPM-Solver++ steps, unconditional")
    for name in NETS:
        denoiser, generator = denoiser_of(name), torch.Generator().manual_seed(0)
        ema = td.EMA(denoiser)
        batches = td.batches(x, size=batch, generator=generator)
        for p in td.train(denoiser, batches, ema=ema, seconds=60 * minutes, generator=generator):
            steps = p.step
        print(f"{name}: {steps} steps\n{evaluate(ema.denoiser, n=n, progress=False)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--minutes", type=float, default=0, help="train each this long and measure its samples")
    parser.add_argument("--n", type=int, default=2000, help="samples to measure")
    args = parser.parse_args()
    try:
        import azula  # noqa: F401
    except ModuleNotFoundError:
        del NETS["azula UNet"]
        print("azula is not installed, so its U-Net is left out: pip install azula")
    x, _ = td.mnist()
    speeds(x, args.rounds, args.batch)
    if args.minutes:
        quality(x, args.minutes, args.batch, args.n)


if __name__ == "__main__":
    main()
