# %% [markdown]
# # Problem set 2 · U-Net and DDIM
#
# About 75 minutes, 23 points. Lessons 04 and 05 hold all you need.
#
# **How it is graded.** Each function is tried on random inputs that you do not see. You get points for every property
# that holds: the right values first (without them the rest does not count), then the rest. What a cell prints does not
# matter.
#
# **How to check yourself.** Run the cell below each answer, as often as you like. Some recognise mistakes and hint at
# them; the others compare with a number that you can work out by hand.
#
# **Rules of the house.** Keep the functions' names and arguments. Write each answer into its own cell. Functions of
# your own, imports and constants may stand in any cell; a constant is what is assigned without a call, such as
# `half = 0.5`. A call may take five seconds. The library's own answer to a question is switched off while that question
# is graded.

# %% read="setup"
import torch

from tinydiff import check

_ = torch.set_num_threads(1)

# %% [markdown]
# ## 1 · A clock with several hands (4 points)
#
# A network cannot do much with the single number $t$. So we show it $t$ on clocks that run at different speeds. With
# `half = dim // 2` the frequencies are $f_i = 10000^{-i/\text{half}}$ for $i = 0, \dots, \text{half}-1$; the features
# are $\cos(t f_0), \cos(t f_1), \dots$, then $\sin(t f_0), \sin(t f_1), \dots$
#
# `t` has shape (B,), the answer (B, dim), in the dtype of `t`.


# %% answer="time_features"
def time_features(t, dim):
    ### BEGIN SOLUTION
    half = dim // 2
    frequencies = 10000 ** (-torch.arange(half, dtype=t.dtype) / half)
    angles = t[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)
    ### END SOLUTION


# %% test="time_features" points=4
print("yours:  ", time_features(torch.tensor([0.0, 100.0]), 4))
print("by hand: cos 0, cos 0, sin 0, sin 0; then cos 100, cos 1, sin 100, sin 1, or 0.86, 0.54, -0.51, 0.84")

# %% [markdown]
# ## 2 · How time reaches a block (4 points)
#
# From those clocks a small layer makes a `scale` and a `shift`, both (B, C). They act on the channels of `h`, which is
# (B, C, H, W): with both 0, nothing changes.


# %% answer="modulate"
def modulate(h, scale, shift):
    ### BEGIN SOLUTION
    return h * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    ### END SOLUTION


# %% test="modulate" points=4
check.modulate(modulate)

# %% [markdown]
# ## 3 · What a convolution weighs (2 points)
#
# How many parameters has `torch.nn.Conv2d(3, 4, kernel_size=3)`? Work it out, then put the
# number in place of the dots.

# %% answer="parameters"
parameters = (
    ### BEGIN SOLUTION
    3 * 4 * 3 * 3 + 4
    ### END SOLUTION
)

# %% test="parameters" points=2
print("Worked out by hand first? Then count: sum(p.numel() for p in torch.nn.Conv2d(3, 4, 3).parameters())")

# %% [markdown]
# ## 4 · What the average remembers (4 points)
#
# An average of the weights keeps $d_n = \min(\text{decay}, \frac{1+n}{10+n})$ of itself at update $n$, and takes
# $1 - d_n$ of the new. Updates are counted from 0. How large is the share of update $k$ in the average after $N$
# updates?


# %% answer="weight_of"
def weight_of(k, N, decay):
    ### BEGIN SOLUTION
    def d(n):
        return min(decay, (1 + n) / (10 + n))

    share = 1 - d(k)
    for n in range(k + 1, N):
        share *= d(n)
    return share
    ### END SOLUTION


# %% test="weight_of" points=4
check.weight_of(weight_of)

# %% [markdown]
# ## 5 · One step of DDIM (5 points)
#
# From $t$ to any $s < t$, with the guess $\hat x_0$ and fresh noise:
#
# $$x_s = \alpha_s \hat x_0 + \sqrt{\sigma_s^2 - c^2}\;\hat\epsilon + c\,z, \qquad
# c = \eta\,\frac{\sigma_s}{\sigma_t}\sqrt{1 - \alpha_t^2/\alpha_s^2},$$
#
# where $\hat\epsilon$ is the noise that $x$ holds if the guess is right. `schedule(t, like=x)` gives alpha and sigma in
# the right shape and dtype; `t` and `s` have shape () or (B,).


# %% answer="ddim_step"
def ddim_step(schedule, x, x0_hat, t, s, eta, noise):
    ### BEGIN SOLUTION
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t, like=x), schedule(s, like=x)
    c = eta * sigma_s / sigma_t * (1 - alpha_t**2 / alpha_s**2).sqrt()
    eps = (x - alpha_t * x0_hat) / sigma_t
    return alpha_s * x0_hat + (sigma_s**2 - c**2).clamp(min=0).sqrt() * eps + c * noise
    ### END SOLUTION


# %% test="ddim_step" points=5
check.ddim_step(ddim_step)

# %% [markdown]
# ## 6 · What a step does to the spread (4 points)
#
# Let the data be N(0, 1), so that the exact guess is $\hat x_0 = \alpha_t x_t$. The step of question 5 is then
# $x_s = k\,x_t + w\,\hat x_0 + c\,z$, with $k = \sqrt{\sigma_s^2 - c^2}/\sigma_t$ and $w = \alpha_s - k\,\alpha_t$. If
# $x_t$ has variance $V$, which variance has $x_s$? Return a number; `schedule(t)` gives alpha and sigma.


# %% answer="variance_after"
def variance_after(schedule, V, t, s, eta):
    ### BEGIN SOLUTION
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    c = eta * sigma_s / sigma_t * (1 - (alpha_t / alpha_s) ** 2).sqrt()
    k = (sigma_s**2 - c**2).sqrt() / sigma_t
    w = alpha_s - k * alpha_t
    return float((k + w * alpha_t) ** 2 * V + c**2)
    ### END SOLUTION


# %% test="variance_after" points=4
check.variance_after(variance_after)
