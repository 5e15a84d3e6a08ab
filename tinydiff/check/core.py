"""Exercises that check themselves: a reference, the cases it is tried on, and known mistakes with hints of their own.

An exercise is a reference solution, whose docstring is the task, and some mistakes, each with the hint for whoever made
it and a second hint that tells more:

    @exercise(lesson=1, cases=times, library=("q_sample",))
    def q_sample(alpha_bar, x0, t, noise):
        '''x_t from x_0 in one jump; t has shape () or (B,).'''
        a = match(alpha_bar[t], x0)
        return a.sqrt() * x0 + (1 - a).sqrt() * noise

    q_sample.mistake(
        "variance for standard deviation",
        lambda alpha_bar, x0, t, noise: ...,
        "Measure the spread of your noise at a time in the middle. What should it be?",
        "sigma^2 is a variance. What multiplies the noise is a standard deviation.",
    )

`cases(draw)` yields a `Case` for each call: the property that it stands for, and the arguments: tensors from `draw`,
numbers, or a `Spec` for what is no array, such as a schedule. The first property is that of the values; without it
nothing counts. Import the exercise in `tinydiff/check/__init__.py`, and it is in the table, the tests and the
classroom: the tests demand five mistakes, that the reference passes, and that each mistake earns its own hint and no
other.

Checking is done in three parts, so that a classroom can put a wall between them: `Exercise.cases` makes the inputs,
`harness.observe` calls the function, `judge` compares what came out. In a notebook `check.q_sample(q_sample)` does all
three; `isolated.run` calls the function in a process of its own.
"""

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinydiff.check.harness import Array, Case, Observation, Spec, observe

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
UNTOUCHED = "its arguments stay as they are"
QUIET = "no numbers from the global generator"
ALIGN = "Fine with one pair of times. With one for each sample: along which side of x does torch lay (B,) numbers?"
TOLERANCE = {  # of what a value should be; else 1e-9. Python's floats become float32 in torch.tensor, which is no fault
    "number": 1e-4,
    "float32": 1e-4,
    "float16": 2e-2,
    "bfloat16": 1.5e-1,
}


class Draw:
    """Random inputs: the same seed gives the same."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype = F64) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(shape, generator=self.generator, dtype=F64).to(dtype)

    def whole(self, low: int, high: int, *shape: int) -> Tensor:
        """Whole numbers from low to high, both included."""
        return torch.randint(low, high + 1, shape, generator=self.generator)

    def number(self, low: float, high: float) -> float:
        """A number from low to high."""
        return low + (high - low) * torch.rand((), generator=self.generator, dtype=F64).item()

    def seed(self) -> int:
        """A seed for a `Spec`."""
        return int(self.whole(0, 10**6))

    def batches(self) -> Iterator[tuple[str, tuple[int, ...], torch.dtype, tuple[int, ...]]]:
        """(property, shape, dtype, shape of t) of the cases that nearly every exercise needs.

        The first is that of the values. A batch of 5 pictures of width 6 finds times that are not broadcast, and one
        of 6 those that are, along the wrong side.
        """
        yield "values", (4, 2), F64, ()
        yield "values", (3, 2), F64, ()
        yield "a time of its own for each sample", (5, 3, 4, 6), F64, (5,)
        yield "a batch as large as the pictures are wide", (6, 3, 4, 6), F64, (6,)
        yield "float32 stays float32", (3, 1, 4, 6), F32, (3,)
        yield "bfloat16 stays bfloat16", (4, 2), BF16, (4,)


@dataclass(frozen=True)
class Mistake:
    """A wrong function that somebody will write, and what to tell them: a hint, and one that tells more."""

    name: str
    function: Callable[..., Any]
    hint: str
    more: str


@dataclass(frozen=True)
class Verdict:
    """What a check found: true if all is right.

    Args:
        exercise: its name.
        properties: which hold, by name, the values first; empty if nothing was attempted.
        message: a sentence or more for the learner, without hints.
        mistake: the known mistake whose answers these are, if any.
        notes: how the code was run, for the teacher.
    """

    exercise: str
    properties: dict[str, bool]
    message: str
    mistake: Mistake | None = None
    notes: tuple[str, ...] = ()

    @property
    def score(self) -> float:
        """The share of the properties that hold, 0 to 1; 0 if the values do not."""
        held = list(self.properties.values())
        return sum(held) / len(held) if held and held[0] else 0.0

    def __bool__(self) -> bool:
        return self.score == 1

    def text(self, hint: int = 1) -> str:
        """The message with none (0), one or both (2) of the hints."""
        lines = [f"{self.exercise}: {self.message}"]
        if self.mistake and hint:
            lines += ["Hint: " + self.mistake.hint] + ["More: " + self.mistake.more] * (hint > 1)
            lines += [f"(check.{self.exercise}({self.exercise}, hint=2) tells more)"] * (hint == 1)
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Verdict({self.exercise}: {sum(self.properties.values())} of {len(self.properties)})"

    def _ipython_display_(self) -> None:
        """Nothing: what there is to say has been printed."""


@dataclass
class Exercise:
    """A reference, its cases and its mistakes; called with a learner's function it prints what it thinks of it."""

    name: str
    lesson: int
    task: str
    reference: Callable[..., Any]
    make: Callable[[Draw], Iterable[Case]]
    library: tuple[str, ...] = ()  # what of tinydiff would be an answer; `isolated` takes it away
    mistakes: list[Mistake] = field(default_factory=list)

    def mistake(self, name: str, function: Callable[..., Any], hint: str, more: str) -> None:
        """Add a known mistake."""
        self.mistakes.append(Mistake(name, function, hint, more))

    @property
    def signature(self) -> str:
        """How the function is called, such as "q_sample(alpha_bar, x0, t, noise)"."""
        return f"{self.name}({', '.join(inspect.signature(self.reference).parameters)})"

    def cases(self, seed: int = 0, *, gpu: bool = False) -> list[Case]:
        """The inputs, other ones for another seed; with a GPU the first and those in bfloat16 are tried there, too."""
        cases = list(self.make(Draw(seed)))
        if gpu:
            there = [c for c in cases if c.what in (cases[0].what, "bfloat16 stays bfloat16") and _has_tensors(c)]
            cases += [Case("on the GPU", c.args, c.probe, "cuda") for c in there]
        return cases

    def verdict(self, function: Callable[..., Any], seed: int = 0) -> Verdict:
        """What is to be said of a function, which is called in this process."""
        cases = self.cases(seed, gpu=torch.cuda.is_available())
        return judge(self, cases, [observe(function, case) for case in cases])

    def __call__(self, function: Callable[..., Any], *, hint: int = 1, seed: int = 0) -> Verdict:
        """Print what was checked, or what is wrong with a hint; hint=2 tells more, hint=0 less."""
        verdict = self.verdict(function, seed)
        print(verdict.text(hint))
        return verdict


