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
# Every cell takes a few seconds at most; the models come with the library, nothing is downloaded. Press **Shift+Enter** to run a cell and move on.

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

denoiser = td.load_pretrained("mnist")
print(f"Python {platform.python_version()}, PyTorch {torch.__version__}, tinydiff {td.__version__}")
print(f"{os.cpu_count()} CPU cores, GPU: {torch.cuda.is_available()} (not needed)")
print(f"a trained network of {sum(p.numel() for p in denoiser.parameters()):,} numbers, found without network")

# %% [markdown]
# | if you see this instead | do this |
# | --- | --- |
# | `No module named 'tinydiff'` | `pip install -e ".[lessons]"` in the project's folder, then *Kernel → Restart* |
# | `No module named 'ipywidgets'` | the same: the word in brackets brings the sliders |
# | the slider below is a line of text | its cell has not run yet: press Shift+Enter in it |

# %% [markdown]
# ## The slider
#
# A **denoiser** is asked one thing: *here is a noisy picture; what was it before the noise?* Ours is a small neural
# network that has seen 60,000 handwritten digits, and it may be told which digit to look for. To generate, we start from
# pure noise, ask, remove a little noise, and ask again. Each round is a **step**.
#
# **Predict.** The 20 squares below start as pure static, always the same. We ask for 0, 1, 2, ..., 9, twice. What does
# the denoiser answer after one step, when it has only static to look at? A clear digit? More static? Something else?
# Decide, then run the cell.

# %%
y = torch.arange(20) % 10  # the digits we ask for
noise = torch.randn(20, 1, 28, 28, generator=torch.Generator().manual_seed(2))


def generate(steps):
    return td.final(td.ddim(denoiser, noise, td.uniform(denoiser.schedule, steps), y=y))


samples = {steps: generate(steps) for steps in (1, 2, 3, 4, 5, 6, 8, 10, 15, 20)}
frames = {n: plot.grid(s, columns=10, scale=2, gap=4) for n, s in ({0: noise} | samples).items()}


def draw(steps):
    return frames[steps]


widgets.explore(
    draw,
    steps=frames,
    alt="Twenty squares of static turn into two rows of the digits 0 to 9 as the number of steps grows.",
)

# %% [markdown]
# Drag the slider, or click on it and use the arrow keys. Here are some of its pictures, side by side:

# %%
plot.strip(
    {f"{n} steps" if n != 1 else "1 step": draw(n) for n in (0, 1, 2, 3, 5, 20)},
    columns=2,
    alt="The same twenty squares after 0, 1, 2, 3, 5 and 20 steps: static, ten smears twice, blurry digits, sharp digits.",
)

# %% [markdown]
# ## What just happened?
#
# After one step there are no digits yet, only smears: and the two rows show *the same* ten smears, although they began
# with different static. Static says nothing about how a 7 is written, so the best single guess is the **average of all
# sevens**. That is not a bug. It is the answer with the smallest mean squared error. You can check that the static does
# not matter after one step, and that it decides everything after twenty:


# %%
def rows_differ(samples):
    return (samples[:10] - samples[10:]).square().mean().sqrt()


print(f"between the rows, after  1 step:  less than 0.1: {bool(rows_differ(samples[1]) < 0.1)}")
print(f"between the rows, after 20 steps: more than 0.3: {bool(rows_differ(samples[20]) > 0.3)}")
assert rows_differ(samples[1]) < 0.1 < 0.3 < rows_differ(samples[20])

# %% [markdown]
# The repair is to not believe the first guess. We go only part of the way, keep most of the noise, and ask again. The
# picture is now a little less random, so the next guess is a little less vague. After twenty such steps the smear has
# become one particular 7.
#
# (Our static is kind: all twenty digits come out well. Put `manual_seed(0)` into the slider's cell, and one 5 and one 6 fall
# apart. More steps do not mend them: the network is small, and it makes mistakes.)
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
def generate_by_hand(denoiser, x, times, y):
    schedule = denoiser.schedule
    for t, s in pairwise(times):  # from noise (t = T) to data (s = 0)
        alpha_t, sigma_t = schedule(t, like=x)
        alpha_s, sigma_s = schedule(s, like=x)
        x0_hat = denoiser(x, t, y=y)
        eps_hat = (x - alpha_t * x0_hat) / sigma_t
        x = alpha_s * x0_hat + sigma_s * eps_hat
    return x


with torch.no_grad():
    by_hand = generate_by_hand(denoiser, noise, td.uniform(denoiser.schedule, 10), y)
agree = torch.allclose(by_hand, samples[10], atol=1e-2)
print("eight lines by hand agree with the library:", agree)
assert agree

# %% [markdown]
# ## Look inside one run
#
# A sampler in this library yields its state after every step: the time `t`, the noisy picture `x`, and the guess `x0`.
#
# **Predict.** Which becomes a recognisable digit first, the noisy picture or the guess?

# %%
states = list(td.ddim(denoiser, noise[2:5], td.uniform(denoiser.schedule, 8), y=y[2:5]))
pairs = [plot.grid(torch.cat([state.x, state.x0]), columns=3, scale=2, gap=4) for state in states]
plot.strip(
    {f"t = {state.t:.0f}": pair for state, pair in zip(states, pairs, strict=True)},
    columns=4,
    alt="Eight steps of a 2, a 3 and a 4. Above, noisy pictures that slowly clear up; below, guesses, sharp much earlier.",
)

