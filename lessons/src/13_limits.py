# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 13 · Limits: what the network does not know
#
# Twelve lessons long we made diffusion models better. In the last one we ask what they get wrong while they look right: they
# copy, they take sides, and they flatter whoever tuned them.
#
# By the end of this lesson you can
#
# - prove that a *perfect* network only copies, and catch a network that does,
# - tell from two losses, without a single sample, whether a network learns or memorises,
# - audit the classes of your samples with error bars, for the judge's mistakes too,
# - show how guidance drops a minority, and say which repairs give back what,
# - search hyper-parameters in half a minute, and not be fooled by the winner.
#
# Three cells are slow: training five networks (about 25 seconds), and two of about 8 seconds each in sections 5 and 8.

# %%
import io
import math

import torch
from matplotlib.figure import Figure
from scipy import stats
from sklearn.neighbors import KNeighborsClassifier

import tinydiff as td
from tinydiff import plot, widgets
from tinydiff.metrics import energy_distance, mode_counts, nearest_ratio

torch.set_num_threads(1)  # networks this small only wait for a second core
f64 = torch.float64


def seed(n):
    return torch.Generator().manual_seed(n)


islands = torch.tensor([[-0.5, -0.5], [0.6, -0.4], [0.1, 0.6]], dtype=f64)
world = td.GaussianMixture(islands, stds=[0.2, 0.1, 0.15], weights=[0.5, 0.2, 0.3])
schedule = td.linear()
truth = world.denoiser(schedule)

# %% [markdown]
# ## 1. The perfect student
#
# Lesson 02 minimised the loss over all data that the *world* could send. In truth we never have the world. We have $N$
# points $x_1, \dots, x_N$, and training draws from those. So what does the loss want, taken at its word?
#
# Fix $t$. The noisy point is $x_t = \alpha x_i + \sigma\epsilon$ for one of the $N$, each as likely as the others. The loss
# of a denoiser $f$ is
#
# $$\frac1N\sum_i \int \mathcal N(x_t;\, \alpha x_i, \sigma^2)\; \|f(x_t) - x_i\|^2 \,dx_t .$$
#
# Swap sum and integral: every place $x_t$ has its own little problem. Its answer $f$ may be chosen freely there, so set the
# derivative to zero, $\sum_i \mathcal N_i\,(f - x_i) = 0$:
#
# $$\boxed{\;f^*(x_t) = \sum_i w_i\,x_i, \qquad w_i = \frac{\mathcal N(x_t; \alpha x_i, \sigma^2)}{\sum_j \mathcal N(x_t; \alpha x_j, \sigma^2)}\;}$$
#
# That is the **photocopier** of lesson 00. It has no parameters and needs no training.


# %%
def photocopier(data, x, t):
    alpha, sigma = schedule(t, like=x)
    squared = ((x[:, None] - alpha * data) ** 2).sum(-1)  # (B, N)
    w = (-squared / (2 * sigma**2)).softmax(1)
    return w @ data, w


data = world.sample(100, seed(1))
memory = td.EmpiricalDenoiser(data, schedule)
for t in (1, 50, 300, 1000):
    x_t = td.q_sample(schedule, world.sample(500, seed(2)), t, generator=seed(3))
    best, w = photocopier(data, x_t, t)
    assert torch.allclose(best, memory(x_t, t))
    for answer in (truth(x_t, t), torch.zeros_like(x_t)):  # what any other answer costs, at every single place
        cost, least = ((w * torch.cdist(f, data) ** 2).sum(1) for f in (answer, best))
        assert torch.allclose(cost, least + ((answer - best) ** 2).sum(1))
print("ours agrees with td.EmpiricalDenoiser: True")
print("any other answer f costs |f - f*|^2 more, exactly and everywhere: True")

# %% [markdown]
# The second assertion is Pythagoras, as in lesson 02: no denoiser has a smaller training loss, and *every* other one has a
# larger loss. Also the denoiser that knows the world.
#
# **Predict.** Two candidates: `memory`, the photocopier of $N$ points, and `truth`, the exact denoiser of the world. Which
# one wins on the training points? Which one on fresh points? For $N = 10$, 100, 1000?