def _has_tensors(case: Case) -> bool:
    """Tensors to be moved, and no generator, which stays where it is."""
    generator = any(isinstance(a, Spec) and a.kind == "generator" for a in case.args)
    return any(isinstance(a, Tensor) for a in case.args) and not generator


def exercise(
    *, lesson: int, cases: Callable[[Draw], Iterable[Case]], library: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], Exercise]:
    """Make an exercise of its reference, whose docstring is the task.

    Args:
        lesson: its number.
        cases: yields the cases, those of the values first.
        library: names in `tinydiff` that would be an answer.
    """

    def decorate(reference: Callable[..., Any]) -> Exercise:
        return Exercise(reference.__name__, lesson, inspect.getdoc(reference) or "", reference, cases, library)

    return decorate


def judge(exercise: Exercise, cases: Sequence[Case], seen: Sequence[Observation]) -> Verdict:
    """Compare what a function gave on the cases with the reference and the known mistakes."""
    if all(s.missing for s in seen):
        return Verdict(exercise.name, {}, "not attempted yet")
    truth = [observe(exercise.reference, case) for case in cases]
    values = cases[0].what
    problems = [_wrong(s, r, case.what == values) for case, s, r in zip(cases, seen, truth, strict=True)]
    properties = {case.what: True for case in cases}
    for case, problem in zip(cases, problems, strict=True):
        properties[case.what] &= not problem
    properties[UNTOUCHED] = not any(s.changed for s in seen)
    properties[QUIET] = not any(s.drew for s in seen)
    if all(properties.values()):
        return Verdict(exercise.name, properties, "right. Checked: " + "; ".join(properties) + ".")
    mistake = _known(exercise, cases, seen, truth, problems)
    first = next(what for what, held in properties.items() if not held)
    count = f"{sum(properties.values())} of {len(properties)} properties hold; not yet: {first}."
    return Verdict(exercise.name, properties, f"{count}\n{_told(exercise, cases, seen, problems)}", mistake)


