"""Exercises of lessons 11 to 13: comparing samplers, restoration, limits."""

import math
import statistics
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tinydiff.check.core import ALIGN, BF16, F32, F64, Draw, exercise
from tinydiff.check.harness import Case, Spec
from tinydiff.schedule import Schedule

# --- 11 ---------------------------------------------------------------------------------------------------------------


def _results(draw: Draw) -> Iterator[Case]:
    for what, n in ("values", 6), ("values", 5), ("two seeds", 2), ("many seeds", 30):
        common, a, b = draw.normal(n) + 9, draw.normal(n) / 3 + 1, draw.normal(n) / 3
        yield Case(what, ((common + a).tolist(), (common + b).tolist()))
    yield Case("b better than a, and a better than b", ([10.0, 14.0, 9.0], [8.0, 13.0, 6.0]))
    yield Case("b better than a, and a better than b", ([8.0, 13.0, 6.0], [10.0, 14.0, 9.0]))


@exercise(lesson=11, cases=_results)
def paired(a: list[float], b: list[float]) -> tuple[float, float]:
    """From the results of two samplers for the same seeds, the mean difference a - b and its standard error, the
    standard deviation of the differences (with one degree of freedom used for the mean) over the root of their number.
    """
    return _paired(a, b, lambda d: statistics.stdev(d) / math.sqrt(len(d)))


def _paired(
    a: list[float], b: list[float], error: Callable[[list[float]], float], sign: float = 1.0
) -> tuple[float, float]:
    d = [u - v for u, v in zip(a, b, strict=True)]
    return sign * statistics.fmean(d), error(d)


paired.mistake(
    "b - a",
    lambda a, b: _paired(a, b, lambda d: statistics.stdev(d) / math.sqrt(len(d)), sign=-1.0),
    "If a is the larger of the two, should your difference be positive or negative?",
    "You subtract the wrong way round.",
)
paired.mistake(
    "the standard deviation",
    lambda a, b: _paired(a, b, statistics.stdev),
    "Does your error shrink when you run more seeds?",
    "That is how much single differences vary. Their mean is more certain than each of them.",
)
paired.mistake(
    "divided by the number",
    lambda a, b: _paired(a, b, lambda d: statistics.stdev(d) / len(d)),
    "Four times as many seeds should halve the error. What do they do to yours?",
    "Variances shrink with the number, standard deviations with its root.",
)
paired.mistake(
    "all degrees of freedom",
    lambda a, b: _paired(a, b, lambda d: statistics.pstdev(d) / math.sqrt(len(d))),
    "With two seeds yours is much too sure. What have you measured the deviations from?",
    "The mean was taken from the same numbers, which costs one degree of freedom: four seeds have three.",
)
paired.mistake(
    "as if the seeds differed",
    lambda a, b: _paired(a, b, lambda d: math.sqrt((statistics.variance(a) + statistics.variance(b)) / len(d))),
    "Both samplers rise and fall together. Does your error know that?",
    "You add the spreads of a and b. Take the differences first, seed by seed, and then their spread.",
)
paired.mistake(
    "the variance",
    lambda a, b: _paired(a, b, lambda d: statistics.variance(d) / len(d)),
    "Which unit has your error? The mean is measured in floors, say; and the error?",
    "It is a squared error. Take its root.",
)

# --- 12 ---------------------------------------------------------------------------------------------------------------


def _scratched(draw: Draw) -> Iterator[Case]:
    T = int(draw.whole(40, 60))
    schedule = Spec("cosine", T=T)

    def case(what: str, shape: tuple[int, ...], dtype: torch.dtype, s: Tensor) -> Case:
        x, known, noise = (draw.normal(*shape, dtype=dtype) for _ in range(3))
        mask = draw.normal(*shape[1:]) > 0
        mask.view(-1)[0], mask.view(-1)[-1] = True, False
        return Case(what, (schedule, x, known, mask, s, noise))

    for what, shape, dtype, each in draw.batches():
        yield case(what, shape, dtype, draw.whole(5, T - 5, *each))
    yield case("s = 0, the picture itself", (3, 2), F64, torch.tensor(0))
    yield case("s = T", (3, 2), F64, torch.tensor(T))


