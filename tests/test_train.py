"""Training: the average, the schedule of the learning rate, stopping and resuming bit for bit, and damaged files."""

import copy
import errno
import itertools
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from conftest import normal
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import tinydiff as td
from tinydiff.checkpoint import load, save
from tinydiff.nets import MLP, UNet
from tinydiff.train import EMA, Progress, batches, fast_dtype, train


def small(seed: int = 0, **config: int) -> td.VDenoiser:
    torch.manual_seed(seed)
    return td.VDenoiser(UNet(**{"width": 8, "patch": 1, "classes": 3, **config}), td.cosine(50))  # type: ignore[arg-type]


def points(seed: int = 0) -> td.EpsDenoiser:
    torch.manual_seed(seed)
    return td.EpsDenoiser(MLP(hidden=16, layers=1), td.cosine(50))


PICTURES = normal(20, 1, 8, 8, dtype=torch.float32), torch.arange(20) % 3
POINTS = normal(50, 2, dtype=torch.float32)


def weights(denoiser: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in denoiser.state_dict().values()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


# --- the average


def test_ema_follows_the_closed_form_through_its_warm_up() -> None:
    denoiser = points()
    for p in denoiser.parameters():
        nn.init.zeros_(p)
    ema = EMA(denoiser, decay=0.5)  # (1+n)/(10+n) reaches it at n = 8
    for p in denoiser.parameters():
        nn.init.ones_(p)
    left = 1.0
    for n in range(20):
        ema.update(denoiser)
        left *= min(0.5, (1 + n) / (10 + n))
        for p in ema.denoiser.parameters():
            torch.testing.assert_close(p, torch.full_like(p, 1 - left))


def test_ema_leaves_constant_weights_exactly_alone_and_copies_buffers() -> None:
    denoiser = points()
    denoiser.net.register_buffer("count", torch.zeros(1))
    ema = EMA(denoiser)
    before = weights(denoiser)
    denoiser.net.count += 7
    for _ in range(50):
        ema.update(denoiser)
    assert ema.denoiser.net.count == 7
    denoiser.net.count -= 7
    ema.update(denoiser)
    assert same(weights(ema.denoiser), before)
    assert same(weights(denoiser), before)


def test_ema_is_a_frozen_copy_in_eval_mode() -> None:
    ema = EMA(points().train())
    assert not ema.denoiser.training
    assert not any(p.requires_grad for p in ema.denoiser.parameters())
    for decay in (-0.1, 1.0):
        with pytest.raises(ValueError, match="decay = "):
            EMA(points(), decay)


# --- batches


def test_batches_keep_labels_with_their_samples_and_resume_from_a_generator_state() -> None:
    x = torch.arange(10.0)[:, None]
    generator = torch.Generator().manual_seed(0)
    source = batches(x, torch.arange(10), size=64, generator=generator)
    x0, y = next(source)
    assert x0.shape == (64, 1)
    assert torch.equal(x0[:, 0].long(), y)
    assert set(y.tolist()) == set(range(10))
    state = generator.get_state()
    expected = [next(source)[1] for _ in range(3)]
    again = batches(x, torch.arange(10), size=64, generator=torch.Generator().set_state(state))
    assert all(torch.equal(a, next(again)[1]) for a in expected)
    assert isinstance(next(batches(x, size=3)), Tensor)


@pytest.mark.parametrize(("n", "labels", "size"), [(0, 0, 4), (5, 4, 4), (5, 5, 0)])
def test_batches_name_what_cannot_be_drawn(n: int, labels: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"{n} samples, {labels} labels, size={size}"):
        next(batches(torch.zeros(n, 2), torch.zeros(labels), size=size))


# --- the loop


def test_training_lowers_the_loss_and_the_average_follows() -> None:
    denoiser, generator = points(), torch.Generator().manual_seed(0)
    ema = EMA(denoiser, decay=0.9)
    data = 0.1 * POINTS + 1
    run = train(denoiser, batches(data, size=64, generator=generator), steps=300, lr=1e-2, ema=ema, generator=generator)
    losses = [p.loss for p in run]
    assert sum(losses[-50:]) < 0.5 * sum(losses[:50])
    for model in (denoiser, ema.denoiser):
        mean = torch.stack([td.ddpm_loss(model, data, generator=generator) for _ in range(20)]).mean()
        assert mean < 0.5 * sum(losses[:50]) / 50


def test_learning_rate_warms_up_and_falls_along_a_cosine_and_progress_counts() -> None:
    run = list(train(points(), batches(POINTS, size=8), steps=10, lr=0.5, warmup=0.4))
    done = (torch.arange(10) + 0.5) / 10
    expected = 0.5 * (done / 0.4).clamp(max=1) * (1 + torch.cos(torch.pi * done)) / 2
    torch.testing.assert_close(torch.tensor([p.lr for p in run]), expected)
    assert [p.step for p in run] == list(range(1, 11))
    torch.testing.assert_close(torch.tensor([p.fraction for p in run]), (torch.arange(10) + 1) / 10)
    assert all(a.seconds < b.seconds for a, b in itertools.pairwise(run))


def test_a_time_budget_counts_training_and_not_what_the_caller_does() -> None:
    now = [0.0]

    def tick() -> float:  # read twice a step: a step takes 1 s
        now[0] += 1
        return now[0]

    run = []
    for p in train(points(), batches(POINTS, size=8), seconds=8, lr=1.0, warmup=0, clock=tick):
        run.append(p)
        now[0] += 1000
    assert [p.seconds for p in run] == list(range(1, 9))
    assert run[-1].fraction == 1
    assert {p.images_per_second for p in run} == {8.0}
    expected = (1 + torch.cos(torch.pi * torch.arange(8) / 8)) / 2
    torch.testing.assert_close(torch.tensor([p.lr for p in run]), expected)


@pytest.mark.parametrize("budget", [{}, {"steps": 5, "seconds": 5.0}, {"steps": 0}, {"seconds": -1.0}])
def test_the_budget_is_one_of_steps_and_seconds(budget: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"steps or seconds.* steps=.* seconds="):
        next(train(points(), batches(POINTS, size=8), **budget))


def test_the_network_trains_in_train_mode_and_is_handed_out_in_eval_mode() -> None:
    denoiser, modes = small(), []

    def loss(denoiser: td.Denoiser, x0: Tensor, *, generator: torch.Generator | None, y: Tensor) -> Tensor:
        modes.append(denoiser.net.training)
        assert y.shape == (4,)
        return td.ddpm_loss(denoiser, x0, generator=generator, y=y)

    for _ in train(denoiser, batches(*PICTURES, size=4), steps=3, loss=loss):
        assert not denoiser.net.training
    assert modes == [True] * 3


def test_finite_batches_begin_again_and_none_at_all_is_named() -> None:
    assert len(list(train(points(), [POINTS[:8], POINTS[8:16]], steps=5))) == 5
    with pytest.raises(ValueError, match="batches ran out"):
        list(train(points(), iter([POINTS]), steps=5))


def test_batches_may_come_from_a_data_loader_and_a_data_set_in_their_place_is_named() -> None:
    x, y = POINTS[:8], torch.arange(8) % 3
    seen = []

    def loss(denoiser: td.Denoiser, x0: Tensor, *, generator: Any, **cond: Tensor) -> Tensor:
        seen.append((x0, cond))
        return td.ddpm_loss(denoiser, x0, generator=generator)

    for data in (TensorDataset(x), TensorDataset(x, y)):
        list(train(points(), DataLoader(data, batch_size=4), steps=2, loss=loss))
    assert torch.equal(torch.cat([x0 for x0, _ in seen]), torch.cat([x, x]))
    assert [list(cond) for _, cond in seen] == [[], [], ["y"], ["y"]]
    assert torch.equal(torch.cat([cond["y"] for _, cond in seen[2:]]), y)
    assert len(list(train(points(), (x, x), steps=2))) == 2, "a tuple of batches is no data set"
    with pytest.raises(ValueError, match=r"a whole data set.*td\.batches\(x, y, size=128\)"):
        next(train(points(), td.toy("moons", 50), steps=2))


def test_an_average_is_not_trained_itself_but_a_copy_of_it_can_be() -> None:
    average = EMA(points()).denoiser
    with pytest.raises(ValueError, match=r"No weight of this denoiser wants a gradient.*requires_grad_\(True\)"):
        next(train(average, batches(POINTS, size=8), steps=1))
    copied = copy.deepcopy(average).requires_grad_(True)
    next(train(copied, batches(POINTS, size=8), steps=1, warmup=0))
    assert not same(weights(copied), weights(average))


def test_labels_are_dropped_by_torchs_global_generator_beside_the_one_that_is_given() -> None:
    """As the docstring of `train` says: the same seed twice is needed for the same weights."""

    def trained(seed: int) -> list[Tensor]:
        denoiser, generator = small(), torch.Generator().manual_seed(0)
        torch.manual_seed(seed)
        list(train(denoiser, batches(*PICTURES, size=8, generator=generator), steps=4, generator=generator))
        return weights(denoiser)

    first = trained(1)
    assert same(first, trained(1))
    assert not same(first, trained(2))


def test_gradients_are_clipped_to_the_stated_norm() -> None:
    denoiser, norms = points(), []

    def loss(denoiser: td.Denoiser, x0: Tensor, *, generator: Any) -> Tensor:
        return 1e6 * td.ddpm_loss(denoiser, x0, generator=generator)

    for _ in train(denoiser, batches(POINTS, size=8), steps=2, clip=0.25, loss=loss):
        norms.append(torch.stack([p.grad.square().sum() for p in denoiser.parameters()]).sum().sqrt().item())
    assert norms == pytest.approx([0.25, 0.25], rel=1e-4)


def test_bfloat16_is_for_pictures_in_float32_and_can_be_overruled() -> None:
    assert fast_dtype(torch.zeros(2, 2)) == torch.float32
    assert fast_dtype(torch.zeros(2, 1, 8, 8, dtype=torch.float64)) == torch.float64
    seen = []

    def loss(denoiser: td.Denoiser, x0: Tensor, *, generator: Any, y: Tensor) -> Tensor:
        seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)
        return td.ddpm_loss(denoiser, x0, generator=generator, y=y)

    for dtype in (torch.float32, torch.bfloat16):
        next(train(small(), batches(*PICTURES, size=4), steps=1, dtype=dtype, loss=loss))
    assert seen == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("where", ["data", "gradient"])
