"""`tinydiff doctor`: what is installed and found, and a self-test of a few seconds against known answers."""

import importlib.metadata
import platform
import time

import torch

import tinydiff as td
from tinydiff.data import SPLITS, _find


def report(device: torch.device) -> bool:
    """Print the state of this installation; True if the self-test passes."""
    print(f"tinydiff {td.__version__}, Python {platform.python_version()}, {platform.platform()}")
    packages = ("torch", "numpy", "matplotlib", "scikit-learn", "jupyterlab", "ipywidgets", "nbval")
    print(", ".join(f"{name} {_version(name)}" for name in packages))
    dtype = str(td.fast_dtype(torch.zeros(1, 1, 8, 8, device=device))).removeprefix("torch.")
    print(f"device {device}, {torch.get_num_threads()} threads, pictures are trained in {dtype}")
    print(f"MNIST {where_mnist()}")
    passed = True
    for title, test in (("sampling", _sampling), ("training", _training)):
        start = time.perf_counter()
        ok, figure = test(device)
        passed &= ok
        print(f"{'ok    ' if ok else 'FAILED'} {title}: {figure} ({time.perf_counter() - start:.1f} s)")
    return passed


def where_mnist() -> str:
    """Where MNIST lies, in words."""
    found = [_find(name) for names in SPLITS.values() for name in names]
    if None in found:
        return "not on this machine yet (the first use downloads 11 MB)"
    return f"found in {found[0].parent if found[0] else ''}"


def _sampling(device: torch.device) -> tuple[bool, str]:
    """Samples of one Gaussian go where its closed-form flow says."""
    schedule, mean = td.linear(), torch.tensor([[0.5, -0.2]])
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)).to(device)
    out = td.final(td.dpm_solver_pp(td.GaussianMixture(mean, 0.3).denoiser(schedule), x, td.uniform(schedule, 50)))
    error = (out - td.gaussian_flow(schedule, mean[0].to(device), 0.3, x, 1000, 0)).abs().max().item()
    return error < 0.05, f"largest error of 50 DPM-Solver++ steps {error:.4f}, should be below 0.05"


def _training(device: torch.device) -> tuple[bool, str]:
    """A network trained for 300 steps finds noise better than the constant 0, whose loss is 1."""
    x, _ = td.toy("eight_gaussians", 2000, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    denoiser = td.EpsDenoiser(td.MLP(hidden=64), td.linear()).to(device)
    generator = torch.Generator().manual_seed(0)
    batches = td.batches(x.to(device), size=256, generator=generator)
    losses = [p.loss for p in td.train(denoiser, batches, steps=300, generator=generator)]
    loss = sum(losses[-50:]) / 50
    return loss < 0.6, f"loss {loss:.2f} after 300 steps, should be below 0.60"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"
