# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 06 · Score and ODE: one current, many names
#
# Lesson 03 walked home at random. Lesson 05 walked home without any noise, and arrived just as well. This lesson says why.
# Behind both is one current that carries noise to data like a river. Once you see it, you get three gifts: better
# solvers, the exact likelihood of any point, and a dictionary to read everybody else's papers.
#
# By the end of this lesson you can
#
# - get the *score* out of any denoiser, in one line,
# - derive the SDE and the probability-flow ODE, and check by machine that both move the same density,
# - solve the ODE with Euler and Heun, and choose a clock in which that is easy,
# - compute $\log p(x)$ of a point, exactly, and see the bound of lesson 02 lie above it,
# - translate between DDPM, DDIM, EDM, DPM-Solver and flow matching, and prove it to nine digits.
#
# One cell is slow: training a network (about 6 seconds). No other takes more than 4.

# %%
import math
from itertools import pairwise

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import tinydiff as td
from tinydiff import plot, widgets
from tinydiff.metrics import energy_distance, mode_counts

torch.set_num_threads(1)  # networks this small only wait for a second core


def seed(n):
    return torch.Generator().manual_seed(n)


islands, populations = [[-0.5, -0.5], [0.6, -0.4], [0.1, 0.6]], [0.5, 0.2, 0.3]
world = td.GaussianMixture(islands, stds=[0.2, 0.1, 0.15], weights=populations)
schedule = td.linear()
T = schedule.T
exact = world.denoiser(schedule)


def learn(kind, steps=2000):
    """As in lesson 02."""
    torch.manual_seed(0)
    denoiser = kind(td.MLP(hidden=64), schedule)
    ema = td.EMA(denoiser, decay=0.99)
    generator = seed(12)
    batches = (world.sample(512, generator) for _ in range(steps))
    for _ in td.train(denoiser, batches, steps=steps, lr=3e-3, ema=ema, generator=generator):
        pass
    return ema.denoiser


learnt = learn(td.VDenoiser)

# %% [markdown]
# The world is that of lessons 02 and 03: three islands with 50, 20 and 30 percent of the population, one exact denoiser and
# one learnt.
#
# ## 1. The score: which way is up?
#
# Stand at a point $x$ in the noise. In which direction does the density grow fastest? That arrow is the **score**,
# $\nabla\log p_t(x)$. It looks like a new thing to learn. It is not. Write $p_t$ as an average over all data that could be
# underneath:
#
# $$p_t(x) = \int \mathcal N(x;\ \alpha_t x_0,\ \sigma_t^2)\; p(x_0)\; dx_0 .$$
#
# Differentiate under the integral. Each Gaussian brings down the factor $-(x-\alpha_t x_0)/\sigma_t^2$:
#
# $$\nabla p_t(x) = -\int \frac{x-\alpha_t x_0}{\sigma_t^2}\; \mathcal N(x;\ \alpha_t x_0,\ \sigma_t^2)\; p(x_0)\; dx_0 .$$
#
# Divide by $p_t(x)$. The Gaussian times $p(x_0)$ over $p_t(x)$ is Bayes' $p(x_0\mid x)$, so the integral is a mean over it:
#
# $$\boxed{\;\nabla\log p_t(x) = \frac{\alpha_t\,\mathbb E[x_0\mid x] - x}{\sigma_t^2} = \frac{\alpha_t\hat x_0 - x}{\sigma_t^2}
#   = -\frac{\hat\epsilon}{\sigma_t}\;}$$
#
# The score is minus the noise. Whoever can guess the noise knows which way is up. (Known as Tweedie's formula.)


# %%
def score(denoiser, x, t):
    alpha, sigma = schedule(t, like=x)
    return (alpha * denoiser(x, t) - x) / sigma**2


anywhere = 1.5 * torch.randn(500, 2, generator=seed(0), dtype=torch.float64)
for t in (1, 100, 500, 1000):
    x = anywhere.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(world.log_prob(x, schedule, t).sum(), x)
    assert torch.allclose(score(exact, anywhere, t), gradient, rtol=1e-8, atol=1e-8)
print("score of the exact denoiser is the gradient of log p_t, at four times: True")

x_t = td.q_sample(schedule, world.sample(5000, seed(1)), 200, generator=seed(2))
with torch.no_grad():
    wrong = score(learnt, x_t, 200) - score(exact, x_t, 200)
relative = (wrong.norm() / score(exact, x_t, 200).norm()).item()
print(f"score of the learnt one at t = 200: off by less than 10 percent: {relative < 0.1}")
assert relative < 0.1

# %% [markdown]
# Our network never heard of scores. It was trained to guess, and learnt the gradient of a density that it has never seen.
#
# **Naive sampling.** If we know which way is up, let us climb. Climbing alone would put every point on a summit, so shake a
# little on the way: $x \leftarrow x + \delta\,\nabla\log p(x) + \sqrt{2\delta}\,z$. This is **Langevin's** walk. For small
# $\delta$, and if you wait long enough, its points are distributed like $p$. We take the score at $t = 3$, almost clean
# data, and thin islands (std 0.05).
#
# **Predict.** After 400 steps from noise: are the points on the islands? Are the *populations* right? (Above each panel: the
# share of the lower left island.)

# %%
thin = td.GaussianMixture(islands, stds=0.05, weights=populations)
noise = torch.randn(2000, 2, generator=seed(3))

x, generator, delta = noise, seed(4), 5e-4
for _ in range(400):
    x = x + delta * score(thin.denoiser(schedule), x, 3)
    x = x + math.sqrt(2 * delta) * torch.randn(x.shape, generator=generator)

walked = td.final(td.ddpm(thin.denoiser(schedule), noise, td.uniform(schedule, 200), generator=seed(5)))
results = {"truth": thin.sample(2000, seed(6)), "Langevin at t = 3": x, "DDPM through all t": walked}
shares = {name: (mode_counts(points, thin.means)[0] / 2000).item() for name, points in results.items()}
print(f"share of the first island, truth: {shares['truth']:.1f}")
print(f"Langevin at one noise level: below 0.42: {shares['Langevin at t = 3'] < 0.42}")
print(f"DDPM through all of them: within 0.05 of 0.5: {abs(shares['DDPM through all t'] - 0.5) < 0.05}")
assert shares["Langevin at t = 3"] < 0.42
assert abs(shares["DDPM through all t"] - 0.5) < 0.05
plot.clouds(
    {
        f"{name}: {shares[name]:.0%}": (points, torch.cdist(points, thin.means).argmin(1))
        for name, points in results.items()
    },
    limit=1.2,
    alt="Three small islands in each panel, all points on land. The lower left one holds half of the points in the truth and "
    "under DDPM, but only a third under Langevin.",
)