def _known(
    exercise: Exercise,
    cases: Sequence[Case],
    seen: Sequence[Observation],
    truth: Sequence[Observation],
    problems: Sequence[str],
) -> Mistake | None:
    """The mistake that gives the same everywhere; or else, as people make two at once, the one that gives the same
    values up to the first property that fails, wrong ones among them, and in most cases after it."""
    start = next((i for i, problem in enumerate(problems) if problem), len(cases))
    until = {case.what for case in cases[: start + 1]}
    off = [not _same(s, r, strict=False) for s, r in zip(seen, truth, strict=True)]  # in value: dtypes have no hints
    best, count = None, 0
    for mistake in exercise.mistakes:
        theirs = [observe(mistake.function, case) for case in cases]
        if all(_same(s, m) for s, m in zip(seen, theirs, strict=True)):
            return mistake
        alike = [bool(s.outputs) and _same(s, m, strict=False) for s, m in zip(seen, theirs, strict=True)]
        needed = [a for case, s, a in zip(cases, seen, alike, strict=True) if case.what in until and s.outputs]
        wrong = [a and o for case, a, o in zip(cases, alike, off, strict=True) if case.what in until]
        if all(needed) and any(wrong) and sum(alike) > count:
            best, count = mistake, sum(alike)
    return best


def _same(a: Observation, b: Observation, strict: bool = True) -> bool:
    """Whether two functions gave the same in a case; if not strict, the same values in any dtype."""
    if strict and (a.error, a.missing, a.changed, a.drew, a.kinds) != (b.error, b.missing, b.changed, b.drew, b.kinds):
        return False
    return len(a.outputs) == len(b.outputs) and all(
        _close(_fit(x, y), y, max(_tolerance(j), _tolerance(k)))
        for x, y, j, k in zip(a.outputs, b.outputs, a.kinds, b.kinds, strict=True)
    )


def _wrong(seen: Observation, truth: Observation, values: bool) -> str:
    """What is wrong with an answer, in words; nothing if it is right. Among the values, more digits do no harm."""
    if seen.error:
        return seen.report
    if seen.missing:
        return "It returns None here."
    if len(seen.outputs) != len(truth.outputs):
        return f"It returns {_count(len(seen.outputs))}, not {_count(len(truth.outputs))}."
    for given, b, kind, asked in zip(seen.outputs, truth.outputs, seen.kinds, truth.kinds, strict=True):
        a = _fit(given, b)
        if a.shape != b.shape:
            return f"It returns the shape {a.shape}, not {b.shape}."
        finer = values and (asked, kind) == ("float32", "float64")
        if kind != asked and "number" not in (kind, asked) and not (a.ndim == 0 and asked == "float64") and not finer:
            return f"It returns {kind}, not {asked}."
        if not np.isfinite(a).all():
            return "It returns nan or inf."
        if not _close(a, b, _tolerance(asked)):
            if _close(a, b, 1e-5):
                return "Right to about six digits, but float64 has fifteen: they get lost on the way."
            return f"The values are wrong, by up to {np.abs(a - b).max():.2g}."
    return ""


def _count(n: int) -> str:
    return "one value" if n == 1 else f"{n} values"


def _tolerance(kind: str) -> float:
    return TOLERANCE.get(kind.partition(" ")[0], 1e-9)


def _fit(a: Array, b: Array) -> Array:
    """A single number may have as many sides of length 1 as it likes."""
    return a.reshape(b.shape) if a.size == b.size == 1 else a


def _close(a: Array, b: Array, tolerance: float) -> bool:
    if a.dtype.kind not in "fiub" or a.shape != b.shape:
        return False
    size = float(np.abs(b[np.isfinite(b)]).max(initial=0))
    scale = tolerance * (size + 1e-3)
    return bool(np.allclose(a.astype(np.float64), b.astype(np.float64), rtol=tolerance, atol=scale, equal_nan=True))


def _told(
    exercise: Exercise,
    cases: Sequence[Case],
    seen: Sequence[Observation],
    problems: Sequence[str],
) -> str:
    """The first case that goes wrong, its input, and what went wrong."""
    names = list(inspect.signature(exercise.reference).parameters)
    for case, s, problem in zip(cases, seen, problems, strict=True):
        if s.changed:
            problem = problem or f"It writes into {' and '.join(names[i] for i in s.changed if 0 <= i < len(names))}."
        if s.drew:
            problem = problem or "It draws from torch's global generator; use only what it is given."
        if problem:
            given = ", ".join(f"{n}={_short(a)}" for n, a in itertools.zip_longest(names, case.args))
            return f"{exercise.name}({given})\n{problem}"
    return ""


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        if value.numel() <= 6:
            shown = [round(v, 3) for v in value.flatten().tolist()]
            return f"{shown[0] if value.ndim == 0 else shown} {kind}"
        return f"{kind} {tuple(value.shape)}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
