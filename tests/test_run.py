"""What a run does besides training: choosing threads, keeping the log, drawing."""

import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tinydiff as td
from tinydiff import cli, run
from tinydiff.checkpoint import read

SAVES_ALL_THE_TIME = """
import sys, torch, tinydiff as td
torch.set_num_threads(1)
torch.manual_seed(0)
denoiser, generator = td.VDenoiser(td.MLP(), td.linear()), torch.Generator().manual_seed(0)
x, _ = td.toy("moons", 1000, generator)
batches = td.batches(x, size=64, generator=generator)
ema = td.EMA(denoiser)
options = {"ema": ema, "generator": generator, "checkpoint": sys.argv[1], "save_every": 0.01}
for _ in td.train(denoiser, batches, steps=10**6, **options):
    pass
"""


@pytest.mark.parametrize(("busy_until", "expected"), [(0, 2), (1000, 1)])
def test_threads_follow_what_is_faster(busy_until: float, expected: int) -> None:
    """A step takes 1/n s on n threads while the machine is idle, and 5 s on more than one while it is busy."""
    used: list[int] = []

    def states() -> Iterator[td.Progress]:
        seconds = 0.0
        for step in range(1, 400):
            threads = torch.get_num_threads()
            seconds += 5.0 if threads > 1 and seconds < busy_until else 1 / threads
            used.append(threads)
            yield td.Progress(step, step / 400, 0.0, 0.0, seconds, 1.0)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen = [p.step for p in run.balanced(states(), every=30)]
        assert torch.get_num_threads() == 2, "the caller's number is restored"
    finally:
        torch.set_num_threads(before)
    assert seen == list(range(1, 400)), "no step is lost or repeated"
    assert used.count(expected) > 300


def test_one_thread_stays_one() -> None:
    states = [td.Progress(i, i / 5, 0.0, 0.0, float(i), 1.0) for i in range(5)]
    assert torch.get_num_threads() == 1  # conftest
    assert list(run.balanced(iter(states))) == states


def test_kill_9_at_any_moment_leaves_a_checkpoint_that_goes_on(tmp_path: Path) -> None:
    """Killed again and again while it saves all the time, at moments drawn from a fixed seed."""
    path, steps, moments = tmp_path / "c.safetensors", [0], random.Random(0)
    for _ in range(int(os.environ.get("TINYDIFF_KILLS", "3"))):
        seen = path.stat().st_mtime_ns if path.exists() else None
        process = subprocess.Popen([sys.executable, "-c", SAVES_ALL_THE_TIME, str(path)], stderr=subprocess.PIPE)
        try:
            deadline = time.monotonic() + 120
            while process.poll() is None and time.monotonic() < deadline:
                if path.exists() and path.stat().st_mtime_ns != seen:
                    break
                time.sleep(0.01)
            time.sleep(moments.random())
        finally:
            process.kill()
        assert process.wait() == -9, process.stderr.read().decode()
        steps.append(json.loads(read(path)[0]["training"])["step"])
        assert torch.isfinite(td.sample(td.load(path), (4, 2), steps=2)).all()
    assert all(a < b for a, b in itertools.pairwise(steps)), f"each run went on from the last: {steps}"


def test_the_log_has_its_header_after_a_hard_kill_and_shows_each_line_at_once(tmp_path: Path) -> None:
    log, ema, seen = tmp_path / "log.csv", td.EMA(td.VDenoiser(td.MLP(hidden=8), td.linear())), []
    log.touch()  # what a run leaves that is killed before its first line

    def states(first: int) -> Iterator[td.Progress]:
        for step in (first, first + 1):
            yield td.Progress(step, 0.5, 1.0, 0.1, float(step), 100.0)
            seen.append(len(log.read_text().splitlines()))

    run._follow(states(1), ema, tmp_path, 4, None)
    run._follow(states(3), ema, tmp_path, 4, None)
    assert seen == [2, 3, 4, 5]
    assert [line.split(",")[0] for line in log.read_text().splitlines()] == ["step", "1", "2", "3", "4"]


@pytest.mark.parametrize("info", [{"classes": 0}, {}])
@pytest.mark.parametrize(("net", "shape"), [(td.UNet(width=8, patch=1), [1, 8, 8]), (td.MLP(hidden=8), [2])])
def test_a_model_without_classes_is_drawn_without_labels(net, shape: list[int], info, tmp_path: Path, capsys) -> None:
    path, array, png = (str(tmp_path / name) for name in ("c.safetensors", "a.npy", "a.png"))
    td.save(path, td.VDenoiser(net, td.cosine()), shape=shape, **info)
    assert cli.main(["sample", path, "-n", "5", "--steps", "2", "--out", array, "--device", "cpu"]) == 0
    expected = td.sample(td.load(path), (5, *shape), steps=2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.from_numpy(np.load(array)), expected)
    assert cli.main(["sample", path, "-n", "20", "--steps", "2", "--out", png, "--device", "cpu"]) == 0
    assert Image.open(png).size == ((512, 512) if len(shape) == 1 else (10 * 57 - 1, 2 * 57 - 1))
    run.picture(td.load(path), tmp_path / "b.png", steps=1)  # as many as it likes
    assert cli.main(["sample", path, "--label", "3", "--device", "cpu"]) == 2
    assert "label 3 is none of this model's classes, as it has none: leave the label out." in capsys.readouterr().err


def test_the_average_that_train_returns_can_be_distilled(tmp_path: Path) -> None:
    options = {"steps": 1, "batch": 16}
    teacher = run.train("moons", tmp_path / "teacher", device=torch.device("cpu"), **options)
    assert not any(p.requires_grad for p in teacher.parameters())
    student = run.distill(teacher, "teacher", tmp_path / "student", **options)
    assert student.info["teacher"] == "teacher"
    assert not any(p.requires_grad for p in teacher.parameters()), "the teacher stays as it is"
