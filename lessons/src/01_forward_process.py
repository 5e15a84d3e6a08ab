# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 01 · The forward process: how to ruin a picture properly
#
# A diffusion model learns to undo damage. So first we need damage: a precise recipe that turns any data into pure noise.
# It must be gradual, it must end in the same noise for every picture, and we must know it inside out.
#
# By the end of this lesson you can
#
# - add noise step by step, and explain the strange factor $\sqrt{1-\beta_t}$,
# - derive the one-line formula that replaces a thousand steps, and test that it is right,
# - read a noise schedule: linear, cosine, sigmoid,
# - catch the four classic mistakes with two numbers, since the eye sees only one of them.
#
# The slowest cell takes about two seconds.

# %%
import math
import time

import torch

import tinydiff as td
from tinydiff import plot, widgets
from tinydiff.data import digits, toy

pictures = digits()[0][:16]  # (16, 1, 8, 8)
points, part = toy("smiley", 2000, torch.Generator().manual_seed(0))  # (2000, 2), (2000,)
print("pictures", tuple(pictures.shape), "points", tuple(points.shape))

# %% [markdown]
# ## 1. Naive: just add noise
#
# Take a point, add a little Gaussian noise, repeat $T = 1000$ times. How much noise at each step is up to us. The DDPM
# paper lets the variance $\beta_t$ of the added noise grow from 0.0001 to 0.02.
#
# **Predict.** The face below fits into a square of side 2. How far will it have spread after 1000 steps? And does the
# answer depend on the face?

# %%
T = 1000
beta = torch.linspace(1e-4, 0.02, T, dtype=torch.float64)  # careful: beta[0] is beta_1

generator = torch.Generator().manual_seed(1)
x = points
for beta_t in beta:
    x = x + beta_t.sqrt() * torch.randn(x.shape, generator=generator)

print("the variance of x has grown beyond 9:", bool(x.var() > 9))
assert x.var() > 9
plot.clouds(
    {"start": (points, part), "after 1000 naive steps": (x, part)},
    alt="Left, a smiling face. Right, after naive steps, a shapeless cloud that fills a square about ten times as wide.",
)

# %% [markdown]
# It spread far, and the face is gone. But the result is a mess of another kind. Variances of independent noises add up,
# so the variance is now that of the face plus $\sum_t \beta_t \approx 10$. Ten is an accident of our $\beta$s. And the
# face has not really left: we have only shouted over it. A network fed with this would see numbers that grow with $t$.
#
# ## 2. Repair: shrink, then add
#
# Before adding noise, make room for it. If $x_{t-1}$ has variance 1, multiplying by $\sqrt{1-\beta_t}$ leaves $1-\beta_t$,
# and the noise puts $\beta_t$ back. The sum is 1 again. This is one step of the forward process, as a distribution,
#
# $$q(x_t \mid x_{t-1}) = \mathcal N\!\left(x_t;\ \sqrt{1-\beta_t}\,x_{t-1},\ \beta_t I\right),$$
#
# and as a recipe: $x_t = \sqrt{1-\beta_t}\,x_{t-1} + \sqrt{\beta_t}\,\epsilon_t$ with $\epsilon_t \sim \mathcal N(0, I)$.


# %%
def noise_step_by_step(x0, beta, generator):
    """Yield x_0, x_1, ..., x_T."""
    x = x0
    yield x
    for beta_t in beta:
        eps = torch.randn(x.shape, generator=generator)
        x = (1 - beta_t).sqrt() * x + beta_t.sqrt() * eps
        yield x


shown = (0, 20, 60, 150, 400, 1000)
steps = enumerate(noise_step_by_step(points, beta, torch.Generator().manual_seed(2)))
slow = {t: x for t, x in steps if t in shown}

print("the variance of x_1000 is 1, within 0.1:", bool((slow[1000].var() - 1).abs() < 0.1))
assert (slow[1000].var() - 1).abs() < 0.1
plot.strip(
    {f"t = {t}": plot.cloud(x, part) for t, x in slow.items()},
    alt="A smiling face at t = 0, 20, 60, 150, 400 and 1000: it blurs, loses its eyes, and ends as a round cloud.",
)

