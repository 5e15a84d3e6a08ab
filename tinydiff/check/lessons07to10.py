"""Exercises of lessons 07 to 10: DPM-Solver++, guidance, latents, consistency."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tinydiff.check.core import ALIGN, BF16, F32, F64, Draw, exercise
from tinydiff.check.harness import Case, Spec
from tinydiff.schedule import Schedule, match

SAME_LINES = (
    "Torch aligns shapes from the right. The schedule reshapes and casts if told what its answer is to multiply."
)

# --- 07 ---------------------------------------------------------------------------------------------------------------


def _two_guesses(draw: Draw) -> Iterator[Case]:
    T = int(draw.whole(40, 60))
    schedule = Spec("cosine", T=T)

    def case(what: str, shape: tuple[int, ...], dtype: torch.dtype, t: float, before: float, after: float) -> Case:
        x, x0, x0_prev = (draw.normal(*shape, dtype=dtype) for _ in range(3))
        return Case(what, (schedule, x, x0, x0_prev, t + before, t, t - after))

    for what, shape, dtype in (
        ("values", (4, 2), F64),
        ("values", (3, 2), F64),
        ("pictures", (2, 3, 4, 6), F64),
        ("float32 stays float32", (3, 1, 4, 6), F32),
        ("bfloat16 stays bfloat16", (4, 2), BF16),
    ):
        yield case(what, shape, dtype, draw.number(0.45 * T, 0.55 * T), draw.number(2, 5), draw.number(7, 12))
    yield case("a short step after a long one", (3, 2), F64, 0.5 * T, 12.0, 3.0)
    yield case("the last step, s = 0", (3, 2), F64, 3.0, 2.0, 3.0)


@exercise(lesson=7, cases=_two_guesses, library=("dpm_solver_pp", "dpm_solver_pp_singlestep", "sample"))
def update_2m(schedule: Schedule, x: Tensor, x0: Tensor, x0_prev: Tensor, t_prev: float, t: float, s: float) -> Tensor:
    """One step of DPM-Solver++(2M) from x at t to s, with the guesses x0, made at t, and x0_prev, made at t_prev > t.
    schedule(t) gives alpha and sigma, schedule.half_log_snr(t) lambda. A step to s = 0 returns x0."""
    return _update_2m(schedule, x, x0, x0_prev, t_prev, t, s)


def _update_2m(
    schedule: Schedule,
    x: Tensor,
    x0: Tensor,
    x0_prev: Tensor,
    t_prev: float,
    t: float,
    s: float,
    *,
    guess: Callable[..., Tensor] = lambda x0, x0_prev, r: x0 + (x0 - x0_prev) / (2 * r),
    ends: bool = True,
    keep: Callable[..., Tensor] = lambda a_t, a_s, s_t, s_s: s_s / s_t,
    gain: Callable[[float], float] = lambda h: -math.expm1(-h),
) -> Tensor:
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    lam_prev, lam_t, lam_s = (schedule.half_log_snr(u).item() for u in (t_prev, t, s))
    h = lam_s - lam_t
    mean = x0 if ends and s == 0 else guess(x0, x0_prev, torch.tensor((lam_t - lam_prev) / h, dtype=F64).to(x0))
    x_s: Tensor = match(keep(alpha_t, alpha_s, sigma_t, sigma_s), x) * x + match(alpha_s * gain(h), x) * mean
    return x_s


update_2m.mistake(
    "DDIM",
    lambda *given: _update_2m(*given, guess=lambda x0, x0_prev, r: x0),
    "That is a step of order 1. Which of your arguments does it not use?",
    "The older guess tells in which direction guesses are moving. Draw the line through both.",
)
update_2m.mistake(
    "all of the slope",
    lambda *given: _update_2m(*given, guess=lambda x0, x0_prev, r: x0 + (x0 - x0_prev) / r),
    "You follow the line to the end of the step. Which value of it stands for the whole step?",
    "The mean of a line over an interval lies in the middle.",
)
update_2m.mistake(
    "r0 upside down",
    lambda *given: _update_2m(*given, guess=lambda x0, x0_prev, r: x0 + (x0 - x0_prev) * r / 2),
    "After a very short past step, does the difference of the guesses mean a steep line or a flat one?",
    "r0 is the past step over the coming one. Yours is the other way round.",
)
update_2m.mistake(
    "no r0",
    lambda *given: _update_2m(*given, guess=lambda x0, x0_prev, r: x0 + (x0 - x0_prev) / 2),
    "Right if all steps are alike. Are yours, in lambda?",
    "The guesses differ by what the past step brought, and you apply it to the coming one: compare their lengths.",
)
update_2m.mistake(
    "history in the wrong order",
    lambda *given: _update_2m(*given, guess=lambda x0, x0_prev, r: x0_prev + (x0_prev - x0) / (2 * r)),
    "Which of the two guesses is newer, made nearer to where you are going?",
    "You start from the older guess and follow the line back in time. The two have changed places.",
)
update_2m.mistake(
    "the slope's sign",
    lambda *given: _update_2m(*given, guess=lambda x0, x0_prev, r: x0 - (x0 - x0_prev) / (2 * r)),
    "If guesses have been growing, do you expect the next to be larger or smaller?",
    "You walk the line backwards: take the newer guess less the older.",
)
update_2m.mistake(
    "the lengths in t",
    lambda schedule, x, x0, x0_prev, t_prev, t, s: _update_2m(
        schedule, x, x0, x0_prev, t_prev, t, s, guess=lambda a, b, _: a + (a - b) * (t - s) / (2 * (t_prev - t))
    ),
    "Your r0 is a ratio of times. On which axis is the line drawn?",
    "Everything in this solver is a function of lambda; measure the steps there.",
)
update_2m.mistake(
    "noise prediction's factors",
    lambda *given: _update_2m(*given, keep=lambda a_t, a_s, s_t, s_s: a_s / a_t),
    "The guess is of the data. If it were x0 all along, what should remain of x as s goes to 0?",
    "What multiplies x is a ratio of alphas in yours; that belongs to the solver for the noise.",
)
update_2m.mistake(
    "expm1 with the wrong sign",
    lambda *given: _update_2m(*given, gain=lambda h: math.expm1(h) if h < 300 else math.inf),
    "Your weight of the guess grows without bound with h. What should it be for a very long step?",
    "For a very long step the guess is all there is, with weight alpha at s. Check the sign in the exponent.",
)
update_2m.mistake(
    "nan at the end",
    lambda *given: _update_2m(*given, ends=False),
    "All is right but the last step, where lambda is infinite. What is r0 there?",
    "At s = 0 the coming step is infinitely long, and r0 is 0. Say what is to be returned there.",
)

# --- 08 ---------------------------------------------------------------------------------------------------------------


def _labelled(draw: Draw) -> Iterator[Case]:
    T = int(draw.whole(40, 60))
    denoiser = Spec("denoiser", T=T)
    for what, shape, dtype, each in draw.batches():
        x, y, scale = draw.normal(*shape, dtype=dtype), draw.whole(1, 6, shape[0]), draw.number(1.5, 4)
        yield Case(what, (denoiser, scale, x, draw.whole(5, T - 5, *each), y), "calls")
    for what, scale in ("scale 0, without class", 0.0), ("scale 1, the class itself", 1.0):
        yield Case(what, (denoiser, scale, draw.normal(3, 2), draw.whole(5, T - 5), draw.whole(1, 6, 3)), "calls")


@exercise(lesson=8, cases=_labelled, library=("ClassifierFree",))
def batched(denoiser: Any, scale: float, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Classifier-free guidance with ONE call: both halves in one batch of denoiser(x, t, y=labels), label -1 for "no
    class"; then scale times as far from the unconditional answer as the conditional one. t has shape () or (B,)."""
    guided: Tensor = _batched(denoiser, scale, x, t, y)
    return guided


