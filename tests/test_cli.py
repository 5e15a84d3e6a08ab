"""The command as a user meets it: real runs on real digits, mistakes, Ctrl-C."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tinydiff as td
from tinydiff import cli, run
from tinydiff.check import EXERCISES


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on the digits, made once."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    assert cli.main(["train", "digits", "--steps", "12", "--batch", "16", "--out", str(out), "--device", "cpu"]) == 0
    return out


def test_train_leaves_a_complete_run_folder(trained: Path) -> None:
    assert json.loads((trained / "run.json").read_text())["data"] == "digits"
    rows = list(csv.DictReader((trained / "log.csv").open()))
    assert rows[-1]["step"] == "12"
    assert 0 < float(rows[-1]["loss"]) < 3
    assert Image.open(trained / "samples.png").size == (10 * 57 - 1, 8 * 57 - 1)  # 80 digits of 8x8, 7 times enlarged
    denoiser = td.load(trained / "checkpoint.safetensors")
    assert denoiser.info["shape"] == [1, 8, 8]
    assert denoiser.info["classes"] == 10


def test_the_same_command_goes_on_and_another_is_refused(trained: Path, capsys, tmp_path: Path) -> None:
    command = ["train", "digits", "--batch", "16", "--device", "cpu"]
    copy = shutil.copytree(trained, tmp_path / "copy")
    assert cli.main([*command, "--steps", "12", "--out", str(copy)]) == 0
    assert "going on from" in capsys.readouterr().out
    assert (copy / "checkpoint.safetensors").read_bytes() == (trained / "checkpoint.safetensors").read_bytes()
    assert cli.main([*command, "--steps", "13", "--out", str(copy)]) == 2
    assert "holds a run with steps = 12, and this one has 13" in capsys.readouterr().err


def test_a_run_that_left_no_checkpoint_does_not_claim_its_folder(tmp_path: Path, capsys) -> None:
    command = ["train", "toy", "moons", "--steps", "3", "--out", str(tmp_path)]
    assert cli.main([*command, "--lr", "1e9"]) == 2
    assert "lower lr" in capsys.readouterr().err
    assert not (tmp_path / "checkpoint.safetensors").exists()
    assert cli.main(command) == 0
    assert json.loads((tmp_path / "run.json").read_text())["lr"] == run.RECIPES["toy"].lr
    assert (tmp_path / "log.csv").read_text().count("step,") == 1


def test_the_same_seed_trains_the_same_weights(trained: Path, tmp_path: Path) -> None:
    for seed, same in (("0", True), ("1", False)):
        out = tmp_path / seed
        options = ["--steps", "12", "--batch", "16", "--out", str(out), "--device", "cpu", "--seed", seed]
        assert cli.main(["train", "digits", *options]) == 0
        a, b = (td.load(folder / "checkpoint.safetensors").net.state_dict() for folder in (trained, out))
        assert all(torch.equal(a[k], b[k]) for k in a) is same


def test_sample_writes_pictures_and_arrays_of_the_asked_kind(trained: Path, tmp_path: Path) -> None:
    checkpoint = str(trained / "checkpoint.safetensors")
    array, again, other = (tmp_path / name for name in ("a.npy", "b.npy", "c.npy"))
    for out, seed in ((array, "3"), (again, "3"), (other, "4")):
        options = ["-n", "5", "--steps", "3", "--label", "7", "--out", str(out), "--seed", seed]
        assert cli.main(["sample", checkpoint, *options]) == 0
    assert np.load(array).shape == (5, 1, 8, 8)
    assert np.array_equal(np.load(array), np.load(again))
    assert not np.array_equal(np.load(array), np.load(other))

    denoiser, generator = td.load(checkpoint), torch.Generator().manual_seed(3)
    expected = td.sample(denoiser, (5, 1, 8, 8), steps=3, generator=generator, y=torch.full((5,), 7))
    assert np.array_equal(np.load(array), expected.numpy())

    picture = tmp_path / "grid.png"
    assert cli.main(["sample", checkpoint, "-n", "20", "--sampler", "ddpm", "--steps", "2", "--out", str(picture)]) == 0
    assert Image.open(picture).size == (10 * 57 - 1, 2 * 57 - 1)


@pytest.fixture(scope="module")
def trained_latent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on the latents of some noise that stands in for MNIST, made once."""
    out = tmp_path_factory.mktemp("runs") / "mnist-latent"
    x, y = torch.rand(40, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1, torch.arange(40) % 10
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(td, "mnist", lambda: (x, y))
        z, labels = run.load_data("mnist-latent")
        options = ["--steps", "3", "--batch", "8", "--out", str(out), "--device", "cpu"]
        assert cli.main(["train", "mnist-latent", *options]) == 0
    autoencoder, generator = td.load_autoencoder(), torch.Generator().manual_seed(0)
    assert torch.equal(z, autoencoder.sample(x, generator))
    assert torch.equal(labels, y)
    return out


def test_latents_are_trained_and_their_samples_are_decoded(trained_latent: Path, tmp_path: Path) -> None:
    assert Image.open(trained_latent / "samples.png").size == (10 * 57 - 1, 8 * 57 - 1)  # digits, twice enlarged
    checkpoint, array = trained_latent / "checkpoint.safetensors", tmp_path / "a.npy"
    assert cli.main(["sample", str(checkpoint), "-n", "5", "--steps", "2", "--out", str(array)]) == 0
    latent, autoencoder = td.load(checkpoint), td.load_autoencoder()
    assert (latent.info["shape"], latent.info["autoencoder"]) == ([3, 8, 8], "mnist-autoencoder")
    noise = torch.Generator().manual_seed(0)
    z = td.sample(latent, (5, 3, 8, 8), steps=2, generator=noise, y=torch.arange(5))
    torch.testing.assert_close(torch.from_numpy(np.load(array)), autoencoder.decode(z))


def test_a_latent_model_is_distilled_in_its_latents(trained_latent: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(run, "mnist_is_here", lambda: False)
    out, teacher = tmp_path / "student", trained_latent / "checkpoint.safetensors"
    command = ["distill", str(teacher), "--steps", "2", "--batch", "8", "--out", str(out), "--device", "cpu"]
    assert cli.main(command) == 0
    info = td.load(out / "checkpoint.safetensors").info
    assert (info["shape"], info["autoencoder"]) == ([3, 8, 8], "mnist-autoencoder")
    assert Image.open(out / "samples.png").size == (10 * 57 - 1, 8 * 57 - 1)


def test_distill_leaves_a_run_that_goes_on_and_can_be_sampled_and_guided(trained: Path, tmp_path: Path, capsys) -> None:
    out, teacher = tmp_path / "student", trained / "checkpoint.safetensors"
    command = ["distill", str(teacher), "--steps", "6", "--batch", "16", "--out", str(out), "--device", "cpu"]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "1,797 samples of digits" in printed
    assert f"tinydiff sample {out / 'checkpoint.safetensors'} --steps 1" in printed
    assert list(csv.DictReader((out / "log.csv").open()))[-1]["step"] == "6"
    assert Image.open(out / "samples.png").size == (10 * 57 - 1, 8 * 57 - 1)
    student = td.load(out / "checkpoint.safetensors")
    assert (student.info["teacher"], student.info["classes"]) == (str(teacher), 10)
    weights, theirs = student.net.state_dict(), td.load(teacher).net.state_dict()
    assert not all(torch.equal(weights[k], theirs[k]) for k in theirs), "it has learnt"
    assert all((weights[k] - theirs[k]).norm() < 0.2 * theirs[k].norm() + 0.1 for k in theirs), "from the teacher on"

    assert cli.main(command) == 0
    assert "going on from" in capsys.readouterr().out
    assert cli.main([*command, "--guidance", "2"]) == 2
    assert "holds a run with guidance = 1.0, and this one has 2.0" in capsys.readouterr().err
    assert cli.main([*command, "--guidance", "2", "--out", str(tmp_path / "guided")]) == 0
    guided = td.load(tmp_path / "guided" / "checkpoint.safetensors").net.state_dict()
    assert not all(torch.equal(weights[k], guided[k]) for k in guided)

    again = ["--steps", "2", "--out", str(tmp_path / "again")]
    assert cli.main(["distill", str(out / "checkpoint.safetensors"), *again]) == 2
    assert f"is a consistency model already, without the steps to learn from: distil its teacher, {teacher}" in (
        capsys.readouterr().err
    )
    assert cli.main(["distill", str(teacher), "--guidance", "-1", *again]) == 2
    assert "guidance = -1 must not be negative" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()

    array = tmp_path / "two.npy"
    options = ["-n", "5", "--label", "7", "--out", str(array)]  # by consistency in two steps, as it was distilled
    assert cli.main(["sample", str(out / "checkpoint.safetensors"), *options]) == 0
    how = {"generator": torch.Generator().manual_seed(0), "sampler": td.consistency, "grid": td.root_angle}
    expected = td.sample(student, (5, 1, 8, 8), steps=2, y=torch.full((5,), 7), **how)
    assert np.array_equal(np.load(array), expected.numpy())


def test_distill_makes_do_with_the_teachers_own_samples_and_says_so(tmp_path: Path, capsys, monkeypatch) -> None:
    torch.manual_seed(0)
    teacher = td.VDenoiser(td.MLP(hidden=16, layers=1, classes=3), td.linear())
    teacher.info = {"shape": [2], "classes": 3}  # of a data set of one's own
    td.save(tmp_path / "teacher.safetensors", teacher)
    seen, batches = [], td.batches
    monkeypatch.setattr(td, "batches", lambda x, y, **options: seen.append((x, y)) or batches(x, y, **options))
    out = tmp_path / "run"
    assert cli.main(["distill", str(tmp_path / "teacher.safetensors"), "--steps", "2", "--out", str(out)]) == 0
    assert "with samples of its own in place of a data set" in capsys.readouterr().out
    ((x, y),) = seen
    assert x.shape == (4096, 2)
    assert torch.equal(x[256:512], run.draw(teacher, 256, seed=1)[0])
    assert set(y.tolist()) == {0, 1, 2}
    assert json.loads((out / "run.json").read_text())["samples of"] == "teacher"

    teacher.info = {"shape": [2]}
    td.save(tmp_path / "teacher.safetensors", teacher)
    assert cli.main(["distill", str(tmp_path / "teacher.safetensors"), "--steps", "2", "--out", str(out)]) == 2
    assert "does not say what shape and classes" in capsys.readouterr().err


def test_toys_train_and_draw_a_cloud(tmp_path: Path) -> None:
    out = tmp_path / "moons"
    assert cli.main(["train", "toy", "moons", "--steps", "3", "--out", str(out)]) == 0
    assert Image.open(out / "samples.png").size == (512, 512)


def test_evaluate_prints_the_floor_and_refuses_other_pictures(trained: Path, tmp_path: Path, capsys) -> None:
    assert cli.main(["evaluate", str(trained / "checkpoint.safetensors")]) == 2
    assert "MNIST" in capsys.readouterr().err
    net = td.VDenoiser(td.UNet(classes=10), td.cosine())
    net.info = {"data": "mnist", "shape": [1, 28, 28], "classes": 10}
    td.save(tmp_path / "untrained.safetensors", net)
    assert cli.main(["evaluate", str(tmp_path / "untrained.safetensors"), "-n", "500", "--steps", "1"]) == 0
    printed = capsys.readouterr().out
    assert "real test digits" in printed
    assert "times the floor" in printed


def test_compare_writes_a_table_a_figure_and_a_rule(tmp_path: Path, capsys) -> None:
    out = tmp_path / "moons"
    assert cli.main(["compare", "toy-moons", "--calls", "4,2", "-n", "100", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "12 rows, 2 times 100 samples each: about" in printed
    assert "Rule: take " in printed
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert [(row["sampler"], row["calls"]) for row in rows[:3]] == [("real data", "0"), ("DDPM", "2"), ("DDPM", "4")]
    assert {row["seeds"] for row in rows[1:]} == {"2"}
    table = (out / "table.md").read_text()
    assert all(line in printed for line in table.splitlines())
    assert table.count("| DDIM |") == 2
    assert Image.open(out / "figure.png").size[0] > 1000


def test_compare_keeps_its_rows_when_stopped_and_gives_mnist_its_student(tmp_path: Path, capsys, monkeypatch) -> None:
    seen = {}

    def two_rows(ways, yardstick, **options):
        seen.update(ways)
        yield yardstick.floor(options["n"])
        yield cli.comparison.Row("DDPM", 5, options["n"], 1, 3.0, 0.0, 0.5, 0.0, 0.1)
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.comparison, "compare", two_rows)
    monkeypatch.setattr(cli.comparison, "forecast", lambda *args, **options: 300)
    assert cli.main(["compare", "mnist", "--out", str(tmp_path)]) == 130
    captured = capsys.readouterr()
    assert "about 5 minutes" in captured.out
    assert f"{tmp_path / 'table.md'} holds the 1 rows so far" in captured.err
    assert len(list(csv.DictReader((tmp_path / "table.csv").open()))) == 2
    assert "take DDPM with 5 calls" in (tmp_path / "table.md").read_text()
    assert seen["consistency"].denoiser.info["teacher"] == "mnist"
    assert seen["DDIM"].calls == (5, 10, 20)


@pytest.mark.parametrize("name", ["smiley", "digits"])
def test_data_draws_a_set(name: str, tmp_path: Path, capsys) -> None:
    out = tmp_path / "set.png"
    assert cli.main(["data", name, "--out", str(out)]) == 0
    assert np.asarray(Image.open(out)).std() > 10
    assert "drawn in" in capsys.readouterr().out


def test_data_lists_the_sets(capsys) -> None:
    assert cli.main(["data"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("moons", "smiley", "digits", "mnist"))


def test_doctor_passes_here_and_fails_where_sampling_is_broken(capsys, monkeypatch) -> None:
    assert cli.main(["doctor"]) == 0
    assert "ok     sampling" in capsys.readouterr().out
    monkeypatch.setattr(td, "dpm_solver_pp", lambda denoiser, x, times: iter([td.State(times[-1], x, x)]))
    assert cli.main(["doctor"]) == 1
    assert "FAILED sampling" in capsys.readouterr().out


def test_lessons_are_copied_once_and_edits_are_kept(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "mine"
    assert cli.main(["lessons", str(folder), "--no-launch"]) == 0
    notebooks = sorted(folder.glob("*.ipynb"))
    assert [n.stem[:2] for n in notebooks][:4] == ["00", "01", "02", "03"]
    notebooks[0].write_text("my notes")
    notebooks[1].unlink()
    assert cli.main(["lessons", str(folder), "--no-launch"]) == 0
    assert notebooks[0].read_text() == "my notes"
    assert notebooks[1].exists()
    assert "1 lessons copied" in capsys.readouterr().out


def test_check_lists_exercises_and_judges_a_file(tmp_path: Path, capsys) -> None:
    assert cli.main(["check", "--list"]) == 0
    listed = capsys.readouterr().out
    for exercise in EXERCISES.values():
        assert f"{exercise.lesson:02d}  {exercise.signature}: " in listed
        assert all(f"      {mistake.name}\n" in listed for mistake in exercise.mistakes)
    assert cli.main(["check", "--list", "--markdown"]) == 0
    page = Path(__file__).parent.parent / "lessons" / "EXERCISES.md"
    assert capsys.readouterr().out == page.read_text(), "run: tinydiff check --list --markdown > lessons/EXERCISES.md"

    mine = tmp_path / "mine.py"
    mine.write_text("def between(w, beta, beta_tilde):\n    return beta**w * beta_tilde ** (1 - w)\n")
    assert cli.main(["check", "between", str(mine)]) == 0
    assert "between: right. Checked: values;" in capsys.readouterr().out
    mine.write_text("def between(w, beta, beta_tilde):\n    return w * beta + (1 - w) * beta_tilde\n")
    assert cli.main(["check", "between", str(mine), "--hint", "2"]) == 1
    assert "More: That is the arithmetic mean" in capsys.readouterr().out


def test_check_takes_what_a_notebook_defines_and_says_what_is_no_file_for_it(tmp_path: Path, capsys) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Mine"]},
        {"cell_type": "code", "source": "import time\none = 1\ntime.sleep(60)\n%matplotlib inline\n1 / 0"},
        {
            "cell_type": "code",
            "source": ["def between(w, beta, beta_tilde):\n", "    return beta**w * beta_tilde ** (one - w)"],
        },
    ]
    notebook = tmp_path / "mine.ipynb"
    notebook.write_text(json.dumps({"cells": cells}))
    assert cli.main(["check", "between", str(notebook)]) == 0
    assert "between: right." in capsys.readouterr().out
    notebook.write_text("null")
    assert cli.main(["check", "between", str(notebook)]) == 2
    assert f"{notebook} is no notebook" in capsys.readouterr().err
    latin = tmp_path / "mine.py"
    latin.write_bytes("# \u00e9".encode("latin-1"))
    assert cli.main(["check", "between", str(latin)]) == 2
    assert f"{latin} is not UTF-8 text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train toy", "toy needs a name: tinydiff train toy moons"),
        ("train toy mooons", "did you mean 'moons'"),
        ("train digits moons", "digits takes no name, but 'moons' was given"),
        ("train digits --steps 0", "--steps 0 must be greater than 0"),
        ("train digits --minutes -1", "--minutes -1 must be greater than 0"),
        ("distill mnits", "mnits is neither a file nor one of the shipped models"),
        ("distill digits --minutes 0", "--minutes 0 must be greater than 0"),
        ("sample nowhere.safetensors", "There is no file nowhere.safetensors"),
        ("sample mnits", "mnits is neither a file nor one of the shipped models"),
        ("sample x.safetensors --out x.gif", "--out x.gif must end in .png"),
        ("sample x.safetensors --steps 0", "--steps 0 must be at least 1"),
        ("compare mnits", "mnits is neither a file nor one of the shipped models"),
        ("compare toy-moons --calls 5,0", "calls = [5, 0] must be whole numbers of at least 1"),
        ("compare toy-moons --calls 5;6", "--calls 5;6 must be whole numbers with commas between"),
        ("compare toy-moons --seeds 0", "--seeds 0 must be greater than 0"),
        ("compare toy-moons -n 99", "n = 99 must be at least 100"),
        ("compare mnist -n 499", "n = 499 must be at least 500"),
        ("compare toy-moons --out pyproject.toml", "pyproject.toml"),
        ("compare mnist-consistency", "tinydiff compare mnist --student mnist-consistency"),
        (
            "compare toy-moons --student mnist-consistency",
            "is a student of mnist, but it must be distilled from a model",
        ),
        ("compare mnist --student mnist", "--student mnist is no consistency model"),
        ("data moon", "did you mean 'moons'"),
        ("data moons --out moons.jpg", "--out moons.jpg must end in .png"),
        ("sample tests", "tests is a folder without a checkpoint.safetensors"),
        ("demo --minutes 0", "--minutes 0 must be greater than 0"),
        ("check", "check needs an exercise and a file"),
        ("check q_smaple x.py", "q_smaple is no exercise"),
        ("check q_sample nowhere.py", "No such file"),
        ("train digits --steps 1 --out pyproject.toml", "pyproject.toml"),
    ],
)
def test_mistakes_get_one_sentence_and_exit_code_2(command: str, message: str, capsys, monkeypatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    assert cli.main(command.split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("tinydiff: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "message"), [("--label 10", "label 10 is none of"), ("--device cuda", "not available")]
)
def test_mistakes_with_a_checkpoint(option: str, message: str, trained: Path, capsys, tmp_path: Path) -> None:
    if "cuda" in option and torch.cuda.is_available():
        option, message = "--device mps", "not available"
    assert cli.main(["sample", str(trained / "checkpoint.safetensors"), *option.split()]) == 2
    assert message in capsys.readouterr().err


def test_the_folder_of_a_run_stands_for_its_checkpoint(trained: Path, tmp_path: Path) -> None:
    for name in (trained, trained / "checkpoint.safetensors"):
        assert (
            cli.main(["sample", str(name), "-n", "2", "--steps", "1", "--out", str(tmp_path / f"{name.stem}.npy")]) == 0
        )
    a, b = (np.load(tmp_path / f"{name}.npy") for name in (trained.stem, "checkpoint"))
    assert np.array_equal(a, b)


def test_a_reader_who_has_seen_enough_is_no_error() -> None:
    command = [sys.executable, "-m", "tinydiff", "data"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        error = process.stderr.read()
    assert process.returncode == 0
    assert error == b""


def test_a_damaged_checkpoint_is_refused(trained: Path, tmp_path: Path, capsys) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes((trained / "checkpoint.safetensors").read_bytes()[:-1000])
    assert cli.main(["sample", str(damaged)]) == 2
    assert "is damaged" in capsys.readouterr().err


def test_wrong_words_exit_with_2_and_help_has_examples(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["trian"])
    assert stop.value.code == 2
    with pytest.raises(SystemExit) as stop:
        cli.main(["sample", "mnist", "--seed", str(2**63)])
    assert stop.value.code == 2
    assert f"{2**63} must lie between -2^63 and 2^63 - 1" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        cli.main(["sample", "mnist", "--seed", "seven"])
    assert stop.value.code == 2
    assert "argument --seed: 'seven' must be a whole number" in capsys.readouterr().err
    for command in ("train", "distill", "sample", "evaluate", "compare", "data", "demo", "doctor", "lessons", "check"):
        with pytest.raises(SystemExit) as stop:
            cli.main([command, "--help"])
        assert stop.value.code == 0
        assert f"  tinydiff {command}" in capsys.readouterr().out.split("examples:")[1]


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to a whole console")
def test_ctrl_c_leaves_a_checkpoint_that_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "tinydiff", "train", "toy", "rings", "--steps", "100000", "--out", str(out)]
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  background jobs inherit deaf ears
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    try:
        preview, deadline = out / "samples.png", time.monotonic() + 200
        while not preview.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)  # the first preview comes after five seconds of training
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, error
    assert "nothing is lost" in error
    assert "Traceback" not in error
    assert not list(out.glob("*.tmp"))
    denoiser = td.load(out / "checkpoint.safetensors")
    assert torch.isfinite(td.sample(denoiser, (4, 2), steps=3)).all()


def test_demo_draws_and_measures_against_the_floor(tmp_path: Path, capsys, monkeypatch) -> None:
    draw = run.draw  # with two steps for each sampler: a thousand take half a minute
    monkeypatch.setattr(run, "draw", lambda denoiser, n, **options: draw(denoiser, n, **options | {"steps": 2}))
    assert cli.main(["demo", "--minutes", "0.02", "--out", str(tmp_path / "demo")]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(("DDPM", "other real"))]
    assert len(table) == 3
    assert float(table[0][-1]) > 2 * float(table[-1][-1]), "a second of training is far from real digits"
    assert 0.01 < float(table[-1][-1]) < 0.1
    assert Image.open(tmp_path / "demo" / "comparison.png").size == (10 * 49 - 1, 5 * 49 - 1)
