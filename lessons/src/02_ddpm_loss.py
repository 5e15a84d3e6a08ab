# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 02 · The loss: from likelihood to "guess the noise"
#
# Lesson 01 ruined data. Now we train a network to undo it. The loss will fit in one line: *guess the noise, take the
# squared error*. This lesson shows where that line comes from, and what was thrown away on the road.
#
# By the end of this lesson you can
#
# - derive the posterior $q(x_{t-1}\mid x_t, x_0)$ by completing a square,
# - turn $-\log p(x_0)$ into a sum of squared errors, and test every step by machine,
# - convert between the three targets $\epsilon$, $x_0$ and $v$, and say what each cares about,
# - train a network in seconds, and measure how far it is from the *perfect* one at every noise level,
# - report bits per dimension, and say how far your bound is from the truth.
#
# Three cells are slow: training (about 20 seconds), energy distances (5) and bits per dimension (8).

# %%
import math

import torch

import tinydiff as td
from tinydiff import plot, widgets
from tinydiff.metrics import energy_distance

torch.set_num_threads(1)  # networks this small only wait for a second core


def seed(n):
    return torch.Generator().manual_seed(n)


world = td.GaussianMixture(
    means=[[-0.5, -0.5], [0.6, -0.4], [0.1, 0.6]], stds=[0.2, 0.1, 0.15], weights=[0.5, 0.2, 0.3]
)
schedule = td.linear()
T = schedule.T

y = torch.multinomial(world.weights, 2000, replacement=True, generator=seed(0))  # which island
x0 = world.sample(2000, seed(1), y=y)
noisy = {f"t = {t}": (td.q_sample(schedule, x0, t, generator=seed(2)), y) for t in (100, 300, 1000)}
plot.clouds(
    {"data, t = 0": (x0, y)} | noisy,
    limit=2.5,
    alt="Three round islands of points, of different width and population; at t = 100 they touch, at 300 they have "
    "merged, at 1000 they are one normal cloud.",
)

# %% [markdown]
# Three islands: half of the points live on the first, a fifth on the second. This is a **Gaussian mixture**, and we chose
# it for one reason. Its density $p(x_0)$ is known. So is the best possible denoiser, the average of all $x_0$ that could
# have become $x_t$:
#
# $$\hat x_0^*(x_t) = \mathbb E[x_0 \mid x_t].$$
#
# `world.denoiser(schedule)` computes it in closed form. Whatever we train, we can lay the truth beside it.
#
# ## 1. One step back
#
# We want to go from $x_t$ to a slightly cleaner $x_s$, with $s = t-1$. (Any $s < t$ will do; lesson 03 needs that.) The
# naive idea is Bayes' rule:
#
# $$q(x_s \mid x_t) = \frac{q(x_t \mid x_s)\; q(x_s)}{q(x_t)} .$$
#
# But $q(x_s)$ is the density of all data, blurred. If we knew that, we would be done. The repair: pretend for a moment
# that we know $x_0$. Then everything on the right is Gaussian,
#
# $$q(x_s \mid x_t, x_0) = \frac{q(x_t \mid x_s)\; q(x_s \mid x_0)}{q(x_t \mid x_0)} ,$$
#
# and lesson 01 gave all three. With $\beta = 1 - \bar\alpha_t/\bar\alpha_s$ (for $s = t-1$ this is $\beta_t$),
#
# $$q(x_t \mid x_s) = \mathcal N(\sqrt{1-\beta}\,x_s,\ \beta), \qquad
#   q(x_s \mid x_0) = \mathcal N(\sqrt{\bar\alpha_s}\,x_0,\ 1-\bar\alpha_s).$$
#
# Look at the exponent as a function of $x_s$. Coordinates are independent, so one is enough. What does not contain $x_s$
# goes into "const":
#
# $$-\frac12\left[\frac{(x_t - \sqrt{1-\beta}\,x_s)^2}{\beta} + \frac{(x_s - \sqrt{\bar\alpha_s}\,x_0)^2}{1-\bar\alpha_s}\right]
#  = -\frac12\Big[\underbrace{\Big(\tfrac{1-\beta}{\beta} + \tfrac{1}{1-\bar\alpha_s}\Big)}_{1/\tilde\beta}\,x_s^2
#  - 2\,\underbrace{\Big(\tfrac{\sqrt{1-\beta}\,x_t}{\beta} + \tfrac{\sqrt{\bar\alpha_s}\,x_0}{1-\bar\alpha_s}\Big)}_{b}\,x_s\Big] + \text{const}.$$
#
# Now **complete the square**: $x_s^2/\tilde\beta - 2 b x_s = (x_s - \tilde\beta b)^2/\tilde\beta + \text{const}$. That is a
# Gaussian with variance $\tilde\beta$ and mean $\tilde\mu = \tilde\beta\,b$. The variance, on a common denominator:
#
# $$\frac1{\tilde\beta} = \frac{(1-\beta)(1-\bar\alpha_s) + \beta}{\beta\,(1-\bar\alpha_s)}
#   = \frac{1-\bar\alpha_t}{\beta\,(1-\bar\alpha_s)},
#   \qquad\text{since } (1-\beta)\,\bar\alpha_s = \bar\alpha_t .$$
#
# Insert it into $\tilde\beta\,b$. In the term with $x_t$ the $\beta$ cancels, in the term with $x_0$ the
# $1-\bar\alpha_s$. The result:
#
# $$\tilde\beta = \frac{1-\bar\alpha_s}{1-\bar\alpha_t}\,\beta, \qquad
#   \tilde\mu(x_t, x_0) = \frac{\sqrt{\bar\alpha_s}\,\beta}{1-\bar\alpha_t}\,x_0
#   + \frac{\sqrt{1-\beta}\,(1-\bar\alpha_s)}{1-\bar\alpha_t}\,x_t .$$
#
# The best guess for $x_s$ is a weighted sum of where you are and where you came from.