# %% [markdown]
# Everybody is on land, but on the wrong land: each point climbed the hill at which it happened to start. The score at low
# noise knows the shape of each island and nothing about the sea between. The repair is noise. At high noise the islands
# merge, and the score can direct the traffic. Then lower the noise, and refine. Song & Ermon found this in 2019; DDPM
# found the same road from the other side.
#
# ## 2. The walk in continuous time
#
# Let us make DDPM's steps infinitely short. Forward, one step is $x \leftarrow \sqrt{1-\beta}\,x + \sqrt\beta\,z$. For small
# $\beta = \beta(t)\,dt$ the root is $1-\frac12\beta(t)\,dt$, and we write
#
# $$dx = -\tfrac12\beta(t)\,x\;dt + \sqrt{\beta(t)}\;dw .$$
#
# This is a **stochastic differential equation** (SDE). Read $dw$ as "fresh noise of variance $dt$". Variances add, so ten
# short steps are as noisy as one long one. That is why a root stands there. In our table $\log\bar\alpha$ is linear between
# whole $t$, so $\beta(t) = -\frac{d}{dt}\log\bar\alpha_t$ is constant on each piece.
#
# What does this do to the *density*? Two things happen in a short time $h$.
#
# **A current.** Points move with velocity $u(x)$. In a narrow interval, points flow in on the left and out on the
# right. What stays is the difference, so in one dimension $\partial_t p = -\partial_x(u\,p)$, and in general
# $\partial_t p = -\nabla\cdot(u\,p)$. No point is made or lost.
#
# **A blur.** Each point jumps by $\sqrt{\beta h}\,z$. The new density at $x$ collects the old one around it,
# $\mathbb E\,p(x - \sqrt{\beta h}\,z)$. Expand: $\mathbb E z = 0$ kills the first-order term, $\mathbb E z z^\top = I$ leaves
# $p + \frac12\beta h\,\Delta p$. So $\partial_t p = \frac12\beta\,\Delta p$, as heat spreads. Together:
#
# $$\partial_t p = \nabla\cdot\big(\tfrac12\beta\,x\,p\big) + \tfrac12\beta\,\Delta p . \tag{F}$$
#
# Now the trick of this lesson. Because $\nabla p = p\,\nabla\log p$, the blur *is also a current*:
#
# $$\Delta p = \nabla\cdot\nabla p = \nabla\cdot\big(p\,\nabla\log p\big) .$$
#
# Blurring moves points down the score, as far as the density can tell. Put it into (F) and there is no blur left:
#
# $$\partial_t p = -\nabla\cdot(u\,p), \qquad \boxed{\;\frac{dx}{dt} = u(x,t) = -\tfrac12\beta(t)\,\big(x + \nabla\log p_t(x)\big)\;}$$
#
# This is the **probability-flow ODE** (ordinary differential equation). No noise at all, and yet at every time the density
# of its points is $p_t$. Do not take our word for it. Divide by $p$: the claim is
# $\partial_t\log p = -\nabla\cdot u - u\cdot\nabla\log p$, and on our world each term can be computed.


# %%
def beta(t):
    """-d/dt log alpha_bar between whole t."""
    left = math.floor(t)
    return (schedule.log_alpha_bar[left] - schedule.log_alpha_bar[left + 1]).item()