def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path, where: str) -> None:
    path, denoiser = tmp_path / "c.safetensors", points()

    def source(good: int) -> Iterator[Tensor]:
        yield from [POINTS] * good
        yield POINTS * torch.nan if where == "data" else POINTS

    def loss(denoiser: td.Denoiser, x0: Tensor, *, generator: Any) -> Tensor:
        value = td.ddpm_loss(denoiser, x0, generator=generator)
        first = next(denoiser.parameters())
        infinite_slope = (first - first.detach()).square().sum().sqrt()  # 0, and 0/0 is its derivative
        return value + infinite_slope if where == "gradient" and steps == [1, 2, 3] else value

    steps = []
    for p in train(denoiser, source(3), steps=9, checkpoint=path, loss=loss):
        steps.append(p.step)
        if p.step == 2:
            break
    good, data = weights(denoiser), path.read_bytes()
    with pytest.raises(FloatingPointError, match=r"at step 4: lower lr=0\.002"):  # noqa: PT012
        for p in train(denoiser, source(1), steps=9, checkpoint=path, loss=loss):
            steps.append(p.step)
    assert steps == [1, 2, 3]
    assert path.read_bytes() == data
    assert same(weights(load(path)), good)
    assert all(p.isfinite().all() for p in denoiser.parameters())


