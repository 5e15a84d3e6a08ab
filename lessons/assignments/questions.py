"""Questions of the problem sets that are not exercises of the lessons: the hidden side, which students do not get.

Written like the exercises of `tinydiff.check`; `number` makes one of a number that is asked for.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from tinydiff import check
from tinydiff.check import Case, Draw, Exercise, Spec, exercise

QUESTIONS: dict[str, Exercise] = {}


def question(**options):
    """Like `check.exercise`, and listed here."""

    def decorate(reference):
        made = exercise(**options)(reference)
        QUESTIONS[made.name] = made
        return made

    return decorate


NUMBERS: set[str] = set()  # names of variables that hold a number, not of functions


def number(name: str, lesson: int, task: str, answer: float, wrong: dict[str, tuple[float, str]]) -> None:
    """A question whose answer is a variable: a number, right to four digits. Known wrong numbers come with a hint."""

    def single(value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float32)  # judged as precisely as its dtype asks: to about four digits

    made = Exercise(name, lesson, task, lambda: single(answer), lambda draw: [Case("the number", ())])
    for what, (value, hint) in wrong.items():
        made.mistake(what, lambda value=value: single(value), hint, "")
    QUESTIONS[name] = made
    NUMBERS.add(name)


def find(name: str) -> Exercise:
    """A question of the problem sets, or an exercise of the lessons."""
    found = QUESTIONS.get(name) or check.EXERCISES.get(name)
    if found is None:
        known = ", ".join([*QUESTIONS, *check.EXERCISES])
        raise KeyError(f"No question is called {name!r}: add it to questions.py, or name one of {known}.")
    return found


# --- problem set 1 ----------------------------------------------------------------------------------------------------


def _pairs(draw: Draw) -> Iterator[Case]:
    for _ in range(3):
        s = draw.number(0.5, 0.9)
        yield Case("values", (s, s * draw.number(0.3, 0.9)))
    a_s = torch.tensor([0.9, 0.6, 0.3]) * draw.number(0.9, 1.0)
    yield Case("one pair for each sample", (a_s, a_s * draw.number(0.5, 0.9)))
    s = draw.number(0.5, 0.9)
    yield Case("s = t, where nothing is lost", (s, s))


@question(lesson=2, cases=_pairs)
def bound_weight(a_s, a_t):
    """The factor in front of the squared error of x0 in one term of the bound, from alpha-bar at s and at t."""
    return (a_s / (1 - a_s) - a_t / (1 - a_t)) / 2


bound_weight.mistake(
    "no half",
    lambda a_s, a_t: a_s / (1 - a_s) - a_t / (1 - a_t),
    "Twice too much. Which factor stands in front of the squared distance in the KL of two Gaussians?",
    "",
)
bound_weight.mistake(
    "negative",
    lambda a_s, a_t: (a_t / (1 - a_t) - a_s / (1 - a_s)) / 2,
    "A KL divergence is never negative. Which of s and t has more signal?",
    "",
)
bound_weight.mistake(
    "alpha-bar for the signal-to-noise ratio",
    lambda a_s, a_t: (a_s - a_t) / 2,
    "Divide signal by noise: alpha-bar is the signal's share alone.",
    "",
)
bound_weight.mistake(
    "standard deviations",
    lambda a_s, a_t: ((a_s / (1 - a_s)) ** 0.5 - (a_t / (1 - a_t)) ** 0.5) / 2,
    "The ratio is one of variances, so there is no root.",
    "",
)


# --- problem set 2 ----------------------------------------------------------------------------------------------------


def _clocks(draw: Draw) -> Iterator[Case]:
    for dim in 4, 6, 10:
        yield Case("values", (draw.whole(1, 900, 5).float(), dim))  # as in lesson 04, whose frequencies are float32
    yield Case("t = 0", (torch.zeros(2, dtype=torch.float64), 8))
    yield Case("a single frequency", (draw.whole(1, 900, 3).double(), 2))
    yield Case("float32 stays float32", (draw.whole(1, 900, 3).float(), 8))


@question(lesson=4, cases=_clocks)
def time_features(t, dim):
    """The cosines, then the sines, of t (B,) times dim/2 frequencies 10000^(-i / (dim/2)), i = 0, 1, ...: (B, dim)."""
    return _features(t, dim)


def _features(
    t, dim, frequencies=lambda half: 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half), swap=False
):
    angles = t[:, None] * frequencies(dim // 2)
    pair = (angles.sin(), angles.cos()) if swap else (angles.cos(), angles.sin())
    return torch.cat(pair, dim=1).to(t.dtype)


time_features.mistake(
    "sines first", lambda t, dim: _features(t, dim, swap=True), "At t = 0 all cosines are 1. Where do they stand?", ""
)
time_features.mistake(
    "frequencies that fall too slowly",
    lambda t, dim: _features(t, dim, lambda half: 10000.0 ** (-torch.arange(half, dtype=torch.float64) / (2 * half))),
    "The first frequency is right. The exponent runs over dim/2 values: what divides i?",
    "",
)
time_features.mistake(
    "frequencies that rise",
    lambda t, dim: _features(t, dim, lambda half: 10000.0 ** (torch.arange(half, dtype=torch.float64) / half)),
    "Your frequencies grow; the slow ones are to tell early from late. Look at the sign of the exponent.",
    "",
)
time_features.mistake(
    "counted from 1",
    lambda t, dim: _features(t, dim, lambda half: 10000.0 ** (-(torch.arange(half, dtype=torch.float64) + 1) / half)),
    "The first frequency is 1. What is i there?",
    "",
)

number(
    "parameters",
    4,
    "How many weights a 3x3 convolution from 3 to 4 channels has, biases included.",
    3 * 4 * 9 + 4,
    {
        "no biases": (3 * 4 * 9, "Right for the kernels. One more number belongs to each channel that comes out."),
        "a bias for each channel that goes in": (
            3 * 4 * 9 + 3,
            "Does a bias belong to what goes in or what comes out?",
        ),
        "no corner": (3 * 4 * 3 + 4, "A 3x3 kernel has more than three weights."),
    },
)

# --- problem set 3 ----------------------------------------------------------------------------------------------------


def _first_steps(draw: Draw) -> Iterator[Case]:
    T = int(draw.whole(40, 60))
    schedule = Spec("cosine", T=T)
    for what, shape in ("values", (4, 2)), ("values", (3, 2)), ("pictures", (2, 3, 4, 6)):
        s = draw.number(5, T / 2)
        yield Case(what, (schedule, draw.normal(*shape), draw.normal(*shape), s + draw.number(4, T / 2 - 5), s))
    t = draw.number(3, 6)
    yield Case("a long step", (schedule, draw.normal(3, 2), draw.normal(3, 2), 0.95 * T, 2.0))
    yield Case("the last step, s = 0, ends at x0", (schedule, draw.normal(3, 2), draw.normal(3, 2), t, 0.0))


@question(lesson=7, cases=_first_steps, library=("step", "ddim", "dpm_solver_pp", "dpm_solver_pp_singlestep", "sample"))
def first_order(schedule, x, x0, t, s):
    """DPM-Solver++ of order 1 from t to s: x and the guess x0, with h the difference of lambda."""
    return _first(schedule, x, x0, t, s)


def _first(schedule, x, x0, t, s, gain=lambda h: -math.expm1(-h), keep=lambda a_t, a_s, s_t, s_s: s_s / s_t):
    (a_t, s_t), (a_s, s_s) = schedule(t), schedule(s)
    h = float(schedule.half_log_snr(s) - schedule.half_log_snr(t))
    return keep(a_t, a_s, s_t, s_s) * x + a_s * gain(h) * x0


first_order.mistake(
    "the noise prediction's factor",
    lambda *given: _first(*given, keep=lambda a_t, a_s, s_t, s_s: a_s / a_t),
    "As s goes to 0 nothing of x should remain. Which ratio is 0 there?",
    "",
)
first_order.mistake(
    "the ratio upside down",
    lambda *given: _first(*given, keep=lambda a_t, a_s, s_t, s_s: s_t / s_s if s_s > 0 else s_s + math.inf),
    "Does the noise shrink or grow on the way to s?",
    "",
)
first_order.mistake(
    "h with the wrong sign",
    lambda *given: _first(*given, gain=lambda h: -math.expm1(h) if h < 300 else -math.inf),
    "Lambda grows towards the data, so h is positive. What is your weight of the guess for a long step?",
    "",
)
first_order.mistake(
    "h for the integral",
    lambda *given: _first(*given, gain=lambda h: h),
    "Nearly right for short steps: you kept the first term of an exponential. The integral can be solved exactly.",
    "",
)


def _errors(draw: Draw) -> Iterator[Case]:
    for what, low, high in ("values", 0.8, 1.2), ("values", 1.8, 2.2), ("a high order", 2.8, 3.2):
        steps = torch.tensor([8.0, 16.0, 40.0, 64.0, 256.0], dtype=torch.float64)
        bumps = (0.2 * draw.normal(5)).exp()
        yield Case(what, (draw.number(0.1, 10) * bumps * steps ** -draw.number(low, high), steps))


@question(lesson=7, cases=_errors)
def order_of(errors, steps):
    """The order p in error ~ steps^-p: the slope of the straight line fitted, by least squares, to the logarithms."""
    return _slope(errors.log(), -steps.log())


def _slope(y, x):
    x = x - x.mean()
    return (x * y).sum() / (x * x).sum()


order_of.mistake(
    "negative", lambda errors, steps: _slope(errors.log(), steps.log()), "More steps, smaller errors: and the sign?", ""
)
order_of.mistake(
    "the two ends only",
    lambda errors, steps: (errors[0] / errors[-1]).log() / (steps[-1] / steps[0]).log(),
    "You use two of the points. The line is to be fitted to all of them.",
    "",
)
order_of.mistake(
    "the mean of the slopes between neighbours",
    lambda errors, steps: ((errors[:-1] / errors[1:]).log() / (steps[1:] / steps[:-1]).log()).mean(),
    "Slopes between neighbours weigh short stretches like long ones. Fit one line to all points.",
    "",
)
order_of.mistake(
    "x and y swapped",
    lambda errors, steps: _slope(-steps.log(), errors.log()),
    "You fit the steps as a function of the errors. Which is the cause?",
    "",
)
order_of.mistake(
    "the errors without logarithm",
    lambda errors, steps: _slope(errors, -steps.log()),
    "A power becomes a straight line only if both axes are logarithmic.",
    "",
)

# --- problem set 4 ----------------------------------------------------------------------------------------------------


def _boundaries(draw: Draw) -> Iterator[Case]:
    T = int(draw.whole(40, 60))
    net, schedule = Spec("network", seed=draw.seed()), Spec("cosine", T=T)
    for what, shape, dtype, each in draw.batches():
        yield Case(what, (net, schedule, draw.normal(*shape, dtype=dtype), draw.whole(5, T - 5, *each)))
    yield Case("the boundary: f(x, 0) = x", (net, schedule, draw.normal(3, 2), torch.tensor(0)))
    yield Case("pure noise, t = T", (net, schedule, draw.normal(3, 2), torch.tensor(T)))


@question(lesson=10, cases=_boundaries, library=("VDenoiser", "EpsDenoiser", "X0Denoiser"))
def consistency_function(net, schedule, x, t):
    """f(x, t) = alpha x - sigma net(x, t), for t of shape () or (B,)."""
    alpha, sigma = schedule(t, like=x)
    return alpha * x - sigma * net(x, t)


consistency_function.mistake(
    "plus for minus",
    lambda net, schedule, x, t: (a := schedule(t, like=x))[0] * x + a[1] * net(x, t),
    "The net predicts v = alpha eps - sigma x0. Solve for x0 once more and look at the sign.",
    "",
)
consistency_function.mistake(
    "alpha and sigma swapped",
    lambda net, schedule, x, t: (a := schedule(t, like=x))[1] * x - a[0] * net(x, t),
    "At t = 0 the net must have no say. Which of alpha and sigma is 0 there?",
    "",
)
consistency_function.mistake(
    "as if the net predicted the noise",
    lambda net, schedule, x, t: (x - (a := schedule(t, like=x))[1] * net(x, t)) / a[0],
    "That inverts x_t for a net that predicts eps. This one predicts v.",
    "",
)
consistency_function.mistake(
    "the bare net", lambda net, schedule, x, t: net(x, t), "Nothing makes f(x, 0) = x in yours. Use the skip of x.", ""
)
consistency_function.mistake(
    "missing broadcast",
    lambda net, schedule, x, t: schedule(t)[0] * x - schedule(t)[1] * net(x, t),
    "Fine with one time. With one for each sample, let the schedule know what its numbers are to multiply.",
    "",
)


def _distances(draw: Draw) -> Iterator[Case]:
    for what, shape in ("values", (4, 2)), ("values", (3, 5)), ("pictures", (3, 2, 4, 6)), ("one sample", (1, 7)):
        yield Case(what, (draw.normal(*shape), draw.normal(*shape), draw.number(0.3, 0.9)))
    same = draw.normal(3, 2)
    yield Case("equal ones are at distance 0", (same, same, draw.number(0.3, 0.9)))


@question(lesson=10, cases=_distances, library=("pseudo_huber",))
def pseudo_huber(a, b, c):
    """The mean over the batch of sqrt(|a - b|^2 + c^2) - c, the square summed over a sample's values."""
    return ((a - b).square().flatten(1).sum(1) + c**2).sqrt().mean() - c


