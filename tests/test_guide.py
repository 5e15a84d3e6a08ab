"""Guidance on a mixture, where the guided denoiser is known in closed form."""

import copy
from typing import Any

import pytest
import torch
from conftest import normal
from torch import Tensor, nn

import tinydiff as td

SCHEDULE = td.linear()
T = torch.tensor([5.0, 100.0, 400.0, 700.0, 1000.0], dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 1, 0])


class Says(nn.Module):
    """A denoiser that returns what it is told to."""

    def __init__(self, out: Tensor) -> None:
        super().__init__()
        self.schedule = SCHEDULE
        self.out = out

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        self.seen = (x, t, cond)
        return self.out


@pytest.mark.parametrize("t", [T, 300.0])
def test_classifier_free_is_the_line_through_both_denoisers(t, mixture: td.GaussianMixture) -> None:
    exact, x = mixture.denoiser(SCHEDULE), normal(5, 2)
    conditional, unconditional = exact(x, t, y=Y), exact(x, t)
    for scale in (0.0, 1.0, 3.5):
        guided = td.ClassifierFree(exact, scale)(x, t, y=Y)
        torch.testing.assert_close(guided, (1 - scale) * unconditional + scale * conditional, rtol=1e-12, atol=1e-12)


def test_exact_classifier_guidance_is_exact_classifier_free_guidance(mixture: td.GaussianMixture) -> None:
    """Bayes: grad log p(x | y) = grad log p(x) + grad log p(y | x), so both agree at every scale and time."""
    exact, x = mixture.denoiser(SCHEDULE), normal(5, 2)
    for scale in (0.0, 1.0, 4.0):
        with torch.no_grad():
            classifier = td.ClassifierGuided(exact, mixture.classifier(SCHEDULE), scale)(x, T, y=Y)
        torch.testing.assert_close(classifier, td.ClassifierFree(exact, scale)(x, T, y=Y), rtol=1e-7, atol=1e-9)


def test_classifier_free_is_one_call_with_labels_first() -> None:
    out = torch.cat([torch.full((3, 1, 2, 4), 2.0), torch.full((3, 1, 2, 4), 1.0)])
    inner = Says(out)
    x, hint = normal(3, 1, 2, 4), normal(3, 7)
    guided = td.ClassifierFree(inner, 3.0)(x, torch.tensor([1, 2, 3]), y=torch.tensor([4, 5, 6]), hint=hint, flag=True)
    seen_x, seen_t, cond = inner.seen
    assert torch.equal(guided, torch.full_like(x, 4.0))  # 1 + 3 (2 - 1)
    assert torch.equal(seen_x, torch.cat([x, x]))
    assert seen_t.tolist() == [1, 2, 3, 1, 2, 3]
    assert cond["y"].tolist() == [4, 5, 6, -1, -1, -1]
    assert torch.equal(cond["hint"], torch.cat([hint, hint]))
    assert cond["flag"] is True


