"""Restoring test digits of MNIST: PSNR, and whether the digit is still the right one, beside the best linear estimate.

    OMP_NUM_THREADS=1 python benchmarks/restoration.py     # five minutes on one core; needs MNIST

Digits are chosen at random among the test set's; noise and observations are in units of [-1, 1] data; every answer is
clipped to [-1, 1]. LMMSE is the linear function of the observation with the least mean squared error, from the mean and
covariance of all 60,000 training digits, or of those of the class where the label is given. With K draws a digit, PSNR
of a draw is their average, and "mean of K" the PSNR of their mean. Prints Markdown and draws out/restoration.png.
"""

import argparse
import math
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import tinydiff as td
from tinydiff import plot
from tinydiff.metrics import moments, psnr
from tinydiff.restore import SDE

OUT = Path(__file__).resolve().parent / "out"
SHAPE = (1, 28, 28)
SHOWN = ("centre 12x12", "lower half", "x4", "noise 1.0")
MEAN = "remove_noise, steps=1: the posterior mean"
RIDGES = (0.003, 0.01, 0.03, 0.1)  # noise that LMMSE is told of where there is none: pixels seldom inked need it


@dataclass(frozen=True)
class Task:
    """Digits seen through observed = A x + std n, and a naive answer."""

    A: Any
    std: float
    observed: Tensor
    naive: dict[str, Tensor]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tasks(x: Tensor, mean: Tensor) -> dict[str, Task]:
    centre, half = torch.ones(28, 28), torch.ones(28, 28)
    centre[8:20, 8:20] = 0
    half[14:] = 0
    found = {}
    for name, mask in (("centre 12x12", centre), ("lower half", half)):
        A = td.Mask(mask)
        found[name] = Task(A, 0.0, A(x), {"mean digit": A.merge(x, mean.expand_as(x))})
    for factor in (2, 4):
        A = td.Downsample(factor)
        enlarge = partial(F.interpolate, A(x), scale_factor=factor)
        naive = {mode: enlarge(mode=mode, align_corners=False) for mode in ("bilinear", "bicubic")}
        found[f"x{factor}"] = Task(A, 0.0, A(x), naive)
    for std in (0.3, 0.5, 1.0):
        noisy = x + std * torch.randn(x.shape, generator=seeded(1))
        found[f"noise {std}"] = Task(torch.nn.Identity(), std, noisy, {"as it is": noisy})
    return found


def lmmse(mean: Tensor, cov: Tensor, task: Task, std: float) -> Tensor:
    """mean + C A^T (A C A^T + std^2 I)^-1 (observed - A mean)."""
    A = task.A(torch.eye(784).reshape(784, *SHAPE)).flatten(1).T.double()  # (m, 784)
    gain = cov @ A.T @ torch.linalg.inv(A @ cov @ A.T + std**2 * torch.eye(len(A)))
    return (mean + (task.observed.double().flatten(1) - A @ mean) @ gain.T).reshape(-1, *SHAPE).float()


def linear(fits: list[tuple[Tensor, Tensor]], y: Tensor, task: Task, truth: Tensor) -> Tensor:
    """LMMSE, one fit for all or one a class; without noise the ridge that serves these very digits best."""
    answers = []
    for std in [task.std] if task.std else RIDGES:
        out = torch.stack([lmmse(mean, cov, task, std) for mean, cov in fits])  # (1 or 10, n, 1, 28, 28)
        answers.append(out[y if len(fits) > 1 else 0 * y, torch.arange(len(y))].clamp(-1, 1))
    return max(answers, key=lambda answer: psnr(answer, truth).mean().item())


def methods(denoiser: Any, student: Any, task: Task, n: int, args: argparse.Namespace) -> dict[str, tuple[int, Any]]:
    """By name: how many draws, and a function (generator, **cond) -> one draw for each digit."""
    if task.std:
        remove = partial(td.remove_noise, x=task.observed, std=task.std)
        once = partial(remove, student, steps=1, sampler=td.consistency)
        return {
            MEAN: (1, lambda g, **c: remove(denoiser, steps=1, generator=g, **c)),
            "remove_noise": (args.draws, lambda g, **c: remove(denoiser, steps=args.steps, generator=g, **c)),
            "remove_noise, ODE": (
                1,
                lambda g, **c: remove(denoiser, steps=args.steps, sampler=td.dpm_solver_pp, **c),
            ),
            "student, one step": (1, lambda g, **c: once(**c)),
        }
    seen = (task.A, task.observed)
    projected, conditioned = td.Projected(denoiser, *seen), td.Conditioned(denoiser, *seen)
    both, edited = td.Projected(conditioned, *seen), td.Projected(student, *seen)
    draw = partial(td.sample, shape=(n, *SHAPE), steps=args.steps, sampler=SDE)
    edit = partial(td.sample, shape=(n, *SHAPE), sampler=td.consistency)
    found: dict[str, tuple[int, Any]] = {
        "Projected": (args.draws, lambda g, **c: draw(projected, generator=g, **c)),
        "Conditioned": (1, lambda g, **c: draw(conditioned, generator=g, **c)),
        "Projected(Conditioned)": (args.draws, lambda g, **c: draw(both, generator=g, **c)),
        "Projected(student), 4 steps": (args.draws, lambda g, **c: edit(edited, steps=4, generator=g, **c)),
    }
    if isinstance(task.A, td.Mask):
        for name, repeats in (("replacement", 1), ("RePaint, 5 repeats", 5)):
            times = td.resampling(td.uniform_angle(denoiser.schedule, args.walk), repeats=repeats)

            def walk(g: torch.Generator, times: Tensor = times, **c: Any) -> Tensor:
                noise = torch.randn(n, *SHAPE, generator=g)
                options = {"known": task.observed, "mask": task.A.mask, "generator": g}
                return td.final(td.inpaint(denoiser, noise, times, **options, **c))

            found[name] = (1, walk)
    return found


