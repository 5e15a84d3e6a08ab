"""Exercises of lessons 01 to 03: the forward process, the loss and the first sampler."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import tinydiff as td
from tinydiff.check.core import ALIGN, F64, Draw, exercise
from tinydiff.check.harness import Case, Spec
from tinydiff.schedule import Schedule, match

# --- 01 ---------------------------------------------------------------------------------------------------------------


def _one_jump(draw: Draw) -> Iterator[Case]:
    T = int(draw.whole(40, 60))
    alpha_bar = td.cosine(T).alpha_bar
    for what, shape, dtype, each in draw.batches():
        t = draw.whole(2, T - 1, *each)
        yield Case(what, (alpha_bar, draw.normal(*shape, dtype=dtype), t, draw.normal(*shape, dtype=dtype)))
    for what, t in ("t = 0, clean data", torch.tensor(0)), ("t = T, the last entry", torch.tensor(T)):
        yield Case(what, (alpha_bar, draw.normal(3, 2), t, draw.normal(3, 2)))


@exercise(lesson=1, cases=_one_jump, library=("q_sample", "Denoiser"))
def q_sample(alpha_bar: Tensor, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Jump from x_0 to x_t in one line. The table alpha_bar (T+1,) begins at t = 0; t has shape () or (B,)."""
    a = match(alpha_bar[t], x0)
    return a.sqrt() * x0 + (1 - a).sqrt() * noise


