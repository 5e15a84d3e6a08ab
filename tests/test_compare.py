"""Comparing samplers: honest counts, the same start for all, tables that can be read back, and the decision rule."""

import csv
import importlib.util
import io
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

import tinydiff as td
from tinydiff import compare
from tinydiff.compare import REAL, STUDENT, ByDistance, ByFeatures, Row, Way
from tinydiff.evaluate import measure
from tinydiff.metrics import energy_distance

SCHEDULE = td.linear()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def row(sampler: str, calls: int, quality: float, sd: float = 0.0, seeds: int = 4) -> Row:
    return Row(sampler, calls, 1000, seeds, quality, sd, 0.9, 0.01, calls / 10)


@pytest.fixture
def by_distance(mixture: td.GaussianMixture) -> ByDistance:
    """Points of a mixture, without classes."""

    def real(n: int, seed: int):
        return tuple((mixture.sample(n, seeded(2 * seed + i)).float(), None) for i in range(2))

    return ByDistance(real, [2])


# --- the decision ----------------------------------------------------------------------------------------------------

ROWS = [
    row(REAL, 0, 0.5),
    row("slow", 50, 1.0),
    row("slow", 20, 1.09),
    row("quick", 20, 1.05),
    row("quick", 5, 1.2),
    row("quick", 2, 4.0),
    row("poor", 2, 9.0),
    row("poor", 10, 1.3),
    row("broken", 1, math.nan),
]


def test_the_choice_is_the_cheapest_of_the_good_ones_and_the_best_of_those() -> None:
    assert compare.good_enough(ROWS) == pytest.approx(1.1)
    chosen = compare.choose(ROWS)
    assert (chosen.sampler, chosen.calls) == ("quick", 20)
    assert compare.choose(ROWS, slack=0.25).calls == 5
    assert compare.choose(ROWS, slack=0.0).calls == 50
    assert compare.choose(list(reversed(ROWS))) == chosen


def test_noise_widens_what_is_good_enough() -> None:
    noisy = [row("a", 50, 1.0, 0.3), row("a", 5, 1.25, 0.3), row("a", 2, 1.4, 0.3), row("a", 1, 9.0, 0.9)]
    assert compare.good_enough(noisy) == pytest.approx(1.3)  # 2 * 0.3 / sqrt(4) of the median row
    assert compare.choose(noisy).calls == 5
    real = Row(REAL, 0, 1000, 10, 0.0, 0.5, 0.9, 0.0, 0.0)
    assert compare.choose([real, *noisy]).calls == 2, "the spread of real data counts, too"
    below = [row("a", 50, -0.1, 0.05), row("a", 5, -0.06, 0.05), row("a", 2, 0.2, 0.05)]
    assert compare.choose(below).calls == 5, "an unbiased distance may fall below 0"
    assert compare.good_enough([row("a", 5, -1.0)]) == pytest.approx(-0.9)


def test_the_frontier_is_the_best_for_each_budget() -> None:
    assert [(r.sampler, r.calls) for r in compare.frontier(ROWS)] == [
        ("quick", 2),
        ("quick", 5),
        ("quick", 20),
        ("slow", 50),
    ]


def test_the_rule_in_words_names_the_choice_its_limit_and_what_to_take_without_a_student() -> None:
    words = compare.rule([*ROWS, row(STUDENT, 2, 1.01), row(STUDENT, 1, 1.5)])
    best, taken, without, fewer = words.splitlines()
    assert best.startswith("Best: slow with 50 calls (1). As good: up to 1.1, the wider of 10% more")
    assert "take consistency with 2 calls (1.01)" in taken
    assert without == "Without a student, take quick with 20 calls (1.05)."
    assert fewer == "With fewer calls to spend: consistency with 1 call (1.5)."
    assert "student" not in compare.rule(ROWS)
    with pytest.raises(ValueError, match="compare at least one sampler"):
        compare.rule([ROWS[0], ROWS[-1]])


# --- the measurement -------------------------------------------------------------------------------------------------


