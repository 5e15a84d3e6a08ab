"""Consistency models without a teacher, beside distilled ones: three islands in the plane, and the 8x8 digits.

    python benchmarks/consistency_training.py                        # the plane, three seeds: seven minutes of one core
    python benchmarks/consistency_training.py --digits --seconds 60  # three minutes

Seconds are CPU seconds of this process for each training; a distilled row in the plane pays its teacher out of them.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import tinydiff as td
from tinydiff.distill import PICTURES, squared_l2
from tinydiff.metrics import energy_distance, frechet_distance, sliced_wasserstein
from tinydiff.run import RECIPES

ISLANDS = td.GaussianMixture(torch.tensor([[-0.6, -0.3], [0.7, -0.2], [0.1, 0.8]]), [0.10, 0.20, 0.05], [0.5, 0.3, 0.2])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def growing(fraction: float, first: int, last: int) -> int:
    """Intervals of the grid after that share of the budget: their logarithm rises linearly."""
    return round(first * (last / first) ** fraction)


def teach(
    student: td.Denoiser,
    source: Any,
    seconds: float,
    n: tuple[int, int],
    *,
    own: bool = False,
    batch_mean: bool = False,
) -> tuple[td.Denoiser, int]:
    """Consistency training from scratch: the averaged student and its steps.

    Args:
        n: numbers of intervals of the grid, first and last.
        own: the student is its own target, in place of its average.
        batch_mean: x_s is one Heun step of the batch's own ODE, all of whose x0 may have made x_t: less noise than one
            x0 has, and still no teacher (cf. the stable targets of Xu et al. 2023).
    """
    ema = td.EMA(student, 0.95)

    def loss(student: td.Denoiser, x0: Tensor, *, fraction: float, **rest: Any) -> Tensor:
        options = {"times": td.uniform_angle(student.schedule, growing(fraction, *n)), "distance": squared_l2}
        options |= {"target": None if own else ema.denoiser} | rest
        if batch_mean:
            teacher = td.EmpiricalDenoiser(x0, student.schedule)
            return td.consistency_distillation_loss(student, x0, teacher=teacher, **options)
        return td.consistency_training_loss(student, x0, **options)

    # float32: neighbours on a fine grid agree in all the digits that bfloat16 has
    options: dict[str, Any] = {"seconds": seconds, "clock": time.process_time, "dtype": torch.float32, "lr": 3e-3}
    for p in td.train(student, source, ema=ema, loss=loss, **options):
        updates = p.step
    return ema.denoiser, updates


def plane(seconds: float, seeds: int, wanted: str) -> None:
    def network() -> td.VDenoiser:
        return td.VDenoiser(td.MLP(hidden=64), td.cosine(100))

    def distilled(x: Tensor, seed: int) -> tuple[td.Denoiser, int]:
        teacher = network()
        ema, source = td.EMA(teacher, 0.99), td.batches(x, size=512, generator=seeded(seed))
        options: dict[str, Any] = {"seconds": seconds / 2, "clock": time.process_time}
        for _ in td.train(teacher, source, ema=ema, lr=5e-3, **options):
            pass
        teacher, student = ema.denoiser, copy.deepcopy(ema.denoiser).requires_grad_()
        ema = td.EMA(student, 0.95)
        for p in td.distill(student, teacher, source, ema=ema, lr=2e-3, **options):
            updates = p.step
        return ema.denoiser, updates

    def taught(x: Tensor, seed: int, size: int = 1024, n: tuple[int, int] = (10, 640), **how: Any) -> Any:
        return teach(network(), td.batches(x, size=size, generator=seeded(seed)), seconds, n, **how)

    rows: dict[str, Callable[[Tensor, int], tuple[td.Denoiser, int]]] = {
        "training": taught,
        "batch mean": partial(taught, size=512, n=(4, 64), batch_mean=True),
        "own target": partial(taught, own=True),
        "distilled": distilled,
    }
    floor = [
        energy_distance(ISLANDS.sample(4000, seeded(900 + i)), ISLANDS.sample(4000, seeded(950 + i))) for i in range(6)
    ]
    print(
        f"energy distance x 1e4 of 4,000 points, {seconds:g} s; exact draws: 0 +- {statistics.pstdev(floor) * 1e4:.1f}"
    )
    print(f"{'':14}{'seed':>6}{'updates':>9}{'1 step':>9}{'2 steps':>9}{'4 steps':>9}")
    for seed in range(seeds):
        for name, make in rows.items():
            if wanted not in (name, ""):
                continue
            torch.manual_seed(seed)
            model, updates = make(ISLANDS.sample(20_000, seeded(seed)), seed)
            cells = [
                energy_distance(
                    td.sample(model, (4000, 2), steps=k, sampler=td.consistency, generator=seeded(1000)),
                    ISLANDS.sample(4000, seeded(2000 + k)),
                )
                for k in (1, 2, 4)
            ]
            print(f"{name:14}{seed:6}{updates:9}" + "".join(f"{c * 1e4:9.1f}" for c in cells), flush=True)


def digits(seconds: float) -> None:
    (x, y), teacher, recipe = td.digits(), td.load_pretrained("digits"), RECIPES["digits"]

    def show(name: str, denoiser: td.Denoiser, sampler: Any, steps: int) -> None:
        made = td.sample(denoiser, x.shape, steps=steps, sampler=sampler, generator=seeded(0), y=y)
        a, b = made.flatten(1), x.flatten(1)
        print(
            f"{name:24}{steps:6}{frechet_distance(a, b):10.2f}{sliced_wasserstein(a, b, generator=seeded(1)):12.4f}",
            flush=True,
        )

    print(
        f"{seconds:g} s each, against the 1,797 digits; two halves of them are further apart than all from themselves:"
    )
    order = torch.randperm(len(x), generator=seeded(0))
    a, b = x[order[:898]].flatten(1), x[order[898:1796]].flatten(1)
    print(f"{'':24}{'steps':>6}{'Frechet':>10}{'sliced W2':>12}")
    print(f"{'half of them':30}{frechet_distance(a, b):10.2f}{sliced_wasserstein(a, b, generator=seeded(1)):12.4f}")
    for k in (20, 1):
        show("teacher", teacher, td.dpm_solver_pp, k)
    torch.manual_seed(0)
    source = td.batches(x, y, size=recipe.batch, generator=seeded(0))
    model, updates = teach(recipe.denoiser(recipe.width, 10), source, seconds, (10, 160))
    for k in (1, 2, 4):
        show(f"training, {updates}", model, td.consistency, k)
    ways: dict[str, tuple[float, float, Any]] = {"pictures": (0.99, 1.0, PICTURES), "points": (0.95, 0.4, {})}
    for way, (decay, rate, how) in ways.items():  # as the command does, and as `distill` by itself
        student = copy.deepcopy(teacher).requires_grad_()
        ema = td.EMA(student, decay)
        options: dict[str, Any] = {"seconds": seconds, "clock": time.process_time, "lr": rate * recipe.lr, **how}
        for p in td.distill(student, teacher, source, ema=ema, **options):
            updates = p.step
        for k in (1, 2, 4):
            show(f"as {way}, {updates}", ema.denoiser, td.consistency, k)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--only", default="", help="one row of the plane: training, batch mean, own target or distilled"
    )
    parser.add_argument("--digits", action="store_true", help="the digits in place of the plane")
    args = parser.parse_args()
    digits(args.seconds) if args.digits else plane(args.seconds, args.seeds, args.only)


if __name__ == "__main__":
    main()