# %%
def posterior(x0, x_t, t, s):
    abar_t, abar_s = schedule.alpha_bar[t], schedule.alpha_bar[s]
    beta = 1 - abar_t / abar_s
    var = (1 - abar_s) / (1 - abar_t) * beta
    mean = abar_s.sqrt() * beta / (1 - abar_t) * x0 + (1 - beta).sqrt() * (1 - abar_s) / (1 - abar_t) * x_t
    return mean, var


x0_64 = x0.double()
for t, s in ((1000, 999), (300, 299), (300, 100), (2, 1)):
    x_t = td.q_sample(schedule, x0_64, t, generator=seed(3))
    ours, theirs = posterior(x0_64, x_t, t, s), td.q_posterior(schedule, x0_64, x_t, t, s)
    assert torch.allclose(ours[0], theirs[0], rtol=1e-10, atol=1e-12)
    assert torch.allclose(ours[1], theirs[1], rtol=1e-8)
print("posterior agrees with td.q_posterior: True")

# %% [markdown]
# Agreeing with a library proves little: both could be wrong in the same way. So ask Bayes. The log densities must satisfy
# $\log q(x_s|x_t,x_0) + \log q(x_t|x_0) = \log q(x_t|x_s) + \log q(x_s|x_0)$ at *every* point, also at silly ones.


# %%
def log_normal(x, mean, var):
    """log N(x; mean, var I), summed over the coordinates: (B,)."""
    return (-((x - mean) ** 2) / (2 * var) - torch.log(2 * math.pi * var) / 2).sum(1)


def log_q(x_t, x_s, t, s):
    """log q(x_t | x_s) for any s < t; with s = 0 it is log q(x_t | x_0)."""
    ratio = schedule.alpha_bar[t] / schedule.alpha_bar[s]
    return log_normal(x_t, ratio.sqrt() * x_s, 1 - ratio)


t, s = 300, 100
x_t, x_s = torch.randn(2, 2000, 2, generator=seed(4), dtype=torch.float64)  # any points at all
left = log_normal(x_s, *posterior(x0_64, x_t, t, s)) + log_q(x_t, x0_64, t, 0)
right = log_q(x_t, x_s, t, s) + log_q(x_s, x0_64, s, 0)
assert torch.allclose(left, right, rtol=1e-9)
print("Bayes' rule holds at 2000 random points: True")

# %% [markdown]
# ## 2. How far apart are two Gaussians?
#
# The model will make the same step without knowing $x_0$. To compare two distributions we use
# $\mathrm{KL}(q\,\|\,p) = \mathbb E_q[\log q - \log p]$. It is 0 when they are equal, positive otherwise. In one dimension,
# with $q = \mathcal N(m_1, v_1)$ and $p = \mathcal N(m_2, v_2)$:
#
# $$\mathbb E_q[\log q - \log p]
#  = \mathbb E_q\Big[\tfrac12\log\tfrac{v_2}{v_1} - \tfrac{(x-m_1)^2}{2v_1} + \tfrac{(x-m_2)^2}{2v_2}\Big].$$
#
# Two averages remain: $\mathbb E_q (x-m_1)^2 = v_1$, and $\mathbb E_q (x-m_2)^2 = v_1 + (m_1-m_2)^2$. Hence
#
# $$\mathrm{KL} = \frac12\left[\log\frac{v_2}{v_1} + \frac{v_1 + (m_1-m_2)^2}{v_2} - 1\right].$$


# %%
def kl(m1, v1, m2, v2):
    """KL(N(m1, v1 I) || N(m2, v2 I)), summed over the coordinates: (B,)."""
    return (((v2 / v1).log() + (v1 + (m1 - m2) ** 2) / v2 - 1) / 2).sum(1)


m1, m2 = torch.randn(2, 5, 2, generator=seed(5), dtype=torch.float64)
v1, v2 = torch.tensor([0.3, 2.0], dtype=torch.float64)
normal = torch.distributions.Normal
referee = torch.distributions.kl_divergence(normal(m1, v1.sqrt()), normal(m2, v2.sqrt())).sum(1)
assert torch.allclose(kl(m1, v1, m2, v2), referee)
assert (kl(m1, v1, m1, v1) == 0).all()
print("kl agrees with torch.distributions: True")

# %% [markdown]
# ## 3. A bound on the likelihood
#
# Our model is the way back. It starts at $p(x_T) = \mathcal N(0, I)$. At each step it asks a denoiser for $\hat x_0(x_t)$
# and *believes* it:
#
# $$p(x_{t-1} \mid x_t) = q(x_{t-1} \mid x_t,\ x_0 := \hat x_0(x_t)) = \mathcal N(\tilde\mu(x_t, \hat x_0),\ \tilde\beta).$$
#
# The very last step cannot use $\tilde\beta$, which is 0 there. We take $p(x_0 \mid x_1) = \mathcal N(\hat x_0(x_1),\ \sigma_1^2/\alpha_1^2)$:
# what $x_1$ leaves open about $x_0$.
#
# A good model gives real data a high $p(x_0)$. But that is an integral over all ways back, $T$ of them nested. The naive
# attempt ends here. The repair is a bound. Multiply and divide by $q$, then use that $-\log$ is convex (Jensen):
#
# $$-\log p(x_0) = -\log \mathbb E_{q}\left[\frac{p(x_{0:T})}{q(x_{1:T}\mid x_0)}\right]
#   \le \mathbb E_{q}\left[\log\frac{q(x_{1:T}\mid x_0)}{p(x_{0:T})}\right] =: L .$$
#
# We can estimate $L$: noise a point step by step, and add up logs. The denoiser will be the exact one, so the model is as
# good as models get.

