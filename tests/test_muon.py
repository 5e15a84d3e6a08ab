import copy

import pytest
import torch
from torch import nn

from tinydiff.muon import COEFFICIENTS, Muon, orthogonal


@pytest.mark.parametrize("shape", [(32, 288), (64, 64), (128, 40)])
def test_orthogonal_maps_every_singular_value_by_the_polynomial_and_turns_nothing(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    s, (a, b, c) = s / s.norm(), COEFFICIENTS
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    assert (orthogonal(x) - u @ torch.diag(s) @ vt).abs().max() < 1e-10
    assert orthogonal(torch.zeros(shape)).abs().max() == 0


def test_orthogonal_keeps_its_digits_in_float32_on_badly_scaled_matrices():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 288, generator=generator, dtype=torch.float64) * torch.logspace(0, -4, 288)
    assert (orthogonal(x.float()) - orthogonal(x)).abs().max() < 1e-3


def _gradients(net: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


def _twins() -> tuple[nn.Module, nn.Module]:
    pair = []
    for _ in range(2):
        torch.manual_seed(0)
        pair.append(nn.Conv2d(32, 64, 3))
    return pair[0], pair[1]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch is older than its Muon")
def test_convolutions_move_as_under_torchs_muon_within_its_bfloat16():
    ours, theirs = _twins()
    start = ours.weight.detach().clone()
    a = Muon(ours.parameters(), 0.01, weight_decay=5)
    matrix = nn.Parameter(theirs.weight.detach().flatten(1))
    b = torch.optim.Muon([matrix], 0.01, weight_decay=5, adjust_lr_fn="match_rms_adamw")
    for seed in range(5):
        _gradients(ours, seed)
        matrix.grad = ours.weight.grad.flatten(1)
        a.step()
        b.step()
    moved = matrix - start.flatten(1)
    assert (ours.weight.flatten(1) - matrix).abs().max() < 0.05 * moved.abs().max()


@pytest.mark.parametrize("net", [nn.Linear(96, 64), nn.Conv2d(3, 64, 3)])
def test_all_else_moves_as_under_adamw(net):
    ours, theirs = net, copy.deepcopy(net)
    optimisers = Muon(ours.parameters(), 0.01), torch.optim.AdamW(theirs.parameters(), 0.01)
    for seed in range(3):
        for net, optimiser in zip((ours, theirs), optimisers, strict=True):
            _gradients(net, seed)
            optimiser.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q)


def test_its_state_is_restored_with_the_momentum():
    net, twin = _twins()
    optimiser = Muon(net.parameters(), 0.01)
    for seed in range(2):
        _gradients(net, seed)
        optimiser.step()
    assert all(p.grad is not None for p in net.parameters())  # lent to the step, not eaten by it
    twin.load_state_dict(net.state_dict())
    other = Muon(twin.parameters(), 0.01)
    other.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    for each, opt in ((net, optimiser), (twin, other)):
        _gradients(each, 9)
        opt.step()
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)
