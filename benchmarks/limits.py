"""Where small diffusion models copy, and whom they forget.

    python benchmarks/limits.py copies      # 8x8 digits, size of the training set against copies: eight CPU minutes
    python benchmarks/limits.py balance     # the shipped model of MNIST, class by class: four CPU minutes

`copies` trains a U-Net on N digits, N = 10 ... 650, twice on disjoint ones, for the same number of steps. It prints the
share of samples whose nearest training digit is less than 1/3 as far as the second nearest, beside fresh real digits;
the loss on training digits and on fresh ones, and that of the exact denoiser of the N digits; and how far apart the two
networks' samples from the same noise are. `balance` needs MNIST, for its shares and for the classifier's own mistakes.
"""

import argparse
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor

import tinydiff as td
from tinydiff import plot
from tinydiff.evaluate import features
from tinydiff.metrics import frechet_distance, nearest_distance, nearest_ratio

SIZES = (10, 30, 100, 300, 650)
FIGURE = Path(__file__).parent / "figures" / "digits-copies.png"


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def learn(x: Tensor, steps: int, width: int, seed: int) -> td.Denoiser:
    torch.manual_seed(seed)
    denoiser = td.VDenoiser(td.UNet(width=width, patch=1), td.cosine())
    ema, generator = td.EMA(denoiser, 0.99), seeded(seed)
    source = td.batches(x, size=64, generator=generator)
    for _ in td.train(denoiser, source, ema=ema, steps=steps, lr=3e-3, generator=generator, dtype=torch.float32):
        pass
    return ema.denoiser


@torch.no_grad()
def v_loss(denoiser: Any, x: Tensor, n: int = 4000) -> float:
    """The training loss of a v-network from x0_hat, |x0_hat - x0|^2 / sigma^2: for exact denoisers, too."""
    x = x.repeat(math.ceil(n / len(x)), 1, 1, 1)[:n]
    generator = seeded(1)
    t = torch.randint(1, denoiser.schedule.T + 1, (n,), generator=generator)
    x_t = td.q_sample(denoiser.schedule, x, t, generator=generator)
    sigma = denoiser.schedule(t, like=x)[1]
    return ((denoiser(x_t, t) - x) / sigma).square().mean().item()


def share(x: Tensor, reference: Tensor) -> float:
    """Share of copies among pictures x: nearest_ratio below 1/3."""
    return (nearest_ratio(x.flatten(1), reference.flatten(1)) < 1 / 3).double().mean().item()


def distance(a: Tensor, b: Tensor) -> float:
    return (a - b).flatten(1).norm(dim=1).mean().item()


def other(a: Tensor, b: Tensor) -> float:
    return statistics.mean(distance(a, b.roll(k, 0)) for k in (1, 2, 3, 4))


def copies(sizes: list[int], steps: int, more: int, width: int, splits: int, n: int) -> None:
    x, _ = td.digits()
    clean: dict[str, dict[int, list[float]]] = {name: {} for name in (f"{steps} steps", "fresh real digits")}
    print(f"U-Net of width {width}, {steps} steps of 64 digits, {n} samples")
    print(
        f"{'N':>5}{'split':>6}{'half':>5}{'copies':>8}{'fresh':>7}{'nearest':>9}{'fresh':>7}"
        f"{'loss':>8}{'fresh':>7}{'exact':>7}{'seconds':>9}"
    )

    def row(N: int, split: int, half: int, length: int) -> tuple[Tensor, float, float]:
        order = torch.randperm(len(x), generator=seeded(split))
        held, train = x[order[:497]], x[order[497 + half * 650 :]][:N]
        start = time.process_time()
        model = learn(train, length, width, seed=10 * split + half)
        seconds = time.process_time() - start
        made = td.sample(model, (n, 1, 8, 8), steps=20, generator=seeded(2))
        near, far = (nearest_distance(z.flatten(1), train.flatten(1)).median().item() for z in (made, held))
        result = share(made, train), share(held, train)
        exact = td.EmpiricalDenoiser(train, model.schedule)
        losses = v_loss(model, train), v_loss(model, held), v_loss(exact, train)
        print(
            f"{N:5}{split:6}{half:5}{result[0]:8.3f}{result[1]:7.3f}{near:9.2f}{far:7.2f}"
            f"{losses[0]:8.3f}{losses[1]:7.3f}{losses[2]:7.3f}{seconds:9.1f}",
            flush=True,
        )
        return made, *result

    for N in sizes:
        for split in range(splits):
            (a, *first), (b, *second) = row(N, split, 0, steps), row(N, split, 1, steps)
            print(f"{N:5}{split:6}  both: from the same noise {distance(a, b):.2f} apart, from other {other(a, b):.2f}")
            for name, values in zip(clean, zip(first, second, strict=True), strict=True):
                clean[name].setdefault(N, []).extend(values)
    lines: dict[str, Any] = {
        name: (sizes, [statistics.mean(values) for values in found.values()]) for name, found in clean.items() if found
    }
    if more:
        print(f"{more} steps:")
        lines = {f"{more} steps": (sizes, [row(N, 0, 0, more)[1] for N in sizes]), **lines}
    labels = {"xlabel": "training digits N", "ylabel": "share of copies (nearest ratio < 1/3)"}
    ticks = {"xticks": sizes, "xticklabels": [str(N) for N in sizes], "ylim": (-0.03, 1.03)}
    picture = plot.curves(sizes, lines, alt="Share of copies against N.", xscale="log", **labels, **ticks)
    FIGURE.write_bytes(picture.png)


