# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 09 · Latent diffusion: paint small, print large
#
# Most of a picture is not worth diffusing. A digit of 784 pixels is a few strokes on black. In this lesson one network
# learns to write pictures down in a quarter of the numbers, diffusion works on those, and every sampler of the last
# lessons runs three times faster without a changed line. Stable Diffusion is this idea, with more electricity.
#
# By the end of this lesson you can
#
# - derive the loss of a variational autoencoder (VAE), and say what the weight of its KL term *means*,
# - explain with a number why a decoder fed with plain noise draws scribbles,
# - build the whole machine yourself: train an autoencoder, then a denoiser of its latents,
# - say why latents are scaled to unit variance, and what it costs not to,
# - sample, guide and walk in a latent space, and know what you saved and what you lost.
#
# Slow cells: training three small autoencoders, about 10 seconds, and a denoiser, about 4. All others take a few.

# %%
import math
import time
from functools import partial
from itertools import pairwise

import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.distributions import Normal
from torch.distributions import kl_divergence as torch_kl

import tinydiff as td
from tinydiff import plot, widgets
from tinydiff.evaluate import load_reference, measure
from tinydiff.muon import Muon

torch.set_num_threads(1)  # pictures this small only wait for a second core
f64 = torch.float64


def seed(n):
    return torch.Generator().manual_seed(n)


def from_seed(n, build):
    """build(), with PyTorch's own random state taken from seed n and put back afterwards."""
    with torch.random.fork_rng([]):
        torch.set_rng_state(seed(n).get_state())
        return build()


# %% [markdown]
# ## 1. A picture, written down
#
# Two networks come with the library. An **encoder** turns a picture $x$ of 1×28×28 into a **latent** $z$ of 3×8×8: a
# tiny picture with three channels. A **decoder** turns latents back into pictures. For now we only use them.
#
# (MNIST may not be on your machine. So the digits of this section come from the shipped pixel model of lesson 00,
# which has learnt from the real ones. For an autoencoder they are as good.)
#
# **Predict.** 784 numbers go into 192. How well will the copies match?

# %%
autoencoder = td.load_autoencoder()
pixels, latents = td.load_pretrained("mnist"), td.load_pretrained("mnist-latent")
floor = load_reference().real(500).frechet  # what 500 real test digits reach
asked = torch.arange(500) % 10
x = td.sample(pixels, (500, 1, 28, 28), steps=10, y=asked, generator=seed(0)).clamp(-1, 1)

with torch.no_grad():
    mean = autoencoder.encode(x)  # one latent for each picture
    copies = autoencoder.decode(mean)
error = (copies - x).square().mean() / x.var()
print(f"pictures {tuple(x.shape[1:])}, latents {tuple(mean.shape[1:])}: {x[0].numel() / mean[0].numel():.0f} to 1")
print(f"the copies miss less than 2 percent of the variance: {error < 0.02}")
assert error < 0.02


def colours(z):
    """Latents as tiny pictures: three channels are red, green and blue."""
    return plot.grid((z / 3).clamp(-1, 1), columns=10, scale=7)


plot.strip(
    {
        "pictures": plot.grid(x[:20], columns=10, scale=2),
        "their latents, in false colours": colours(mean[:20]),
        "decoded again": plot.grid(copies[:20], columns=10, scale=2),
    },
    columns=3,
    alt="Twenty digits, their latents as 8 by 8 coloured mosaics in which the strokes can be made out on grey, and twenty "
    "decoded digits that look the same as the first.",
)

# %% [markdown]
# Hardly a difference. The latents even have a place for each part of the picture: the decoder is made of convolutions,
# so a coloured cell is a bit of stroke.
#
# ## 2. Naive: noise in, digits out?
#
# The decoder makes pictures from latents. So make up a latent! Which ones? The encoder really answers with a mean and
# a spread, and a latent *drawn* from its answer (`autoencoder.sample`) looks like this, over all pictures:

# %%
with torch.no_grad():
    z = autoencoder.sample(x, seed(1))
print(
    f"mean within 0.1 of 0: {z.mean().abs() < 0.1}, standard deviation within 0.05 of 1: {(z.std() - 1).abs() < 0.05}"
)
assert z.mean().abs() < 0.1
assert (z.std() - 1).abs() < 0.05

# %% [markdown]
# Mean 0, standard deviation 1. So draw $z \sim \mathcal N(0, I)$ and decode.
#
# **Predict.** Digits, half digits, or static?
#
# And since somebody will ask: perhaps the coordinates of $z$ are correlated, and $\mathcal N(0, I)$ is not. So we also try
# the Gaussian with the latents' own mean and covariance $C = LL^\top$: $z = \mu + L\,\epsilon$.

# %%
flat = z.flatten(1).double()
C = flat.T.cov() + 1e-4 * torch.eye(192, dtype=f64)
L = torch.linalg.cholesky(C)
eps = torch.randn(500, 192, generator=seed(2), dtype=f64)
guesses = {"N(0, I)": eps, "N(mean, C)": flat.mean(0) + eps @ L.T}
with torch.no_grad():
    drawn = {name: autoencoder.decode(g.reshape(-1, 3, 8, 8).float()) for name, g in guesses.items()}