for t in (50.5, 200.5, 600.5):
    x = anywhere.clone().requires_grad_()
    s = score(exact, x, t)
    u = -beta(t) / 2 * (x + s)
    divergence = sum(torch.autograd.grad(u[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(2))
    h = 1e-3
    change = (world.log_prob(x, schedule, t + h) - world.log_prob(x, schedule, t - h)) / (2 * h)
    assert torch.allclose(change, -divergence - (u * s).sum(1), rtol=1e-4, atol=1e-7)
print("the current u moves p_t, at 500 points and three times: True")

# %% [markdown]
# **The way back.** An ODE can be run backwards: change the sign of $dt$. The noisy walk cannot, for it would have to un-blur.
# But we may trade blur for current as we like. Let $\eta^2$ be the share of blur that we *want* on the way back. There the
# blur of (F) counts negative, so write
#
# $$-\tfrac12\beta\,\Delta p = +\tfrac12\eta^2\beta\,\Delta p - \tfrac12(1+\eta^2)\,\beta\,\nabla\cdot(p\,\nabla\log p).$$
#
# The first term is honest noise of strength $\eta\sqrt\beta$. The second is a current. A step of length $h$ back in time is
#
# $$x \leftarrow x + \Big[\tfrac12\beta\,x + \tfrac{1+\eta^2}2\,\beta\,\nabla\log p_t(x)\Big]\,h + \eta\,\sqrt{\beta h}\;z .$$
#
# With $\eta = 1$ it is the reverse SDE (Anderson 1982), with $\eta = 0$ the ODE. You have met this $\eta$. It is DDIM's.
#
# **Predict.** We compare this step with `td.step`, for the same $z$ and shorter and shorter $h$. By what factor should the
# difference shrink when $h$ is halved, if the two are the same to first order?

# %%
t, z = 300.0, torch.randn(anywhere.shape, generator=seed(7), dtype=torch.float64)
for eta in (0.0, 0.5, 1.0):
    difference = []
    for h in (1.0, 0.5, 0.25):
        b = beta(t - h)
        drift = b / 2 * anywhere + (1 + eta**2) / 2 * b * score(exact, anywhere, t)
        ours = anywhere + drift * h + eta * math.sqrt(b * h) * z
        theirs = td.step(schedule, anywhere, exact(anywhere, t), t, t - h, eta, seed(7))
        difference.append((ours - theirs).abs().max().item())
    factors = [a / b for a, b in pairwise(difference)]
    print(f"eta = {eta}: shrinks by {factors[0]:.1f} and {factors[1]:.1f}")
    assert min(factors) > 2.7

# %% [markdown]
# Without noise the difference is of order $h^2$: a factor 4. With noise the roots leave a term of order $h^{3/2}$, and
# $2^{3/2} = 2.8$. Either way it dies faster than the step itself. So DDPM and DDIM are one family, and lessons 03 and 05 were solving a differential equation all along. A one-parameter
# family of walks, one and the same density at all times.
#
# ## 3. A better clock
#
# The ODE above has an ugly $\beta(t)$. It says how fast the clock ticks, and a clock is ours to choose. The
# points run along the same curves in any clock. Since $\alpha^2+\sigma^2=1$, there is an angle $\varphi$ with
# $\alpha = \cos\varphi$, $\sigma = \sin\varphi$. Data are at $\varphi = 0$, noise at (nearly) $\pi/2$. And
#
# $$\beta\,dt = -d\log\bar\alpha = -2\,d\log\cos\varphi = 2\tan\varphi\;d\varphi ,$$
#
# $$\frac{dx}{d\varphi} = -\tan\varphi\,\Big(x - \frac{\hat\epsilon}{\sin\varphi}\Big)
#   = \frac{\hat\epsilon - \sigma x}{\alpha} = \frac{(1-\sigma^2)\,\hat\epsilon - \sigma\alpha\,\hat x_0}{\alpha}
#   = \alpha\hat\epsilon - \sigma\hat x_0 = \hat v .$$
#
# (In the middle we used $x = \alpha\hat x_0 + \sigma\hat\epsilon$.) The velocity is $\hat v$! The odd third target of lesson
# 02 is simply the speed of the current. That is what the letter stands for.
#
# Watch both. Contours are the exact density $p_t$. Left, the ODE: arrows are its velocity $-\hat v$ (minus, for we go home).
# Right, the SDE: arrows are the score, times $\sigma_t$ to tame its length; of the walks only one is drawn in full. (Long arrows
# are shortened in both.) The same 24 points start on both sides. The slider goes from noise to data.
#
# **Predict.** Where will the arrows on the left be when $t$ reaches 0?

# %%
grid_times = td.quadratic(schedule, 60)  # more steps where the islands part
start = torch.randn(24, 2, generator=seed(8), dtype=torch.float64)
paths = {
    eta: torch.stack([start, *(s.x for s in td.ddim(exact, start, grid_times, eta=eta, generator=seed(9)))])
    for eta in (0.0, 1.0)
}
side, limit = 80, 2.1
axis = torch.linspace(-limit, limit, side, dtype=torch.float64)
lattice = torch.cartesian_prod(axis, axis)
few = torch.cartesian_prod(*2 * [torch.linspace(-1.9, 1.9, 13, dtype=torch.float64)])


def velocity(denoiser, x, t):
    """dx/dphi of the probability-flow ODE."""
    alpha, sigma = schedule(t, like=x)
    return (alpha * x - denoiser(x, t)) / sigma


def pixels(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def current(k):
    """The fields at grid_times[k], and the walks up to there."""
    t = max(grid_times[k], torch.tensor(1.0))  # at t = 0 both fields are 0/0
    density = world.log_prob(lattice, schedule, t).exp().reshape(side, side).T
    _, sigma = schedule(t)
    fields = {0.0: ("ODE", -velocity(exact, few, t)), 1.0: ("SDE", sigma * score(exact, few, t))}
    figure = Figure(figsize=(6.4, 3.4), dpi=100, layout="constrained")
    for ax, (eta, (name, field)) in zip(figure.subplots(1, 2), fields.items(), strict=True):
        levels = density.max() * torch.tensor([0.02, 0.1, 0.3, 0.6, 1.01])
        ax.contourf(axis, axis, density, levels=levels, colors=["#fdf0d5", "#fbdfa6", "#f5c66b", "#E69F00"])
        arrows = 0.35 * field / (1 + field.norm(dim=1, keepdim=True))  # long ones are shortened
        ax.quiver(*few.T, *arrows.T, color="0.45", angles="xy", scale_units="xy", scale=1, width=0.004)
        shown = slice(None) if eta == 0 else slice(1)  # of the walks, only the first
        ax.plot(*paths[eta][: k + 1, shown].permute(2, 0, 1), color="#0072B2", linewidth=1)
        ax.plot(*paths[eta][k].T, "o", color="#D55E00", markersize=4)
        ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xticks=[], yticks=[])
        ax.set_title(f"{name}, t = {grid_times[k]:.0f}", fontsize=11)
    return pixels(figure)


frames = {k: current(k) for k in range(0, 61, 3)}


def draw(step):
    return frames[step]


widgets.explore(
    draw,
    step=frames,
    start={"step": 42},
    play="step",
    title="current",
    alt="Two panels with contours of the exact density, arrows and 24 moving points. Left, smooth curves of the ODE; "
    "right, a jagged walk of the SDE. All end on the three islands.",
)

# %%
plot.strip(
    {f"step {k} of 60": draw(k) for k in (0, 24, 36, 45, 51, 60)},
    columns=2,
    alt="Six moments of ODE and SDE side by side. At t = 1000 one round hill; by t = 160 it has three summits; at t = 0 three "
    "islands. The ODE's curves are smooth; the SDE's walk is jagged. At the end the ODE's arrows have "
    "almost vanished.",
)

# %% [markdown]
# Left, points that start side by side travel side by side, unless a watershed between two islands parts them. Two curves may
# cross on paper, but no two points are ever in the same place at the same time: where you are, and when, decides where you go.
# At the end the arrows die. When the noise is gone, the current has nothing left to do: $\hat v \approx -\sigma\,(\text{score} + x) \to 0$. The score on the right still points
# uphill.
#
# Single points end elsewhere, the density is the same. We check with 1000 points, 200 steps, and the energy distance of
# lesson 02. Its floor is real data against real data; a mean over 4 seeds.

# %%
n = 1000
reals = [world.sample(n, seed(100 + i)) for i in range(4)]


def distance(generate):
    return math.sqrt(sum(energy_distance(reals[i], generate(i)) ** 2 for i in range(4)) / 4)


def sampled(eta, i):
    first = torch.randn(n, 2, generator=seed(300 + i))
    return td.final(td.ddim(exact, first, td.quadratic(schedule, 200), eta=eta, generator=seed(400 + i)))


floor = distance(lambda i: world.sample(n, seed(200 + i)))
for eta in (0.0, 0.5, 1.0):
    ratio = distance(lambda i, eta=eta: sampled(eta, i)) / floor
    print(f"eta = {eta}: within 3 floors of real data: {ratio < 3}")
    assert ratio < 3, ratio

# %% [markdown]
# ## 4. Euler and Heun
#
# An ODE is solved by small straight steps: look at the arrow, go a bit, look again. That is **Euler's** method. Straight in
# which clock, though? The curves do not care, the error does. Take two clocks.
#
# *The angle:* $dx = \hat v\,d\varphi$. *The ratio* $r = \sigma/\alpha$, the clock of EDM, with $y = x/\alpha$ in place of
# $x$: since $x = \alpha\hat x_0 + \sigma\hat\epsilon$ we have $y = \hat x_0 + r\,\hat\epsilon$. From $dx/d\varphi = \hat v$ and
# $dr = d\varphi/\alpha^2$, by the quotient rule,
#
# $$\frac{dy}{d\varphi} = \frac{\hat v\,\alpha + x\,\sigma}{\alpha^2} = \frac{\alpha^2\hat\epsilon - \alpha\sigma\hat x_0 + \alpha\sigma\hat x_0 + \sigma^2\hat\epsilon}{\alpha^2}
#   = \frac{\hat\epsilon}{\alpha^2} \quad\Longrightarrow\quad \boxed{\;\frac{dy}{dr} = \hat\epsilon\;}$$
#
# As simple as an ODE can be. As long as the guess $\hat\epsilon$ does not change, the solution is a straight line and Euler is
# exact.
#
# **Predict.** Euler's step in this clock is $y_s = y_t + (r_s - r_t)\,\hat\epsilon$. Multiply by $\alpha_s$. Have you seen it
# before?


# %%
def ratio_of(t):
    alpha, sigma = schedule(t)
    return sigma / alpha


def eps_of(denoiser, x, t):
    alpha, sigma = schedule(t, like=x)
    return (x - alpha * denoiser(x, t)) / sigma


def euler(denoiser, x, times):
    for t, s in pairwise(times):
        y = x / schedule(t)[0] + (ratio_of(s) - ratio_of(t)) * eps_of(denoiser, x, t)
        x = schedule(s)[0] * y
    return x


def heun(denoiser, x, times):
    for t, s in pairwise(times):
        y, h, eps = x / schedule(t)[0], ratio_of(s) - ratio_of(t), eps_of(denoiser, x, t)
        x = schedule(s)[0] * (y + h * eps)  # Euler, a first try
        if s > 0:  # at s = 0 there is no noise to guess
            eps_there = eps_of(denoiser, x, s)  # look at the arrow there, too
            x = schedule(s)[0] * (y + h * (eps + eps_there) / 2)  # go again, with the mean of both
    return x


noise_64 = noise[:500].double()
for times in (td.uniform(schedule, 12), td.karras(schedule, 12)):
    for ours, theirs in ((euler, td.ddim), (heun, td.heun)):
        assert torch.allclose(ours(exact, noise_64, times), td.final(theirs(exact, noise_64, times)), atol=1e-9)
print("Euler in r is td.ddim, Heun in r is td.heun, to nine digits: True")

# %% [markdown]
# DDIM *is* Euler. **Heun** looks twice a step, at both ends, and goes with the mean. An average over both ends cancels the
# first error of the bend. So when steps are halved, Euler's error should halve, and Heun's should fall to a quarter. They
# are of **order** 1 and 2.
#
# How do we know the error? Against the same method with 1000 steps. All runs stop at $t = 1$, on a grid even in
# $\log r$. We take the median over 500 points: the few that start on the watershed between two islands would rule a mean.
#
# **Predict.** Heun calls the network twice a step. At 10 calls, is it better or worse than Euler? At 40?

# %%
ladder = (5, 10, 20, 40, 80)


def even(steps):
    return td.uniform_log_snr(schedule, steps + 1)[:-1]  # from T to t = 1


reference = td.final(td.heun(exact, noise_64, even(1000)))
error = {
    method: [(method(exact, noise_64, even(steps)) - reference).norm(dim=1).median().item() for steps in ladder]
    for method in (euler, heun)
}
for method, order in ((euler, 1), (heun, 2)):
    measured = math.log2(error[method][-2] / error[method][-1])
    print(f"{method.__name__:5s}: measured order {measured:.1f}")
    assert abs(measured - order) < 0.2
print(f"10 calls: Heun is better: {error[heun][0] < error[euler][1]}")
print(f"40 calls: Heun is better: {error[heun][2] < error[euler][3]}")
assert error[heun][0] > error[euler][1]
assert error[heun][2] < error[euler][3]
plot.curves(
    ladder,
    {
        "Euler (DDIM)": (ladder, error[euler]),
        "Heun": ([2 * steps for steps in ladder], error[heun]),
    },
    xscale="log",
    yscale="log",
    xlabel="network calls",
    ylabel="median distance to the true end",
    alt="Error against network calls, log-log: two straight lines, Heun twice as steep. They cross between 20 and 40 calls.",
)

# %% [markdown]
# A higher order is a promise about *many* steps. With few, Heun's second look costs more than it brings. Lesson 07 gets
# order 2 and 3 for one call a step.
#
# ## 5. How likely is this point?
#
# Lesson 02 gave a bound on $-\log p(x)$. We want the number itself.
#
# **Naive.** Sample, and count how many land near the point. Take small squares of side 0.1 and 2000 samples:

# %%
samples = td.sample(exact, (2000, 2), steps=20, generator=seed(10))
spots = torch.tensor([[-0.5, -0.5], [0.1, 0.6], [0.1, 0.1], [1.2, 0.6]])
for spot in spots:
    inside = ((samples - spot).abs() < 0.05).all(1).sum().item()
    truth = world.log_prob(spot[None]).item()
    print(
        f"at ({spot[0]:4.1f}, {spot[1]:4.1f}): true log density {truth:6.1f};  more than 5 samples near: {inside > 5}"
    )

# %% [markdown]
# Fine on the islands. In the sea nobody lands, and the estimate is $\log 0$. That was two dimensions. In 784 no sample will
# ever land near anything.
#
# **The repair.** Do not wait for points to come; follow *this* point to where the density is known, to the noise. Carry a
# small square around it. Everything inside moves along, nothing gets in or out. So the share of the population in it stays
# the same, while its area changes. Density times area is constant:
#
# $$\log p_{\text{data}}(x) = \log \mathcal N(x_T;\ 0, I) + \log\frac{\text{area at the end}}{\text{area at the start}} .$$
#
# And the area? In a short step, $x \mapsto x + h\,v(x)$. Its Jacobian is $I + hJ$ with $J_{ij} = \partial v_i/\partial x_j$. An
# area grows by the determinant. Multiply it out, and all that is linear in $h$ comes from the diagonal:
#
# $$\det(I + hJ) = 1 + h\,(J_{11} + J_{22}) + O(h^2) = 1 + h\;\nabla\cdot v + O(h^2).$$
#
# The logarithm turns the product of many such factors into a sum, the sum into an integral:
#
# $$\boxed{\;\log p(x) = \log\mathcal N(x_T;\ 0, I) + \int_0^{\varphi_T}\!\nabla\cdot \hat v\;d\varphi\;}
#   \qquad \text{along}\quad \frac{dx}{d\varphi} = \hat v .$$
#
# Two sums, one for $x$ and one for the log area. The divergence takes one backward pass for each coordinate. At $\varphi = 0$
# the formula of $\hat v$ is 0/0; we know from section 3 that it goes to 0. Since all is smooth in the angle, we take big, clever
# steps: **Runge and Kutta's** method looks four times a step, at the start, twice in the middle, and at the end. It has
# order 4.


# %%
def v_and_divergence(denoiser, x, t):
    if t == 0:
        return torch.zeros_like(x), torch.zeros(len(x), dtype=x.dtype)
    x = x.clone().requires_grad_()
    v = velocity(denoiser, x, t)
    rows = [torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)[0] for i in range(x.shape[1])]
    return v.detach(), sum(row[:, i] for i, row in enumerate(rows))  # (B, d) and (B,)


def log_likelihood(denoiser, x, times):
    log_area = 0
    for s, t in pairwise(times.flip(0)):  # from data up to noise
        low, high = ratio_of(s).atan(), ratio_of(t).atan()
        h, middle = high - low, schedule.time(-((low + high) / 2).tan().log())
        v1, d1 = v_and_divergence(denoiser, x, s)
        v2, d2 = v_and_divergence(denoiser, x + h / 2 * v1, middle)
        v3, d3 = v_and_divergence(denoiser, x + h / 2 * v2, middle)
        v4, d4 = v_and_divergence(denoiser, x + h * v3, t)
        x = x + h / 6 * (v1 + 2 * v2 + 2 * v3 + v4)
        log_area = log_area + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
    return -(x**2 + math.log(2 * math.pi)).sum(1) / 2 + log_area


points = world.sample(500, seed(11)).double()
truth = world.log_prob(points)
ours = log_likelihood(exact, points, td.quadratic(schedule, 20))
assert torch.allclose(ours, td.log_likelihood(exact, points, td.quadratic(schedule, 20)), rtol=1e-9)
print("log_likelihood agrees with td.log_likelihood: True")

off = {k: (td.log_likelihood(exact, points, td.quadratic(schedule, k)) - truth).abs() for k in (5, 10, 20, 40, 80)}
for k, errors in off.items():
    print(f"{k:2d} steps: median error below 0.002 nats: {errors.median().item() < 0.002}")
assert off[5].median() > 0.01
assert off[20].median() < 0.002
assert off[80].max() < 0.01

far = td.log_likelihood(exact, spots.double(), td.quadratic(schedule, 80))
print("the four spots, by ODE:", *(f"{value:.1f}" for value in far.tolist()))
assert torch.allclose(far, world.log_prob(spots.double()), atol=0.05)

# %% [markdown]
# Also out in the sea, where no sample ever was. (What remains at 80 steps, about 0.0004 nats, is not the solver's: $p_T$ is
# not quite $\mathcal N(0, I)$, since $\alpha_T = 0.006$.)
#
# Seeing is believing. Three small circles of 200 points each: one in the middle of an island, one on a shore, one in the sea.
# We carry them to the noise, measure their areas with the shoelace formula, and ask the boxed equation for the density.
#
# **Predict.** Which circle grows, which one shrinks?

# %%
turn = torch.linspace(0, 2 * math.pi, 201, dtype=torch.float64)[:-1]
centres = torch.tensor([[0.6, -0.4], [-0.25, -0.2], [0.1, 0.1]], dtype=torch.float64)
ring = torch.stack([turn.cos(), turn.sin()], 1)


def carry(x):
    """From data to noise by the midpoint rule; (..., 2)."""
    shape, x = x.shape, x.reshape(-1, 2)
    for s, t in pairwise(td.quadratic(schedule, 400).flip(0)[1:]):  # from t = 0.006 up; below, nothing moves
        low, high = ratio_of(s).atan(), ratio_of(t).atan()
        half = x + (high - low) / 2 * velocity(exact, x, s)
        x = x + (high - low) * velocity(exact, half, schedule.time(-((low + high) / 2).tan().log()))
    return x.reshape(shape)


def area(polygons):
    x, y = polygons.unbind(-1)
    return (x * y.roll(-1, 1) - y * x.roll(-1, 1)).sum(1).abs() / 2


circles = centres[:, None] + 0.02 * ring  # (3, 200, 2)
carried = carry(circles)
growth = area(carried) / area(circles)
by_area = -(carried.mean(1) ** 2 + math.log(2 * math.pi)).sum(1) / 2 + growth.log()
for place, g, ours, formula in zip(("island", "shore", "sea"), growth, by_area, world.log_prob(centres), strict=True):
    print(f"{place:6s}: area times {g:5.2g}, log density by area {ours:5.1f}, by formula {formula:5.1f}")
    assert abs(ours - formula) < 0.05

seen = centres[:, None] + 0.08 * ring  # larger ones, to be seen
figure = Figure(figsize=(6.4, 3.3), dpi=140, layout="constrained")
for ax, title, shapes, t in zip(figure.subplots(1, 2), ("data", "noise"), (seen, carry(seen)), (0, T), strict=True):
    density = world.log_prob(lattice, schedule, t).exp().reshape(side, side).T
    levels = density.max() * torch.tensor([0.02, 0.1, 0.3, 0.6, 1.01])
    ax.contourf(axis, axis, density, levels=levels, colors=["#fdf0d5", "#fbdfa6", "#f5c66b", "#E69F00"])
    for shape, colour, place in zip(shapes, ("#0072B2", "#D55E00", "#000000"), ("island", "shore", "sea"), strict=True):
        ax.fill(*shape.T, color=colour, label=place)
    ax.set(title=title, xlim=(-1.2, 1.6), ylim=(-1.4, 1.4), aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1])