@exercise(lesson=12, cases=_scratched, library=("inpaint", "q_sample"))
def keep_known(schedule: Schedule, x: Tensor, known: Tensor, mask: Tensor, s: Tensor, noise: Tensor) -> Tensor:
    """Inpainting by replacement: x is a sample at time s. Return it with the known values, where the mask is True,
    replaced by the picture `known` as it looks at time s, made with the given noise. The mask is shaped like a sample,
    and s has shape () or (B,); schedule(s, like=x) gives alpha and sigma."""
    return _keep(schedule, x, known, mask, s, noise)


def _keep(
    schedule: Schedule,
    x: Tensor,
    known: Tensor,
    mask: Tensor,
    s: Tensor,
    noise: Tensor,
    *,
    noised: Callable[..., Tensor] = lambda known, noise, alpha, sigma: alpha * known + sigma * noise,
    merge: Callable[..., Tensor] = torch.where,
) -> Tensor:
    return merge(mask, noised(known, noise, *schedule(s, like=x)), x)


keep_known.mistake(
    "the clean picture pasted in",
    lambda *given: _keep(*given, noised=lambda known, noise, alpha, sigma: known),
    "Right at s = 0. Earlier, how noisy is x around the place where you paste?",
    "The denoiser expects one noise level everywhere. Bring the picture to that level first.",
)
keep_known.mistake(
    "the mask upside down",
    lambda *given: _keep(*given, merge=lambda mask, new, x: torch.where(mask, x, new)),
    "Where is the mask True, on what is known or on what is missing?",
    "You keep the holes of the picture and replace the rest.",
)
keep_known.mistake(
    "noise on an unshrunk picture",
    lambda *given: _keep(*given, noised=lambda known, noise, alpha, sigma: known + sigma * noise),
    "At s = T, can you still see the picture in what you return? Should you?",
    "As in lesson 01, the signal shrinks when noise is added.",
)
keep_known.mistake(
    "variance for standard deviation",
    lambda *given: _keep(*given, noised=lambda known, noise, alpha, sigma: alpha * known + sigma**2 * noise),
    "The known part is less noisy than the rest. Noise times c has which variance?",
    "You multiply the noise by a variance.",
)
keep_known.mistake(
    "all of it replaced",
    lambda *given: _keep(*given, merge=lambda mask, new, x: new),
    "What is left of x where nothing is known?",
    "You return the noised picture and ignore the mask.",
)
keep_known.mistake(
    "the holes are blank",
    lambda *given: _keep(*given, merge=lambda mask, new, x: mask * new),
    "The known values are right. What stands in the holes?",
    "Where the mask is False you return 0; x should remain there.",
)
keep_known.mistake(
    "added instead of replaced",
    lambda *given: _keep(*given, merge=lambda mask, new, x: x + mask * new),
    "The holes are right. Where values are known, how much of the old x is still there?",
    "Known values replace those of x; yours are put on top of them.",
)
keep_known.mistake(
    "missing broadcast",
    lambda schedule, x, known, mask, s, noise: torch.where(mask, schedule(s)[0] * known + schedule(s)[1] * noise, x),
    ALIGN,
    "Torch aligns shapes from the right. The schedule reshapes and casts if told what its answer is to multiply.",
)


