"""tinydiff: diffusion models small enough to read, train and take apart on a laptop."""

__version__ = "0.1.0"

from tinydiff.denoise import Denoiser, EpsDenoiser, VDenoiser, X0Denoiser
from tinydiff.diffuse import bits_per_dim, ddpm_loss, q_posterior, q_sample, variational_bound
from tinydiff.exact import EmpiricalDenoiser, GaussianMixture, gaussian_flow
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
