"""The same numbers on a GPU as on the CPU. Without a GPU every test here is skipped: it is hardware, not a tool."""

import copy

import pytest
import torch

import tinydiff as td

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture(autouse=True)
def _whole_float32():
    """TensorFloat-32 keeps 10 bits of a product, which is not what is compared here."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.mark.parametrize("sampler", [td.dpm_solver_pp, td.ddim, td.ddpm, td.heun])
def test_a_gpu_draws_the_samples_that_the_cpu_draws_from_the_same_noise(sampler):
    cpu = td.load_pretrained("mnist")
    gpu = copy.deepcopy(cpu).cuda()
    noise, y = torch.randn(32, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 10
    times = td.uniform(cpu.schedule, 20)
    cond = {"generator": None} if sampler in (td.ddpm, td.ddim) else {}
    drawn = []
    for denoiser in (cpu, gpu):
        device = next(denoiser.parameters()).device
        if cond:
            cond["generator"] = torch.Generator().manual_seed(1)
        drawn.append(td.final(sampler(denoiser, noise.to(device), times, y=y.to(device), **cond)))
    assert (drawn[0] - drawn[1].cpu()).abs().max() < 1e-3
    assert drawn[0].std() > 0.3  # digits, not a constant


def test_training_on_a_gpu_follows_the_cpu_in_float32():
    x, y = td.digits()
    losses = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)  # labels are dropped by the CPU's generator on either device
        denoiser = td.VDenoiser(td.UNet(width=32, patch=1, classes=10), td.cosine()).to(device)
        generator = torch.Generator().manual_seed(0)
        batches = td.batches(x.to(device), y.to(device), size=32, generator=generator)
        run = td.train(denoiser, batches, steps=20, lr=1e-3, dtype=torch.float32, generator=generator)
        losses.append(torch.tensor([p.loss for p in run]))
    assert losses[0][-1] < 0.8 * losses[0][0]
    assert (losses[0] - losses[1]).abs().max() < 1e-2


def test_bfloat16_is_used_where_the_gpu_has_it():
    native = torch.cuda.get_device_capability() >= (8, 0)
    assert td.fast_dtype(torch.zeros(1, 1, 8, 8, device="cuda")) == (torch.bfloat16 if native else torch.float32)


def test_a_checkpoint_moves_between_gpu_and_cpu(tmp_path):
    denoiser, x = td.load_pretrained("mnist", "cuda"), torch.randn(2, 1, 28, 28)
    td.save(tmp_path / "a.safetensors", denoiser)
    back = td.load(tmp_path / "a.safetensors")
    with torch.no_grad():
        assert (back(x, 500.0) - denoiser(x.cuda(), 500.0).cpu()).abs().max() < 1e-4