# %%
exact = world.denoiser(schedule)
x0_64 = x0[:500].double()

path = [x0_64]  # x_0, x_1, ..., x_T
generator = seed(6)
for beta_t in schedule.betas:
    noise = torch.randn(x0_64.shape, generator=generator, dtype=torch.float64)
    path.append((1 - beta_t).sqrt() * path[-1] + beta_t.sqrt() * noise)
x0_hat = [None] + [exact(path[t], t) for t in range(1, T + 1)]  # x0_hat[t] is the guess at x_t

one = torch.ones((), dtype=torch.float64)
var_1 = (1 - schedule.alpha_bar[1]) / schedule.alpha_bar[1]


def log_p(t):
    """log p(x_{t-1} | x_t) along the path."""
    return log_normal(path[t - 1], *(posterior(x0_hat[t], path[t], t, t - 1) if t > 1 else (x0_hat[1], var_1)))


forward = sum(log_q(path[t], path[t - 1], t, t - 1) for t in range(1, T + 1))
backward = log_normal(path[T], 0, one) + sum(log_p(t) for t in range(1, T + 1))
naive = forward - backward  # (500,), one estimate of L per point

# %% [markdown]
# ## 4. Regroup
#
# The naive sum needs the whole path, all thousand steps, for one number. No way to train. And each of its terms compares a
# step forward with a step back: different things. So turn the forward steps around. A step forward does
# not care what $x_0$ was, so $q(x_t|x_{t-1}) = q(x_t|x_{t-1}, x_0)$. For $t \ge 2$, Bayes as in section 1 says
#
# $$q(x_t \mid x_{t-1}) = q(x_{t-1} \mid x_t, x_0)\,\frac{q(x_t \mid x_0)}{q(x_{t-1}\mid x_0)} .$$
#
# Multiply over $t = 2 \dots T$. The fractions telescope to $q(x_T|x_0)/q(x_1|x_0)$, and the step $q(x_1|x_0)$ that we left
# out cancels the rest. So, with no approximation,
#
# $$\log\frac{q(x_{1:T}|x_0)}{p(x_{0:T})} = \log\frac{q(x_T|x_0)}{p(x_T)}
#   + \sum_{t=2}^{T} \log\frac{q(x_{t-1}|x_t,x_0)}{p(x_{t-1}|x_t)} - \log p(x_0|x_1).$$
#
# **Predict.** Is that equality true on average, or for every single path?


# %%
def log_ratio(t):
    """log q(x_{t-1} | x_t, x_0) / p(x_{t-1} | x_t) along the path."""
    return log_normal(path[t - 1], *posterior(x0_64, path[t], t, t - 1)) - log_p(t)


regrouped = log_q(path[T], x0_64, T, 0) - log_normal(path[T], 0, one) - log_p(1)
regrouped = regrouped + sum(log_ratio(t) for t in range(2, T + 1))

assert torch.allclose(naive, regrouped, rtol=1e-8, atol=1e-7)
print("equal on each of 500 paths, to 7 digits: True")

# %% [markdown]
# On every path: it is algebra. Now each term can be averaged over its own $x_{t-1}$ by hand (the first over its $x_T$).
# The averages are KLs of Gaussians, and section 2 has them in closed form:
#
# $$L = \mathbb E_q\Big[\underbrace{\mathrm{KL}(q(x_T|x_0)\,\|\,p(x_T))}_{L_T}
#  + \sum_{t=2}^T \underbrace{\mathrm{KL}(q(x_{t-1}|x_t,x_0)\,\|\,p(x_{t-1}|x_t))}_{L_{t-1}}
#  \underbrace{-\log p(x_0|x_1)}_{L_0}\Big].$$
#
# Each term now depends on $x_0$ and *one* $x_t$, which is one jump away. We may draw a single random $t$ per training
# example.
#
# **Predict.** Both forms have the same mean. How much less does one term scatter once it is a KL? And the sum of all?


# %%
def kl_term(t):
    return kl(*posterior(x0_64, path[t], t, t - 1), *posterior(x0_hat[t], path[t], t, t - 1))


for t in (10, 100, 500):
    print(
        f"one term, t = {t:3d}: standard deviation {log_ratio(t).std():.1g} as log ratio, {kl_term(t).std():.1g} as KL"
    )
    assert kl_term(t).std() < 0.75 * log_ratio(t).std()

L_T = kl(schedule.alpha_bar[T].sqrt() * x0_64, 1 - schedule.alpha_bar[T], 0, one)
with_kl = L_T + sum(kl_term(t) for t in range(2, T + 1)) - log_p(1)
difference = naive - with_kl
print(f"the whole sum: standard deviation {naive.std():.1f} naive, {with_kl.std():.1f} with KL")
print("the means agree within 5 standard errors:", bool(difference.mean().abs() < 5 * difference.std() / 500**0.5))
assert difference.mean().abs() < 5 * difference.std() / 500**0.5

