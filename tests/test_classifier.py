"""The classifier by itself on the 8x8 digits, and as shipped on MNIST: right, honest about noise, a working guide."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import normal
from torch import Tensor

import tinydiff as td
from tinydiff.classifier import augment, classifier_loss

f64 = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def small() -> td.Classifier:
    torch.manual_seed(0)
    return td.Classifier(width=4).double()


@pytest.fixture(scope="module")
def shipped() -> td.Classifier:
    return td.load_classifier()


def test_sizes() -> None:
    classifier = td.Classifier()
    assert sum(p.numel() for p in classifier.parameters()) < 150_000
    x = normal(3, 1, 28, 28, dtype=torch.float32)
    assert classifier.features(x).shape == (3, 64)
    assert torch.equal(classifier.head(classifier.features(x, 5.0)), classifier(x, 5.0))
    with pytest.raises(ValueError, match=r"^x has shape \(3, 1, 8, 8\), but this classifier sees \(B, 1, 28, 28\)"):
        classifier(x[:, :, :8, :8])


def test_one_picture_has_one_answer(small: td.Classifier) -> None:
    """Whatever else is in the batch, and in either mode."""
    x, t = normal(4, 1, 28, 28), torch.tensor([0.0, 10.5, 500.0, 1000.0], dtype=f64)
    together = small.train()(x, t)
    alone = torch.cat([small.eval()(x[i : i + 1], t[i]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(small(x, 0), small(x, 300))  # it does listen to t


def test_t_counts_on_the_classifiers_own_schedule() -> None:
    """A schedule of another length stretches t."""
    torch.manual_seed(0)
    long = td.Classifier(width=4)
    short = td.Classifier(width=4, schedule=td.cosine(100))
    short.load_state_dict(long.state_dict())
    x = normal(2, 1, 28, 28, dtype=torch.float32)
    torch.testing.assert_close(short(x, 30), long(x, 300))


def test_log_prob_is_a_distribution_with_the_right_gradient(small: td.Classifier) -> None:
    x, y = normal(2, 1, 28, 28), torch.tensor([3, 7])
    total = sum(small.log_prob(x, 100.0, torch.full((2,), k)).exp() for k in range(10))
    torch.testing.assert_close(total, torch.ones(2, dtype=f64))
    expected = -F.cross_entropy(small(x, 100.0), y, reduction="none")
    torch.testing.assert_close(small.log_prob(x, torch.full((2,), 100.0), y), expected)

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(small.log_prob(leaf, 100.0, y).sum(), leaf)
    for seed in (1, 2, 3):
        v, h = normal(2, 1, 28, 28, seed=seed), 1e-5
        slope = (small.log_prob(x + h * v, 100.0, y) - small.log_prob(x - h * v, 100.0, y)) / (2 * h)
        torch.testing.assert_close((gradient * v).sum((1, 2, 3)), slope, rtol=1e-6, atol=1e-9)


def test_augmented_pictures_stay_in_range_and_move_by_a_pixel() -> None:
    blank = -torch.ones(5, 1, 28, 28)
    torch.testing.assert_close(augment(blank, seeded()), blank)  # no dark frame slips in
    dot = F.pad(torch.full((4000, 1, 4, 4), 2.0), [12] * 4) - 1
    moved = augment(dot, seeded())
    assert moved.min() >= -1 - 1e-6
    assert moved.max() <= 1 + 1e-6
    ink, place = moved + 1, torch.arange(28.0) - 13.5
    for axis in (2, 3):
        other = 5 - axis
        centre = (ink.sum((1, other)) * place).sum(1) / ink.sum((1, 2, 3))
        assert abs(centre.mean()) < 0.1
        assert centre.std() == pytest.approx(1, rel=0.1)
    assert torch.equal(moved, augment(dot, seeded()))
    assert not torch.equal(moved, augment(dot, seeded(1)))


def test_augmented_pictures_turn_more_than_they_slant() -> None:
    """A level bar follows the turn, an upright one the turn and the slant, the other way round in rows and columns."""
    bar = -torch.ones(2000, 1, 28, 28)
    bar[..., 13:15, :] = 1
    place = torch.arange(28.0) - 13.5

    def slope(ink: Tensor) -> Tensor:  # of row over column, by least squares
        ink = ink[:, 0, :, 7:21] + 1
        height = (ink * place[:, None]).sum(1) / ink.sum(1)
        return (height * place[7:21]).sum(1) / place[7:21].square().sum()

    level = slope(augment(bar, seeded()))
    upright = slope(augment(bar.mT, seeded()).mT)
    assert level.std() == pytest.approx(0.1, rel=0.15)
    assert upright.std() == pytest.approx(0.1 * math.sqrt(2), rel=0.15)
    assert torch.corrcoef(torch.stack([level, upright]))[0, 1] == pytest.approx(-math.sqrt(0.5), abs=0.1)


def test_loss_is_half_clean_half_noise() -> None:
    class Spy(td.Classifier):
        def forward(self, x: Tensor, t: Tensor | float = 0.0) -> Tensor:
            self.seen = x, t
            return torch.zeros(len(x), 10)

    spy, x0, y = Spy(width=4), torch.zeros(2000, 1, 28, 28), torch.zeros(2000, dtype=torch.int64)
    x0 = x0 - 1  # paper: augmenting changes nothing
    assert classifier_loss(spy, x0, y, generator=seeded()).item() == pytest.approx(math.log(10))
    x, t = spy.seen
    assert (t[:1000] == 0).all()
    torch.testing.assert_close(x[:1000], x0[:1000])
    noisy = t[1000:]
    assert noisy.min() < 10
    assert noisy.max() > 990
    assert noisy.mean() == pytest.approx(500, abs=40)
    _, sigma = spy.schedule(noisy)
    measured = x[1000:].std((1, 2, 3))
    torch.testing.assert_close(measured, sigma.float(), rtol=0.2, atol=1e-3)


def test_it_learns_real_digits() -> None:
    x, y = td.digits()
    x = F.interpolate(x, 28, mode="bilinear")
    torch.manual_seed(0)
    classifier = td.Classifier(width=8)
    training = td.train_classifier(classifier, x[:1500], y[:1500], steps=60, batch=64, lr=1e-2, generator=seeded())
    steps = list(training)
    assert [p.step for p in steps] == list(range(1, 61))
    with torch.no_grad():
        right = (classifier(x[1500:]).argmax(1) == y[1500:]).float().mean()
    assert right > 0.6  # 0.8 after these two seconds; chance is 0.1


def test_shipped_classifier_is_right_about_noise(shipped: td.Classifier, mnist_test: tuple[Tensor, Tensor]) -> None:
    """Its accuracy falls with t, from nearly all to chance, and its probabilities mean what they say."""
    x, y = (part[:1000] for part in mnist_test)
    right, log_p = [], []
    for t in (0, 300, 500, 700, 800, 1000):
        x_t = td.q_sample(shipped.schedule, x, t, generator=seeded())
        with torch.no_grad():
            right.append((shipped(x_t, t).argmax(1) == y).float().mean().item())
            log_p.append(shipped.log_prob(x_t, t, y).mean().item())
    assert right == sorted(right, reverse=True)
    assert log_p == sorted(log_p, reverse=True)
    assert right[1] > 0.98
    assert right[2] > 0.95
    assert 0.7 < right[3] < 0.95
    assert right[-1] < 0.2
    assert log_p[-1] == pytest.approx(-math.log(10), abs=0.02)  # pure noise: it says that it does not know


def test_shipped_classifier_guides(shipped: td.Classifier, mnist_test: tuple[Tensor, Tensor]) -> None:
    """The exact denoiser of 500 digits knows no classes; with the classifier it draws those asked for."""
    x, labels = (part[:500] for part in mnist_test)
    exact, y = td.EmpiricalDenoiser(x, shipped.schedule), torch.arange(20) % 10

    def drawn(denoiser: object, **cond: Tensor) -> Tensor:
        samples = td.sample(denoiser, (20, 1, 28, 28), steps=15, generator=seeded(), **cond)
        return labels[torch.cdist(samples.flatten(1), x.flatten(1)).argmin(1)]

    assert (drawn(exact) == y).sum() <= 7
    assert (drawn(td.ClassifierGuided(exact, shipped.log_prob, 1.0), y=y) == y).sum() >= 18
    assert (drawn(td.ClassifierGuided(exact, shipped.log_prob, -1.0), y=y) == y).sum() <= 1  # the other way round