# --- stopping and resuming

STEPS = 8


def whole_run(path: Path | None = None, seed: int = 0, source: Any = None, **extra: Any) -> tuple[list[Tensor], Any]:
    """All of a run's weights, and its last progress; a run that finds its checkpoint continues it."""
    denoiser, generator = small(seed), torch.Generator().manual_seed(seed)
    ema = EMA(denoiser)
    data = batches(*PICTURES, size=6, generator=generator)
    torch.manual_seed(seed)
    last = None
    for last in train(  # noqa: B007
        denoiser,
        data if source is None else source(data),
        steps=STEPS,
        ema=ema,
        generator=generator,
        checkpoint=path,
        **extra,
    ):
        pass
    return weights(denoiser) + weights(ema.denoiser), last


@pytest.fixture(scope="module")
def uninterrupted() -> list[Tensor]:
    return whole_run()[0]


class Stop(Exception):
    """Raised in the middle of a run."""


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Stop])
@pytest.mark.parametrize("save_every", [0, 1e9])
def test_a_stopped_run_loses_nothing_and_resumes_bit_for_bit(
    tmp_path: Path, uninterrupted: list[Tensor], stop: type[BaseException], save_every: float
) -> None:
    path = tmp_path / "c.safetensors"

    def stopping(data: Iterator[Any]) -> Iterator[Any]:
        for i, batch in enumerate(data):
            if i == 5:
                raise stop
            yield batch

    with pytest.raises(stop):
        whole_run(path, source=stopping, save_every=save_every)
    assert json.loads(header(path)["training"])["step"] == 5
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    x, y = PICTURES
    assert load(path)(x, 20.0, y=y).isfinite().all()

    resumed, last = whole_run(path, seed=1)  # other weights and other random states, which the file must replace
    assert same(resumed, uninterrupted)
    assert (last.step, last.fraction) == (STEPS, 1)
    assert not same(uninterrupted, whole_run(seed=1)[0])


