"""Networks: shapes, samples that do not leak into one another, labels, gradients, and that they learn."""

import json

import pytest
import torch
from conftest import normal
from torch import Tensor, nn

import tinydiff as td
from tinydiff.nets import MLP, TimeAndClass, UNet


def unet(**config: object) -> UNet:
    return UNet(**{"width": 8, "patch": 1, **config})  # type: ignore[arg-type]


def shaken(net: nn.Module, seed: int = 0) -> nn.Module:
    """In float64 and eval mode, with no weight at its tidy initial value (the output layer starts at zero)."""
    generator = torch.Generator().manual_seed(seed)
    net = net.double().eval()
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return net


def conditional() -> list[tuple[nn.Module, tuple[int, ...]]]:
    return [(MLP(classes=3), (5, 2)), (unet(classes=3), (5, 1, 8, 12))]


@pytest.mark.parametrize("classes", [0, 10])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("side", "patch"), [(8, 1), (28, 2), (32, 2), (32, 4), (4, 2)])
def test_unet_returns_the_shape_it_was_given(side: int, patch: int, channels: int, classes: int) -> None:
    net = shaken(unet(channels=channels, patch=patch, classes=classes))
    x, t = normal(3, channels, side, side), torch.tensor([0.0, 1.0, 1000.0], dtype=torch.float64)
    out = net(x, t, torch.tensor([0, -1, 9])) if classes else net(x, t)
    assert out.shape == x.shape
    assert out.std() > 0.01


def test_unet_takes_oblong_pictures_and_turns_neither_side_into_the_other() -> None:
    torch.manual_seed(0)
    net, x, t = shaken(unet(patch=2)), normal(2, 1, 8, 20), torch.zeros(2, dtype=torch.float64)
    with torch.no_grad():
        out = net(x, t)
        moved = net(x + torch.nn.functional.one_hot(torch.tensor(15), 20), t) - out  # one column, at 3/4 of the width
    assert out.shape == x.shape
    columns = moved[0, 0].abs().sum(0)
    assert columns[10:].sum() > 1.5 * columns[:10].sum()


