# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 11 · Choosing a sampler
#
# DDPM, DDIM, Heun, DPM-Solver++ in three orders, as an equation with noise and without, consistency models. You have
# built them all. Your network is trained and somebody waits for pictures. Which one do you take?
#
# By the end of this lesson you can
#
# - compare two samplers so that the difference is more than luck,
# - read quality against network calls and against seconds,
# - write down a rule that decides, and let the computer apply it,
# - recognise four artifacts by their pictures, name their causes and repair them.
#
# Three cells are slow: distilling a student (about 8 seconds), all samplers in the plane (about 10), and MNIST (10 to 25,
# depending on your processor).

# %%
import math
import statistics
import time
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch

import tinydiff as td
from tinydiff import compare, plot, widgets
from tinydiff.metrics import energy_distance

torch.set_num_threads(1)  # networks this small only wait for a second core
schedule = td.linear()


def seed(n):
    return torch.Generator().manual_seed(n)


# The three islands of lessons 02, 03, 07, 08 and 10, and their exact denoiser
islands = torch.tensor([[-0.5, -0.5], [0.6, -0.4], [0.1, 0.6]])
world = td.GaussianMixture(islands, stds=[0.2, 0.1, 0.15], weights=[0.5, 0.2, 0.3])
exact = world.denoiser(schedule)

# %% [markdown]
# ## 1. Naive: try both, take the better
#
# DDIM or DPM-Solver++(2M), 12 steps each? Draw 300 points with either, measure how far they are from 300 real points, and
# take the smaller number. The ruler is the energy distance of lesson 02: 0 for equal laws. The numbers are small, so we
# multiply them by $10^4$ throughout.
#
# **Predict.** Lesson 07 proved that 2M is of higher order. We hold this contest ten times, with ten seeds. How often does
# 2M win?

# %%
wins = []
for i in range(10):
    real = world.sample(300, seed(1000 + i))
    ddim = td.sample(exact, (300, 2), steps=12, sampler=td.ddim, generator=seed(2000 + i))
    solver = td.sample(exact, (300, 2), steps=12, sampler=td.dpm_solver_pp, generator=seed(3000 + i))
    wins.append("2M" if energy_distance(real, solver) < energy_distance(real, ddim) else "DDIM")
print(" ".join(wins))
print(f"2M wins some and loses some: {1 <= wins.count('2M') <= 9}")
assert 1 <= wins.count("2M") <= 9

# %% [markdown]
# So one run tells you who was lucky. It gets worse if you have ten samplers: the best of ten lucky numbers is *very*
# lucky. Papers have been written on less.
#
# ## 2. A fair contest
#
# Five rules, and each is one line of code below.
#
# 1. **The same network** for all, and nobody believes what a sampler says about its cost: the denoiser *counts* its calls.
# 2. **The same noise** to start from, and the same real data to be compared with. Luck then helps everybody alike.
# 3. **Several seeds.** The mean over seeds is the result, the standard deviation over seeds is its **error bar**. The error
#    of the *mean* is smaller, $\text{sd}/\sqrt{\text{seeds}}$.
# 4. **The floor**: what real data score against other real data of the same number. Nothing can be told apart below it.
# 5. **Two costs**: network calls, which are the same on every machine, and seconds, which your users feel.


# %%
class Row(NamedTuple):
    sampler: str
    calls: int
    quality: float  # mean over seeds, lower is better
    sd: float
    seconds: float  # of CPU time for 1,000 samples


class Counted:
    """A denoiser that counts its calls."""

    def __init__(self, denoiser):
        self.denoiser, self.schedule, self.calls = denoiser, denoiser.schedule, 0

    def __call__(self, x, t):
        self.calls += 1  # rule 1
        return self.denoiser(x, t)


n, seeds = 1000, range(4)
reals = [world.sample(n, seed(100 + i)) for i in seeds]


def contest(name, sampler, steps, denoiser=exact, grid=td.uniform_angle):
    """One row of the table. `sampler(denoiser, x, times, generator)` is a generator of states."""
    found, took = [], 0.0
    for i in seeds:  # rule 3
        counted, generator = Counted(denoiser), seed(i)
        x = torch.randn(n, 2, generator=generator)  # rule 2
        start = time.process_time()
        x = td.final(sampler(counted, x, grid(schedule, steps), generator))
        took += time.process_time() - start  # rule 5
        found.append(1e4 * energy_distance(reals[i], x))
    return Row(name, counted.calls, statistics.mean(found), statistics.stdev(found), took / len(seeds) / n * 1000)