# %% [markdown]
# Surprised? For a single $t$, which is what training uses, the KL wins. For the whole sum with a *good* model the naive
# form wins: what one step owes by bad luck, the next pays back. You may read that the KL form always has less variance.
# Term by term it must. The sum of all need not.
#
# ## 5. Each term is a squared error
#
# In $L_{t-1}$ both Gaussians have variance $\tilde\beta$. So the KL keeps only the distance of the means, and the $x_t$ in
# both means cancels. With $s = t-1$:
#
# $$L_{t-1} = \frac{\|\tilde\mu(x_t, x_0) - \tilde\mu(x_t, \hat x_0)\|^2}{2\tilde\beta}
#  = \frac{\bar\alpha_s\beta^2}{(1-\bar\alpha_t)^2}\cdot\frac{1-\bar\alpha_t}{2\,\beta\,(1-\bar\alpha_s)}\,\|x_0-\hat x_0\|^2
#  = \frac{\bar\alpha_s\,\beta}{2\,(1-\bar\alpha_s)(1-\bar\alpha_t)}\,\|x_0-\hat x_0\|^2 .$$
#
# Use $\bar\alpha_s\,\beta = \bar\alpha_s - \bar\alpha_t$, and recall $\mathrm{SNR}(t) = \bar\alpha_t/(1-\bar\alpha_t)$. Then
#
# $$\frac{\bar\alpha_s-\bar\alpha_t}{(1-\bar\alpha_s)(1-\bar\alpha_t)}
#   = \frac{\bar\alpha_s}{1-\bar\alpha_s} - \frac{\bar\alpha_t}{1-\bar\alpha_t}
#   \quad\Longrightarrow\quad
#   \boxed{\,L_{t-1} = \tfrac12\,\big(\mathrm{SNR}(t-1) - \mathrm{SNR}(t)\big)\;\|x_0 - \hat x_0(x_t)\|^2\,}$$
#
# (Put the middle form on one denominator: $\bar\alpha_s(1-\bar\alpha_t) - \bar\alpha_t(1-\bar\alpha_s) = \bar\alpha_s-\bar\alpha_t$.)
# All of sections 3 and 4 in one function, for any denoiser and any schedule:


# %%
def bound(denoiser, x0, generator):
    """An estimate of L for each x0, in nats: (B,)."""
    T, abar = denoiser.schedule.T, denoiser.schedule.alpha_bar
    snr = abar / (1 - abar)
    total = kl(abar[T].sqrt() * x0, 1 - abar[T], 0, one)  # L_T
    for t in range(T, 0, -1):
        eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
        x0_hat = denoiser(abar[t].sqrt() * x0 + (1 - abar[t]).sqrt() * eps, t)
        if t > 1:
            total = total + (snr[t - 1] - snr[t]) / 2 * ((x0 - x0_hat) ** 2).sum(1)  # L_{t-1}
        else:
            total = total - log_normal(x0, x0_hat, 1 / snr[1])  # L_0
    return total


snr = schedule.alpha_bar / (1 - schedule.alpha_bar)  # infinite at t = 0: clean data
for t in (2, 10, 100, 500, 1000):
    squared_error = ((x0_64 - x0_hat[t]) ** 2).sum(1)
    assert torch.allclose(kl_term(t), (snr[t - 1] - snr[t]) / 2 * squared_error, rtol=1e-6, atol=1e-12)
print("each KL is its squared error: True")

ours, theirs = bound(exact, x0_64, seed(7)), td.variational_bound(exact, x0_64, generator=seed(7))
assert torch.allclose(ours, theirs, rtol=1e-8)
print("bound agrees with td.variational_bound: True")

# %% [markdown]
# Note what $L_T$ does *not* contain: anything to train. The forward process is fixed.
#
# ## 6. The simple loss
#
# From $x_t = \alpha_t x_0 + \sigma_t\epsilon$, a guess of the noise is a guess of the data and vice versa:
# $\hat x_0 = (x_t - \sigma_t\hat\epsilon)/\alpha_t$. Hence $x_0 - \hat x_0 = \frac{\sigma_t}{\alpha_t}(\hat\epsilon - \epsilon)$
# and $\|x_0-\hat x_0\|^2 = \|\epsilon-\hat\epsilon\|^2/\mathrm{SNR}(t)$. The bound becomes
#
# $$L_{t-1} = \tfrac12\left(\frac{\mathrm{SNR}(t-1)}{\mathrm{SNR}(t)} - 1\right)\|\epsilon - \hat\epsilon\|^2 .$$
#
# Ho et al. looked at the bracket and crossed it out:
#
# $$L_{\text{simple}} = \mathbb E_{t\sim U\{1..T\},\ x_0,\ \epsilon}\ \|\epsilon - \hat\epsilon(x_t, t)\|^2 .$$
#
# **Predict.** The bracket depends on $t$. Which $t$ lose weight when it is gone: low noise or high noise?

# %%
t = torch.arange(2, T + 1)
weight = (snr[t - 1] / snr[t] - 1) / 2
print(
    f"weight of |eps - eps_hat|^2 in the bound: t = 2 {weight[0]:.2f}, t = 500 {weight[498]:.4f}, t = 1000 {weight[-1]:.3f}"
)
assert weight[0] > 50 * weight[-1]

# %% [markdown]
# Low noise. In the bound, one step at $t = 2$ weighs as much as many steps at $t = 500$. The network would polish details
# that no eye can see. The simple loss asks for equal effort everywhere, and samples look better for it (Ho et al. 2020,
# table 2). The price: it no longer bounds the likelihood.
#
# ## 7. Three targets, one denoiser
#
# Who says the network must output $\epsilon$? Three targets are common. Each determines the others, given $x_t$:
#
# | the network guesses | then $\hat x_0$ is | its squared error is $\lVert x_0-\hat x_0\rVert^2$ times |
# | --- | --- | --- |
# | $\epsilon$ | $(x_t - \sigma_t\hat\epsilon)/\alpha_t$ | $\mathrm{SNR}$ |
# | $x_0$ | $\hat x_0$ | $1$ |
# | $v = \alpha_t\epsilon - \sigma_t x_0$ | $\alpha_t x_t - \sigma_t \hat v$ | $\mathrm{SNR} + 1$ |
#
# The last row, slowly. $\alpha_t x_t - \sigma_t v = (\alpha_t^2 + \sigma_t^2)\,x_0 + (\alpha_t\sigma_t - \sigma_t\alpha_t)\,\epsilon = x_0$.
# So $x_0 - \hat x_0 = \sigma_t(\hat v - v)$ and $\|v-\hat v\|^2 = \|x_0-\hat x_0\|^2/\sigma_t^2$. Finally
# $1/\sigma_t^2 = (\alpha_t^2+\sigma_t^2)/\sigma_t^2 = \mathrm{SNR}+1$.