@pytest.mark.parametrize(("net", "shape"), conditional())
def test_each_sample_is_computed_alone_with_its_own_t_and_y(net: nn.Module, shape: tuple[int, ...]) -> None:
    shaken(net)
    x, t = normal(*shape), torch.tensor([0, 1.5, 40, 500, 1000], dtype=torch.float64)
    y = torch.tensor([0, 1, 2, -1, 0])
    alone = torch.cat([net(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(net(x, t, y), alone, rtol=1e-9, atol=1e-9)
    assert (net(x, t.flip(0), y) - alone)[[0, 1, 3, 4]].abs().amax(tuple(range(1, x.ndim))).min() > 1e-3  # t matters
    assert (net(x, t, y.roll(1)) - alone)[1:].abs().amax(tuple(range(1, x.ndim))).min() > 1e-3  # y matters


@pytest.mark.parametrize(("net", "shape"), conditional())
def test_no_label_and_minus_one_mean_the_same_and_no_class_is_not_a_class(
    net: nn.Module, shape: tuple[int, ...]
) -> None:
    shaken(net)
    x, t = normal(*shape), normal(5).abs() * 100
    none = net(x, t)
    assert torch.equal(none, net(x, t, torch.full((5,), -1)))
    for label in range(3):
        assert (none - net(x, t, torch.full((5,), label))).abs().amin() > 1e-9


def label_rows(train: bool, dropout: float = 0.25) -> Tensor:
    """Which of 4000 labels y = 0 were used, told from the output."""
    emb = TimeAndClass(4, 2, dropout).train(train)
    assert emb.table is not None
    with torch.no_grad():
        for row, p in enumerate(emb.table.weight):
            p.fill_(100.0 * row)  # row 2 is "no class"
        return (emb(torch.zeros(4000), torch.zeros(4000, dtype=torch.long))[:, 0] / 100).round()


def test_labels_are_dropped_at_the_stated_rate_in_training_and_never_in_eval() -> None:
    torch.manual_seed(0)
    rows = label_rows(train=True)
    rate = (rows == 2).double().mean()
    assert set(rows.tolist()) == {0.0, 2.0}
    assert abs(rate - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5  # four standard errors
    assert set(label_rows(train=False).tolist()) == {0.0}
    assert set(label_rows(train=True, dropout=0.0).tolist()) == {0.0}


def test_label_dropout_is_drawn_from_torchs_global_state_and_nothing_else_is() -> None:
    torch.manual_seed(3)
    first = label_rows(train=True)
    torch.manual_seed(3)
    assert torch.equal(first, label_rows(train=True))
    net, before = unet(classes=2).eval(), torch.get_rng_state()
    net(torch.zeros(2, 1, 8, 8), torch.zeros(2), torch.zeros(2, dtype=torch.long))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("net", "shape"), [*conditional(), (MLP(), (5, 2)), (unet(channels=3), (5, 3, 8, 8))])
def test_gradient_reaches_every_parameter(net: nn.Module, shape: tuple[int, ...]) -> None:
    shaken(net)
    y = {"y": torch.tensor([0, 1, 2, -1, 0])} if "emb.table.weight" in net.state_dict() else {}
    net(normal(*shape), normal(5).abs() * 100, **y).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        per_output = p.grad.flatten(1).abs().sum(1) if p.ndim > 1 else p.grad.abs()
        assert (per_output > 0).all(), name


@pytest.mark.parametrize("net", [MLP(3, 32, 2, 4, 0.2), UNet(3, 8, 1, 1, 4, 0.2)])
def test_config_survives_json_and_rebuilds_the_network(net: nn.Module) -> None:
    twin = type(net)(**json.loads(json.dumps(net.config)))
    assert twin.config == net.config
    twin.load_state_dict(net.state_dict())


def test_detail_reaches_the_output_by_the_skip_alone() -> None:
    net, x, t = shaken(unet()), normal(2, 1, 8, 8), torch.ones(2, dtype=torch.float64)
    nn.init.zeros_(net.grow.weight)  # nothing comes up from half the resolution
    assert (net(x, t) - net(x.roll(1, 0), t)).abs().min() > 1e-6


def test_unet_starts_by_predicting_zero() -> None:
    assert not unet()(torch.randn(2, 1, 8, 8), torch.ones(2)).any()


@pytest.mark.parametrize(("net", "shape"), conditional())
def test_bfloat16_autocast_keeps_the_dtype_outside_and_the_answer_nearly(
    net: nn.Module, shape: tuple[int, ...]
) -> None:
    shaken(net).float()
    x, t = normal(*shape, dtype=torch.float32), torch.linspace(0, 1000, 5)
    exact = net(x, t)
    with torch.autocast("cpu", torch.bfloat16):
        rough = net(x, t)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).square().mean() < 1e-3 * exact.square().mean()


@pytest.mark.parametrize(
    ("net", "x", "y", "sentence"),
    [
        (unet(patch=2), torch.zeros(2, 1, 28, 30), None, r"28x30 .* patch=2 .* multiples of 4"),
        (unet(patch=1), torch.zeros(2, 1, 7, 7), None, r"7x7 .* patch=1 .* multiples of 2"),
        (unet(), torch.zeros(2, 3, 8, 8), None, r"\(2, 3, 8, 8\).* \(B, 1, H, W\)"),
        (unet(), torch.zeros(2, 64), None, r"\(2, 64\).* \(B, 1, H, W\)"),
        (MLP(), torch.zeros(2, 3), None, r"\(2, 3\).* \(B, 2\)"),
        (MLP(), torch.zeros(2, 2), torch.tensor([0, 1]), "classes=0 and cannot use y"),
        (MLP(classes=3), torch.zeros(2, 2), torch.tensor([0, 3]), r"contains 3.* 0\.\.2"),
        (MLP(classes=3), torch.zeros(2, 2), torch.tensor([-2, 0]), r"contains -2.* 0\.\.2"),
        (MLP(classes=3), torch.zeros(2, 2), torch.tensor([1]), r"\(1,\).* \(2,\)"),
        (MLP(classes=3), torch.zeros(2, 2), torch.tensor([0.0, 1.0]), "must be whole numbers"),
        (MLP(classes=3), torch.zeros(2, 2), 1, r"y is 1, but must be whole numbers of shape \(2,\).*torch\.full"),
        (MLP(classes=3), torch.zeros(2, 2), [0, 1], r"y is \[0, 1\], but must be whole numbers"),
    ],
)
def test_wrong_inputs_are_named(net: nn.Module, x: Tensor, y: Tensor | None, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        net(x, torch.zeros(len(x)), y)


@pytest.mark.parametrize("config", [{"classes": -1}, {"label_dropout": 1.5}])
def test_wrong_configurations_are_named(config: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"classes = .* label_dropout = "):
        MLP(**config)  # type: ignore[arg-type]


def fit(denoiser: td.Denoiser, x0: Tensor, steps: int, t: Tensor | None = None, **cond: Tensor) -> float:
    """Train on one batch; the mean loss over the last fifth."""
    torch.manual_seed(0)
    optimiser = torch.optim.Adam(denoiser.parameters(), 3e-3)
    losses = []
    for i in range(steps):
        optimiser.param_groups[0]["lr"] = 3e-3 * (1 - i / steps)
        loss = td.ddpm_loss(denoiser, x0, **cond) if t is None else denoiser.loss(x0, t, torch.randn_like(x0), **cond)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return sum(losses[-steps // 5 :]) / len(losses[-steps // 5 :])


def test_mlp_learns_from_both_x_and_t() -> None:
    # All data at one point c: eps = (x_t - alpha_t c)/sigma_t is a function of (x, t), and a perfect network reaches 0.
    # Blind to x it can only say E eps = 0: loss 1. Blind to t its best is E[eps | x] over p(t | x): computed here.
    schedule, c = td.linear(), torch.tensor([1.5, -1.0])
    t = torch.arange(1, 1001)
    alpha, sigma = (a.float() for a in schedule(t))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1000, 2, generator=generator)
    x = alpha[:, None] * c + sigma[:, None] * noise
    eps = (x[:, None] - alpha[:, None] * c) / sigma[:, None]  # (x, t', 2): the noise had it been time t'
    log_p = -eps.square().sum(2) / 2 - 2 * sigma.log()
    blind_to_t = ((log_p.softmax(1)[..., None] * eps).sum(1) - noise).square().mean().item()
    assert 0.05 < blind_to_t < 1

    torch.manual_seed(0)
    reached = fit(td.EpsDenoiser(MLP(hidden=64, layers=2), schedule), c.expand(256, 2), steps=600)
    assert reached < blind_to_t / 3


@pytest.mark.parametrize(("net", "shape"), [(MLP(hidden=32, classes=2), (64, 2)), (unet(classes=2), (64, 1, 4, 4))])
def test_networks_learn_from_y(net: nn.Module, shape: tuple[int, ...]) -> None:
    # x0 = +1 or -1 by label, seen at t = T, where x_t says next to nothing: without y the best answer is 0, loss 1.
    y = torch.arange(64) % 2
    x0 = (2.0 * y - 1).reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
    t = torch.full((64,), 1000.0)
    blind = fit(td.X0Denoiser(type(net)(**net.config), td.linear()), x0, 100, t, y=torch.full((64,), -1))
    told = fit(td.X0Denoiser(net, td.linear()), x0, 100, t, y=y)
    assert blind > 0.8
    assert told < 0.35  # a tenth of the labels are dropped: 0.1 is the floor, and batches vary


def test_unet_learns_from_x() -> None:
    # Blind to x the best prediction of the noise is 0, loss 1.
    torch.manual_seed(0)
    x0 = torch.ones(64, 1, 8, 8)
    assert fit(td.EpsDenoiser(unet(width=16), td.linear()), x0, steps=80) < 0.4