def _batched(
    denoiser: Any,
    scale: float,
    x: Tensor,
    t: Tensor,
    y: Tensor,
    *,
    none: int = -1,
    line: Callable[..., Any] = lambda u, c, scale: u + scale * (c - u),
    repeat: Callable[[Tensor], Tensor] = lambda t: torch.cat([t, t]) if t.ndim else t,
) -> Any:
    both = denoiser(torch.cat([x, x]), repeat(t), y=torch.cat([y, torch.full_like(y, none)]))
    conditional, unconditional = both.chunk(2)
    return line(unconditional, conditional, scale)


batched.mistake(
    "halves swapped",
    lambda *given: _batched(*given, line=lambda u, c, scale: c + scale * (u - c)),
    "With scale 1 you should get the conditional answer. Which half do you get?",
    "The halves come out in the order in which you put them in. You walk away from the class.",
)
batched.mistake(
    "1 + w",
    lambda *given: _batched(*given, line=lambda u, c, scale: u + (1 + scale) * (c - u)),
    "With scale 0 you should get the unconditional answer. What does a paper call w, and what do we call scale?",
    "You are one too far along the line: our scale is the paper's w and 1 more already.",
)
batched.mistake(
    "the conditional answer times the scale",
    lambda *given: _batched(*given, line=lambda u, c, scale: scale * c),
    "With scale 1 it is right. With scale 0 you get nothing at all; what should you get?",
    "The unconditional answer has no part in yours.",
)
batched.mistake(
    "two calls",
    lambda denoiser, scale, x, t, y: (
        (u := denoiser(x, t, y=torch.full_like(y, -1))) + scale * (denoiser(x, t, y=y) - u)
    ),
    "The values are right. How often have you asked the denoiser?",
    "Put both questions into one batch of double size, and take its answer apart.",
)
batched.mistake(
    "class 0 for no class",
    lambda *given: _batched(*given, none=0),
    "Your unconditional answer knows too much. Which label have you given it?",
    "0 is a class like any other. What stands for none?",
)
batched.mistake(
    "both halves returned",
    lambda *given: _batched(*given, line=lambda u, c, scale: torch.cat([u + scale * (c - u), u])),
    "Your answer is twice as large as x. What is the second half good for?",
    "Only the guided half is asked for.",
)
batched.mistake(
    "t not doubled",
    lambda *given: _batched(*given, repeat=lambda t: t),
    "Right with one time for all. With a time for each sample: how many samples has your batch, and how many times?",
    "x and the labels are doubled, the times are not. With a single time there is nothing to double.",
)
batched.mistake(
    "no class for both",
    lambda denoiser, scale, x, t, y: _batched(denoiser, scale, x, t, torch.full_like(y, -1)),
    "Change the labels. Does your answer change?",
    "Both halves are asked without a class.",
)


