# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 00 · Start here: digits out of noise
#
# In the next minute you will turn noise into handwritten digits by dragging one slider.
#
# By the end of this lesson you can
#
# - run the course on your machine and know what each part of it is for,
# - generate digits with a loop of eight lines,
# - say why a *perfect* denoiser is not what we want.
#
# Every cell takes a few seconds at most. Press **Shift+Enter** to run a cell and move on.

# %% [markdown]
# ## Is everything here?
#
# The numbers below are about your machine, so they may differ from the ones you see printed. Only an error would be bad
# news.

# %% tags=["nbval-ignore-output"]
import os
import platform
from itertools import pairwise

import torch

import tinydiff as td
from tinydiff import plot, widgets
from tinydiff.data import digits

x, y = digits()
print(f"Python {platform.python_version()}, PyTorch {torch.__version__}, tinydiff {td.__version__}")
print(f"{os.cpu_count()} CPU cores, GPU: {torch.cuda.is_available()} (not needed)")
print(f"{len(x)} real digits of 8x8 pixels, found without network")

# %% [markdown]
# | if you see this instead | do this |
# | --- | --- |
# | `No module named 'tinydiff'` | `pip install -e ".[lessons]"` in the project's folder, then *Kernel → Restart* |
# | `No module named 'ipywidgets'` | the same: the word in brackets brings the sliders |
# | the slider below is a line of text | its cell has not run yet: press Shift+Enter in it |

# %% [markdown]
# ## The slider
#
# A **denoiser** is asked one thing: *here is a noisy picture; what was it before the noise?* To generate, we start from
# pure noise, ask, remove a little noise, and ask again. Each round is a **step**.
#
# **Predict.** The 16 squares below start as pure static, always the same. What does the denoiser answer after one step,
# when it has only static to look at? One clear digit? More static? Something else? Decide, then run the cell.

# %%
denoiser = td.EmpiricalDenoiser(x, td.cosine())
noise = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def generate(steps):
    return td.final(td.ddim(denoiser, noise, td.uniform(denoiser.schedule, steps)))


samples = {steps: generate(steps) for steps in (1, 2, 3, 4, 5, 6, 8, 10, 15, 20)}
frames = {n: plot.grid(s, scale=8, gap=4) for n, s in ({0: noise} | samples).items()}


def draw(steps):
    return frames[steps]


widgets.explore(
    draw,
    steps=frames,
    alt="Sixteen squares of static turn into sharp digits as the number of steps grows.",
)

# %% [markdown]
# Drag the slider, or click on it and use the arrow keys. Here are some of its pictures, side by side:

# %%
plot.strip(
    {f"{n} steps" if n != 1 else "1 step": draw(n) for n in (0, 1, 2, 3, 5, 20)},
    columns=3,
    alt="The same sixteen squares after 0, 1, 2, 3, 5 and 20 steps: static, one grey smear, blurry shapes, sharp digits.",
)

# %% [markdown]
# ## What just happened?
#
# After one step all 16 squares show the same grey smear. Static says nothing about the digit, so the best single guess
# is the **average of all digits**. That is not a bug. It is the answer with the smallest mean squared error, and you
# can check it:

# %%
difference = (samples[1] - x.mean(0)).abs().max()
print("one step gives the average digit:", bool(difference < 0.02))
assert difference < 0.02

# %% [markdown]
# The repair is to not believe the first guess. We go only part of the way, keep most of the noise, and ask again. The
# picture is now a little less random, so the next guess is a little less vague. After ten such steps the smear has
# become a 7.
#
# Written with symbols: the noisy picture is $x_t = \alpha_t x_0 + \sigma_t \epsilon$, a mixture of a clean picture
# $x_0$ and noise $\epsilon$. At time $t$ the denoiser guesses $\hat x_0$. What is left over must be noise,
#
# $$\hat\epsilon = (x_t - \alpha_t \hat x_0) / \sigma_t,$$
#
# and mixing the two again with *less* noise brings us to an earlier time $s < t$:
#
# $$x_s = \alpha_s \hat x_0 + \sigma_s \hat\epsilon .$$
#
# Here is the whole generator. It is called DDIM, and lesson 05 takes it apart.


