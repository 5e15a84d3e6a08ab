"""Exercises of lessons 04 to 06: averages and conditioning in the U-Net, DDIM, score and flow."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tinydiff.check.core import ALIGN, BF16, F32, F64, Draw, exercise
from tinydiff.check.harness import Case, Spec
from tinydiff.schedule import Schedule, match

# --- 04 ---------------------------------------------------------------------------------------------------------------


def _updates(draw: Draw) -> Iterator[Case]:
    for _ in range(2):
        N = int(draw.whole(200, 300))
        yield Case("values", (int(draw.whole(60, 150)), N, draw.number(0.85, 0.93)))
    N = int(draw.whole(10, 20))
    yield Case("while warming up", (int(draw.whole(2, 8)), N, 0.999))
    yield Case("the first update, k = 0", (0, N, 0.9))
    yield Case("the last update, k = N - 1", (N - 1, N, 0.99))
    yield Case("a single update", (0, 1, 0.99))


@exercise(lesson=4, cases=_updates)
def weight_of(k: int, N: int, decay: float) -> float:
    """The share that the weights of update k = 0, 1, ..., N - 1 have in the average after N updates, warm-up included:
    update n keeps d_n = min(decay, (1 + n)/(10 + n)) of the average and takes 1 - d_n of the new."""
    return _share(k, N, lambda n: min(decay, (1 + n) / (10 + n)))


def _share(k: int, N: int, d: Callable[[int], float], first: int = 1, last: int = 0) -> float:
    return (1 - d(k)) * math.prod(d(n) for n in range(k + first, N + last))


weight_of.mistake(
    "no warm-up",
    lambda k, N, decay: _share(k, N, lambda n: decay),
    "After many updates it is right. What is d at the very first update, for any decay?",
    "You use the same d throughout. At the beginning it is smaller: the warm-up.",
)
weight_of.mistake(
    "the larger for the smaller",
    lambda k, N, decay: _share(k, N, lambda n: max(decay, (1 + n) / (10 + n))),
    "Does your average forget its start quickly or slowly?",
    "The warm-up lowers d at the beginning. Which of the two numbers has to win?",
)
weight_of.mistake(
    "the update's own d in the product",
    lambda k, N, decay: _share(k, N, lambda n: min(decay, (1 + n) / (10 + n)), first=0),
    "What is left of update k right after it has been taken in? Try a single update.",
    "Only later updates push it back. Your product starts one too early.",
)
weight_of.mistake(
    "the last update is missing",
    lambda k, N, decay: _share(k, N, lambda n: min(decay, (1 + n) / (10 + n)), last=-1),
    "After N updates, which number does the last one have? Try the last but one by hand.",
    "Your product ends one too early.",
)
weight_of.mistake(
    "one update too many",
    lambda k, N, decay: _share(k, N, lambda n: min(decay, (1 + n) / (10 + n)), last=1),
    "After N updates, which number does the last one have? Counting began at 0.",
    "Your product ends one too late.",
)
weight_of.mistake(
    "d for 1 - d",
    lambda k, N, decay: math.prod(min(decay, (1 + n) / (10 + n)) for n in range(k, N)),
    "Does the newest update get the small share or the large one? Do all shares and the start's sum to 1?",
    "d is what is kept of the old average. What does the new get?",
)
weight_of.mistake(
    "only later d",
    lambda k, N, decay: math.prod(min(decay, (1 + n) / (10 + n)) for n in range(k + 1, N)),
    "After a single update your share is 1. Is nothing left of the start?",
    "You have what is kept of update k later on. How much of it came in at all?",
)
weight_of.mistake(
    "updates counted from 1",
    lambda k, N, decay: _share(k, N, lambda n: min(decay, (2 + n) / (11 + n))),
    "What is d at the very first update? By the formula it is one tenth.",
    "You count updates from 1 in the warm-up; the first has number 0.",
)


def _features(draw: Draw) -> Iterator[Case]:
    for what, B, C, H, W, dtype in (
        ("values", 2, 3, 4, 5, F64),
        ("values", 3, 4, 2, 5, F64),
        ("as many channels as the pictures are wide", 2, 5, 3, 5, F64),
        ("a batch as large as the channels are many", 3, 3, 4, 5, F64),
        ("all four sides alike", 4, 4, 4, 4, F64),
        ("float32 stays float32", 2, 3, 4, 5, F32),
        ("bfloat16 stays bfloat16", 2, 3, 4, 5, BF16),
    ):
        h, scale, shift = draw.normal(B, C, H, W), draw.normal(B, C), draw.normal(B, C)
        yield Case(what, (h.to(dtype), scale.to(dtype), shift.to(dtype)))
    yield Case("scale 0 and shift 0 change nothing", (draw.normal(2, 3, 4, 5), torch.zeros(2, 3), torch.zeros(2, 3)))


@exercise(lesson=4, cases=_features)
def modulate(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """How time and class reach a block of the U-Net: scale and shift (B, C) act on the channels of h (B, C, H, W), and
    with both 0 nothing changes."""
    return h * (1 + scale[:, :, None, None]) + shift[:, :, None, None]


def _sides(v: Tensor) -> Tensor:
    return v[:, :, None, None]


modulate.mistake(
    "the 1 is missing",
    lambda h, scale, shift: h * _sides(scale) + _sides(shift),
    "A fresh network says 0 and 0. What does your block pass on then?",
    "A scale of 0 wipes everything out in yours. It should mean: leave as it is.",
)
modulate.mistake(
    "scale and shift swapped",
    lambda h, scale, shift: h * (1 + _sides(shift)) + _sides(scale),
    "With both 0 all is well. Set only the shift to 1: does every value grow by 1?",
    "The two have changed places.",
)
modulate.mistake(
    "shifted, then scaled",
    lambda h, scale, shift: (h + _sides(shift)) * (1 + _sides(scale)),
    "Set h to 0. Is what comes out the shift alone?",
    "You scale the shift, too. The order of the two matters.",
)
modulate.mistake(
    "no shift",
    lambda h, scale, shift: h * (1 + _sides(scale)),
    "Set h to 0. What should come out, and what does?",
    "One of the three arguments is not used.",
)
modulate.mistake(
    "no scale",
    lambda h, scale, shift: h + _sides(shift),
    "Change the scale. Does your answer change?",
    "One of the three arguments has no effect.",
)
modulate.mistake(
    "missing broadcast",
    lambda h, scale, shift: h * (1 + scale) + shift,
    "It runs when all sides are alike, and is wrong even then: along which sides of h does torch lay a tensor (B, C)?",
    "Torch aligns shapes from the right, so yours meet height and width. Give them two more sides of length 1.",
)
modulate.mistake(
    "along the width",
    lambda h, scale, shift: h * (1 + scale[:, None, None, :]) + shift[:, None, None, :],
    "It runs only if there are as many channels as columns. To which side of h do scale and shift belong?",
    "Your new sides stand in the middle; channels are the second side, so the new ones come last.",
)
modulate.mistake(
    "batch and channels swapped",
    lambda h, scale, shift: h * (1 + _sides(scale.T)) + _sides(shift.T),
    "It runs only if the batch is as large as the channels are many. Which side of scale is the batch?",
    "Somewhere you transpose. The first two sides already stand in the right order.",
)

# --- 05 ---------------------------------------------------------------------------------------------------------------


def _spreads(draw: Draw) -> Iterator[Case]:
    T = int(draw.whole(40, 60))
    schedule = Spec("cosine", T=T)
    for what, V, eta in (
        ("values", draw.number(0.3, 0.9), draw.number(0.3, 0.7)),
        ("values", draw.number(0.3, 0.9), draw.number(0.3, 0.7)),
        ("eta = 0, no fresh noise", draw.number(0.3, 0.9), 0.0),
        ("eta = 1, DDPM", draw.number(0.3, 0.9), 1.0),
        ("V = 1", 1.0, draw.number(0.3, 0.7)),
    ):
        s = int(draw.whole(3, T // 2))
        yield Case(what, (schedule, V, s + int(draw.whole(3, T // 2 - 3)), s, eta))
    yield Case("the last step, s = 0", (schedule, 0.7, 4, 0, 0.5))
    yield Case("the first step, t = T", (schedule, 1.0, T, T - 6, 0.5))


def _kwc(schedule: Schedule, t: float, s: float, eta: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    c = eta * sigma_s / sigma_t * (1 - (alpha_t / alpha_s) ** 2).sqrt()
    k = (sigma_s**2 - c**2).sqrt() / sigma_t
    return k, alpha_s - k * alpha_t, c, alpha_t


def _after(rule: Callable[..., Tensor]) -> Callable[..., float]:
    def variance(schedule: Schedule, V: float, t: float, s: float, eta: float) -> float:
        return float(rule(V, *_kwc(schedule, t, s, eta)))

    return variance


@exercise(lesson=5, cases=_spreads)
def variance_after(schedule: Schedule, V: float, t: float, s: float, eta: float) -> float:
    """The variance of x_s if x_t has variance V and the guess is alpha_t x_t, data being N(0, 1): the step is
    x_s = k x_t + w x0_hat + c z with the weights of section 2."""
    k, w, c, alpha = _kwc(schedule, t, s, eta)
    return float((k + w * alpha) ** 2 * V + c**2)


variance_after.mistake(
    "c without square",
    _after(lambda V, k, w, c, alpha: (k + w * alpha) ** 2 * V + c),
    "With eta = 0 it is right. What is the variance of c times a standard normal number?",
    "c is a standard deviation. Its square enters.",
)
variance_after.mistake(
    "no fresh noise",
    _after(lambda V, k, w, c, alpha: (k + w * alpha) ** 2 * V),
    "With eta = 0 it is right. Which term of the step have you left out?",
    "The fresh noise is independent, so its variance is added.",
)
variance_after.mistake(
    "the factor without square",
    _after(lambda V, k, w, c, alpha: (k + w * alpha) * V + c**2),
    "If you double a number, what happens to its variance?",
    "A factor of x enters its variance squared.",
)
variance_after.mistake(
    "the guess taken for x_t",
    _after(lambda V, k, w, c, alpha: (k + w) ** 2 * V + c**2),
    "What is the guess here? Look up what an exact denoiser of N(0, 1) answers.",
    "You put x_t in place of the guess; the guess is smaller.",
)
variance_after.mistake(
    "added as if independent",
    _after(lambda V, k, w, c, alpha: (k**2 + (w * alpha) ** 2) * V + c**2),
    "Variances add up for independent things. Are x_t and a guess made from it independent?",
    "Collect what multiplies x_t first, the guess's part included, and square then.",
)
variance_after.mistake(
    "V is ignored",
    _after(lambda V, k, w, c, alpha: (k + w * alpha) ** 2 + c**2),
    "For V = 1 it is right. And what remains of a smaller V?",
    "The part that comes from x_t is proportional to V.",
)
variance_after.mistake(
    "the fresh noise times V",
    _after(lambda V, k, w, c, alpha: ((k + w * alpha) ** 2 + c**2) * V),
    "For V = 1 it is right. Does fresh noise care how large x_t was?",
    "Only what comes from x_t is proportional to V.",
)
variance_after.mistake(
    "the standard deviation",
    _after(lambda V, k, w, c, alpha: ((k + w * alpha) ** 2 * V + c**2).sqrt()),
    "All the parts are right. Is it a variance that you return at the end?",
    "The last root is one too many.",
)


def _ddim(draw: Draw) -> Iterator[Case]:
    T = int(draw.whole(40, 60))
    schedule = Spec("cosine", T=T)

    def case(what: str, shape: tuple[int, ...], dtype: torch.dtype, t: Tensor, s: Tensor, eta: float) -> Case:
        x, x0_hat, noise = (draw.normal(*shape, dtype=dtype) for _ in range(3))
        return Case(what, (schedule, x, x0_hat, t, s, eta, noise))

    for what, shape, dtype, each in draw.batches():
        s = draw.whole(3, T // 2, *each)
        yield case(what, shape, dtype, s + draw.whole(3, T // 2 - 3, *each), s, draw.number(0.4, 0.8))
    t, s = torch.tensor(T // 2 + 5), torch.tensor(T // 2 - 5)
    yield case("eta = 0, DDIM", (3, 2), F64, t, s, 0.0)
    yield case("eta = 1, DDPM", (3, 2), F64, t, s, 1.0)
    yield case("neighbours, s = t - 1", (3, 2), F64, t, t - 1, 0.6)
    yield case("the last step, s = 0", (3, 2), F64, torch.tensor(5), torch.tensor(0), 0.6)


@exercise(lesson=5, cases=_ddim, library=("step", "ddim", "ddpm", "q_posterior", "dpm_solver_pp"))
def ddim_step(schedule: Schedule, x: Tensor, x0_hat: Tensor, t: Tensor, s: Tensor, eta: float, noise: Tensor) -> Tensor:
    """One step of DDIM from t to any s < t, equations (1) and (2) of lesson 05: the guess at its new size, the old
    noise turned down, fresh noise times c. schedule(t, like=x) gives alpha and sigma; t and s have shape () or (B,)."""
    return _ddim_step(schedule, x, x0_hat, t, s, eta, noise)


def _ddim_step(
    schedule: Schedule,
    x: Tensor,
    x0_hat: Tensor,
    t: Tensor,
    s: Tensor,
    eta: float,
    noise: Tensor,
    *,
    fresh: Callable[..., Tensor] = lambda eta, sigma_s, sigma_t, beta: eta * sigma_s / sigma_t * beta.sqrt(),
    before: Callable[[Tensor, Tensor], Tensor] = lambda t, s: s,
    old: Callable[..., Tensor] = lambda sigma_s, c: (sigma_s**2 - c**2).clamp(min=0).sqrt(),
    size: Callable[..., Tensor] = lambda alpha_t, alpha_s: alpha_s,
    eps_of: Callable[..., Tensor] = lambda x, x0, alpha, sigma: (x - alpha * x0) / sigma,
) -> Tensor:
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    c = fresh(eta, sigma_s, sigma_t, 1 - (alpha_t / schedule(before(t, s))[0]) ** 2)
    eps = eps_of(x, x0_hat, match(alpha_t, x), match(sigma_t, x))
    new = match(size(alpha_t, alpha_s), x) * x0_hat + match(old(sigma_s, c), x) * eps
    return new + match(c, x) * noise


ddim_step.mistake(
    "eta at a stride",
    lambda *given: _ddim_step(*given, before=lambda t, s: t - 1),
    "Right for neighbours. With a stride, how much fresh noise does DDPM add between t and s?",
    "Your c holds the beta of the single step before t. Over a stride take the table at both ends.",
)
ddim_step.mistake(
    "eta as a ratio of variances",
    lambda *given: _ddim_step(*given, fresh=lambda eta, ss, st, beta: eta**0.5 * ss / st * beta.sqrt()),
    "Right for eta = 0 and for eta = 1. Between them, is eta a ratio of variances or of standard deviations?",
    "You take the root of eta. Equation (2) has it as it is.",
)
ddim_step.mistake(
    "the old noise is not turned down",
    lambda *given: _ddim_step(*given, old=lambda sigma_s, c: sigma_s),
    "With eta = 0 it is right. With fresh noise added, how much noise do you have altogether?",
    "Old and fresh noise together must have the variance that belongs to s. Make room for the fresh one.",
)
ddim_step.mistake(
    "standard deviations subtracted",
    lambda *given: _ddim_step(*given, old=lambda sigma_s, c: sigma_s - c),
    "With eta = 0 it is right. Do independent noises add up by their standard deviations?",
    "It is variances that add up, so it is a variance that you have to subtract; then take the root.",
)
ddim_step.mistake(
    "beta for beta-tilde in c",
    lambda *given: _ddim_step(*given, fresh=lambda eta, ss, st, beta: eta * beta.sqrt()),
    "With eta = 0 it is right. In the last step, is the result free of noise?",
    "The ratio of the two sigmas is missing from your c.",
)
ddim_step.mistake(
    "c without root",
    lambda *given: _ddim_step(*given, fresh=lambda eta, ss, st, beta: eta * ss / st * beta),
    "With eta = 0 it is right. With eta = 1 you should get DDPM's noise; yours is less.",
    "The beta in your c is a variance. Take its root.",
)
ddim_step.mistake(
    "alpha at t for alpha at s",
    lambda *given: _ddim_step(*given, size=lambda alpha_t, alpha_s: alpha_t),
    "In the last step the result should be the guess itself. Is yours too small?",
    "The guess enters with the size that a signal has where you arrive, not where you start.",
)
ddim_step.mistake(
    "the guess taken for the noise",
    lambda *given: _ddim_step(*given, eps_of=lambda x, x0, alpha, sigma: x0),
    "The function is given a guess of the data. Where do you take the noise from?",
    "The noise follows from x and the guess: what is left of x when the signal is taken out?",
)
ddim_step.mistake(
    "the signal stays in the noise",
    lambda *given: _ddim_step(*given, eps_of=lambda x, x0, alpha, sigma: x / sigma),
    "Is all of x noise? What is left of it when the signal is taken out?",
    "You divide x by sigma; first take out the guess at the size it has at t.",
)
ddim_step.mistake(
    "missing broadcast",
    lambda schedule, x, x0_hat, t, s, eta, noise: (
        (c := eta * schedule(s)[1] / schedule(t)[1] * (1 - (schedule(t)[0] / schedule(s)[0]) ** 2).sqrt()) * noise
        + schedule(s)[0] * x0_hat
        + (schedule(s)[1] ** 2 - c**2).sqrt() * (x - schedule(t)[0] * x0_hat) / schedule(t)[1]
    ),
    ALIGN,
    "Torch aligns shapes from the right. The schedule reshapes and casts if told what its answer is to multiply.",
)

# --- 06 ---------------------------------------------------------------------------------------------------------------


def _guesses(draw: Draw) -> Iterator[Case]:
    T = int(draw.whole(40, 60))
    schedule = Spec("cosine", T=T)
    for what, shape, dtype, each in draw.batches():
        t = draw.whole(5, T - 5, *each)
        yield Case(what, (schedule, draw.normal(*shape, dtype=dtype), draw.normal(*shape, dtype=dtype), t))
    for what, t in ("t = 1, where the score is steep", torch.tensor(1)), ("t = T", torch.tensor(T)):
        yield Case(what, (schedule, draw.normal(3, 2), draw.normal(3, 2), t))


def _score(rule: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def wrong(schedule: Schedule, x: Tensor, x0_hat: Tensor, t: Tensor) -> Tensor:
        return rule(x, x0_hat, *schedule(t, like=x))

    return wrong


@exercise(lesson=6, cases=_guesses)
def score(schedule: Schedule, x: Tensor, x0_hat: Tensor, t: Tensor) -> Tensor:
    """The gradient of log p_t at x, from the guess x0_hat. schedule(t, like=x) gives alpha and sigma; t has shape () or
    (B,)."""
    alpha, sigma = schedule(t, like=x)
    return (alpha * x0_hat - x) / sigma**2


score.mistake(
    "the sign",
    _score(lambda x, x0, alpha, sigma: (x - alpha * x0) / sigma**2),
    "Far from all data, does your arrow point towards them or away?",
    "The score leads up the density, towards the data: turn your arrow round.",
)
score.mistake(
    "sigma for its square",
    _score(lambda x, x0, alpha, sigma: (alpha * x0 - x) / sigma),
    "The direction is right, the length is not. What does the score of a normal density divide by?",
    "You divide by a standard deviation. It is the variance that belongs there.",
)
score.mistake(
    "the noise itself",
    _score(lambda x, x0, alpha, sigma: (x - alpha * x0) / sigma),
    "That is a guess of the noise. Does it point up the density, and is it long enough where sigma is small?",
    "Noise and score differ by a sign and one more sigma.",
)
score.mistake(
    "the guess at full size",
    _score(lambda x, x0, alpha, sigma: (x0 - x) / sigma**2),
    "At small t it is nearly right. At large t, how big is the signal that hides in x?",
    "The centre of x_t given x_0 is not x_0; it has shrunk.",
)
score.mistake(
    "not divided",
    _score(lambda x, x0, alpha, sigma: alpha * x0 - x),
    "The direction is right. How steep is a narrow density compared with a wide one?",
    "Something in the denominator is missing: a variance.",
)
score.mistake(
    "divided by alpha",
    _score(lambda x, x0, alpha, sigma: (alpha * x0 - x) / (alpha * sigma**2)),
    "The direction is right. Which factor have you divided by that belongs to the signal?",
    "Only the variance of the noise belongs in the denominator.",
)
score.mistake(
    "missing broadcast",
    lambda schedule, x, x0_hat, t: (schedule(t)[0] * x0_hat - x) / schedule(t)[1] ** 2,
    ALIGN,
    "Torch aligns shapes from the right. The schedule reshapes and casts if told what its answer is to multiply.",
)


def _friends(draw: Draw) -> Iterator[Case]:
    T = int(draw.whole(40, 60))
    schedule = Spec("cosine", T=T)
    for what, shape, dtype, each in draw.batches():
        t = draw.whole(5, T - 5, *each)
        yield Case(what, (Spec("flow"), schedule, draw.normal(*shape, dtype=dtype), t))
    yield Case("t = 0, where nothing is to be done", (Spec("flow"), schedule, draw.normal(3, 2), torch.tensor(0)))
    yield Case("t = T", (Spec("flow"), schedule, draw.normal(3, 2), torch.tensor(T)))


def _from_flow(rule: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def wrong(flow: Callable[..., Tensor], schedule: Schedule, x: Tensor, t: Tensor) -> Tensor:
        return rule(flow, x, *schedule(t, like=x), t)

    return wrong


@exercise(lesson=6, cases=_friends)
def x0_from_flow(flow: Callable[..., Tensor], schedule: Schedule, x: Tensor, t: Tensor) -> Tensor:
    """The guess x0_hat at our x and t by a friend's flow-matching network: flow(z, tau) guesses eps - x0 at
    z = (1 - tau) x0 + tau eps, with tau of shape (), (B,) or (B, 1, ..., 1); t has shape () or (B,)."""
    alpha, sigma = schedule(t, like=x)
    z, tau = x / (alpha + sigma), sigma / (alpha + sigma)
    return z - tau * flow(z, tau)


x0_from_flow.mistake(
    "x for z",
    _from_flow(lambda flow, x, a, s, t: x - (tau := s / (a + s)) * flow(x, tau)),
    "The weights of your friend's mixture sum to 1. Do those of ours?",
    "Your friend's point is z, not x: rescale it before you ask.",
)
x0_from_flow.mistake(
    "the sign",
    _from_flow(lambda flow, x, a, s, t: (z := x / (a + s)) + (tau := s / (a + s)) * flow(z, tau)),
    "Your friend's arrow points towards the noise. Where do you want to go?",
    "From z to the data you walk against the flow.",
)
x0_from_flow.mistake(
    "our sigma for tau",
    _from_flow(lambda flow, x, a, s, t: (z := x / (a + s)) - s * flow(z, s)),
    "The point is right, the clock is not. At equal parts of signal and noise tau should be a half.",
    "tau is the share of the noise when both weights are made to sum to 1.",
)
x0_from_flow.mistake(
    "the clock runs backwards",
    _from_flow(lambda flow, x, a, s, t: (z := x / (a + s)) - (tau := a / (a + s)) * flow(z, tau)),
    "At t = 0 nothing is to be done. What does your tau say there?",
    "Your tau is 1 for clean data. Your friend's clock begins with clean data at 0.",
)
x0_from_flow.mistake(
    "walked to the noise",
    _from_flow(lambda flow, x, a, s, t: (z := x / (a + s)) + (1 - (tau := s / (a + s))) * flow(z, tau)),
    "You follow the arrow to its end. Which end is that?",
    "What you return is a guess of the noise. Walk the other way, and only as far as you have come.",
)
x0_from_flow.mistake(
    "asked at our t",
    _from_flow(lambda flow, x, a, s, t: (z := x / (a + s)) - s / (a + s) * flow(z, t)),
    "Your friend's network knows times from 0 to 1 only. Which time do you tell it?",
    "You walk the right way but ask at t. Translate the time, too.",
)
x0_from_flow.mistake(
    "scaled back",
    _from_flow(lambda flow, x, a, s, t: ((z := x / (a + s)) - (tau := s / (a + s)) * flow(z, tau)) * (a + s)),
    "At t = 0 and where alpha + sigma is 1 it is right. Are your friend's data and ours not the same data?",
    "The point z is rescaled, but x0 means the same in both languages. Leave it.",
)
x0_from_flow.mistake(
    "missing broadcast",
    lambda flow, schedule, x, t: (
        (z := x / sum(schedule(t))) - (tau := schedule(t)[1] / sum(schedule(t))) * flow(z, tau)
    ),
    ALIGN,
    "Torch aligns shapes from the right. The schedule reshapes and casts if told what its answer is to multiply.",
)


def _edm(draw: Draw) -> Iterator[Case]:
    schedule = Spec("cosine", T=50)
    net = Spec("denoiser", T=50)
    for what, shape, dtype, each in draw.batches():
        sigma = torch.exp(draw.normal(*each) / 2)
        yield Case(what, (net, schedule, draw.normal(*shape, dtype=dtype), sigma))
    for what, level in ("little noise", 0.05), ("much noise", 5.0):
        yield Case(what, (net, schedule, draw.normal(3, 2) * (1 + level), torch.tensor(level, dtype=F64)))


def _as_edm(
    scale: Callable[[Tensor], Tensor] = lambda s: (1 + s**2).rsqrt(),
    lam: Callable[[Tensor], Tensor] = lambda s: -s.log(),
    out: Callable[[Tensor], Tensor] = torch.ones_like,
) -> Callable[..., Tensor]:
    def wrong(denoiser: Callable[..., Tensor], schedule: Schedule, x: Tensor, sigma: Tensor) -> Tensor:
        return match(out(sigma), x) * denoiser(match(scale(sigma), x) * x, schedule.time(lam(sigma)))

    return wrong


@exercise(lesson=6, cases=_edm)
def edm_denoiser(denoiser: Callable[..., Tensor], schedule: Schedule, x: Tensor, sigma: Tensor) -> Tensor:
    """EDM's D(x; sigma), the guess of the data at x = x0 + sigma n, by our denoiser(x_t, t): which x_t is it, and which
    t? schedule.time(lam) gives the t whose log(alpha/sigma) is lam; sigma (EDM's, float64) has shape () or (B,)."""
    return denoiser(match((1 + sigma**2).rsqrt(), x) * x, schedule.time(-sigma.log()))


edm_denoiser.mistake(
    "unscaled network input",
    _as_edm(scale=torch.ones_like),
    "EDM's x grows with its sigma. How large are the points that our denoiser has been trained on?",
    "The time is right. But you hand on x as it is; our x_t has signal and noise whose squares sum to 1.",
)
edm_denoiser.mistake(
    "scaled by the square",
    _as_edm(scale=lambda s: 1 / (1 + s**2)),
    "If x0 has variance 1, which variance has what you hand on? It should be 1.",
    "You divide by a variance; a standard deviation belongs there.",
)
edm_denoiser.mistake(
    "divided by sigma",
    _as_edm(scale=lambda s: 1 / s),
    "With much noise it is nearly right. With little noise, how large is what you hand on?",
    "You divide by the size of the noise alone. What is the size of data and noise together?",
)
edm_denoiser.mistake(
    "divided by 1 + sigma",
    _as_edm(scale=lambda s: 1 / (1 + s)),
    "That is flow matching's point, whose weights sum to 1. What sums to 1 in ours?",
    "Variances add up, not standard deviations: squares inside, a root outside.",
)
edm_denoiser.mistake(
    "time upside down",
    _as_edm(lam=torch.log),
    "With much noise, does your t lie near T or near 0?",
    "The ratio in lambda is signal over noise; EDM's sigma is noise over signal.",
)
edm_denoiser.mistake(
    "the full log SNR",
    _as_edm(lam=lambda s: -2 * s.log()),
    "Right where sigma is 1. Is our lambda the logarithm of a ratio of variances?",
    "You are off by a factor of 2: lambda is half the log of the signal-to-noise ratio.",
)
edm_denoiser.mistake(
    "scaled back",
    _as_edm(out=lambda s: (1 + s**2).sqrt()),
    "The question is put right. Does x0 mean another thing to EDM than to us?",
    "You undo the scaling at the end. Points are scaled, but the data are the same data.",
)
edm_denoiser.mistake(
    "scaled back by dividing",
    _as_edm(out=lambda s: (1 + s**2).rsqrt()),
    "The question is put right. Compare your answer with the data: why is it too small?",
    "You scale the answer as you have scaled the question. Leave the answer alone.",
)