# %% [markdown]
# The upper squares are $x_t$, the lower ones the guess $\hat x_0$ of the step that led there, made one step earlier. The guess
# commits early; the noise takes its time to leave.
#
# ## Could it be perfect?
#
# Our network is small and makes mistakes. What would a *perfect* denoiser draw? For a finite collection of pictures
# $x_1, \dots, x_N$ we can write it down, without any network. Its guess is their average, weighted by how well each
# explains the noisy picture:
#
# $$\hat x_0 = \sum_i w_i \, x_i, \qquad w_i \propto \exp\!\left(-\frac{\|x_t - \alpha_t x_i\|^2}{2\sigma_t^2}\right).$$
#
# No denoiser can have a smaller mean squared error on these pictures. Let us build it for 1797 real digits of 8x8 pixels
# that come with scikit-learn, and put a network trained on the same digits beside it.

# %%
x, labels = td.digits()
schedule = td.cosine()
learnt = td.load_pretrained("digits")


def exact(x_t, t):
    alpha_t, sigma_t = schedule(t, like=x_t)
    squared = torch.cdist(x_t.flatten(1), alpha_t * x.flatten(1)) ** 2
    w = torch.softmax(-squared / (2 * sigma_t**2), dim=1)
    return (w @ x.flatten(1)).reshape(x_t.shape)


perfect = td.EmpiricalDenoiser(x, schedule)  # the library's
static = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(1))
agree = torch.allclose(exact(static, 900), perfect(static, 900), atol=1e-3)
print("the formula agrees with the library:", agree)
assert agree

# %% [markdown]
# **Predict.** Both start from the same static and walk 20 steps. Which digits will look better, the perfect ones or the
# learnt ones? In what will they differ?

# %%
times = td.uniform(schedule, 20)
perfect_digits = td.final(td.ddim(perfect, static, times))
learnt_digits = td.final(td.ddim(learnt, static, times, y=y))


def nearest(samples):
    distance = torch.cdist(samples.flatten(1), x.flatten(1))  # (20, 1797)
    return distance.min(1)


copied = (nearest(perfect_digits).values < 0.01).float().mean()
made = (nearest(learnt_digits).values > 0.5).float().mean()
print(f"perfect: {copied:.0%} are copies of a real digit")
print(f"learnt: more than 80 % differ from every real digit: {bool(made > 0.8)}")
assert copied == 1
assert made > 0.8

columns = {"columns": 5, "scale": 6, "gap": 4}
plot.strip(
    {
        "perfect": plot.grid(perfect_digits, **columns),
        "nearest real digit": plot.grid(x[nearest(perfect_digits).indices], **columns),
        "learnt": plot.grid(learnt_digits, **columns),
        "nearest real digit ": plot.grid(x[nearest(learnt_digits).indices], **columns),
    },
    columns=2,
    alt="Above, twenty digits of the perfect denoiser and the nearest real digit of each: identical. Below, twenty digits of the network and their nearest real digits: similar, never the same.",
)

# %% [markdown]
# The perfect digits are not like real digits. They **are** real digits, pixel by pixel. We have built the world's
# slowest photocopier.
#
# A network with unlimited size, trained without end on these digits, would become this photocopier. So a good diffusion
# model is one that **fails to be perfect in the right way**: it is too small to memorise, and makes up digits between
# the ones it saw. You train such a network in lesson 04 and measure how much it copies in lesson 13. Where a lesson needs
# the truth, the perfect denoiser of a simple world serves: whatever a sampler gets wrong with it, the sampler got wrong.

# %% [markdown]
# ## A map of the course
#
# | lesson | you |
# | --- | --- |
# | 00 | generate digits (you are here) |
# | [01](01_forward_process.ipynb) | destroy digits, step by step and in one line |
# | [02](02_ddpm_loss.ipynb) | derive the loss and train a first network on points |
# | [03](03_ddpm_sampling.ipynb) | walk points home from noise |
# | [04](04_tiny_unet.ipynb) | build a U-Net and train it on digits |
# | [05](05_ddim.ipynb) | sample in few steps: DDIM |
# | [06](06_score_and_ode.ipynb) | see the differential equation behind it all |
# | [07](07_dpm_solver_pp.ipynb) | solve it well: DPM-Solver++ |
# | [08](08_guidance.ipynb) | ask for a class: guidance |
# | [09](09_latent_diffusion.ipynb) | work in a latent space |
# | [10](10_consistency.ipynb) | sample in one step: consistency models |
# | [11](11_choosing_a_sampler.ipynb) | choose a sampler |
# | [12](12_restoration.ipynb) | restore pictures |
# | [13](13_limits.ipynb) | find the limits: copying, bias, sensitivity |
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
alpha, sigma = schedule(500)
lam = schedule.half_log_snr(500)
print(f"alpha {alpha:.2f}, sigma {sigma:.2f}, lambda {lam:.3f} at t = 500 of T = {schedule.T}")
assert torch.isclose(alpha**2 + sigma**2, torch.ones_like(alpha))
assert torch.isclose(lam, torch.log(alpha / sigma))

# %% [markdown]
# ## Summary
#
# - A denoiser guesses the clean picture. A sampler asks it again and again while removing noise.
# - One step gives an average; more steps give one thing.
# - The exact denoiser of a finite data set copies it. Learning means not being exact.
#
# **To think about.** (1) The slider always starts from the same noise. What would change with other noise, and what
# would stay? (2) Suppose the data were just two digits. What would one step of the perfect denoiser give?
#
# **Exercise.** Answer question 2 with code: complete the cell so that `guess` is the one-step sample of a perfect denoiser
# that knows only `x[0]` and `x[1]`.

# %%
two = x[:2]
guess = None  # your code: two or three lines, from `static` as above

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