# %%
def generate_by_hand(denoiser, x, times):
    schedule = denoiser.schedule
    for t, s in pairwise(times):  # from noise (t = T) to data (s = 0)
        alpha_t, sigma_t = schedule(t, like=x)
        alpha_s, sigma_s = schedule(s, like=x)
        x0_hat = denoiser(x, t)
        eps_hat = (x - alpha_t * x0_hat) / sigma_t
        x = alpha_s * x0_hat + sigma_s * eps_hat
    return x


by_hand = generate_by_hand(denoiser, noise, td.uniform(denoiser.schedule, 10))
agree = torch.allclose(by_hand, samples[10], atol=1e-4)
print("eight lines by hand agree with the library:", agree)
assert agree

# %% [markdown]
# ## Look inside one run
#
# A sampler in this library yields its state after every step: the time `t`, the noisy picture `x`, and the guess `x0`.
#
# **Predict.** Which becomes a recognisable digit first, the noisy picture or the guess?

# %%
states = list(td.ddim(denoiser, noise[:4], td.uniform(denoiser.schedule, 8)))
pairs = [plot.grid(torch.cat([state.x, state.x0]), columns=2, scale=8, gap=4) for state in states]
plot.strip(
    {f"t = {state.t:.0f}": pair for state, pair in zip(states, pairs, strict=True)},
    columns=8,
    alt="Eight steps of four digits. Above, noisy pictures that slowly clear up; below, guesses that are sharp much earlier.",
)

# %% [markdown]
# The upper four squares are $x_t$, the lower four $\hat x_0$. The guess commits early; the noise takes its time to
# leave.
#
# ## The catch
#
# The digits look great. Suspiciously great. Let us look for the nearest real digit to each of the 16.


# %%
def nearest(samples):
    distance = torch.cdist(samples.flatten(1), x.flatten(1))  # (16, 1797)
    return distance.min(1)


distance, index = nearest(samples[20])
print("distance to the nearest real digit below 0.01 for all 16:", bool((distance < 0.01).all()))
assert (distance < 0.01).all()
plot.strip(
    {
        "generated": plot.grid(samples[20], scale=8, gap=4),
        "nearest real digit": plot.grid(x[index], scale=8, gap=4),
    },
    columns=2,
    alt="Sixteen generated digits beside the nearest real digit of each: the two grids are identical.",
)

# %% [markdown]
# They are not like real digits. They **are** real digits, pixel by pixel. We have built the world's slowest photocopier.
#
# The reason: no network was trained here. `EmpiricalDenoiser` keeps all 1797 digits in memory, and its guess is their
# average, weighted by how well each explains the noisy picture,
#
# $$\hat x_0 = \sum_i w_i \, x_i, \qquad w_i \propto \exp\!\left(-\frac{\|x_t - \alpha_t x_i\|^2}{2\sigma_t^2}\right).$$


# %%
def exact_guess(x_t, t):
    alpha_t, sigma_t = denoiser.schedule(t, like=x_t)
    squared = torch.cdist(x_t.flatten(1), alpha_t * x.flatten(1)) ** 2
    w = torch.softmax(-squared / (2 * sigma_t**2), dim=1)
    return (w @ x.flatten(1)).reshape(x_t.shape)


agree = torch.allclose(exact_guess(noise, 900), denoiser(noise, 900), atol=1e-3)
print("the formula agrees with the library:", agree)
assert agree

# %% [markdown]
# This is the *exact* solution of the training problem. A network with unlimited size, trained without end on these
# digits, would become this photocopier. So a good diffusion model is one that **fails to be perfect in the right
# way**: it is too small to memorise, and makes up digits between the ones it saw. You train such a network in lesson 04
# and measure how much it copies in lesson 13. Until then the exact denoiser serves as our truth: whatever a sampler
# gets wrong with it, the sampler got wrong.

