"""How fast do small U-Nets train, and how good are they after the same time? tinydiff's against public ones, on MNIST.

    python benchmarks/train_speed.py                     # the table of speeds, about four minutes
    python benchmarks/train_speed.py --minutes 3         # then train each for three minutes and measure its samples
    python benchmarks/train_speed.py --device cuda --compile --batch 1024

Needs MNIST (see datasets/README.md), diffusers, and for one network `pip install azula einops`. Speeds are measured in
turns, several rounds each, and the median is printed: on a shared machine look at the ratios, not at the numbers.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import tinydiff as td


class Diffusers(nn.Module):
    """diffusers' UNet2DModel, unconditional, at 28x28: with attention at 7x7, as is its habit, 1.11 M parameters."""

    def __init__(self, attention: bool = True) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        attn = "Attn" if attention else ""
        self.net = UNet2DModel(
            sample_size=28,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(32, 64, 64),
            down_block_types=("DownBlock2D", "DownBlock2D", f"{attn}DownBlock2D"),
            up_block_types=(f"{attn}UpBlock2D", "UpBlock2D", "UpBlock2D"),
            norm_num_groups=8,
            add_attention=attention,
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
        angle = t[:, None] * torch.exp(torch.arange(32, device=t.device) * (-9.21 / 32))
        return self.net(x, self.embed(torch.cat([angle.cos(), angle.sin()], 1)))


NETS: dict[str, Callable[[], nn.Module]] = {
    "tinydiff UNet": td.UNet,
    "diffusers UNet2DModel": Diffusers,
    " - without attention": functools.partial(Diffusers, attention=False),
    "azula UNet": Azula,
}


def denoiser_of(name: str, x: Tensor) -> td.Denoiser:
    torch.manual_seed(0)
    return td.VDenoiser(NETS[name](), td.cosine()).to(x.device)


def per_second(do: Callable[[], object], images: int, seconds: float) -> float:
    """Images a second, after three calls of warming up; a GPU is waited for."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for _ in range(3):
        do()
    wait()
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        do()
        calls += 1
    wait()
    return images * calls / (time.perf_counter() - start)


def training_rate(denoiser: td.Denoiser, x: Tensor, dtype: torch.dtype, seconds: float, batch: int) -> float:
    """Images a second through td.train."""
    batches = td.batches(x, size=batch, generator=torch.Generator().manual_seed(0))
    states = td.train(denoiser, batches, steps=10**6, lr=1e-4, dtype=dtype)
    return per_second(lambda: next(states), batch, seconds)


@torch.no_grad()
def forward_rate(denoiser: td.Denoiser, x: Tensor, dtype: torch.dtype, seconds: float, batch: int) -> float:
    """Images a second through the denoiser: a sampler of n steps draws 1/n of it."""
    x, t = x[:batch], torch.full((batch,), 500.0, device=x.device)
    with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
        return per_second(lambda: denoiser(x, t), batch, seconds)


def speeds(x: Tensor, rounds: int, batch: int, compile: bool) -> None:
    dtypes = dict.fromkeys((torch.float32, td.fast_dtype(x)))
    measures = {"forward": forward_rate, "training": training_rate}
    columns = [
        (kind, dtype, how) for dtype in dtypes for kind in measures for how in ["eager", "compiled"][: 1 + compile]
    ]
    rates: dict[tuple[str, str, torch.dtype, str], list[float]] = {}
    for _ in range(rounds):
        for name in NETS:
            for kind, dtype, how in columns:
                denoiser = denoiser_of(name, x)
                if how == "compiled":
                    denoiser.net.compile()
                rates.setdefault((name, kind, dtype, how), []).append(measures[kind](denoiser, x, dtype, 3.0, batch))
    middle = {key: statistics.median(values) for key, values in rates.items()}
    device = f"{torch.get_num_threads()} threads" if x.device.type == "cpu" else torch.cuda.get_device_name()
    print(f"images/s, batch {batch}, median of {rounds} rounds, {device}")
    titles = [f"{kind} {str(dtype)[6:]}{' compiled' * (how == 'compiled')}" for kind, dtype, how in columns]
    print(f"{'':22} {'params':>8}", *(f"{title:>{max(18, len(title))}}" for title in titles))
    for name in NETS:
        count = sum(p.numel() for p in denoiser_of(name, x).parameters())
        cells = (f"{middle[name, *key]:{max(18, len(title))}.0f}" for key, title in zip(columns, titles, strict=True))
        print(f"{name:22} {count / 1e6:7.2f}M", *cells)
    for name in list(NETS)[1:]:
        ratios = [
            f"{middle['tinydiff UNet', *key] / middle[name, *key]:.1f}x ({title.removeprefix('training ')})"
            for key, title in zip(columns, titles, strict=True)
            if key[0] == "training"
        ]
        print(f"training, tinydiff against {name.strip(' -')}: {', '.join(ratios)}")


def quality(x: Tensor, minutes: float, batch: int, n: int) -> None:
    """Train each for the same time and measure its samples.

    On a CPU the time is that of the processor, which other programs distort less than the clock on the wall.
    """
    from tinydiff.evaluate import evaluate

    threads = torch.get_num_threads()
    clock = time.perf_counter if x.device.type == "cuda" else lambda: time.process_time() / threads
    print(f"\nafter {minutes:g} minutes each, {n} samples of 20 DPM-Solver++ steps, unconditional")
    for name in NETS:
        denoiser, generator = denoiser_of(name, x), torch.Generator().manual_seed(0)
        denoiser.info = {"data": "mnist", "shape": [1, 28, 28], "classes": 0}
        ema = td.EMA(denoiser)
        batches = td.batches(x, size=batch, generator=generator)
        for p in td.train(denoiser, batches, ema=ema, seconds=60 * minutes, lr=3e-3, generator=generator, clock=clock):
            steps = p.step
        print(f"{name}: {steps} steps\n{evaluate(ema.denoiser, n, progress=False)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of speeds; 0 for none")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--minutes", type=float, default=0, help="train each this long and measure its samples")
    parser.add_argument("--n", type=int, default=2000, help="samples to measure")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile, too")
    args = parser.parse_args()
    try:
        import azula  # noqa: F401
    except ModuleNotFoundError:
        del NETS["azula UNet"]
        print("azula is not installed, so its U-Net is left out: pip install azula")
    x = td.mnist()[0].to(args.device)
    if args.rounds:
        speeds(x, args.rounds, args.batch, args.compile)
    if args.minutes:
        quality(x, args.minutes, args.batch, args.n)


if __name__ == "__main__":
    main()
