"""tinydiff: diffusion models small enough to read, train and take apart on a laptop."""

__version__ = "0.1.0"

from tinydiff.autoencoder import Autoencoder, autoencoder_loss, kl_divergence
from tinydiff.checkpoint import load, save
from tinydiff.classifier import Classifier, train_classifier
from tinydiff.data import digits, mnist, toy
from tinydiff.denoise import Denoiser, EpsDenoiser, VDenoiser, X0Denoiser
from tinydiff.diffuse import bits_per_dim, ddpm_loss, q_posterior, q_sample, stratified_times, variational_bound
from tinydiff.distill import consistency_distillation_loss, consistency_training_loss, distill
from tinydiff.evaluate import Evaluation, evaluate
from tinydiff.exact import EmpiricalDenoiser, GaussianMixture, gaussian_flow
from tinydiff.guide import ClassifierFree, ClassifierGuided, Clipped, DynamicThreshold
from tinydiff.likelihood import log_likelihood
from tinydiff.nets import MLP, UNet
from tinydiff.observe import Conditioned, Downsample, Mask, Projected
from tinydiff.pretrained import load_autoencoder, load_classifier, load_pretrained
from tinydiff.restore import inpaint, remove_noise, resampling, sdedit, starting_at
from tinydiff.sample import State, consistency, ddim, ddpm, dpm_solver_pp, final, sample, step
from tinydiff.schedule import (
    Schedule,
    cosine,
    from_betas,
    karras,
    linear,
    quadratic,
    root_angle,
    sigmoid,
    uniform,
    uniform_angle,
    uniform_log_snr,
)
from tinydiff.solvers import dpm_solver, dpm_solver_pp_singlestep, heun, invert
from tinydiff.train import EMA, Progress, batches, fast_dtype, train

__all__ = [
    "EMA",
    "MLP",
    "Autoencoder",
    "Classifier",
    "ClassifierFree",
    "ClassifierGuided",
    "Clipped",
    "Conditioned",
    "Denoiser",
    "Downsample",
    "DynamicThreshold",
    "EmpiricalDenoiser",
    "EpsDenoiser",
    "Evaluation",
    "GaussianMixture",
    "Mask",
    "Progress",
    "Projected",
    "Schedule",
    "State",
    "UNet",
    "VDenoiser",
    "X0Denoiser",
    "autoencoder_loss",
    "batches",
    "bits_per_dim",
    "consistency",
    "consistency_distillation_loss",
    "consistency_training_loss",
    "cosine",
    "ddim",
    "ddpm",
    "ddpm_loss",
    "digits",
    "distill",
    "dpm_solver",
    "dpm_solver_pp",
    "dpm_solver_pp_singlestep",
    "evaluate",
    "fast_dtype",
    "final",
    "from_betas",
    "gaussian_flow",
    "heun",
    "inpaint",
    "invert",
    "karras",
    "kl_divergence",
    "linear",
    "load",
    "load_autoencoder",
    "load_classifier",
    "load_pretrained",
    "log_likelihood",
    "mnist",
    "q_posterior",
    "q_sample",
    "quadratic",
    "remove_noise",
    "resampling",
    "root_angle",
    "sample",
    "save",
    "sdedit",
    "sigmoid",
    "starting_at",
    "step",
    "stratified_times",
    "toy",
    "train",
    "train_classifier",
    "uniform",
    "uniform_angle",
    "uniform_log_snr",
    "variational_bound",
]
