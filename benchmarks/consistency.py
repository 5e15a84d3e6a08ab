"""One to four steps of a consistency model beside its teacher: quality, and images per second.

    python benchmarks/consistency.py                                 # the shipped ones: eight minutes on one core
    python benchmarks/consistency.py CHECKPOINT --n 2000              # a file of tinydiff distill

Pictures per second of CPU time, all threads together; 1,000-step DDPM draws few pictures, the others --n.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

import tinydiff as td
from tinydiff.evaluate import load_reference, measure


def drawn(
    denoiser: td.Denoiser, sampler: Callable[..., Iterator[td.State]], steps: int, n: int, seed: int = 0
) -> tuple[Tensor, float]:
    """n digits, 0 to 9 in turn, and CPU seconds for each thousand; consistency on its own grid, in float32."""
    generator, out, start = torch.Generator().manual_seed(seed), [], time.process_time()
    for y in (torch.arange(n) % 10).split(250):
        shape = (len(y), 1, 28, 28)
        out.append(td.sample(denoiser, shape, steps=steps, sampler=sampler, generator=generator, y=y))
    return torch.cat(out), (time.process_time() - start) * 1000 / n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", nargs="?", type=Path, help="a file of tinydiff distill (default: mnist-consistency)")
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--few", type=int, default=250, help="pictures of DDPM with 1000 steps, for its speed")
    args = parser.parse_args()
    teacher = td.load_pretrained("mnist")
    student = td.load(args.student) if args.student else td.load_pretrained("mnist-consistency")
    floor, y = load_reference().real(args.n), torch.arange(args.n) % 10
    drawn(teacher, td.ddim, 1, 250)  # warms up
    x, seconds = drawn(teacher, td.dpm_solver_pp, 20, args.n)
    best, usual = measure(x, y), seconds
    print(f"n = {args.n}, {torch.get_num_threads()} threads, float32; floor {floor.frechet:.3f}; teacher: mnist\n")
    print(f"{'':34}{'Frechet':>9}{'/ teacher':>11}{'/ floor':>9}{'class':>8}{'pictures/s':>12}{'times':>7}")
    print(f"{'real test digits':34}{floor.frechet:9.3f}{'':11}{1:9.2f}{floor.agreement:8.1%}", flush=True)
    rows = [(f"teacher, DPM-Solver++(2M) {k}", teacher, td.dpm_solver_pp, k) for k in (20, 4, 2, 1)]
    rows += [(f"student, consistency {k}", student, td.consistency, k) for k in (1, 2, 4, 8)]
    for name, denoiser, sampler, steps in rows:
        if steps < 20:
            x, seconds = drawn(denoiser, sampler, steps, args.n)
        q = best if steps == 20 else measure(x, y)
        print(
            f"{name:34}{q.frechet:9.3f}{q.frechet / best.frechet:11.2f}{q.frechet / floor.frechet:9.2f}"
            f"{q.agreement:8.1%}{1000 / seconds:12.1f}{usual / seconds:7.1f}",
            flush=True,
        )
    _, seconds = drawn(teacher, td.ddpm, 1000, args.few)
    print(f"{'teacher, DDPM 1000':34}{'':37}{1000 / seconds:12.1f}{usual / seconds:7.3f}")


if __name__ == "__main__":
    main()