pseudo_huber.mistake(
    "value by value",
    lambda a, b, c: ((a - b).square() + c**2).sqrt().mean() - c,
    "The distance is one of whole samples: first the sum of squares, then the root.",
    "",
)
pseudo_huber.mistake(
    "c is not taken off",
    lambda a, b, c: ((a - b).square().flatten(1).sum(1) + c**2).sqrt().mean(),
    "How far apart are two equal samples for you?",
    "",
)
pseudo_huber.mistake(
    "c without square",
    lambda a, b, c: ((a - b).square().flatten(1).sum(1) + c).sqrt().mean() - c,
    "Under the root stand squares. Is c one?",
    "",
)
pseudo_huber.mistake(
    "the mean of squares",
    lambda a, b, c: ((a - b).square().flatten(1).mean(1) + c**2).sqrt().mean() - c,
    "A squared length is a sum over all values of a sample, not their mean.",
    "",
)
pseudo_huber.mistake(
    "the sum over the batch",
    lambda a, b, c: (((a - b).square().flatten(1).sum(1) + c**2).sqrt() - c).sum(),
    "Twice the batch, twice the loss? Average over the samples.",
    "",
)

number(
    "huber_c",
    10,
    "c = 0.00054 sqrt(d) for pictures of 28 x 28 values.",
    0.00054 * 28,
    {
        "no root": (0.00054 * 784, "d is the number of values; its root enters."),
        "the side for d": (0.00054 * 28**0.5, "d counts all values of a picture, not one side."),
    },
)