def _coarse(draw: Draw) -> Iterator[Case]:
    for what, B, C, H, W, factor, dtype in (
        ("values", 2, 1, 4, 6, 2, F64),
        ("values", 3, 2, 4, 8, 2, F64),
        ("factor 3", 2, 2, 6, 9, 3, F64),
        ("square pictures", 4, 4, 4, 4, 2, F64),
        ("float32 stays float32", 3, 1, 4, 6, 2, F32),
        ("bfloat16 stays bfloat16", 2, 1, 4, 6, 2, BF16),
    ):
        yield Case(
            what,
            (draw.normal(B, C, H, W, dtype=dtype), draw.normal(B, C, H // factor, W // factor, dtype=dtype), factor),
        )
    yield Case("factor 1, everything is known", (draw.normal(2, 1, 3, 4), draw.normal(2, 1, 3, 4), 1))


def _blocks(x: Tensor, factor: int) -> Tensor:
    B, C, H, W = x.shape
    return x.reshape(B, C, H // factor, factor, W // factor, factor).mean((3, 5))


def _spread(x: Tensor, factor: int) -> Tensor:
    return x.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


@exercise(lesson=12, cases=_coarse, library=("Projected", "Downsample"))
def agree(x0_hat: Tensor, coarse: Tensor, factor: int) -> Tensor:
    """Super-resolution: move the guess x0_hat (B, C, H, W) by as little as possible so that the means of its blocks of
    factor x factor pixels are exactly those of the coarse picture (B, C, H/factor, W/factor)."""
    return x0_hat + _spread(coarse - _blocks(x0_hat, factor), factor)


agree.mistake(
    "the coarse picture enlarged",
    lambda x0_hat, coarse, factor: _spread(coarse, factor),
    "The means are right. Where have the details of the guess gone?",
    "You throw the guess away. Only what it says about the means is to be corrected.",
)
agree.mistake(
    "means added, not exchanged",
    lambda x0_hat, coarse, factor: x0_hat + _spread(coarse, factor),
    "Take the means of your blocks: are they those of the coarse picture?",
    "Your blocks hold the old means and the new ones. The old have to go.",
)
agree.mistake(
    "the sign of the correction",
    lambda x0_hat, coarse, factor: x0_hat + _spread(_blocks(x0_hat, factor) - coarse, factor),
    "If a block of the guess is too dark, do you make it brighter or darker still?",
    "You push the wrong way.",
)
agree.mistake(
    "a correction shared out among the pixels",
    lambda x0_hat, coarse, factor: x0_hat + _spread(coarse - _blocks(x0_hat, factor), factor) / factor**2,
    "Take the means of your blocks: you go the right way, but do you arrive?",
    "If every pixel moves by d, the mean moves by d, not by d times their number.",
)
agree.mistake(
    "every n-th pixel for the mean",
    lambda x0_hat, coarse, factor: x0_hat + _spread(coarse - x0_hat[:, :, ::factor, ::factor], factor),
    "How is the coarse picture made, by leaving out pixels or by averaging?",
    "You compare with one corner of each block instead of its mean.",
)
agree.mistake(
    "tiled instead of enlarged",
    lambda x0_hat, coarse, factor: x0_hat + (coarse - _blocks(x0_hat, factor)).repeat(1, 1, factor, factor),
    "Enlarge a picture of two pixels, black and white, threefold: is it stripes, or two blocks?",
    "You repeat the whole picture side by side; each pixel has to be repeated in its place.",
)
agree.mistake(
    "half way",
    lambda x0_hat, coarse, factor: x0_hat + _spread(coarse - _blocks(x0_hat, factor), factor) / 2,
    "Take the means of your blocks: you stop in the middle between both.",
    "An average of the guess and its correction agrees with neither. Go all the way.",
)


def _scenes(draw: Draw) -> Iterator[Case]:
    for what, d, k, s, dtype in (
        ("values", 5, 2, 0.3, F64),
        ("values", 4, 3, 1.7, F64),
        ("a single measurement", 3, 1, 0.5, F64),
        ("as many measurements as unknowns", 3, 3, 0.6, F64),
        ("float32 stays float32", 4, 2, 0.8, F32),
        ("much noise, little learnt", 4, 2, 30.0, F64),
        ("s = 0, what is measured is known", 4, 2, 0.0, F64),
    ):
        root = draw.normal(d, d)
        yield Case(what, ((root @ root.T + torch.eye(d)).to(dtype), draw.normal(k, d, dtype=dtype), s))


def _gain(C: Tensor, A: Tensor, variance: float, first: Tensor | None = None) -> Tensor:
    noise = variance * torch.eye(len(A), dtype=C.dtype)
    gain: Tensor = (C if first is None else first) @ A.T @ torch.linalg.inv(A @ C @ A.T + noise)
    return gain


@exercise(lesson=12, cases=_scenes)
def left_uncertain(C: Tensor, A: Tensor, s: float) -> Tensor:
    """The covariance (d, d) of x0 ~ N(m, C) that is left when y = A x0 + s n is known: C has shape (d, d), A (k, d),
    and s is the noise's standard deviation. The gain of formula (1) is C A^T (A C A^T + s^2 I)^-1."""
    return C - _gain(C, A, s**2) @ A @ C


left_uncertain.mistake(
    "added",
    lambda C, A, s: C + _gain(C, A, s**2) @ A @ C,
    "Does who looks know more or less than before? Compare the diagonals.",
    "What is learnt has to be taken away from what was uncertain.",
)
left_uncertain.mistake(
    "s for its square",
    lambda C, A, s: C - _gain(C, A, s) @ A @ C,
    "Right without noise, and where s is 1. Is s a variance?",
    "s is a standard deviation; among covariances stands its square.",
)
left_uncertain.mistake(
    "no noise",
    lambda C, A, s: C - _gain(C, A, 0.0) @ A @ C,
    "Right for s = 0. What do you know of A x after a very noisy look?",
    "You treat A x as known exactly. The noise belongs into the inverse.",
)
left_uncertain.mistake(
    "what was learnt",
    lambda C, A, s: _gain(C, A, s**2) @ A @ C,
    "After a very noisy look yours is nearly 0. Is nothing uncertain any more?",
    "That is what was learnt. What is left is the rest.",
)
left_uncertain.mistake(
    "A^T for C A^T",
    lambda C, A, s: C - _gain(C, A, s**2, torch.eye(len(C), dtype=C.dtype)) @ A @ C,
    "Right only where C is the identity. Is your result symmetric, as a covariance must be?",
    "Compare your gain with that of formula (1), factor by factor from the left.",
)
left_uncertain.mistake(
    "A for A C",
    lambda C, A, s: C - _gain(C, A, s**2) @ A,
    "Your result is not symmetric, which a covariance must be. In which units is what you subtract?",
    "The gain turns measurements into x. What do the measurements have in common with x? Not A alone.",
)
left_uncertain.mistake(
    "variances only",
    lambda C, A, s: torch.diag((C - _gain(C, A, s**2) @ A @ C).diag()),
    "The diagonal is right. After one look at a sum of two numbers, are they still independent?",
    "All of the covariance is asked for.",
)

# --- 13 ---------------------------------------------------------------------------------------------------------------


def _judged(draw: Draw) -> Iterator[Case]:
    for what, n in ("values", 3), ("values", 4), ("ten classes", 10), ("two classes", 2):
        confusion = torch.eye(n, dtype=F64) + 0.5 * torch.softmax(draw.normal(n, n), 1)
        confusion = confusion / confusion.sum(1, keepdim=True)
        yield Case(what, (confusion.T @ torch.softmax(draw.normal(n), 0), confusion))
    shares = torch.softmax(draw.normal(3), 0)
    yield Case("a judge who never errs", (shares, torch.eye(3, dtype=F64)))
    yield Case("float32 stays float32", (shares.float(), torch.eye(3)))


@exercise(lesson=13, cases=_judged)
def corrected(seen: Tensor, confusion: Tensor) -> Tensor:
    """The true shares (K,) of the classes, from the shares that a judge has seen and its confusion matrix (K, K), whose
    row k says how true class k is seen."""
    shares: Tensor = torch.linalg.solve(confusion.T, seen)
    return shares


corrected.mistake(
    "transposed",
    lambda seen, confusion: torch.linalg.solve(confusion, seen),
    "What are rows and what are columns? Write down how often class 0 is seen, as a sum over true classes.",
    "A column of the matrix, not a row, says what ends up in one seen class.",
)
corrected.mistake(
    "judged again",
    lambda seen, confusion: confusion.T @ seen,
    "You let the judge look a second time. Do his mistakes get fewer?",
    "What you do leads from true shares to seen ones. You want the way back.",
)
corrected.mistake(
    "judged again, transposed",
    lambda seen, confusion: confusion @ seen,
    "Do your shares sum to 1? You mix instead of undoing a mixture.",
    "A product with the matrix mixes the classes further. Solve for what was there before.",
)
corrected.mistake(
    "divided by the hits",
    lambda seen, confusion: seen / confusion.diagonal(),
    "Right for a judge who never errs. Where do the pictures go that he takes for others?",
    "You correct for what each class loses, not for what it gets from the others.",
)
corrected.mistake(
    "divided by the hits and normalised",
    lambda seen, confusion: (d := seen / confusion.diagonal()) / d.sum(),
    "The shares sum to 1, but only because you made them. Which classes take from which?",
    "The mistakes between two classes matter one by one: it is a system of linear equations.",
)
corrected.mistake(
    "nothing is corrected",
    lambda seen, confusion: seen.clone(),
    "Right for a judge who never errs. What do you do with his mistakes?",
    "The confusion matrix is not used.",
)
