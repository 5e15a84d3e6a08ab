"""tinydiff: diffusion models small enough to read, train and take apart on a laptop."""

__version__ = "0.1.0"

from tinydiff.checkpoint import load, save
from tinydiff.data import digits, mnist, toy
from tinydiff.denoise import Denoiser, EpsDenoiser, VDenoiser, X0Denoiser
from tinydiff.diffuse import bits_per_dim, ddpm_loss, q_posterior, q_sample, variational_bound
from tinydiff.exact import EmpiricalDenoiser, GaussianMixture, gaussian_flow
from tinydiff.guide import ClassifierFree, ClassifierGuided, Clipped, DynamicThreshold
from tinydiff.nets import MLP, UNet
from tinydiff.sample import State, ddim, ddpm, dpm_solver_pp, final, sample, step
from tinydiff.schedule import (
    Schedule,
    cosine,
    from_betas,
    karras,
    linear,
    quadratic,
    sigmoid,
    uniform,
    uniform_log_snr,
)
from tinydiff.solvers import dpm_solver, dpm_solver_pp_singlestep, heun, invert
from tinydiff.train import EMA, Progress, batches, fast_dtype, train

__all__ = [
    "EMA",
    "MLP",
    "ClassifierFree",
    "ClassifierGuided",
    "Clipped",
    "Denoiser",
    "DynamicThreshold",
    "EmpiricalDenoiser",
    "EpsDenoiser",
    "GaussianMixture",
    "Progress",
    "Schedule",
    "State",
    "UNet",
    "VDenoiser",
    "X0Denoiser",
    "batches",
    "bits_per_dim",
    "cosine",
    "ddim",
    "ddpm",
    "ddpm_loss",
    "digits",
    "dpm_solver",
    "dpm_solver_pp",
    "dpm_solver_pp_singlestep",
    "fast_dtype",
    "final",
    "from_betas",
    "gaussian_flow",
    "heun",
    "invert",
    "karras",
    "linear",
    "load",
    "mnist",
    "q_posterior",
    "q_sample",
    "quadratic",
    "sample",
    "save",
    "sigmoid",
    "step",
    "toy",
    "train",
    "uniform",
    "uniform_log_snr",
    "variational_bound",
]
