"""How good is each sampler for how many network calls, and what does it cost beside the network?

    python benchmarks/samplers.py                    # exact worlds and overhead: three minutes on one core
    python benchmarks/samplers.py --mnist            # Frechet distance on MNIST: hours, unless told otherwise:
    python benchmarks/samplers.py --mnist --n 2000 --seeds 1 --calls 5,10,20
    python benchmarks/samplers.py --overhead         # time of a step outside the network, against diffusers

Prints tables and writes a PNG of each to the folder --out. Figures are means over seeds, +- one standard deviation.
Solvers that look ahead get as many steps as fit into the calls, the last of which, to t = 0, takes one call.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import tinydiff as td
from tinydiff import plot
from tinydiff.compare import Counted
from tinydiff.evaluate import load_reference, measure
from tinydiff.metrics import energy_distance
from tinydiff.sample import Grid, usual

CALLS = (5, 8, 10, 15, 20, 50, 100, 1000)
GRIDS = (td.uniform, td.uniform_log_snr, td.quadratic, td.uniform_angle, td.karras)


class Solver(NamedTuple):
    run: Callable[..., Iterator[td.State]]
    calls: int = 1  # network calls a step, but for the step to t = 0, which takes one

    def steps(self, calls: int) -> int:
        return (calls - 1) // self.calls + 1


DETERMINISTIC = {
    "DDIM": Solver(td.ddim),
    "Heun": Solver(td.heun, 2),
    "DPM-Solver-2": Solver(partial(td.dpm_solver, order=2), 2),
    "DPM-Solver-3": Solver(partial(td.dpm_solver, order=3), 3),
    "DPM-Solver++ 2S": Solver(partial(td.dpm_solver_pp_singlestep, order=2), 2),
    "DPM-Solver++ 3S": Solver(partial(td.dpm_solver_pp_singlestep, order=3), 3),
    "DPM-Solver++ 2M": Solver(partial(td.dpm_solver_pp, order=2)),
    "DPM-Solver++ 3M": Solver(partial(td.dpm_solver_pp, order=3)),
}
STOCHASTIC = {
    "DDPM": Solver(td.ddpm),
    "DDIM, eta 1/2": Solver(partial(td.ddim, eta=0.5)),
    "SDE DPM-Solver++ 2M": Solver(partial(td.dpm_solver_pp, order=2, eta=1.0)),
    "SDE DPM-Solver++ 3M": Solver(partial(td.dpm_solver_pp, order=3, eta=1.0)),
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def table(title: str, rows: dict[str, list[list[float]]], calls: tuple[int, ...], number: str = "8.1e") -> None:
    """One row a solver, one cell a number of calls: the mean over seeds and the standard deviation."""
    print(f"\n{title}\n{'network calls at most':24}" + "".join(f"{c:>22}" for c in calls))
    for name, cells in rows.items():
        texts = (f"{statistics.mean(v):{number}} +-{spread(v):{number}}" for v in cells)
        print(f"{name:24}" + "".join(f"{text:>22}" for text in texts), flush=True)


def spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def picture(path: Path, rows: dict[str, list[list[float]]], calls: tuple[int, ...], alt: str, **axes: Any) -> None:
    lines = {name: [statistics.mean(v) for v in cells] for name, cells in rows.items()}
    image = plot.curves(calls, lines, alt=alt, xscale="log", yscale="log", xlabel="network calls", **axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image.png)


# --- exact worlds ----------------------------------------------------------------------------------------------------

ISLANDS = td.GaussianMixture(
    torch.tensor([[-0.5, -0.5], [0.6, -0.4], [0.1, 0.6]], dtype=torch.float64), [0.2, 0.1, 0.15], [0.5, 0.2, 0.3]
)
ONE = td.GaussianMixture(torch.tensor([[0.5, -0.3]], dtype=torch.float64), 0.25)


def exact_solution(world: td.GaussianMixture, schedule: td.Schedule, x: Tensor, steps: int = 2000) -> Tensor:
    """The probability-flow ODE solved by third-order steps, even in lambda, down to t = 1e-6."""
    if len(world.means) == 1:
        return td.gaussian_flow(schedule, world.means[0], world.stds[0], x, schedule.T, 0)
    ends = schedule.half_log_snr(torch.tensor([schedule.T, 1e-6], dtype=torch.float64))
    times = schedule.time(torch.linspace(0, 1, steps, dtype=torch.float64) * ends.diff() + ends[0])
    times[0] = schedule.T
    zero = torch.zeros(1, dtype=torch.float64)
    return td.final(td.dpm_solver_pp_singlestep(world.denoiser(schedule), x, torch.cat([times, zero]), order=3))


def solver_errors(schedule: td.Schedule, calls: tuple[int, ...], seeds: int, n: int, out: Path) -> None:
    """Distance to the exact end of the same path; the median, since near a watershed any error decides."""
    x = torch.cat([torch.randn(n, 2, generator=seeded(i), dtype=torch.float64) for i in range(seeds)])
    for what, world in {"one Gaussian": ONE, "three islands": ISLANDS}.items():
        exact = exact_solution(world, schedule, x)
        if len(world.means) > 1:
            finer = exact_solution(world, schedule, x, 3000) - exact
            print(f"\nthe reference moves by {finer.norm(dim=1).median():.0e} with 3000 steps in place of 2000")
        for grid in GRIDS:
            rows: dict[str, list[list[float]]] = {}
            for name, solver in DETERMINISTIC.items():
                for c in calls:
                    denoiser = Counted(world.denoiser(schedule))
                    end = td.final(solver.run(denoiser, x, grid(schedule, solver.steps(c))))
                    assert denoiser.calls <= c < denoiser.calls + solver.calls, (name, denoiser.calls, c)
                    error = (end - exact).norm(dim=1).reshape(seeds, n)
                    rows.setdefault(name, []).append(error.median(1).values.tolist())
            table(f"median error of the ODE's solution, {what}, grid {grid.__name__}", rows, calls)
            path = out / f"error-{what.replace(' ', '-')}-{grid.__name__}.png"
            picture(path, rows, calls, f"Error against calls, {what}, {grid.__name__}.", ylabel="median error")


def stochastic_quality(schedule: td.Schedule, calls: tuple[int, ...], seeds: int, n: int, out: Path) -> None:
    """Energy distance of n samples to n exact draws; for comparison a deterministic solver and two exact sets."""
    world = ISLANDS
    real = [world.sample(n, seeded(100 + i)) for i in range(seeds)]
    pairs = [(world.sample(n, seeded(200 + i)), world.sample(n, seeded(250 + i))) for i in range(20)]
    size = (statistics.mean(energy_distance(*pair) ** 2 for pair in pairs)) ** 0.5
    for grid in GRIDS:
        rows: dict[str, list[list[float]]] = {}
        for name, solver in {**STOCHASTIC, "DPM-Solver++ 2M": DETERMINISTIC["DPM-Solver++ 2M"]}.items():
            noise = {} if name == "DPM-Solver++ 2M" else {"generator": seeded(400)}
            for c in calls:
                x = torch.cat([torch.randn(n, 2, generator=seeded(300 + i), dtype=torch.float64) for i in range(seeds)])
                end = td.final(solver.run(world.denoiser(schedule), x, grid(schedule, solver.steps(c)), **noise))
                parts = zip(end.split(n), real, strict=True)
                rows.setdefault(name, []).append([energy_distance(part, other) for part, other in parts])
        table(f"energy distance, {n} points, three islands, grid {grid.__name__}", rows, calls)
        print(f"{'floor (root mean square)':24}{size:>9.1e}")
        shown = {name: [[max(abs(v), size / 10) for v in cell] for cell in cells] for name, cells in rows.items()}
        shown["floor"] = [[size]] * len(calls)
        path = out / f"energy-{grid.__name__}.png"
        picture(path, shown, calls, f"Energy distance against calls, {grid.__name__}.", ylabel="energy distance")


# --- MNIST -----------------------------------------------------------------------------------------------------------


def digits(denoiser: Any, solver: Solver, times: Tensor, n: int, seed: int, batch: int) -> Tensor:
    """n digits, 0 to 9 in turn, in the network's fastest dtype."""
    generator, out, y = seeded(seed), [], torch.arange(n) % 10
    dtype = td.fast_dtype(torch.empty(0, 1, 28, 28))
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        for labels in y.split(batch):
            x = torch.randn(len(labels), 1, 28, 28, generator=generator)
            noise = {"generator": generator} if solver in STOCHASTIC.values() else {}
            out.append(td.final(solver.run(denoiser, x, times, y=labels, **noise)).float())
    return torch.cat(out)