def test_calls_are_counted_not_believed(mixture: td.GaussianMixture, by_distance: ByDistance) -> None:
    exact = mixture.denoiser(SCHEDULE)
    ways = compare.ways(exact, [6, 1, 5], student=exact)
    assert len(ways) == 7
    ways["a liar"] = Way(exact, td.dpm_solver_pp_singlestep, (5,))  # two calls a step, but one to t = 0
    rows = list(compare.compare(ways, by_distance, n=100, seeds=1, batch=30))
    assert rows[0].sampler == REAL
    counted = {name: [r.calls for r in rows if r.sampler == name] for name in ways}
    assert counted.pop("Heun") == [1, 5], "the most that fits, two a step and one at the end"
    assert counted.pop(STUDENT) == [1, 2, 4]
    assert counted.pop("a liar") == [9]
    assert all(calls == [1, 5, 6] for calls in counted.values())
    assert compare.work(ways, seeds=2) == 2 * (5 * (1 + 5 + 6) + (1 + 5) + (1 + 2 + 4) + 5)


def test_seeds_reproduce_and_all_ways_start_alike(mixture: td.GaussianMixture, by_distance: ByDistance) -> None:
    exact = mixture.denoiser(SCHEDULE)
    started: dict[str, list[torch.Tensor]] = {}

    def spying(name, sampler):
        def run(denoiser, x, times, *, generator=None):
            started.setdefault(name, []).append(x)
            return sampler(denoiser, x, times, generator=generator)

        return run

    ways = {name: Way(exact, spying(name, sampler), (3,)) for name, sampler in (("a", td.ddpm), ("b", td.ddim))}
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = list(compare.compare(ways, by_distance, n=100, seeds=2, batch=40))
    assert torch.equal(torch.get_rng_state(), before), "the global generator is left alone"
    a, b = (torch.cat(parts) for parts in started.values())
    assert torch.equal(a, b)
    assert not torch.equal(a[:100], a[100:]), "seeds differ"
    again = list(compare.compare(ways, by_distance, n=100, seeds=2, batch=40))
    assert [(r.quality, r.quality_sd, r.diversity) for r in first] == [
        (r.quality, r.quality_sd, r.diversity) for r in again
    ]
    both = [next(iter(compare.compare({"a": ways["a"]}, by_distance, n=100, seeds=s))) for s in (1, 2)]
    assert both[0].quality == both[1].quality, "the floor does not depend on the samplers' seeds"
    x, _, _ = compare.drawn(ways["a"], 3, by_distance, 100, 1)
    expected = td.final(
        td.ddpm(exact, torch.randn(100, 2, generator=(g := seeded(1))), ways["a"].times(3), generator=g)
    )
    assert torch.equal(x, expected)


def test_means_and_error_bars_are_over_seeds(mixture: td.GaussianMixture, by_distance: ByDistance) -> None:
    way = Way(mixture.denoiser(SCHEDULE), td.ddim, (4,))
    found = [by_distance.judge(compare.drawn(way, 4, by_distance, 100, seed)[0], seed) for seed in range(3)]
    quality, diversity = torch.tensor(found, dtype=torch.float64).T
    *_, last = compare.compare({"DDIM": way}, by_distance, n=100, seeds=3)
    assert (last.quality, last.quality_sd) == pytest.approx((quality.mean().item(), quality.std().item()))
    assert (last.diversity, last.diversity_sd) == pytest.approx((diversity.mean().item(), diversity.std().item()))


def test_a_distance_is_zero_for_real_data_and_sees_shrinking_and_disobedience() -> None:
    yardstick = ByDistance(partial(compare._fresh, "moons"), [2])
    floor = yardstick.floor(500)
    assert abs(floor.quality) < 3 * floor.quality_sd / math.sqrt(compare.PAIRS)
    x, y = yardstick.real(500, 0)[1]
    assert yardstick.judge(0.8 * x, 0)[0] > floor.quality + 5 * floor.quality_sd
    swapped = torch.cat([x[y == 1], x[y == 0]])[torch.cat([(y == 0).nonzero(), (y == 1).nonzero()])[:, 0].argsort()]
    assert yardstick.judge(swapped, 0)[0] > floor.quality + 20 * floor.quality_sd, "the right points for other classes"
    assert yardstick.judge(x[:5].repeat(100, 1), 0)[1] < 0.2 < 0.9 < floor.diversity