# %%
x_t, x0_hat = torch.randn(2, 500, 2, generator=seed(8), dtype=torch.float64)  # any noisy point, any guess
for u in (1, 100, 500, 1000):
    alpha, sigma = schedule(u)
    eps, eps_hat = (x_t - alpha * x0_64) / sigma, (x_t - alpha * x0_hat) / sigma
    v, v_hat = alpha * eps - sigma * x0_64, alpha * eps_hat - sigma * x0_hat
    assert torch.allclose((x_t - sigma * eps_hat) / alpha, x0_hat, atol=1e-10)
    assert torch.allclose(alpha * x_t - sigma * v_hat, x0_hat, atol=1e-10)

    error = (x0_64 - x0_hat) ** 2
    assert torch.allclose((eps - eps_hat) ** 2, snr[u] * error, rtol=1e-6)
    assert torch.allclose((v - v_hat) ** 2, (snr[u] + 1) * error, rtol=1e-6)

    targets = {td.EpsDenoiser: eps, td.X0Denoiser: x0_64, td.VDenoiser: v}
    for kind, target in targets.items():  # the library's classes know the same formulas
        assert torch.allclose(kind(None, schedule).target(x0_64, eps, alpha, sigma), target)
print("targets convert into one another, at four noise levels: True")

# %% [markdown]
# So the three losses are **one loss with three weights**. Here they are, with the weight of the bound beside them:

# %%
plot.curves(
    t,
    {"eps: SNR": snr[t], "x0: 1": torch.ones(len(t)), "v: SNR + 1": snr[t] + 1, "the bound": (snr[t - 1] - snr[t]) / 2},
    yscale="log",
    xlabel="t",
    ylabel=r"weight of $\|x_0-\hat x_0\|^2$",
    alt="Weights over t on a log scale: eps falls from 5000 to below 0.0001, x0 stays at 1, v follows eps at low noise "
    "and stays at 1 at high noise, the bound falls more steeply than all.",
)

# %% [markdown]
# Read it as a list of promises. With $\epsilon$, nobody checks $\hat x_0$ at high noise. With $x_0$, an error of 0.03 at
# low noise costs nearly nothing, though it is larger than the noise itself. With $v$, both ends are looked after.
#
# ## 8. Algorithm 1, in full
#
# Ho et al.'s training algorithm: draw data, a time and noise; take a gradient step; repeat.


# %%
def simple_loss(net, x0, generator):
    t = torch.randint(1, T + 1, (len(x0),), generator=generator)  # 1..T, both included
    eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    alpha, sigma = schedule(t, like=x0)  # (B, 1)
    x_t = alpha * x0 + sigma * eps
    return ((eps - net(x_t, t)) ** 2).mean()


torch.manual_seed(0)  # the network's first weights
net = td.MLP(hidden=64)
optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
generator = seed(10)
for _ in range(300):
    loss = simple_loss(net, world.sample(512, generator), generator)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()

print(f"loss below 0.25: {loss.item() < 0.25}")
assert loss.item() < 0.25

# %% [markdown]
# A network that always answers 0 would have loss 1, since $\epsilon$ has variance 1. If yours stays near 1, the network
# does not see $x_t$, or the optimiser does not see the network.
#
# The library has the same line, for any target:

# %%
wrapped = td.EpsDenoiser(net, schedule)
ours, theirs = simple_loss(net.double(), x0_64, seed(11)), td.ddpm_loss(wrapped, x0_64, generator=seed(11))
assert torch.allclose(ours, theirs, rtol=1e-6)
print("simple_loss agrees with td.ddpm_loss: True")

# %% [markdown]
# `td.train` is the loop above with a little care added: a learning rate that warms up and decays, clipped gradients, weight
# decay, and a running average of the weights (`td.EMA`; lesson 04 explains it). We train one network for each target. Same
# start, same data, same noise.
#
# **Predict.** By section 7: where will each of the three be worst?


# %%
def learn(kind, steps=2000):
    torch.manual_seed(0)
    denoiser = kind(td.MLP(hidden=64), schedule)
    ema = td.EMA(denoiser, decay=0.99)
    generator = seed(12)
    batches = (world.sample(512, generator) for _ in range(steps))
    for _ in td.train(denoiser, batches, steps=steps, lr=3e-3, ema=ema, generator=generator):
        pass
    return ema.denoiser


learnt = {"eps": learn(td.EpsDenoiser), "x0": learn(td.X0Denoiser), "v": learn(td.VDenoiser)}

# %% [markdown]
# ## 9. Is that a good loss?
#
# Loss curves flatten out somewhere. Is it the optimum, or is the network stuck? Usually nobody knows. We do: the exact
# denoiser has a loss too, and no network can beat it. Noise cannot be guessed perfectly; some of it always looks like data.

# %%
fresh = world.sample(50_000, seed(13))
t = torch.randint(1, T + 1, (len(fresh),), generator=seed(14))
eps = torch.randn(fresh.shape, generator=seed(15))
alpha, sigma = schedule(t, like=fresh)
x_t = alpha * fresh + sigma * eps