def mnist(
    names: list[str], calls: tuple[int, ...], grid: Grid | None, seeds: int, n: int, batch: int, out: Path
) -> None:
    denoiser = td.load_pretrained("mnist")
    floor = load_reference().real(n).frechet
    solvers = {name: solver for name, solver in {**STOCHASTIC, **DETERMINISTIC}.items() if name in names}
    rows: dict[str, list[list[float]]] = {}
    y = torch.arange(n) % 10
    chosen = grid.__name__ if grid else "as usual"
    print(f"\nMNIST, n = {n}, {seeds} seeds, grid {chosen}; floor: {n} real test digits, {floor:.3f}")
    for name, solver in solvers.items():
        for c in calls:
            _, steps, spaced = usual(denoiser, solver.run, solver.steps(c), grid)
            start, times = time.perf_counter(), spaced(denoiser.schedule, steps)
            found = [measure(digits(denoiser, solver, times, n, seed, batch), y) for seed in range(seeds)]
            distance, agreement = [q.frechet for q in found], statistics.mean(q.agreement for q in found)
            rows.setdefault(name, []).append(distance)
            print(
                f"{name:20} {c:5} calls: Frechet {statistics.mean(distance):8.3f} +-{spread(distance):6.3f}, "
                f"{statistics.mean(distance) / floor:6.2f} floors, agreement {agreement:.3f} "
                f"({time.perf_counter() - start:.0f} s)",
                flush=True,
            )
    in_floors = {name: [[v / floor for v in cell] for cell in cells] for name, cells in rows.items()}
    table("Frechet distance in floors", in_floors, calls, "7.2f")
    path = out / f"mnist-{chosen.replace(' ', '-')}.png"
    picture(path, in_floors, calls, "Frechet distance on MNIST against calls.", ylabel="Frechet distance / floor")
    claims(rows, calls, floor)