floors = {name: measure(d).frechet / floor for name, d in drawn.items()}
for name, least in (("N(0, I)", 20), ("N(mean, C)", 10)):
    print(f"{name}: more than {least} times as far from real digits as real digits are: {floors[name] > least}")
    assert floors[name] > least, floors
print(f"the largest variance in any direction is above 3: {torch.linalg.eigvalsh(C)[-1] > 3}")
plot.strip(
    {f"z from {name}": plot.grid(d[:20], columns=10, scale=2) for name, d in drawn.items()},
    columns=2,
    alt="Twenty pictures decoded from each of two Gaussians: white scribbles that resemble no digit, with longer strokes and a "
    "few accidental digits for the second.",
)

# %% [markdown]
# Scribbles. (With 10,000 samples the first kind is at 293 times the floor: `benchmarks/README.md`.) The strokes are
# fine, for the decoder knows strokes. But nothing says which strokes go together. Each coordinate of $z$ alone
# looks like $\mathcal N(0,1)$. All of them together do not: they are correlated, and with the right correlations they are
# still no Gaussian.
#
# The law of all latents together, $q(z) = \mathrm{mean}_x\, q(z\mid x)$, is called the **aggregate posterior**. We must
# sample *that*. It is a complicated law in 192 dimensions of which we have only samples. Which tool do we know for that? But
# first: who made these latents, and could they not have been made $\mathcal N(0, I)$?
#
# ## 3. The bound, and what its weight means
#
# A story of how pictures come about: nature draws $z\sim p(z) = \mathcal N(0, I)$, decodes it, and adds noise of variance
# $k$ to each of the $D$ pixels: $p(x\mid z) = \mathcal N(\mathrm{dec}(z),\, k I)$. We want decoders under which our
# pictures are likely. But $p(x) = \int p(x\mid z)\,p(z)\,dz$ is an integral over 192 dimensions.
#
# The trick you know from lesson 02. For *any* $q(z\mid x)$,
#
# $$\log p(x) = \log \mathbb E_q\!\left[\frac{p(x\mid z)\,p(z)}{q(z\mid x)}\right] \ \ge\ \mathbb E_q\!\left[\log \frac{p(x\mid z)\,p(z)}{q(z\mid x)}\right]
# = \underbrace{\mathbb E_q[\log p(x\mid z)] - \mathrm{KL}\big(q(z\mid x)\,\|\,p(z)\big)}_{\text{ELBO}} .$$
#
# That is Jensen's inequality. How much is lost? Put $p(x\mid z)\,p(z) = p(x)\,p(z\mid x)$ into the right side:
#
# $$\text{ELBO} = \log p(x) - \mathrm{KL}\big(q(z\mid x)\,\|\,p(z\mid x)\big) .$$
#
# So the best $q$ is the true posterior, and the encoder learns to guess it. Now both terms for Gaussians. First,
# $\log\mathcal N(x;\, \mathrm{dec}(z), kI) = -\frac1{2k}|x-\mathrm{dec}(z)|^2 - \frac D2\log 2\pi k$. Multiply the ELBO by $-k/D$ and drop
# the constant:
#
# $$\boxed{\ \mathcal L = \frac1D\left(\tfrac12\,\mathbb E_q|x-\mathrm{dec}(z)|^2 + k\;\mathrm{KL}\right)\ }$$
#
# **The weight of the KL term is the noise variance that the decoder supposes in each pixel.** Nobody has to "balance"
# anything: $k = 1$ says "expect noise as strong as the ink", and $k = 0.02$ says "pixels are right to within 0.14".
#
# Second, the KL. One coordinate, $q = \mathcal N(m, v)$. Since $\mathbb E_q[z^2] = m^2 + v$ and $\mathbb E_q[(z-m)^2] = v$,
#
# $$\mathbb E_q[\log q - \log p] = \mathbb E_q\!\left[-\tfrac12\log v - \frac{(z-m)^2}{2v} + \frac{z^2}2\right]
# = \tfrac12\left(-\log v - 1 + m^2 + v\right),$$
#
# and for independent coordinates it is the sum. The encoder outputs $m$ and $\log v$, so that $v$ is positive whatever it says.
#
# Last, the expectation over $q$. Its parameters are what we train, so the gradient must pass *through* the draw. The
# trick is that of lesson 01, $q(x_t\mid x_0)$ in one line: $z = m + \sqrt v\,\epsilon$, with an $\epsilon$ that depends on nothing.


# %%
def kl_to_standard(mean, log_var):
    return 0.5 * (-log_var - 1 + mean**2 + log_var.exp()).flatten(1).sum(1)


def vae_loss(autoencoder, x0, kl, generator):
    mean, log_var = autoencoder.posterior(x0)
    eps = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
    z = mean + (log_var / 2).exp() * eps
    x = autoencoder.decoder(z)
    return (0.5 * (x0 - x).square().sum() + kl * kl_to_standard(mean, log_var).sum()) / x0.numel()