# %%
@torch.no_grad()
def v_loss(denoiser, x, n, where=7):
    """The training loss of a v network, |x0_hat - x0|^2 / sigma^2, for any denoiser: n noisy versions of x."""
    x = x.repeat(-(-n // len(x)), *[1] * (x.ndim - 1))[:n]
    t = torch.randint(1, denoiser.schedule.T + 1, (n,), generator=seed(where))
    x_t = td.q_sample(denoiser.schedule, x, t, generator=seed(where + 1))
    return (((denoiser(x_t, t) - x) / denoiser.schedule(t, like=x)[1]) ** 2).mean().item()


others = world.sample(20_000, seed(4))
print("            training points      fresh points")
print("   N       memory     truth    memory     truth")
for N in (10, 100, 1000):
    data = world.sample(N, seed(1))
    memory = td.EmpiricalDenoiser(data, schedule)
    row = [v_loss(f, x, 20_000) for x in (data, others) for f in (memory, truth)]
    print(f"{N:5d}" + "".join(f"{loss:10.2f}" for loss in row))
    assert row[0] < row[1]
    assert row[2] > row[3]

# %% [markdown]
# On the training points the truth *loses*, at every $N$. If you train until nobody can beat your training loss, you do not
# end at the truth; you end at the photocopier. On fresh points it is the other way round, drastically for 10 points. With
# 1000 points in the plane the two can hardly be told apart. So copying is a matter of few data. But few for what? A
# thousand points fill a plane. They do not fill the space of pictures.
#
# ## 2. How to catch a copy
#
# Naive: measure the distance to the nearest training picture, call it a copy if that is small. Small compared to what? A
# nearly empty "1" is close to every other "1".
#
# The repair: compare with the *second* nearest. A copy is much closer to its original than to anything else:
#
# $$r = \frac{\text{distance to the nearest training picture}}{\text{distance to the second nearest}} .$$
#
# And what does $r$ do for an honest fresh sample? Let the second nearest lie at distance $R$. Then the nearest lies
# somewhere in the ball of radius $R$. If the data are spread evenly over it, the chance to be within $rR$ is the share of
# the volume:
#
# $$P(\text{ratio} < r) = \frac{(rR)^d}{R^d} = r^d .$$
#
# So a threshold of $1/3$, which Yoon et al. (2023) use, wrongly accuses $1/3^d$ of the innocent.
#
# **Predict.** How many is that in the plane? And with digits, of 64 pixels?


# %%
def ratio(x, reference):
    near = torch.cdist(x, reference).topk(2, largest=False).values
    return near[:, 0] / near[:, 1]


square = torch.rand(5000, 2, generator=seed(5), dtype=f64)
honest = ratio(0.2 + 0.6 * torch.rand(3000, 2, generator=seed(6), dtype=f64), square)
print(f"fresh points of a square: {(honest < 1 / 3).double().mean():.2f} of them below 1/3; 1/3^2 = {1 / 9:.2f}")
assert stats.kstest(honest**2, "uniform").pvalue > 0.01

x, y = td.digits()
order = torch.randperm(len(x), generator=seed(0))
fresh, pool = x[order[:497]], x[order[497:]]  # 497 digits that no network will see, 1300 to train on
honest = ratio(fresh.flatten(1).double(), pool.flatten(1).double())
assert torch.allclose(honest, nearest_ratio(fresh.flatten(1), pool.flatten(1)))
dimensions = 1 / -honest.log().mean()  # the maximum of the likelihood of r^d
print(f"fresh digits: {(honest < 1 / 3).double().mean():.3f} below 1/3; they fill about {dimensions:.0f} dimensions")
assert (honest < 1 / 3).double().mean() < 0.01

# %% [markdown]
# In the plane one in nine: useless. Among digits none. (The last line turns the formula round: from the ratios of fresh
# digits it reads off $d$. Sixty-four pixels, but nowhere near 64 ways to vary. Facco et al. 2017 made an estimator of
# dimension out of this.)
#
# Three warnings. A training set with the same picture twice has $r = 1$ for its copies: remove duplicates first. A copy
# shifted by one pixel is no copy to $r$. And an $r$ without the same $r$ for *fresh real data* beside it says nothing.
#
# Does the photocopier get caught?

# %%
cosine = td.cosine()
copied = td.sample(td.EmpiricalDenoiser(pool[:64], cosine), (50, 1, 8, 8), generator=seed(8))
print(
    f"largest ratio among 50 pictures of the photocopier: {nearest_ratio(copied.flatten(1), pool[:64].flatten(1)).max():.2f}"
)
assert nearest_ratio(copied.flatten(1), pool[:64].flatten(1)).max() < 0.01

# %% [markdown]
# ## 3. And a real network?
#
# A network is not free to answer what it likes at every place. It is smooth, it shares weights, and it runs out of time. So
# does it copy? We train three U-Nets of lesson 04, alike in everything but the data: 8, 64 and 600 digits. Each gets 400
# steps. (For section 4 we also train a twin of the first and of the last, on *other* digits.) Along the way we draw ten
# samples, always from the same noise, and measure the loss on training digits and on fresh ones.
#
# **Predict.** Which of the three will copy? What happens to the loss on *fresh* digits while the network starts to copy?

# %%
looks = [10, 25, 50, 100, 200, 400]
noise = torch.randn(200, 1, 8, 8, generator=seed(9))
times = td.uniform_angle(cosine, 20)


def learn(data, n):
    torch.manual_seed(n)  # the first weights
    denoiser = td.VDenoiser(td.UNet(width=16, patch=1), cosine)
    ema, generator, seen = td.EMA(denoiser, decay=0.99), seed(n), {}
    batches = td.batches(data, size=32, generator=generator)
    for p in td.train(denoiser, batches, steps=400, ema=ema, generator=generator, dtype=torch.float32):
        if p.step in looks:
            pictures = td.final(td.dpm_solver_pp(ema.denoiser, noise[:10], times))
            seen[p.step] = pictures, v_loss(ema.denoiser, data, 600), v_loss(ema.denoiser, fresh, 600)
    return td.final(td.dpm_solver_pp(ema.denoiser, noise, times)), seen


sets = {8: pool[:8], 64: pool[:64], 600: pool[:600]}
twins = {8: pool[1000:1008], 600: pool[700:1300]}
made = {N: learn(data, 0) for N, data in sets.items()}
twin = {N: learn(data, 1)[0] for N, data in twins.items()}


# %%
def nearest(pictures, data):
    return data[torch.cdist(pictures.flatten(1), data.flatten(1)).argmin(1)]


def draw(N, steps):
    pictures = made[N][1][steps][0]
    return plot.grid(torch.cat([pictures, nearest(pictures, sets[N])]), columns=10, scale=5, gap=4)


widgets.explore(
    draw,
    N=list(sets),
    steps=looks,
    start={"N": 64, "steps": 200},
    title="copies",
    alt="Above, ten samples of a network trained on N digits for so many steps; below, the nearest training digit of each. For "
    "N = 8 the two rows become equal, for N = 600 they never do.",
)

# %%
plot.strip(
    {f"N = {N}, {steps} steps": draw(N, steps) for N in sets for steps in (25, 100, 400)},
    columns=3,
    alt="Samples above their nearest training digits for N = 8, 64, 600 after 25, 100 and 400 steps: blurs at 25; at 400 the "
    "rows for N = 8 are the same, for 64 alike, for 600 different digits.",
)

# %%
share, innocent, losses = {}, {}, {}
for N, data in sets.items():
    share[N] = (nearest_ratio(made[N][0].flatten(1), data.flatten(1)) < 1 / 3).double().mean().item()
    innocent[N] = (nearest_ratio(fresh.flatten(1), data.flatten(1)) < 1 / 3).double().mean().item()
    losses[N] = {steps: seen[1:] for steps, seen in made[N][1].items()}  # on training digits, on fresh ones
claims = {
    "N = 8: more than half of 200 samples are copies": share[8] > 0.5,
    "N = 64 and 600: fewer than 1 in 20": max(share[64], share[600]) < 0.05,
    "fresh real digits: fewer than 1 in 100 for every N": max(innocent.values()) < 0.01,
    "N = 8: at the end the fresh loss is more than 5 times the training loss": losses[8][400][1]
    > 5 * losses[8][400][0],
    "N = 8: the fresh loss was lower at step 50 than at the end": losses[8][50][1] < 0.9 * losses[8][400][1],
    "N = 64: the fresh loss is more than 1.25 times the training loss": losses[64][400][1] > 1.25 * losses[64][400][0],
    "N = 600: the two differ by less than 1 in 10": abs(losses[600][400][1] / losses[600][400][0] - 1) < 0.1,
}
for claim, holds in claims.items():
    print(f"{claim}: {holds}")
    assert holds, claim
plot.curves(
    looks,
    {
        f"N = {N}, {which} digits": [found[steps][i] for steps in looks]
        for N, found in losses.items()
        for i, which in enumerate(("training", "fresh"))
    },
    xscale="log",
    xticks=looks,
    xticklabels=[str(steps) for steps in looks],
    ylim=(0, 0.95),
    xlabel="training steps",
    ylabel="loss",
    alt="Loss on training and fresh digits against training steps. N = 8: the training loss falls to 0.1, the fresh loss turns "
    "round after 50 steps and climbs back to 0.85. N = 64: they part slowly. N = 600: both fall to 0.33 together.",
)

# %% [markdown]
# Eight digits are learnt by heart. But look at the loss curves, for they tell more than the copies do. At the beginning all
# three networks learn the *same* thing: strokes, black borders. That helps with fresh digits as well. Then the small sets
# run out of common knowledge, and what is left to learn is *which digits these are*. From there on the training loss falls
# and the fresh loss rises. With 64 digits nobody is copied yet, and the gap is already there. So:
#
# - **keep some data away from training, and plot both losses.** It costs no samples and warns early;
# - copying takes time, too. Stop when the fresh loss turns round. (Bonnaire et al. 2025 measured that the time until a
#   network memorises grows in proportion to $N$, while the time until it draws well does not grow.)
#
# The same gap can be used against you. If a picture's loss is suspiciously low, it was in the training set: an attack that
# works on one's medical records as well as on digits (cf. Carlini et al. 2023, who also extracted training pictures from
# large public models).
#
# With more training: `benchmarks/limits.py copies` gives each network 1000 steps of 64 digits, on two splits of the
# data with two networks each, and finds these shares of copies:
#
# | N | 10 | 30 | 100 | 300 | 650 |
# | --- | --- | --- | --- | --- | --- |
# | samples below 1/3 | 99 % | 83 % | 12 % | 0 | 0 |
# | fresh digits below 1/3 | 0.1 % | 0.05 % | 0.1 % | 0 | 0 |
# | fresh loss / training loss | 11.7 | 7.1 | 2.8 | 1.2 | 1.07 |
#
# So between 30 and 300 digits this network stops copying, with this budget. The gap of the losses outlives the copies. With 4000
# steps in place of 1000, a network of 100 digits copies in 72 % of all samples, and one of 300 digits in 7 %, about as
# often as 100 digits did after 1000: "enough data" depends on patience.
#
# ## 4. What generalises
#
# A network that does not copy: does it know *the digits*, or merely blur *its* digits? Here is a beautiful test
# (Kadkhodaie et al. 2024). Split the data into two halves that share no picture. Train a network on each. Start both from
# the *same* noise, with a sampler that adds none. If both have learnt the same world, they must draw the same picture.
#
# **Predict.** The two networks of 8 digits each, and the two of 600 each: do they agree?


# %%
def apart(a, b):
    return (a - b).flatten(1).norm(dim=1).mean().item()


agreement = {N: apart(made[N][0], twin[N]) / apart(made[N][0], twin[N].roll(1, 0)) for N in twins}
print(f"N = 8: distance of twins from the same noise over that from different noise: above 0.8: {agreement[8] > 0.8}")
print(f"N = 600: below 0.4: {agreement[600] < 0.4}")
assert agreement[8] > 0.8
assert agreement[600] < 0.4
plot.strip(
    {
        f"two networks of {N} digits each": plot.grid(
            torch.cat([made[N][0][:10], twin[N][:10]]), columns=10, scale=5, gap=4
        )
        for N in twins
    },
    columns=2,
    alt="Two rows of ten samples each, from the same noise. Networks of 8 digits: unrelated digits above and below. Networks of "
    "600 digits: mostly the same digit in nearly the same hand.",
)

# %% [markdown]
# Eight digits: strangers. Six hundred: nearly the same picture, pixel by pixel, from networks that have neither a training
# digit nor their first weights in common. On our machine their distance is 0.23 of that between different noise, and 0.93
# for eight digits. The noise decides what is drawn, not the training set: there is *one* map from noise to digits, that of
# the world, and both are close to it. With the networks of `benchmarks/limits.py`, trained longer, the ratio falls from 0.9 at
# $N = 10$ over 0.81 at 30, 0.60 at 100 and 0.37 at 300 to 0.28 at 650.
#
# This is more than not copying. A network may fail to copy because it is bad. To agree with a stranger one has to have
# learnt something.
#
# ## 5. Whom does it draw?
#
# Copying is one way to fail the data. Taking sides is another. A fourth island, away from the others, has one percent of the
# population: 10 of our 1000 training points. Think of a rare disease, or of a seven with a bar.

# %%
corners = torch.cat([islands, torch.tensor([[-0.7, 0.7]], dtype=f64)]).float()
archipelago = td.GaussianMixture(corners, stds=[0.2, 0.1, 0.15, 0.15], weights=[0.5, 0.3, 0.19, 0.01])
counts = torch.tensor([500, 300, 190, 10])
home = torch.arange(4).repeat_interleave(counts)
people = archipelago.sample(1000, seed(7), y=home)


def settle(chance, steps=1200):
    """A network with classes; training point i is drawn in proportion to chance[i]. Half of the labels are dropped."""
    torch.manual_seed(0)
    denoiser = td.VDenoiser(td.MLP(hidden=64, classes=4, label_dropout=0.5), cosine)
    ema, generator = td.EMA(denoiser, decay=0.99), seed(12)
    rows = (torch.multinomial(chance, 256, replacement=True, generator=generator) for _ in range(steps))
    batches = ((people[i], home[i]) for i in rows)
    for _ in td.train(denoiser, batches, steps=steps, lr=1e-2, ema=ema, generator=generator):
        pass
    return ema.denoiser


plain = settle(torch.ones(1000))
free = td.sample(plain, (2000, 2), generator=seed(13))  # no class asked
perfect = td.sample(archipelago.denoiser(cosine), (2000, 2), generator=seed(13))

# %% [markdown]
# An audit is counting, and counts need error bars. If a share $p$ is true, the count among $n$ is binomial; turned round, that
# gives an exact interval for $p$ (Clopper & Pearson 1934). For all classes at once there is Pearson's sum
#
# $$\chi^2 = \sum_k \frac{(\text{counted}_k - \text{expected}_k)^2}{\text{expected}_k} ,$$
#
# about $K-1$ for $K$ classes when nothing is wrong. And **mind the judge**. Naive: everybody belongs to the nearest island. Then
# a point lost at sea counts as an islander, and near a small island a few such points are a scandal. (We fell for it, until we
# looked at the picture.) So ours says "at sea" beyond three standard deviations. Even then it errs a little. So we do not
# expect the weights; we expect what the *same judge* says of 200,000 real points.
#
# **Predict.** Of 2000 samples, about 20 should live on the small island. How many will? Fewer, as many, or more?


# %%
def residence(points):
    """The island of each point, 0 to 3, or 4 for the sea."""
    stds_off, island = (torch.cdist(points, corners) / archipelago.stds.float()).min(1)
    return island.masked_fill(stds_off > 3, 4)


def census(points):
    return torch.bincount(residence(points), minlength=5)


expected = census(archipelago.sample(200_000, seed(14))).double() / 100  # per 2000


def audit(points):
    """The probability of a deviation as large by chance, and an interval for the small island's share."""
    counted = census(points)
    chi2 = ((counted - expected) ** 2 / expected).sum().item()
    assert math.isclose(chi2, stats.chisquare(counted, expected).statistic, rel_tol=1e-6)
    return stats.chi2.sf(chi2, df=4), *stats.binomtest(int(counted[3]), len(points)).proportion_ci(0.95)


share_due = expected[3].item() / 2000
print(f"expected: {[round(e) for e in expected.tolist()]}; exact denoiser: {census(perfect).tolist()}")
p, low, high = audit(perfect)
print(f"exact: p above 0.05: {p > 0.05}; its interval holds the small island's share: {low < share_due < high}")
assert p > 0.05
assert low < share_due < high
p, low, high = audit(free)
print(f"network: p below 0.001: {p < 0.001}; its interval lies above the small island's share: {low > share_due}")
assert p < 0.001
assert low > share_due

# %% [markdown]
# *More*: 38 instead of 20 on our machine, and 58 points at sea where 21 would do. We had expected fewer; it pays to count, and
# then to look (below, the black dots are at sea): many of the 38 sit between two islands. Nobody put this bias there on
# purpose. The exact denoiser passes the same tests, so the sampler is innocent and the network at fault. Who lives where is
# decided at high noise, where ten points in a thousand hardly show in the loss.
#
# Two repairs come to mind. **Ask**: the network knows classes, so ask for them in the wanted proportion. **Oversample**: show
# the small island as often as the others in training, which makes all islands equally common.
#
# **Predict.** Both mend the *counts*. Do they also mend the *drawing* of the small island?

# %%
fair = settle(1 / counts[home])
evenly = td.sample(fair, (2000, 2), generator=seed(13))
level = ((census(evenly)[:4] - 490).abs() < 90).all().item()
print(f"oversampled, no class asked: every island has between 400 and 580 of 2000: {level}")
assert level

distance, drawn = {}, {}
for name, model in {"plain": plain, "oversampled": fair}.items():
    for k in range(4):
        asked = torch.full((1000,), k)
        drawn[name, k] = td.sample(model, (1000, 2), generator=seed(16), y=asked)
        distance[name, k] = energy_distance(drawn[name, k], archipelago.sample(1000, seed(15), y=asked))
    obeyed = min((census(drawn[name, k])[k] / 1000).item() for k in range(4))
    print(f"{name}, asked for: on the right island: above 90 %: {obeyed > 0.9};", end=" ")
    print(f"worst drawn: island {max(range(4), key=lambda k: distance[name, k])}")
    assert obeyed > 0.9
    assert max(range(4), key=lambda k: distance[name, k]) == 3
print(
    f"the small island is drawn better by the oversampled network: {distance['oversampled', 3] < distance['plain', 3]}"
)
assert distance["oversampled", 3] > 1.3 * distance["plain", 3]
colours = torch.tensor([0, 1, 2, 3, 6])  # the sea in black
plot.clouds(
    {
        title: (points, colours[residence(points)])
        for title, points in {
            "1000 training points": people,
            "2000 samples, no class": free,
            "the same, oversampled": evenly,
            "oversampled, asked": drawn["oversampled", 3],
        }.items()
    },
    limit=1.3,
    alt="Training points with ten on the fourth island; samples with about forty there and some, black, at sea; oversampled with about "
    "five hundred; and a thousand samples asked to be there, crowded along a streak through the ten.",
)

# %% [markdown]
# Both repairs mend the counts, and neither mends the drawing: the small island is the worst drawn, because all anybody knows
# of it are ten points. Oversampling made it *worse* here: the same ten, shown a hundred times as often, are a training
# set of the size that sections 1 to 3 warned of. (One seed, one world.) A perfect share of a poor likeness is what
# "balanced" often means. **Only more data of the rare kind mend the rare kind.**
#
# ## 6. Guidance takes sides
#
# Lesson 08 said that guidance pays with diversity. *Whose* diversity? Here is a world of two letters. Letter A is written in
# two styles: four in five writers use the common one, one in five the rare one. Once the rare style looks a little like letter
# B (it lies near it), once it does not. All denoisers are exact, so what follows is nobody's error of learning.
#
# **Predict.** We ask for letter A, 2000 times. Which share has the rare style at scale 1? And at scale 3?


# %%
class Letters:
    """The exact denoiser of two classes: A of two islands, B of one."""

    def __init__(self, rare):
        styles = torch.tensor([[-0.7, -0.2], rare, [0.7, 0.0]], dtype=f64)
        self.schedule, self.styles = schedule, styles
        self.all = td.GaussianMixture(styles, 0.12, [0.4, 0.1, 0.5]).denoiser(schedule)
        self.A = td.GaussianMixture(styles[:2], 0.12, [0.4, 0.1]).denoiser(schedule)
        self.B = td.GaussianMixture(styles[2:], 0.12).denoiser(schedule)

    def __call__(self, x, t, y):
        x0 = torch.where((y == 0)[:, None], self.A(x, t), self.all(x, t))
        return torch.where((y == 1)[:, None], self.B(x, t), x0)


start, ask_A = torch.randn(2000, 2, generator=seed(17), dtype=f64), torch.zeros(2000, dtype=torch.long)
panels, rare_share = {}, {}
for where, rare in {"near B": [0.25, 0.55], "far from B": [-0.9, 0.8]}.items():
    letters = Letters(rare)
    for scale in (1.0, 1.5, 2.0, 3.0, 5.0):
        guided = td.ClassifierFree(letters, scale)
        ends = td.final(td.dpm_solver_pp(guided, start, td.uniform_angle(schedule, 50), y=ask_A))
        few = mode_counts(ends, letters.styles)[1].item()
        low, high = stats.binomtest(few, 2000).proportion_ci(0.95)
        rare_share[where, scale] = low, high
        print(f"rare style {where}, scale {scale}: {few / 2000:4.0%}, 95 % interval {low:.0%} to {high:.0%}")
        if scale in (1.0, 3.0):
            panels[f"{where}, s = {scale:g}"] = ends, torch.cdist(ends, letters.styles).argmin(1)
assert rare_share["near B", 3.0][1] < 0.05 < 0.15 < rare_share["near B", 1.0][0]
assert rare_share["far from B", 3.0][0] > 0.2
plot.clouds(
    panels,
    limit=1.4,
    alt="Samples of letter A at scales 1 and 3. When the rare style lies near letter B, its island nearly vanishes at scale 3; "
    "when it lies far away, it grows.",
)

# %% [markdown]
# At scale 1 one in five, as it should be. At scale 3 the rare style near B is all but gone, one in forty. The one far from B
# has *grown*, to more than one in four. Guidance asks "what is typical of A **and not of B**?", and whoever has something in
# common with B loses. No class count will show it: all 2000 samples are letters A. If your data have groups that the labels
# do not name, guidance decides about them behind your back.
#
# ## 7. An audit of a shipped model
#
# Now a model that you might use: the digits network that comes with the library, asked for no class. The judge is the five
# nearest neighbours of 900 real digits. First we judge the judge, on the other 897: row $k$ of the **confusion matrix** $C$
# holds how it sees true class $k$. If the true shares are $p$, it will see $C^\top p$, and that is what we compare with.

# %%
flat, rows = x.flatten(1).numpy(), order.numpy()
judge = KNeighborsClassifier(5).fit(flat[rows[:900]], y[rows[:900]])
confusion = torch.zeros(10, 10, dtype=f64)
for true, said in zip(y[rows[900:]], judge.predict(flat[rows[900:]]), strict=True):
    confusion[true, said] += 1
confusion /= confusion.sum(1, keepdim=True)
digits = td.load_pretrained("digits")
undecided = td.sample(digits, (800, 1, 8, 8), generator=seed(18), y=torch.full((800,), -1))
seen = torch.bincount(torch.from_numpy(judge.predict(undecided.flatten(1).numpy())), minlength=10)
wanted = 800 * confusion.T @ (torch.bincount(y).double() / len(y))

print(f"the judge is right on real digits: {confusion.diagonal().min():.2f} in its worst class")
chi2 = stats.chisquare(seen, wanted).statistic
print(f"chi-square above 20, where 9 is usual and 17 happens once in 20: {chi2 > 20}")
print(f"too many ones: {bool(seen[1] > 1.1 * wanted[1])}; too few twos: {bool(seen[2] < 0.9 * wanted[2])}")
assert chi2 > 20
assert seen[1] > 1.1 * wanted[1]
assert seen[2] < 0.9 * wanted[2]

# %% [markdown]
# On our machine 109 ones where 86 were due, 54 twos in place of 75: chi-square 28, which chance gives once in a thousand.
# So our own model has a taste. When classes are asked for, as in the other lessons, it cannot show. One caution remains: $C$
# was measured on *real* digits, and a judge may err more often on strange ones.
#
# The larger shipped model is no saint either. `benchmarks/limits.py balance` draws 3000 digits of 28×28 from `mnist` without
# class: 12.2 % nines where MNIST has 9.9, 8.0 % zeros (9.9), 9.0 % ones (11.2), 10.7 % fives (9.0), after correction of the
# judge's mistakes; chi-square 53, by chance less than once in a million. Asked for a class it draws it in 97 % of all cases,
# fours and nines least reliably (95.7 %). And it does not copy: the smallest ratio $r$ to 60,000 training digits is 0.73 among
# 1000 samples, 0.59 among 1000 real test digits. The repair costs one line: draw $y$ yourself, in the proportions you want.
#
# ## 8. Which knob matters?
#
# Last, the flattery. Everybody tunes. A grid over six knobs with three values each takes 729 trainings, and tries only three
# learning rates. **Random search** draws every knob anew in each trial: fourteen trials try fourteen learning rates
# (Bergstra & Bengio 2012).
#
# How to judge a trial? In our world precisely. The learnt and the exact denoiser, started from the same noise, go different
# ways; the mean distance of their ends is an upper bound on the (Wasserstein-1) distance of the two distributions, and has
# hardly any noise. Beside it we note what one would do without the truth, in haste: the energy distance of 200 samples to 200
# real points.
#
# **Predict.** Of target, schedule, learning rate, width, batch and EMA decay: which matters most after 200 steps?

# %%
targets = {"eps": td.EpsDenoiser, "x0": td.X0Denoiser, "v": td.VDenoiser}
schedules = {"linear": schedule, "cosine": cosine, "sigmoid": td.sigmoid()}
begin = torch.randn(1000, 2, generator=seed(20))


def pick(generator):
    """One value for every knob."""

    def one_of(*values):
        return values[torch.randint(len(values), (), generator=generator).item()]

    return {
        "target": one_of(*targets),
        "schedule": one_of(*schedules),
        "lr": 10 ** (-3.5 + 2 * torch.rand((), generator=generator).item()),  # 0.0003 to 0.03, evenly in its logarithm
        "width": one_of(16, 32, 64, 128),
        "batch": one_of(32, 64, 128, 256),
        "decay": one_of(0.9, 0.99, 0.999),
    }


def attempt(target, schedule, lr, width, batch, decay, n=0, steps=200):
    torch.manual_seed(n)
    kind = targets[target]
    denoiser = kind(td.MLP(hidden=width), schedules[schedule])
    ema, generator = td.EMA(denoiser, decay), seed(1000 + n)
    batches = (world.sample(batch, generator).float() for _ in range(steps))
    for _ in td.train(denoiser, batches, steps=steps, lr=lr, ema=ema, generator=generator):
        pass
    return ema.denoiser


def walk(denoiser):
    return td.final(td.dpm_solver_pp(denoiser, begin, td.uniform_angle(denoiser.schedule, 20)))


goal = {name: walk(world.denoiser(s)) for name, s in schedules.items()}


def precise(denoiser, choice):
    return (walk(denoiser) - goal[choice["schedule"]]).norm(dim=1).mean().item()


def hasty(denoiser, n):
    return energy_distance(td.sample(denoiser, (200, 2), generator=seed(n)), world.sample(200, seed(1000 + n)))


def search(trials, generator):
    for n in range(trials):
        choice = pick(generator)
        denoiser = attempt(**choice)
        yield choice, denoiser, precise(denoiser, choice), hasty(denoiser, n)


habit = {"target": "v", "schedule": "linear", "lr": 3e-3, "width": 64, "batch": 128, "decay": 0.99}
usual = [precise(attempt(**habit, n=n), habit) for n in range(1, 5)]  # the same, with four seeds
trials = list(search(14, seed(21)))

# %% tags=["nbval-ignore-output"]
print("  error  hasty  target schedule      lr  width batch decay")
for choice, _, error, quick in sorted(trials, key=lambda trial: trial[2]):
    row = "{target:>8} {schedule:>8} {lr:7.4f} {width:6d} {batch:5d} {decay:5}".format(**choice)
    print(f"{error:7.3f} {quick:6.3f}{row}")
print("habits, with four seeds:", [f"{error:.3f}" for error in usual])

# %% [markdown]
# (The figures differ a little from one processor to the next; the next cell states what holds everywhere.)


# %%
def scatter(alt):
    figure = Figure(figsize=(6.5, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.axhspan(min(usual), max(usual), color="0.8", label="habits, four seeds")
    for (name, marker), colour in zip({"eps": "X", "x0": "s", "v": "o"}.items(), plot.OKABE_ITO, strict=False):
        mine = [(choice["lr"], error, choice["width"]) for choice, _, error, _ in trials if choice["target"] == name]
        lr, error, width = zip(*mine, strict=True)
        axes.scatter(
            lr, error, [w + 15 for w in width], color=colour, marker=marker, alpha=0.8, label=f"predicts {name}"
        )
    axes.set(xscale="log", yscale="log", xlabel="learning rate (larger marks: wider networks)", ylabel="error")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144)
    return plot.Picture(buffer.getvalue(), alt, 624)


best = {name: min(e for c, _, e, _ in trials if c["target"] == name) for name in targets}
claims = {
    "v beats x0 beats eps, best against best": best["v"] < best["x0"] < best["eps"],
    "worst over best trial above 100": max(t[2] for t in trials) > 100 * min(t[2] for t in trials),
    "worst over best seed of the same settings below 1.5": max(usual) < 1.5 * min(usual),
}
for claim, holds in claims.items():
    print(f"{claim}: {holds}")
    assert holds, claim
scatter(
    "Error of fourteen trials against learning rate, log-log: those that predict v lie between 0.05 and 0.4, x0 between 0.1 "
    "and 0.3, eps from 0.2 to hundreds. A thin grey band at 0.1 is the spread over seeds."
)

# %% [markdown]
# Knobs move the error over four powers of ten, seeds by a few percent (the grey band). So the differences are real, and the
# target matters most: after so short a training an $\epsilon$ network still answers fireworks at high noise (lesson 02), and
# here nobody forgives it. Do not carry that over to long trainings; search again.
#
# ## 9. The winner's curse
#
# The best of many noisy figures is the best partly by luck. So the winner's figure is too good, and the more trials, the more
# so. The remedy is cheap: **measure the winner again, with seeds that did not help to choose it.**
#
# **Predict.** Which judge is hit harder, the precise or the hasty one?

# %%
choice, _, error, _ = min(trials, key=lambda trial: trial[2])
again = [precise(attempt(**choice, n=n), choice) for n in range(1, 5)]  # trained anew
print(
    f"precise judge: its winner, trained anew four times, is within 30 % on average: {abs(sum(again) / 4 / error - 1) < 0.3}"
)
print(f"and beats our habits each time: {max(again) < min(usual)}")
assert abs(sum(again) / 4 / error - 1) < 0.3
assert max(again) < min(usual)

_, denoiser, _, quick = min(trials, key=lambda trial: trial[3])
again = [hasty(denoiser, 100 + n) for n in range(20)]  # the same network, other samples
print(f"hasty judge: its winner's distance is below 0, better than perfect: {quick < 0}")
print(f"measured again, 20 times, it is higher on average, by more than 0.002: {sum(again) / 20 > quick + 0.002}")
assert quick < 0
assert sum(again) / 20 > quick + 0.002

# %% [markdown]
# The precise judge has nothing to take back. The hasty one reported a distance "better than perfect" (-0.005 on our machine),
# which came back as 0.000, give or take 0.0015. It had picked the same trial as the precise one: right choice, wrong figure. With
# noisier judges or closer rivals the choice suffers as well. In practice judges are hasty, so: repeat with seeds before
# believing a difference, and never report the figure that chose the winner.
#
# ## If you see this instead
#
# | symptom | then |
# | --- | --- |
# | the training loss falls, the fresh loss rises | it memorises: more data, fewer steps, a smaller network |
# | no copies, but $r$ far below that of fresh data | nearly copies: look at pairs |
# | copies, and $r$ near 1 | duplicates in the training set |
# | $\chi^2$ significant for *real* data | the expected shares ignore the judge's mistakes |
# | perfect class counts, monotonous pictures | guidance: groups inside the classes have been lost |
# | a new setting is 3 percent better | measure the spread over seeds first |
#
# ## Summary
#
# - The minimum of the training loss is the photocopier. What we call quality is failing to reach it, in the right way.
# - Copies: nearest over second nearest distance, beside fresh data. Earlier warning: the loss on data kept away.
# - With enough data two networks that share no picture draw nearly the same; that is what generalising means.
# - Count classes with intervals and with the judge's mistakes. Repairs of counts do not repair knowledge.
# - Guidance prefers what tells classes apart, and drops the groups that have something in common with another class.
# - Search at random, compare with the spread over seeds, and measure the winner again.
#
# **To think about.** (1) All trials had 200 steps, though a wide network takes longer. Which knobs would be judged differently
# with equal *seconds*? (2) Somebody mirrors every training picture, to have twice as many. Is the photocopier of those a
# better generator?
#
# **Exercise.** Section 7 compared what the judge *should* see. Turn it round: complete `corrected`, which takes the shares
# `seen` by a judge and its confusion matrix (row $k$: how true class $k$ is seen), and returns the true shares. The cell
# below it checks your function and gives hints; with `hint=2` it tells more.


# %%
def corrected(seen, confusion): ...  # your code: one line; which linear system do the true shares solve?


# %%
from tinydiff import check

if check.corrected(corrected):
    print([f"{p:.2f}" for p in corrected(seen.double() / 800, confusion)], "of the shipped model's digits")

# %% [markdown]
# **Papers.** Gu et al. 2023, *On Memorization in Diffusion Models*: the photocopier as the optimum, and what makes networks
# approach it. Yoon et al. 2023, *Diffusion Probabilistic Models Generalize when They Fail to Memorize*: the ratio of
# distances. Carlini et al. 2023, *Extracting Training Data from Diffusion Models*. Bonnaire et al. 2025, *Why Diffusion Models
# Don't Memorize*: two time scales. Kadkhodaie et al. 2024, *Generalization in Diffusion Models Arises from
# Geometry-Adaptive Harmonic Representations*: networks of disjoint halves. Facco et al. 2017, *Estimating the Intrinsic
# Dimension of Datasets by a Minimal Neighborhood Information*. Clopper & Pearson 1934, *The Use of Confidence or Fiducial
# Limits Illustrated in the Case of the Binomial*. Bergstra & Bengio 2012, *Random Search for Hyper-Parameter Optimization*.
# Karras et al. 2022, *Elucidating the Design Space of Diffusion-Based Generative Models*, app. B.3: the optimal denoiser of a
# finite set.
#
# Back to the [start](00_start_here.ipynb), with other eyes.