def _glaring(draw: Draw) -> Iterator[Case]:
    for what, shape, dtype, size in (
        ("values", (4, 50), F64, 2.0),
        ("values", (3, 40), F64, 2.0),
        ("each sample has a threshold of its own", (5, 3, 4, 6), F64, 2.0),
        ("a batch as large as the pictures are wide", (6, 3, 4, 6), F64, 2.0),
        ("float32 stays float32", (3, 1, 4, 6), F32, 2.0),
        ("tame samples stay as they are", (3, 20), F64, 0.1),
    ):
        spread = torch.linspace(0.6, 1.6, shape[0], dtype=F64).reshape(-1, *[1] * (len(shape) - 1))
        x = draw.normal(*shape) * (spread * size)
        yield Case(what, (x.to(dtype), draw.number(0.7, 0.9)))
    yield Case("quantile 1, nothing is cut", (draw.normal(3, 20) * 2, 1.0))


def _threshold(
    x0_hat: Tensor,
    quantile: float,
    *,
    of: Callable[[Tensor], Tensor] = torch.abs,
    floor: float = 1.0,
    divide: bool = True,
    whole: bool = False,
) -> Tensor:
    rows = of(x0_hat).flatten(1)
    m = torch.quantile(rows.flatten() if whole else rows, quantile, dim=-1).clamp(min=floor)
    m = match(m, x0_hat)
    return x0_hat.clamp(-m, m) / (m if divide else 1)