line = torch.linspace(-30, 30, 200_001, dtype=f64)  # the KL by brute force
for m, log_v in ((0.0, 0.0), (1.3, -2.0), (-0.4, 1.5)):
    m, log_v = torch.tensor([[m], [log_v]], dtype=f64)
    q, p = Normal(m, (log_v / 2).exp()), Normal(0.0, 1.0)
    integral = torch.trapezoid(q.log_prob(line).exp() * (q.log_prob(line) - p.log_prob(line)), line)
    ours = kl_to_standard(m[None], log_v[None])
    assert abs(ours.item() - integral.item()) < 1e-9
    print(f"KL of N({m.item():.1f}, {log_v.exp().item():.2f}): {ours.item():.4f}, by brute force {integral.item():.4f}")

small, k = from_seed(0, lambda: td.Autoencoder(width=8)).double(), 0.3
x0 = td.digits()[0][:5].double()
m, log_v = small.posterior(x0)
q = Normal(m, (log_v / 2).exp())
z0 = q.mean + q.stddev * torch.randn(m.shape, generator=seed(3), dtype=f64)
log_p = Normal(small.decoder(z0), math.sqrt(k)).log_prob(x0).sum((1, 2, 3))
elbo = log_p - torch_kl(q, Normal(0.0, 1.0)).sum((1, 2, 3))
constant = k / 2 * math.log(2 * math.pi * k)
loss = vae_loss(small, x0, k, seed(3))
assert torch.allclose(loss, -k / 64 * elbo.mean() - constant)
assert torch.allclose(loss, td.autoencoder_loss(small, x0, kl=k, generator=seed(3)))
assert torch.allclose(kl_to_standard(m, log_v), td.kl_divergence(m, log_v))
print("the loss is -k/D times the bound, but for the constant: True")
print("ours agrees with td.autoencoder_loss and td.kl_divergence: True")

# %% [markdown]
# ## 4. Train one
#
# On real digits: scikit-learn's, 1×8×8, which become latents of 3×3×3. Here is the network, layer by layer. The first
# layer of `td.Autoencoder` folds patches into channels, as in lesson 04; the encoder's last one has twice the latent
# channels, means and log-variances.

# %%
digits, labels = td.digits()
for part, h in (("encoder", torch.zeros(1, 1, 8, 8)), ("decoder", torch.zeros(1, 3, 3, 3))):
    shapes = [str(tuple(h.shape[1:]))]
    for layer in getattr(td.Autoencoder(width=8), part):
        h = layer(h)
        if not isinstance(layer, nn.GroupNorm | nn.SiLU):
            shapes.append(f"{type(layer).__name__} {tuple(h.shape[1:])}")
    print(f"{part}: " + " > ".join(shapes))


def train_by_hand(autoencoder, x, kl, steps, generator, lr=5e-3):
    """Train the autoencoder, in place; the average of its weights is returned."""
    optimiser = Muon(autoencoder.parameters(), lr, betas=(0.9, 0.99), weight_decay=0.01)
    ema = td.EMA(autoencoder, 0.98)
    for n in range(steps):
        x0 = x[torch.randint(len(x), (64,), generator=generator)]
        done = (n + 0.5) / steps
        for group in optimiser.param_groups:  # up in the first twentieth, then down along a cosine
            group["lr"] = lr * min(1, done / 0.05) * (1 + math.cos(math.pi * done)) / 2
        loss = vae_loss(autoencoder, x0, kl, generator)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(autoencoder.parameters(), 1.0)
        optimiser.step()
        ema.update(autoencoder)
    return ema.denoiser


def train(autoencoder, x, kl, steps, generator, lr=5e-3):
    """The same by the library."""
    ema, loss = td.EMA(autoencoder, 0.98), partial(td.autoencoder_loss, kl=kl)
    batches = td.batches(x, size=64, generator=generator)
    options = {"steps": steps, "lr": lr, "generator": generator, "dtype": x.dtype}
    for _ in td.train(autoencoder, batches, ema=ema, loss=loss, **options):
        pass
    return ema.denoiser


ends = []
for loop in (train_by_hand, train):
    fresh = from_seed(0, lambda: td.Autoencoder(width=8)).double()
    ends.append(loop(fresh, digits.double(), 0.02, 15, seed(4)))
with torch.no_grad():
    ours, theirs = (trained.encode(digits[:50].double()) for trained in ends)
assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)
print("our loop agrees with td.train(..., loss=td.autoencoder_loss): True")

# %% [markdown]
# Now three of them, with $k = 0.02$, $0.2$ and $1$. In each we look at copies (encode, decode) and at inventions (decode
# $z\sim\mathcal N(0,I)$).
#
# **Predict.** The larger the weight, the closer each $q(z\mid x)$ must stay to $\mathcal N(0, I)$. So inventions should
# get better. What about the copies? And what is left at $k = 1$?

# %%
vaes, told = {}, {}
noise = torch.randn(10, 3, 3, 3, generator=seed(5))
for k in (0.02, 0.2, 1.0):
    fresh = from_seed(0, lambda: td.Autoencoder(width=8))
    vaes[k] = train(fresh, digits, k, 300, seed(6)).set_scale(digits)
    with torch.no_grad():
        m, log_v = vaes[k].posterior(digits)
        error = (vaes[k].decode(vaes[k].encode(digits)) - digits).square().mean() / digits.var()
    told[k] = error.item(), td.kl_divergence(m, log_v).mean().item()
