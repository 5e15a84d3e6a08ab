"""What large guidance scales do to solvers, and what dynamic thresholding and clipping add.

    python benchmarks/guidance.py                                     # exact worlds: two minutes on one core
    python benchmarks/guidance.py --mnist --n 2000 --scales 1,4,8     # the shipped denoiser: --calls, --solvers as well

In the exact worlds the guided denoiser is known, so the guided ODE, solved by many steps, is the truth: errors are the
solvers' alone. The claim that is put to the test is that of Lu et al. 2022b, sec. 3 and fig. 1 (cf. their ImageNet
table): noise-prediction solvers of order 2 and 3 fall behind DDIM at large scales, DPM-Solver++(2M) does not. A network
call is one of the guided denoiser, which asks the network with and without class in one batch.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from samplers import DETERMINISTIC, ISLANDS, Solver, seeded
from torch import Tensor

import tinydiff as td
from tinydiff import plot
from tinydiff.evaluate import load_reference, measure
from tinydiff.metrics import energy_distance

SCALES = (1.0, 2.0, 4.0, 8.0, 16.0)
CALLS = (10, 15, 20, 25)
GRIDS = (td.uniform, td.uniform_log_snr)
SOLVERS = {name: solver for name, solver in DETERMINISTIC.items() if name != "Heun"}


REPAIRS = {"plain": lambda denoiser: denoiser, "threshold": td.DynamicThreshold, "clip": td.Clipped}
Key = tuple[float, str, str, int]  # scale, repair, solver, calls


def guided(denoiser: Any, scale: float, repair: str) -> Any:
    return REPAIRS[repair](td.ClassifierFree(denoiser, scale))


def run(solver: Solver, denoiser: Any, x: Tensor, grid: Any, calls: int, y: Tensor) -> Tensor:
    return td.final(solver.run(denoiser, x, grid(denoiser.schedule, solver.steps(calls)), y=y))


# --- exact worlds ----------------------------------------------------------------------------------------------------


def digit_clouds() -> td.GaussianMixture:
    """Ten clouds in the space of 8x8 pixels, around the mean picture of each class of real digits."""
    x, y = td.digits()
    x = x.flatten(1).double()
    return td.GaussianMixture(torch.stack([x[y == k].mean(0) for k in range(10)]), 0.25)


def truth(denoiser: Any, x: Tensor, y: Tensor, steps: int = 1500) -> Tensor:
    """The guided ODE solved by many second-order steps, even in lambda, down to t = 1/1000."""
    schedule = denoiser.schedule
    ends = schedule.half_log_snr(torch.tensor([schedule.T, 1e-3], dtype=torch.float64))
    times = schedule.time(torch.linspace(0, 1, steps, dtype=torch.float64) * ends.diff() + ends[0])
    times[0] = schedule.T
    return td.final(td.dpm_solver_pp(denoiser, x, torch.cat([times, torch.zeros(1, dtype=torch.float64)]), y=y))


def tilted(world: td.GaussianMixture, y: int, scale: float, n: int, generator: torch.Generator) -> Tensor:
    """n draws from the density in proportion to p(x) p(y | x)^scale, on a fine lattice of the plane."""
    ticks = torch.linspace(-2.5, 2.5, 1000, dtype=torch.float64)
    at = torch.cartesian_prod(ticks, ticks)
    posterior = world.classifier(td.linear())(at, 0, torch.full((len(at),), y))
    weights = (world.log_prob(at) + scale * posterior).softmax(0).reshape(1000, 1000)
    row = torch.multinomial(weights.sum(1), n, replacement=True, generator=generator)
    column = torch.multinomial(weights[row], 1, generator=generator)[:, 0]
    return torch.stack([ticks[row], ticks[column]], 1)


def what_guidance_samples(n: int = 2000) -> None:
    """The guided ODE does not end in p(x) p(y|x)^scale: its score is the tilted one at t = 0, but not before."""
    print("\nthe guided ODE, exactly solved, against the density p(x) p(y|x)^scale; three islands, class 0")
    columns = {"density's mean": 20, "ODE's mean": 18, "std": 8, "ODE's std": 11, "energy distance": 18, "floor": 10}
    print(f"{'scale':>6}" + "".join(f"{text:>{width}}" for text, width in columns.items()))
    x, y = torch.randn(n, 2, generator=seeded(0), dtype=torch.float64), torch.zeros(n, dtype=torch.long)
    for scale in SCALES:
        end = truth(td.ClassifierFree(ISLANDS.denoiser(td.linear()), scale), x, y, 400)
        real, other = (tilted(ISLANDS, 0, scale, n, seeded(i)) for i in (1, 2))
        means = ["({:.2f}, {:.2f})".format(*points.mean(0)) for points in (real, end)]
        stds = [points.std(0).mean().item() for points in (real, end)]
        distances = energy_distance(end, real), abs(energy_distance(other, real))
        print(f"{scale:6g}{means[0]:>20}{means[1]:>18}{stds[0]:8.2f}{stds[1]:11.2f}", end="")
        print(f"{distances[0]:18.4f}{distances[1]:10.4f}")


def solver_errors(
    what: str, world: td.GaussianMixture, schedule: td.Schedule, scales: tuple[float, ...], calls: tuple[int, ...],
    seeds: int, n: int, out: Path,
) -> None:  # fmt: skip
    """Root mean square error per coordinate of the median sample, for each grid."""
    d, k = world.means.shape[1], len(world.means)
    x = torch.cat([torch.randn(n, d, generator=seeded(i), dtype=torch.float64) for i in range(seeds)])
    y = torch.arange(len(x)) % k
    exact = {}
    for scale in scales:
        for repair in REPAIRS:
            exact[scale, repair] = truth(guided(world.denoiser(schedule), scale, repair), x, y)
        outside = (exact[scale, "plain"].abs() > 1).double().mean()
        print(f"{what}, scale {scale:g}: {outside:.1%} of the exact solution's values lie outside [-1, 1]")
    for grid in GRIDS:
        errors: dict[Key, list[float]] = {}
        print(f"\nerror of the guided ODE's solution, {what}, grid {grid.__name__}: mean +- std over {seeds} seeds")
        print(f"{'network calls at most':36}" + "".join(f"{c:>19}" for c in calls))
        for (scale, repair), end in exact.items():
            denoiser = guided(world.denoiser(schedule), scale, repair)
            for name, solver in SOLVERS.items():
                for c in calls:
                    error = (run(solver, denoiser, x, grid, c, y) - end).norm(dim=1).reshape(seeds, n) / d**0.5
                    errors[scale, repair, name, c] = error.median(1).values.tolist()
                cells = [errors[scale, repair, name, c] for c in calls]
                spread = [statistics.stdev(v) if seeds > 1 else 0 for v in cells]
                texts = (f"{statistics.mean(v):8.1e} +-{s:8.1e}" for v, s in zip(cells, spread, strict=True))
                print(f"scale {scale:<4g}{repair:10}{name:16}" + "".join(f"{t:>19}" for t in texts), flush=True)
        mean = {key: statistics.mean(v) for key, v in errors.items()}
        claims(mean, scales, calls, "error")
        picture(out / f"guidance-{what.replace(' ', '-')}-{grid.__name__}.png", mean, scales, calls, "median error")


def claims(mean: dict[Key, float], scales: tuple[float, ...], calls: Any, unit: str) -> None:
    """The claims, judged at the largest scale up to 8 by the figures; behind: more than 1.1 times DDIM's."""
    scale = max(s for s in scales if s <= 8)

    def ratios(s: float, repair: str, name: str) -> list[float]:
        return [mean[s, repair, name, c] / mean[s, repair, "DDIM", c] for c in calls]

    names = {name for _, _, name, _ in mean} - {"DDIM"}
    print(f"\n{unit} over DDIM's at the same number of calls, {', '.join(map(str, calls))}:")
    for name in sorted(names):
        for repair in REPAIRS:
            weak, strong = ratios(min(scales), repair, name), ratios(scale, repair, name)
            behind = [c for c, r in zip(calls, strong, strict=True) if r > 1.1]
            print(
                f"{name:16} {repair:10}"
                f"scale {min(scales):g}:" + "".join(f"{r:9.2f}" for r in weak)
                + f"   scale {scale:g}:" + "".join(f"{r:9.2f}" for r in strong)
                + f"   behind DDIM at scale {scale:g}: {'at ' + ', '.join(map(str, behind)) if behind else 'nowhere'}"
            )  # fmt: skip


