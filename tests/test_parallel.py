"""Two real processes (gloo on this machine) against one: the same losses, weights and samples, within rounding."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tinydiff as td
from tinydiff import cli, parallel

# Label dropout draws from torch's own state, share by share, so it is off here: the rest must agree.
WITHOUT_DROPOUT = """
import sys, dataclasses, torch, tinydiff as td
from tinydiff import cli, run
torch.set_num_threads(1)
plain = lambda w, k: td.VDenoiser(td.MLP(hidden=w, classes=k, label_dropout=0), td.linear())
run.RECIPES["toy"] = dataclasses.replace(run.RECIPES["toy"], denoiser=plain)
sys.exit(cli.main(sys.argv[1:]))
"""


def launch(processes: int, script: Path, *arguments: str) -> subprocess.CompletedProcess:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*torchrun, str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scripts") / "train.py"
    path.write_text(WITHOUT_DROPOUT)
    return path


def losses(folder: Path) -> list[float]:
    return [float(row["loss"]) for row in csv.DictReader((folder / "log.csv").open())]


def test_two_processes_train_and_sample_like_one(script: Path, tmp_path: Path) -> None:
    for n in (1, 2):
        options = ["--steps", "20", "--batch", "64", "--out", str(tmp_path / str(n)), "--device", "cpu"]
        done = launch(n, script, "train", "toy", "moons", *options)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("shows samples") == 1, "only the first process speaks"
    one, two = (td.load(tmp_path / n / "checkpoint.safetensors") for n in "12")
    for (name, a), b in zip(one.net.state_dict().items(), two.net.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    assert losses(tmp_path / "2")[-1] == pytest.approx(losses(tmp_path / "1")[-1], rel=1e-4)

    checkpoint = str(tmp_path / "1" / "checkpoint.safetensors")
    alone, together = tmp_path / "alone.npy", tmp_path / "together.npy"
    assert cli.main(["sample", checkpoint, "-n", "7", "--steps", "4", "--out", str(alone), "--device", "cpu"]) == 0
    done = launch(2, script, "sample", checkpoint, "-n", "7", "--steps", "4", "--out", str(together), "--device", "cpu")
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(together), np.load(alone), rtol=0, atol=1e-5)


def test_a_batch_that_does_not_divide_is_refused(script: Path, tmp_path: Path) -> None:
    done = launch(2, script, "train", "toy", "moons", "--steps", "2", "--batch", "33", "--out", str(tmp_path / "run"))
    assert done.returncode != 0
    assert "A batch of 33 does not divide by 2 processes" in done.stderr


def test_shares_cover_everything_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "world", lambda: 3)
    parts = []
    for r in range(3):
        monkeypatch.setattr(parallel, "rank", lambda r=r: r)
        parts += list(range(11))[parallel.share(11)]
    assert parts == list(range(11))


def test_sharded_loss_alone_is_the_stratified_ddpm_loss() -> None:
    denoiser = td.VDenoiser(td.MLP(hidden=8), td.cosine())
    x0 = torch.randn(32, 2, generator=torch.Generator().manual_seed(1))
    value = parallel.sharded_loss(denoiser)(denoiser, x0, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    t = td.stratified_times(denoiser.schedule, 32, generator)
    noise = torch.randn(32, 2, generator=generator)
    assert value.item() == pytest.approx(denoiser.loss(x0, t, noise).item())