_ = figure.axes[0].legend(loc="lower right", frameon=False)
plot.strip(
    {"": pixels(figure)},
    columns=1,
    alt="Left, three equal discs over the density of the data: in the middle of an island, on a shore, in the sea. Right, where "
    "the current carried them: the first has become several times as wide, the second a tilted ellipse, the third a sliver.",
)

# %% [markdown]
# Noise is spread evenly, so crowded places must be stretched on the way there, and empty ones squeezed.
#
# **The learnt density.** All this works for any denoiser. Our network, trained to guess $v$, now turns out to hold a density
# at every point of the plane. Here it is beside the truth.

# %%
axis = torch.linspace(-1.2, 1.2, 49)
lattice = torch.cartesian_prod(axis, axis)
maps = {
    "exact": world.log_prob(lattice),
    "learnt": td.log_likelihood(learnt, lattice, td.quadratic(schedule, 25)).float(),
}
maps = {name: values.reshape(49, 49).T for name, values in maps.items()}
figure = Figure(figsize=(8.6, 2.9), dpi=140, layout="constrained")
axes = figure.subplots(1, 3)
for ax, (name, values) in zip(axes, maps.items(), strict=False):
    shown = ax.pcolormesh(axis, axis, values.clamp(min=-10), cmap="cividis", vmin=-10, vmax=1.5, rasterized=True)
    ax.set_title(f"log p, {name}")