claims = {
    "k = 0.02: the copies miss less than a fifth of the variance": told[0.02][0] < 0.2,
    "k = 0.02: more than 20 nats for a digit": told[0.02][1] > 20,
    "k = 0.2: between 3 and 12 nats": 3 < told[0.2][1] < 12,
    "k = 1: less than 2 nats, and the copies miss more than a third": told[1.0][1] < 2 and told[1.0][0] > 1 / 3,
}
for claim, holds in claims.items():
    print(f"{claim}: {holds}")
    assert holds, told


@torch.no_grad()
def rows(vae):
    copied, invented = vae.decode(vae.encode(digits[:10])), vae.decode(noise / vae.scale)
    return plot.grid(torch.cat([copied, invented]), columns=10, scale=5, gap=2)


real = plot.grid(digits[:20], columns=10, scale=5, gap=2)
plot.strip(
    {"real digits": real} | {f"k = {k:g}: copies above, inventions below": rows(vae) for k, vae in vaes.items()},
    columns=2,
    alt="Real digits of 8 by 8 pixels, then ten copies and ten inventions for three weights: at 0.02 good copies and "
    "broken inventions, at 0.2 soft copies and soft digit-like inventions, at 1 the same grey blur everywhere.",
)

# %% [markdown]
# There is no good weight. With small $k$ copies are sharp and inventions are broken. With $k = 0.2$ both are soft. At
# $k = 1$ the decoder expects so much noise that a digit is not worth mentioning: the KL is nearly zero, $z$ says
# nothing about $x$, and the best answer is the mean of all digits. That is **posterior collapse**. (For a *linear* VAE one
# can prove when a direction is given up: when the variance of the data along it is below $k$, cf. Lucas et al. 2019. Of 64
# directions, the digits have this many left. At $k = 1$ our short training missed even those; a wider network, trained for
# longer, found 0.6 nats for them.)

# %%
variances = torch.linalg.eigvalsh(digits.flatten(1).double().T.cov())
for k in vaes:
    print(f"directions of the digits with variance above {k:g}: {(variances > k).sum().item()}")

# %% [markdown]
# ## 5. Why the noise misses, in nats
#
# Why must a sharp autoencoder have broken inventions? Average the KL over $N$ pictures, and split off the aggregate $q(z) =
# \frac1N\sum_x q(z\mid x)$ (Hoffman & Johnson 2016):
#
# $$\mathrm{mean}_x\,\mathrm{KL}\big(q(z\mid x)\|p(z)\big) = \underbrace{\mathrm{mean}_x\,\mathbb E_q\!\left[\log\frac{q(z\mid x)}{q(z)}\right]}_{\text{what } z \text{ tells of } x}
# + \underbrace{\mathrm{KL}\big(q(z)\,\|\,p(z)\big)}_{\text{how far the latents are from noise}} .$$
#
# (Write $\log\frac{q(z|x)}{p(z)} = \log\frac{q(z|x)}{q(z)} + \log\frac{q(z)}{p(z)}$ and average.) In the first term $q(z) \ge \frac1N
# q(z\mid x)$, since $q(z)$ is a mean of such terms. So the first term is **at most $\log N$**: one cannot tell more of a
# picture than which of the $N$ it is. All the rest of the KL is distance from noise.

# %%
with torch.no_grad():
    nats = td.kl_divergence(*autoencoder.posterior(x)).mean().item()
least = nats - math.log(len(x))
print(f"shipped autoencoder, kl = {autoencoder.info['kl']}: more than 100 nats for a picture: {nats > 100}")
print(f"at most log {len(x)} = {math.log(len(x)):.1f} of them can tell pictures apart")
print(f"so KL(aggregate || N(0, I)) is more than 90 nats: {least > 90}")
assert least > 90

# %% [markdown]
# For the 10,000 MNIST test digits it is 131 nats a picture, and $\log 10{,}000 = 9.2$. Over 120 nats lie between
# the latents and $\mathcal N(0, I)$: that is how much shorter a code for latents could be that knew their true law. The decoder
# has been told a fairy tale about its input, and the sharper the pictures, the longer the tale.
#
# So stop demanding that latents *be* noise. Keep $k$ small, for sharp copies and a cloud without holes. And let
# somebody who is good at it learn the law $q(z)$: a diffusion model. (Vahdat et al. 2021 train both at once: their bound has
# the denoiser's law in place of $p(z)$ in the KL. Rombach et al. 2022 train one after the other, as we do.)
#
# ## 6. Diffusion in the latents
#
# The naive thought: now we need a latent sampler, a latent loss, a latent guidance. We need nothing. A denoiser is a function
# of `(x, t)`. It does not ask what `x` shows. So: draw latents with the encoder, flatten them to points of 27 numbers,
# and train the network of lesson 02 with the loss of lesson 02.

# %%
mine = vaes[0.02]


