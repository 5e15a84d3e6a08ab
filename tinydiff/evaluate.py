"""How good a model of MNIST is: its samples through the eyes of the shipped classifier, beside real test digits.

The figures of the real training set come with the classifier, so that no data is needed; they mean nothing under
another classifier.
"""

import math
import time
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from tinydiff import metrics
from tinydiff.checkpoint import read, strip
from tinydiff.classifier import Classifier
from tinydiff.denoise import info_of, layers
from tinydiff.guide import ClassifierGuided
from tinydiff.pretrained import AUTOENCODER, CLASSIFIER, load_classifier, pictures, verified
from tinydiff.sample import Grid, Sampler, sample, usual

LEAST = 500  # samples; fewer span no covariance of 64 features to speak of
MOST = 10_000  # training digits, and samples, that precision and recall compare


@dataclass(frozen=True)
class Quality:
    """How a set of pictures of digits compares with MNIST's training set."""

    frechet: float  # distance to all 60,000 training digits, on the 64 features
    precision: float  # with k = 3, on the 16 leading principal components of the features, as the rest:
    recall: float
    nearest: float  # median distance to the nearest of all training digits
    close: float  # share of pictures closer to a training digit than 99 % of real test digits are
    entropy: float  # of the predicted classes, in nats; ln 10 = 2.303 at most
    agreement: float  # share of pictures predicted to be what they were asked to be; nan if nothing was asked


@dataclass(frozen=True)
class Reference:
    """What is kept of the training set, and how the real test set compares with it."""

    moments: tuple[Tensor, Tensor]  # mean (64,) and covariance (64, 64) of the training set's features, float64
    basis: Tensor  # (64, 16), their leading principal directions
    points: Tensor  # (60000, 16), every training digit's components
    close: float  # the distance below which 1 % of test digits have a training digit
    floor: Tensor  # (rows, 8): n and the Quality of n test digits, the mean over disjoint parts of the test set

    def project(self, features: Tensor) -> Tensor:
        """The components (N, 16) of features (N, 64), float64."""
        return (features.double() - self.moments[0]) @ self.basis

    def real(self, n: int) -> Quality:
        """The quality of n real test digits: the floor of what n samples can reach.

        Between the n of the table it is read linearly in 1/n, as the distances' bias goes (Chong & Forsyth 2020).
        """
        inverse, columns = 1 / self.floor[:, 0].numpy(), self.floor[:, 1:].T.numpy()
        order = np.argsort(inverse)
        return Quality(*(float(np.interp(1 / n, inverse[order], column[order])) for column in columns))


@dataclass(frozen=True)
class Evaluation:
    """The quality of n samples and that of n real test digits; `print` shows both."""

    samples: Quality
    real: Quality
    n: int
    steps: int
    seconds_per_1000: float  # of sampling alone

    @property
    def ratio(self) -> float:
        """The samples' Frechet distance over that of the real test digits."""
        return self.samples.frechet / self.real.frechet

    def __str__(self) -> str:
        titles = {
            "frechet": "Frechet distance to the training set",
            "precision": "precision",
            "recall": "recall",
            "nearest": "distance to the nearest training digit",
            "close": "share closer than 99 % of real digits",
            "entropy": "entropy of the classes (at most 2.303)",
            "agreement": "seen as the class that was asked for",
        }
        lines = [f"{'':40}{'samples':>10}{'real test digits':>19}"]
        for field in fields(Quality):
            ours, real = getattr(self.samples, field.name), getattr(self.real, field.name)
            note = f"   {self.ratio:.2f} times the floor" if field.name == "frechet" else ""
            lines.append(f"{titles[field.name]:40}{_number(ours):>10}{_number(real):>19}{note}")
        rate = f"{self.seconds_per_1000:.1f} s per 1000 samples" if self.seconds_per_1000 else "no sampling"
        return "\n".join([*lines, f"n = {self.n:,}, {self.steps} steps, {rate}; on the shipped classifier's features"])


