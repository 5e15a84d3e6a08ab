# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 05 · DDIM: the same network, other walks
#
# DDPM wants a thousand steps. In this lesson we take the *same trained network* and walk home in twenty, without adding
# any noise on the way. And since such a walk can be reversed, we get a way to encode pictures and to morph one into
# another.
#
# By the end of this lesson you can
#
# - derive the family of walks that DDPM's loss has trained without knowing it,
# - choose $\eta$, the amount of noise, and say what it costs with few steps,
# - encode a picture as noise and decode it again, and say what gets lost,
# - interpolate between pictures, and explain why a straight line between two noises is no good.
#
# Three cells are slow: measuring quality (about 8 seconds), the slider's pictures (4) and the last one (4).

# %%
import math
from itertools import pairwise

import torch

import tinydiff as td
from tinydiff import plot, widgets
from tinydiff.metrics import energy_distance

torch.set_num_threads(1)


def seed(n):
    return torch.Generator().manual_seed(n)


# The islands of lessons 02 and 03, with their exact denoiser ...
schedule = td.linear()
T = schedule.T
islands = torch.tensor([[-0.5, -0.5], [0.6, -0.4], [0.1, 0.6]], dtype=torch.float64)
world = td.GaussianMixture(islands, stds=[0.2, 0.1, 0.15], weights=[0.5, 0.2, 0.3])
exact = world.denoiser(schedule)

# ... and a U-Net as in lesson 04, trained on MNIST for you. Ask it with y = the digit that you want
mnist = td.load_pretrained("mnist")
print("shipped network:", f"{sum(p.numel() for p in mnist.parameters()):,} weights, T = {mnist.schedule.T}")

# %% [markdown]
# ## 1. What the loss never saw
#
# Remember how the network was trained. Draw $x_0$, draw $t$, draw $\epsilon$, make
# $x_t = \alpha_t x_0 + \sigma_t\epsilon$, compare. Lesson 02 derived this from a chain $x_0 \to x_1 \to \dots \to x_T$.
# But look at the code: **no chain is ever built.** The loss knows only each $x_t$ alone, the *marginals*
# $q(x_t|x_0) = \mathcal N(\alpha_t x_0, \sigma_t^2)$. How $x_t$ and $x_s$ hang together, nobody has told it.
#
# So every other story about $x_1, \dots, x_T$ with the same marginals fits the same network. DDPM's walk home belongs
# to one story. Perhaps another one walks faster?
#
# ## 2. The family
#
# We look for a step back from $t$ to $s$. It knows $x_0$, as the posterior of lesson 02 did. Keep it simple, linear and
# Gaussian:
#
# $$x_s = k\,x_t + w\,x_0 + c\,z, \qquad z \sim \mathcal N(0, 1) .$$
#
# Put $x_t = \alpha_t x_0 + \sigma_t\epsilon$ in, and demand that $x_s$ has the right marginal:
#
# $$\text{mean: } k\,\alpha_t + w = \alpha_s, \qquad\qquad \text{variance: } k^2\sigma_t^2 + c^2 = \sigma_s^2 .$$
#
# Two equations, three unknowns. **One number is free.** Take it to be $c$, the fresh noise, anything from 0 to
# $\sigma_s$. Then $k = \sqrt{\sigma_s^2-c^2}\,/\,\sigma_t$ and $w = \alpha_s - k\,\alpha_t$. Sorted by what they
# multiply:
#
# $$x_s = \alpha_s\,x_0 + \sqrt{\sigma_s^2-c^2}\;\epsilon + c\,z, \qquad \epsilon = \frac{x_t-\alpha_t x_0}{\sigma_t} . \tag{1}$$
#
# Read it as a recipe. The noise at $s$ has variance $\sigma_s^2$. Some of it is the old noise $\epsilon$, turned down;
# the rest, $c^2$, is fresh. Old and fresh together always have the right size. If $x_T$ has the right marginal, then by
# (1) so has the next, and the next: all of them, whatever $c$ we choose at each step.
#
# Is DDPM one of the family? Its posterior has variance $\tilde\beta = \frac{\sigma_s^2}{\sigma_t^2}\beta$ with
# $\beta = 1-\alpha_t^2/\alpha_s^2$. Try $c^2 = \tilde\beta$:
#
# $$\sigma_s^2 - c^2 = \frac{\sigma_s^2}{\sigma_t^2}\Big(\sigma_t^2 - 1 + \frac{\alpha_t^2}{\alpha_s^2}\Big)
#   = \frac{\sigma_s^2}{\sigma_t^2}\cdot\frac{\alpha_t^2}{\alpha_s^2}\,(1-\alpha_s^2) = \frac{\sigma_s^4\,\alpha_t^2}{\sigma_t^2\,\alpha_s^2}
#   \quad\Longrightarrow\quad k = \frac{\sigma_s^2}{\sigma_t^2}\cdot\frac{\alpha_t}{\alpha_s} ,$$
#
# which is exactly the posterior's factor of $x_t$. Yes. So measure the noise in units of DDPM's:
#
# $$c = \eta\,\sqrt{\tilde\beta} = \eta\,\frac{\sigma_s}{\sigma_t}\sqrt{1-\frac{\alpha_t^2}{\alpha_s^2}} . \tag{2}$$
#
# $\eta = 1$ is DDPM. $\eta = 0$ adds no noise at all: **DDIM**, a denoising diffusion *implicit* model.


