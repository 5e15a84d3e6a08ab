"""Consistency models: one call from noise to data, learnt from a teacher's ODE or from the data alone.

A consistency function f(x_t, t) answers with the clean end of the path that the probability-flow ODE takes through x_t;
a denoiser answers with the mean of all data that x_t may have come from. What marks f is that it is constant along each
path, which the losses here ask for, and that f(x, 0) = x, which a `VDenoiser` fulfils by construction. Otherwise it is
a denoiser like any other, to be saved, loaded and called as one.
"""

import math
from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tinydiff.denoise import Denoiser, VDenoiser, eval_mode, layers
from tinydiff.diffuse import q_sample, randn
from tinydiff.guide import ClassifierFree
from tinydiff.sample import estimate, intervals, step
from tinydiff.schedule import Schedule, quadratic, root_angle
from tinydiff.train import EMA, Progress, train


def ddim_step(denoiser: Any, x: Tensor, t: Tensor, s: Tensor, **cond: Any) -> Tensor:
    """x_s, one step of `ddim` from times t to s of shape (B,), each sample with its own: off by O(h^2)."""
    return step(denoiser.schedule, x, estimate(denoiser, x, t, cond), t, s)


def heun_step(denoiser: Any, x: Tensor, t: Tensor, s: Tensor, **cond: Any) -> Tensor:
    """x_s by Heun's rule from times t to s of shape (B,): `step` with the mean of x0_hat at both ends; off by O(h^3).

    Two calls of the denoiser. This is DPM-Solver++(2S) with r = 1 (Lu et al. 2022b, alg. 1): unlike `heun`, which
    averages eps_hat, it stays sane on steps as long as those of coarse grids.
    """
    x0 = estimate(denoiser, x, t, cond)
    ahead = estimate(denoiser, step(denoiser.schedule, x, x0, t, s), s, cond)
    return step(denoiser.schedule, x, (x0 + ahead) / 2, t, s)


def substeps(
    denoiser: Any,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    n: int = 2,
    solver: Callable[..., Tensor] = heun_step,
    **cond: Any,
) -> Tensor:
    """x_s by n steps of the solver from times t to s of shape (B,), even in the angle: for long ways on coarse grids.

    The error falls with n as the solver's order says; `functools.partial(substeps, n=4)` is a solver, too.
    """
    schedule = denoiser.schedule
    phi, end = schedule.angle(t), schedule.angle(s)
    for k in range(1, n):
        middle = schedule.time_at_angle(torch.lerp(phi, end, k / n))
        x, t = solver(denoiser, x, t, middle, **cond), middle
    return solver(denoiser, x, t, s, **cond)


def squared_l2(a: Tensor, b: Tensor) -> Tensor:
    """||a - b||^2 of each sample, summed over its values: (B,) from (B, ...)."""
    return (a - b).square().flatten(1).sum(1)


def pseudo_huber(a: Tensor, b: Tensor, c: float | None = None) -> Tensor:
    """sqrt(||a - b||^2 + c^2) - c of each sample: (B,) from (B, ...) (Song & Dhariwal 2023, sec. 3.3).

    Quadratic for differences below c and linear above, which outliers move less.

    Args:
        c: > 0; by default 0.00054 sqrt(d) with d values in a sample, as the authors choose.
    """
    c = 0.00054 * math.sqrt(a[0].numel()) if c is None else c
    return (squared_l2(a, b) + c**2).sqrt() - c


def consistency_distillation_loss(
    student: Any,
    x0: Tensor,
    *,
    teacher: Any,
    times: Tensor,
    target: Any = None,
    solver: Callable[..., Tensor] = heun_step,
    distance: Callable[[Tensor, Tensor], Tensor] = pseudo_huber,
    generator: torch.Generator | None = None,
    **cond: Any,
) -> Tensor:
    """E d(f(x_t, t), f'(x_s, s)), x_s one step of the teacher's ODE from x_t: a scalar (Song et al. 2023, alg. 2).

    Each sample draws its own pair t > s of neighbours on the grid, all equally likely, and its own x_t = q_sample(x0).
    The gradient reaches f(x_t, t) only. Labels are dropped by none of the three.

    Args:
        student: f, called as a denoiser.
        x0: clean data (B, ...).
        teacher: the denoiser whose ODE is followed, such as a trained one or `ClassifierFree(trained, scale)`.
        times: the grid (N+1,), decreasing from T to 0.
        target: f', such as an EMA of the student's; the student itself when absent.
        solver: makes x_s, called as solver(teacher, x_t, t, s, **cond): `heun_step` or `ddim_step`.
        distance: d of two tensors (B, ...), (B,): `pseudo_huber`, `squared_l2` or your own.
        generator: source of pairs and noise.
        cond: passed to all three, such as y=labels.

    Raises:
        ValueError: the student is another `Denoiser` than a `VDenoiser`, the grid does not decrease to 0, or student
            and teacher disagree about the shape of a sample.
    """
    t, s = _pairs(student, times, len(x0), generator)
    x_t = q_sample(student.schedule, x0, t, randn(x0.shape, generator, x0))
    with torch.no_grad():
        x_s = solver(teacher, x_t, t, s, **cond)
    return _disagreement(student, x_t, t, target, x_s, s, distance, cond)


