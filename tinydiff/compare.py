"""Which sampler? Every way to sample beside the others: quality and diversity against network calls and seconds.

All ways start from the same noise and ask for the same classes; each row is a mean over seeds, and the first row is
real data, the floor. `choose` and `rule` turn the rows into a decision.
"""

import csv
import io
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from tinydiff import files, metrics, plot
from tinydiff.data import TOYS, digits, toy
from tinydiff.denoise import info_of
from tinydiff.diffuse import randn
from tinydiff.evaluate import LEAST, MOST, features, load_reference, takes_labels
from tinydiff.guide import Wrapper
from tinydiff.pretrained import AUTOENCODER, load_classifier, pictures
from tinydiff.sample import Grid, Sampler, consistency, ddim, ddpm, dpm_solver_pp, final, launch, usual
from tinydiff.solvers import heun
from tinydiff.train import fast_dtype

Labelled = tuple[Tensor, Tensor | None]  # samples and their classes
Real = Callable[[int, int], tuple[Labelled, Labelled]]  # real(n, seed): two independent sets of n real samples
REAL, STUDENT = "real data", "consistency"
FEWEST = 100  # points: fewer measure their number, not the sampler
PAIRS = 10  # of real sets, to tell how far apart those are


@dataclass(frozen=True)
class Way:
    """A way to sample: a sampler, the network calls that it is tried with, and its grid, if not the one `sample` takes.

    Solvers that look ahead make several calls a step, and get as many steps as fit; their last, to t = 0, takes one.
    """

    denoiser: Any
    sampler: Sampler
    calls: tuple[int, ...]
    grid: Grid | None = None
    calls_a_step: int = 1

    def times(self, calls: int) -> Tensor:
        """The grid of as many steps as fit into the calls."""
        _, steps, grid = usual(self.denoiser, self.sampler, (calls - 1) // self.calls_a_step + 1, self.grid)
        return grid(self.denoiser.schedule, steps)


@dataclass(frozen=True)
class Row:
    """What a way to sample reached: means over seeds and their standard deviations; costs are those of one seed."""

    sampler: str
    calls: int  # network calls, as counted
    n: int  # samples
    seeds: int
    quality: float  # a distance to real data: lower is better
    quality_sd: float
    diversity: float  # recall, the share of real data within the samples' manifold: higher is better
    diversity_sd: float
    seconds: float  # to draw 1,000 samples: CPU time of all threads, on a GPU wall time


def ways(denoiser: Any, calls: Sequence[int], student: Any = None) -> dict[str, Way]:
    """The samplers to choose from, by name; with a student, `consistency` with 1, 2 and 4 calls among them.

    Raises:
        ValueError: calls is empty or holds something else than whole numbers of at least 1.
    """
    if not calls or not all(isinstance(c, int) and c >= 1 for c in calls):
        raise ValueError(f"calls = {list(calls)} must be whole numbers of at least 1, such as 5, 10, 20.")
    calls = tuple(sorted(set(calls)))
    odd = tuple(sorted({(c - 1) // 2 * 2 + 1 for c in calls}))  # what two a step, and one at the end, come to
    found = {
        "DDPM": Way(denoiser, ddpm, calls),
        "DDIM": Way(denoiser, ddim, calls),
        "Heun": Way(denoiser, heun, odd, calls_a_step=2),
        "DPM-Solver++ 2M": Way(denoiser, dpm_solver_pp, calls),
        "DPM-Solver++ 3M": Way(denoiser, partial(dpm_solver_pp, order=3), calls),
        "SDE DPM-Solver++ 2M": Way(denoiser, partial(dpm_solver_pp, eta=1.0), calls),
    }
    if student is not None:
        found[STUDENT] = Way(student, consistency, (1, 2, 4))
    return found


class Yardstick(Protocol):
    """Measures n samples x of a shape, for the classes that it gave out; seeds make repetitions independent."""

    name: str
    shape: tuple[int, ...]

    def classes(self, n: int, seed: int) -> Tensor | None:
        """The classes to ask for, (n,), or None where there are none."""

    def judge(self, x: Tensor, seed: int) -> tuple[float, float]:
        """(quality, diversity) of x (n, ...)."""

    def floor(self, n: int) -> Row:
        """The same of n real ones."""


class ByDistance:
    """Energy distance to as many real points or pictures, the mean over classes, times 10^4: about 0 when perfect.

    Unbiased, so that it can fall below 0. Within classes, because the chance in their shares would drown the rest.

    Args:
        real: real(n, seed) -> two independent sets of n real samples, each as (x, y); y is None without classes.
        shape: of one sample.
    """

    name = "energy distance × 10⁴"

    def __init__(self, real: Real, shape: Sequence[int]) -> None:
        self.real, self.shape = real, tuple(shape)

    def classes(self, n: int, seed: int) -> Tensor | None:
        return self.real(n, seed)[1][1]

    def judge(self, x: Tensor, seed: int) -> tuple[float, float]:
        (real, y), (_, asked) = self.real(len(x), seed)
        real, x = real.flatten(1), x.flatten(1)
        if y is None or asked is None:
            distance = metrics.energy_distance(real, x)
        else:
            shared = [
                k for k in torch.arange(int(y.max()) + 1) if min((y == k).sum(), (asked == k).sum()) > 1
            ]  # one has no pairs
            distance = statistics.mean(metrics.energy_distance(real[y == k], x[asked == k]) for k in shared)
        return 1e4 * distance, metrics.precision_recall(real, x)[1]

    def floor(self, n: int) -> Row:
        return _row(REAL, 0, n, [self.judge(self.real(n, seed)[1][0], seed) for seed in range(PAIRS)], 0.0)


class ByFeatures:
    """Frechet distance of digits to all of MNIST's training set, on the shipped classifier's features.

    Args:
        shape: of one sample.
        asked: how many classes are asked for in turn, 10 or 0.
    """

    name = "Frechet distance"

    def __init__(self, shape: Sequence[int], asked: int = 10) -> None:
        self.shape, self.asked = tuple(shape), asked
        self.classifier, self.reference = load_classifier(), load_reference()

    def classes(self, n: int, seed: int) -> Tensor | None:
        return torch.arange(n) % self.asked if self.asked else None

    def judge(self, x: Tensor, seed: int) -> tuple[float, float]:
        seen = features(self.classifier, x.float().clamp(-1, 1))
        distance = metrics.frechet_distance_of_moments(metrics.moments(seen), self.reference.moments)
        few = min(len(x), MOST)
        real, points = self.reference.points[:few], self.reference.project(seen)[:few]
        return distance, metrics.precision_recall(real, points)[1]

    def floor(self, n: int) -> Row:
        real = self.reference.real(n)  # the mean over disjoint parts of the test set
        return Row(REAL, 0, n, 1, real.frechet, 0.0, real.recall, 0.0, 0.0)


def yardstick(denoiser: Any, n: int) -> Yardstick:
    """What samples of this denoiser are measured with, n at a time; its `info` says what it makes, and of what classes.

    A denoiser without classes is called without y, and its points are compared with those of all classes at once.

    Raises:
        ValueError: what it makes is not known here, or n is too small or, for digits, too large.
    """
    info = info_of(denoiser)
    name, shape = str(info.get("data", "")), info.get("shape", ())
    is_mnist = name == "mnist" or (name == "mnist-latent" and info.get("autoencoder") == AUTOENCODER)
    if not (is_mnist or name == "digits" or name in TOYS):
        raise ValueError(
            f"This model makes {name or 'what it does not say'}, and real data to compare with are at hand only for "
            f"mnist, mnist-latent, digits and the toys {', '.join(TOYS)}."
        )
    least = LEAST if is_mnist else FEWEST
    if n < least:
        raise ValueError(f"n = {n} must be at least {least}: fewer samples measure their number, not the sampler.")
    real: Real = partial(_fresh, name)
    if is_mnist:
        return ByFeatures(shape, 10 if takes_labels(denoiser) else 0)
    if name == "digits":
        x, y = digits()
        if n > len(x) // 2:
            raise ValueError(
                f"n = {n} must be at most {len(x) // 2}, half of the {len(x):,} digits: the other half is the floor."
            )
        real = partial(_halves, x, y)
    return ByDistance(real if takes_labels(denoiser) else partial(_unlabelled, real), shape)


def compare(
    ways: Mapping[str, Way], yardstick: Yardstick, *, n: int, seeds: int = 3, batch: int = 500, progress: bool = False
) -> Iterator[Row]:
    """Measure every way with every number of calls: first the row of real data, then one row each, as they come.

    For a seed all ways start from the same noise and are measured against the same real data. Pictures are drawn in
    the fastest dtype of the hardware, as in training.

    Args:
        ways: name -> way, as from `ways`, or others with the arguments of `ddim`.
        yardstick: such as `yardstick(denoiser, n)`.
        n: samples a seed.
        seeds: repetitions, 0, 1, ...; the error bars are standard deviations over them.
        batch: samples drawn at a time.
        progress: show a progress bar of network calls.

    Raises:
        ValueError: seeds or batch is not at least 1.
    """
    for name, value in (("seeds", seeds), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name} = {value} must be at least 1.")
    yield yardstick.floor(n)
    with tqdm(desc="comparing", total=work(ways, seeds), unit="call", disable=not progress) as bar:
        for name, way in ways.items():
            for calls in way.calls:
                found, seconds, counted = [], [], 0
                for seed in range(seeds):
                    bar.set_postfix_str(f"{name}, {calls} calls")
                    x, counted, took = drawn(way, calls, yardstick, n, seed, batch)
                    found.append(yardstick.judge(x, seed))
                    seconds.append(took * 1000 / n)
                    bar.update(calls)
                yield _row(name, counted, n, found, statistics.median(seconds))


def work(ways: Mapping[str, Way], seeds: int) -> int:
    """The number of network calls of a comparison, each on n samples."""
    return seeds * sum(sum(way.calls) for way in ways.values())


def forecast(ways: Mapping[str, Way], yardstick: Yardstick, *, n: int, seeds: int, batch: int = 500) -> float:
    """About how many seconds `compare` will take: from one call on one batch, and one measurement."""
    way = next(iter(ways.values()))
    size = min(n, batch)
    drawn(way, 1, yardstick, size, 0, batch)  # warms up
    start = time.perf_counter()
    x, _, _ = drawn(way, 1, yardstick, size, 0, batch)
    call = (time.perf_counter() - start) * n / size
    start = time.perf_counter()
    yardstick.judge(x.repeat(math.ceil(n / size), *[1] * (x.ndim - 1))[:n], 0)
    return work(ways, seeds) * call + seeds * sum(len(w.calls) for w in ways.values()) * (time.perf_counter() - start)


class Counted(Wrapper):
    """A denoiser that counts its calls."""

    calls = 0

    def forward(self, x: Tensor, t: Tensor | float, **cond: Any) -> Tensor:
        self.calls += 1
        x0: Tensor = self.denoiser(x, t, **cond)
        return x0


def drawn(way: Way, calls: int, yardstick: Yardstick, n: int, seed: int, batch: int = 500) -> tuple[Tensor, int, float]:
    """(n samples on the CPU, latents decoded; network calls for each, as counted; seconds for all of them)."""
    denoiser, inner = Counted(way.denoiser), way.denoiser
    tensors = [*inner.parameters(), *inner.buffers()] if isinstance(inner, nn.Module) else []
    generator, y = torch.Generator().manual_seed(seed), yardstick.classes(n, seed)
    noise = randn((n, *yardstick.shape), generator, tensors[0] if tensors else torch.empty(0))
    dtype, times, parts = fast_dtype(noise), way.times(calls), []
    clock = time.process_time if noise.device.type == "cpu" else time.perf_counter  # .cpu() below waits for a GPU
    start = clock()
    with torch.autocast(noise.device.type, dtype, enabled=dtype != noise.dtype):
        for rows in torch.split(torch.arange(n), batch):
            cond = {} if y is None else {"y": y[rows].to(noise.device)}
            x = final(launch(way.sampler, denoiser, noise[rows], times, generator, cond))
            parts.append(pictures(inner, x).cpu())
    return torch.cat(parts), denoiser.calls // len(parts), clock() - start


# --- the decision ----------------------------------------------------------------------------------------------------


def good_enough(rows: Sequence[Row], slack: float = 0.1) -> float:
    """The worst quality that still counts as the best: within `slack` of it, or within twice the error of the means.

    best + max(slack |best|, 2 sd/sqrt(seeds)), where sd is the median over rows of the standard deviation over seeds,
    or that between sets of real data if it is larger. Smaller differences do not tell samplers apart.
    """
    tried = _tried(rows)
    best = min(tried, key=lambda row: row.quality)
    sds = [statistics.median(row.quality_sd for row in tried), *(r.quality_sd for r in rows if r.sampler == REAL)]
    return best.quality + max(slack * abs(best.quality), 2 * max(sds) / math.sqrt(best.seeds))


def choose(rows: Sequence[Row], slack: float = 0.1) -> Row:
    """The row with the fewest network calls among those that are `good_enough`; of several, the best.

    Raises:
        ValueError: there is no row but that of real data.
    """
    limit = good_enough(rows, slack)
    return min((row for row in _tried(rows) if row.quality <= limit), key=lambda row: (row.calls, row.quality))


def frontier(rows: Sequence[Row]) -> list[Row]:
    """For each budget its best: the rows that no other beats with as few calls, from the fewest calls to the most."""
    found: list[Row] = []
    for row in sorted(_tried(rows), key=lambda row: (row.calls, row.quality)):
        if not found or row.quality < found[-1].quality:
            found.append(row)
    return found


def rule(rows: Sequence[Row], slack: float = 0.1) -> str:
    """The decision in words: what to take, what without a student, and what with fewer calls to spend."""
    best, limit, taken = min(_tried(rows), key=lambda row: row.quality), good_enough(rows, slack), choose(rows, slack)
    lines = [
        f"Best: {_say(best)}. As good: up to {limit:.3g}, the wider of {slack:.0%} more and twice the means' error.",
        f"Rule: take {_say(taken)}, which needs the fewest network calls of all that are as good.",
    ]
    others = [row for row in rows if row.sampler != STUDENT]
    if taken.sampler == STUDENT and _tried(others, empty=True):
        lines.append(f"Without a student, take {_say(choose(others, slack))}.")
    fewer = [row for row in frontier(rows) if row.calls < taken.calls]
    if fewer:
        lines.append("With fewer calls to spend: " + "; ".join(_say(row) for row in fewer) + ".")
    return "\n".join(lines)


def _say(row: Row) -> str:
    return f"{row.sampler} with {row.calls} call{'s' * (row.calls > 1)} ({row.quality:.3g})"


def _tried(rows: Sequence[Row], empty: bool = False) -> list[Row]:
    """The rows that are not real data and whose quality is a number."""
    found = [row for row in rows if row.sampler != REAL and math.isfinite(row.quality)]
    if not found and not empty:
        raise ValueError("There is no row to choose from: compare at least one sampler, whose samples are finite.")
    return found


# --- the table and the figure ----------------------------------------------------------------------------------------


def markdown(rows: Sequence[Row], name: str) -> str:
    """The rows as a table; `name` is what the yardstick calls its distance."""
    lines = [
        f"| sampler | calls | {name} | recall | s per 1,000 |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        calls, seconds = (str(row.calls), f"{row.seconds:.3g}") if row.calls else ("", "")
        quality = _number(row.quality, row.quality_sd, 2)
        lines.append(
            f"| {row.sampler} | {calls} | {quality} | {_number(row.diversity, row.diversity_sd, 3)} | {seconds} |"
        )
    n, seeds = rows[-1].n, rows[-1].seeds
    return "\n".join([*lines, "", f"n = {n:,}, {seeds} seed{'s' * (seeds > 1)}, mean ± standard deviation."]) + "\n"


def csv_text(rows: Sequence[Row]) -> str:
    """The rows as CSV, a column for each field of `Row`."""
    file = io.StringIO()
    writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return file.getvalue()


def figure(rows: Sequence[Row], name: str, peers: Mapping[str, str] | None = None) -> plot.Picture:
    """Quality against network calls and against seconds, a line for each sampler, real data as a grey band.

    Args:
        peers: name of a sampler -> the one beside which it is drawn, as crosses.
    """
    lines: dict[str, list[Row]] = {}
    for row in _tried(rows):
        lines.setdefault(row.sampler, []).append(row)
    costs: dict[str, Callable[[Row], float]] = {
        "network calls": lambda row: row.calls,
        "seconds per 1,000 samples": lambda row: row.seconds,
    }
    panels = {
        cost: {label: [(of(row), row.quality, row.quality_sd) for row in line] for label, line in lines.items()}
        for cost, of in costs.items()
    }
    real = [(row.quality, row.quality_sd) for row in rows if row.sampler == REAL]
    alt = f"{name} against network calls and against seconds, for {', '.join(lines)}."
    return plot.error_bars(panels, alt=alt, ylabel=name, level=real[0] if real else None, peers=peers)


def write(folder: Path, rows: Sequence[Row], name: str) -> None:
    """table.csv and, with the decision rule, table.md in the folder; each is whole at all times."""
    files.write(folder / "table.csv", csv_text(rows).encode())
    decision = rule(rows).replace("\n", "\n\n") if _tried(rows, empty=True) else ""
    files.write(folder / "table.md", f"{markdown(rows, name)}\n{decision}\n".encode())


def _number(mean: float, sd: float, digits: int) -> str:
    return f"{mean:.{digits}f}" + (f" ± {sd:.{digits}f}" if sd else "")


def _row(name: str, calls: int, n: int, found: Sequence[tuple[float, float]], seconds: float) -> Row:
    """The means over seeds of (quality, diversity)."""
    means = [statistics.mean(values) for values in zip(*found, strict=True)]
    sds = [statistics.stdev(values) if len(found) > 1 else 0.0 for values in zip(*found, strict=True)]
    return Row(name, calls, n, len(found), means[0], sds[0], means[1], sds[1], seconds)


def _unlabelled(real: Real, n: int, seed: int) -> tuple[Labelled, Labelled]:
    """The same two sets, without their classes."""
    (a, _), (b, _) = real(n, seed)
    return (a, None), (b, None)


def _fresh(name: str, n: int, seed: int) -> tuple[Labelled, Labelled]:
    """Two sets of points drawn afresh, not those of the training."""
    a, b = (toy(name, n, torch.Generator().manual_seed(10_000 + 2 * seed + i)) for i in range(2))
    return a, b


def _halves(x: Tensor, y: Tensor, n: int, seed: int) -> tuple[Labelled, Labelled]:
    """Two sets of n of the data that share none."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(10_000 + seed))
    a, b = order[:n], order[n : 2 * n]
    return (x[a], y[a]), (x[b], y[b])
