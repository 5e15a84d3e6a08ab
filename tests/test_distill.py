"""Consistency models against the exact flow of one Gaussian, against each other, and on a mixture of three."""

import copy
import importlib
import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import normal
from torch import Tensor, nn

import tinydiff as td
from tinydiff.checkpoint import read
from tinydiff.distill import ddim_step, heun_step, pseudo_huber, refined, squared_l2, substeps
from tinydiff.metrics import energy_distance

f64 = torch.float64
M, S = torch.tensor([0.6, -0.4], dtype=f64), 0.3  # the world: N(M, S^2) in the plane


class Exact:
    """The consistency function of N(M, S^2): the exact flow to t = 0."""

    def __init__(self, schedule: td.Schedule) -> None:
        self.schedule = schedule

    def __call__(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return td.gaussian_flow(self.schedule, M, S, x, t, 0.0)


def gaussian(schedule: td.Schedule) -> Any:
    return td.GaussianMixture(M[None], S).denoiser(schedule)


def data(n: int, seed: int = 0) -> Tensor:
    return M + S * normal(n, 2, seed=seed)


def slope(h: Tensor, errors: Tensor) -> float:
    """Least-squares slope of log error on log h."""
    x, y = h.log() - h.log().mean(), errors.log() - errors.log().mean()
    return ((x * y).sum() / (x * x).sum()).item()


class Says(nn.Module):
    """A denoiser that remembers how it was called, and in which mode."""

    def __init__(self, schedule: td.Schedule, *shape: int) -> None:
        super().__init__()
        self.schedule = schedule
        self.bias = nn.Parameter(torch.zeros(shape, dtype=f64))
        self.calls: list[tuple[Tensor, Tensor, dict[str, Any], bool, bool]] = []

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        self.calls.append((x, t, cond, self.training, torch.is_grad_enabled()))
        return x + self.bias


# --- the sampler


def test_one_consistency_step_is_the_denoiser_and_draws_nothing(mixture: td.GaussianMixture) -> None:
    schedule, x = td.linear(), normal(5, 2)
    denoiser, generator = mixture.denoiser(schedule), torch.Generator().manual_seed(0)
    before, y = generator.get_state(), torch.tensor([0, 1, 2, -1, 0])
    (state,) = td.consistency(denoiser, x, td.uniform(schedule, 1), generator=generator, y=y)
    expected = denoiser(x, schedule.T, y=y)
    assert state.t == 0
    assert torch.equal(state.x, expected)
    assert torch.equal(state.x0, expected)
    assert torch.equal(generator.get_state(), before)


def test_consistency_sampling_written_out() -> None:
    schedule, x, generator = td.cosine(), normal(6, 2), torch.Generator().manual_seed(3)
    f, times = Exact(schedule), torch.tensor([1000.0, 600.0, 150.0, 0.0], dtype=f64)
    states = list(td.consistency(f, x, times, generator=generator))
    replay, x_t = torch.Generator().manual_seed(3), x
    for state, t, s in zip(states, times[:-1], times[1:], strict=True):
        x0 = f(x_t, t)
        alpha, sigma = schedule(s)
        x_t = x0 if s == 0 else alpha * x0 + sigma * torch.randn(6, 2, dtype=f64, generator=replay)
        assert state.t == s
        torch.testing.assert_close(state.x0, x0, rtol=1e-13, atol=0)
        torch.testing.assert_close(state.x, x_t, rtol=1e-13, atol=0)
    assert torch.equal(generator.get_state(), replay.get_state())


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_exact_consistency_function_samples_exactly_the_data(schedule: td.Schedule, steps: int) -> None:
    """Mean and variance by propagation: each step maps N(a, v) noise to data moments in closed form, and a large
    sample agrees. Noise that is not quite pure at T starts from its own exact law."""
    alpha, sigma = schedule(schedule.T)
    x = alpha * M + (alpha**2 * S**2 + sigma**2).sqrt() * normal(40_000, 2)
    x = (x - x.mean(0)) / x.std(0) * (alpha**2 * S**2 + sigma**2).sqrt() + alpha * M  # moments exact from the start
    generator = torch.Generator().manual_seed(1)
    states = list(td.consistency(Exact(schedule), x, td.uniform(schedule, steps), generator=generator))
    first = states[0].x0  # no noise has been drawn for it
    torch.testing.assert_close(first.mean(0), M, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(first.std(0), torch.full((2,), S, dtype=f64), rtol=1e-9, atol=0)
    last = states[-1].x  # standard errors: S/200 = 0.0015 of the mean, S/283 = 0.0011 of the deviation
    torch.testing.assert_close(last.mean(0), M, rtol=0, atol=0.006)
    torch.testing.assert_close(last.std(0), torch.full((2,), S, dtype=f64), rtol=0, atol=0.0045)


# --- the teacher's step


@pytest.mark.parametrize(("solver", "order"), [(ddim_step, 1), (heun_step, 2)])
def test_the_residual_of_the_exact_function_falls_as_the_solver_says(solver: Any, order: int) -> None:
    """|f(x_t, t) - f(x_s_hat, s)| with x_s_hat one teacher step: local order is the solver's order + 1."""
    schedule = td.linear()
    f, teacher = Exact(schedule), gaussian(schedule)
    lam = torch.tensor([-3.0, -1.0, 0.0, 1.0, 2.5], dtype=f64)  # a time for each sample
    x_t, t = normal(5, 2), schedule.time(lam)
    hs, errors = torch.tensor([0.08, 0.04, 0.02, 0.01], dtype=f64), []
    for h in hs:
        s = schedule.time(lam + h)
        h_true = (schedule.half_log_snr(s) - schedule.half_log_snr(t)).mean()
        assert h_true == pytest.approx(h.item(), rel=1e-3)
        errors.append((f(x_t, t) - f(solver(teacher, x_t, t, s), s)).norm(dim=1))
    for error in torch.stack(errors, 1):  # (samples, hs): every sample by itself
        assert slope(hs, error) == pytest.approx(order + 1, abs=0.15)


@pytest.mark.parametrize(("solver", "order"), [(ddim_step, 1), (heun_step, 2)])
def test_substeps_bring_the_residual_down_as_the_solver_says(solver: Any, order: int) -> None:
    """One long interval for each sample, n steps in it: the error of the whole is of the solver's order in 1/n."""
    schedule = td.linear()
    f, teacher = Exact(schedule), gaussian(schedule)
    x_t, t = normal(3, 2), torch.tensor([900.0, 500.0, 300.0], dtype=f64)
    s, ns = torch.tensor([500.0, 200.0, 60.0], dtype=f64), torch.tensor([8, 16, 32, 64])
    errors = [(f(x_t, t) - f(substeps(teacher, x_t, t, s, n=int(n), solver=solver), s)).norm(dim=1) for n in ns]
    for error in torch.stack(errors, 1):
        assert slope(1 / ns, error) == pytest.approx(order, abs=0.15)
    torch.testing.assert_close(substeps(teacher, x_t, t, s, n=1, solver=solver), solver(teacher, x_t, t, s))


def test_substeps_are_even_in_the_angle_and_reach_zero() -> None:
    schedule = td.cosine()
    times = td.uniform_angle(schedule, 6)
    x, denoiser, n = normal(4, 2), gaussian(schedule), 3
    long, last = td.uniform_angle(schedule, 2), torch.zeros(4, dtype=f64)
    ours = substeps(denoiser, x, long[:1].expand(4), long[1].expand(4), n=n, solver=ddim_step)
    torch.testing.assert_close(ours, td.final(td.ddim(denoiser, x, times[: n + 1])), rtol=1e-9, atol=1e-9)
    ended = substeps(denoiser, x, long[1].expand(4), last, n=n, solver=ddim_step)
    torch.testing.assert_close(ended, td.final(td.ddim(denoiser, x, times[n:])), rtol=1e-9, atol=1e-9)


def heun(denoiser: Any, x: Tensor, times: Tensor) -> Iterator[td.State]:
    """Heun's rule for one step, written out in lambda: x_s = sigma_s/sigma_t x + alpha_s (1 - e^-h) x0_mean."""
    (t, s), schedule = times, denoiser.schedule
    (_, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    gain = 1 - (schedule.half_log_snr(t) - schedule.half_log_snr(s)).exp()
    x0 = denoiser(x, t)
    euler = sigma_s / sigma_t * x + alpha_s * gain * x0
    yield td.State(s, sigma_s / sigma_t * x + alpha_s * gain * (x0 / 2 + denoiser(euler, s) / 2), x0)


@pytest.mark.parametrize(("solver", "sampler"), [(ddim_step, td.ddim), (heun_step, heun)])
def test_a_step_of_each_sample_is_that_of_the_sampler(solver: Any, sampler: Any, mixture: td.GaussianMixture) -> None:
    """Per-sample times against one step for each alone, one to 0 among them."""
    schedule, x = td.cosine(), normal(3, 2)
    t, s = torch.tensor([[1000.0, 600.0, 40.0], [900.0, 350.0, 0.0]], dtype=f64)
    denoiser = mixture.denoiser(schedule)
    alone = [td.final(sampler(denoiser, x[i : i + 1], torch.stack([t[i], s[i]]))) for i in range(3)]
    torch.testing.assert_close(solver(denoiser, x, t, s), torch.cat(alone), rtol=1e-12, atol=1e-14)
    pictures = td.EmpiricalDenoiser(normal(4, 1, 2, 5, seed=1), schedule)  # (B, 1, H, W), B unlike W
    x = normal(3, 1, 2, 5)
    alone = [td.final(sampler(pictures, x[i : i + 1], torch.stack([t[i], s[i]]))) for i in range(3)]
    torch.testing.assert_close(solver(pictures, x, t, s), torch.cat(alone), rtol=1e-12, atol=1e-14)


# --- distances


def test_distances_are_their_formulas_per_sample() -> None:
    a, b = normal(3, 2, 4, 3, seed=1), normal(3, 2, 4, 3, seed=2)
    for i, (l2, huber, wide) in enumerate(
        zip(squared_l2(a, b), pseudo_huber(a, b), pseudo_huber(a, b, 5.0), strict=True)
    ):
        total = sum((p - q) ** 2 for p, q in zip(a[i].flatten().tolist(), b[i].flatten().tolist(), strict=True))
        c = 0.00054 * math.sqrt(24)
        assert l2.item() == pytest.approx(total, rel=1e-12)
        assert huber.item() == pytest.approx(math.sqrt(total + c * c) - c, rel=1e-12)
        assert wide.item() == pytest.approx(math.sqrt(total + 25) - 5, rel=1e-12)


def test_pseudo_huber_is_flat_where_both_agree() -> None:
    a = normal(3, 2).requires_grad_()
    value = pseudo_huber(a, a.detach())
    assert torch.equal(value, torch.zeros(3, dtype=f64))
    value.sum().backward()
    assert torch.equal(a.grad, torch.zeros(3, 2, dtype=f64))


# --- the losses


def test_heuns_rule_is_better_than_ddim_on_coarse_grids_too() -> None:
    """Averaging eps_hat, as td.heun does, would be hundreds of times worse here: sigma/alpha falls from 2e4 to 5."""
    schedule = td.cosine()
    x, (t, s) = normal(50, 2), td.uniform(schedule, 8)[:2]
    exact = td.gaussian_flow(schedule, M, S, x, t, s)
    error = {rule: (rule(gaussian(schedule), x, t, s) - exact).norm() for rule in (ddim_step, heun_step)}
    assert error[heun_step] < 0.7 * error[ddim_step]
    assert (td.final(td.heun(gaussian(schedule), x, torch.stack([t, s]))) - exact).norm() > 30 * error[ddim_step]


@pytest.mark.parametrize("solver", [ddim_step, heun_step])
@pytest.mark.parametrize("distance", [squared_l2, pseudo_huber])
def test_the_exact_function_has_a_far_lower_loss_than_the_teacher(solver: Any, distance: Any) -> None:
    schedule, x0 = td.linear(), data(2000)
    teacher = gaussian(schedule)

    def loss(student: Any, n: int) -> float:
        options = {"teacher": teacher, "times": td.uniform(schedule, n), "solver": solver, "distance": distance}
        generator = torch.Generator().manual_seed(0)
        return td.consistency_distillation_loss(student, x0, generator=generator, **options).item()

    exact, mean = ([loss(student, n) for n in (50, 100, 200)] for student in (Exact(schedule), teacher))
    assert all(a < b / 10 for a, b in zip(exact, mean, strict=True)), (exact, mean)
    assert exact[0] > 3 * exact[1] > 9 * exact[2], "it falls with the grid"


def test_the_distillation_loss_written_out() -> None:
    """Pairs, noise and the mean, with a target of its own."""
    schedule, x0, generator = td.linear(), data(7), torch.Generator().manual_seed(5)
    times, teacher = torch.tensor([1000.0, 700.0, 250.0, 30.0, 0.0], dtype=f64), gaussian(schedule)
    target = Says(schedule, 2)
    value = td.consistency_distillation_loss(
        teacher,
        x0,
        teacher=teacher,
        times=times,
        target=target,
        solver=ddim_step,
        distance=squared_l2,
        generator=generator,
    )
    replay = torch.Generator().manual_seed(5)
    i = torch.randint(4, (7,), generator=replay)
    noise = torch.randn(7, 2, dtype=f64, generator=replay)
    total = 0.0
    for k in range(7):
        t, s = times[i[k]], times[i[k] + 1]
        alpha, sigma = schedule(t)
        x_t = (alpha * x0[k] + sigma * noise[k])[None]
        x_s = td.step(schedule, x_t, teacher(x_t, t), t, s)
        total += (teacher(x_t, t) - x_s).square().sum().item()  # the target answers with its x
    assert value.item() == pytest.approx(total / 7, rel=1e-10)
    assert torch.equal(generator.get_state(), replay.get_state())
    assert set(i.tolist()) == {0, 1, 2, 3}, "every interval is drawn, the last too"


def test_the_training_loss_takes_both_points_from_the_same_noise() -> None:
    schedule, x0 = td.linear(), data(7)
    student, target = Says(schedule, 2), Says(schedule, 2)
    times = torch.tensor([1000.0, 700.0, 250.0, 0.0], dtype=f64)
    value = td.consistency_training_loss(student, x0, times=times, target=target, distance=squared_l2)
    (x_t, t, *_), (x_s, s, *_) = student.calls[0], target.calls[0]
    assert all(
        times.tolist().index(b) == times.tolist().index(a) + 1 for a, b in zip(t.tolist(), s.tolist(), strict=True)
    )
    alpha, sigma = schedule(t, like=x0)
    eps = (x_t - alpha * x0) / sigma
    torch.testing.assert_close(x_s, td.q_sample(schedule, x0, s, eps), rtol=1e-10, atol=1e-10)
    assert value.item() == pytest.approx((x_t - x_s).square().sum(1).mean().item(), rel=1e-12)
    assert not torch.allclose(eps[0], eps[1])


def test_the_gradient_of_training_is_that_of_distillation_as_the_grid_gets_fine() -> None:
    """Song et al. 2023, theorem 2, on one Gaussian with squared L2 and f(x, t) = x + sigma_t b: d/db of both losses."""
    schedule, x0 = td.cosine(), data(200_000)
    teacher = gaussian(schedule)

    class Line(Says):
        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return x + self.schedule(t, like=x)[1] * self.bias

    def gradient(loss: Any, n: int, **options: Any) -> Tensor:
        student, generator = Line(schedule, 2), torch.Generator().manual_seed(0)
        value = loss(student, x0, times=td.uniform(schedule, n), distance=squared_l2, generator=generator, **options)
        (slope,) = torch.autograd.grad(value, student.bias)
        return slope * n  # each pair differs by O(1/n)

    for n in (100, 400):
        torch.testing.assert_close(
            gradient(td.consistency_training_loss, n),
            gradient(td.consistency_distillation_loss, n, teacher=teacher, solver=ddim_step),
            rtol=0.02,
            atol=0.01,
        )


@pytest.mark.parametrize("teaching", [False, True])
def test_the_gradient_stops_at_target_and_teacher(teaching: bool) -> None:
    """Without a target the student's gradient is the one it has against a frozen copy of itself."""
    torch.manual_seed(0)
    student = td.VDenoiser(td.MLP(hidden=16, layers=1), td.cosine())
    teacher, copied, gradients = copy.deepcopy(student), copy.deepcopy(student), []
    for target in (copied, None):
        student.zero_grad()
        options = {"times": td.uniform(student.schedule, 6), "generator": torch.Generator().manual_seed(0)}
        if teaching:
            td.consistency_distillation_loss(
                student, data(64).float(), teacher=teacher, target=target, **options
            ).backward()
        else:
            td.consistency_training_loss(student, data(64).float(), target=target, **options).backward()
        gradients.append([p.grad.clone() for p in student.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert all(g.abs().max() > 0 for g in gradients[0])
    assert all(p.grad is None for model in (copied, teacher) for p in model.parameters())


def test_half_precision_keeps_the_students_gradient() -> None:
    """Autocast keeps the weights it casts: were the pass without gradient the first, nothing would be learnt."""
    torch.manual_seed(0)
    student = td.VDenoiser(td.MLP(hidden=16, layers=1), td.cosine())
    teacher, gradients = copy.deepcopy(student), []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value = td.consistency_distillation_loss(
                student,
                data(256).float(),
                teacher=teacher,
                times=td.uniform(student.schedule, 6),
                generator=torch.Generator().manual_seed(0),
            )
        gradients.append(torch.autograd.grad(value, list(student.parameters()), allow_unused=True))
    for whole, half in zip(*gradients, strict=True):
        assert (whole - half).norm() < 0.1 * whole.norm() + 1e-4


def test_all_three_see_the_same_labels_and_drop_none() -> None:
    schedule, x0, y = td.cosine(), data(64), torch.arange(64) % 3
    student, teacher, target = (Says(schedule, 2).train() for _ in range(3))
    hint = normal(64, 1)
    td.consistency_distillation_loss(
        student, x0, teacher=teacher, target=target, times=td.uniform(schedule, 5), y=y, hint=hint
    )
    for model, with_gradient in ((student, True), (teacher, False), (target, False)):
        for _, _, cond, training, grad in model.calls:
            assert cond["y"] is y
            assert cond["hint"] is hint
            assert not training
            assert grad is with_gradient
        assert len(model.calls) == (2 if model is teacher else 1)
        assert model.training, "its own mode is restored"


def test_a_network_in_training_keeps_its_labels_here() -> None:
    torch.manual_seed(0)
    student = td.VDenoiser(td.MLP(hidden=16, classes=3, label_dropout=1.0), td.cosine()).train()
    x0, y = data(30).float(), torch.arange(30) % 3
    options = {"teacher": copy.deepcopy(student).eval(), "times": td.uniform(student.schedule, 5), "y": y}
    student.zero_grad()
    td.consistency_distillation_loss(student, x0, **options).backward()
    rows = student.net.emb.table.weight.grad.abs().sum(1)
    assert (rows[:3] > 0).all()
    assert rows[3] == 0, "no label was taken for none"


def test_a_guided_teacher_leads_elsewhere(mixture: td.GaussianMixture) -> None:
    """The exact conditional function of one component obeys the teacher guided with scale 1, not with 3."""
    schedule = td.cosine()
    world = td.GaussianMixture(torch.stack([M, -M]), S)
    x0, y = data(500), torch.zeros(500, dtype=torch.long)

    def loss(scale: float) -> float:
        teacher = td.ClassifierFree(world.denoiser(schedule), scale)
        times, generator = td.uniform(schedule, 64), torch.Generator().manual_seed(0)
        options = {"times": times, "solver": heun_step, "generator": generator, "y": y}
        return td.consistency_distillation_loss(Exact(schedule), x0, teacher=teacher, **options).item()

    assert loss(1.0) < loss(3.0) / 20


# --- distill


def pair(seed: int = 0, classes: int = 0) -> tuple[td.VDenoiser, td.VDenoiser]:
    torch.manual_seed(seed)
    teacher = td.VDenoiser(td.MLP(hidden=16, layers=1, classes=classes), td.cosine(50))
    return copy.deepcopy(teacher), teacher


def test_the_grid_refines_with_the_budget_and_its_square_rises_linearly() -> None:
    u = torch.linspace(0, 1, 1001).tolist()
    n = [refined(v, 6, 34) for v in u]
    assert (n[0], n[-1]) == (6, 34)
    assert n == sorted(n)
    assert set(n) == set(range(6, 35)), "no grid is skipped"
    for v, k in zip(u, n, strict=True):
        assert k**2 <= 36 + v * (35**2 - 36) + 1e-9
        assert v == 1 or (k + 1) ** 2 >= 36 + v * (35**2 - 36) - 1e-9
    assert [refined(v, 5, 5) for v in (0.0, 0.5, 1.0)] == [5] * 3


def test_distill_walks_the_refining_grids_and_the_average_is_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = pair()
    seen: list[tuple[int, Any]] = []
    loss = td.consistency_distillation_loss

    def watched(student: Any, x0: Tensor, **options: Any) -> Tensor:
        seen.append((len(options["times"]) - 1, options["target"]))
        return loss(student, x0, **options)

    monkeypatch.setattr(importlib.import_module("tinydiff.distill"), "consistency_distillation_loss", watched)
    ema, batches = td.EMA(student, 0.9), td.batches(data(50).float(), size=8)
    before = [p.clone() for p in teacher.parameters()]
    fractions = [p.fraction for p in td.distill(student, teacher, batches, ema=ema, steps=10, refine=(2, 9))]
    assert [n for n, _ in seen] == [refined(f - 0.05, 2, 9) for f in fractions]
    assert seen[0][0] < seen[-1][0] == 9
    assert all(target is ema.denoiser for _, target in seen)
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
    seen.clear()
    next(td.distill(student, teacher, batches, steps=1))
    assert seen[0][1] is None


def test_a_distilled_student_is_the_identity_at_zero_and_knows_its_labels() -> None:
    student, teacher = pair(classes=3)
    x, y = data(50).float(), torch.arange(50) % 3
    guided = td.ClassifierFree(teacher, 2.0)
    for _ in td.distill(student, guided, td.batches(x, y, size=16), steps=5, lr=1e-2):
        pass
    assert torch.equal(student(x, 0, y=y), x)
    assert not torch.equal(student(x, 30, y=y), teacher(x, 30, y=y))


class Stop(Exception):
    """Raised in the middle of a run."""


def test_a_stopped_distillation_resumes_bit_for_bit_with_the_grid_where_it_was(tmp_path: Path) -> None:
    path, x, y = tmp_path / "c.safetensors", data(50).float(), torch.arange(50) % 3
    _, teacher = pair(classes=3)
    teacher.eval()

    def run(seed: int, stop: int | None = None, checkpoint: Path | None = path) -> list[Tensor]:
        student, generator = pair(seed, classes=3)[0], torch.Generator().manual_seed(seed)
        ema = td.EMA(student, 0.9)

        def source() -> Iterator[Any]:
            for i, batch in enumerate(td.batches(x, y, size=8, generator=generator)):
                if i == stop:
                    raise Stop
                yield batch

        options = {"steps": 12, "refine": (2, 12), "generator": generator, "checkpoint": checkpoint}
        for _ in td.distill(student, teacher, source(), ema=ema, **options):
            pass
        return [p.detach().clone() for model in (student, ema.denoiser) for p in model.parameters()]

    whole = run(0, checkpoint=None)
    with pytest.raises(Stop):
        run(0, stop=7)
    assert json.loads(read(path)[0]["training"])["step"] == 7
    resumed = run(1)  # another start, which the file must replace
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    loaded = td.load(path)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), whole[len(whole) // 2 :], strict=True))


def test_one_step_of_a_distilled_student_is_near_the_teachers_twenty() -> None:
    """Three unequal modes: a teacher learns them, and a student its ODE, from the teacher's own samples, no data set.

    Energy distances to fresh data; those of five seeds are in the report of issue 5. Seed 0.
    """
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    means = torch.tensor([[-0.6, -0.3], [0.7, -0.2], [0.1, 0.8]])
    world = td.GaussianMixture(means, [0.10, 0.20, 0.05], [0.5, 0.3, 0.2])
    teacher = td.VDenoiser(td.MLP(hidden=64), td.cosine())
    ema = td.EMA(teacher, 0.99)
    source = td.batches(world.sample(20_000, generator), size=512, generator=generator)
    for _ in td.train(teacher, source, ema=ema, steps=1000, lr=5e-3, generator=generator):
        pass
    teacher = ema.denoiser
    x0 = td.sample(teacher, (4096, 2), generator=generator)
    student = copy.deepcopy(teacher).requires_grad_()
    ema = td.EMA(student, 0.95)
    source = td.batches(x0, size=512, generator=generator)
    for _ in td.distill(student, teacher, source, ema=ema, steps=1500, lr=2e-3, generator=generator):
        pass

    def distance(denoiser: td.Denoiser, sampler: Any, steps: int, grid: Any = td.uniform) -> float:
        noise = torch.Generator().manual_seed(1)
        samples = td.sample(denoiser, (3000, 2), sampler=sampler, steps=steps, grid=grid, generator=noise)
        return energy_distance(samples, world.sample(3000, noise))

    twenty, one = distance(teacher, td.dpm_solver_pp, 20, td.uniform_log_snr), distance(teacher, td.ddim, 1)
    students = {steps: distance(ema.denoiser, td.consistency, steps) for steps in (1, 2)}
    assert one > 50 * twenty > 0, "the teacher needs its steps"
    assert students[1] < 1.5 * twenty
    assert students[2] < 1.5 * twenty


# --- mistakes


def test_teacher_and_student_that_do_not_fit_are_named() -> None:
    student, teacher = pair()

    def refuse(message: str, student: Any, teacher: Any, **options: Any) -> None:
        with pytest.raises(ValueError, match=message):
            next(td.distill(student, teacher, td.batches(data(9).float(), size=4), **{"steps": 1} | options))

    other = td.cosine(50)
    refuse("teacher's network has dim = 3 and the student's 2", student, td.VDenoiser(td.MLP(dim=3), other))
    refuse("classes = 3 and the student's 0", student, pair(classes=3)[1])
    refuse("dim = None and the student's 2", student, td.VDenoiser(td.UNet(), other))
    refuse("different noise schedules", student, td.VDenoiser(teacher.net, td.linear(50)))
    refuse("one has none: pass it unguided", student, td.ClassifierFree(teacher, 3.0))
    refuse("one has none: pass it unguided", student, td.Clipped(td.ClassifierFree(teacher, 3.0)))
    refuse("of type EpsDenoiser, but must be a VDenoiser", td.EpsDenoiser(student.net, other), teacher)
    refuse(r"student is the teacher itself.*deepcopy", student, td.Clipped(student))
    refuse(r"refine = \(5, 4\)", student, teacher, refine=(5, 4))
    refuse(r"refine = \(0, 4\)", student, teacher, refine=(0, 4))
    refuse("ends at t = 10, but must end at 0", student, teacher, grid=lambda s, n: torch.linspace(50, 10, n + 1))
    refuse("steps or seconds", student, teacher, steps=None)
    guided = td.ClassifierFree(pair(classes=3)[1], 2.0)
    refuse("needs classes: pass y=labels", pair(classes=3)[0], guided)


@pytest.mark.parametrize(
    "loss", [partial(td.consistency_distillation_loss, teacher=None), td.consistency_training_loss]
)
def test_grids_that_are_none_are_named(loss: Any) -> None:
    student = Exact(td.cosine())
    for times, message in (
        ([1000.0, 1.0], "ends at t = 1, but must end at 0"),
        ([0.0, 1000.0], "strictly decreasing"),
        ([0.0], "at least two times"),
        ([1001.0, 0.0], "must stay within"),
    ):
        with pytest.raises(ValueError, match=message):
            loss(student, data(4), times=torch.tensor(times))


@pytest.mark.parametrize("kind", [td.X0Denoiser, td.EpsDenoiser])
@pytest.mark.parametrize("loss", [td.consistency_distillation_loss, td.consistency_training_loss])
def test_students_that_would_collapse_are_refused_by_the_losses_too(loss: Any, kind: Any) -> None:
    """A constant x0_hat agrees with itself everywhere: without f(x, 0) = x it is the best of all students."""
    schedule = td.cosine(50)
    options: dict[str, Any] = {"times": td.uniform(schedule, 4), "generator": torch.Generator().manual_seed(0)}
    if loss is td.consistency_distillation_loss:
        options["teacher"] = gaussian(schedule)
    constant, x0 = kind(td.MLP(hidden=8), schedule), data(64).float()
    with pytest.raises(ValueError, match=rf"type {kind.__name__}, but must be a VDenoiser.*or it collapses"):
        loss(constant, x0, **options)
    for student in (Exact(schedule), td.Clipped(gaussian(schedule)), td.VDenoiser(td.MLP(hidden=8), schedule)):
        assert loss(student, x0, **options).isfinite()


def test_answers_of_another_shape_are_named() -> None:
    schedule = td.cosine()

    class Sum(Exact):
        def __call__(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return super().__call__(x, t).sum(1)

    options = {"teacher": gaussian(schedule), "times": td.uniform(schedule, 4)}
    with pytest.raises(ValueError, match=r"student's answer \(4,\)"):
        td.consistency_distillation_loss(Sum(schedule), data(4), **options)
    with pytest.raises(ValueError, match=r"\(4,\)"):
        td.consistency_distillation_loss(Exact(schedule), data(4), target=Sum(schedule), **options)