def latent_batches(generator):
    for x0, y in td.batches(digits, labels, size=256, generator=generator):
        with torch.no_grad():
            z0 = mine.sample(x0, generator)  # z ~ q(z | x), divided by its standard deviation
        yield z0.flatten(1), y


def learn():
    denoiser = td.VDenoiser(td.MLP(dim=27, hidden=128, classes=10), td.cosine())
    ema, generator = td.EMA(denoiser, 0.99), seed(7)
    for _ in td.train(denoiser, latent_batches(generator), steps=600, ema=ema, generator=generator):
        pass
    return ema.denoiser


mine_denoiser = from_seed(8, learn)
wanted = torch.arange(500) % 10
with torch.no_grad():
    z0 = td.sample(mine_denoiser, (500, 27), y=wanted, generator=seed(9))
    made = mine.decode(z0.reshape(-1, 3, 3, 3))
    invented = mine.decode(torch.randn(500, 3, 3, 3, generator=seed(9)))
    decoded = mine.decode(mine.encode(digits))
judge = KNeighborsClassifier(5).fit(decoded.flatten(1), labels)
right = torch.tensor(judge.predict(made.flatten(1)) == wanted.numpy()).double().mean().item()


def off(pictures):
    """Median distance, per pixel, to the nearest real digit as the decoder would write it."""
    return torch.cdist(pictures.flatten(1), decoded.flatten(1)).min(1).values.median().item() / 8


print(f"the digit asked for, in more than 80 percent: {right > 0.8}")
print(f"nearer to real digits than inventions from N(0, I) by a quarter or more: {off(made) < 0.75 * off(invented)}")
assert right > 0.8
assert off(made) < 0.75 * off(invented), (off(made), off(invented))
frames = {"real": digits[:20], "real, copied": decoded[:20], "decoded from N(0, I)": invented, "latent diffusion": made}
plot.strip(
    {name: plot.grid(f[:20], columns=10, scale=5, gap=2) for name, f in frames.items()},
    columns=2,
    alt="Four panels of twenty digits of 8 by 8 pixels: real, copied, broken shapes decoded from noise, and latent diffusion "
    "samples that read 0 to 9 twice.",
)

# %% [markdown]
# Same decoder, other latents. That is all.
#
# One line deserves a second look: `mine.sample(x0)`, not `encode`. The denoiser should learn the latents that the decoder was
# trained to read, and those are draws from $q$.
#
# ## 7. Why unit variance
#
# `sample` divides by `scale`, the latents' standard deviation. Our encoder has a KL term that keeps it near 1 anyway.
# Stable Diffusion's KL weight is so tiny that its latents have a standard deviation of about 5.5, and its code carries
# the famous factor $0.18215 = 1/5.49$. What if we forgot it?
#
# Nothing is *wrong* then. A denoiser is correct for data of any size. But the schedule was made for unit variance: $x_t =
# \alpha\,c\,x_0 + \sigma\epsilon$ with data $c$ times too large has the signal-to-noise ratio of a time with $\lambda$ larger by
# $\log c$. With large $c$ the data shout over the noise nearly until $T$, and the decisions (which digit?) are squeezed into
# the last few times before it. With small $c$ they are squeezed against $t = 0$.
#
# **Predict.** Take a world whose denoiser is exact, and 20 steps. How does the solver's error depend on $c$?

# %%
schedule = td.cosine()
points = digits.flatten(1).double() / digits.std()
means = torch.stack([points[labels == digit].mean(0) for digit in range(10)])
start = torch.randn(40, 64, generator=seed(10), dtype=f64)


def solver_error(c, steps):
    """Of DPM-Solver++(2M), in units of the data."""
    exact = td.GaussianMixture(c * means, stds=c / 3).denoiser(schedule)
    few, many = (td.final(td.dpm_solver_pp(exact, start, td.uniform_angle(schedule, n))) for n in (steps, 400))
    return ((few - many).square().mean(1).sqrt().mean() / c).item()


scales = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
curve = {f"{steps} steps": [solver_error(c, steps) for c in scales] for steps in (10, 20)}
for i, c in ((1, 0.2), (5, 5.0)):
    worse = curve["20 steps"][i] / curve["20 steps"][3]
    print(f"standard deviation {c:g} in place of 1: at least 3 times the error with 20 steps: {worse > 3}")
    assert worse > 3, curve
plot.curves(
    scales,
    curve,
    xscale="log",
    yscale="log",
    xticks=scales,
    xticklabels=[f"{c:g}" for c in scales],
    xlabel="standard deviation of the data",
    ylabel="error of the solver",
    alt="Error of DPM-Solver++ with 10 and with 20 steps against the data's standard deviation from 0.1 to 10, log-log: two "
    "valleys with their lowest points near 1.",
)

# %% [markdown]
# A valley, and the bottom is near 1. The network suffers, too: inputs of another size than its layers expect, and most
# training times spent where there is nothing left to decide. All of it is repaired by one division. (Or by moving the
# schedule. One division is easier.)
#
# ## 8. The big one
#
# Now the shipped denoiser of 3×8×8 latents. It is the same U-Net as for pixels, told that pictures have three channels and 8×8
# points. Here is a latent sampler in full, DDIM:


# %%
@torch.no_grad()
def latent_ddim(autoencoder, denoiser, z, times, y):
    for t, s in pairwise(times):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.schedule(t, like=z), denoiser.schedule(s, like=z)
        z0_hat = denoiser(z, t, y=y)
        eps_hat = (z - alpha_t * z0_hat) / sigma_t
        z = alpha_s * z0_hat + sigma_s * eps_hat
    return autoencoder.decode(z)  # the only new line


shape = (3, 8, 8)
ours = latent_ddim(
    autoencoder,
    latents,
    torch.randn(20, *shape, generator=seed(11)),
    td.uniform_angle(latents.schedule, 10),
    asked[:20],
)
with torch.no_grad():
    theirs = autoencoder.decode(
        td.sample(latents, (20, *shape), steps=10, sampler=td.ddim, y=asked[:20], generator=seed(11))
    )
assert torch.allclose(ours, theirs, atol=1e-2)
print("our loop agrees with decode(sample(...)): True")

# %% [markdown]
# So any sampler will do. And any guide: `td.ClassifierFree(latents, 1.5)` is a denoiser as well. (Not the thresholds of
# lesson 08. Pixels have a range, latents have none.)
#
# **Predict.** DDIM and DPM-Solver++ with 5 steps, from the same noise: at which of them do the digits look more broken?


# %%
@torch.no_grad()
def paint(denoiser, sampler, steps, n=500):
    options = {"steps": steps, "sampler": sampler, "y": asked[:n], "generator": seed(12)}
    return autoencoder.decode(td.sample(denoiser, (n, *shape), **options))


trials = {
    "DDIM, 5 steps": (latents, td.ddim, 5),
    "DPM-Solver++, 5 steps": (latents, td.dpm_solver_pp, 5),
    "DPM-Solver++, 10 steps": (latents, td.dpm_solver_pp, 10),
    "the same, guided, s = 2": (td.ClassifierFree(latents, 2.0), td.dpm_solver_pp, 10),
}
painted = {name: paint(*trial) for name, trial in trials.items()}
quality = {name: measure(pictures, asked) for name, pictures in painted.items()}
truth = td.sample(latents, (50, *shape), steps=100, y=asked[:50], generator=seed(12))
strayed = {}
for name, sampler in (("DDIM", td.ddim), ("DPM-Solver++", td.dpm_solver_pp)):
    z0 = td.sample(latents, (50, *shape), steps=10, sampler=sampler, y=asked[:50], generator=seed(12))
    strayed[name] = (z0 - truth).square().mean().sqrt().item()
ten, guided = quality["DPM-Solver++, 10 steps"], quality["the same, guided, s = 2"]
claims = {
    "latent diffusion, 10 steps: within twice the distance of real digits": ten.frechet < 2 * floor,
    "at least 10 times nearer than the same decoder fed with N(0, I)": ten.frechet * 10 < floors["N(0, I)"] * floor,
    "more than 90 percent are the digit asked for": ten.agreement > 0.9,
    "more than 97 percent with guidance": guided.agreement > 0.97,
    "guidance takes away diversity: its recall is lower": guided.recall < ten.recall,
    "10 steps: DDIM ends at least twice as far from the ODE's solution": strayed["DDIM"] > 2 * strayed["DPM-Solver++"],
}
for claim, holds in claims.items():
    print(f"{claim}: {holds}")
    assert holds, (claim, quality, floors)
plot.strip(
    {name: plot.grid(pictures[:20], columns=10, scale=2) for name, pictures in painted.items()},
    columns=2,
    alt="Twenty digits for each of four trials, all readable and in order 0 to 9: DDIM and DPM-Solver++ hardly differ, the "
    "guided ones are the clearest.",
)

# %% [markdown]
# Digits, from the very decoder that drew the scribbles of section 2. If you expected a shambles at 5 steps: so did we. DDIM
# does stray from the solution of the ODE, three times as far as DPM-Solver++ with the same calls, just as in lesson 07. But
# digits are a friendly target: where it ends is a digit as well, only not quite the one that the noise stood for.
#
# ## 9. What it costs, what it saves
#
# The U-Net's work goes with the number of points: 14×14 patches of pixels there, 8×8 latents here. The decoder runs once per
# picture, not once per step. We use seconds of this process's own time, and the better of two runs each.


# %%
def clock(run):
    """Seconds of this process for run(), the better of two."""
    seconds = []
    for _ in range(2):
        begin = time.process_time()
        run()
        seconds.append(time.process_time() - begin)
    return min(seconds)


n = 100
in_pixels = clock(lambda: td.sample(pixels, (n, 1, 28, 28), steps=10, y=asked[:n], generator=seed(13)))
in_latents = clock(lambda: paint(latents, td.dpm_solver_pp, 10, n))
print(f"numbers in a sample: {28 * 28} pixels, {math.prod(shape)} latents")
print(f"latent sampling, decoding included, at least 1.5 times faster: {in_pixels > 1.5 * in_latents}")
assert in_pixels > 1.5 * in_latents, (in_pixels, in_latents)