def test_guidance_rules_compose_in_any_order(mixture: td.GaussianMixture) -> None:
    """Both add multiples of the same gradient: scales multiply where the classifier is inside, and add outside it."""
    exact, log_prob, x = mixture.denoiser(SCHEDULE), mixture.classifier(SCHEDULE), normal(5, 2)
    labels = torch.tensor([0, 1, 2, -1, -1])

    def guided(denoiser: Any) -> Tensor:
        return denoiser(x, T, y=labels)

    def by_classifier(denoiser: Any, scale: float) -> td.ClassifierGuided:
        return td.ClassifierGuided(denoiser, log_prob, scale)

    def free(denoiser: Any, scale: float) -> td.ClassifierFree:
        return td.ClassifierFree(denoiser, scale)

    for rules, scale in (
        (free(by_classifier(exact, 1.5), 2.0), 3.0),
        (free(td.Clipped(by_classifier(exact, 1.5), 1e9), 2.0), 3.0),
        (by_classifier(free(exact, 2.0), 1.5), 3.5),
        (by_classifier(td.Clipped(free(exact, 2.0), 1e9), 1.5), 3.5),
        (by_classifier(by_classifier(exact, 2.0), 1.5), 3.5),
        (by_classifier(free(by_classifier(exact, 1.5), 2.0), 1.0), 4.0),
    ):
        torch.testing.assert_close(guided(rules), guided(free(exact, scale)), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(guided(by_classifier(exact, 4.0))[3:], exact(x, T)[3:])  # no class, no guidance


def test_the_classifier_follows_its_wrapper_to_another_dtype() -> None:
    classifier = td.Classifier(width=8)
    inner = td.VDenoiser(td.UNet(width=8), td.cosine())
    wrapped = copy.deepcopy(td.ClassifierGuided(inner, classifier.log_prob).double())
    assert {p.dtype for p in classifier.parameters()} == {torch.float64}
    assert len(list(wrapped.parameters())) == len([*inner.parameters(), *classifier.parameters()])
    assert wrapped.log_prob.__self__ is wrapped.classifier is not classifier, "a copy has its own"
    samples = td.sample(wrapped, (3, 1, 28, 28), steps=2, y=torch.arange(3))
    assert samples.dtype == torch.float64


def test_a_classifier_may_add_a_dimension_or_all_up_and_be_singular_where_it_is_not_asked(mixture) -> None:
    schedule, x, y = td.linear(), normal(5, 2), torch.tensor([0, 1, 2, -1, 0])
    exact, inner = mixture.classifier(schedule), mixture.denoiser(schedule)
    right = td.ClassifierGuided(inner, exact, 2.0)(x, 500, y=y)
    for log_prob in (
        lambda x, t, y: exact(x, t, y)[:, None],
        lambda x, t, y: exact(x, t, y).sum(),
        lambda x, t, y: exact(x, t, y) + (0 * x[3, 0]).sqrt(),  # whose gradient is nan for the one that is not asked
    ):
        torch.testing.assert_close(td.ClassifierGuided(inner, log_prob, 2.0)(x, 500, y=y), right)
    assert torch.equal(right[3], inner(x, 500)[3])


def test_a_network_that_has_not_learnt_no_class_cannot_be_guided_without_a_classifier() -> None:
    net = td.MLP(hidden=8, classes=3, label_dropout=0)
    denoiser, x = td.VDenoiser(net, SCHEDULE), normal(5, 2, dtype=torch.float32)
    for inner in (denoiser, td.Clipped(denoiser)):
        with pytest.raises(ValueError, match=r"scale = 2.0 asks for \"no class\".*label_dropout=0.1"):
            td.ClassifierFree(inner, 2.0)
    torch.testing.assert_close(td.ClassifierFree(denoiser, 1.0)(x, 5, y=Y), denoiser(x, 5, y=Y))
    plain = td.VDenoiser(td.MLP(hidden=8, label_dropout=0), SCHEDULE)  # takes no y, but a classifier's guide does
    assert td.ClassifierFree(td.ClassifierGuided(plain, lambda x, t, y: x.sum(1) * y), 2.0)(x, 5, y=Y).shape == (5, 2)


def test_thresholds_by_hand() -> None:
    x0 = torch.tensor([[0.5, -0.9, 0.2, 0.1], [4.0, -2.0, 1.0, 0.0]], dtype=torch.float64)
    x, t = torch.zeros_like(x0), torch.tensor([10, 20])
    assert td.Clipped(Says(x0), 1.0)(x, t).tolist() == [[0.5, -0.9, 0.2, 0.1], [1, -1, 1, 0]]
    half = td.DynamicThreshold(Says(x0), 0.5)(x, t)  # medians of |x0|: 0.35, below 1 so untouched, and 1.5
    torch.testing.assert_close(half, torch.tensor([[0.5, -0.9, 0.2, 0.1], [1, -1, 1 / 1.5, 0]], dtype=torch.float64))
    full = td.DynamicThreshold(Says(x0), 1.0)(x, t)
    torch.testing.assert_close(full, torch.tensor([[0.5, -0.9, 0.2, 0.1], [1, -0.5, 0.25, 0]], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_threshold_is_per_sample_for_pictures_of_any_dtype(dtype: torch.dtype) -> None:
    x0 = (3 * normal(3, 2, 4, 3)).to(dtype)
    together = td.DynamicThreshold(Says(x0), 0.9)(x0, 5)
    alone = torch.cat([td.DynamicThreshold(Says(x0[i : i + 1]), 0.9)(x0[i : i + 1], 5) for i in range(3)])
    assert together.dtype == dtype
    assert torch.equal(together, alone)
    assert together.abs().max() == 1


@pytest.mark.parametrize("sampler", [td.ddim, td.dpm_solver_pp, td.dpm_solver])
def test_wrappers_compose_and_sample(sampler, mixture: td.GaussianMixture) -> None:
    """Thresholded guidance at a scale that overshoots stays in the data's range, wrapped in either order."""
    exact = mixture.denoiser(SCHEDULE)
    x, times, y = normal(64, 2), td.uniform(SCHEDULE, 20), torch.arange(64) % 3
    for denoiser in (
        td.DynamicThreshold(td.ClassifierFree(exact, 6.0)),
        td.ClassifierFree(td.Clipped(exact, 0.5), 2.0),
    ):
        out = td.final(sampler(denoiser, x, times, y=y))
        assert torch.isfinite(out).all()
    clipped = td.final(sampler(td.Clipped(td.ClassifierFree(exact, 6.0), 0.7), x, times, y=y))
    assert clipped.abs().max() <= 0.7 + 1e-9
    free = td.final(sampler(td.ClassifierFree(exact, 6.0), x, times, y=y))
    assert free.abs().max() > 0.8


def test_wrappers_pass_on_mode_device_and_parameters() -> None:
    inner = td.VDenoiser(td.MLP(hidden=8, classes=3), SCHEDULE)
    wrapped = td.DynamicThreshold(td.ClassifierFree(inner, 2.0))
    assert len(list(wrapped.parameters())) == len(list(inner.parameters())) > 0
    assert wrapped.schedule is SCHEDULE
    wrapped.train()
    assert inner.training
    a, b = (td.sample(wrapped, (4, 2), steps=3, generator=torch.Generator().manual_seed(0), y=Y[:4]) for _ in "ab")
    assert torch.equal(a, b), "label dropout must be off while sampling"
    assert inner.training


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: td.ClassifierFree(d, 2.0)(normal(2, 2), 5), "needs classes: pass y=labels"),
        (lambda d: td.ClassifierGuided(d, None)(normal(2, 2), 5), "needs classes: pass y=labels"),
        (
            lambda d: td.ClassifierFree(d, 2.0)(normal(2, 2), 5, y=7),
            r"y is 7, but .* shape \(2,\).* torch\.full\(\(2,\), 7\)",
        ),
        (lambda d: td.ClassifierFree(d, 2.0)(normal(2, 2), 5, y=[0, 1]), r"y is \[0, 1\], but must be whole numbers"),
        (lambda d: td.ClassifierFree(d, 2.0)(normal(2, 2), 5, y=Y), r"y is torch.int64 of shape \(5,\), but .* \(2,\)"),
        (
            lambda d: td.ClassifierGuided(d, None)(normal(2, 2), 5, y=Y),
            r"y is torch.int64 of shape \(5,\), but .* \(2,\)",
        ),
        (lambda d: td.Clipped(d, 0.0), "limit = 0.0 must be greater than 0"),
        (lambda d: td.DynamicThreshold(d, 1.5), r"quantile = 1.5 must lie in \(0, 1\]"),
    ],
)
def test_bad_input_names_value_and_rule(call, message: str, mixture: td.GaussianMixture) -> None:
    with pytest.raises(ValueError, match=message):
        call(mixture.denoiser(SCHEDULE))