figure.colorbar(shown, ax=list(axes[:2]), label="nats", extend="min")
shown = axes[2].pcolormesh(axis, axis, maps["learnt"] - maps["exact"], cmap="PuOr", vmin=-2, vmax=2, rasterized=True)
axes[2].set_title("learnt - exact")
figure.colorbar(shown, ax=axes[2], label="nats", extend="both")
for ax in axes:
    ax.set(aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1])
plot.strip(
    {"": pixels(figure)},
    columns=1,
    alt="Heat maps of the log density: exact and learnt show the same three islands. Their difference is nearly white on the "
    "islands and far above zero in the sea, where no data were.",
)

# %%
populated = maps["exact"] > -1
difference = (maps["learnt"] - maps["exact"]).abs()
print(f"where the log density is above -1: median difference below 0.25 nats: {difference[populated].median() < 0.25}")
open_sea = difference[maps["exact"] < -6].median().item()
print(f"where it is below -6: above 1 nat: {open_sea > 1}")
assert open_sea > 1

# %% [markdown]
# It knows what it has seen. In the open sea it is far too generous: hardly any training point was ever there to correct it.
#
# **Bits per dimension**, as in lesson 02: nats over $d\log 2$. We lay the ODE beside the bound, for 1000 fresh points.
#
# **Predict.** Sort them: the truth, the bound and the ODE with the exact denoiser, the bound and the ODE with the learnt one.