# %% [markdown]
# On our machine it is nearly three times. The full table, with 10,000 samples each, is in `benchmarks/README.md`. In short:
#
# | DPM-Solver++, 20 steps | seconds for 1,000, one core | distance to real digits, in floors |
# | --- | --- | --- |
# | in pixels | 9.4 | 1.5 |
# | in latents | 3.2 | 1.9 |
# | no diffusion: shipped decoder of $\mathcal N(0,I)$ | 0.2 | 293 |
# | no diffusion: plain VAE, $k = 1$, decoder of $\mathcal N(0,I)$ | 0.2 | 92 |
#
# So the pixels are still ahead in quality. (When this was measured, the latent denoiser had seen a fifth as many
# digits as the pixels' one, so it is not the last word.) Digits of 28×28 hardly need compression; a photograph of 512×512 becomes 64×64, and 48 times fewer numbers. There
# latents decide whether a laptop can do it at all. And the decoder sets a limit: what it cannot draw, no denoiser
# can. Ours writes copies of test digits at 1.1 floors, so the limit is far away.
#
# ## 10. A walk between digits
#
# Mix two pictures half and half, and you get a double exposure. Mix their *latents*, and the strokes move. (We mix means,
# `encode`, along a straight line. Noise is mixed along great circles, as in lesson 05, since a straight mean of two noises
# is too small.) But halfway the mix is no digit's latent, and the decoder does what it can: faded, broken strokes.
#
# A denoiser knows what latents look like. So add noise up to a time $t$, and remove it again:
#
# $$z = (1-w)\,z_A + w\,z_B, \qquad z_t = \alpha_t z + \sigma_t\epsilon, \qquad \text{then sample from } t \text{ down to } 0 .$$
#
# Small $t$ keeps the picture and closes small gaps. Large $t$ keeps little, and invents. ($t = 0$ is the mix itself.) The
# rows: digits A, mixed pixels, decoded mix of latents, mended mix, digits B.

# %%
pairs = 10 + torch.tensor([[7, 2], [0, 5], [3, 9], [4, 1], [8, 3], [6, 0], [1, 7], [9, 4]]).T
A, B = x[pairs[0]], x[pairs[1]]
mixes, levels = [w / 10 for w in range(11)], (0, 200, 400, 600, 800)
eps = torch.randn(8, *shape, generator=seed(14))


@torch.no_grad()
def mend(z, t, eps):
    if t == 0:
        return z
    times = torch.linspace(t, 0, 9, dtype=f64)
    return td.final(td.dpm_solver_pp(latents, td.q_sample(latents.schedule, z, t, eps), times))


with torch.no_grad():
    line = [torch.lerp(autoencoder.encode(A), autoencoder.encode(B), w) for w in mixes]
    decoded_line = autoencoder.decode(torch.cat(line)).split(8)
    mended = {t: autoencoder.decode(mend(torch.cat(line), t, eps.repeat(11, 1, 1, 1))).split(8) for t in levels}


def draw(mix, t):
    i = mixes.index(mix)
    rows = [A, torch.lerp(A, B, mix), decoded_line[i], mended[t][i], B]
    return plot.grid(torch.cat(rows), columns=8, scale=2, gap=3)


widgets.explore(
    draw,
    mix=mixes,
    t=levels,
    start={"mix": 0.5, "t": 200},
    play="mix",
    title="walk",
    alt="Five rows of eight digits: A, mixed pixels, decoded mixed latents, mended, B. Mixed pixels are double exposures; "
    "mixed latents are one shape, broken halfway; mended ones have fewer gaps, and from t = 400 on are often other digits.",
)

# %%
plot.strip(
    {f"mix = {mix:g}, t = {t}": draw(mix, t) for t in (200, 800) for mix in (0.3, 0.5, 0.7)},
    columns=3,
    alt="Six frames of the walk. With t = 200 the fourth row is the third with some of its gaps closed, though halfway most "
    "shapes stay broken; with t = 800 it shows whole strokes, but hardly a digit that is A or B.",
)

# %% [markdown]
# With numbers, on 250 pairs. Halfway: how much is grey (between black and white, as in double exposures), and how sure is the
# shipped classifier of what it sees? Near A, at mix 0.3: how many are still seen as one of their two digits?

# %%
judge = td.load_classifier()
with torch.no_grad():
    ends = autoencoder.encode(x[:250]), autoencoder.encode(x[250:].roll(3, 0))
    middle, near = torch.lerp(*ends, 0.5), torch.lerp(*ends, 0.3)
    grains = torch.randn(middle.shape, generator=seed(15))
    halfway = {"real": x[:250], "pixels": (x[:250] + x[250:].roll(3, 0)) / 2, "latents": autoencoder.decode(middle)}
    halfway["mended"] = autoencoder.decode(mend(middle, 200, grains))
    seen = {t: judge(autoencoder.decode(mend(near, t, grains)).clamp(-1, 1)).argmax(1) for t in levels}