def test_digits_are_compared_with_the_half_that_does_not_serve_as_floor() -> None:
    (a, ya), (b, yb) = compare.yardstick(td.load_pretrained("digits"), 800).real(800, 3)
    joined = torch.cat([a, b]).flatten(1)
    assert len(joined.unique(dim=0)) >= 1590  # a few digits occur twice
    assert a.shape == b.shape == (800, 1, 8, 8)
    assert len(ya) == len(yb) == 800


def test_features_agree_with_evaluate() -> None:
    x, y = torch.rand(500, 1, 28, 28, generator=seeded(0)) * 3 - 1.5, torch.arange(500) % 10
    yardstick = ByFeatures([1, 28, 28])
    known = measure(x, y)
    assert yardstick.judge(x, 0) == pytest.approx((known.frechet, known.recall))
    assert yardstick.floor(500).quality == pytest.approx(yardstick.reference.real(500).frechet)
    assert torch.equal(yardstick.classes(500, 1), y)


@pytest.mark.parametrize(("data", "shape"), [("moons", [2]), ("digits", [1, 8, 8]), ("mnist", [1, 28, 28])])
def test_a_model_without_classes_is_asked_for_none(data: str, shape: list[int]) -> None:
    """A network that takes no y would refuse it; what it makes is compared with the data of all classes at once."""
    net = td.MLP(hidden=8) if len(shape) == 1 else td.UNet(width=8, patch=shape[-1] // 14 or 1)
    denoiser, n = td.VDenoiser(net, SCHEDULE), 500
    denoiser.info = {"data": data, "shape": shape}
    yardstick = compare.yardstick(denoiser, n)
    assert yardstick.classes(n, 0) is None
    _, row = compare.compare({"DDIM": Way(denoiser, td.ddim, (1,))}, yardstick, n=n, seeds=1)
    assert math.isfinite(row.quality)
    if isinstance(yardstick, ByDistance):
        labelled = compare.yardstick(td.load_pretrained("toy-moons" if data == "moons" else data), n)
        real, x = labelled.real(n, 3)[0][0], torch.randn(n, *shape, generator=seeded(0))
        expected = 1e4 * energy_distance(real.flatten(1), x.flatten(1))
        assert yardstick.judge(x, 3)[0] == pytest.approx(expected)
    steered = td.ClassifierGuided(denoiser, lambda x, t, y: x.flatten(1).sum(1))
    assert compare.yardstick(steered, n).classes(n, 0) is not None, "what guides it knows classes"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: compare.ways(d, [5, 0]), r"calls = \[5, 0\] must be whole numbers of at least 1"),
        (lambda d: compare.ways(d, []), r"calls = \[\] must be"),
        (lambda d: compare.yardstick(d, 99), "n = 99 must be at least 100"),
        (lambda d: compare.yardstick(td.load_pretrained("mnist"), 499), "n = 499 must be at least 500"),
        (lambda d: compare.yardstick(td.load_pretrained("digits"), 899), "n = 899 must be at most 898"),
        (lambda d: compare.yardstick(td.VDenoiser(d.net, SCHEDULE), 200), "makes what it does not say"),
        (
            lambda d: list(compare.compare({}, compare.yardstick(d, 100), n=100, seeds=0)),
            "seeds = 0 must be at least 1",
        ),
    ],
)
def test_mistakes_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(td.load_pretrained("toy-moons"))


# --- what is written -------------------------------------------------------------------------------------------------


def test_csv_round_trip(tmp_path: Path) -> None:
    compare.write(tmp_path, ROWS, "distance")
    read = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    kinds = {"sampler": str, "calls": int, "n": int, "seeds": int}
    again = [Row(**{key: kinds.get(key, float)(value) for key, value in line.items()}) for line in read]
    assert again[:-1] == ROWS[:-1]
    assert math.isnan(again[-1].quality)


