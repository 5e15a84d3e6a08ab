"""Quality of pictures of digits: real ones reach the stored floor, spoilt ones do not, and copies are caught."""

import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import normal
from torch import Tensor, nn

import tinydiff as td
from tinydiff import metrics
from tinydiff.evaluate import features, load_reference, measure, quality

HERE = {"data": "mnist", "shape": [1, 28, 28], "classes": 10}


@pytest.fixture(scope="module")
def seen(mnist_test: tuple[Tensor, Tensor]) -> Tensor:
    """Features of the 10,000 test digits."""
    return features(td.load_classifier(), mnist_test[0])


def test_shipped_classifier_and_floor_are_what_the_card_says(seen: Tensor, mnist_test: tuple[Tensor, Tensor]) -> None:
    """At least 99.2 % of the test set, and the test set itself measured anew."""
    classifier, reference, y = td.load_classifier(), load_reference(), mnist_test[1]
    real = quality(seen, classifier.head(seen).argmax(1), y, reference)
    assert real.agreement >= 0.992
    stored = reference.real(10_000)
    assert real.frechet == pytest.approx(stored.frechet, rel=1e-3)
    assert vars(real) == pytest.approx(vars(stored), rel=2e-3)
    assert real.close == pytest.approx(0.01, abs=1e-3)  # by its definition
    assert stored.agreement == pytest.approx(classifier.info["quality"]["test accuracy at t = 0"], abs=3e-4)
    assert abs(real.entropy - math.log(10)) < 0.01


def test_reference_is_of_the_training_set(mnist_train: tuple[Tensor, Tensor]) -> None:
    """Eight hundred training digits lie where the reference has them, to the rounding of its codes."""
    reference = load_reference()
    points = reference.project(features(td.load_classifier(), mnist_train[0][:800]))
    assert reference.points.shape == (60_000, 16)
    spread = reference.points.std(0)
    inside = (points.abs() < 3.9 * spread).all(1)
    assert inside.sum() > 700
    error = (points - reference.points[:800])[inside].abs() / spread
    assert error.max() < 1.02 * 4 / 255  # half a code
    values = torch.linalg.eigvalsh(reference.moments[1]).flip(0)
    torch.testing.assert_close(spread.square(), values[:16], rtol=0.02, atol=0)


def test_floor_falls_with_n_and_is_read_between_its_rows() -> None:
    reference = load_reference()
    floor = [reference.real(n).frechet for n in (500, 1000, 2000, 5000, 10_000)]
    assert floor == sorted(floor, reverse=True)
    assert floor == pytest.approx(reference.floor[:, 1].tolist())
    middle = 1 / ((1 / 500 + 1 / 1000) / 2)
    assert reference.real(round(middle)).frechet == pytest.approx((floor[0] + floor[1]) / 2, rel=1e-3)


def test_blur_and_noise_are_seen(mnist_test: tuple[Tensor, Tensor]) -> None:
    """The distance grows with either and is far above the floor; precision falls."""
    x = mnist_test[0][:500]
    line = torch.tensor([1.0, 2.0, 1.0]) / 4
    blurred = [x]
    for _ in range(3):
        blurred.append(F.conv2d(F.pad(blurred[-1], [1] * 4, value=-1), (line[:, None] * line)[None, None]))
    blur = [measure(part) for part in blurred]
    assert [q.frechet for q in blur] == sorted(q.frechet for q in blur)
    assert blur[3].frechet > 3 * blur[0].frechet
    assert blur[3].precision < blur[0].precision - 0.1
    noise = [measure(x + s * normal(*x.shape, dtype=x.dtype)) for s in (0.3, 1.0)]
    beyond = x + normal(*x.shape, dtype=x.dtype)
    assert measure(beyond, mnist_test[1][:500]) == measure(beyond.clamp(-1, 1), mnist_test[1][:500])
    assert blur[0].frechet < noise[0].frechet < noise[1].frechet / 3
    assert measure(normal(500, 1, 28, 28, dtype=x.dtype)).frechet > 30 * blur[0].frechet


def test_missing_classes_are_seen(seen: Tensor, mnist_test: tuple[Tensor, Tensor]) -> None:
    y, classifier, reference = mnist_test[1], td.load_classifier(), load_reference()
    few = seen[y < 7][:2000]
    q = quality(few, classifier.head(few).argmax(1), None, reference)
    assert q.entropy == pytest.approx(math.log(7), abs=0.02)
    assert math.isnan(q.agreement)
    assert q.frechet > 10 * reference.real(2000).frechet
    assert q.recall < reference.real(2000).recall - 0.1