# %%
def weights(schedule, t, s, eta):
    """k, w and c of the step from t to s."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    c = eta * sigma_s / sigma_t * (1 - (alpha_t / alpha_s) ** 2).sqrt()  # (2)
    k = (sigma_s**2 - c**2).sqrt() / sigma_t
    return k, alpha_s - k * alpha_t, c


x0, x_t = torch.tensor([[0.8]]).double(), torch.tensor([[-0.3]]).double()
mean, var = td.q_posterior(schedule, x0, x_t, 500, 450)
k, w, c = weights(schedule, 500, 450, eta=1)
assert torch.allclose(k * x_t + w * x0, mean)
assert torch.isclose(c**2, var).all()
snr = schedule.alpha_bar / (1 - schedule.alpha_bar)
assert torch.isclose(w**2 / (2 * c**2), (snr[450] - snr[500]) / 2)
print("eta = 1 is the posterior of lesson 02: True")

# %% [markdown]
# (The last assertion is about the loss. The KL between two steps (1), one with $x_0$ and one with $\hat x_0$, is
# $\frac{w^2}{2c^2}\|x_0-\hat x_0\|^2$: both have variance $c^2$, their means differ by $w(x_0-\hat x_0)$. So every
# member with $\eta > 0$ has the same loss with other weights, and for $\eta = 1$ the weight is lesson 02's. The simple
# loss drops the weights anyway. $\eta = 0$ is the limit of the family.)
#
# The name of the family is **non-Markovian**. In DDPM, $x_t$ forgets $x_0$ once it knows $x_s$. With $\eta = 0$ it
# forgets nothing: all noise levels hold *the same* $\epsilon$. Let us look at chains for one number, $x_0 = 0.8$. All
# start from the same $x_T$.
#
# **Predict.** At $t = 500$, which $\eta$ has the widest spread over many chains?

# %%
chains, times = 20_000, td.uniform(schedule, 200)
start = torch.randn(chains, 1, generator=seed(0), dtype=torch.float64)
one_chain = {}
for eta in (0, 0.5, 1):
    x, path, generator = start, [], seed(1)
    for t, s in pairwise(times):
        path.append(x[3].item())
        k, w, c = weights(schedule, t, s, eta)
        x_new = k * x + w * 0.8 + c * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        if t == 500:
            together = torch.corrcoef(torch.stack([x[:, 0], x_new[:, 0]]))[0, 1].item()
            ratio = (x.std() / schedule(t)[1]).item()
        x = x_new
    one_chain[f"$\\eta$ = {eta}"] = path
    print(f"eta = {eta}: spread at t = 500 over sigma_t: {ratio:.2f}, correlation with the next x: {together:.3f}")
    assert abs(ratio - 1) < 0.02
plot.curves(
    times[:-1],
    one_chain,
    xlabel="t (the walk goes from right to left)",
    ylabel="$x_t$",
    alt="Three walks from the same start at t = 1000 to 0.8 at t = 0: eta 0 is a smooth curve, "
    "eta 0.5 wanders and trembles, eta 1 more so.",
)

# %% [markdown]
# The spread is the same for all. What differs is how closely neighbours agree. With $\eta = 0$ a chain is a smooth
# curve: a long step along it is a small mistake. A long step through a jagged one is a large one. That is the hope
# behind few steps.
#
# ## 3. The sampler
#
# Walking home we do not know $x_0$. As ever, we put the network's guess $\hat x_0$ in its place. Here is the whole
# algorithm.


# %%
def ddim(denoiser, x, times, eta, generator=None, **cond):
    """Yield x after each step."""
    for t, s in pairwise(times):
        with torch.no_grad():
            x0_hat = denoiser(x, t, **cond)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.schedule(t, like=x), denoiser.schedule(s, like=x)
        eps_hat = (x - alpha_t * x0_hat) / sigma_t
        c = eta * sigma_s / sigma_t * (1 - (alpha_t / alpha_s) ** 2).sqrt()
        x = alpha_s * x0_hat + (sigma_s**2 - c**2).sqrt() * eps_hat  # (1)
        if c > 0:  # no noise for eta = 0, and none in the last step
            x = x + c * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        yield x


def end(states):
    *_, x = states
    return x


noise, times = torch.randn(2000, 2, generator=seed(2), dtype=torch.float64), td.uniform(schedule, 20)
for eta in (0, 0.5, 1):
    theirs = td.final(td.ddim(exact, noise, times, eta=eta, generator=seed(3)))
    assert torch.allclose(end(ddim(exact, noise, times, eta, seed(3))), theirs, atol=1e-9)
assert torch.equal(theirs, td.final(td.ddpm(exact, noise, times, generator=seed(3))))
print("our loop agrees with td.ddim for eta = 0, 0.5 and 1, and td.ddpm is td.ddim(eta=1): True")

# %% [markdown]
# ## 4. What the noise costs
#
# Lesson 03 computed DDPM's loss of variance for data $\mathcal N(0, 1)$: 0.71 is left after 20 steps, with a perfect
# denoiser. What does $\eta = 0$ leave? There $\hat x_0 = \alpha_t x$, hence
# $\hat\epsilon = (x - \alpha_t^2 x)/\sigma_t = \sigma_t x$, and
#
# $$x_s = \alpha_s\hat x_0 + \sigma_s\hat\epsilon = (\alpha_s\alpha_t + \sigma_s\sigma_t)\,x_t .$$
#
# Since $\alpha^2+\sigma^2 = 1$, write $\alpha = \cos\theta$ and $\sigma = \sin\theta$. The bracket is
# $\cos(\theta_t-\theta_s)$. The right answer is 1; we lose a bit for every *turn*, but only in second order:
# $\cos\delta \approx 1-\delta^2/2$.
#
# **Predict.** Is more or less left than DDPM's 0.71? More than 1 is impossible, as you see.

# %%
normal = td.GaussianMixture(torch.zeros(1, 1).double(), 1.0).denoiser(schedule)
for steps in (10, 20, 50, 100):
    times, left = td.uniform(schedule, steps), 1.0
    for t, s in pairwise(times):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
        left *= (alpha_s * alpha_t + sigma_s * sigma_t).item() ** 2
    x = noise[:, :1]
    assert abs((td.final(td.ddim(normal, x, times)).var() / x.var()).item() - left) < 1e-9
    x = torch.randn(20_000, 1, generator=seed(4), dtype=torch.float64)
    with_noise = td.final(td.ddpm(normal, x, times, generator=seed(5))).var().item()
    print(f"{steps:3d} steps: DDIM leaves {left:.2f} of the variance, DDPM about {with_noise:.2f}")
    assert left > with_noise + 0.01

# %% [markdown]
# DDIM's loss is two thirds of DDPM's with 10 steps, and half of it from 50 on. Both are of order 1, but the constant is better.
# (Lesson 07 gets rid of the rest.)
#
# ## 5. Steps against quality
#
# Now the islands, with the exact denoiser. Energy distance to real data, 2000 points, mean over 4 seeds with the
# standard error of the mean, in units of 0.0001. The **floor** is real against real. It is 0 on average; what it
# scatters, nobody can resolve.
#
# **Predict.** How many steps does $\eta = 0$ need to be as good as DDPM with 1000?

# %%
n, seeds = 2000, range(4)
reals = [world.sample(n, seed(100 + i)) for i in seeds]
starts = [torch.randn(n, 2, generator=seed(300 + i), dtype=torch.float64) for i in seeds]


def quality(generate):
    """Mean energy distance over the seeds, and its standard error, in units of 0.0001."""
    d = 1e4 * torch.tensor([energy_distance(reals[i], generate(i)) for i in seeds])
    return d.mean().item(), d.std().item() / math.sqrt(len(d))


def walk(eta, steps):
    times = td.uniform(schedule, steps)
    return quality(lambda i: td.final(td.ddim(exact, starts[i], times, eta=eta, generator=seed(400 + i))))


floor = quality(lambda i: world.sample(n, seed(200 + i)))
ladder = (5, 10, 20, 50, 100)
table = {eta: [walk(eta, steps) for steps in ladder] for eta in (0, 0.5, 1)}
full = walk(1, 1000)
print("steps        " + "".join(f"{steps:>12d}" for steps in (*ladder, 1000)))
for eta, row in table.items():
    cells = [*row, full] if eta == 1 else row
    print(f"eta = {eta:<4}   " + "".join(f"{round(m):6d} ± {e:3.0f}" for m, e in cells))
print("floor        " + f"{round(floor[0]):6d} ± {floor[1]:3.0f}")

# %%
at = {(eta, steps): table[eta][j] for eta in table for j, steps in enumerate(ladder)}
claims = {
    "at 5 steps nothing helps: every eta is above 500": all(at[eta, 5][0] > 500 for eta in table),
    "at 10 and 20 steps less noise is better": all(at[0, k][0] < at[1, k][0] - 3 * at[1, k][1] for k in (10, 20)),
    "DDIM with 50 steps is within 8 of DDPM with 1000": abs(at[0, 50][0] - full[0]) < 8,
    "DDPM with 50 steps is worse than DDIM with 50": at[1, 50][0] > at[0, 50][0],
}
for claim, holds in claims.items():
    print(f"{claim}: {holds}")
    assert holds, (claim, table, full, floor)
shown = {f"$\\eta$ = {eta}": [max(m, 0.5) for m, _ in row] for eta, row in table.items()}
plot.curves(
    torch.tensor(ladder).log2(),
    shown | {"resolution: 2 standard errors of the floor": [2 * floor[1]] * len(ladder)},
    xticks=torch.tensor(ladder).log2().tolist(),
    xticklabels=ladder,
    yscale="log",
    ylim=(0.5, 3000),
    xlabel="steps",
    ylabel="energy distance / 0.0001\n(below 0.5 drawn at 0.5)",
    alt="Energy distance against steps, log-log: all three fall steeply from 1000 at 5 steps; eta 0 is lowest and below the resolution "
    "from 50 steps on, eta 1 reaches it only near 100. What is below 0.5 is drawn at 0.5.",
)

# %% [markdown]
# Fifty steps in place of a thousand, with the same denoiser. On pictures the gap between the $\eta$ is wider. These are
# the FIDs of Song et al. (2021, table 1) on CIFAR-10; lower is better:
#
# | steps | 10 | 20 | 50 | 100 | 1000 |
# | --- | --- | --- | --- | --- | --- |
# | $\eta = 0$ | 13.36 | 6.84 | 4.67 | 4.16 | 4.04 |
# | $\eta = 1$ | 41.07 | 18.36 | 8.01 | 5.78 | 4.73 |
#
# On MNIST, with our small network, it does not come out like that. Fréchet distances of 2,000 samples each to the training
# digits, on the features of the shipped classifier (three seeds scatter by about 0.05; DDPM with 1000: one):
#
# | network calls | 5 | 10 | 20 | 50 | 100 | 1000 |
# | --- | --- | --- | --- | --- | --- | --- |
# | DDIM, $\eta = 0$ | 1.32 | 0.72 | 0.59 | 0.56 | 0.55 | |
# | DDPM, $\eta = 1$ | 1.64 | 0.79 | 0.59 | 0.44 | 0.43 | 0.43 |
#
# With few steps DDIM is ahead, as in the paper. At 20 they draw level, and beyond noise wins. Fresh noise lets the network see its
# own mistakes and mend them, and so small a network makes many. So fifty *noisy* steps are as good as a thousand; DDIM stops
# at 0.55. (2,000 real test digits score 0.59, worse than good samples: other people wrote them than the training digits.)
#
# But it is no free lunch: at 5 steps every member of the family fails. The guess $\hat x_0$ is kept for a fifth of the
# way, and it is not worth that much trust.
#
# ## 6. Digits
#
# Now the network. Left, ten digits, always from the same $x_T$; right, the islands with the exact denoiser.
#
# **Predict.** Move the number of steps at $\eta = 0$. Then at $\eta = 1$. What happens to *which* seven you see?

# %%
labels = torch.arange(10)
pixel_noise = torch.randn(10, 1, 28, 28, generator=seed(6))
etas, step_counts = [0, 0.25, 0.5, 0.75, 1], [2, 3, 5, 10, 20, 50]


def picture(eta, steps):
    digits = td.final(
        td.ddim(mnist, pixel_noise, td.uniform(mnist.schedule, steps), eta=eta, generator=seed(7), y=labels)
    )
    points = td.final(td.ddim(exact, noise, td.uniform(schedule, steps), eta=eta, generator=seed(8)))
    return plot.beside(plot.grid(digits, columns=5, scale=4, gap=4), plot.cloud(points, limit=1.2))


frames = {(eta, steps): picture(eta, steps) for eta in etas for steps in step_counts}


def draw(eta, steps):
    return frames[eta, steps]


widgets.explore(
    draw,
    eta=etas,
    steps=step_counts,
    start={"steps": 20},
    title="ddim",
    alt="Left, ten generated digits from 0 to 9; right, a cloud of points on three islands. With more steps both sharpen. At eta 0 the "
    "digits keep their shape; at eta 1 they change with the number of steps.",
)

# %%
plot.strip(
    {f"$\\eta$ = {eta}, {steps} steps": draw(eta, steps) for eta in (0, 1) for steps in (3, 10, 50)},
    columns=3,
    alt="Upper row, eta 0 with 3, 10 and 50 steps: the same ten digits, soft, then sharp. Lower row, eta 1: each "
    "time other digits of the same classes. The clouds contract onto three islands.",
)

# %% [markdown]
# Three steps are no good for the islands, but the digits look passable. Look closer: few steps draw them smoother and
# more alike than real ones. Our eyes forgive that; a distance between distributions does not. (Lesson 11 measures it.
# It also helps that the label has settled the largest question before the first step.)
#
# ## 7. The noise is the picture
#
# At $\eta = 0$ nothing is random after the start. The picture is a *function* of $x_T$, and more steps compute the same
# function more precisely. Distances between pictures (root mean square over pixels) say so, too:


# %%
def rms(a, b):
    return (a - b).square().mean().sqrt().item()


def generate(x_T, y, steps=50, eta=0.0, n=0):
    return td.final(td.ddim(mnist, x_T, td.uniform(mnist.schedule, steps), eta=eta, generator=seed(n), y=y))


precise = generate(pixel_noise, labels, 100)
stranger = generate(torch.randn(10, 1, 28, 28, generator=seed(9)), labels, 100)
again = [generate(pixel_noise, labels, eta=1.0, n=n) for n in (10, 11)]
apart = rms(precise, stranger)
few = rms(generate(pixel_noise, labels, 20), precise)
print(f"same x_T, 20 steps against 100: below 0.3 of a stranger's distance: {few < 0.3 * apart}")
print(f"twice DDPM from the same x_T: above 0.5 of it: {rms(*again) > 0.5 * apart}")
assert few < 0.3 * apart
assert rms(*again) > 0.5 * apart

# %% [markdown]
# If the noise is the picture and the label says which digit, then what is in the noise? Keep it and change the label:

# %%
styles = torch.randn(4, 1, 28, 28, generator=seed(12)).repeat_interleave(10, 0)  # each noise ten times
sheet = generate(styles, labels.repeat(4))
plot.strip(
    {"one noise in each row": plot.grid(sheet, columns=10, scale=3, gap=3)},
    columns=1,
    alt="Four rows of the digits 0 to 9. Within a row they look as if written by one hand: alike in slant and thickness of the strokes.",
)

# %% [markdown]
# A handwriting! Nobody asked for it. Is it an illusion? Count the ink. If the thickness is in the noise, then a bold 3
# goes with a bold 8.

# %%
many = torch.randn(48, 1, 28, 28, generator=seed(13))
ink = [((generate(many, torch.full((48,), k), 20) + 1) / 2).mean((1, 2, 3)) for k in (3, 8)]
bold = torch.corrcoef(torch.stack(ink))[0, 1].item()
print(f"correlation between the ink of a 3 and of the 8 from the same noise, above 0.3: {bold > 0.3}")
assert bold > 0.3, bold

# %% [markdown]
# ## 8. Backwards: from a picture to its noise
#
# A function can be inverted. The step with $\eta = 0$ keeps $\hat\epsilon$ and changes the mixture, in whichever
# direction. So walk up:
#
# $$x_t = \alpha_t\,\hat x_0 + \sigma_t\,\hat\epsilon, \qquad \hat\epsilon = \frac{x_s-\alpha_s\hat x_0}{\sigma_s}, \qquad s < t .$$
#
# There is a catch at each end. To undo the step $t \to s$ exactly, we would need the guess at $x_t$, where we want to
# go. We only have the one at $x_s$; for short steps they are nearly equal. And at $s = 0$ there is no noise to look at:
# $\sigma_0 = 0$. There we ask at the next time instead. Then we go down again with the same times: encode, decode.
#
# **Predict.** On the islands, with the exact denoiser: by which factor does the error of the round trip fall if we
# double the steps?


# %%
def encode(denoiser, x, times, **cond):
    """Yield x after each step upwards."""
    for s, t in pairwise(times.flip(0)):
        at = s if s > 0 else t
        with torch.no_grad():
            x0_hat = denoiser(x, at, **cond)
        (alpha_t, sigma_t), (alpha_at, sigma_at) = denoiser.schedule(t, like=x), denoiser.schedule(at, like=x)
        eps_hat = (x - alpha_at * x0_hat) / sigma_at
        x = alpha_t * (x0_hat if s > 0 else x) + sigma_t * eps_hat
        yield x


times = td.uniform(schedule, 20)
assert torch.allclose(end(encode(exact, reals[0], times)), td.final(td.invert(exact, reals[0], times)), atol=1e-9)
print("our loop agrees with td.invert: True")

trip = {}
for steps in (25, 50, 100, 200):
    times = td.uniform(schedule, steps)
    codes = td.final(td.invert(exact, reals[0], times))
    trip[steps] = (td.final(td.ddim(exact, codes, times)) - reals[0]).abs().mean().item()
halvings = [trip[a] / trip[b] for a, b in ((25, 50), (50, 100), (100, 200))]
print(f"each doubling divides the error by 1.6 to 2.4: {all(1.6 < f < 2.4 for f in halvings)}")
print(f"spread of the codes, 1 is right: {codes.std():.2f}")
assert all(1.6 < f < 2.4 for f in halvings), trip
assert abs(codes.std() - 1) < 0.06

# %% [markdown]
# By two: order 1. And the codes of real data look like standard normal noise, as they should.
#
# Now digits. We take the ten that were drawn with 100 steps, so we even know the noise that they came from.
#
# **Predict.** Two questions. Does the round trip close? And do we get *our* noise back?

# %%
trips, codes = {}, {}
for steps in (5, 10, 20, 50, 100):
    times = td.uniform(mnist.schedule, steps)
    codes[steps] = td.final(td.invert(mnist, precise, times, y=labels))
    trips[steps] = td.final(td.ddim(mnist, codes[steps], times, y=labels))
errors = {steps: rms(x, precise) for steps, x in trips.items()}
print(f"round trip with 5 steps, error above 0.08: {errors[5] > 0.08}")
print(f"round trip with 100 steps, less than 40 percent of that: {errors[100] < 0.4 * errors[5]}")
print(f"spread of the code with 100 steps, below 0.85: {codes[100].std() < 0.85}")
assert errors[5] > 0.08
assert errors[100] < 0.4 * errors[5]
assert codes[100].std() < 0.85
plot.curves(
    torch.tensor(list(errors)).log2(),
    {"error of encode, then decode": list(errors.values())},
    xticks=torch.tensor(list(errors)).log2().tolist(),
    xticklabels=list(errors),
    ylim=(0, None),
    xlabel="steps each way",
    ylabel="rms per pixel",
    alt="The error of the round trip falls from 0.24 with 5 steps to 0.01 with 100.",
)

# %%
rows = {"our noise": pixel_noise / 2, "digit": precise, "code, 100 steps": codes[100] / 2}
rows |= {f"decoded, {steps} steps": trips[steps] for steps in (100, 20, 5)}
plot.strip(
    {name: plot.grid(images, columns=10, scale=2, gap=2) for name, images in rows.items()},
    columns=2,
    alt="Ten squares of noise, the ten digits drawn from them, and their codes, in which the digits' surroundings are flat grey. Then the decoded "
    "digits: nearly the same with 100 steps, smoother with 20 and 5.",
)

# %% [markdown]
# The trip closes. With 100 steps the digits come back. But the code is *not* the noise we started from. Where the
# picture is black, the code is flat.
#
# Is the network to blame? Ask a world that we know, one number with $\mathcal N(0.3, \text{width}^2)$, and the exact
# denoiser.

# %%
for width in (0.3, 0.03, 0.003):
    narrow = td.GaussianMixture(torch.tensor([[0.3]]).double(), width).denoiser(schedule)
    start, times = noise[:, :1], td.uniform(schedule, 100)
    data = td.final(td.ddim(narrow, start, times))
    code = td.final(td.invert(narrow, data, times))
    print(f"width {width:<5}: spread of the noise {start.std():.2f}, of the code {code.std():.2f}")
assert code.std() < 0.05

# %% [markdown]
# The narrower the data, the flatter the code, with a perfect denoiser. The walk home squeezes all of the noise into the
# width of the data. Where that width is next to nothing, as for a pixel that is black in every picture, the walk back
# would have to blow it up again from digits far behind the comma. A hundred steps cannot do that. So what is kept is
# what the *data* can vary in. What is lost, nobody sees. The code is good for coming back, and for small changes. A
# clean sample of $\mathcal N(0, I)$ it is not.
#
# ## 9. In between
#
# If the noise is the picture, what lies between two noises? Three ways to go from picture A to picture B:
#
# - **cross-fade**: average the *pictures*, $(1-u)\,x^A + u\,x^B$,
# - **lerp**: average the *noises*, $(1-u)\,\epsilon^A + u\,\epsilon^B$, and walk home,
# - **slerp**: turn one noise into the other on a circle, and walk home.
#
# Lerp looks natural and is wrong. Take $u = \frac12$. Half the sum of two independent normal numbers has variance
# $\frac14+\frac14 = \frac12$. The walk starts at $T$ with noise of spread 0.71, where the network has only ever seen 1.
# On the other hand $\cos\varphi\;\epsilon^A + \sin\varphi\;\epsilon^B$ has variance $\cos^2\varphi+\sin^2\varphi = 1$:
# it *is* standard normal, for every angle. Slerp (spherical linear interpolation) is this rotation, made to end exactly
# at B. With $\Omega$ the angle between the two noises,
#
# $$\mathrm{slerp}(\epsilon^A, \epsilon^B, u) = \frac{\sin((1-u)\Omega)}{\sin\Omega}\,\epsilon^A + \frac{\sin(u\,\Omega)}{\sin\Omega}\,\epsilon^B .$$
#
# In 784 dimensions two random directions are almost at right angles, and then the two formulas are the same.
#
# **Predict.** First the islands, halfway between 2000 pairs of noises. Does the wrong spread matter, with the exact
# denoiser?


# %%
def lerp(a, b, u):
    return (1 - u) * a + u * b


def slerp(a, b, u):
    cosine = (a * b).flatten(1).sum(1) / (a.flatten(1).norm(dim=1) * b.flatten(1).norm(dim=1))
    omega = cosine.acos().reshape(-1, *[1] * (a.ndim - 1))
    return (torch.sin((1 - u) * omega) * a + torch.sin(u * omega) * b) / torch.sin(omega)


times = td.uniform(schedule, 100)
halfway = {
    "halfway, straight": (starts[0] + starts[1]) / 2,
    "halfway, on the circle": (starts[0] + starts[1]) / math.sqrt(2),
}
landed = {name: td.final(td.ddim(exact, x, times)) for name, x in halfway.items()}
straight, circle = (1e4 * energy_distance(reals[0], x) for x in landed.values())
print(f"straight: energy distance {straight:.0f}, on the circle {circle:.0f}, resolution ± {2 * floor[1]:.0f}")
assert straight > 60
assert circle < 15
plot.clouds(
    {"real": reals[0]} | landed,
    limit=1.2,
    alt="Real data: three islands. From straight averages: the islands have shrunk towards the middle, their outer shores are empty. From "
    "the circle: islands like the real ones.",
)

# %% [markdown]
# Not a crash, but a bias: nobody lives on the outer shores any more. The average of two people is more average than
# people are.
#
# Now digits, from A on the left to B on the right. A and B have the same label in the first three rows. In the last
# three, there is no label, $y = -1$.

# %%
u_values = [i / 8 for i in range(9)]


def morph(n, label):
    """Three rows of nine digits: slerp, lerp and cross-fade."""
    a, b = torch.randn(2, 1, 1, 28, 28, generator=seed(n))
    y = torch.full((9,), label)
    round_trip = generate(torch.cat([slerp(a, b, u) for u in u_values]), y)
    straight = generate(torch.cat([lerp(a, b, u) for u in u_values]), y)
    fade = torch.cat([lerp(round_trip[:1], round_trip[-1:], u) for u in u_values])
    return torch.cat([round_trip, straight, fade])


plot.strip(
    {
        f"{name}: slerp, lerp, cross-fade": plot.grid(morph(n, label), columns=9, scale=3, gap=3)
        for name, n, label in (("sevens", 14, 7), ("no label", 15, -1))
    },
    columns=1,
    alt="Two blocks of three rows. Slerp and lerp of the noises change one digit into the other, with readable digits on the way; the "
    "cross-fade shows both digits on top of each other.",
)

# %% [markdown]
# The cross-fade is a double exposure, as cross-fades are. Slerp and lerp both give digits on the way. Where is the
# damage of lerp?
#
# **Predict.** Give 100 halfway digits to the shipped classifier. Will it complain about lerp?

# %%
judge = td.load_classifier()
a, b = torch.randn(2, 100, 1, 28, 28, generator=seed(16))
y = torch.arange(100) % 10
middle = {
    "slerp": generate(slerp(a, b, 0.5), y, 20),
    "lerp": generate(lerp(a, b, 0.5), y, 20),
}


def variety(x):
    """Spread of a pixel within a class, averaged over pixels and classes."""
    return torch.stack([x[y == k].std(0).mean() for k in range(10)]).mean().item()


right = {}
for name in ("slerp", "lerp"):
    with torch.no_grad():
        right[name] = (judge(middle[name]).argmax(1) == y).float().mean().item()
    print(f"{name}: recognised, above 0.8: {right[name] > 0.8}")
    assert right[name] > 0.8
print(f"lerp is recognised less often by more than 0.05: {right['lerp'] < right['slerp'] - 0.05}")
assert right["lerp"] > right["slerp"] - 0.05
poor = variety(middle["lerp"]) / variety(middle["slerp"])
print(f"lerp has less than 0.95 of slerp's variety: {poor < 0.95}")
assert poor < 0.95
assert abs(slerp(a, b, 0.5).std() - 1) < 0.02
assert abs(lerp(a, b, 0.5).std() - 0.71) < 0.02

# %% [markdown]
# It does not. Noise of spread 0.71 is like a cautious artist: closer to the average, easy to read, less varied. That is
# the shrunken islands again, and the honest reason to prefer slerp: not that lerp's pictures are ugly, but that they
# come from another distribution. (If you want caution, ask for it openly: lesson 08.)
#
# ## If you see this instead
#
# | symptom | then |
# | --- | --- |
# | $\eta = 0$ gives another picture each time | the network is in training mode and drops labels, or $x_T$ has no generator |
# | washed-out pictures with few steps | $c$ was added, but $\hat\epsilon$ not turned down by $\sqrt{\sigma_s^2-c^2}$; or really too few steps |
# | grain that never goes away | $\eta > 1$, or $\eta$ read as a ratio of variances: here it is one of standard deviations |
# | `nan` in the first step of the encoder | $\sigma_0 = 0$: ask at the next time |
# | decoding gives another digit | encoded with one label, decoded with another; or with a different grid |
# | lerp and slerp look the same | they do, near the ends; measure the spread in the middle |
#
# ## Summary
#
# - The loss knows only the marginals. A whole family of walks shares them; $\eta$ says how much noise is fresh.
# - $\eta = 1$ is DDPM, $\eta = 0$ is DDIM, a function from noise to picture: the same noise, the same picture.
# - With few steps less noise is better. Where the denoiser is exact, fifty steps do the work of a thousand; five do not.
# - The function runs backwards. The round trip has order 1; what the data cannot vary in is lost in the code.
# - Between noises walk on the circle. Straight lines lead through noise of the wrong size.
#
# **To think about.** (1) With $\eta = 0$ and one single step from $T$ to 0, what picture comes out, and does it depend
# on the noise? (2) Somebody wants $\eta = 2$, for more variety. What goes wrong in equation (1)? Up to which $c$ could
# one go?
#
# **Exercise.** How much variance does each $\eta$ leave in section 4? If $x_t$ has variance $V$ and
# $\hat x_0 = \alpha_t x_t$, the step $x_s = k\,x_t + w\,\hat x_0 + c\,z$ leaves how much? Complete `variance_after`;
# `weights` from section 2 gives you $k$, $w$ and $c$. The cell below it checks your function and gives hints; with `hint=2`
# it tells more.


# %%
def variance_after(schedule, V, t, s, eta): ...  # your code: two lines


# %%
from tinydiff import check

if check.variance_after(variance_after):
    for eta in (0, 0.25, 0.5, 0.75, 1):
        V = 1.0
        for t, s in pairwise(td.uniform(schedule, 20).tolist()):
            V = variance_after(schedule, V, t, s, eta)
        print(f"eta = {eta}: {V:.2f} of the variance is left after 20 steps")

# %% [markdown]
# **Papers.** Song, Meng & Ermon 2021, *Denoising Diffusion Implicit Models*: the family, eqs. 6 to 8; that its loss is
# the simple one, theorem 1; the sampler, eqs. 12 and 16; FIDs, table 1; encoding and interpolation, sec. 5.3 and 5.4.
# Ho, Jain & Abbeel 2020, *Denoising Diffusion Probabilistic Models*: the walk with $\eta = 1$, algorithm 2. Shoemake
# 1985, *Animating Rotation with Quaternion Curves*: slerp. White 2016, *Sampling Generative Networks*: why not lerp.
#
# Next: [06, the differential equation behind it all](06_score_and_ode.ipynb).