def test_the_folder_holds_a_table_and_the_rule(tmp_path: Path) -> None:
    rows = [Row(REAL, 0, 500, 10, 0.1, 2.0, 0.95, 0.01, 0.0), row("a", 5, 300.0, 20.0), row("a", 10, -0.5, 2.0)]
    compare.write(tmp_path, rows[:1], "distance")  # nothing to choose from yet
    assert "Rule" not in (tmp_path / "table.md").read_text()
    compare.write(tmp_path, rows, "distance")
    table = (tmp_path / "table.md").read_text()
    assert "| real data |  | 0.10 ± 2.00 | 0.950 ± 0.010 |  |" in table
    assert "| a | 5 | 300.00 ± 20.00 | 0.900 ± 0.010 | 0.5 |" in table
    assert "n = 1,000, 4 seeds" in table
    assert compare.rule(rows).splitlines()[1] in table
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.csv", "table.md"]


def test_the_figure_shows_calls_and_seconds_and_values_below_zero() -> None:
    rows = [Row(REAL, 0, 500, 10, 0.1, 2.0, 0.95, 0.01, 0.0), row("a", 5, 300.0, 20.0), row("a", 10, -0.5, 2.0)]
    drawn = compare.figure([*rows, row("diffusers a", 5, 310.0)], "distance", {"diffusers a": "a"})
    assert "distance against network calls and against seconds, for a, diffusers a" in drawn.alt
    width, height = Image.open(io.BytesIO(drawn.png)).size
    assert width > 2 * height > 600


# --- against diffusers -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def benchmark():
    """benchmarks/compare.py, whose adapter drives the same denoiser with diffusers' schedulers."""
    pytest.importorskip("diffusers")
    spec = importlib.util.spec_from_file_location("benchmark", Path(__file__).parents[1] / "benchmarks" / "compare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("schedule", [td.linear(), td.cosine()])
@pytest.mark.parametrize("steps", [2, 5, 20])
def test_peers_get_the_same_network_noise_and_times(benchmark, schedule, steps: int, mixture) -> None:
    """DDIM and 2M agree to what float32 tables allow; 3M, whose curvature diffusers halves, does not."""
    exact, x = mixture.denoiser(schedule), torch.randn(50, 2, generator=seeded(0), dtype=torch.float64)
    times, asked = td.uniform(schedule, steps), []

    class Spy:
        schedule = exact.schedule

        def __call__(self, x, t):
            asked.append(float(t))
            return exact(x, t)

    for name, sampler in (
        ("DDIM", td.ddim),
        ("DPM-Solver++ 2M", td.dpm_solver_pp),
        ("DPM-Solver++ 3M", partial(td.dpm_solver_pp, order=3)),
    ):
        theirs = td.final(benchmark.scheduled(benchmark.SCHEDULERS[name], Spy(), x, times)).double()
        gap = (theirs - td.final(sampler(exact, x, times))).abs().max()
        assert gap < 1e-4 or ("3M" in name and steps > 2), (name, gap)
        if "3M" in name and steps == 5:
            assert gap > 1e-3
    assert asked == times[:-1].tolist() * 3


def test_verdicts_on_peers(benchmark) -> None:
    rows = [row("DDIM", 5, 1.0, 0.1), row("DDIM", 10, 1.0), row("DDIM", 20, 1.0), row("DDIM at uniform", 20, 3.0)]
    rows += [row("diffusers DDIM", calls, quality) for calls, quality in ((5, 0.95), (10, 0.9), (20, 2.0))]
    verdicts = list(benchmark.verdicts(rows))
    assert [text.split(", ")[2].split(";")[0] for text in verdicts] == ["as good", "WORSE", "better", "WORSE"]
    assert verdicts[-1].startswith("DDIM at uniform, 20 calls: 3.00 against 2.00, WORSE; time 1.00")