others = [(world.sample(n, seed(200 + i)), world.sample(n, seed(300 + i))) for i in range(12)]
floor = [1e4 * energy_distance(*pair) for pair in others]  # rule 4
print(f"real against real: {statistics.mean(floor):.0f} +- {statistics.stdev(floor):.0f}")

# %% [markdown]
# The energy distance here is *unbiased*: for equal laws it is 0 on average, and falls below 0 half the time. So the floor
# is not a number but a band around 0, as wide as its error bar. (The Fréchet distance of section 4 *is* biased. Its floor
# is a number above 0, and depends on $n$. Never compare two of them with different $n$.)
#
# `tinydiff.compare` follows the same rules. A cell to convince you:

# %%
ruler = compare.ByDistance(
    lambda n, i: ((world.sample(n, seed(100 + i)), None), (world.sample(n, seed(300 + i)), None)), [2]
)
ours = contest("DDIM", lambda d, x, times, g: td.ddim(d, x, times), steps=12)
_, theirs = compare.compare({"DDIM": compare.Way(exact, td.ddim, calls=(12,))}, ruler, n=n, seeds=len(seeds))
assert math.isclose(ours.quality, theirs.quality, rel_tol=1e-3)
assert math.isclose(ours.sd, theirs.quality_sd, rel_tol=1e-3)
assert ours.calls == theirs.calls == 12
print("our contest and tinydiff.compare agree on mean, error bar and calls: True")

# %% [markdown]
# ## 3. The plane, with a perfect network
#
# First the world in which only the sampler can err. One contestant is missing: a consistency model must be learnt. We
# distil it from the exact denoiser, as in lesson 10.

# %%
torch.manual_seed(0)
student = td.VDenoiser(td.MLP(hidden=64), schedule)
ema = td.EMA(student, decay=0.99)
batches = (world.sample(512, generator) for generator in [seed(12)] for _ in range(1500))
for _ in td.distill(student, exact, batches, ema=ema, steps=1500, generator=seed(13)):
    pass
student = ema.denoiser

# %% [markdown]
# **Predict.** Sort by quality at 4 calls: DDPM, DDIM, Heun, 2M, 3M, 2M as SDE. How many calls until nobody can tell them
# apart?