@torch.no_grad()
def eps_loss(denoiser):
    eps_hat = (x_t - alpha * denoiser(x_t, t)) / sigma
    return ((eps - eps_hat) ** 2).mean().item()


best = eps_loss(exact)
mine = eps_loss(learnt["eps"])
print(f"simple loss of the exact denoiser {best:.2f}; ours is within 5 percent: {mine < 1.05 * best}")
assert best - 0.001 < mine < 1.05 * best

# %% [markdown]
# **Expected loss: about 0.135, and that is as good as it gets.** The variance of the noise is 1, so here 14 percent of it can
# never be told from data. A loss far from zero is no failure. If you see 0.2 instead, train longer. If you see less than 0.13,
# suspect the test.
#
# The excess has a meaning. $\hat x_0^*$ is a conditional mean, so its error is uncorrelated with every function of $x_t$,
# and Pythagoras holds:
#
# $$\mathbb E\|x_0-\hat x_0\|^2 = \underbrace{\mathbb E\|x_0-\hat x_0^*\|^2}_{\text{nobody can help}}
#  + \underbrace{\mathbb E\|\hat x_0^*-\hat x_0\|^2}_{\text{the network's fault}} .$$
#
# We can measure the second term alone. Here it is for every noise level: mean squared error between learnt and exact
# $\hat x_0$, per coordinate.

# %%
levels = (1, 3, 10, 30, 60, 100, 200, 400, 700, 1000)


@torch.no_grad()
def network_error(denoiser, t):
    x_t = td.q_sample(schedule, fresh[:10_000], t, generator=seed(16))
    return ((denoiser(x_t, t) - exact(x_t, t)) ** 2).mean().item()


@torch.no_grad()
def unavoidable_error(t):
    x_t = td.q_sample(schedule, fresh[:10_000], t, generator=seed(16))
    return ((fresh[:10_000] - exact(x_t, t)) ** 2).mean().item()


mse = {name: [network_error(denoiser, t) for t in levels] for name, denoiser in learnt.items()}
mse["unavoidable"] = [unavoidable_error(t) for t in levels]
plot.curves(
    levels,
    {f"learnt {name} against exact" if name in learnt else name: errors for name, errors in mse.items()},
    xscale="log",
    yscale="log",
    xlabel="t",
    ylabel=r"mean squared error of $\hat x_0$",
    alt="Network error of the three targets against t, log-log: x0 stays near 0.001 even at low noise, eps climbs steeply "
    "above t = 400, v is low everywhere; the unavoidable error rises from 0.0001 to 0.2.",
)

# %% tags=["nbval-ignore-output"]
print("t          " + "".join(f"{t:8d}" for t in levels))
for name, errors in mse.items():  # per coordinate
    print(f"{name:11s}" + "".join(f"{e:8.0e}" for e in errors))

# %% [markdown]
# (These figures differ a little from one processor to the next: training amplifies the last digit. So the next cell
# states what must hold everywhere.)

# %%
at = levels.index
claims = {
    "eps and v: MSE below 0.002 for all t up to 400": max(mse["eps"][:8] + mse["v"][:8]) < 2e-3,
    "v: below 0.002 at every noise level": max(mse["v"]) < 2e-3,
    "eps: worst at the highest noise, above 0.05": mse["eps"][at(1000)] == max(mse["eps"]) > 0.05,
    "x0: at t = 1 more than 20 times worse than eps and v": mse["x0"][0] > 20 * max(mse["eps"][0], mse["v"][0]),
}
for claim, holds in claims.items():
    print(f"{claim}: {holds}")
    assert holds, claim

# %% [markdown]
# Each target is bad where its weight is small, as promised. At $t = 1000$ the $\epsilon$ network's small error is divided
# by $\alpha_T = 0.006$. At $t = 1$ the $x_0$ network has to copy its input to two digits, through all its layers. The others
# have a wire for that, their formula: $\hat x_0$ is $x_t$ plus an output times $\sigma_1 = 0.01$.
#
# Look at it. Left the noisy cloud, middle the exact $\hat x_0$, right the learnt one.

# %%
cloud_x0, cloud_y, cloud_eps = x0[:1000], y[:1000], torch.randn(1000, 2, generator=seed(17))


@torch.no_grad()
def draw(t, target):
    x_t = td.q_sample(schedule, cloud_x0, t, noise=cloud_eps)
    views = (x_t, exact(x_t, t), learnt[target](x_t, t))
    return plot.beside(*(plot.cloud(view, cloud_y, limit=1.6, size=200) for view in views))


widgets.explore(
    draw,
    t=[*range(1, 20, 3), *range(20, T + 1, 20)],
    target=list(learnt),
    start={"t": 100},
    play="t",
    title="denoised",
    alt="Three clouds side by side: noisy points, what the exact denoiser makes of them, what the learnt one makes of them.",
)

# %%
plot.strip(
    {f"{target}, t = {t}": draw(t, target) for target in learnt for t in (1, 60, 300, 1000)},
    columns=4,
    alt="Noisy, exact and learnt clouds for three targets at t = 1, 60, 300, 1000. Exact and learnt look alike, with two "
    "exceptions: x0 at t = 1 has squashed islands, and eps at t = 1000 flies apart while the exact points sit in one spot.",
)