@exercise(lesson=8, cases=_glaring, library=("DynamicThreshold",))
def dynamic_threshold(x0_hat: Tensor, quantile: float) -> Tensor:
    """Dynamic thresholding: for each sample m is the quantile of its absolute values, but at least 1; values beyond m
    are clipped, and all are divided by m. x0_hat has shape (B, ...)."""
    return _threshold(x0_hat, quantile)


dynamic_threshold.mistake(
    "not divided",
    lambda *given: _threshold(*given, divide=False),
    "Clipped, yes. But does what you return lie between -1 and 1?",
    "One step is missing: squeeze what has been clipped.",
)
dynamic_threshold.mistake(
    "a static clip",
    lambda x0_hat, quantile: x0_hat.clamp(-1, 1),
    "That is the naive repair. Where has the quantile gone?",
    "You clip at 1 whatever the sample. Let each sample say how far it goes, then squeeze.",
)
dynamic_threshold.mistake(
    "tame samples are stretched",
    lambda *given: _threshold(*given, floor=1e-9),
    "Samples that glare come out right. What happens to a dim one, whose values are all small?",
    "Dividing by a small m brightens what was fine. Below which m should nothing happen?",
)
dynamic_threshold.mistake(
    "one threshold for the whole batch",
    lambda *given: _threshold(*given, whole=True),
    "Take one glaring sample out of the batch. Do the others change?",
    "Each sample has a quantile of its own; yours runs over all of them together.",
)
dynamic_threshold.mistake(
    "signs are not dropped",
    lambda *given: _threshold(*given, of=lambda x: x),
    "Values of -5 glare as much as those of 5. Does your quantile see them?",
    "You take the quantile of the values themselves; it is their size that matters.",
)
dynamic_threshold.mistake(
    "not clipped",
    lambda x0_hat, quantile: (
        x0_hat / match(torch.quantile(x0_hat.abs().flatten(1), quantile, dim=1).clamp(min=1), x0_hat)
    ),
    "Squeezed, yes. But does everything that you return lie between -1 and 1?",
    "The few values beyond m are still there. What should happen to them?",
)
dynamic_threshold.mistake(
    "along the last side only",
    lambda x0_hat, quantile: (
        x0_hat.clamp(-(m := torch.quantile(x0_hat.abs(), quantile, dim=-1, keepdim=True).clamp(min=1)), m) / m
    ),
    "With points it is right. With pictures, what is one sample: a row of pixels, or all of it?",
    "Lay out all values of a sample in one row before you take the quantile.",
)
dynamic_threshold.mistake(
    "missing broadcast",
    lambda x0_hat, quantile: (
        x0_hat.clamp(-(m := torch.quantile(x0_hat.abs().flatten(1), quantile, dim=1).clamp(min=1)), m) / m
    ),
    "Your m is right. Along which side of x does torch lay a tensor of shape (B,)?",
    "Torch aligns shapes from the right. Reshape m to (B, 1, ..., 1).",
)

# --- 09 ---------------------------------------------------------------------------------------------------------------