def test_evaluate_catches_a_model_that_copies(mnist_train: tuple[Tensor, Tensor]) -> None:
    """The exact denoiser of some training digits returns them: good by every figure but the last two."""
    y = mnist_train[1]
    rows = torch.cat([(y == k).nonzero()[-100:, 0] for k in range(10)])  # beyond those that precision looks at
    copier: Any = td.EmpiricalDenoiser(mnist_train[0][rows], td.cosine())
    copier.info = HERE | {"classes": 0}
    e = td.evaluate(copier, 500, steps=12, batch=250, progress=False)
    assert e.n == 500
    assert e.samples.precision > 0.7
    assert e.ratio == e.samples.frechet / e.real.frechet < 3
    assert e.samples.close > 0.9
    assert e.samples.nearest < e.real.nearest / 4
    assert e.real.close < 0.02
    text = str(e)
    assert f"{e.samples.frechet:.3f}" in text
    assert f"{e.real.frechet:.3f}" in text
    assert f"{e.ratio:.2f} times the floor" in text
    assert text.splitlines()[-1].startswith("n = 500, 12 steps, ")


class Painter(nn.Module):
    """A denoiser that knows its answer: a stripe at the height y, whatever the noise; counts what it is asked."""

    def __init__(self, **info: Any) -> None:
        super().__init__()
        self.schedule, self.info, self.asked = td.cosine(), HERE | info, []

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.asked.append(y)
        out = -torch.ones_like(x)
        rows = torch.zeros(len(x), dtype=torch.int64) if y is None else y
        out[torch.arange(len(x)), 0, 2 * rows] = 2.0  # beyond white: measured as white
        return out


def test_evaluate_asks_for_every_class_in_turn() -> None:
    painter = Painter()
    e = td.evaluate(painter, 505, steps=1, batch=200, progress=False)
    assert [len(y) for y in painter.asked] == [200, 200, 105]
    assert torch.cat(painter.asked).tolist() == [i % 10 for i in range(505)]
    assert 0 <= e.samples.agreement < 1
    image = painter(torch.zeros(10, 1, 28, 28), 0, torch.arange(10)).clamp(-1, 1)
    classifier = td.load_classifier()
    share = metrics.class_agreement(torch.arange(10), classifier(image).argmax(1))
    assert e.samples.agreement == pytest.approx(share, abs=0.01)


def test_evaluate_asks_for_no_class_of_a_model_without() -> None:
    painter = Painter(classes=0)
    e = td.evaluate(painter, 500, steps=1, progress=False)
    assert painter.asked == [None]
    assert math.isnan(e.samples.agreement)
    assert any(line.split()[-2] == "-" for line in str(e).splitlines() if line.startswith("seen as"))


def test_evaluate_sees_through_wrappers() -> None:
    guided = Painter()
    td.evaluate(td.Clipped(td.ClassifierFree(guided, 2.0)), 500, steps=1, progress=False)
    assert guided.asked[0].tolist() == [i % 10 for i in range(500)] + [-1] * 500
    steered = td.ClassifierGuided(td.Clipped(Painter(classes=0)), td.load_classifier().log_prob)
    assert not math.isnan(td.evaluate(steered, 500, steps=1, progress=False).samples.agreement)


def test_evaluate_decodes_latents() -> None:
    """A latent denoiser's figures are those of its samples, decoded by hand; also behind a wrapper."""
    latent, y = td.load_pretrained("mnist-latent"), torch.arange(500) % 10
    z = td.sample(latent, (500, 3, 8, 8), steps=3, generator=torch.Generator().manual_seed(1), y=y)
    expected = measure(td.load_autoencoder().decode(z), y)
    for denoiser in (latent, td.ClassifierFree(latent, 1.0)):
        e = td.evaluate(denoiser, 500, steps=3, seed=1, progress=False)
        assert vars(e.samples) == pytest.approx(vars(expected), rel=1e-3)
    assert expected.agreement > 0.5  # digits, though of three steps


def test_same_seed_same_figures() -> None:
    torch.manual_seed(0)
    denoiser = td.VDenoiser(td.UNet(width=32, classes=10), td.cosine())
    denoiser.info = dict(HERE)
    state = torch.get_rng_state()
    first, again, other = (td.evaluate(denoiser, 500, steps=1, seed=s, progress=False).samples for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert json.dumps(vars(first)) == json.dumps(vars(again)) != json.dumps(vars(other))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: td.evaluate(Painter(), 499), r"^n = 499 must be a whole number of at least 500; 10,000 for a figure"),
        (
            lambda: td.evaluate(Painter(shape=[1, 8, 8], data="digits")),
            r"^This denoiser makes digits of shape \(1, 8, 8\)",
        ),
        (
            lambda: td.evaluate(Painter(shape=[3, 8, 8], data="mnist-latent")),
            r"^This denoiser makes mnist-latent of shape \(3, 8, 8\)",
        ),
        (lambda: td.evaluate(Painter(data="fashion")), r"^This denoiser makes fashion of .* only MNIST digits"),
        (lambda: td.evaluate(td.VDenoiser(td.MLP(), td.linear())), r"^This denoiser does not say what it makes: if it"),
        (lambda: measure(torch.zeros(3, 1, 28, 28)), r"^n = 3 must be at least 500"),
        (lambda: measure(torch.zeros(500, 1, 8, 8)), r"^x has shape \(500, 1, 8, 8\), but this classifier sees"),
    ],
)
def test_what_cannot_be_measured_is_said(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