# %% [markdown]
# At $t = 1000$ the exact answer is nearly one point: the mean of all data. It is the only honest answer when nothing
# can be seen. The $\epsilon$ network answers with fireworks. Samplers forgive it, because they multiply $\hat x_0$ by a small
# $\alpha_s$ there.
#
# ## 10. Does it sample?
#
# Lessons 03 to 07 are about sampling. Here we borrow the best sampler from the end of that road: 25 steps of
# DPM-Solver++. The **energy distance** compares two clouds,
#
# $$2\,\mathbb E|X-Y| - \mathbb E|X-X'| - \mathbb E|Y-Y'| ,$$
#
# 0 for equal distributions. Two *real* sets of 2000 points are not identical either; their distance scatters around 0. The
# size of that scatter is the **floor**: below it nothing can be told apart. We take root mean squares over 8 seeds.

# %%
n, seeds = 2000, range(8)


def rms(distances):
    return math.sqrt(sum(d**2 for d in distances) / len(distances))


def generate(denoiser, i):
    return td.sample(denoiser, (n, 2), steps=25, grid=td.uniform_log_snr, generator=seed(300 + i))


real = [world.sample(n, seed(100 + i)) for i in seeds]
floor = rms([energy_distance(real[i], world.sample(n, seed(200 + i))) for i in seeds])
ratio = {
    name: rms([energy_distance(real[i], generate(denoiser, i)) for i in seeds]) / floor
    for name, denoiser in {"exact": exact, **learnt}.items()
}

print(f"two real sets of {n}: energy distance 0 +- {floor:.5f}, the floor")
for name, limit in {"exact": 2, "v": 2, "eps": 3}.items():
    print(f"{name:5s} samples within {limit}x of the floor: {ratio[name] < limit}")
    assert ratio[name] < limit, ratio
print(f"x0    samples within 2x of the floor: {ratio['x0'] < 2}")
assert ratio["x0"] > 2, ratio
plot.clouds(
    {"real": real[0], **{name: generate(denoiser, 0) for name, denoiser in learnt.items()}},
    limit=1.2,
    alt="Real points and samples of three learnt denoisers: eps and v give the three islands, x0 three squashed ones "
    "joined by bridges of stray points.",
)

# %% [markdown]
# The $v$ network cannot be told from real data with 2000 points. The $\epsilon$ network comes close: its error at high noise
# shifts a few points from island to island. The $x_0$ network is found out: its islands are squashed, with bridges
# between them. The last steps happen at low noise, where it never had to be good.
#
# ## 11. Bits per dimension
#
# How good is the model as a *density*? The bound $L$ says how many nats a point costs. Divide by $d\log 2$ and you have
# bits per dimension. For continuous data this may be negative: a density can exceed 1. Here the truth $-\log p(x_0)$ is
# known, so we see the bound from both sides:
#
# $$-\log p(x_0) \;\underset{\text{finite } T}{\le}\; L(\text{exact}) \;\underset{\text{network}}{\le}\; L(\text{learnt}) .$$
#
# **Predict.** Which of the two gaps is larger at $T = 1000$? And how does the first one change with $T$?

# %%
points = fresh[:2000]
truth = td.bits_per_dim(-world.log_prob(points), points)


def gap(nats):
    """Bits per dimension above the truth, averaged over the points."""
    return (td.bits_per_dim(nats, points) - truth).mean().item()


print(f"truth: {truth.mean():.2f} bits/dim")
for steps in (10, 100, 1000):
    nats = td.variational_bound(world.denoiser(td.linear(steps)), points, generator=seed(18))
    print(f"exact denoiser, T = {steps:4d}: the bound is above it by {gap(nats):.1f}")
    assert gap(nats) > 0.4

# `nats` now holds T = 1000; the learnt ones see the same noise
excess = {name: gap(td.variational_bound(learnt[name], points, generator=seed(18))) - gap(nats) for name in ("v", "x0")}
print(f"learnt v,  T = 1000: less than 0.2 above the exact one: {excess['v'] < 0.2}")
print(f"learnt x0, T = 1000: more than 3 above the exact one: {excess['x0'] > 3}")
assert -0.02 < excess["v"] < 0.2
assert excess["x0"] > 3

# %% [markdown]
# The $v$ network is nearly perfect and costs next to nothing. The $x_0$ network pays dearly: by Pythagoras, the price is
# $\sum_t \frac12\Delta\mathrm{SNR}\cdot$ the error that we plotted in section 9, and its error sits where SNR is huge.
#
# Still the bound is 0.6 bits from the truth, even with the *exact* denoiser. Who is to blame?
#
# The model's steps. They have variance $\tilde\beta$, as if $\hat x_0$ were the truth. But we do not know $x_0$, and not
# knowing makes $q(x_{t-1}|x_t)$ wider. How wide? At low noise the data look flat. Seen from close by, every smooth density
# is. If $q(x_{t-1})$ is flat, Bayes' naive rule from section 1 leaves $q(x_{t-1}|x_t) \propto q(x_t|x_{t-1})$: variance
# $\beta$. So let us give the model's steps variance $\beta$. The KL of section 2 then reads
#
# $$L^{\beta}_{t-1} = \frac{\tilde\beta}{\beta}\,L_{t-1} + \frac d2\left[\log\frac{\beta}{\tilde\beta} + \frac{\tilde\beta}{\beta} - 1\right].$$


# %%
@torch.no_grad()
def bound_with_beta(denoiser, x0, generator):
    """`bound` for steps of variance beta_t: (B,), and how much lower each term is than with beta-tilde: (T+1,)."""
    abar = schedule.alpha_bar
    total = kl(abar[T].sqrt() * x0, 1 - abar[T], 0, one)
    saved = torch.zeros(T + 1, dtype=torch.float64)
    for t in range(T, 1, -1):
        x0_hat = denoiser(td.q_sample(schedule, x0, t, generator=generator), t)
        r = (1 - abar[t - 1]) / (1 - abar[t])  # beta-tilde / beta
        L_t = (snr[t - 1] - snr[t]) / 2 * ((x0 - x0_hat) ** 2).sum(1)
        L_beta = r * L_t + x0.shape[1] / 2 * (r - 1 - r.log())
        total, saved[t] = total + L_beta, (L_t - L_beta).mean()
    x0_hat = denoiser(td.q_sample(schedule, x0, 1, generator=generator), 1)
    return total - log_normal(x0, x0_hat, 1 / snr[1]), saved  # L_0 as before


