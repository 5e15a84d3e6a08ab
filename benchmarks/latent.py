"""Latent against pixel: seconds and quality of the shipped models of MNIST, and what the latents alone are worth.

    OMP_NUM_THREADS=1 python benchmarks/latent.py --n 10000   # a quarter of an hour on one core; needs MNIST

Prints a table and draws twenty samples of each row in out/latent.png. Seconds are the process's, so that other programs
count less. The plain VAE is trained here, for --minutes of them: the same network, the KL at weight 1.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

import tinydiff as td
from tinydiff import plot
from tinydiff.evaluate import load_reference, measure
from tinydiff.pretrained import pictures

OUT = Path(__file__).resolve().parent / "out"
SDE = partial(td.dpm_solver_pp, eta=1.0)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def diffused(name: str, sampler: Callable[..., object], steps: int, y: Tensor) -> Tensor:
    """Digits of the classes y from a shipped denoiser, in pixels."""
    denoiser, generator = td.load_pretrained(name), seeded(0)
    options = {"steps": steps, "sampler": sampler, "generator": generator}
    drawn = [td.sample(denoiser, (len(part), *denoiser.info["shape"]), y=part, **options) for part in y.split(500)]
    return pictures(denoiser, torch.cat(drawn))


@torch.no_grad()
def invented(autoencoder: td.Autoencoder, n: int) -> Tensor:
    """n pictures decoded from z ~ N(0, I), as a plain VAE is sampled."""
    generator, shape = seeded(0), (3, 8, 8)
    parts = [torch.randn(len(part), *shape, generator=generator) for part in torch.arange(n).split(500)]
    return torch.cat([autoencoder.decode(z / autoencoder.scale) for z in parts])


@torch.no_grad()
def returned(autoencoder: td.Autoencoder, x: Tensor) -> Tensor:
    """x encoded and decoded."""
    return torch.cat([autoencoder.decode(autoencoder.encode(part)) for part in x.split(500)])


def plain_vae(minutes: float) -> td.Autoencoder:
    """The shipped autoencoder's network with the KL at weight 1, trained for so many minutes of this process."""
    x, _ = td.mnist()
    torch.manual_seed(0)
    vae, generator = td.Autoencoder(), seeded(0)
    ema, loss = td.EMA(vae), partial(td.autoencoder_loss, kl=1.0)
    source, budget = td.batches(x, size=128, generator=generator), 60 * minutes
    options = {"lr": 3e-3, "loss": loss, "generator": generator, "clock": time.process_time}
    with tqdm(desc="plain VAE", total=round(budget), unit="s") as bar:
        for p in td.train(vae, source, ema=ema, seconds=budget, **options):
            bar.update(min(round(p.seconds), bar.total) - bar.n)
    return ema.denoiser


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=2000, help="samples of each row (default: 2000)")
    parser.add_argument("--minutes", type=float, default=3.0, help="training of the plain VAE (default: 3)")
    args = parser.parse_args()
    (x, y_test), autoencoder, vae = td.mnist("test"), td.load_autoencoder(), plain_vae(args.minutes)
    n, order = args.n, torch.randperm(len(x), generator=seeded(0))[: args.n]
    x, y_test, y = x[order], y_test[order], torch.arange(n) % 10
    rows: list[tuple[str, str, Callable[[], Tensor], Tensor | None]] = [
        ("test digits", "", lambda: x, y_test),
        ("test digits, encoded and decoded", "a", partial(returned, autoencoder, x), y_test),
        ("the same by the plain VAE", "a", partial(returned, vae, x), y_test),
        ("plain VAE, z from N(0, I)", "d", partial(invented, vae, n), None),
        ("shipped autoencoder, z from N(0, I)", "d", partial(invented, autoencoder, n), None),
        ("pixels, DPM-Solver++(2M) 20", "p", partial(diffused, "mnist", td.dpm_solver_pp, 20, y), y),
        ("pixels, SDE 20", "p", partial(diffused, "mnist", SDE, 20, y), y),
        ("latents, DPM-Solver++(2M) 20", "ld", partial(diffused, "mnist-latent", td.dpm_solver_pp, 20, y), y),
        ("latents, DPM-Solver++(2M) 10", "ld", partial(diffused, "mnist-latent", td.dpm_solver_pp, 10, y), y),
        ("latents, SDE 20", "ld", partial(diffused, "mnist-latent", SDE, 20, y), y),
    ]
    networks: dict[str, Callable[[], nn.Module]] = {
        "a": lambda: autoencoder,
        "d": lambda: autoencoder.decoder,
        "p": lambda: td.load_pretrained("mnist").net,
        "l": lambda: td.load_pretrained("mnist-latent").net,
    }
    floor, sheets = load_reference().real(n).frechet, []
    print(f"n = {n:,}, floor {floor:.3f}, {torch.get_num_threads()} thread(s)\n")
    print("| | weights | s per 1,000 | Fréchet distance | in floors | precision | recall | asked class |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for title, used, make, asked in rows:
        start = time.process_time()
        made = make().clamp(-1, 1)
        seconds = (time.process_time() - start) * 1000 / n
        q = measure(made, asked)
        weights = sum(p.numel() for key in used for p in networks[key]().parameters()) / 1e6
        shown = "" if asked is None else f"{100 * q.agreement:.1f} %"
        print(
            f"| {title} | {weights:.2f} M | {seconds:.2f} | {q.frechet:.3f} | {q.frechet / floor:.2f} "
            f"| {q.precision:.3f} | {q.recall:.3f} | {shown} |",
            flush=True,
        )
        sheets.append(made[:20])
    OUT.mkdir(exist_ok=True)
    plot.save_png(OUT / "latent.png", plot.grid(torch.cat(sheets), columns=20, scale=2))
    print(f"\nTwenty of each row, in this order: {OUT / 'latent.png'}")


if __name__ == "__main__":
    main()