def evaluate(
    denoiser: Any,
    n: int = 10_000,
    *,
    steps: int | None = None,
    sampler: Sampler | None = None,
    grid: Grid | None = None,
    seed: int = 0,
    batch: int = 500,
    progress: bool = True,
) -> Evaluation:
    """Draw n digits from a denoiser and measure them; asks for the classes 0, 1, ..., 9 in turn if it takes any.

    Samples of a latent denoiser are decoded first, which counts as part of sampling.

    Args:
        denoiser: of MNIST or of its latents, or a wrapper; its `info` says so, as after `tinydiff train`.
        n: number of samples, at least 500; 10,000 for a figure to quote.
        steps, sampler, grid: as for `sample`.
        seed: of the noise; the same seed and batch give the same samples.
        batch: samples drawn at a time.
        progress: show a progress bar.

    Raises:
        ValueError: the denoiser does not make MNIST digits, or n is too small.
    """
    takes_y, shape = _check(denoiser, n)
    sampler, steps, grid = usual(denoiser, sampler, steps, grid)
    y = torch.arange(n) % 10
    parameters = denoiser.parameters() if isinstance(denoiser, nn.Module) else iter(())
    device = next(parameters, torch.empty(0)).device
    generator, drawn = torch.Generator().manual_seed(seed), []
    start = time.perf_counter()
    with tqdm(desc="sampling", total=n, unit="sample", disable=not progress) as bar:
        for labels in torch.split(y, batch):
            cond: dict[str, Any] = {"y": labels.to(device)} if takes_y else {}
            options: dict[str, Any] = {"steps": steps, "sampler": sampler, "grid": grid, "generator": generator}
            drawn.append(sample(denoiser, (len(labels), *shape), **options, **cond))
            bar.update(len(labels))
    images = pictures(denoiser, torch.cat(drawn)).cpu()
    seconds = (time.perf_counter() - start) * 1000 / n
    samples = measure(images.float(), y if takes_y else None)
    return Evaluation(samples, load_reference().real(n), n, steps, seconds)


def measure(x: Tensor, y: Tensor | None = None) -> Quality:
    """The quality of any pictures of digits, x (N, 1, 28, 28), clipped to [-1, 1]; y (N,) are the classes asked for.

    Raises:
        ValueError: x has another shape or too few pictures.
    """
    if len(x) < LEAST:
        raise ValueError(f"n = {len(x)} must be at least {LEAST}: fewer samples measure their number, not the model.")
    classifier = load_classifier()
    seen = features(classifier, x.clamp(-1, 1))
    return quality(seen, classifier.head(seen).argmax(1), y, load_reference())


def quality(seen: Tensor, predicted: Tensor, y: Tensor | None, reference: Reference) -> Quality:
    """`measure` from the pictures' features, seen (N, 64), and their predicted classes (N,)."""
    points = reference.project(seen)
    few = min(len(points), MOST)
    precision, recall = metrics.precision_recall(reference.points[:few], points[:few])
    nearest = metrics.nearest_distance(points, reference.points)
    return Quality(
        frechet=metrics.frechet_distance_of_moments(metrics.moments(seen), reference.moments),
        precision=precision,
        recall=recall,
        nearest=nearest.median().item(),
        close=(nearest < reference.close).double().mean().item(),
        entropy=metrics.class_entropy(predicted),
        agreement=math.nan if y is None else metrics.class_agreement(y, predicted),
    )


@torch.no_grad()
def features(classifier: Classifier, x: Tensor) -> Tensor:
    """classifier.features(x) in batches, (N, 64)."""
    return torch.cat([classifier.features(part) for part in torch.split(x, 500)])


def load_reference() -> Reference:
    """The reference that is stored in the shipped classifier's file."""
    return reference_from(strip(read(verified(CLASSIFIER))[1], "reference."))


def reference_from(tensors: dict[str, Tensor]) -> Reference:
    """The inverse of what benchmarks/make_weights.py stores: points as 8-bit codes, the rest in float64."""
    return Reference(
        moments=(tensors["mean"], tensors["cov"]),
        basis=tensors["basis"],
        points=tensors["codes"].double() * tensors["scale"],
        close=tensors["close"].item(),
        floor=tensors["floor"],
    )


def _check(denoiser: Any, n: int) -> tuple[bool, list[int]]:
    """Whether the denoiser takes labels, and its samples' shape; a sentence if it cannot be measured here."""
    if not (isinstance(n, int) and n >= LEAST):
        raise ValueError(f"n = {n!r} must be a whole number of at least {LEAST}; 10,000 for a figure to quote.")
    info = info_of(denoiser)
    if "shape" not in info:
        raise ValueError(
            "This denoiser does not say what it makes: if it makes MNIST digits, set denoiser.info = "
            '{"data": "mnist", "shape": [1, 28, 28], "classes": 10}, or 0 classes if it takes no y.'
        )
    latent = info.get("autoencoder") == AUTOENCODER
    if not latent and (list(info["shape"]) != [1, 28, 28] or info.get("data", "mnist") != "mnist"):
        raise ValueError(
            f"This denoiser makes {info.get('data', 'data')} of shape {tuple(info['shape'])}, and only MNIST digits of "
            "shape (1, 28, 28) can be measured here: use metrics.energy_distance for others."
        )
    return takes_labels(denoiser), list(info["shape"])


def takes_labels(denoiser: Any) -> bool:
    """Whether the denoiser, or a wrapper around it, can be asked for a class."""
    guided = any(isinstance(d, ClassifierGuided) for d in layers(denoiser))
    return guided or bool(info_of(denoiser).get("classes"))


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
