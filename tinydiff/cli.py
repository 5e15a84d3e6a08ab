"""The `tinydiff` command: train, distill, sample, evaluate, compare, data, demo, doctor, lessons."""

import argparse
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import time
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tinydiff as td
from tinydiff import compare as comparison
from tinydiff import doctor as checkup
from tinydiff import files, metrics, parallel, plot, run
from tinydiff.check import EXERCISES, isolated, table
from tinydiff.data import TOYS
from tinydiff.pretrained import pictures, shipped

SAMPLERS: dict[str, Callable[..., Iterator[td.State]]] = {
    "ddpm": td.ddpm,
    "ddim": td.ddim,
    "heun": td.heun,
    "dpm_solver_pp": td.dpm_solver_pp,
    "dpm_solver_pp_sde": partial(td.dpm_solver_pp, eta=1.0),
    "consistency": td.consistency,
}


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 1 for a failed self-test, 2 for bad input, 130 for Ctrl-C."""
    args = _parser().parse_args(argv)
    code: int | None = 0
    try:
        code = args.run(args)
        parallel.wait()
        sys.stdout.flush()
        return code or 0
    except BrokenPipeError:  # whoever read, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code or 0
    except (ValueError, OSError, FloatingPointError, ModuleNotFoundError) as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        named = isinstance(error, OSError) and error.filename
        print(f"tinydiff: {text}" + (f": {error.filename}" if named else ""), file=sys.stderr)  # type: ignore[union-attr]
        return 2
    except KeyboardInterrupt:
        print("\ntinydiff: stopped.", file=sys.stderr)
        return 130
    finally:
        parallel.stop()


def train(args: argparse.Namespace) -> None:
    """Train into a run folder."""
    if args.data == "toy" and args.name is None:
        raise ValueError(f"toy needs a name: tinydiff train toy {next(iter(TOYS))} (or {', '.join(list(TOYS)[1:])}).")
    if args.data != "toy" and args.name is not None:
        raise ValueError(f"{args.data} takes no name, but {args.name!r} was given: tinydiff train {args.data}.")
    _refuse_what_is_not_positive(args, "steps", "minutes", "width", "batch", "lr")
    name = args.name or args.data
    out = Path(args.out or f"runs/{name}")
    options = {
        option: getattr(args, option) for option in ("seed", "steps", "minutes", "width", "batch", "lr", "compile")
    }
    with _promise():
        run.train(name, out, device=choose_device(args.device), **options)
    if parallel.rank() == 0:
        print(f"{out / 'samples.png'} shows samples; for more: tinydiff sample {out / 'checkpoint.safetensors'}")


def distill(args: argparse.Namespace) -> None:
    """Distil a checkpoint into a consistency model, in a run folder of its own."""
    _refuse_what_is_not_positive(args, "steps", "minutes", "batch", "lr")
    teacher = _load(args.checkpoint, choose_device(args.device))
    out = Path(args.out or f"runs/{teacher.info.get('data', 'model')}-consistency")
    options = {option: getattr(args, option) for option in ("guidance", "seed", "steps", "minutes", "batch", "lr")}
    with _promise():
        run.distill(teacher, args.checkpoint, out, **options)
    print(f"{out / 'samples.png'} shows samples of two steps; for more:")
    print(f"tinydiff sample {out / 'checkpoint.safetensors'} --steps 1")


def _refuse_what_is_not_positive(args: argparse.Namespace, *options: str) -> None:
    for option in options:
        if (value := getattr(args, option)) is not None and not value > 0:
            raise ValueError(f"--{option} {value:g} must be greater than 0.")


@contextmanager
def _promise() -> Iterator[None]:
    """Ctrl-C loses nothing of a run, and says so."""
    try:
        yield
    except KeyboardInterrupt:
        print("\nStopped, and nothing is lost: the same command goes on from here.", file=sys.stderr)
        raise


def sample(args: argparse.Namespace) -> None:
    """Draw from a checkpoint into a PNG or an array."""
    for option in ("num", "steps"):
        if getattr(args, option) is not None and getattr(args, option) < 1:
            raise ValueError(f"--{option} {getattr(args, option)} must be at least 1.")
    out = Path(args.out)
    if out.suffix not in (".png", ".npy"):
        raise ValueError(f"--out {out} must end in .png (a picture) or .npy (an array).")
    denoiser = _load(args.checkpoint, parallel.start(choose_device(args.device)))
    options = _how(args) | {"label": args.label}
    start = time.perf_counter()
    if out.suffix == ".png":
        run.picture(denoiser, out, args.num, progress=True, **options)
    else:
        x, _ = run.draw(denoiser, args.num, progress=True, **options)
        if parallel.rank() == 0:
            np.save(array := io.BytesIO(), pictures(denoiser, x).numpy(), allow_pickle=False)
            files.write(out, array.getvalue())
    if parallel.rank() == 0:
        print(f"{args.num} samples in {time.perf_counter() - start:.1f} s: {out}")


def evaluate(args: argparse.Namespace) -> None:
    """Measure a model of MNIST beside real test digits."""
    denoiser = _load(args.checkpoint, choose_device(args.device))
    print(td.evaluate(denoiser, args.num, **_how(args)))


def compare(args: argparse.Namespace) -> None:
    """Put all samplers side by side on one model: a table, a figure and what to take."""
    _refuse_what_is_not_positive(args, "num", "seeds")
    try:
        calls = [int(word) for word in args.calls.split(",")]
    except ValueError:
        raise ValueError(f"--calls {args.calls} must be whole numbers with commas between, such as 5,10,20.") from None
    device = choose_device(args.device)
    denoiser = _load(args.checkpoint, device)
    if "teacher" in denoiser.info:
        raise ValueError(
            f"{args.checkpoint} is a consistency model, which other samplers cannot use: compare its teacher, "
            f"tinydiff compare {denoiser.info['teacher']} --student {args.checkpoint}."
        )
    name = args.student or ("mnist-consistency" if args.checkpoint == "mnist" else None)
    student = _load(name, device) if name else None
    if student is not None:
        kind, ours, theirs = "teacher" in student.info, denoiser.info.get("data"), student.info.get("data")
        if not kind or ours != theirs or denoiser.info.get("shape") != student.info.get("shape"):
            what = f"a student of {theirs}" if kind else "no consistency model"
            raise ValueError(f"--student {name} is {what}, but it must be distilled from a model of {ours}.")
    n = args.num or {"digits": 800, "mnist": 1000, "mnist-latent": 1000}.get(denoiser.info.get("data", ""), 2000)
    ways, yardstick = comparison.ways(denoiser, calls, student), comparison.yardstick(denoiser, n)
    out, rows = Path(args.out), []
    out.mkdir(parents=True, exist_ok=True)
    minutes = comparison.forecast(ways, yardstick, n=n, seeds=args.seeds) / 60
    tries = sum(len(way.calls) for way in ways.values())
    length = f"{minutes:.0f} minutes" if minutes >= 2 else f"{60 * minutes:.0f} seconds"
    print(f"{tries} rows, {args.seeds} times {n:,} samples each: about {length}")
    try:
        for row in comparison.compare(ways, yardstick, n=n, seeds=args.seeds, progress=True):
            rows.append(row)
            comparison.write(out, rows, yardstick.name)
    except KeyboardInterrupt:
        print(f"\nStopped: {out / 'table.md'} holds the {max(0, len(rows) - 1)} rows so far.", file=sys.stderr)
        raise
    files.write(out / "figure.png", comparison.figure(rows, yardstick.name).png)
    print(f"\n{comparison.markdown(rows, yardstick.name)}\n{comparison.rule(rows)}\n")
    print(f"{out} holds table.md, table.csv and figure.png; seconds are CPU time on a CPU, and noisy: look at ratios")


def _how(args: argparse.Namespace) -> dict[str, Any]:
    """How the command is to sample."""
    return {"steps": args.steps, "sampler": SAMPLERS.get(args.sampler), "seed": args.seed}


def _load(checkpoint: str, device: torch.device) -> td.Denoiser:
    """The denoiser in a file, the one that a run left in its folder, or the shipped one of that name."""
    names = shipped()
    if checkpoint in names:
        return td.load_pretrained(checkpoint, device)
    if Path(checkpoint).is_dir():
        inside = Path(checkpoint) / "checkpoint.safetensors"
        if not inside.exists():
            raise ValueError(f"{checkpoint} is a folder without a {inside.name}: name a file, or the folder of a run.")
        return td.load(inside, device)
    if not Path(checkpoint).suffix and not Path(checkpoint).exists():
        raise ValueError(f"{checkpoint} is neither a file nor one of the shipped models {', '.join(names)}.")
    return td.load(checkpoint, device)


def data(args: argparse.Namespace) -> None:
    """List the data sets, or load one (downloading MNIST if need be) and draw it."""
    if args.name is None:
        print(f"{', '.join(TOYS)}: points in the plane, drawn on demand")
        print("digits: 1,797 real digits of 8x8 pixels, part of scikit-learn")
        print(f"mnist: 70,000 real digits of 28x28 pixels; {checkup.where_mnist()}")
        print("To draw one: tinydiff data NAME")
        return
    out = Path(args.out or f"{args.name}.png")
    if out.suffix != ".png":
        raise ValueError(f"--out {out} must end in .png.")
    x, y = run.load_data(args.name)
    classes = int(y.max()) + 1
    if x.ndim == 2:
        plot.save_png(out, plot.cloud(x[:4000], y[:4000], limit=1.3, size=512))
    else:
        rows = torch.stack([x[y == k][:8] for k in range(classes)], 1).flatten(0, 1)
        plot.save_png(out, plot.grid(rows, columns=classes, scale=max(1, 56 // x.shape[-1])))
    print(f"{args.name}: {len(x):,} samples of shape {tuple(x.shape[1:])}, {classes} classes; drawn in {out}")


def demo(args: argparse.Namespace) -> None:
    """Train on the real 8x8 digits, sample in several ways from the same noise, draw and measure."""
    _refuse_what_is_not_positive(args, "minutes")
    out = Path(args.out)
    denoiser = run.train("digits", out / "run", device=choose_device("auto"), minutes=args.minutes)
    x, y = td.digits()
    shuffled = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))].flatten(1)
    real, others = shuffled[:500], shuffled[500:1000]

    def distance(samples: torch.Tensor) -> float:
        return metrics.sliced_wasserstein(samples.flatten(1), real, generator=torch.Generator().manual_seed(0))

    samplers = {"DDPM": td.ddpm, "DDIM": td.ddim, "DPM-Solver++(2M)": td.dpm_solver_pp}
    sheets = [x[[int((y == k).nonzero()[0]) for k in range(10)]]]
    table: list[tuple[str, int | str, str, float]] = []
    for name, steps in (("DDPM", 1000), ("DDPM", 20), ("DDIM", 20), ("DPM-Solver++(2M)", 20)):
        start = time.perf_counter()
        images, _ = run.draw(denoiser, 500, steps=steps, sampler=samplers[name], progress=True)
        seconds = time.perf_counter() - start
        table.append((name, steps, f"{seconds:.1f}", distance(images)))
        sheets.append(images[:10])
    table.append(("other real digits", "-", "-", distance(others)))
    plot.save_png(out / "comparison.png", plot.grid(torch.cat(sheets), columns=10, scale=6))
    print(f"\n{'sampler':18} {'calls':>6} {'seconds':>8} {'sliced W2 to real digits':>26}")
    for name, calls, took, value in table:
        print(f"{name:18} {calls:>6} {took:>8} {value:26.3f}")
    print("500 samples each; the last row is the floor, what other real digits reach.")
    print(f"\n{out / 'comparison.png'}: real digits on top, then the samplers in the table's order.")


def doctor(args: argparse.Namespace) -> int:
    """Show what is installed and run the self-test."""
    return 0 if checkup.report(choose_device(args.device)) else 1


def lessons(args: argparse.Namespace) -> int:
    """Open the lessons in JupyterLab, copied to a folder first unless they lie in a checkout."""
    source = _find_lessons()
    if args.dir is None and (source.parent / "pyproject.toml").exists():
        folder = source
        print(f"The lessons are in {folder}")
    else:
        folder = Path(args.dir or "tinydiff-lessons")
        folder.mkdir(parents=True, exist_ok=True)
        new = [path for path in sorted(source.glob("*.ipynb")) if not (folder / path.name).exists()]
        for path in new:
            shutil.copyfile(path, folder / path.name)
        print(f"{len(new)} lessons copied to {folder}; those that were there are left as they are")
    if args.no_launch:
        return 0
    if importlib.util.find_spec("jupyterlab") is None:
        raise ModuleNotFoundError('JupyterLab is not installed: pip install "tinydiff[lessons]".')
    command = [sys.executable, "-m", "jupyterlab", str(folder / "00_start_here.ipynb")]
    command.append("--ServerApp.kernel_websocket_connection_class=tinydiff.server.Prompt")  # sliders answer at once
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    try:
        webbrowser.get()
    except webbrowser.Error:
        command.append("--no-browser")
        print("No browser was found here: open the address below that starts with http://127.0.0.1 in one.")
    return subprocess.run(command, check=False).returncode


def check(args: argparse.Namespace) -> int:
    """List the exercises, or check the function of that name in a file, which runs in a process of its own."""
    if args.list or args.markdown:
        print((table.markdown if args.markdown else table.text)(EXERCISES.values()))
        return 0
    if args.exercise is None or args.file is None:
        raise ValueError(
            "check needs an exercise and a file: tinydiff check q_sample mine.py, or tinydiff check --list."
        )
    if args.exercise not in EXERCISES:
        raise ValueError(f"{args.exercise} is no exercise: tinydiff check --list shows all.")
    verdict = isolated.run(EXERCISES[args.exercise], _code(args.file))
    print(verdict.text(args.hint))
    return 0 if verdict else 1


def _code(file: str) -> str:
    """The text of a Python file; of a notebook what its cells define."""
    try:
        text = Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8 text: save it as such, or name another file.") from None
    if Path(file).suffix != ".ipynb":
        return text
    try:
        return isolated.around(["".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "code"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file} is no notebook that can be read: save it from Jupyter once more.") from None


def _find_lessons() -> Path:
    package = Path(__file__).resolve().parent
    for folder in (package.parent / "lessons", package / "_lessons"):
        if (folder / "00_start_here.ipynb").exists():
            return folder
    raise FileNotFoundError(
        "The lessons are not part of this installation: reinstall tinydiff, or clone its repository."
    )


def choose_device(name: str) -> torch.device:
    """auto: CUDA if there is a GPU, then Apple's MPS, then the CPU."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    present = [device for device, there in available.items() if there]
    if name != "auto" and name not in present:
        raise ValueError(f"--device {name} is not available here: choose auto or {', '.join(present)}.")
    return torch.device(present[0] if name == "auto" else name)