# %% [markdown]
# ## A map of the course
#
# | lesson | you | |
# | --- | --- | --- |
# | 00 | generate digits | you are here |
# | [01](01_forward_process.ipynb) | destroy digits, step by step and in one line | ready |
# | [02](02_ddpm_loss.ipynb) | derive the loss and train a first network on points | ready |
# | [03](03_ddpm_sampling.ipynb) | walk points home from noise | ready |
# | [04](04_tiny_unet.ipynb) | build a U-Net and train it on digits | ready |
# | 05 | sample in few steps: DDIM | planned |
# | 06 | see the differential equation behind it all | planned |
# | 07 | solve it well: DPM-Solver++ | planned |
# | 08 | ask for a class: guidance | planned |
# | 09 | work in a latent space | planned |
# | 10 | sample in one step: consistency models | planned |
# | 11 | choose a sampler | planned |
# | 12 | restore pictures | planned |
# | 13 | find the limits: copying, bias, sensitivity | planned |
#
# ## Notation
#
# One meaning for each symbol, in all lessons and in the library.
#
# | symbol | in code | meaning |
# | --- | --- | --- |
# | $x_0$ | `x0` | clean data, pixels in [-1, 1] |
# | $t$, $s$ | `t`, `s` | time from 0 (clean) to $T$ (noise); a step goes from $t$ down to $s$ |
# | $\epsilon$ | `eps` | noise, standard normal, shaped like the data |
# | $\bar\alpha_t$ | `alpha_bar` | the share of the variance that is still signal |
# | $\alpha_t$, $\sigma_t$ | `alpha`, `sigma` | $\sqrt{\bar\alpha_t}$ and $\sqrt{1-\bar\alpha_t}$: the size of signal and noise |
# | $\lambda_t$ | `lam` | $\log(\alpha_t/\sigma_t)$, half the log signal-to-noise ratio |
# | $\hat x_0$ | `x0_hat` | a denoiser's guess of $x_0$ |
#
# Careful with papers: what the DDPM paper calls $\alpha_t$ is $1-\beta_t$, and our $\alpha_t$ is its $\sqrt{\bar\alpha_t}$.

# %%
schedule = td.cosine()
alpha, sigma = schedule(500)
lam = schedule.half_log_snr(500)
print(f"alpha {alpha:.2f}, sigma {sigma:.2f}, lambda {lam:.3f} at t = 500 of T = {schedule.T}")
assert torch.isclose(alpha**2 + sigma**2, torch.ones_like(alpha))
assert torch.isclose(lam, torch.log(alpha / sigma))

# %% [markdown]
# ## Summary
#
# - A denoiser guesses the clean picture. A sampler asks it again and again while removing noise.
# - One step gives the average of everything; more steps give one thing.
# - The exact denoiser of a finite data set copies it. Learning means not being exact.
#
# **To think about.** (1) The slider always starts from the same noise. What would change with other noise, and what
# would stay? (2) Suppose the data were just two digits. What would one step give?
#
# **Exercise.** Answer question 2 with code: complete the cell so that `guess` is the one-step sample of a denoiser that
# knows only `x[0]` and `x[1]`.

# %%
two = x[:2]
guess = None  # your code: two or three lines, as in the slider's cell

if guess is None:
    print("guess is still to be computed")
else:
    assert (guess - two.mean(0)).abs().max() < 0.02, "expected the average of the two digits"
    print("right: the average of the two digits")

# %% [markdown]
# **Papers.** Song, Meng & Ermon 2021, *Denoising Diffusion Implicit Models*: the loop above is eq. 12 with $\sigma_t = 0$
# in its notation. Ho, Jain & Abbeel 2020, *Denoising Diffusion Probabilistic Models*: $x_t$ is eq. 4. Karras et al.
# 2022, *Elucidating the Design Space of Diffusion-Based Generative Models*, app. B.3: the exact denoiser of a finite
# data set.
#
# Next: [01, the forward process](01_forward_process.ipynb).