def _gaussians(draw: Draw) -> Iterator[Case]:
    for what, shape, dtype in (
        ("values", (4, 3), F64),
        ("values", (3, 2), F64),
        ("pictures", (5, 3, 2, 4), F64),
        ("a batch as large as the pictures are wide", (4, 3, 2, 4), F64),
        ("float32 stays float32", (3, 1, 2, 4), F32),
    ):
        mean1, log_var1, mean2, log_var2 = (draw.normal(*shape) for _ in range(4))
        yield Case(what, tuple(a.to(dtype) for a in (mean1, log_var1 / 2, mean2, log_var2 / 2)))
    mean, log_var = draw.normal(3, 2), draw.normal(3, 2)
    yield Case("a law to itself has 0", (mean, log_var, mean.clone(), log_var.clone()))
    yield Case("to the standard normal law", (mean, log_var, torch.zeros(3, 2).double(), torch.zeros(3, 2).double()))


@exercise(lesson=9, cases=_gaussians)
def kl_between(mean1: Tensor, log_var1: Tensor, mean2: Tensor, log_var2: Tensor) -> Tensor:
    """KL(N(mean1, var1) || N(mean2, var2)) in nats, one number for each sample: all four have shape (B, ...), the
    answer (B,)."""
    return _kl(mean1, log_var1, mean2, log_var2).flatten(1).sum(1)


def _kl(mean1: Tensor, log_var1: Tensor, mean2: Tensor, log_var2: Tensor) -> Tensor:
    return (((mean1 - mean2) ** 2 + log_var1.exp()) / log_var2.exp() - 1 + log_var2 - log_var1) / 2


kl_between.mistake(
    "one number for the batch",
    lambda *given: _kl(*given).sum(),
    "How many numbers do you return for a batch of five? One for each was asked for.",
    "You add up over the samples as well. Keep the first side.",
)
kl_between.mistake(
    "the mean over the batch",
    lambda *given: _kl(*given).flatten(1).sum(1).mean(),
    "You return a single number, however many samples there are. What was asked for?",
    "You average over the samples. Keep the first side.",
)
kl_between.mistake(
    "a mean over coordinates",
    lambda *given: _kl(*given).flatten(1).mean(1),
    "Two independent coordinates tell twice as much as one. Does your number grow with the number of coordinates?",
    "Nats add up over coordinates.",
)
kl_between.mistake(
    "the half is missing",
    lambda *given: 2 * _kl(*given).flatten(1).sum(1),
    "Compare with the formula of section 3 at mean2 0 and variance 1. Is yours larger?",
    "A normal density has a factor in its exponent that you have lost.",
)
kl_between.mistake(
    "the -1 is missing",
    lambda *given: (_kl(*given) + 0.5).flatten(1).sum(1),
    "What is the KL of a law to itself? What do you get?",
    "A constant is missing: each coordinate is too large by the same amount.",
)
kl_between.mistake(
    "the other way round",
    lambda mean1, log_var1, mean2, log_var2: _kl(mean2, log_var2, mean1, log_var1).flatten(1).sum(1),
    "Under which of the two laws is the expectation taken, the first or the second?",
    "A KL is not symmetric, and yours goes from the second to the first.",
)
kl_between.mistake(
    "log-variance taken for log standard deviation",
    lambda mean1, log_var1, mean2, log_var2: _kl(mean1, 2 * log_var1, mean2, 2 * log_var2).flatten(1).sum(1),
    "What is the exponential of log_var, a variance or a standard deviation?",
    "You square what is a variance already.",
)
kl_between.mistake(
    "to the standard normal law",
    lambda mean1, log_var1, mean2, log_var2: _kl(mean1, log_var1, 0 * mean2, 0 * log_var2).flatten(1).sum(1),
    "Change mean2. Does your answer change?",
    "That is the KL of section 3. The second law has a mean and a variance of its own here.",
)
kl_between.mistake(
    "the distance of the means is not divided",
    lambda mean1, log_var1, mean2, log_var2: (
        ((mean1 - mean2) ** 2 + (log_var1 - log_var2).exp() - 1 + log_var2 - log_var1).flatten(1).sum(1) / 2
    ),
    "Right if the second variance is 1. Is a distance of 1 far for a wide law, too?",
    "Measure the distance of the means in units of the second law's spread.",
)
kl_between.mistake(
    "the logarithms' signs",
    lambda mean1, log_var1, mean2, log_var2: (
        (_kl(mean1, log_var1, mean2, log_var2) - log_var2 + log_var1).flatten(1).sum(1)
    ),
    "Can your KL become negative? Try a very narrow first law.",
    "A narrow law tells much, so its log-variance must push the KL up. Look at the signs of the two logarithms.",
)