def _seed(text: str) -> int:
    try:
        seed = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number.") from None
    if not -(2**63) <= seed < 2**63:
        raise argparse.ArgumentTypeError(f"{text} must lie between -2^63 and 2^63 - 1.")
    return seed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tinydiff",
        description="Diffusion models on a laptop.",
        epilog="first steps:\n  tinydiff demo\n  tinydiff lessons\n  tinydiff train digits",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tinydiff {td.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(
        action: Callable[[argparse.Namespace], int | None], summary: str, *examples: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(
            action.__name__,
            help=summary,
            description=summary,
            epilog="examples:\n" + "\n".join(f"  tinydiff {action.__name__} {example}" for example in examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=action)
        return added

    def device(p: argparse.ArgumentParser) -> None:
        p.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto", help="default: auto")

    def steps_and_sampler(p: argparse.ArgumentParser) -> None:
        p.add_argument("--steps", type=int, help="steps of the sampler (default: 20, for consistency 2)")
        usual = "dpm_solver_pp, and consistency for what was distilled"
        p.add_argument("--sampler", choices=list(SAMPLERS), help=f"default: {usual}")

    def seed(p: argparse.ArgumentParser) -> None:
        p.add_argument("--seed", type=_seed, default=0, help="the same seed gives the same result (default: 0)")

    p = command(
        train,
        "Train a denoiser into a run folder; the same command again goes on where it stopped.",
        "digits",
        "mnist --minutes 10",
        "toy moons --steps 2000 --out runs/my-moons",
    )
    defaults = ", ".join(f"{name} {recipe.minutes:g}" for name, recipe in run.RECIPES.items())
    p.add_argument("data", choices=list(run.RECIPES), help="what to train on")
    p.add_argument("name", nargs="?", help=f"which toy: {', '.join(TOYS)}")
    budget = p.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=int, help="train for so many steps")
    budget.add_argument("--minutes", type=float, help=f"or for so many minutes (default: {defaults})")
    p.add_argument("--width", type=int, help="width of the network (default: 32, for a toy 128)")
    p.add_argument("--batch", type=int, help="samples in a batch")
    p.add_argument("--lr", type=float, help="peak learning rate")
    p.add_argument("--compile", action="store_true", help="compile the network first; needs a C++ compiler")
    p.add_argument("--out", metavar="DIR", help="run folder (default: runs/NAME)")
    device(p)
    seed(p)

    p = command(
        distill,
        "Distil a model into one that samples in one or two steps; the same command again goes on where it stopped.",
        "mnist --minutes 10",
        "runs/digits/checkpoint.safetensors --guidance 1.5 --out runs/guided",
    )
    p.add_argument("checkpoint", help=f"the teacher: a file of tinydiff train, or one of {', '.join(shipped())}")
    budget = p.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=int, help="train for so many steps")
    budget.add_argument("--minutes", type=float, help="or for so many minutes (default: as long as tinydiff train)")
    p.add_argument("--guidance", type=float, default=1.0, help="scale of the teacher's guidance (default: 1, none)")
    p.add_argument("--batch", type=int, help="samples in a batch")
    p.add_argument("--lr", type=float, help="peak learning rate")
    p.add_argument("--out", metavar="DIR", help="run folder (default: runs/DATA-consistency)")
    device(p)
    seed(p)

    p = command(
        sample,
        "Draw samples from a checkpoint or a model that comes with tinydiff.",
        "mnist",
        "runs/mnist/checkpoint.safetensors --label 7 -n 16 --out sevens.png",
        "runs/mnist/checkpoint.safetensors --sampler ddpm --steps 1000 -n 1000 --out samples.npy",
    )
    p.add_argument("checkpoint", help=f"a file written by tinydiff train, or one of {', '.join(shipped())}")
    p.add_argument("-n", "--num", type=int, default=80, help="number of samples (default: 80)")
    steps_and_sampler(p)
    p.add_argument("--label", type=int, help="draw this class only; default: all in turn")
    p.add_argument("--out", default="samples.png", help="a .png or .npy file (default: samples.png)")
    device(p)
    seed(p)

    p = command(
        evaluate,
        "Measure the samples of a model of MNIST beside real test digits; needs no data.",
        "mnist",
        "runs/mnist/checkpoint.safetensors -n 2000 --sampler ddim --steps 50",
    )
    p.add_argument("checkpoint", help="a file of tinydiff train mnist or mnist-latent, or a shipped model of MNIST")
    p.add_argument("-n", "--num", type=int, default=10_000, help="number of samples (default: 10000)")
    steps_and_sampler(p)
    device(p)
    seed(p)

    p = command(
        compare,
        "Compare all samplers on one model: quality and diversity against network calls and seconds, and what to take.",
        "mnist",
        "toy-moons --calls 5,10,20,50 --seeds 5 --out moons",
        "runs/digits/checkpoint.safetensors --student runs/digits-consistency/checkpoint.safetensors",
    )
    p.add_argument("checkpoint", help=f"a file of tinydiff train, or one of {', '.join(shipped())}")
    p.add_argument("--student", metavar="CHECKPOINT", help="a file of tinydiff distill, for the consistency rows")
    p.add_argument("--calls", default="5,10,20", help="numbers of network calls (default: 5,10,20)")
    p.add_argument("--seeds", type=int, default=2, help="repetitions, for error bars (default: 2)")
    p.add_argument("-n", "--num", type=int, help="samples a row (default: 1000, of digits 800, of points 2000)")
    p.add_argument("--out", default="compare", help="folder (default: compare)")
    device(p)

    p = command(data, "List the data sets, or load one and draw it.", "", "moons", "mnist --out mnist.png")
    p.add_argument("name", nargs="?", help=f"{', '.join(TOYS)}, digits or mnist")
    p.add_argument("--out", help="PNG file (default: NAME.png)")

    p = command(demo, "Train on real digits, sample with DDPM, DDIM and DPM-Solver++, compare.", "", "--minutes 0.5")
    p.add_argument("--out", default="demo", help="folder (default: demo)")
    p.add_argument("--minutes", type=float, default=1.2, help="training time (default: 1.2)")

    device(command(doctor, "Show what is installed and found, and run a self-test of ten seconds.", ""))

    p = command(lessons, "Open the lessons in JupyterLab.", "", "my-lessons", "my-lessons --no-launch")
    p.add_argument("dir", nargs="?", help="copy the lessons into this folder first; your own edits there are kept")
    p.add_argument("--no-launch", action="store_true", help="only copy, do not start JupyterLab")

    p = command(check, "Check an exercise of the lessons, or list them all.", "--list", "q_sample mine.py --hint 2")
    p.add_argument("exercise", nargs="?", help="such as q_sample")
    p.add_argument("file", nargs="?", help="Python code, or a notebook, with a function of that name")
    p.add_argument("--hint", type=int, choices=(0, 1, 2), default=1, help="0 for none, 2 to be told more (default: 1)")
    p.add_argument("--list", action="store_true", help="all exercises and the mistakes that are recognised")
    p.add_argument("--markdown", action="store_true", help="the same as the page lessons/EXERCISES.md")
    return parser