def _mixed(
    signal: Callable[[Tensor], Tensor],
    spread: Callable[[Tensor], Tensor],
    read: Callable[[Tensor, Tensor], Tensor] = lambda alpha_bar, t: alpha_bar[t],
) -> Callable[..., Tensor]:
    def wrong(alpha_bar: Tensor, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        a = match(read(alpha_bar, t), x0)
        return signal(a) * x0 + spread(a) * noise

    return wrong


q_sample.mistake(
    "variance for standard deviation",
    _mixed(torch.sqrt, lambda a: 1 - a),
    "Noise times c has the variance c squared. Which c gives the variance that you want?",
    "Your noise comes in with a weight that is a variance; its root belongs there.",
)
q_sample.mistake(
    "alpha-bar for its root",
    _mixed(lambda a: a, lambda a: (1 - a).sqrt()),
    "Your pictures fade too fast. Data of variance 1 should keep the variance 1: add up the squares of your weights.",
    "The table's entry is the share of the variance that is signal; the data themselves are multiplied by its root.",
)
q_sample.mistake(
    "no roots at all",
    _mixed(lambda a: a, lambda a: 1 - a),
    "Your two weights sum to 1. It is the variances that must.",
    "Weights whose squares sum to 1: what must be done to both of yours?",
)
q_sample.mistake(
    "signal and noise swapped",
    _mixed(lambda a: (1 - a).sqrt(), torch.sqrt),
    "Look at a small t: your x_t is nearly pure noise there. Which end of the walk is clean?",
    "The table starts with 1 at the clean end. Who should be multiplied by that 1, the data or the noise?",
)
q_sample.mistake(
    "the signal does not shrink",
    _mixed(torch.ones_like, lambda a: (1 - a).sqrt()),
    "Your variance grows with t. What has to be done to the data before noise is added?",
    "The data keep their full size in yours; they should fade as the noise grows.",
)
q_sample.mistake(
    "one entry too early",
    _mixed(torch.sqrt, lambda a: (1 - a).sqrt(), lambda alpha_bar, t: alpha_bar[t - 1]),
    "Try the edges: is x_t the clean data at t = 0? Python counts backwards from there.",
    "This table has an entry for t = 0 already, unlike the table of betas. No shift is needed.",
)
q_sample.mistake(
    "one entry too late",
    _mixed(torch.sqrt, lambda a: (1 - a).sqrt(), lambda alpha_bar, t: alpha_bar[1:][t]),
    "Try the edges: is x_t the clean data at t = 0, and does your table reach as far as T?",
    "The table has T + 1 entries, for t from 0 to T; yours is read one place further on.",
)
q_sample.mistake(
    "one step's beta",
    _mixed(torch.sqrt, lambda a: (1 - a).sqrt(), lambda alpha_bar, t: alpha_bar[t] / alpha_bar[t - 1]),
    "Even at large t your pictures are nearly clean. Is that the noise of the whole walk, or of its last step?",
    "One step keeps 1 - beta_t of the variance. The whole walk keeps the product of all of them: that is the table.",
)
q_sample.mistake(
    "missing broadcast",
    lambda alpha_bar, x0, t, noise: alpha_bar[t].sqrt() * x0 + (1 - alpha_bar[t]).sqrt() * noise,
    "Works for one time, and for points by luck. With a time for each sample the numbers must line up with the batch: "
    "along which side of a (B, C, H, W) picture does torch lay a tensor of shape (B,)?",
    "Torch aligns shapes from the right, so your B numbers run along the width. Reshape them to (B, 1, 1, 1), for any "
    "number of sides, and cast them to the dtype of the data.",
)
q_sample.mistake(
    "float64 coefficients",
    lambda alpha_bar, x0, t, noise: (
        (a := alpha_bar[t].reshape(-1, *[1] * (x0.ndim - 1))).sqrt() * x0 + (1 - a).sqrt() * noise
    ),
    "The values are right, but float32 pictures come out as something else. Who brought the other dtype in?",
    "The table is float64, and a tensor of it makes the product float64. Cast the coefficients to the dtype of x0.",
)


def _longer_jump(draw: Draw) -> Iterator[Case]:
    T = int(draw.whole(40, 60))
    alpha_bar = td.cosine(T).alpha_bar

    def case(what: str, shape: tuple[int, ...], dtype: torch.dtype, s: Tensor, t: Tensor) -> Case:
        return Case(what, (alpha_bar, draw.normal(*shape, dtype=dtype), s, t, Spec("generator", seed=draw.seed())))

    for what, shape, dtype, each in draw.batches():
        s = draw.whole(3, T // 2, *each)
        yield case(what, shape, dtype, s, s + draw.whole(3, T // 2 - 3, *each))
    yield case("s = 0, from clean data", (3, 2), F64, torch.tensor(0), torch.tensor(T // 2))
    yield case("s = t, where nothing happens", (3, 2), F64, torch.tensor(T // 2), torch.tensor(T // 2))


@exercise(lesson=1, cases=_longer_jump)
def jump(alpha_bar: Tensor, x_s: Tensor, s: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
    """Jump from x_s to x_t for any s <= t; s and t have shape () or (B,). Draw the noise with
    torch.randn(x_s.shape, generator=generator, dtype=x_s.dtype), once."""
    return _jump(alpha_bar, x_s, s, t, generator, lambda a_s, a_t: a_t / a_s)


def _jump(
    alpha_bar: Tensor,
    x_s: Tensor,
    s: Tensor,
    t: Tensor,
    generator: torch.Generator | None,
    keep: Callable[[Tensor, Tensor], Tensor],
    signal: Callable[[Tensor], Tensor] = torch.sqrt,
    spread: Callable[[Tensor], Tensor] = lambda a: (1 - a).sqrt(),
) -> Tensor:
    a = match(keep(alpha_bar[s], alpha_bar[t]), x_s)
    return signal(a) * x_s + spread(a) * torch.randn(x_s.shape, generator=generator, dtype=x_s.dtype)


jump.mistake(
    "as if from clean data",
    lambda alpha_bar, x_s, s, t, generator: _jump(alpha_bar, x_s, s, t, generator, lambda a_s, a_t: a_t),
    "From s = 0 it is right. From a later s you start with noise in the picture already: how much is still to come?",
    "You noise x_s as if it were x_0. Only the steps between s and t are left; what is the product of theirs alone?",
)
jump.mistake(
    "variance for standard deviation",
    lambda alpha_bar, x_s, s, t, generator: _jump(
        alpha_bar, x_s, s, t, generator, lambda a_s, a_t: a_t / a_s, spread=lambda a: 1 - a
    ),
    "Noise times c has the variance c squared. Which c gives the variance that is missing?",
    "Your noise comes in with a weight that is a variance; its root belongs there.",
)
jump.mistake(
    "no root on the signal",
    lambda alpha_bar, x_s, s, t, generator: _jump(
        alpha_bar, x_s, s, t, generator, lambda a_s, a_t: a_t / a_s, signal=lambda a: a
    ),
    "Your x_t is too faint. Add up the squares of your two weights.",
    "The ratio says how the variance of the signal shrinks. The signal itself shrinks by its root.",
)
jump.mistake(
    "difference for ratio",
    lambda alpha_bar, x_s, s, t, generator: (
        match((alpha_bar[t] / alpha_bar[s]).sqrt(), x_s) * x_s
        + match((alpha_bar[s] - alpha_bar[t]).sqrt(), x_s)
        * torch.randn(x_s.shape, generator=generator, dtype=x_s.dtype)
    ),
    "The signal is right. Is the variance at the end still 1 if it was 1 at the start?",
    "The noise that x_s brings along shrinks as well on the way. The fresh noise must make up for that, too.",
)
jump.mistake(
    "the last step only",
    lambda alpha_bar, x_s, s, t, generator: _jump(alpha_bar, x_s, t - 1, t, generator, lambda a_s, a_t: a_t / a_s),
    "Right for neighbours. For a long way you add far too little noise: how many steps lie between s and t?",
    "You use the beta of step t alone. A product over all steps from s to t is asked; you have a table of products.",
)
jump.mistake(
    "a generator that is not used",
    lambda alpha_bar, x_s, s, t, generator: _jump(alpha_bar, x_s, s, t, None, lambda a_s, a_t: a_t / a_s),
    "Two runs with the same seed give different pictures. Who decides about your noise?",
    "You were given a generator, and the noise comes from torch's global one. Hand it on.",
)
jump.mistake(
    "upside down",
    lambda alpha_bar, x_s, s, t, generator: _jump(alpha_bar, x_s, s, t, generator, lambda a_s, a_t: a_s / a_t),
    "You get nan: the root of a negative number. Does the signal grow or shrink on the way to t?",
    "The share that is kept lies between 0 and 1. Is it the earlier entry over the later, or the other way round?",
)
jump.mistake(
    "missing broadcast",
    lambda alpha_bar, x_s, s, t, generator: (
        (a := alpha_bar[t] / alpha_bar[s]).sqrt() * x_s
        + (1 - a).sqrt() * torch.randn(x_s.shape, generator=generator, dtype=x_s.dtype)
    ),
    ALIGN,
    "Torch aligns shapes from the right. Reshape to (B, 1, 1, 1), for any number of sides, and cast to the dtype of x.",
)

# --- 02 ---------------------------------------------------------------------------------------------------------------


def _steps_back(draw: Draw) -> Iterator[Case]:
    T = int(draw.whole(40, 60))
    alpha_bar = td.cosine(T).alpha_bar

    def case(what: str, shape: tuple[int, ...], dtype: torch.dtype, t: Tensor, s: Tensor) -> Case:
        x0, x_t = draw.normal(*shape, dtype=dtype), draw.normal(*shape, dtype=dtype)
        return Case(what, (alpha_bar, x0, x_t, t, s), "multiplied")

    for what, shape, dtype, each in draw.batches():
        s = draw.whole(3, T // 2, *each)
        yield case(what, shape, dtype, s + draw.whole(3, T // 2 - 3, *each), s)
    yield case("neighbours, s = t - 1", (3, 2), F64, torch.tensor(T // 2), torch.tensor(T // 2 - 1))
    yield case("s = 0, the data themselves", (3, 2), F64, torch.tensor(T // 4), torch.tensor(0))


@exercise(lesson=2, cases=_steps_back, library=("q_posterior", "step"))
def posterior(alpha_bar: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of q(x_s | x_t, x_0) for any s < t, of shape () or (B,); the mean shaped like x_t, the variance
    so that it multiplies it."""
    return _posterior(alpha_bar, x0, x_t, t, s)


def _posterior(
    alpha_bar: Tensor,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    beta_of: Callable[..., Tensor] = lambda alpha_bar, t, s: 1 - alpha_bar[t] / alpha_bar[s],
    root_s: Callable[[Tensor], Tensor] = torch.sqrt,
    root: Callable[[Tensor], Tensor] = torch.sqrt,
    var_of: Callable[..., Tensor] = lambda beta, a_s, a_t: beta * (1 - a_s) / (1 - a_t),
    swap: bool = False,
) -> tuple[Tensor, Tensor]:
    beta, a_s, a_t = beta_of(alpha_bar, t, s), alpha_bar[s], alpha_bar[t]
    of_x0, of_x_t = beta * root_s(a_s) / (1 - a_t), root(1 - beta) * (1 - a_s) / (1 - a_t)
    if swap:
        of_x0, of_x_t = of_x_t, of_x0
    return match(of_x0, x_t) * x0 + match(of_x_t, x_t) * x_t, match(var_of(beta, a_s, a_t), x_t)


posterior.mistake(
    "beta for beta-tilde",
    lambda *given: _posterior(*given, var_of=lambda beta, a_s, a_t: beta),
    "The mean is right. The variance is that of a step forward; does knowing x_0 leave you as unsure as that?",
    "At s = 0 everything is known, so the variance must be 0 there. What factor makes it so?",
)
posterior.mistake(
    "standard deviation for variance",
    lambda *given: _posterior(*given, var_of=lambda beta, a_s, a_t: (beta * (1 - a_s) / (1 - a_t)).sqrt()),
    "The mean is right. What kind of spread did you return, and what kind was asked for?",
    "You return a standard deviation; the square of it was asked for.",
)
posterior.mistake(
    "beta of one step at a stride",
    lambda *given: _posterior(*given, beta_of=lambda alpha_bar, t, s: 1 - alpha_bar[t] / alpha_bar[t - 1]),
    "Right for neighbours. With a stride, how much noise comes in between s and t?",
    "Your beta is that of the step before t. Over a stride it follows from two entries of the table.",
)
posterior.mistake(
    "weights swapped",
    lambda *given: _posterior(*given, swap=True),
    "For s near 0 the mean should be close to x_0. Is yours?",
    "Your two weights stand at the wrong partners.",
)
posterior.mistake(
    "alpha-bar without root at x0",
    lambda *given: _posterior(*given, root_s=lambda a: a),
    "If x_0 and x_t lie on one noiseless line, the mean must, too: put in x_t and x_0 without noise and compare.",
    "The weight of x_0 holds the size of the signal at s, which is not the table's entry itself.",
)
posterior.mistake(
    "1 - beta without root at x_t",
    lambda *given: _posterior(*given, root=lambda a: a),
    "Put in x_t and x_0 without noise: the mean should be the signal at s. Which of your two weights is too small?",
    "A forward step shrinks the picture by the root of what it keeps of the variance. So must the weight of x_t.",
)
posterior.mistake(
    "missing broadcast",
    lambda alpha_bar, x0, x_t, t, s: (
        (b := 1 - alpha_bar[t] / alpha_bar[s]) * alpha_bar[s].sqrt() / (1 - alpha_bar[t]) * x0
        + (1 - b).sqrt() * (1 - alpha_bar[s]) / (1 - alpha_bar[t]) * x_t,
        b * (1 - alpha_bar[s]) / (1 - alpha_bar[t]),
    ),
    ALIGN,
    "Torch aligns shapes from the right. Reshape to (B, 1, 1, 1), for any number of sides, and cast to the dtype of x.",
)


def _losses(draw: Draw) -> Iterator[Case]:
    T = int(draw.whole(40, 60))
    net, schedule = Spec("network", seed=draw.seed()), Spec("cosine", T=T)
    for what, shape, dtype, each in draw.batches():
        t = draw.whole(T // 5, T - T // 5, *each)
        x0, eps = draw.normal(*shape, dtype=dtype), draw.normal(*shape, dtype=dtype)
        yield Case(what, (net, schedule, x0, t, eps))
    for what, t in ("t = 0 and t = T", torch.tensor(0)), ("t = 0 and t = T", torch.tensor(T)):
        yield Case(what, (net, schedule, draw.normal(4, 2), t, draw.normal(4, 2)))
    t, x0, eps = draw.whole(1, T, 6), draw.normal(6, 2), draw.normal(6, 2)
    yield Case("the gradient reaches the network", (net, schedule, x0, t, eps), "gradient")


@exercise(lesson=2, cases=_losses, library=("VDenoiser", "ddpm_loss"))
def v_loss(net: Any, schedule: Schedule, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """The simple loss of a network that predicts v: make x_t from x0 and eps, ask net(x_t, t), return the mean of the
    squared errors over all values. schedule(t, like=x0) gives alpha and sigma; t has shape () or (B,), and may be 0,
    where sigma is 0."""
    return _v_loss(net, schedule, x0, t, eps)


def _v_loss(
    net: Any,
    schedule: Schedule,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    *,
    target: Callable[..., Tensor] = lambda x0, eps, alpha, sigma: alpha * eps - sigma * x0,
    asked: Callable[..., Tensor] = lambda x0, eps, alpha, sigma: alpha * x0 + sigma * eps,
    loss: Callable[[Tensor], Tensor] = lambda error: error.square().mean(),
) -> Tensor:
    alpha, sigma = schedule(t, like=x0)
    return loss(net(asked(x0, eps, alpha, sigma), t) - target(x0, eps, alpha, sigma))


v_loss.mistake(
    "the target is eps",
    lambda *given: _v_loss(*given, target=lambda x0, eps, alpha, sigma: eps),
    "Your network is asked for the noise, as in the lesson's simple loss. What is this one to predict?",
    "Everything is right but the target: look up v in the lesson's table of targets.",
)
v_loss.mistake(
    "the sign of v",
    lambda *given: _v_loss(*given, target=lambda x0, eps, alpha, sigma: sigma * x0 - alpha * eps),
    "Your v points the other way. What should v be at t = 0, the noise or minus the noise?",
    "You have minus v. At t = 0, where sigma is 0, v is the noise with a plus.",
)
v_loss.mistake(
    "alpha and sigma swapped in v",
    lambda *given: _v_loss(*given, target=lambda x0, eps, alpha, sigma: sigma * eps - alpha * x0),
    "What should v be at t = 0, something of the noise or something of the data? Yours is the latter.",
    "x_t is (alpha, sigma) times (x0, eps); v is perpendicular to it, and the two weights change places.",
)
v_loss.mistake(
    "plus for minus in v",
    lambda *given: _v_loss(*given, target=lambda x0, eps, alpha, sigma: alpha * eps + sigma * x0),
    "Think of alpha and sigma as cosine and sine. v is how x_t moves as the angle grows: which derivative has a minus?",
    "One of the two terms of v has a minus. The derivative of the cosine knows which.",
)
v_loss.mistake(
    "v divided by sigma",
    lambda *given: _v_loss(
        *given, target=lambda x0, eps, alpha, sigma: (alpha * (alpha * x0 + sigma * eps) - x0) / sigma
    ),
    "Right as long as there is noise. What do you divide by at t = 0?",
    "You make v of x_t and x0, and at t = 0 that is 0 by 0. You are given eps: of eps and x0 it needs no division.",
)
v_loss.mistake(
    "the network sees clean data",
    lambda *given: _v_loss(*given, asked=lambda x0, eps, alpha, sigma: x0),
    "The target is right. But a network that may look at the clean data has nothing to learn: what should it see?",
    "You ask the network about x0. Make it noisy first.",
)
v_loss.mistake(
    "a sum for the mean",
    lambda *given: _v_loss(*given, loss=lambda error: error.square().sum()),
    "Your loss grows with the batch. A learning rate that is right for 8 pictures would be too large for 80.",
    "You add up where an average is asked for.",
)
v_loss.mistake(
    "no square",
    lambda *given: _v_loss(*given, loss=lambda error: error.abs().mean()),
    "A loss of absolute errors is smallest at the median of what may have been. What does a denoiser need?",
    "You average the absolute errors. For the mean of what may have been, square them.",
)
v_loss.mistake(
    "squared after the mean",
    lambda *given: _v_loss(*given, loss=lambda error: error.mean().square()),
    "Errors of +1 and -1 give your loss 0. Should they?",
    "You average first and square then. The other way round, no error cancels another.",
)
v_loss.mistake(
    "no gradient",
    lambda *given: _v_loss(*given, loss=lambda error: error.detach().square().mean()),
    "The value is right, but nothing can be learnt from it: no gradient comes back to the network.",
    "Somewhere the way back is cut: no_grad, detach, item or float. A loss must stay connected.",
)

# --- 03 ---------------------------------------------------------------------------------------------------------------


def _variances(draw: Draw) -> Iterator[Case]:
    for b in (draw.number(0.1, 0.8) for _ in range(3)):
        yield Case("values", (draw.number(0.1, 0.4), torch.tensor(b), torch.tensor(b * draw.number(0.1, 0.9))))
    beta = torch.tensor([0.3, 0.5, 0.7])
    yield Case("many variances at once", (draw.number(0.6, 0.9), beta, beta * draw.number(0.1, 0.9)))
    for end in 0.0, 1.0:
        yield Case("w = 0 and w = 1, the two ends", (end, beta, beta * draw.number(0.1, 0.9)))
    yield Case("the last step, where beta-tilde is 0", (0.5, torch.tensor(0.2), torch.tensor(0.0)))
    yield Case("the last step, where beta-tilde is 0", (1.0, torch.tensor(0.2), torch.tensor(0.0)))


@exercise(lesson=3, cases=_variances)
def between(w: float, beta: Tensor, beta_tilde: Tensor) -> Tensor:
    """A variance between the two: their geometric mean with weight w, beta-tilde for w = 0 and beta for w = 1."""
    return beta**w * beta_tilde ** (1 - w)


between.mistake(
    "the arithmetic mean",
    lambda w, beta, beta_tilde: w * beta + (1 - w) * beta_tilde,
    "The ends are right. Between them, is the middle of 4 and 1 for you 2.5 or 2?",
    "That is the arithmetic mean. The geometric one multiplies, and its weights are exponents.",
)
between.mistake(
    "the ends swapped",
    lambda w, beta, beta_tilde: beta ** (1 - w) * beta_tilde**w,
    "Which of the two do you return for w = 1, and which should it be?",
    "Your w sits at the wrong variance.",
)
between.mistake(
    "the standard deviation",
    lambda w, beta, beta_tilde: (beta**w * beta_tilde ** (1 - w)).sqrt(),
    "For w = 1 you should return beta itself. What do you return?",
    "One root too many: a variance is asked for, not a standard deviation.",
)
between.mistake(
    "w is ignored",
    lambda w, beta, beta_tilde: (beta * beta_tilde).sqrt(),
    "Try two different w. Does your answer change?",
    "You return the middle, w = 0.5. Other weights are other exponents.",
)
between.mistake(
    "only one exponent",
    lambda w, beta, beta_tilde: beta**w * beta_tilde,
    "For w = 0 it is right, for w = 1 it is not. What is left of beta-tilde there?",
    "The two exponents must sum to 1.",
)
between.mistake(
    "still a logarithm",
    lambda w, beta, beta_tilde: w * beta.log() + (1 - w) * beta_tilde.log(),
    "Your variances are negative. Which scale are you on?",
    "You have averaged logarithms, which is the right idea; the way back is missing.",
)
between.mistake(
    "the logarithm of 0",
    lambda w, beta, beta_tilde: (w * beta.log() + (1 - w) * beta_tilde.log()).exp(),
    "Right, until the last step, where beta-tilde is 0. What is 0 times the logarithm of 0?",
    "For w = 1 your sum holds 0 times minus infinity, which is nan. Powers know that 0 to the power 0 is 1.",
)


def _ancestral(draw: Draw) -> Iterator[Case]:
    T = int(draw.whole(40, 60))
    schedule = Spec("cosine", T=T)

    def case(what: str, shape: tuple[int, ...], dtype: torch.dtype, t: Tensor, s: Tensor) -> Case:
        x, x0_hat, noise = (draw.normal(*shape, dtype=dtype) for _ in range(3))
        return Case(what, (schedule, x, x0_hat, t, s, noise))

    for what, shape, dtype, each in draw.batches():
        s = draw.whole(3, T // 2, *each)
        yield case(what, shape, dtype, s + draw.whole(3, T // 2 - 3, *each), s)
    yield case("neighbours, s = t - 1", (3, 2), F64, torch.tensor(T // 2), torch.tensor(T // 2 - 1))
    yield case("from t = T", (3, 2), F64, torch.tensor(T), torch.tensor(T - 5))
    yield case("the last step, s = 0, is without noise", (3, 2), F64, torch.tensor(4), torch.tensor(0))


@exercise(lesson=3, cases=_ancestral, library=("step", "q_posterior", "ddpm", "ddim", "dpm_solver_pp"))
def ancestral_step(schedule: Schedule, x: Tensor, x0_hat: Tensor, t: Tensor, s: Tensor, noise: Tensor) -> Tensor:
    """One step of DDPM's sampler from t to any s < t: the posterior's mean at the guess x0_hat, plus noise of its
    variance beta-tilde. schedule(t, like=x) gives alpha and sigma; t and s have shape () or (B,)."""
    return _ancestral_step(schedule, x, x0_hat, t, s, noise)


def _ancestral_step(
    schedule: Schedule,
    x: Tensor,
    x0_hat: Tensor,
    t: Tensor,
    s: Tensor,
    noise: Tensor,
    *,
    std: Callable[[Tensor, Tensor], Tensor] = lambda beta, ratio: (beta * ratio).sqrt(),
    before: Callable[[Tensor, Tensor], Tensor] = lambda t, s: s,
    swap: bool = False,
) -> Tensor:
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    beta, ratio = 1 - (alpha_t / schedule(before(t, s))[0]) ** 2, (sigma_s / sigma_t) ** 2
    of_x0, of_x = beta * alpha_s / sigma_t**2, (1 - beta).sqrt() * ratio
    if swap:
        of_x0, of_x = of_x, of_x0
    return match(of_x0, x) * x0_hat + match(of_x, x) * x + match(std(beta, ratio), x) * noise


ancestral_step.mistake(
    "variance for standard deviation",
    lambda *given: _ancestral_step(*given, std=lambda beta, ratio: beta * ratio),
    "The mean is right, but too little noise is added. Noise times c has which variance?",
    "You multiply the noise by its variance; the root of that belongs there.",
)
ancestral_step.mistake(
    "beta for beta-tilde",
    lambda *given: _ancestral_step(*given, std=lambda beta, ratio: beta.sqrt()),
    "The mean is right. Look at the last step: is any noise left in your result?",
    "You add the noise of a step forward. Backwards, given x0_hat, the variance is smaller, and 0 at s = 0.",
)
ancestral_step.mistake(
    "no noise",
    lambda *given: _ancestral_step(*given, std=lambda beta, ratio: 0 * beta),
    "That is the mean of the posterior. Is a mean a sample?",
    "The noise is handed to you and not used.",
)
ancestral_step.mistake(
    "beta of one step at a stride",
    lambda *given: _ancestral_step(*given, before=lambda t, s: t - 1),
    "Right for neighbours. With a stride, how much noise lies between s and t?",
    "Your beta is that of the step just before t. Over a stride look up the table at both ends.",
)
ancestral_step.mistake(
    "weights swapped",
    lambda *given: _ancestral_step(*given, swap=True),
    "In the last step the result should be x0_hat. Is it?",
    "The weights of x and x0_hat have changed places.",
)
ancestral_step.mistake(
    "jumps to x0_hat and noises it afresh",
    lambda schedule, x, x0_hat, t, s, noise: td.q_sample(schedule, x0_hat, s, noise),
    "You forget x altogether. Whatever it knew beyond x0_hat is lost: what does the posterior's mean do with it?",
    "That is a draw from q(x_s | x0_hat). The posterior is also given x_t, and so has a second term and less noise.",
)
ancestral_step.mistake(
    "missing broadcast",
    lambda schedule, x, x0_hat, t, s, noise: (
        (b := 1 - (schedule(t)[0] / schedule(s)[0]) ** 2) * schedule(s)[0] / schedule(t)[1] ** 2 * x0_hat
        + (1 - b).sqrt() * (r := (schedule(s)[1] / schedule(t)[1]) ** 2) * x
        + (b * r).sqrt() * noise
    ),
    ALIGN,
    "Torch aligns shapes from the right. The schedule reshapes and casts if told what its answer is to multiply.",
)