# --- 10 ---------------------------------------------------------------------------------------------------------------


def _pairs(draw: Draw) -> Iterator[Case]:
    T = int(draw.whole(40, 60))
    f, schedule = Spec("network", seed=draw.seed()), Spec("cosine", T=T)

    def case(what: str, shape: tuple[int, ...], dtype: torch.dtype, t: Tensor, s: Tensor, probe: str = "call") -> Case:
        x0, eps = draw.normal(*shape, dtype=dtype), draw.normal(*shape, dtype=dtype)
        return Case(what, (f, schedule, x0, t, s, eps), probe)

    for what, shape, dtype, each in draw.batches():
        s = draw.whole(5, T // 2, *each)
        yield case(what, shape, dtype, s + draw.whole(5, T // 2 - 5, *each), s)
    yield case("the last pair, s = 0", (4, 2), F64, torch.tensor(6), torch.tensor(0))
    yield case("the first pair, t = T", (4, 2), F64, torch.tensor(T), torch.tensor(T - 6))
    s = draw.whole(5, T // 2, 6)
    yield case("the gradient reaches one side only", (6, 2), F64, s + 8, s, "gradient")


@exercise(lesson=10, cases=_pairs, library=("consistency_training_loss", "consistency_distillation_loss"))
def training_pair_loss(
    f: Callable[..., Tensor], schedule: Schedule, x0: Tensor, t: Tensor, s: Tensor, eps: Tensor
) -> Tensor:
    """Consistency training for given pairs s < t, of shape () or (B,): make x_t and x_s from the same x0 and eps, ask
    f(x_t, t) and f(x_s, s), return their squared L2 distance: summed over a sample's values, averaged over samples. One
    side is a constant. schedule(t, like=x0) gives alpha and sigma."""
    return _pair_loss(f, schedule, x0, t, s, eps)


def _pair_loss(
    f: Callable[..., Tensor],
    schedule: Schedule,
    x0: Tensor,
    t: Tensor,
    s: Tensor,
    eps: Tensor,
    *,
    ours: Callable[..., Tensor] = lambda f, x_t, x_s, t, s: f(x_t, t),
    theirs: Callable[..., Tensor] = lambda f, x_t, x_s, t, s, x0: f(x_s, s).detach(),
    loss: Callable[[Tensor], Tensor] = lambda d: d.square().flatten(1).sum(1).mean(),
) -> Tensor:
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t, like=x0), schedule(s, like=x0)
    x_t, x_s = alpha_t * x0 + sigma_t * eps, alpha_s * x0 + sigma_s * eps
    return loss(ours(f, x_t, x_s, t, s) - theirs(f, x_t, x_s, t, s, x0))


training_pair_loss.mistake(
    "gradient through the target",
    lambda *given: _pair_loss(*given, theirs=lambda f, x_t, x_s, t, s, x0: f(x_s, s)),
    "The value is right, the gradient is not: both ends move towards each other. Which one already knows more?",
    "The end nearer to the data is the teacher of the other; its answer must count as a constant.",
)
training_pair_loss.mistake(
    "the wrong side stopped",
    lambda *given: _pair_loss(
        *given,
        ours=lambda f, x_t, x_s, t, s: f(x_t, t).detach(),
        theirs=lambda f, x_t, x_s, t, s, x0: f(x_s, s),
    ),
    "The value is right, the gradient is not: the wrong end learns. Which one already knows more?",
    "Truth travels from data to noise. Yours makes the end near the data follow the other.",
)
training_pair_loss.mistake(
    "no gradient at all",
    lambda *given: _pair_loss(*given, ours=lambda f, x_t, x_s, t, s: f(x_t, t).detach()),
    "The value is right, but nothing can be learnt from it: no gradient comes back to f.",
    "You have stopped both sides. Only one is a constant.",
)
training_pair_loss.mistake(
    "the target asked at t",
    lambda *given: _pair_loss(*given, theirs=lambda f, x_t, x_s, t, s, x0: f(x_s, t).detach()),
    "Two points, two times. Which time does your target's point have?",
    "x_s lives at s, but you tell f that it lives at t.",
)
training_pair_loss.mistake(
    "the student asked at s",
    lambda *given: _pair_loss(*given, ours=lambda f, x_t, x_s, t, s: f(x_t, s)),
    "Two points, two times. Which time does your student's point have?",
    "x_t lives at t, but you tell f that it lives at s.",
)
training_pair_loss.mistake(
    "the data for the target",
    lambda *given: _pair_loss(*given, theirs=lambda f, x_t, x_s, t, s, x0: x0),
    "What you compare with is the data itself. What does a network learn that way?",
    "That trains a denoiser, whose answer is a mean. Compare with what f says nearer to the data.",
)
training_pair_loss.mistake(
    "a clean point asked at s",
    lambda *given: _pair_loss(*given, theirs=lambda f, x_t, x_s, t, s, x0: f(x0, s).detach()),
    "Right for s = 0. For all other s, how noisy is the point that belongs to s?",
    "The target's point needs its share of the noise, too.",
)
training_pair_loss.mistake(
    "a mean over coordinates",
    lambda *given: _pair_loss(*given, loss=lambda d: d.square().mean()),
    "Your loss is too small, by a factor that depends on the size of a sample.",
    "A squared distance adds up over the values of a sample; you average there.",
)
training_pair_loss.mistake(
    "a sum over the batch",
    lambda *given: _pair_loss(*given, loss=lambda d: d.square().sum()),
    "Your loss grows with the batch. A learning rate that is right for 8 samples would be too large for 80.",
    "Add up over a sample's values, but average over samples.",
)
training_pair_loss.mistake(
    "the distance itself",
    lambda *given: _pair_loss(*given, loss=lambda d: d.square().flatten(1).sum(1).sqrt().mean()),
    "Double the disagreement of a sample: does its loss double or quadruple?",
    "You return the distance; its square is asked for.",
)
training_pair_loss.mistake(
    "missing broadcast",
    lambda f, schedule, x0, t, s, eps: (
        (f(schedule(t)[0] * x0 + schedule(t)[1] * eps, t) - f(schedule(s)[0] * x0 + schedule(s)[1] * eps, s).detach())
        .square()
        .flatten(1)
        .sum(1)
        .mean()
    ),
    ALIGN,
    SAME_LINES,
)


def _answers(draw: Draw) -> Iterator[Case]:
    T = int(draw.whole(40, 60))
    f, schedule = Spec("denoiser", T=T), Spec("cosine", T=T)

    def case(what: str, shape: tuple[int, ...], dtype: torch.dtype, times: list[float], probe: str = "call") -> Case:
        generator = Spec("generator", seed=draw.seed())
        return Case(what, (f, schedule, draw.normal(*shape, dtype=dtype), times, generator), probe)

    steps = [float(T), 0.7 * T, 0.4 * T, 0.0]
    yield case("values", (4, 2), F64, steps)
    yield case("values", (3, 2), F64, [float(T), 0.5 * T, 0.0])
    yield case("pictures", (5, 3, 4, 6), F64, steps)
    yield case("float32 stays float32", (3, 1, 4, 6), F32, steps)
    yield case("bfloat16 stays bfloat16", (4, 2), BF16, steps)
    yield case("one step", (4, 2), F64, [float(T), 0.0])
    yield case("one call for each step", (3, 2), F64, steps, "calls")


@exercise(lesson=10, cases=_answers, library=("consistency", "sample", "q_sample"))
def multistep(
    f: Callable[..., Tensor], schedule: Schedule, x: Tensor, times: list[float], generator: torch.Generator
) -> Tensor:
    """Multistep consistency sampling over decreasing times that end at 0: answer at t, noise the answer afresh to the
    next time s, ask again; the last answer is the sample. f(x, t) answers; draw each noise with
    torch.randn(x.shape, generator=generator, dtype=x.dtype), and none for s = 0."""
    return _multistep(f, schedule, x, times, generator)


def _multistep(
    f: Callable[..., Tensor],
    schedule: Schedule,
    x: Tensor,
    times: list[float],
    generator: torch.Generator,
    *,
    to: Callable[[float, float], float] = lambda t, s: s,
    told: Callable[[float, float], float] = lambda t, s: t,
    stop: bool = True,
    fresh: Callable[[Tensor, Tensor], Tensor] = lambda new, first: new,
    signal: Callable[[Tensor], Tensor] = lambda alpha: alpha,
    last: bool = True,
) -> Tensor:
    first = None
    for t, s in itertools.pairwise(times):
        answer = f(x, told(t, s))
        if stop and s == 0:
            return answer if last else x
        new = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        first = new if first is None else first
        alpha, sigma = schedule(to(t, s), like=x)
        x = signal(alpha) * answer + sigma * fresh(new, first)
    return x


multistep.mistake(
    "noise put back to t",
    lambda *given: _multistep(*given, to=lambda t, s: t),
    "After your step, how noisy is x? And at which time do you ask next?",
    "You put back as much noise as there was. The next question is asked at an earlier time, with less.",
)
multistep.mistake(
    "asked at s",
    lambda *given: _multistep(*given, told=lambda t, s: s),
    "Even a single step is wrong. How noisy is x when you ask, and what do you tell f?",
    "You tell f the time that you are going to, not the one you are at.",
)
multistep.mistake(
    "the old noise again",
    lambda *given: _multistep(*given, fresh=lambda new, first: first),
    "One and two steps are right. With three, do you use the same noise twice?",
    "Each round needs noise of its own; yours is drawn once.",
)
multistep.mistake(
    "the answer is not shrunk",
    lambda *given: _multistep(*given, signal=torch.ones_like),
    "One step is right. When you noise the answer, what is the variance of the result?",
    "As in lesson 01, the signal shrinks when noise is added.",
)
multistep.mistake(
    "no fresh noise",
    lambda *given: _multistep(*given, fresh=lambda new, first: 0 * new),
    "One step is right. What does f expect to see at a time in the middle, clean data?",
    "The answer is noised before it is asked about again; your noise is 0.",
)
multistep.mistake(
    "noise for the walk to 0",
    lambda *given: _multistep(*given, stop=False, to=lambda t, s: max(s, 1.0)),
    "The last thing that happens to your sample: is it an answer, or noise on an answer?",
    "At s = 0 nothing is put back. The answer is the sample.",
)
multistep.mistake(
    "the last answer is thrown away",
    lambda *given: _multistep(*given, last=False),
    "What do you return, the last answer or the noisy point that it was asked about?",
    "One step should return f at T. Yours returns what it was given.",
)
multistep.mistake(
    "a step of DDIM",
    lambda f, schedule, x, times, generator: _ddim(f, schedule, x, times),
    "One step is right. Where does your noise come from, from x or from the generator?",
    "You keep the noise that x holds, as DDIM does. Here it is drawn afresh.",
)


def _ddim(f: Callable[..., Tensor], schedule: Schedule, x: Tensor, times: list[float]) -> Tensor:
    for t, s in itertools.pairwise(times):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t, like=x), schedule(s, like=x)
        answer = f(x, t)
        x = alpha_s * answer + sigma_s * (x - alpha_t * answer) / sigma_t
    return x