# %%
points = world.sample(1000, seed(13))
truth = td.bits_per_dim(-world.log_prob(points), points)
bits = {}
for name, denoiser in {"exact": exact, "learnt": learnt}.items():
    bits[f"ODE,   {name}"] = -td.log_likelihood(denoiser, points, td.quadratic(schedule, 40))
    bits[f"bound, {name}"] = td.variational_bound(denoiser, points, generator=seed(14))
above = {name: (td.bits_per_dim(nats, points) - truth).mean().item() for name, nats in bits.items()}
print(f"truth: {truth.mean().item():.2f} bits/dim")
limits = {
    "ODE,   exact": (-0.005, 0.005),
    "bound, exact": (0.4, 0.8),
    "ODE,   learnt": (-0.01, 0.2),
    "bound, learnt": (0.4, 1.2),
}
for name, (low, high) in limits.items():
    print(f"{name:13s}: above the truth by {low:g} to {high:g}: {low < above[name] < high}")
    assert low < above[name] < high, above
print(f"learnt ODE lies below the learnt bound: {above['ODE,   learnt'] < above['bound, learnt']}")
assert above["ODE,   learnt"] < above["bound, learnt"]

# %% [markdown]
# The ODE returns the truth; for the learnt network it adds only what the network got wrong. The bound pays 0.6 to 0.7 bits
# more, because its model takes *noisy* steps of a fixed width (lesson 02, section 11).
#
# One caution. For the exact denoiser, ODE and random walk have the same density. For a learnt one they are two different
# models that share a network: its guess is the gradient of no density in particular, so trading blur for current is no
# longer exact. The bound is a bound for the walk. And for pictures with whole-number pixels the density is infinite: first add
# noise of one bin (`td.log_likelihood` says how).
#
# **Pictures.** With $d$ = 784 the divergence costs 784 backward passes at every look. Hutchinson's trick: take a random vector $p$
# with $\mathbb E\,pp^\top = I$, such as random signs. Then
#
# $$\mathbb E\; p^\top J\,p = \sum_{ij} J_{ij}\,\mathbb E\,[p_i p_j] = \sum_i J_{ii} = \nabla\cdot v ,$$
#
# and $p^\top J$ is *one* backward pass. Keep the same $p$ along the whole way. In `td.log_likelihood` such vectors are an
# argument, `probes`.
#
# **Predict.** With 16 probes in place of one, by what factor does the scatter fall?

# %%
here, copies = centres[1].expand(400, 2), 400
scatter = {}
for k in (1, 16):
    probes = torch.randint(2, (k, copies, 2), generator=seed(15)) * 2 - 1
    estimates = td.log_likelihood(exact, here, td.quadratic(schedule, 20), probes=probes)
    scatter[k] = estimates.std().item()
    miss = (estimates.mean() - td.log_likelihood(exact, here[:1], td.quadratic(schedule, 20))).abs().item()
    print(f"{k:2d} probes: mean within 4 standard errors of the exact one: {miss < 4 * scatter[k] / copies**0.5}")
    assert miss < 4 * scatter[k] / copies**0.5
print(f"scatter falls by a factor between 3.3 and 4.7: {3.3 < scatter[1] / scatter[16] < 4.7}")
assert 3.3 < scatter[1] / scatter[16] < 4.7