class Table:
    """Rows by method, columns by task; prints what is known."""

    def __init__(self, truth: Tensor, y: Tensor, columns: list[str]) -> None:
        self.truth, self.y, self.columns, self.classifier = truth, y, columns, td.load_classifier()
        self.cells: dict[str, dict[str, str]] = {}
        self.costs: dict[str, tuple[int, float]] = {}  # network calls and seconds for a picture
        self.errors: dict[tuple[str, str], float] = {}  # mean squared error

    @torch.no_grad()
    def add(self, row: str, column: str, answers: Tensor, calls: int = 0, seconds: float = 0.0) -> None:
        """answers (draws, n, 1, 28, 28)."""
        answers = answers.clamp(-1, 1)
        value = torch.stack([psnr(answer, self.truth) for answer in answers]).mean(0)
        t = torch.zeros(len(self.y))
        right = [(self.classifier(answer, t).argmax(1) == self.y).double().mean().item() for answer in answers]
        error = value.std().item() / math.sqrt(len(value))
        cell = f"{value.mean().item():.1f} ± {error:.1f}, {100 * sum(right) / len(right):.0f} %"
        self.cells.setdefault(row, {})[column] = cell
        self.errors[row, column] = (answers - self.truth).square().mean().item()
        self.costs[row] = calls, seconds
        print(f"{column:14}{row:50}{cell:22}{calls:4} calls {1000 * seconds:6.1f} ms", flush=True)

    def __str__(self) -> str:
        lines = [f"| | {' | '.join(self.columns)} | calls | ms |", f"| --- |{' --- |' * (len(self.columns) + 2)}"]
        for row, cells in self.cells.items():
            calls, seconds = self.costs[row]
            cost = f"{calls} | {1000 * seconds:.2g}" if calls else " | "
            lines.append(f"| {row} | {' | '.join(cells.get(c, '') for c in self.columns)} | {cost} |")
        return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100, help="test digits (default: 100)")
    parser.add_argument("--draws", type=int, default=4, help="K, draws for each digit that are averaged (default: 4)")
    parser.add_argument("--steps", type=int, default=10, help="of the samplers (default: 10)")
    parser.add_argument("--walk", type=int, default=50, help="of replacement and RePaint (default: 50)")
    args = parser.parse_args()
    denoiser, student = td.load_pretrained("mnist"), td.load_pretrained("mnist-consistency")
    calls = [0]
    for model in (denoiser, student):
        model.net.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))

    (train, labels), (x, y) = td.mnist(), td.mnist("test")
    train, chosen = train.float().flatten(1), torch.randperm(len(x), generator=seeded(0))[: args.n]
    x, y = x[chosen].float(), y[chosen]
    everything = moments(train)
    by_class = [moments(train[labels == k]) for k in range(10)]
    todo = tasks(x, everything[0].reshape(SHAPE).float())
    tables = [Table(x, y, [name for name, task in todo.items() if bool(task.std) == noisy]) for noisy in (False, True)]
    frames = {}
    print(f"n = {len(x)}, {args.draws} draws, {args.steps} steps, {torch.get_num_threads()} thread(s)\n", flush=True)

    for name, task in todo.items():
        table = tables[bool(task.std)]
        for label, naive in task.naive.items():
            table.add(label, name, naive[None])
        for title, fits, cond in (("", [everything], {}), (", label", by_class, {"y": y})):
            best = linear(fits, y, task, x)
            table.add(f"LMMSE{title}", name, best[None])
            for method, (draws, draw) in methods(denoiser, student, task, len(x), args).items():
                generator, calls[0], start = seeded(2), 0, time.process_time()
                made = torch.stack([draw(generator, **cond) for _ in range(draws)]).clamp(-1, 1)
                seconds = (time.process_time() - start) / draws / len(x)
                table.add(f"{method}{title}", name, made, calls[0] // draws, seconds)
                if draws > 1:
                    table.add(f"{method}{title}, mean of {draws}", name, made.mean(0, keepdim=True))
                if not title and name in SHOWN and method in ("Projected(Conditioned)", "remove_noise"):
                    seen = task.A.pinv(task.observed) if hasattr(task.A, "pinv") else task.observed
                    rows = torch.cat([row[:10] for row in (x, seen, best, made[0], made.mean(0))])
                    frames[name] = plot.grid(rows, columns=10, scale=2)

    for table in tables:
        print(f"\n{table}")
    print(f"\nSquared error of a draw over that of the mean of {args.draws}; of draws from the posterior it would be")
    print(f"{2 / (1 + 1 / args.draws):.2f} on average, and 2 over the posterior mean itself:")
    for table in tables:
        for (row, column), error in table.errors.items():
            for other in (f"{row}, mean of {args.draws}", row.replace("remove_noise", MEAN)):
                if other != row and (other, column) in table.errors:
                    print(f"{column:14}{row:40}over {other:50}{error / table.errors[other, column]:.2f}")
    OUT.mkdir(exist_ok=True)
    alt = "Ten digits for each task: the truth, what is seen, LMMSE, a draw and the mean of the draws."
    image = plot.strip(frames, columns=2, alt=alt)
    (OUT / "restoration.png").write_bytes(image.png)
    print(f"\n{alt} {OUT / 'restoration.png'}")


if __name__ == "__main__":
    main()