def picture(path: Path, mean: dict[Any, float], scales: tuple[float, ...], calls: Any, ylabel: str) -> None:
    """The figures against the scale, at the second number of calls, without thresholding."""
    c = calls[min(1, len(calls) - 1)]
    names = [name for name in SOLVERS if (scales[0], "plain", name, c) in mean]
    lines = {name: [mean[scale, "plain", name, c] for scale in scales] for name in names}
    alt, label = f"{ylabel} against the guidance scale, {c} calls.", f"guidance scale ({c} network calls)"
    image = plot.curves(scales, lines, alt=alt, xscale="log", yscale="log", xlabel=label, ylabel=ylabel)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image.png)


# --- MNIST -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def mnist(
    names: list[str], scales: tuple[float, ...], calls: tuple[int, ...], grid: Any, seeds: int, n: int, batch: int,
    out: Path,
) -> None:  # fmt: skip
    """Frechet distance, agreement with the class asked for, and the share of pixels outside [-1, 1]."""
    denoiser, floor = td.load_pretrained("mnist"), load_reference().real(n).frechet
    y = torch.arange(n) % 10
    dtype = td.fast_dtype(torch.empty(0, 1, 28, 28))
    print(f"\nMNIST, n = {n}, {seeds} seeds, grid {grid.__name__}; floor: {n} real test digits, {floor:.3f}")
    distance: dict[Key, float] = {}
    for scale in scales:
        for repair in REPAIRS:
            model = guided(denoiser, scale, repair)
            for name in names:
                for c in calls:
                    start, found, outside = time.perf_counter(), [], []
                    for seed in range(seeds):
                        generator, parts = seeded(seed), []
                        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                            for labels in y.split(batch):
                                x = torch.randn(len(labels), 1, 28, 28, generator=generator)
                                parts.append(run(SOLVERS[name], model, x, grid, c, labels).float())
                        x = torch.cat(parts).nan_to_num(0)
                        found.append(measure(x, y))
                        outside.append((x.abs() > 1.01).double().mean().item())
                    values = [q.frechet for q in found]
                    distance[scale, repair, name, c] = statistics.mean(values)
                    spread = statistics.stdev(values) if seeds > 1 else 0.0
                    print(
                        f"scale {scale:<4g}{repair:10}{name:16}{c:3} calls: Frechet {statistics.mean(values):8.3f} +-"
                        f"{spread:6.3f}, {statistics.mean(values) / floor:6.2f} floors, agreement "
                        f"{statistics.mean(q.agreement for q in found):.3f}, outside [-1.01, 1.01] "
                        f"{statistics.mean(outside):6.2%} ({time.perf_counter() - start:.0f} s)",
                        flush=True,
                    )
    if "DDIM" in names:
        claims(distance, scales, calls, "Frechet distance")
    picture(out / f"guidance-mnist-{grid.__name__}.png", distance, scales, calls, "Frechet distance")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", action="store_true", help="the shipped denoiser in place of the exact worlds")
    parser.add_argument("--scales", type=lambda text: tuple(map(float, text.split(","))), default=SCALES)
    parser.add_argument("--calls", type=lambda text: tuple(map(int, text.split(","))), default=CALLS)
    parser.add_argument("--solvers", default=",".join(SOLVERS), help="for MNIST: names with commas")
    parser.add_argument("--grid", default="uniform", choices=[g.__name__ for g in GRIDS], help="for MNIST")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--n", type=int, help="samples a seed: 64 by default, 2000 of MNIST")
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "out")
    args = parser.parse_args()
    if args.mnist:
        names = [name.strip() for name in args.solvers.split(",")]
        if unknown := set(names) - set(SOLVERS):
            parser.error(f"no solver named {unknown}: choose among {', '.join(SOLVERS)}")
        grid = getattr(td, args.grid)
        mnist(names, args.scales, args.calls, grid, args.seeds, args.n or 2000, args.batch, args.out)
        return
    torch.set_num_threads(1)
    what_guidance_samples()
    worlds = {"three islands": (ISLANDS, td.linear()), "digit clouds": (digit_clouds(), td.cosine())}
    for what, (world, schedule) in worlds.items():
        print()
        solver_errors(what, world, schedule, args.scales, args.calls, args.seeds, args.n or 64, args.out)


if __name__ == "__main__":
    main()
