# %% [markdown]
# # Problem set 3 · DPM-Solver++ and guidance
#
# About 90 minutes, 26 points. Lessons 07 and 08 hold all you need.
#
# **How it is graded.** Each function is tried on random inputs that you do not see. You get points for every property
# that holds: the right values first (without them the rest does not count), then the rest. What a cell prints does not
# matter.
#
# **How to check yourself.** Run the cell below each answer, as often as you like. Some recognise mistakes and hint at
# them; the others compare with something that you know.
#
# **Rules of the house.** Keep the functions' names and arguments. Write each answer into its own cell. Functions of
# your own, imports and constants may stand in any cell; a constant is what is assigned without a call, such as
# `half = 0.5`. A call may take five seconds. The library's own answer to a question is switched off while that question
# is graded.

# %% read="setup"
import torch

import tinydiff as td
from tinydiff import check

_ = torch.set_num_threads(1)

# %% [markdown]
# ## 1 · Order one (4 points)
#
# With $\lambda = \log(\alpha/\sigma)$ the ODE has a linear part that can be solved exactly. If the guess $\hat x_0$
# stayed the same on the way from $t$ to $s$, the end would be
#
# $$x_s = \frac{\sigma_s}{\sigma_t}\,x_t + \alpha_s\,(1 - e^{-h})\,\hat x_0, \qquad h = \lambda_s - \lambda_t .$$
#
# `schedule(t)` gives alpha and sigma, `schedule.half_log_snr(t)` gives $\lambda$, and `t` and `s` are plain numbers. At
# $s = 0$, where $\lambda$ is infinite, the step should return the guess.


# %% answer="first_order"
def first_order(schedule, x, x0, t, s):
    ### BEGIN SOLUTION
    (_, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    h = schedule.half_log_snr(s) - schedule.half_log_snr(t)
    return sigma_s / sigma_t * x + alpha_s * (1 - torch.exp(-torch.as_tensor(h))) * x0
    ### END SOLUTION


# %% test="first_order" points=4
x, x0 = torch.tensor([0.5, -1.0], dtype=torch.float64), torch.tensor([0.2, 0.9], dtype=torch.float64)
yours, ddim = first_order(td.cosine(50), x, x0, 30.0, 20.0), td.step(td.cosine(50), x, x0, 30.0, 20.0)
print("not attempted yet" if yours is None else f"the same as a step of DDIM: {torch.allclose(yours, ddim)}")

# %% [markdown]
# ## 2 · Order two, from memory (6 points)
#
# DPM-Solver++(2M) remembers the last guess, made at `t_prev`, and draws a line through both in $\lambda$:
# with $r_0 = (\lambda_t - \lambda_{t_{prev}})/(\lambda_s - \lambda_t)$ the guess of question 1 is replaced by
# $\hat x_0 + (\hat x_0 - \hat x_0^{prev})/(2 r_0)$. A step to $s = 0$ returns `x0`.


# %% answer="update_2m"
def update_2m(schedule, x, x0, x0_prev, t_prev, t, s):
    ### BEGIN SOLUTION
    if s == 0:
        return x0
    (_, sigma_t), (alpha_s, sigma_s) = schedule(t, like=x), schedule(s, like=x)
    lam_prev, lam_t, lam_s = (schedule.half_log_snr(u) for u in (t_prev, t, s))
    h = lam_s - lam_t
    guess = x0 + (x0 - x0_prev) * (h / (lam_t - lam_prev) / 2)
    return sigma_s / sigma_t * x + alpha_s * -torch.expm1(-h) * guess
    ### END SOLUTION


# %% test="update_2m" points=6
check.update_2m(update_2m)

# %% [markdown]
# ## 3 · Measure the order (3 points)
#
# A method of order $p$ has errors that fall like $n^{-p}$ with the number of steps $n$. Given measured errors, which
# scatter, and the steps they belong to, both tensors (K,), fit a straight line by least squares to the logarithms, all
# points alike, and return $p$.


# %% answer="order_of"
def order_of(errors, steps):
    ### BEGIN SOLUTION
    x, y = -steps.log(), errors.log()
    x = x - x.mean()
    return (x * y).sum() / (x * x).sum()
    ### END SOLUTION


# %% test="order_of" points=3
p = order_of(torch.tensor([0.4, 0.1, 0.025]), torch.tensor([10.0, 20.0, 40.0]))
print("not attempted yet" if p is None else f"{p:.2f}, by hand 2: twice the steps, a quarter of the error")

# %% [markdown]
# ## 4 · Guidance at one call (5 points)
#
# Classifier-free guidance asks twice, with the class and without. One call with a batch of twice the size does the same.
# `denoiser(x, t, y=labels)` takes the label -1 for "no class". Return
# $\hat x_u + \text{scale}\,(\hat x_c - \hat x_u)$ from a single call; `t` has shape () or (B,).


# %% answer="batched"
def batched(denoiser, scale, x, t, y):
    ### BEGIN SOLUTION
    t = torch.as_tensor(t)
    twice = torch.cat([t, t]) if t.ndim else t
    both = denoiser(torch.cat([x, x]), twice, y=torch.cat([y, torch.full_like(y, -1)]))
    with_class, without = both.chunk(2)
    return without + scale * (with_class - without)
    ### END SOLUTION


# %% test="batched" points=5
check.batched(batched)

# %% [markdown]
# ## 5 · Dynamic thresholding (4 points)
#
# Large scales push guesses out of [-1, 1]. For each sample of `x0_hat` let $m$ be the given quantile of its absolute
# values, but at least 1. Clip to $[-m, m]$, then divide by $m$.


# %% answer="dynamic_threshold"
def dynamic_threshold(x0_hat, quantile):
    ### BEGIN SOLUTION
    m = torch.quantile(x0_hat.abs().flatten(1), quantile, dim=1).clamp(min=1)
    m = m.reshape(-1, *[1] * (x0_hat.ndim - 1))
    return x0_hat.clamp(-m, m) / m
    ### END SOLUTION


# %% test="dynamic_threshold" points=4
check.dynamic_threshold(dynamic_threshold)

# %% [markdown]
# ## 6 · In words (4 points, read by a person)
#
# At guidance scale 8, a solver of order 3 that works on predicted *noise* draws worse pictures than first-order DDIM
# with as many calls. DPM-Solver++ works on predicted *data* and does not break. Give two reasons. Four to six sentences.

# %% [markdown] written="why" points=4
# ### BEGIN SOLUTION
# (1) A large scale multiplies the difference of two answers, so the guided guess changes fast along the path: higher
# derivatives grow, the range of step sizes where a high order helps shrinks, and extrapolating from derivatives makes
# errors larger. (2) Real data are bounded; a guess of the data can be clipped or thresholded at each step, a guess of the
# noise cannot, so nothing stops the mismatch between training (inside [-1, 1]) and sampling. 2 points each.
# ### END SOLUTION