def claims(rows: dict[str, list[list[float]]], calls: tuple[int, ...], floor: float, close: float = 1.1) -> None:
    """The published claims, judged by these figures: "as good" allows 10 %."""

    def at(name: str, c: int) -> float | None:
        return statistics.mean(rows[name][calls.index(c)]) if name in rows and c in calls else None

    ddpm, ddim = at("DDPM", 1000), at("DDIM", 50)
    solvers = [(at(name, c), name, c) for name in ("DPM-Solver++ 2M", "DPM-Solver++ 3M") for c in (10, 15)]
    print(f"\nclaims, in Frechet distance (floor {floor:.3f}); as good: at most {close:g} times as far")
    if ddpm is not None and ddim is not None:
        print(f"DDIM at 50 ({ddim:.3f}) is as good as DDPM at 1000 ({ddpm:.3f}): {ddim <= close * ddpm}")
    for value, name, c in solvers:
        for other, text in ((ddim, "DDIM at 50"), (ddpm, "DDPM at 1000")):
            if value is not None and other is not None:
                print(f"{name} at {c} ({value:.3f}) is as good as {text} ({other:.3f}): {value <= close * other}")


# --- overhead --------------------------------------------------------------------------------------------------------


class Constant(nn.Module):
    """A network that costs nothing: it returns one tensor."""

    def __init__(self, out: Tensor) -> None:
        super().__init__()
        self.out, self.schedule = out, td.linear()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.out


def ours(sampler: Callable[..., Iterator[td.State]], denoiser: Any, x: Tensor, steps: int) -> float:
    times = td.uniform(denoiser.schedule, steps)
    start = time.process_time()  # of this process alone, on one thread: other work on the machine does not count
    td.final(sampler(denoiser, x, times))
    return (time.process_time() - start) / steps


def theirs(scheduler: Any, out: Tensor, x: Tensor, steps: int) -> float:
    scheduler.set_timesteps(steps)
    start = time.process_time()
    for t in scheduler.timesteps:
        x = scheduler.step(out, t, x).prev_sample
    return (time.process_time() - start) / steps