def test_leaving_the_loop_saves(tmp_path: Path, uninterrupted: list[Tensor]) -> None:
    path = tmp_path / "c.safetensors"
    denoiser, generator = small(), torch.Generator().manual_seed(0)
    data = batches(*PICTURES, size=6, generator=generator)
    torch.manual_seed(0)
    run = train(denoiser, data, steps=STEPS, ema=EMA(denoiser), generator=generator, checkpoint=path)
    for p in run:
        if p.step == 3:
            break
    assert not path.exists()  # still open: it could go on
    run.close()
    assert json.loads(header(path)["training"])["step"] == 3
    assert same(whole_run(path, seed=1)[0], uninterrupted)


def test_ctrl_c_in_the_middle_of_an_update_waits_for_its_end(
    tmp_path: Path, uninterrupted: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, update = tmp_path / "c.safetensors", EMA.update

    def pressed(ema: EMA, denoiser: td.Denoiser) -> None:
        if ema.updates == 4:
            os.kill(os.getpid(), signal.SIGINT)
        update(ema, denoiser)

    heeded = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with deaf ears
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(EMA, "update", pressed)
        with pytest.raises(KeyboardInterrupt):
            whole_run(path)
    training = json.loads(header(path)["training"])
    assert (training["step"], training["updates"]) == (5, 5)
    assert signal.getsignal(signal.SIGINT) is before
    signal.signal(signal.SIGINT, heeded)
    assert same(whole_run(path, seed=1)[0], uninterrupted)


def test_a_finished_run_says_so_once_and_trains_no_further(tmp_path: Path, uninterrupted: list[Tensor]) -> None:
    path = tmp_path / "c.safetensors"
    _, first = whole_run(path)
    again, last = whole_run(path, seed=1)
    assert last == first
    assert same(again, uninterrupted)


def test_a_time_budget_spans_resumed_runs(tmp_path: Path) -> None:
    def run(seed: int) -> Iterator[Progress]:
        ticks = itertools.count()  # read twice a step: a step takes 1 s
        data = batches(POINTS, size=8)
        return train(points(seed), data, seconds=8, checkpoint=tmp_path / "c", clock=lambda: float(next(ticks)))

    for p in run(0):
        if p.seconds == 3:
            break
    assert [p.seconds for p in run(1)] == [4, 5, 6, 7, 8]


def test_the_speed_is_that_of_this_run_also_after_a_resume(tmp_path: Path) -> None:
    def run(seed: int) -> Iterator[Progress]:
        ticks = itertools.count(step=2)  # read twice a step: a step takes 2 s
        return train(
            points(seed), batches(POINTS, size=8), steps=6, checkpoint=tmp_path / "c", clock=lambda: next(ticks)
        )

    for p in run(0):
        assert p.images_per_second == 4
        if p.step == 3:
            break
    assert [p.images_per_second for p in run(1)] == [4, 4, 4]


def test_checkpoints_of_something_else_are_refused(tmp_path: Path) -> None:
    path, other = tmp_path / "c.safetensors", tmp_path / "saved.safetensors"
    whole_run(path)
    data = path.read_bytes()
    generator, torch_state = torch.Generator(), torch.get_rng_state()

    def resume(denoiser: td.Denoiser, with_ema: bool = True, at: Path = path, **extra: Any) -> None:
        ema, before = EMA(denoiser) if with_ema else None, weights(denoiser)
        with pytest.raises(ValueError, match=r"^[^\n]*choose another checkpoint\.$"):
            next(train(denoiser, batches(*PICTURES, size=6), steps=STEPS, checkpoint=at, ema=ema, **extra))
        assert same(weights(denoiser), before)

    resume(small(width=16), generator=generator)
    resume(td.EpsDenoiser(small().net, td.cosine(50)), generator=generator)
    resume(td.VDenoiser(small().net, td.linear(50)), generator=generator)
    resume(small(), with_ema=False, generator=generator)
    resume(small(), generator=None)
    save(other, small())
    resume(small(), at=other, generator=generator)
    assert path.read_bytes() == data
    assert torch_state.shape == torch.get_rng_state().shape


# --- files


def header(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, "pt") as file:
        return dict(file.metadata())


@pytest.mark.parametrize("schedule", [td.linear(), td.cosine(17), td.sigmoid(100)])
def test_a_denoiser_survives_its_file_exactly(tmp_path: Path, schedule: td.Schedule) -> None:
    path, (x, y) = tmp_path / "a.safetensors", PICTURES
    flat = x[:, 0, 0, :2]
    for kind in (td.EpsDenoiser, td.X0Denoiser, td.VDenoiser):
        for net, data, cond in (
            (MLP(hidden=16, classes=3), flat, {"y": y}),
            (MLP(hidden=16), flat, {}),
            (UNet(width=8, patch=2, classes=3), x, {"y": y}),
        ):
            for p in net.parameters():
                nn.init.normal_(p, std=0.1)
            denoiser = kind(net, schedule).eval()
            save(path, denoiser, seed=3, note="é")
            loaded = load(path)
            assert type(loaded) is kind
            assert not loaded.training
            assert torch.equal(loaded.schedule.log_alpha_bar, schedule.log_alpha_bar)
            assert torch.equal(loaded(data, 7.5, **cond), denoiser(data, 7.5, **cond))
            assert loaded.net.config == net.config
    assert header(path) == {
        "format": "tinydiff",
        "version": "1",
        "denoiser": "VDenoiser",
        "net": "UNet",
        "config": json.dumps(net.config),
        "info": json.dumps({"seed": 3, "note": "é"}),
    }
    assert safetensors.torch.load_file(path)["schedule.log_alpha_bar"].dtype == torch.float64


def test_a_denoiser_in_float64_comes_back_in_float64(tmp_path: Path) -> None:
    denoiser = td.VDenoiser(td.MLP(hidden=8, layers=1), td.linear()).double()
    td.save(tmp_path / "a.safetensors", denoiser)
    for ours, theirs in zip(denoiser.parameters(), td.load(tmp_path / "a.safetensors").parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert theirs.dtype == torch.float64


def test_load_prefers_the_average_in_a_training_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    everything, _ = whole_run(path)
    own, averaged = everything[: len(everything) // 2], everything[len(everything) // 2 :]
    assert same(weights(load(path)), averaged)
    assert not same(own, averaged)

    plain, denoiser = tmp_path / "plain.safetensors", points()
    denoiser.info = {"shape": [2]}
    list(train(denoiser, batches(POINTS, size=8), steps=2, checkpoint=plain))
    assert same(weights(load(plain)), weights(denoiser))
    assert load(plain).info == {"shape": [2]}


def rewritten(path: Path, **changes: str) -> None:
    tensors, old = safetensors.torch.load_file(path), header(path)
    safetensors.torch.save_file(tensors, path, old | changes)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-100]), "damaged or no safetensors file"),
        (lambda p: p.write_bytes(p.read_bytes()[:50]), "damaged or no safetensors file"),
        (lambda p: p.write_bytes(b""), "damaged or no safetensors file"),
        (lambda p: p.write_bytes(b"PK\x03\x04" + bytes(1000)), "damaged or no safetensors file"),
        (lambda p: safetensors.torch.save_file({"a": torch.zeros(2)}, p), "not tinydiff's"),
        (lambda p: rewritten(p, version="2"), r"format 2.* reads 1: pip install -U"),
        (lambda p: rewritten(p, net="Transformer"), "'Transformer'.* upgrade"),
        (lambda p: rewritten(p, denoiser="os.system"), "'os.system'.* upgrade"),
        (lambda p: rewritten(p, config='{"hidden": 32, "layers": 1}'), "own description"),
        (lambda p: rewritten(p, config='{"depth": 3}'), "own description"),
        (lambda p: rewritten(p, config="{"), "own description"),
    ],
)
def test_damaged_and_foreign_files_are_named(tmp_path: Path, damage: Any, sentence: str) -> None:
    path = tmp_path / "a.safetensors"
    save(path, points())
    damage(path)
    with pytest.raises(ValueError, match=sentence) as error:
        load(path)
    assert str(path) in str(error.value)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no file .*b\.safetensors"):
        load(tmp_path / "b.safetensors")
    with pytest.raises(FileNotFoundError, match="There is no file"):
        load(tmp_path)
    with pytest.raises(OSError, match=r"Cannot write .*nowhere.*choose a folder that exists"):
        save(tmp_path / "nowhere" / "a.safetensors", points())
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Cannot write"):
        save(tmp_path / "file" / "a.safetensors", points())