# %% [markdown]
# If the data do not have variance 1, no harm is done: subtract 1 from both sides of
# $v_t = (1-\beta_t)\,v_{t-1} + \beta_t$ and you get $v_t - 1 = (1-\beta_t)(v_{t-1} - 1)$. The distance from 1 shrinks at
# every step. **Everything ends in the same standard normal cloud**, whatever it was. That is what lets us start
# generation from plain noise.
#
# ## 3. From a thousand steps to one line
#
# Training needs $x_t$ for random $t$, millions of times. Looping is out of the question. Write two steps in full:
#
# $$x_2 = \sqrt{1-\beta_2}\,x_1 + \sqrt{\beta_2}\,\epsilon_2
#       = \underbrace{\sqrt{(1-\beta_2)(1-\beta_1)}}_{\text{signal}}\,x_0
#       + \underbrace{\sqrt{(1-\beta_2)\beta_1}\,\epsilon_1 + \sqrt{\beta_2}\,\epsilon_2}_{\text{noise}} .$$
#
# The noise is a sum of two independent Gaussians. Such a sum is Gaussian, and its variance is the sum of the variances:
#
# $$(1-\beta_2)\beta_1 + \beta_2 \;=\; (1-\beta_2)\beta_1 + 1 - (1-\beta_2) \;=\; 1 - (1-\beta_2)(1-\beta_1).$$
#
# The same product appears twice: its root multiplies the signal, and one minus it is the variance of the noise. Give it
# a name,
#
# $$\bar\alpha_t = \prod_{s=1}^{t} (1-\beta_s), \qquad \bar\alpha_0 = 1 .$$

# %%
alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), (1 - beta).cumprod(0)])
assert len(alpha_bar) == T + 1  # alpha_bar[t] belongs to time t, from 0 to T

# %% [markdown]
# Now suppose that after $t-1$ steps the noise has variance $1-\bar\alpha_{t-1}$. The next step multiplies it by
# $1-\beta_t$ and adds $\beta_t$:
#
# $$(1-\beta_t)(1-\bar\alpha_{t-1}) + \beta_t
#   = 1 - (1-\beta_t)\,\bar\alpha_{t-1} = 1 - \bar\alpha_t .$$
#
# The pattern survives each step, so it holds for all $t$. The loop below does this bookkeeping without random numbers.

# %%
signal, variance = 1.0, 0.0  # x_t = signal * x0 + noise of this variance
for t in range(1, T + 1):
    beta_t = beta[t - 1]  # because beta[0] is beta_1
    signal = signal * (1 - beta_t).sqrt()
    variance = variance * (1 - beta_t) + beta_t
    assert torch.isclose(signal, alpha_bar[t].sqrt())
    assert torch.isclose(variance, 1 - alpha_bar[t])
print("the pattern holds for all 1000 steps: True")

# %% [markdown]
# A thousand steps have become one:
#
# $$q(x_t \mid x_0) = \mathcal N\!\left(x_t;\ \sqrt{\bar\alpha_t}\,x_0,\ (1-\bar\alpha_t) I\right),
# \qquad x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\epsilon .$$


# %%
def noise_at_once(x0, t, generator):
    eps = torch.randn(x0.shape, generator=generator)
    return alpha_bar[t].sqrt() * x0 + (1 - alpha_bar[t]).sqrt() * eps


# %% [markdown]
# ## 4. Do they agree?
#
# The two recipes draw different random numbers, so single results differ. Their *distributions* must be the same. Both
# are Gaussian, so mean and variance say it all. We noise one and the same point $n = 10{,}000$ times, both ways.
#
# How close is close enough? The mean of $n$ draws with standard deviation $\sigma$ is off by about $\sigma/\sqrt n$, and
# their variance by about $\sigma^2\sqrt{2/n}$. We allow five times that. Chance alone exceeds it less than once in a
# million tries.
#
# **Predict.** If you forgot a square root somewhere, would this test notice?

# %%
n = 10_000
one_point = torch.tensor([[0.8, -0.5]]).repeat(n, 1)


def agrees(x, t):
    """Whether mean and variance of x (n, 2) are those of q(x_t | one_point)."""
    mean, variance = alpha_bar[t].sqrt() * one_point[0], 1 - alpha_bar[t]
    mean_error = (x.mean(0) - mean).abs() / (variance / n).sqrt()
    variance_error = (x.var(0) - variance).abs() / (variance * math.sqrt(2 / n))
    return bool((mean_error < 5).all() and (variance_error < 5).all())