def overhead(rounds: int, steps: int = 50) -> None:
    """Time of a step but for the network. The model predicts x0, or eps, which either side has to convert."""
    from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

    torch.set_num_threads(1)
    common = {"timestep_spacing": "trailing", "beta_schedule": "linear"}
    pairs: dict[str, tuple[Any, Any]] = {
        "DDIM": (td.ddim, partial(DDIMScheduler, clip_sample=False, **common)),
        "DDPM": (td.ddpm, partial(DDPMScheduler, clip_sample=False, **common)),
    }
    for order in (1, 2, 3):
        multistep = partial(DPMSolverMultistepScheduler, solver_order=order, **common)
        pairs[f"DPM-Solver++ {order}M"] = (partial(td.dpm_solver_pp, order=order), multistep)
    print(
        f"\nmicroseconds a step outside the network, CPU time on one thread, median of {rounds} rounds of {steps} steps"
    )
    worst = 0.0
    for shape in ((1, 2), (64, 1, 28, 28), (256, 1, 28, 28)):
        x, out = torch.randn(shape), torch.randn(shape)
        start = time.process_time()
        for _ in range(steps):
            torch.randn(shape)
        draw = (time.process_time() - start) / steps
        print(
            f"\n{shape}; drawing the noise of a DDPM step takes {1e6 * draw:.0f} on either side, and is left out below"
        )
        print(f"{'':20}{'x0: ours':>12}{'diffusers':>12}{'ratio':>8}{'eps: ours':>14}{'diffusers':>12}{'ratio':>8}")
        for name, (sampler, make) in pairs.items():
            cells = []
            for kind, denoiser in (
                ("sample", Constant(out)),
                ("epsilon", td.EpsDenoiser(Constant(out), td.linear()).eval()),
            ):
                both = [
                    (ours(sampler, denoiser, x, steps), theirs(make(prediction_type=kind), out, x, steps))
                    for _ in range(rounds + 1)
                ][1:]  # the first is for warming up
                a, b = (1e6 * (statistics.median(side) - draw * (name == "DDPM")) for side in zip(*both, strict=True))
                cells.append(f"{a:12.0f}{b:12.0f}{a / b:8.2f}")
                worst = max(worst, a / b if kind == "sample" else 0)
            print(f"{name:20}{cells[0]}  {cells[1]}", flush=True)
    print(f"\na step given x0 takes at most half of diffusers' (worst ratio {worst:.2f}): {worst <= 0.5}")
    print("given eps, EpsDenoiser converts it, as diffusers' step does: that is most of its column")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exact", action="store_true", help="only the exact worlds")
    parser.add_argument("--overhead", action="store_true", help="only the time of a step")
    parser.add_argument("--mnist", action="store_true", help="only MNIST, with the shipped denoiser")
    parser.add_argument("--calls", type=lambda text: tuple(map(int, text.split(","))), default=CALLS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--n", type=int, help="samples: 2000 points by default, 10000 digits")
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--grid", choices=[g.__name__ for g in GRIDS], help="for MNIST; by default what suits each")
    parser.add_argument("--solvers", nargs="+", help='for MNIST: for example DDPM "DDIM, eta 1/2"; all by default')
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "out")
    args = parser.parse_args()
    every = not (args.exact or args.overhead or args.mnist)
    if args.exact or every:
        schedule = td.linear()
        solver_errors(schedule, args.calls, args.seeds, 256, args.out)
        stochastic_quality(schedule, args.calls, args.seeds, args.n or 2000, args.out)
    if args.overhead or every:
        overhead(args.rounds)
    if args.mnist:
        names = args.solvers or [*STOCHASTIC, *DETERMINISTIC]
        if unknown := set(names) - {*STOCHASTIC, *DETERMINISTIC}:
            parser.error(f"no solver named {unknown}: choose among {', '.join([*STOCHASTIC, *DETERMINISTIC])}")
        grid = getattr(td, args.grid) if args.grid else None
        mnist(names, args.calls, grid, args.seeds, args.n or 10_000, args.batch, args.out)


if __name__ == "__main__":
    main()