# %% [markdown]
# By $\sqrt{16}$, as means do.
#
# ## 6. The Rosetta stone
#
# Many groups found this current, and each gave it names of its own. Here is one point of it in all of them. Everything in
# a row follows from $x_t = \alpha x_0 + \sigma\epsilon$.
#
# | dialect | clock | the point is called | the network says | so $\hat x_0$ is | the ODE reads |
# | --- | --- | --- | --- | --- | --- |
# | DDPM | $t$, through $\bar\alpha_t = \alpha^2$ | $x_t$ | $\epsilon$ | $(x - \sqrt{1-\bar\alpha}\,\epsilon)/\sqrt{\bar\alpha}$ | (a walk) |
# | score SDE | $t$, through $\beta(t)$ | $x$ | $s = -\epsilon/\sigma$ | $(x + \sigma^2 s)/\alpha$ | $dx/dt = -\frac12\beta\,(x + s)$ |
# | DDIM | $r = \sigma/\alpha$ | $\bar x = x/\alpha$ | $\epsilon$ | $\bar x - r\,\epsilon$ | $d\bar x/dr = \epsilon$ |
# | EDM | $\sigma_{\text{EDM}} = \sigma/\alpha = r$ | $x/\alpha$ | $F = -v$ | $D = \frac{x/\alpha}{1+r^2} + \frac{r}{\sqrt{1+r^2}}F$ | $d(x/\alpha)/dr = (x/\alpha - D)/r$ |
# | DPM-Solver | $\lambda = \log(\alpha/\sigma)$ | $x/\alpha$ | $\epsilon$ | $x/\alpha - e^{-\lambda}\epsilon$ | $d(x/\alpha)/d\lambda = -e^{-\lambda}\epsilon$ |
# | DPM-Solver++ | $\lambda$ | $x/\sigma$ | $\hat x_0$ | $\hat x_0$ | $d(x/\sigma)/d\lambda = e^{\lambda}\hat x_0$ |
# | $v$-prediction | $\varphi = \arctan(\sigma/\alpha)$ | $x$ | $v$ | $x\cos\varphi - v\sin\varphi$ | $dx/d\varphi = v$ |
# | flow matching | $\tau = \sigma/(\alpha+\sigma)$ | $z = x/(\alpha+\sigma)$ | $u = \epsilon - x_0$ | $z - \tau u$ | $dz/d\tau = u$ |
#
# EDM wraps its network $F$ in a fixed formula; the one above is for data of standard deviation 1. Then $F$ is $v$ again, up to
# sign. The last row deserves a line, too. Flow matching mixes along a straight line, $z = (1-\tau)\,x_0 + \tau\,\epsilon$. Ours is
# $x = \alpha x_0 + \sigma\epsilon$, with weights that do not sum to 1. So divide by their sum. (Many of these papers run
# their clock the other way, with data at 1 and $u = x_0 - \epsilon$. Look before you copy.)
#
# A table can be wrong. So let us run it: each dialect gets its clock and its point from ours; its network says its word;
# its own formula returns $\hat x_0$. And its clock must give back our $t$.

# %%
x0, eps = points[:100].double(), torch.randn(100, 2, generator=seed(16), dtype=torch.float64)


def dialects(t, x, x0, eps):
    """name -> (clock, point, what the network says, x0 by the dialect's own formula, t by its own clock)."""
    alpha, sigma = schedule(t)
    abar, r, lam = alpha**2, sigma / alpha, torch.log(alpha / sigma)
    phi, tau = torch.atan2(sigma, alpha), sigma / (alpha + sigma)
    s, y, v = -eps / sigma, x / alpha, alpha * eps - sigma * x0
    z, u = x / (alpha + sigma), eps - x0
    t_of = schedule.time  # from lambda
    return {
        "DDPM": (abar, x, eps, (x - (1 - abar).sqrt() * eps) / abar.sqrt(), t_of(torch.log(abar / (1 - abar)) / 2)),
        "score SDE": (abar, x, s, (x + sigma**2 * s) / alpha, t_of(torch.log(abar / (1 - abar)) / 2)),
        "DDIM": (r, y, eps, y - r * eps, t_of(-r.log())),
        "EDM": (r, y, -v, y / (1 + r**2) + r / (1 + r**2).sqrt() * -v, t_of(-r.log())),
        "DPM-Solver": (lam, y, eps, y - (-lam).exp() * eps, t_of(lam)),
        "DPM-Solver++": (lam, x / sigma, x0, x0, t_of(lam)),
        "v-prediction": (phi, x, v, phi.cos() * x - phi.sin() * v, t_of(-phi.tan().log())),
        "flow matching": (tau, z, u, z - tau * u, t_of(torch.log((1 - tau) / tau))),
    }


for t in (1.0, 250.0, 777.7, 1000.0):
    alpha, sigma = schedule(t)
    for name, (clock, _, _, back, t_back) in dialects(t, alpha * x0 + sigma * eps, x0, eps).items():
        assert torch.allclose(back, x0, rtol=0, atol=1e-9), name
        assert abs(t_back - t) < 1e-9 * T, name
        if t == 250:
            print(f"{name:13s} clock at t = 250: {clock.item():.4f}")
print("all eight give back x0 and t, at four times: True")

# %% [markdown]
# Now the last column. A formula for $dz/d\tau$ is right if a point that really moves along the current obeys it. We know the
# motion: for data of *one* Gaussian the ODE is solved in closed form (`td.gaussian_flow`). So we move a point a tiny bit,
# see by how much each dialect's point changed per tick of its own clock, and compare with its own formula.

# %%
one = td.GaussianMixture([[0.4, -0.3]], stds=0.25)
mean = one.means[0].double()
x = torch.randn(100, 2, generator=seed(17), dtype=torch.float64)


def fields(t, x):
    """name -> (clock, point, d point / d clock) along the current of that one Gaussian."""
    alpha, sigma = schedule(t)
    r, lam, phi, tau = sigma / alpha, torch.log(alpha / sigma), torch.atan2(sigma, alpha), sigma / (alpha + sigma)
    x0 = one.denoiser(schedule)(x, t)
    eps = (x - alpha * x0) / sigma
    return {
        "score SDE": (torch.tensor(t, dtype=x.dtype), x, -beta(t) / 2 * (x - eps / sigma)),
        "DDIM": (r, x / alpha, eps),
        "EDM": (r, x / alpha, (x / alpha - x0) / r),
        "DPM-Solver": (lam, x / alpha, -(-lam).exp() * eps),
        "DPM-Solver++": (lam, x / sigma, lam.exp() * x0),
        "v-prediction": (phi, x, alpha * eps - sigma * x0),
        "flow matching": (tau, x / (alpha + sigma), eps - x0),
    }


h = 1e-3
for t in (50.5, 400.5, 800.5):
    before, after = (fields(t + d, td.gaussian_flow(schedule, mean, 0.25, x, t, t + d)) for d in (-h, h))
    for name, (_, _, formula) in fields(t, x).items():
        moved = (after[name][1] - before[name][1]) / (after[name][0] - before[name][0])
        assert torch.allclose(moved, formula, rtol=1e-4, atol=1e-5), name
print("seven ODEs, one current, at three times: True")

# %% [markdown]
# One current. But a *solver* sees the clock. Take one long step of Euler, from $t = 600$ to $300$, in each dialect, and
# translate the result back.
#
# **Predict.** Which of them give exactly DDIM's step?