generator = torch.Generator().manual_seed(3)
for t, x in enumerate(noise_step_by_step(one_point, beta, generator)):
    if t in (1, 10, 100, 500, 1000):
        loop, line = agrees(x, t), agrees(noise_at_once(one_point, t, generator), t)
        print(f"t = {t:4d}: the loop agrees {loop}, the line agrees {line}")
        assert loop
        assert line

# %% [markdown]
# And how much faster is the line? It draws one random number where the loop draws a thousand.


# %%
def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


loop = seconds(lambda: list(noise_step_by_step(points, beta, generator)))
line = min(seconds(lambda: noise_at_once(points, T, generator)) for _ in range(5))
print("the line is at least 50 times faster than the loop:", loop > 50 * line)
assert loop > 50 * line

# %% [markdown]
# On most machines the factor is close to 1000. From here on, the library's `td.q_sample` does the work. It takes a
# schedule, the data and the time, and gives the same numbers as our line:

# %%
linear = td.linear(T)
eps = torch.randn(points.shape, generator=torch.Generator().manual_seed(4))
ours = noise_at_once(points, 300, torch.Generator().manual_seed(4))
assert torch.allclose(linear.alpha_bar, alpha_bar)
assert torch.allclose(td.q_sample(linear, points, 300, noise=eps), ours, atol=1e-6)
print("td.q_sample agrees with our line: True")

# %% [markdown]
# It also takes a different time for every sample, which training will need. The library writes
# $\alpha_t = \sqrt{\bar\alpha_t}$ and $\sigma_t = \sqrt{1-\bar\alpha_t}$, so the line reads
# $x_t = \alpha_t x_0 + \sigma_t \epsilon$, and a schedule is a function that returns the pair.

# %%
t = torch.linspace(0, T, 11)
five = pictures[5].expand(11, 1, 8, 8)
eps = torch.randn(five.shape, generator=torch.Generator().manual_seed(5))
alpha, sigma = linear(t, like=five)  # each (11, 1, 1, 1)
x_t = alpha * five + sigma * eps
assert torch.equal(x_t, td.q_sample(linear, five, t, noise=eps))
print("x_0 is the clean picture:", torch.equal(x_t[0], pictures[5]))
plot.strip(
    {f"t = {u:.0f}": plot.grid(x[None], scale=8) for u, x in zip(t, x_t, strict=True)},
    columns=11,
    alt="One handwritten five at eleven times from 0 to 1000. Beyond t = 400 it is hard to see, at 1000 it is static.",
)

# %% [markdown]
# ## 5. Schedules: who decides how fast?
#
# Look at the strip again. The five is gone long before the end. The last steps, hundreds of them, turn static into static,
# and a network would learn next to nothing there. The list of $\beta_t$, the **schedule**, decides that.
#
# Nichol and Dhariwal (2021) turned the design around. Do not choose $\beta_t$; draw the curve $\bar\alpha_t$ that you
# want, and let $\beta_t = 1 - \bar\alpha_t/\bar\alpha_{t-1}$ follow. Theirs is a cosine:
#
# $$\bar\alpha_t = \frac{f(t)}{f(0)}, \qquad
#   f(t) = \cos^2\!\left(\frac{t/T + 0.008}{1.008}\cdot\frac{\pi}{2}\right).$$

# %%
t = torch.arange(T + 1, dtype=torch.float64)
f = torch.cos((t / T + 0.008) / 1.008 * torch.pi / 2) ** 2
assert torch.allclose(f / f[0], td.cosine(T).alpha_bar, atol=1e-6)  # it caps beta at 0.999

# %% [markdown]
# A third one uses the S-shaped $s(z) = 1/(1 + e^{-z})$:
#
# $$\bar\alpha_t = \frac{s(3) - s(6t/T - 3)}{s(3) - s(-3)} .$$


# %%
def s(z):
    return 1 / (1 + torch.exp(-torch.as_tensor(z, dtype=torch.float64)))


curve = (s(3) - s(6 * t / T - 3)) / (s(3) - s(-3))
assert torch.allclose(curve, td.sigmoid(T).alpha_bar, atol=1e-6)

