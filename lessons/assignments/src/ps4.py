# %% [markdown]
# # Problem set 4 · Consistency models
#
# About 75 minutes, 25 points. Lesson 10 holds all you need.
#
# **How it is graded.** Each function is tried on random inputs that you do not see. You get points for every property
# that holds: the right values first (without them the rest does not count), then the rest. What a cell prints does not
# matter, and no answer needs a long training.
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
# ## 1 · A boundary that cannot be missed (5 points)
#
# A consistency function must not touch clean data: $f(x, 0) = x$. Let the network predict
# $v = \alpha\epsilon - \sigma x_0$ and return the $x_0$ that follows from $x = \alpha x_0 + \sigma\epsilon$ and from $v$.
# Then the boundary holds for any weights. `schedule(t, like=x)` gives alpha and sigma.


# %% answer="consistency_function"
def consistency_function(net, schedule, x, t):
    ### BEGIN SOLUTION
    alpha, sigma = schedule(t, like=x)
    return alpha * x - sigma * net(x, t)
    ### END SOLUTION


# %% test="consistency_function" points=5
x = torch.tensor([[0.3, -0.8]])
yours = consistency_function(lambda x, t: torch.tanh(x) + 7, td.cosine(50), x, torch.tensor(0))
print("not attempted yet" if yours is None else f"f(x, 0) = x for a wild network: {torch.allclose(yours, x)}")

# %% [markdown]
# ## 2 · A loss for a pair (6 points)
#
# Two points of one path should have one answer. Make $x_t$ and $x_s$ from the same data and the same noise, ask
# `f(x_t, t)` and `f(x_s, s)`, and return their squared distance: summed over a sample's values, averaged over the
# batch. One of the two answers has to count as a constant. Which?


# %% answer="training_pair_loss"
def training_pair_loss(f, schedule, x0, t, s, eps):
    ### BEGIN SOLUTION
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t, like=x0), schedule(s, like=x0)
    with torch.no_grad():
        target = f(alpha_s * x0 + sigma_s * eps, s)
    return (f(alpha_t * x0 + sigma_t * eps, t) - target).square().flatten(1).sum(1).mean()
    ### END SOLUTION


# %% test="training_pair_loss" points=6
check.training_pair_loss(training_pair_loss)

# %% [markdown]
# ## 3 · A milder distance (3 points)
#
# Squares let a few bad pairs rule the gradient. The pseudo-Huber distance of two samples is
# $\sqrt{\lVert a-b\rVert^2 + c^2} - c$: a square near 0, a length far away. Return its mean over the batch; `a` and `b`
# have shape (B, ...).


# %% answer="pseudo_huber"
def pseudo_huber(a, b, c):
    ### BEGIN SOLUTION
    return ((a - b).square().flatten(1).sum(1) + c**2).sqrt().mean() - c
    ### END SOLUTION


# %% test="pseudo_huber" points=3
d = pseudo_huber(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]]), 12.0)
print("not attempted yet" if d is None else f"{float(d):.2f}, by hand 13 - 12 = 1")

# %% [markdown]
# ## 4 · How mild (2 points)
#
# Song and Dhariwal (2023) take $c = 0.00054\sqrt d$, with $d$ the number of values in a picture. How large is $c$ for
# digits of 28 x 28? Write the number with all its digits, or a formula.

# %% answer="huber_c"
huber_c = (
    ### BEGIN SOLUTION
    0.00054 * 28
    ### END SOLUTION
)

# %% test="huber_c" points=2
print("No check here: does your number grow if the picture does?")

# %% [markdown]
# ## 5 · Several steps (5 points)
#
# One step is fast, several are better. The times decrease and end at 0: answer at t, noise the answer afresh to the
# next time s, ask again. The last answer is the sample. Draw each noise with
# `torch.randn(x.shape, generator=generator, dtype=x.dtype)`, and none for s = 0.


# %% answer="multistep"
def multistep(f, schedule, x, times, generator):
    ### BEGIN SOLUTION
    for i, t in enumerate(times[:-1]):
        s = times[i + 1]
        x = f(x, t)
        if s > 0:
            alpha, sigma = schedule(s, like=x)
            x = alpha * x + sigma * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return x
    ### END SOLUTION


# %% test="multistep" points=5
check.multistep(multistep)

# %% [markdown]
# ## 6 · In words (4 points, read by a person)
#
# Ask an ordinary denoiser once, at t = T, for its guess of the data: it is a blur. A consistency model that was distilled
# from it is asked once, too, and draws a sharp digit. Both were trained with a squared error. Why the difference? Four to
# six sentences.

# %% [markdown] written="why" points=4
# ### BEGIN SOLUTION
# The denoiser's target is the data that may have led to x_T, and the squared error's best answer is their mean: the mean
# of many digits is a blur. The consistency model's target is the end of the one ODE path through x_T, which is a single
# digit: nothing is left to average over (2 points for the mean over many, 2 for the one end of a deterministic path).
# ### END SOLUTION