with_beta, saved = bound_with_beta(exact, points, seed(18))
print(f"with beta the exact denoiser's bound is within 0.1 bits of the truth: {abs(gap(with_beta)) < 0.1}")
print(f"share of the gain from t <= 10: above 0.8: {(saved[:11].sum() / saved.sum()).item() > 0.8}")
assert abs(gap(with_beta)) < 0.1
assert saved[:11].sum() > 0.8 * saved.sum()

# %% [markdown]
# The gap is gone, to within the noise of our estimate. Nearly all of it sat in the last ten of a thousand steps, where
# $\tilde\beta$ and $\beta$ differ: $\tilde\beta_2 \approx \beta_2/2$. So which one should a sampler use? That is where lesson
# 03 begins. (Learning the variance is the idea of Nichol & Dhariwal 2021.)
#
# ## 12. Is this a VAE?
#
# Almost. A variational autoencoder bounds the likelihood by the same Jensen step, with $z$ in place of $x_{1:T}$.
#
# | | VAE | diffusion |
# | --- | --- | --- |
# | encoder $q$ | a network, trained | fixed: add noise |
# | latent | one, usually smaller than $x$ | $T$ of them, each as large as $x$ |
# | prior term, our $L_T$ | fights with the reconstruction; may win ("posterior collapse") | a constant, nearly 0 |
# | decoder | one jump from $z$ to $x$: often blurry | $T$ small steps, one shared network |
# | training step | the whole bound | one random term of it |
#
# The blur has a reason. One jump must answer with an average over everything that $z$ leaves open. A small step leaves
# little open, so a Gaussian describes it well. Lesson 09 uses both: a VAE to make pictures small, diffusion inside it.

# %%
L_T = kl(schedule.alpha_bar[T].sqrt() * points, 1 - schedule.alpha_bar[T], 0, one).mean()
print(f"L_T below 0.0001 nats: {L_T.item() < 1e-4}")
assert L_T < 1e-4

# %% [markdown]
# ## If you see this instead
#
# | symptom | then |
# | --- | --- |
# | the loss stays at 1 | the network ignores its input, or the optimiser has other weights |
# | the loss falls well below the exact denoiser's | $\epsilon$ leaks in: did you pass $x_t$, or something computed from $\epsilon$? |
# | the loss is fine, samples are one blob | sampler and training disagree on the target: $v$ read as $\epsilon$ |
# | `The size of tensor a (2) must match … b (512)` | $t$ of shape (B,) needs (B, 1): `schedule(t, like=x0)` |
# | with pictures no error, but nonsense | the same, when by bad luck B equals the width: it broadcasts silently |
# | the bound is infinite | the sum ran to $s = 0$ with $\tilde\beta = 0$; the last term is $L_0$ |
#
# ## Summary
#
# - Given $x_0$, a step back is Gaussian: complete the square.
# - $-\log p(x_0) \le L_T + \sum_t L_{t-1} + L_0$, and $L_{t-1} = \frac12\Delta\mathrm{SNR}\,\|x_0-\hat x_0\|^2$.
# - Drop the weight, write it in $\epsilon$: the simple loss. $\epsilon$, $x_0$ and $v$ are one loss with weights SNR, 1, SNR + 1.
# - A loss has a floor that is not zero. On a mixture we know it, and can measure the network's own error.
#
# **To think about.** (1) The best possible loss is 0.135 here. Would it be higher or lower if the islands were smaller?
# And for data that are a single point? (2) In training we draw $t$ uniformly. If you drew it from another distribution and
# did not correct for it, which weight would the loss have?
#
# **Exercise.** Write the simple loss for a network that predicts $v$: complete `v_loss`, like `simple_loss`, but for given
# `t` and `eps`. It should work at $t = 0$, too, where $\sigma = 0$. `schedule(t, like=x0)` gives $\alpha$ and $\sigma$ in a
# shape that multiplies `x0`. The cell below it checks your function and gives hints; with `hint=2` it tells more.


# %%
def v_loss(net, schedule, x0, t, eps): ...  # your code: make x_t, make v, ask net(x_t, t), compare


# %%
from tinydiff import check

check.v_loss(v_loss)

# %% [markdown]
# **Papers.** Ho, Jain & Abbeel 2020, *Denoising Diffusion Probabilistic Models*: the bound is eqs. 3 and 5, the posterior
# eqs. 6 and 7, the weighted loss eq. 12, the simple loss eq. 14 and algorithm 1. Sohl-Dickstein et al. 2015, *Deep
# Unsupervised Learning using Nonequilibrium Thermodynamics*: the bound first. Kingma et al. 2021, *Variational Diffusion
# Models*, eq. 13: the SNR form. Salimans & Ho 2022, *Progressive Distillation for Fast Sampling of Diffusion Models*,
# sec. 4 and app. D: $v$ and the weights. Nichol & Dhariwal 2021, *Improved Denoising Diffusion Probabilistic Models*,
# sec. 3: learned variances and where the bits are. Kingma & Welling 2014, *Auto-Encoding Variational Bayes*: the VAE.
#
# Next: [03, sampling](03_ddpm_sampling.ipynb).