def consistency_training_loss(
    student: Any,
    x0: Tensor,
    *,
    times: Tensor,
    target: Any = None,
    distance: Callable[[Tensor, Tensor], Tensor] = pseudo_huber,
    generator: torch.Generator | None = None,
    **cond: Any,
) -> Tensor:
    """E d(f(x_t, t), f'(x_s, s)), x_t and x_s made of the same x0 and eps: no teacher (Song et al. 2023, alg. 3).

    Over all x0 and eps that give x_t, the mean of x_s is one `ddim` step with the exact denoiser, which nobody needs to
    know. Arguments and errors as for `consistency_distillation_loss`.
    """
    t, s = _pairs(student, times, len(x0), generator)
    eps = randn(x0.shape, generator, x0)
    x_t, x_s = (q_sample(student.schedule, x0, u, eps) for u in (t, s))
    return _disagreement(student, x_t, t, target, x_s, s, distance, cond)


def _pairs(student: Any, times: Tensor, n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """n pairs (t, s) of neighbouring times, t and s (n,) float64, for a student that can learn from them."""
    if isinstance(student, Denoiser):  # exact ones and wrappers know best
        _refuse_all_but_v(student)
    times = torch.as_tensor(times, dtype=torch.float64, device="cpu")
    intervals(student.schedule, times)  # for its checks
    if times[-1] != 0:
        raise ValueError(f"The grid ends at t = {times[-1]:g}, but must end at 0, where f(x, 0) = x: append a 0.")
    device = None if generator is None else generator.device
    i = torch.randint(len(times) - 1, (n,), generator=generator, device=device).cpu()
    return times[i], times[i + 1]


def _disagreement(
    student: Any,
    x_t: Tensor,
    t: Tensor,
    target: Any,
    x_s: Tensor,
    s: Tensor,
    distance: Callable[[Tensor, Tensor], Tensor],
    cond: dict[str, Any],
) -> Tensor:
    """The mean distance of the student's answer at x_t to the target's at x_s, which counts as a constant."""
    # The student goes first: autocast keeps the weights it has cast, and those cast without gradient would have none.
    with eval_mode(student):  # a label dropped for one of the two would teach that classes do not matter
        ours = student(x_t, t, **cond)
    if not ours.shape == x_t.shape == x_s.shape:
        raise ValueError(
            f"The data have shape {tuple(x_t.shape)}, the teacher's step {tuple(x_s.shape)} and the student's answer "
            f"{tuple(ours.shape)}: all must agree."
        )
    theirs = estimate(student if target is None else target, x_s, s, cond)
    return distance(ours, theirs).mean()


PICTURES: dict[str, Any] = {"refine": (2, 8), "grid": partial(root_angle, power=1 / 3), "solver": substeps}
"""What `distill` does best with on MNIST, in one to four steps (measured in benchmarks/README.md)."""


def distill(
    student: Denoiser,
    teacher: Any,
    batches: Iterable[Tensor | tuple[Tensor, Tensor]],
    *,
    ema: EMA | None = None,
    refine: tuple[int, int] = (4, 32),
    grid: Callable[[Schedule, int], Tensor] = quadratic,
    solver: Callable[..., Tensor] = heun_step,
    distance: Callable[[Tensor, Tensor], Tensor] = pseudo_huber,
    lr: float = 2e-3,
    **options: Any,
) -> Generator[Progress]:
    """Distil a teacher into a consistency model: `train` with `consistency_distillation_loss`, yielding every step.

    The grid refines while training goes on: what the student knows near the data reaches the noise within few intervals
    of a coarse grid, and the teacher's steps are exact on a fine one. The defaults are good for points and for the 8x8
    digits. On MNIST a small network errs in each interval, and on the way to pure noise most: few intervals, dense near
    the noise, serve it better, and `PICTURES` has them. Stops and resumes as `train` does, the grid too.

        student = copy.deepcopy(teacher).requires_grad_(True)  # the average of an EMA is frozen
        ema = EMA(student, decay=0.99)
        for p in distill(student, teacher, batches(x, y, size=128), ema=ema, seconds=600, lr=3e-3, **PICTURES): ...
        sample(ema.denoiser, (64, 1, 28, 28), steps=2, sampler=consistency, y=labels)

    No data set is needed: the teacher's own samples do, `x = sample(teacher, (4096, 1, 28, 28), y=y)`.

    Args:
        student: a `VDenoiser`, best a copy of the teacher.
        teacher: a denoiser of the same schedule, or a guided one: `ClassifierFree(teacher, scale)`.
        batches: yields x0 (B, ...) or (x0, y), as for `train`.
        ema: its average is the target network and what one samples from; without it the student is its own target.
        refine: numbers of intervals (first, last) of the grid, the square rising linearly (cf. Song et al. 2023).
        grid: makes the times; `quadratic` is dense near the data, where the teacher's last step is of order 1 only.
        solver, distance: as for `consistency_distillation_loss`.
        lr, options: for `train`, such as steps=, seconds=, generator= or checkpoint=.

    Raises:
        ValueError: student and teacher do not fit together, a guided teacher without classes, a student that is no
            `VDenoiser`, a grid that does not end at 0, or what `train` raises.
    """
    _check(student, teacher)
    first, last = refine
    if not 1 <= first <= last:
        raise ValueError(f"refine = {refine} must be two numbers of intervals, from 1 on and not falling: (4, 32).")

    def loss(
        student: Denoiser, x0: Tensor, *, fraction: float, generator: torch.Generator | None = None, **cond: Any
    ) -> Tensor:
        return consistency_distillation_loss(
            student,
            x0,
            teacher=teacher,
            times=grid(student.schedule, refined(fraction, first, last)),
            target=None if ema is None else ema.denoiser,
            solver=solver,
            distance=distance,
            generator=generator,
            **cond,
        )

    return train(student, batches, ema=ema, loss=loss, lr=lr, **options)


def refined(fraction: float, first: int, last: int) -> int:
    """How many intervals the grid has after that share of the budget: their square rises linearly, first to last.

    For a loss of your own: def loss(student, x0, *, fraction, **rest): times = quadratic(schedule, refined(fraction,
    4, 32)) ... is told the fraction by `train`.
    """
    return min(last, math.floor(math.sqrt(first**2 + fraction * ((last + 1) ** 2 - first**2))))


def _refuse_all_but_v(student: Any) -> None:
    """Where f(x, 0) is not x, a constant f has no loss at all."""
    if not isinstance(student, VDenoiser):
        raise ValueError(
            f"The student is of type {type(student).__name__}, but must be a VDenoiser, which is finite at t = T and "
            "the identity at t = 0, or it collapses: build it, or train the teacher that it is a copy of, as one."
        )


def _check(student: Denoiser, teacher: Any) -> None:
    """Refuse at once what would fail later or, worse, would not."""
    _refuse_all_but_v(student)
    guided = any(isinstance(d, ClassifierFree) for d in layers(teacher))
    *_, inner = layers(teacher)
    theirs, ours = (getattr(getattr(d, "net", None), "config", {}) for d in (inner, student))
    if guided and theirs.get("classes") == 0:
        raise ValueError("Guidance needs a teacher trained with classes, and this one has none: pass it unguided.")
    for name in ("dim", "channels", "classes"):
        if theirs and ours and theirs.get(name) != ours.get(name):
            raise ValueError(
                f"The teacher's network has {name} = {theirs.get(name)} and the student's {ours.get(name)}: they must "
                "agree; start from a copy, student = copy.deepcopy(teacher)."
            )
    if not torch.equal(student.schedule.log_alpha_bar, inner.schedule.log_alpha_bar):
        raise ValueError(
            "Teacher and student have different noise schedules, so that x_t means another thing to each: build the "
            "student with teacher.schedule."
        )
    parameters = {id(p) for p in student.parameters()}
    if isinstance(inner, Denoiser) and any(id(p) in parameters for p in inner.parameters()):
        raise ValueError("The student is the teacher itself, which would move along: student = copy.deepcopy(teacher).")