grey = {name: (p.abs() < 0.6).double().mean().item() for name, p in halfway.items()}
sure = {name: judge(p.clamp(-1, 1)).softmax(1).max(1).values.mean().item() for name, p in halfway.items()}
either = torch.stack([asked[:250], asked[250:].roll(3)])
loyal = {t: (k == either).any(0).double().mean().item() for t, k in seen.items()}
claims = {
    "mixed pixels are grey at least twice as often as mixed latents": grey["pixels"] > 2 * grey["latents"],
    "the classifier is surer of latents mended with t = 200 than of mixed ones": sure["mended"] > sure["latents"],
    "near A more than 85 % are one of their two digits, mended with t = 200, too": min(loyal[0], loyal[200]) > 0.85,
    "with t = 400 fewer": loyal[400] < loyal[200] - 0.03,
    "with t = 600 fewer than 70 %, with t = 800 fewer than 45 %": loyal[600] < 0.7 and loyal[800] < 0.45,
}
for claim, holds in claims.items():
    print(f"{claim}: {holds}")
    assert holds, (claim, grey, sure, loyal)

# %% [markdown]
# The decoder alone gives a *smooth* path. A little noise, and the denoiser takes it a step *back towards* the digits. More
# noise ends on a digit as well, but on one of the denoiser's own. What nobody can do: be both. Between a 7 and a 2 there is
# no digit.
#
# ## If you see this instead
#
# | symptom | then |
# | --- | --- |
# | all decoded pictures alike, KL near 0 | posterior collapse: the weight is above the variances that matter, section 4 |
# | KL explodes, pictures from latents are static | no KL term at all, or `log_var` taken for a variance |
# | sharp copies, broken samples | you decoded $\mathcal N(0,I)$; sample a denoiser: section 2 |
# | latent samples washed out, or garish | encoded with one scale, decoded with another: section 7 |
# | the blur of a VAE although the denoiser is good | the decoder is the limit: decode encoded real data and look |
# | guided latents explode | a threshold or a clip to $[-1, 1]$ on latents: lesson 08, section 7 |
# | trained on `encode`, samples too smooth | the decoder learnt on `sample` |
#
# ## Summary
#
# - An autoencoder's loss is a bound: $\frac12|x-\hat x|^2 + k\,\mathrm{KL}$, and $k$ is the pixel noise the decoder supposes.
# - Sharp copies need a small $k$, and then the latents' joint law is a hundred nats from $\mathcal N(0,I)$, although each
#   coordinate looks standard. So a decoder fed with noise scribbles.
# - A diffusion model learns that law. No new sampler, no new loss: encode before, decode after.
# - Divide latents by their standard deviation: schedules are made for 1.
# - Latents save time by their size; the decoder sets the limit of quality. Never threshold latents.
#
# **To think about.** (1) Section 5 bounds what $z$ tells of $x$ by $\log N$. Which term of the identity could a *learnt* prior
# $p(z)$ make zero, and what would the bound of section 3 then be? (2) Let $k$ go to 0 with the same network. What happens to the
# spread of $q(z\mid x)$, to the holes between latents, and to the denoiser's task? Why not simply take $k = 0$?
#
# **Exercise.** The KL of section 3 has $\mathcal N(0, I)$ on its right side. Suppose each class had a Gaussian of its own, $p(z\mid y) =
# \mathcal N(m_2, v_2)$. Derive $\mathrm{KL}\big(\mathcal N(m_1, v_1)\,\|\,\mathcal N(m_2, v_2)\big)$ as above and write it: in nats, one number for each
# sample, be it a picture (B, C, H, W) or a point (B, d). **Hint:** $\mathbb E_1[(z-m_2)^2] = (m_1-m_2)^2 + v_1$. Try it with $m_2 = 0$, $v_2 = 1$. The cell below it checks
# your function and gives more hints; with `hint=2` it tells more still.


# %%
def kl_between(mean1, log_var1, mean2, log_var2): ...  # your code: (B, ...) in, (B,) out, a sum over the rest


# %%
from tinydiff import check

check.kl_between(kl_between)

# %% [markdown]
# **Papers.** Kingma & Welling 2014, *Auto-Encoding Variational Bayes*: the bound, eq. 3; the reparameterisation, sec. 2.4; the
# KL of Gaussians, app. B. Rombach, Blattmann, Lorenz, Esser & Ommer 2022, *High-Resolution Image Synthesis with Latent
# Diffusion Models*: the loss in latents, eq. 2; cf. their appendix on autoencoders for the scaling. Vahdat, Kreis & Kautz 2021,
# *Score-based Generative Modeling in Latent Space*: autoencoder and diffusion trained together. Hoffman & Johnson 2016, *ELBO
# surgery*: the split of section 5. Lucas, Tucker, Grosse & Norouzi 2019, *Don't Blame the ELBO!*: collapse of linear VAEs.
# Rybkin, Daniilidis & Levine 2021, *Simple and Effective VAE Training with Calibrated Decoders*: the weight as a variance.
# Meng et al. 2022, *SDEdit*: noise up to $t$ and back, which mends our walk.
#
# Before: [08, guidance](08_guidance.ipynb). Next: [10, consistency models](10_consistency.ipynb).
