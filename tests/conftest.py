"""Shared worlds: schedules and a mixture whose denoiser is exact, all in float64."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tinydiff as td
from tinydiff import data

torch.set_num_threads(1)  # tiny tensors: more threads only wait for one another; pytest-xdist uses the other cores

SCHEDULES = {"linear": td.linear(), "cosine": td.cosine(), "sigmoid": td.sigmoid(), "short": td.linear(50)}


@pytest.fixture(params=SCHEDULES.values(), ids=SCHEDULES.keys())
def schedule(request: pytest.FixtureRequest) -> td.Schedule:
    return request.param


@pytest.fixture
def mixture() -> td.GaussianMixture:
    """Three separate, unequal components in the plane."""
    means = torch.tensor([[-0.6, -0.3], [0.7, -0.2], [0.1, 0.8]], dtype=torch.float64)
    return td.GaussianMixture(means, [0.10, 0.20, 0.05], [0.5, 0.3, 0.2])


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def real_mnist(split: str) -> tuple[Tensor, Tensor]:
    """The real digits, wherever this machine has them; skips where it has none, and fails there on CI."""
    shared = Path(__file__).resolve().parents[2] / "shared"
    with pytest.MonkeyPatch.context() as patch:
        if not os.environ.get("TINYDIFF_DATA") and (shared / "mnist").is_dir():
            patch.setenv("TINYDIFF_DATA", str(shared))
        patch.setattr(data, "MIRRORS", ())  # a test never downloads them
        if not all(data._find(name) for name in data.SHA256):
            (pytest.fail if os.environ.get("CI") else pytest.skip)(
                "MNIST is not on this machine: set TINYDIFF_DATA to a folder that holds it, or call mnist() once."
            )
        return td.mnist(split)


@pytest.fixture(scope="session")
def mnist_train() -> tuple[Tensor, Tensor]:
    return real_mnist("train")


@pytest.fixture(scope="session")
def mnist_test() -> tuple[Tensor, Tensor]:
    return real_mnist("test")