def test_what_cannot_be_saved_is_named_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(error: type[Exception], sentence: str, denoiser: Any, folder: Path = tmp_path) -> None:
        batch = batches(PICTURES[0], size=4)
        with pytest.raises(error, match=sentence):
            next(train(denoiser, batch, steps=9, checkpoint=folder / "a.safetensors", loss=lambda *_, **__: 1 / 0))

    refuse(FileNotFoundError, r"Cannot write .*nowhere.*choose a folder that exists", small(), tmp_path / "nowhere")
    (tmp_path / "file").touch()
    refuse(FileNotFoundError, r"Cannot write .*file", small(), tmp_path / "file")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
        refuse(PermissionError, r"Cannot write .*and is yours", small())
    autoencoder = td.Autoencoder()
    refuse(TypeError, "not Autoencoder around NoneType", autoencoder)
    with pytest.raises(TypeError, match="keep your own classes"):
        save(tmp_path / "a.safetensors", autoencoder)  # type: ignore[arg-type]
    unheard = small()
    unheard.info = {"mean": torch.zeros(2)}
    refuse(TypeError, "Tensor is not JSON serializable", unheard)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="Cannot write"):
        save(tmp_path / "a.safetensors", points())


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save(path, points())
    data = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"Cannot write .*No space left.*make room") as error:
        save(path, points(1))
    assert error.value.errno == errno.ENOSPC
    assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_unknown_classes_are_refused_before_training_and_saving(tmp_path: Path) -> None:
    class MLP(nn.Linear):  # the name alone does not make it ours
        pass

    denoiser = td.EpsDenoiser(MLP(2, 2), td.cosine(50))
    with pytest.raises(TypeError, match=r"can hold .* around MLP, UNet, not EpsDenoiser around MLP"):
        save(tmp_path / "a.safetensors", denoiser)
    with pytest.raises(TypeError, match="keep your own classes"):
        next(train(denoiser, batches(POINTS, size=8), steps=1, checkpoint=tmp_path / "a.safetensors"))
    assert not list(tmp_path.iterdir())