def balance(n: int) -> None:
    (x, y), (x_test, y_test) = td.mnist(), td.mnist("test")
    model, classifier = td.load_pretrained("mnist"), td.load_classifier()
    true = torch.bincount(y).double() / len(y)

    def seen(z: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, 64) and classes (N,)."""
        found = features(classifier, z.clamp(-1, 1))
        with torch.no_grad():
            return found, classifier.head(found).argmax(1)

    def draw(labels: Tensor, seed: int) -> Tensor:
        generator = seeded(seed)
        parts = [td.sample(model, (len(k), 1, 28, 28), generator=generator, y=k) for k in torch.split(labels, 500)]
        return torch.cat(parts)

    test_features, test_classes = seen(x_test)
    confusion = torch.zeros(10, 10, dtype=torch.float64).index_put_(
        (y_test, test_classes), torch.ones(len(y_test), dtype=torch.float64), accumulate=True
    )
    confusion /= confusion.sum(1, keepdim=True)  # P(seen | true)
    free = draw(torch.full((n,), -1), 1)
    _, classes = seen(free)
    counts = torch.bincount(classes, minlength=10)
    corrected = torch.linalg.solve(confusion.T, counts.double() / n)
    expected = confusion.T @ true * n  # what the classifier would see in real digits
    test = stats.chisquare(counts.numpy(), expected.numpy())
    print(f"{n} digits without class: chi-square {test.statistic:.1f} with 9 degrees of freedom, p = {test.pvalue:.2g}")

    asked = torch.arange(n) % 10
    made_features, made_classes = seen(draw(asked, 2))
    real_features = torch.cat([seen(x[y == k][: n // 5])[0] for k in range(10)])
    real_labels = torch.arange(10).repeat_interleave(n // 5)
    print(f"{'class':>5}{'MNIST':>8}{'seen':>8}{'corrected':>11}{'95 %':>16}{'obeys':>8}{'Frechet':>9}{'floor':>7}")
    for k in range(10):
        low, high = stats.binomtest(int(counts[k]), n).proportion_ci(0.95)
        real = real_features[real_labels == k]
        made, fresh = made_features[asked == k], test_features[y_test == k][: n // 10]
        print(
            f"{k:5}{true[k]:8.4f}{counts[k] / n:8.4f}{corrected[k]:11.4f}{low:9.4f}{high:7.4f}"
            f"{(made_classes[asked == k] == k).double().mean():8.3f}"
            f"{frechet_distance(made, real):9.2f}{frechet_distance(fresh, real):7.2f}",
            flush=True,
        )
    few = min(n, 1000)
    for name, z in (("samples", free[:few]), ("test digits", x_test[:few])):
        ratio = nearest_ratio(z.flatten(1), x.flatten(1))
        print(f"nearest ratio to the 60,000 training digits, {few} {name}: below 1/3 {(ratio < 1 / 3).sum()}, ", end="")
        print(f"below 1/2 {(ratio < 1 / 2).sum()}, median {ratio.median():.3f}, least {ratio.min():.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["copies", "balance"])
    parser.add_argument("--steps", type=int, default=1000, help="of training, for copies")
    parser.add_argument("--more", type=int, default=0, help="train one network of each size with so many steps as well")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--splits", type=int, default=2, help="of the digits into halves, for copies")
    parser.add_argument("--n", type=int, help="samples; 500 for copies, 5000 for balance")
    args = parser.parse_args()
    if args.what == "copies":
        copies(args.sizes, args.steps, args.more, args.width, args.splits, args.n or 500)
    else:
        balance(args.n or 5000)


if __name__ == "__main__":
    main()
