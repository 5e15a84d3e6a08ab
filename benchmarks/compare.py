"""Which sampler? tinydiff's beside diffusers' schedulers, on the same network: quality, diversity, calls, seconds.

    python benchmarks/compare.py toy-moons                            # seconds
    python benchmarks/compare.py digits                               # minutes, one of them for distilling a student
    python benchmarks/compare.py mnist --n 1000 --seeds 2 --calls 2,5,10,20,50     # half an hour on one core

Writes table.md, table.csv and figure.png to --out/NAME, prints the table, the decision and where a peer is better.
A peer is given our alpha_bar, the same initial noise and as many calls; its times are whole numbers, "trailing", which
is `uniform` here. "at" a name's end means ours on that grid, so that update rules alone are compared; without, ours
take the default grid. Students of points and of the 8x8 digits are distilled once and kept in --out.
"""

import argparse
import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor
from tqdm import tqdm

import tinydiff as td
from tinydiff import compare, files, plot, run
from tinydiff.compare import Row, Way
from tinydiff.sample import estimate

PEER = "diffusers "
COMMON = {"prediction_type": "sample", "timestep_spacing": "trailing"}
SOLVER = partial(DPMSolverMultistepScheduler, lower_order_final=False, final_sigmas_type="zero", **COMMON)
SCHEDULERS: dict[str, Callable[..., Any]] = {
    "DDPM": partial(DDPMScheduler, clip_sample=False, variance_type="fixed_small", **COMMON),
    "DDIM": partial(DDIMScheduler, clip_sample=False, **COMMON),
    "DPM-Solver++ 2M": partial(SOLVER, algorithm_type="dpmsolver++", solver_order=2),
    "DPM-Solver++ 3M": partial(SOLVER, algorithm_type="dpmsolver++", solver_order=3),
    "SDE DPM-Solver++ 2M": partial(SOLVER, algorithm_type="sde-dpmsolver++", solver_order=2),
}


def scheduled(
    make: Callable[..., Any],
    denoiser: Any,
    x: Tensor,
    times: Tensor,
    *,
    generator: torch.Generator | None = None,
    **cond: Any,
) -> Iterator[td.State]:
    """A diffusers scheduler as a sampler: it asks the same denoiser. Of the times only their number is heeded."""
    peer = make(trained_betas=denoiser.schedule.betas.tolist())
    peer.set_timesteps(len(times) - 1)
    for n in peer.timesteps:  # index n of its table is t = n + 1
        x0 = estimate(denoiser, x, n.double() + 1, cond)
        x = peer.step(x0, n, x, generator=generator).prev_sample
        yield td.State(n.double(), x, x0)


def all_ways(denoiser: Any, calls: list[int], student: Any) -> dict[str, Way]:
    """Ours, ours on the peers' grid where that differs, and the peers."""
    ours = compare.ways(denoiser, calls, student)
    ours["SDE DPM-Solver++ 3M"] = Way(denoiser, partial(td.dpm_solver_pp, order=3, eta=1.0), ours["DDIM"].calls)
    gap = (td.uniform_angle(denoiser.schedule, 10) - td.uniform(denoiser.schedule, 10)).abs().max()
    same: dict[str, Way] = {}
    if gap > denoiser.schedule.T / 50:
        same = {f"{k} at uniform": Way(denoiser, ours[k].sampler, ours[k].calls, td.uniform) for k in SCHEDULERS}
    peers = {
        f"{PEER}{name}": Way(denoiser, partial(scheduled, make), ours[name].calls, td.uniform)
        for name, make in SCHEDULERS.items()
    }
    return ours | same | peers


def verdicts(rows: list[Row]) -> Iterator[str]:
    """Each peer beside ours with as many calls: as good is within twice the error bars of the difference, or 2 %."""
    found = {(row.sampler, row.calls): row for row in rows}
    for (name, calls), theirs in found.items():
        if not name.startswith(PEER):
            continue
        plain = name.removeprefix(PEER)
        for label in (plain, f"{plain} at uniform"):
            if (label, calls) in found:
                ours = found[label, calls]
                bar = math.hypot(ours.quality_sd, theirs.quality_sd) / math.sqrt(ours.seeds)
                word = "as good"
                if ours.quality - theirs.quality > max(2 * bar, 0.02 * abs(theirs.quality)):
                    word = "WORSE"
                elif theirs.quality - ours.quality > max(2 * bar, 0.02 * abs(theirs.quality)):
                    word = "better"
                cost = f"time {ours.seconds / theirs.seconds:.2f}"
                yield f"{label}, {calls} calls: {ours.quality:.2f} against {theirs.quality:.2f}, {word}; {cost}"


def record(out: Path, rows: list[Row], name: str) -> None:
    """table.csv and table.md with all rows and the decision among ours."""
    ours = [row for row in rows if " at " not in row.sampler and not row.sampler.startswith(PEER)]
    files.write(out / "table.csv", compare.csv_text(rows).encode())
    beside = "\n".join(["Ours against diffusers: quality, and seconds over seconds.", "", *verdicts(rows)])
    files.write(out / "table.md", f"{compare.markdown(rows, name)}\n{compare.rule(ours)}\n\n{beside}\n".encode())


def drawn(rows: list[Row], name: str) -> plot.Picture:
    """Ours on their default grid, and the peers as crosses."""
    plain = [row for row in rows if " at " not in row.sampler]
    peers = {row.sampler: row.sampler.removeprefix(PEER) for row in plain if row.sampler.startswith(PEER)}
    return compare.figure(plain, name, peers)


def student_of(name: str, teacher: td.Denoiser, path: Path) -> td.Denoiser:
    """A consistency model of a shipped model: the shipped one, or one distilled here and kept."""
    if name == "mnist":
        return td.load_pretrained("mnist-consistency")
    if not path.exists():
        student = copy.deepcopy(teacher)
        student.info = teacher.info | {"teacher": name}
        generator, ema = torch.Generator().manual_seed(0), td.EMA(student, 0.99)
        size, steps = (128, 700) if name == "digits" else (512, 1500)
        data = td.batches(*run.load_data(teacher.info["data"]), size=size, generator=generator)
        states = td.distill(student, teacher, data, ema=ema, steps=steps, generator=generator)
        for _ in tqdm(states, desc="distilling", total=steps):
            pass
        td.save(path, ema.denoiser)
    return td.load(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="a shipped model: mnist, digits, toy-moons, toy-checkerboard or toy-spirals")
    parser.add_argument("--calls", type=lambda text: list(map(int, text.split(","))), default=[2, 5, 10, 20, 50])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--n", type=int, help="samples a seed (default: 2000 points, 800 digits, 1000 of mnist)")
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "out")
    args = parser.parse_args()
    teacher, out = td.load_pretrained(args.name), args.out / args.name
    out.mkdir(parents=True, exist_ok=True)
    n = args.n or {"mnist": 1000, "digits": 800}.get(args.name, 2000)
    measure = compare.yardstick(teacher, n)
    ways = all_ways(teacher, args.calls, student_of(args.name, teacher, out / "student.safetensors"))
    rows: list[Row] = []
    for row in compare.compare(ways, measure, n=n, seeds=args.seeds, batch=args.batch, progress=True):
        rows.append(row)
        if len(rows) > 1:
            record(out, rows, measure.name)
    files.write(out / "figure.png", drawn(rows, measure.name).png)
    print((out / "table.md").read_text())
    print(f"{out} holds table.md, table.csv and figure.png")


if __name__ == "__main__":
    main()