schedules = {"linear": td.linear(T), "cosine": td.cosine(T), "sigmoid": td.sigmoid(T)}
plot.curves(
    t,
    {name: schedule.alpha_bar for name, schedule in schedules.items()},
    xlabel="t",
    ylabel=r"$\bar\alpha_t$, share of signal",
    alt="Three falling curves from 1 to 0: the linear schedule drops early, cosine and sigmoid pass one half at t = 500.",
)

# %% [markdown]
# Near the ends the curves look alike, but they are not: 0.01 and 0.0001 look the same on paper. A ratio shows the
# difference. The **signal-to-noise ratio** is
#
# $$\mathrm{SNR}(t) = \frac{\alpha_t^2}{\sigma_t^2} = \frac{\bar\alpha_t}{1-\bar\alpha_t}, \qquad
#   \lambda_t = \log\frac{\alpha_t}{\sigma_t} = \tfrac12 \log \mathrm{SNR}(t).$$
#
# $\lambda_t$ will be our favourite clock from lesson 06 on: it does not care about the schedule, only about the noise.
#
# **Predict.** At which $t$ are signal and noise equally strong, $\lambda_t = 0$, in each schedule?

# %%
for name, schedule in schedules.items():
    alpha, sigma = schedule(t[1:])
    lam = torch.log(alpha / sigma)
    snr = alpha**2 / sigma**2
    assert torch.allclose(lam, schedule.half_log_snr(t[1:]))
    equal, late = schedule.time(0.0), (snr < 0.01).double().mean()
    print(f"{name:8s} lambda = 0 at t = {equal:.0f}, share of steps with SNR < 0.01: {late:.2f}")

plot.curves(
    t[1:],
    {name: schedule.half_log_snr(t[1:]) for name, schedule in schedules.items()},
    xlabel="t",
    ylabel=r"$\lambda_t$, half log SNR",
    ylim=(-6, 5),
    alt="Half log SNR against t: linear crosses zero near t = 260 and stays low; cosine and sigmoid cross at about 500.",
)

# %% [markdown]
# The linear schedule spends a third of its steps below SNR 0.01, where a picture is all but gone. Cosine
# spends 6 percent there. Neither is wrong: large pictures survive more noise than small ones, since neighbouring pixels
# repeat each other, so they want a noisier schedule. Our digits have 64 pixels.
#
# ## 6. Play
#
# One slider for the time, one for the schedule. The noise $\epsilon$ is the same in all frames: what moves is only the
# mixture.
#
# **Predict.** Set $t = 40$. Which schedule keeps the smile crisp?

# %%
generator = torch.Generator().manual_seed(6)
eps_pictures = torch.randn(pictures.shape, generator=generator)
eps_points = torch.randn(points.shape, generator=generator)


def draw(t, schedule):
    noisy_pictures = td.q_sample(schedules[schedule], pictures, t, noise=eps_pictures)
    noisy_points = td.q_sample(schedules[schedule], points, t, noise=eps_points)
    digits_seen = plot.grid(noisy_pictures, columns=4, scale=7, gap=4)
    return plot.beside(digits_seen, plot.cloud(noisy_points, part, limit=2))


widgets.explore(
    draw,
    t=range(0, T + 1, 20),
    schedule=schedules,
    start={"t": 200},
    play="t",
    alt="Sixteen digits and a smiling face of points, dissolving into noise as t grows.",
)

# %%
plot.strip(
    {f"{name}, t = {t}": draw(t, name) for name in schedules for t in (40, 100, 300, 600)},
    columns=4,
    alt="Digits and face at t = 40, 100, 300, 600 for three schedules; at 40 only the cosine keeps a crisp smile, at 300 linear keeps nothing.",
)

# %% [markdown]
# ## 7. Four mistakes everybody makes once
#
# Each of these runs without an error and trains without an error. Only the pictures suffer, a day later. Two numbers
# give them away. Let $x_t = a\,x_0 + b\,\epsilon$ with data of variance 1: then $x_t$ must have variance $a^2 + b^2 = 1$,
# and it must start clean, $b = 0$ at $t = 0$.

