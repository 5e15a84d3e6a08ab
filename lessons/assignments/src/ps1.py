# %% [markdown]
# # Problem set 1 · Forward and loss
#
# About 60 minutes, 24 points. Lessons 01 and 02 hold all you need.
#
# **How it is graded.** Each function is tried on random inputs that you do not see. You get points for every property
# that holds: the right values first (without them the rest does not count), then times that differ between samples,
# the dtype, the edges. What a cell prints, here or anywhere, does not matter.
#
# **How to check yourself.** Run the cell below each answer, as often as you like: it tries the same properties on other
# inputs, and hints at the mistake it recognises. Where there is no such check, there is a number to compare with.
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
# ## 1 · One jump (4 points)
#
# The table `alpha_bar` has T + 1 entries; entry 0 is 1, for clean data. Write
#
# $$x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\epsilon .$$
#
# `t` has shape () or (B,), the data (B, ...). The answer keeps the dtype of `x0`.


# %% answer="q_sample"
def q_sample(alpha_bar, x0, t, noise):
    ### BEGIN SOLUTION
    a = alpha_bar[t]
    a = a.reshape(-1, *[1] * (x0.ndim - 1)).to(x0.dtype) if a.ndim else a.to(x0.dtype)
    return a.sqrt() * x0 + (1 - a).sqrt() * noise
    ### END SOLUTION


# %% test="q_sample" points=4
check.q_sample(q_sample)

# %% [markdown]
# ## 2 · A jump from the middle (4 points)
#
# You stand at $x_s$ and want $x_t$ for some later $t \ge s$, without walking. How much signal is left of what you have,
# and how much noise is missing? Draw it once, with
# `torch.randn(x_s.shape, generator=generator, dtype=x_s.dtype)`.


# %% answer="jump"
def jump(alpha_bar, x_s, s, t, generator):
    ### BEGIN SOLUTION
    a = alpha_bar[t] / alpha_bar[s]
    a = a.reshape(-1, *[1] * (x_s.ndim - 1)).to(x_s.dtype) if a.ndim else a.to(x_s.dtype)
    noise = torch.randn(x_s.shape, generator=generator, dtype=x_s.dtype)
    return a.sqrt() * x_s + (1 - a).sqrt() * noise
    ### END SOLUTION


# %% test="jump" points=4
check.jump(jump)

# %% [markdown]
# ## 3 · The posterior (5 points)
#
# If both $x_t$ and $x_0$ were known, where was the walk at $s < t$? Return mean and variance of
# $q(x_s \mid x_t, x_0)$, the variance in a shape that multiplies the data. With
# $\beta = 1 - \bar\alpha_t/\bar\alpha_s$ the variance is $\beta\,(1-\bar\alpha_s)/(1-\bar\alpha_t)$.


# %% answer="posterior"
def posterior(alpha_bar, x0, x_t, t, s):
    ### BEGIN SOLUTION
    def like(a):
        return a.reshape(-1, *[1] * (x_t.ndim - 1)).to(x_t.dtype) if a.ndim else a.to(x_t.dtype)

    a_s, a_t = alpha_bar[s], alpha_bar[t]
    beta = 1 - a_t / a_s
    mean = like(beta * a_s.sqrt() / (1 - a_t)) * x0 + like((1 - beta).sqrt() * (1 - a_s) / (1 - a_t)) * x_t
    return mean, like(beta * (1 - a_s) / (1 - a_t))
    ### END SOLUTION


# %% test="posterior" points=5
check.posterior(posterior)

# %% [markdown]
# ## 4 · The loss of a network that predicts v (4 points)
#
# A schedule gives `alpha, sigma = schedule(t, like=x0)`, in the right shape and dtype. Noise the data, ask
# `net(x_t, t)`, and compare with $v = \alpha\epsilon - \sigma x_0$: the mean of the squared error, over everything.


# %% answer="v_loss"
def v_loss(net, schedule, x0, t, eps):
    ### BEGIN SOLUTION
    alpha, sigma = schedule(t, like=x0)
    v = alpha * eps - sigma * x0
    return (net(alpha * x0 + sigma * eps, t) - v).square().mean()
    ### END SOLUTION


# %% test="v_loss" points=4
check.v_loss(v_loss)

# %% [markdown]
# ## 5 · How much a step counts (3 points)
#
# One term of the bound is the KL between two Gaussians of the same variance $\tilde\beta$: the posterior with the true
# $x_0$, and the same with the guess $\hat x_0$. Work out the factor $w$ in $w\,\lVert x_0 - \hat x_0\rVert^2$, and write
# it as a function of $\bar\alpha_s$ and $\bar\alpha_t$, numbers or tensors. By hand, $w(0.6, 0.5) = 0.25$.


# %% answer="bound_weight"
def bound_weight(a_s, a_t):
    ### BEGIN SOLUTION
    return (a_s / (1 - a_s) - a_t / (1 - a_t)) / 2
    ### END SOLUTION


# %% test="bound_weight" points=3
print("w(0.6, 0.5):", bound_weight(0.6, 0.5), "- by hand 0.25")

# %% [markdown]
# ## 6 · In words (4 points, read by a person)
#
# The simple loss drops the factor of question 5. Which times does it thereby favour, those with much noise or those
# with little? Why may that make *better pictures* although the bound gets worse? Four to six sentences.

# %% [markdown] written="why" points=4
# ### BEGIN SOLUTION
# The factor, half a difference of signal-to-noise ratios, is largest at small t. Dropping it gives relatively more
# weight to large t, where the picture's coarse structure is decided and the task is hard; at small t only details that
# the eye hardly sees remain to be removed. The bound pays for those details in bits. (2 points for the direction with
# the factor as the reason, 2 for coarse against fine.)
# ### END SOLUTION
