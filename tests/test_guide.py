"""Guidance on a mixture, where the guided denoiser is known in closed form."""

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
        (lambda d: td.Clipped(d, 0.0), "limit = 0.0 must be greater than 0"),
        (lambda d: td.DynamicThreshold(d, 1.5), r"quantile = 1.5 must lie in \(0, 1\]"),
    ],
)
def test_bad_input_names_value_and_rule(call, message: str, mixture: td.GaussianMixture) -> None:
    with pytest.raises(ValueError, match=message):
        call(mixture.denoiser(SCHEDULE))