# %%
shifted = alpha_bar[1:]  # a table without the entry for t = 0
mistakes = {
    "right": lambda t: (alpha_bar[t].sqrt(), (1 - alpha_bar[t]).sqrt()),
    "variance for std": lambda t: (alpha_bar[t].sqrt(), 1 - alpha_bar[t]),
    "no root on signal": lambda t: (alpha_bar[t], (1 - alpha_bar[t]).sqrt()),
    "one step's beta": lambda t: ((1 - beta[t - 1]).sqrt(), beta[t - 1].sqrt()),
    "off by one": lambda t: (shifted[t].sqrt(), (1 - shifted[t]).sqrt()),
}
for name, mix in mistakes.items():
    (a, b), (_, b0) = mix(300), mix(0)
    print(f"{name:18s} a = {a:.2f}, b = {b:.2f}, variance {a**2 + b**2:.2f}, b at t = 0: {b0:.3f}")

seen = {}
for name, mix in mistakes.items():
    a, b = mix(300)
    seen[name] = plot.grid(a * pictures[:4] + b * eps_pictures[:4], columns=2, scale=8)
plot.strip(
    seen,
    columns=5,
    alt="Four digits at t = 300, five times: right is noisy, variance for std a little clearer, no root on signal "
    "fainter, one step's beta almost clean, and off by one looks right.",
)

# %% [markdown]
# The last is the nasty one: at $t = 300$ no eye and no test of moments sees it. Only the edges do. At $t = 0$ the data
# are not clean, and at $t = T$ the table has run out. (Python adds a joke of its own: at $t = 0$ the fourth recipe reads
# `beta[-1]`, the *largest* of all.)
#
# | if you see this instead | then |
# | --- | --- |
# | half-noised pictures look too clear, variance below 1 | you multiplied the noise by $1-\bar\alpha_t$: take the root |
# | half-noised pictures look too faint, variance below 1 | you multiplied the data by $\bar\alpha_t$: take the root |
# | even $x_T$ is a picture, variance exactly 1 | you used $1-\beta_t$ where $\bar\alpha_t$ belongs |
# | `IndexError` at $t = T$, or noise at $t = 0$ | a table of $\beta$ starts at $t = 1$: shift by one |
# | variance grows with $t$ | you forgot to shrink: section 1 |
# | `The size of tensor a (16) must match …` | $t$ of shape (B,) needs (B, 1, 1, 1): pass `like=x` |

# %% [markdown]
# ## Summary
#
# - A forward step shrinks by $\sqrt{1-\beta_t}$ and adds noise of variance $\beta_t$. Everything ends in $\mathcal N(0, I)$.
# - Gaussians add, products telescope: $x_t = \alpha_t x_0 + \sigma_t \epsilon$ with $\alpha_t^2 + \sigma_t^2 = 1$.
# - A schedule decides where on the scale of $\lambda_t$ the steps are spent.
#
# **To think about.** (1) Where did the derivation use that the noise is *Gaussian*? What would the face look like on the
# way if each $\epsilon_t$ were a coin toss, $\pm 1$? (2) $x_T$ still holds $\alpha_T x_0$, with
# $\alpha_T \approx 0.006$ for the linear schedule. Why does nobody mind? When would you?
#
# **Exercise.** Jump from any time $s$ to any later time $t$: complete `jump` so that it draws from $q(x_t \mid x_s)$. For
# $s = 0$ it is our one line, for $s = t-1$ it is one step. Hint: what is $\bar\alpha_t/\bar\alpha_s$ a product of? The
# times may also have shape (B,), a pair of their own for each sample. The cell below it checks your function and gives
# hints; with `hint=2` it tells more.


# %%
def jump(alpha_bar, x_s, s, t, generator): ...  # your code, two or three lines; noise as in `noise_at_once`


# %%
from tinydiff import check

check.jump(jump)

# %% [markdown]
# **Papers.** Ho, Jain & Abbeel 2020, *Denoising Diffusion Probabilistic Models*: one step is eq. 2, the one line eq. 4,
# the linear schedule sec. 4. Nichol & Dhariwal 2021, *Improved Denoising Diffusion Probabilistic Models*: the cosine,
# eq. 17. Jabri, Fleet & Chen 2022, *Scalable Adaptive Computation for Iterative Generation*: the sigmoid. Kingma et al.
# 2021, *Variational Diffusion Models*: SNR, eq. 2. Sohl-Dickstein et al. 2015, *Deep Unsupervised Learning using
# Nonequilibrium Thermodynamics*: where it all began.
#
# Next: [02, the loss](02_ddpm_loss.ipynb).