# %%
samplers = {  # name: (sampler, calls of a step)
    "DDPM": (lambda d, x, times, g: td.ddpm(d, x, times, generator=g), 1),
    "DDIM": (lambda d, x, times, g: td.ddim(d, x, times), 1),
    "Heun": (lambda d, x, times, g: td.heun(d, x, times), 2),
    "2M": (lambda d, x, times, g: td.dpm_solver_pp(d, x, times), 1),
    "3M": (lambda d, x, times, g: td.dpm_solver_pp(d, x, times, order=3), 1),
    "SDE 2M": (lambda d, x, times, g: td.dpm_solver_pp(d, x, times, eta=1.0, generator=g), 1),
}
ladder = (4, 8, 16, 32, 64)
rows = [
    contest(name, sampler, (calls - 1) // per_step + 1)  # Heun: two calls a step, and one at the end
    for name, (sampler, per_step) in samplers.items()
    for calls in ladder
]
walk = lambda d, x, times, g: td.consistency(d, x, times, generator=g)  # noqa: E731
rows += [contest("consistency", walk, k, denoiser=student, grid=td.root_angle) for k in (1, 2, 4)]
edm = partial(td.karras, sigma_max=80)  # the grid of Heun's authors, made for 18 steps and more
rows += [contest("Heun, own grid", samplers["Heun"][0], (calls - 1) // 2 + 1, grid=edm) for calls in ladder[2:]]

band = statistics.mean(floor), statistics.stdev(floor)
lines = {}
for row in rows:
    lines.setdefault(row.sampler, []).append(row)
plot.error_bars(
    {
        "network calls": {k: [(r.calls, r.quality, r.sd) for r in line] for k, line in lines.items()},
        "CPU seconds for 1,000 points": {k: [(r.seconds, r.quality, r.sd) for r in line] for k, line in lines.items()},
    },
    level=band,
    ylabel="energy distance × 10⁴",
    peers={"Heun, own grid": "Heun"},
    alt="Energy distance against network calls and against seconds: all samplers fall towards a grey band around 0, 3M and 2M "
    "first and Heun last; crosses, Heun on its own grid, start far above its line at 15 calls and end on it; consistency starts "
    "near the band at one call.",
)

# %%
at = {(r.sampler, r.calls): r.quality for r in rows}
print("calls at most " + "".join(f"{c:7d}" for c in ladder))
for name in (*samplers, "Heun, own grid"):
    print(f"{name:14s}" + "".join(f"{r.quality:7.0f}" for r in lines[name]).rjust(7 * len(ladder)))
claims = {
    "4 calls: 3M before 2M before DDIM before DDPM": at["3M", 4] < at["2M", 4] < at["DDIM", 4] < at["DDPM", 4],
    "8 calls: 2M before DDIM before DDPM": at["2M", 8] < at["DDIM", 8] < at["DDPM", 8],
    "Heun with 7 is behind all others with 8": at["Heun", 7] > max(at[k, 8] for k in samplers if k != "Heun"),
    "on its own grid it is three times as far with 15, and within three error bars of real data with 63": at[
        "Heun, own grid", 15
    ]
    > 3 * at["Heun", 15]
    and at["Heun, own grid", 63] < band[0] + 3 * band[1],
    "with 32 calls all are within three error bars of real data": all(
        lines[k][3].quality < band[0] + 3 * band[1] for k in samplers
    ),
    "the student's one call beats four of any other": at["consistency", 1]
    < min(at[k, 4] for k in samplers if k != "Heun"),
    "its two calls are within three error bars of real data": at["consistency", 2] < band[0] + 3 * band[1],
}
for claim, holds in claims.items():
    print(f"{claim}: {holds}")
    assert holds, (claim, at, band)

# %% [markdown]
# With a perfect network, order pays when calls are few: 3M and 2M are ahead of DDIM, DDIM is ahead of DDPM, which throws in
# fresh noise at every step and must take it out again. From 32 calls on nobody can be told apart with 1000 points, whatever
# the third digit says. Not even the SDE, though it looks twice as good as 2M from 8 calls on: with 24 other seeds we
# measured 25 ± 2 for 2M and 27 ± 5 for the SDE with 8 calls, 10 ± 3 and 13 ± 2 with 16. A tie. (The solvers of the ODE share
# their starting noise, and so their luck: all end at nearly the same number.) And the student is in a class of its own:
# its training has paid in advance.
#
# **Heun** is of order 2 as well, but it averages $\hat\varepsilon$ over steps in $\sigma/\alpha$, and with few calls the first
# of these steps is huge: of four steps with even angles it leads from 157 to 2.4. Order is a promise about *small* steps. Its
# authors start where $\sigma/\alpha = 80$, and space the seventh roots of $\sigma/\alpha$ evenly, down to the smallest noise
# (crosses). Of eight steps, that is 15 calls, only two then lie between 6 and 0.4, where points choose their island; even
# angles have five there. So in the plane this grid is far worse with 15 calls, and level with 63. On the schedule of our
# digits the same start is what *saves* Heun (section 6). A grid belongs to its solver, its schedule and its number of steps.
#
# **Calls and seconds.** The right half of the figure has the same shape as the left one. That is no accident: nearly all
# time goes into the network, and what a sampler does between two calls is small change. (In the plane, with tiny
# networks, it is not so small. With pictures it is.) We check that four times the calls take about four times as long:

# %%
net = td.load_pretrained("mnist")
noise, y = torch.randn(30, 1, 28, 28, generator=seed(2)), torch.arange(30) % 10


def cpu_seconds(steps):
    start = time.process_time()
    td.final(td.dpm_solver_pp(net, noise, td.uniform(net.schedule, steps), y=y))
    return time.process_time() - start


cpu_seconds(2)  # warms up
ratio = cpu_seconds(24) / cpu_seconds(6)
print(f"24 calls take between 2 and 8 times as long as 6: {2 < ratio < 8}")
assert 2 < ratio < 8, ratio

# %% [markdown]
# ## 4. Digits, with a network that errs
#
# Now the network that comes with tinydiff. It has learnt MNIST in an hour on one core. It is not perfect, and its mistakes
# do not vanish with more steps.
#
# **Predict.** Same contest, 8 calls, and one or two for the student. Is 2M still ahead of DDIM, and DDPM still last?
#
# The ruler is the Fréchet distance on the features of the shipped classifier. 500 digits and two seeds are the least that
# tells anything.

# %%
pupil = td.load_pretrained("mnist-consistency")
ways = {
    "DDPM": compare.Way(net, td.ddpm, (8,)),
    "DDIM": compare.Way(net, td.ddim, (8,)),
    "2M": compare.Way(net, td.dpm_solver_pp, (8,)),
    "SDE 2M": compare.Way(net, partial(td.dpm_solver_pp, eta=1.0), (8,)),
    "consistency": compare.Way(pupil, td.consistency, (1, 2)),
}
real, *measured = compare.compare(ways, compare.yardstick(net, 500), n=500, seeds=2)
eight = {r.sampler: r for r in measured if r.calls == 8}
pupil_two = measured[-1]
middle = [eight[k] for k in ("DDIM", "2M", "SDE 2M")]
claims = {
    "DDPM comes last of the four with 8 calls": all(r.quality < eight["DDPM"].quality for r in middle),
    "the student's two calls beat everybody's eight": pupil_two.quality < min(r.quality for r in eight.values()),
    "DDIM, 2M and the SDE lie within two error bars of one another": all(
        abs(a.quality - b.quality) < 2 * math.hypot(a.quality_sd, b.quality_sd) for a, b in pairwise(middle)
    ),
}
for claim, holds in claims.items():
    print(f"{claim}: {holds}")
    assert holds, (claim, measured)
beside = dict(zip(eight, (0.91, 0.97, 1.03, 1.1), strict=True))  # or the four would cover one another
plot.error_bars(
    {
        "network calls": {
            k: [(r.calls * beside.get(k, 1), r.quality, r.quality_sd) for r in measured if r.sampler == k] for k in ways
        },
        "CPU seconds for 1,000 digits": {
            k: [(r.seconds, r.quality, r.quality_sd) for r in measured if r.sampler == k] for k in ways
        },
    },
    level=(real.quality, 0.0),
    ylabel="Fréchet distance, n = 500",
    alt="Fréchet distance of five samplers on MNIST against calls and seconds: consistency with 2 calls is lowest; with 8 calls, "
    "drawn side by side, the error bars of DDIM, 2M and the SDE overlap, and DDPM is highest.",
)

# %% [markdown]
# Two digits' worth of humility. (1) The error bars of DDIM, 2M and the SDE overlap. (The four with 8 calls are drawn side by
# side.) With 500 digits and two seeds we must
# not rank them, however much we would like to. (2) All are *below* the line of real data. No magic: real test digits are
# written by other people than the training set, and that is what we compare with. And with $n = 500$ the distance of even
# perfect samples is far above 0.
#
# To rank them takes more digits than a lesson has time for. Here are 1,000 digits and three seeds
# (`benchmarks/compare.py`; standard deviations are about 0.05, 0.1 with two calls; real data reach 1.15 at this $n$):
#
# | calls | 1 | 2 | 5 (consistency: 4) | 10 | 20 | 50 |
# | --- | --- | --- | --- | --- | --- | --- |
# | DDPM | 54 | 6.50 | 1.85 | 1.07 | 0.82 | 0.69 |
# | DDIM | 54 | 6.23 | 1.58 | 0.97 | 0.86 | 0.83 |
# | 2M | 54 | 6.23 | 1.45 | 0.97 | 0.87 | 0.83 |
# | SDE 2M | 54 | 6.50 | 1.44 | 0.81 | 0.73 | 0.67 |
# | consistency | 1.06 | 0.85 | 0.86 | | | |
#
# Three things to read off. *The ODE comes to rest at 0.83*, whoever solves it. More calls solve it better, but it is the
# network's ODE, mistakes included. *Noise goes below that*: each step's fresh noise drowns what a mistake has left, and the
# next call sees an input of the kind it was trained on. DDPM has the noise but not the order, and needs 20 to 50 calls. The
# SDE solver has both. *The student's two calls* are worth 20 of the ODE's, at a tenth of the seconds.
#
# ## 5. A rule that decides
#
# A table with fifty rows is no decision. People look for the smallest number, and that is a trap twice over: the smallest
# is partly luck, and it is often the most expensive. A rule that avoids both:
#
# > Take the **fewest calls** whose quality is **as good as the best**, where "as good" means within 10 % of it, or
# > within twice the error of the means, whichever is wider.
#
# $$\text{as good}:\quad q \;\le\; q_{\min} + \max\left(0.1\,|q_{\min}|,\; \frac{2\,\text{sd}}{\sqrt{\text{seeds}}}\right)$$
#
# As sd we take the median over the rows, or that of real data if it is larger.
#
# **Predict.** Which row of section 3 does it take? And which if there is no student?


# %%
def choose(rows, sd_real, slack=0.1):
    best = min(rows, key=lambda r: r.quality)
    sd = max(statistics.median(r.sd for r in rows), sd_real)
    limit = best.quality + max(slack * abs(best.quality), 2 * sd / math.sqrt(len(seeds)))
    good = [r for r in rows if r.quality <= limit]
    return min(good, key=lambda r: (r.calls, r.quality))


def library(rows):
    """The same rows as `tinydiff.compare` has them, real data first."""
    real = compare.Row(compare.REAL, 0, n, len(floor), *band, 1.0, 0.0, 0.0)
    return [real] + [compare.Row(r.sampler, r.calls, n, len(seeds), r.quality, r.sd, 1.0, 0.0, r.seconds) for r in rows]


teachers = [r for r in rows if r.sampler != "consistency"]
for what, some in {"with a student": rows, "without": teachers}.items():
    taken = choose(some, band[1])
    assert (taken.sampler, taken.calls) == (compare.choose(library(some)).sampler, compare.choose(library(some)).calls)
    print(f"{what}: {taken.sampler}, at most {taken.calls} calls")
assert choose(rows, band[1]).sampler == "consistency"
print("our rule and tinydiff.compare.choose agree: True")

# %% [markdown]
# Without the student the rule takes the SDE with 8 calls. It owes that to the four seeds, too: no rule is wiser than its table.
#
# The command does all of it for any model that tinydiff has trained, and writes a table, a figure and the rule in words:
#
# ```sh
# tinydiff compare toy-moons
# tinydiff compare mnist --calls 5,10,20
# tinydiff compare runs/digits/checkpoint.safetensors --student runs/digits-consistency/checkpoint.safetensors
# ```
#
# A rule knows nothing of your other wishes. This table does:
#
# | you want | take | because |
# | --- | --- | --- |
# | the best for least, and can spare minutes for distilling | consistency, 1 to 2 calls | the student has the many steps behind it |
# | the best of a network as it is | DPM-Solver++ 2M as SDE, 20 calls | order saves calls, noise mends the network's mistakes |
# | the same noise to give the same picture (films, comparisons, seeds to share) | DPM-Solver++ 2M, 10 to 20 calls | nothing is random but the start |
# | to go back from a picture to its noise | DDIM, 50 calls and more | it runs both ways (lesson 05) |
# | a likelihood | the ODE, solved finely | lesson 06 |
# | strong guidance | 2M, clipped | high orders of noise prediction break (lesson 08) |
# | all the quality there is, at any price | DDPM or the SDE, 50 calls and more | noise, and so many steps that order no longer matters |
# | to understand | DDPM | twelve lines |
#
# See for yourself. Each sheet starts from the *same* noise.

# %%
sheets, digits = {}, torch.arange(10)
for name, way in ways.items():
    for calls in (1, 2, 4, 8, 16, 32):  # one call a step; `td.sample` takes the grid that suits the sampler
        x = td.sample(way.denoiser, (10, 1, 28, 28), sampler=way.sampler, steps=calls, y=digits, generator=seed(7))
        sheets[name, calls] = plot.grid(x, columns=5, scale=2)


def draw(sampler, calls):
    return sheets[sampler, calls]


widgets.explore(
    draw,
    sampler=list(ways),
    calls=[1, 2, 4, 8, 16, 32],
    start={"sampler": "2M", "calls": 4},
    title="samplers",
    alt="Ten digits, 0 to 9, drawn by the chosen sampler with the chosen number of network calls.",
)

# %%
plot.strip(
    {f"{name}, {calls}": draw(name, calls) for calls in (1, 2, 8, 32) for name in ways},
    columns=5,
    alt="Digits by five samplers, one column each, with 1, 2, 8 and 32 calls: with one call all but consistency draw grey means; "
    "with 8 all are sharp, but consistency dusty; DDIM and 2M keep the same digits down a column, DDPM and the SDE do not.",
)

# %% [markdown]
# Look down the columns. DDIM and 2M draw the same digits from 4 calls on, only sharper: one ODE, one end for each noise. DDPM
# and the SDE change their digits with the number of steps. The student is sharp at once, and gets *dusty* at 8 and beyond:
# it is asked to remove less noise than it was taught to (lesson 10).
#
# ## 6. Gallery of artifacts
#
# Four ways to spoil good pictures with a good network. Thirty digits each, from the same noise (twenty are shown), with a
# number that gives the fault away. Left the fault, right the repair.

# %%
classifier = td.load_classifier()


@torch.no_grad()
def obeys(x):
    """Share of digits that the shipped classifier sees as what they should be."""
    return (classifier.head(classifier.features(x.clamp(-1, 1))).argmax(1) == y).double().mean().item()


def grey(x):
    """Share of pixels that are neither ink nor paper."""
    return (x.abs() < 0.8).double().mean().item()


def painted(denoiser, sampler=td.ddim, steps=15, grid=td.uniform_angle):
    return td.final(sampler(denoiser, noise, grid(denoiser.schedule, steps), y=y))


def fault_and_repair(fault, repair, alt):
    frames = {title: plot.grid(x[:20], columns=10) for title, x in (fault, repair)}
    return plot.strip(frames, columns=2, alt=alt)


# %% [markdown]
# **1. Too few steps.** Strokes are soft, some digits are two at once.

# %%
blurred, sharp = painted(net, td.dpm_solver_pp, steps=2), painted(net, td.dpm_solver_pp, steps=15)
print(f"grey pixels: more than 1.5 times as many with 2 steps as with 15: {grey(blurred) > 1.5 * grey(sharp)}")
assert grey(blurred) > 1.5 * grey(sharp)
fault_and_repair(
    ("2 steps of 2M", blurred),
    ("15 steps", sharp),
    alt="Left, soft digits with ghosts of other digits in them; right, the same ones sharp.",
)

# %% [markdown]
# *Cause:* the last steps are long, and a long step ends in $\hat x_0$, which is a mean of all that is still possible.
# *Repair:* 8 calls or more, or a consistency model. A better order does not help if there are two steps.
#
# **2. Too much guidance.** Fat, bright, alike.

# %%
shouted, spoken = (painted(td.ClassifierFree(net, scale)) for scale in (8.0, 1.5))


def variety(x):
    """How far digits of a class are from their mean, per pixel."""
    x = x.clamp(-1, 1)
    return sum((x[y == k] - x[y == k].mean(0)).square().mean().sqrt().item() for k in range(10)) / 10


outside = (shouted.abs() > 1.02).double().mean().item(), (spoken.abs() > 1.02).double().mean().item()
print(
    f"pixels outside [-1, 1]: more than 5 % at scale 8: {outside[0] > 0.05}, less than 1 % at 1.5: {outside[1] < 0.01}"
)
print(f"digits of a class are more alike at scale 8: {variety(shouted) < 0.9 * variety(spoken)}")
assert outside[0] > 0.05
assert outside[1] < 0.01
assert variety(shouted) < 0.9 * variety(spoken)
fault_and_repair(
    ("scale 8", shouted),
    ("scale 1.5", spoken),
    alt="Left, thick bright digits, all of a class alike; right, digits of many hands.",
)

# %% [markdown]
# *Cause:* guidance walks past the conditional answer, out of the data's range and towards what is most typical of the
# class. *Repair:* a smaller scale. Clipping takes care of the range (next), but nothing brings the variety back.
#
# **3. Clipping by halves.** The range is easily mended: clip $\hat x_0$ to $[-1, 1]$. But a step needs two things,
#
# $$x_s = \alpha_s\,\hat x_0 + \sigma_s\,\hat\varepsilon,\qquad \hat\varepsilon = \frac{x_t-\alpha_t\,\hat x_0}{\sigma_t} .$$
#
# **Predict.** What if we clip $\hat x_0$, and keep the $\hat\varepsilon$ that belonged to the unclipped one?


# %%
def clipped_by_halves(denoiser, x, times, y):
    """Wrong: x0_hat is clipped, but eps_hat is not derived again."""
    for t, s in pairwise(times):
        with torch.no_grad():
            x0 = denoiser(x, t, y=y)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.schedule(t, like=x), denoiser.schedule(s, like=x)
        eps = (x - alpha_t * x0) / sigma_t
        x = alpha_s * x0.clamp(-1, 1) + sigma_s * eps
        yield td.State(s, x, x0)


guided = td.ClassifierFree(net, 4.0)
halves, whole = painted(guided, clipped_by_halves), painted(td.Clipped(guided))
plain = painted(net), painted(net, clipped_by_halves)
print(f"scale 4, clipped by halves: fewer than half are the digits we asked for: {obeys(halves) < 0.5}")
print(f"scale 4, eps derived again: more than 90 % are: {obeys(whole) > 0.9}")
print(f"no guidance: the same fault goes unnoticed, more than 90 %: {min(map(obeys, plain)) > 0.9}")
assert obeys(halves) < 0.5
assert obeys(whole) > 0.9
assert min(map(obeys, plain)) > 0.9
fault_and_repair(
    ("x0 clipped, eps kept", halves),
    ("x0 clipped, eps derived again", whole),
    alt="Left, broken scrawls that are other digits than asked for; right, clean digits in the right order.",
)

# %% [markdown]
# *Cause:* the old $\hat\varepsilon$ still has $\alpha_t/\sigma_t$ times the *unclipped* $\hat x_0$ subtracted. What was
# taken off by clipping is not put back, so $x_s$ moves **away** from what guidance asked for. Hence digits that avoid
# their class. *Repair:* clip first, then derive $\hat\varepsilon$ from what you clipped. `td.Clipped` is a denoiser, so
# every sampler does that by itself. Note that without guidance the bug hides: almost nothing is clipped.
#
# **4. A bad schedule, or a bad grid.** DDPM's $\beta_t$ run from 0.0001 to 0.02, made for $T = 1000$. A tempting shortcut is to put 20
# numbers between these two ends.
#
# The network was trained with another schedule, but that is no obstacle. It only wants to know *how noisy* its input is.
# We translate times by their signal-to-noise ratio:


# %%
class Translated:
    """A denoiser on another schedule: asked at t, it looks up the time of its own with as much noise."""

    def __init__(self, denoiser, schedule):
        self.denoiser, self.schedule = denoiser, schedule

    def __call__(self, x, t, **cond):
        return self.denoiser(x, self.denoiser.schedule.time(self.schedule.half_log_snr(t)), **cond)


short = td.from_betas(torch.linspace(1e-4, 0.02, 20))
scaled = td.linear(20)  # betas times 1000/T
for name, s in (("unscaled", short), ("scaled", scaled)):
    print(f"{name}: alpha_bar at T is {s.alpha_bar[-1]:.2f}")
unscaled_digits, scaled_digits = (painted(Translated(net, s), steps=20, grid=td.uniform) for s in (short, scaled))
print(f"unscaled: fewer than half are recognised: {obeys(unscaled_digits) < 0.5}")
print(f"scaled: more than 90 % are: {obeys(scaled_digits) > 0.9}")
assert obeys(unscaled_digits) < 0.5
assert obeys(scaled_digits) > 0.9
fault_and_repair(
    ("20 unscaled betas", unscaled_digits),
    ("20 scaled betas", scaled_digits),
    alt="Left, nothing but noise; right, clean digits.",
)

# %% [markdown]
# *Cause:* at $T$ the schedule promises that $\bar\alpha_T = 0.82$ of the variance is still picture. The sampler starts
# from pure noise all the same, the network believes that it sees a nearly clean picture, and polishes the noise. *Repair:*
# scale $\beta$ by $1000/T$, as `td.linear` does, or use `td.cosine`; in any case look at $\bar\alpha_T$ before you train. A
# **grid** that starts below $T$ is the same fault in disguise:

# %%
late = painted(net, grid=lambda s, steps: td.uniform(s, steps) * 0.7)
print(f"a grid that starts at 0.7 T: fewer than 80 % are recognised: {obeys(late) < 0.8}")
assert obeys(late) < 0.8
fault_and_repair(
    ("starts at 0.7 T", late),
    ("starts at T", plain[0]),
    alt="Left, scrawls, some of which are digits; right, clean digits.",
)

# %% [markdown]
# And a grid may start too *far out* for its solver. Section 3 saw that Heun suffers from long steps in $\sigma/\alpha$. At the
# $T$ of this network's schedule $\sigma/\alpha$ is 20,000, and 8 steps with even angles go from there to 5 at once.

# %%
far_out, near = painted(net, td.heun, 8), painted(net, td.heun, 8, edm)  # 15 calls each
beyond = [(x.abs() > 1.1).double().mean().item() for x in (far_out, near)]
print(f"pixels beyond 1.1, from 20,000: more than 50 %: {beyond[0] > 0.5}; from 80: less than 1 %: {beyond[1] < 0.01}")
assert beyond[0] > 0.5
assert beyond[1] < 0.01
fault_and_repair(
    ("Heun from σ/α = 20,000", far_out[:10]),
    ("Heun from σ/α = 80", near[:10]),
    alt="Left, glaring digits in a snowstorm of black and white; right, clean digits.",
)

# %% [markdown]
# *Cause:* Heun goes with the mean of $\hat\varepsilon$ at both ends of the step. At the second the network sees a little of a
# picture, so there $\hat\varepsilon$ is another by about 0.04. Half of it times 20,000 is 400, where the noise should be 5.
# (DDIM uses the first end only.) *Repair:* start where $\sigma/\alpha = 80$, as Karras et al. do. All that pure noise lacks
# there is an eightieth of a picture. `td.sample` does so by itself if its sampler is `td.heun`. On 500 digits it brought the
# Fréchet distance of 15 calls from 61 to 1.7, which is what 2M has with 8.
#
# ## If you see this instead
#
# | symptom | then |
# | --- | --- |
# | soft strokes, two digits in one | too few steps: at least 8, or a student |
# | fat, bright, all alike | guidance: a scale of 1 to 2 |
# | the asked class is *avoided* under guidance | clipped by halves: derive $\hat\varepsilon$ again |
# | pure noise, or scrawls | $\bar\alpha_T$ is not near 0, or the grid starts below $T$ |
# | garbage from a second-order method with few calls, but not from DDIM | Heun in $\sigma/\alpha$ on a grid that starts where that is huge: start it at 80 |
# | more calls and no better | the floor, or the network's own mistakes: try the SDE, then train longer |
# | a student that is worse with more calls | it gets less noise back than it was taught: 1, 2 or 4 |
# | the winner changes with the seed | no winner: more samples, more seeds, the same noise for all |
#
# ## Summary
#
# - Same network, same noise, counted calls, several seeds, the floor: otherwise you measure luck.
# - With a perfect network order decides at few calls, and DDPM's noise costs. With a network that errs, noise mends.
# - A grid belongs to its solver: Heun needs another start than DDIM.
# - Calls are seconds, up to a constant, as soon as the network is large.
# - The rule: the fewest calls within 10 %, or within the error, of the best. Let the computer apply it.
# - Artifacts have causes. Clip first, derive $\hat\varepsilon$ afterwards; end the schedule in noise.
#
# **To think about.** (1) The rule looks for the best of many rows, and the best is partly lucky. Does that make it too
# strict or too lax, and does the number of rows matter? (2) Why does fresh noise mend a network's mistakes, and why does it
# need enough calls to do so? Hint: what does the network see after a mistake, with and without noise?
#
# **Exercise.** Rule 2 gave all samplers the same noise, and so the results of a seed rise and fall *together*. Then it is
# their **difference** that counts. Complete `paired`: from the results of two samplers for each seed, the mean difference
# $a - b$ and its standard error, $\text{sd}(a_i-b_i)/\sqrt{N}$. The cell below it checks your function and gives hints; with
# `hint=2` it tells more.


# %%
def paired(a, b): ...  # your code: return mean difference, standard error


# %%
from tinydiff import check

if check.paired(paired):
    a, b = [10.0, 14.0, 9.0, 15.0], [8.0, 13.0, 6.0, 13.0]
    mean, error = paired(a, b)
    apart = math.hypot(statistics.stdev(a), statistics.stdev(b)) / 2
    print(f"paired, the difference is {mean / error:.1f} errors wide; unpaired, only {mean / apart:.1f}")

# %% [markdown]
# **Papers.** Song, Meng & Ermon 2021, *Denoising Diffusion Implicit Models*: quality against steps, table 1. Lu et al. 2022,
# *DPM-Solver++*: the comparison under guidance; thresholding and $\hat x_0$. Karras et al. 2022, *Elucidating the Design
# Space of Diffusion-Based Generative Models*: calls as the unit of cost, and when noise helps, sec. 4. Song et al. 2023,
# *Consistency Models*. Lin, Liu, Li & Yang 2023, *Common Diffusion Noise Schedules and Sample Steps are Flawed*: schedules
# that do not end in noise. Saharia et al. 2022, *Imagen*: clipping and thresholding, sec. 2.3. Heusel et al. 2017 for the
# Fréchet distance, and Chong & Forsyth 2020, *Effectively Unbiased FID and Inception Score*, for its bias in $n$.
#
# Before: [10, consistency models](10_consistency.ipynb). Next:
# [12, restoration](12_restoration.ipynb).