# %%
t, s = 600.0, 300.0
there, x = fields(s, x), torch.randn(100, 2, generator=seed(18), dtype=torch.float64)  # `there` for its clock at s
alpha_s, sigma_s = schedule(s)
scale = {"DDIM": alpha_s, "EDM": alpha_s, "DPM-Solver": alpha_s, "DPM-Solver++": sigma_s}
scale["flow matching"] = alpha_s + sigma_s
ddim = td.step(schedule, x, one.denoiser(schedule)(x, t), t, s)
best = td.gaussian_flow(schedule, mean, 0.25, x, t, s)
for name, (clock, point, field) in fields(t, x).items():
    landed = scale.get(name, 1.0) * (point + (there[name][0] - clock) * field)
    same = torch.allclose(landed, ddim, rtol=0, atol=1e-9)
    error = (landed - best).abs().mean().item()
    print(f"{name:13s} is DDIM: {same!s:5s}  error {error:.2f}")
    assert same == (name in ("DDIM", "EDM", "flow matching")), name

phi_t, phi_s = (ratio_of(u).atan() for u in (t, s))
turned = (phi_t - phi_s).cos() * x - (phi_t - phi_s).sin() * velocity(one.denoiser(schedule), x, t)
assert torch.allclose(turned, ddim, rtol=0, atol=1e-9)
lam_t, lam_s = schedule.half_log_snr(t), schedule.half_log_snr(s)
x0_hat = one.denoiser(schedule)(x, t)
exponential = sigma_s / schedule(t)[1] * x + sigma_s * (lam_s.exp() - lam_t.exp()) * x0_hat
assert torch.allclose(exponential, ddim, rtol=0, atol=1e-9)
print("v: a rotation in place of a straight step is DDIM: True")
print("DPM-Solver++: the integral of e^lambda in place of a straight step is DDIM: True")

# %% [markdown]
# Flow matching's Euler sampler, EDM's Euler sampler and DDIM are one and the same step, to nine digits. In these clocks a
# point with a fixed guess moves on a straight line. The other clocks bend the line, and a straight step leaves it. If you know
# the bend, you can follow it exactly: turn by an angle instead of stepping, or integrate $e^\lambda$ instead of freezing
# it. The latter is the whole idea of lesson 07.
#
# What really differs between the dialects is (1) the weight of each noise level in training, (2) the grid of times in
# sampling, (3) how the network's input and output are scaled. The physics is the same.
#
# ## If you see this instead
#
# | symptom | then |
# | --- | --- |
# | samples fly off to infinity | the sign of the score, or of $dt$: towards data means *up* the score |
# | the score is right up to a factor | $\sigma$ for $\sigma^2$, or $\alpha$ forgotten: compare with autograd as in section 1 |
# | ODE samples are too narrow, SDE samples fine | you used $\beta\,\nabla\log p$ where $\frac12\beta\,\nabla\log p$ belongs |
# | the log-likelihood is off by a constant | a Jacobian is missing: you integrated $x/\alpha$ and forgot $d\log\alpha$ |
# | Heun is no better than Euler | the second look was taken with the old $x$ or the old time |
# | `times start at 900, but must start at T = 1000` | the prior is known only at $T$; the grid must reach it |
# | borrowed code gives noise | its clock runs from noise at 0 to data at 1: $\tau \to 1-\tau$, $u \to -u$ |
#
# ## Summary
#
# - Score, noise and data are one guess: $\nabla\log p_t = -\hat\epsilon/\sigma = (\alpha\hat x_0 - x)/\sigma^2$.
# - A blur is a current along $-\nabla\log p$. Trade one for the other: $\eta = 1$ is the SDE, $\eta = 0$ the ODE.
# - In the angle the current is $v$; in $r = \sigma/\alpha$ it is $\epsilon$; along flow matching's line it is $\epsilon - x_0$.
# - Euler in $r$ is DDIM, order 1. Heun has order 2 and pays two calls a step.
# - $\log p(x) = \log\mathcal N(x_T) + \int\nabla\cdot v$: follow the point, add up how its surroundings stretch.
#
# **To think about.** (1) Two points of an ODE never meet. Two points on the straight lines from $x_0$ to its own noise meet all
# the time. How can both be true of flow matching? (2) If your data were three single points, what would the log-likelihood of one of
# them be, and at which end of the integral would it show?
#
# **Exercise.** A friend trained a flow-matching network `flow(z, tau)` that returns $\epsilon - x_0$, and you want to use it
# with our samplers. Complete `x0_from_flow`: from *our* $x$ at time $t$ to $\hat x_0$. Two or three lines. Another friend
# samples with EDM, whose points are $x_0 + \sigma_{\text{EDM}}\,n$, and would like to use *our* denoiser: complete
# `edm_denoiser`. `schedule.time(lam)` gives $t$. The cell below checks both and gives hints; with `hint=2` it tells more.


# %%
def x0_from_flow(flow, schedule, x, t): ...  # your code: tau, z, and the table's formula


def edm_denoiser(denoiser, schedule, x, sigma): ...  # your code: which x_t is it, and which t?


# %%
from tinydiff import check

check.x0_from_flow(x0_from_flow)
check.edm_denoiser(edm_denoiser)

# %% [markdown]
# **Papers.** Song, Sohl-Dickstein, Kingma, Kumar, Ermon & Poole 2021, *Score-Based Generative Modeling through Stochastic
# Differential Equations*: the SDE of DDPM is eq. 11, its reversal eq. 6, the probability-flow ODE eq. 13, the likelihood
# sec. 4.3 and app. D. Anderson 1982: the reversal first. Song & Ermon 2019, *Generative Modeling by Estimating Gradients of
# the Data Distribution*, algorithm 1: Langevin through many noise levels. Song, Meng & Ermon 2021, *Denoising Diffusion
# Implicit Models*, eq. 14: the ODE in $r$. Karras et al. 2022, *Elucidating the Design Space of Diffusion-Based Generative
# Models*: eq. 1 and algorithm 1 (Heun). Salimans & Ho 2022, *Progressive Distillation*, app. D: the angle. Chen et al. 2018,
# *Neural Ordinary Differential Equations*, theorem 1: the change of log density. Grathwohl et al. 2019, *FFJORD*: with
# Hutchinson's estimate. Lu et al. 2022, *DPM-Solver*, sec. 3: $\lambda$. Lipman et al. 2023, *Flow Matching for Generative
# Modeling*, and Liu, Gong & Liu 2023, *Flow Straight and Fast*: straight lines.
#
# Back: [05, DDIM](05_ddim.ipynb). Next: [07, DPM-Solver++](07_dpm_solver_pp.ipynb).
