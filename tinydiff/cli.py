"""The `tinydiff` command: train, sample, data, demo, doctor, lessons."""

import argparse
import csv
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import webbrowser
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

import tinydiff as td
from tinydiff import metrics
from tinydiff.data import TOYS

SAMPLERS: dict[str, Callable[..., Iterator[td.State]]] = {
    "ddpm": td.ddpm,
    "ddim": td.ddim,
    "dpm_solver_pp": td.dpm_solver_pp,
    "dpm_solver_pp_sde": partial(td.dpm_solver_pp, eta=1.0),
}


@dataclass(frozen=True)
class Recipe:
    """How a data set is trained: measured defaults, one line each."""

    net: Callable[[int], torch.nn.Module]  # of the number of classes
    batch: int
    lr: float
    ema: float
    minutes: float


RECIPES = {
    "toy": Recipe(lambda classes: td.MLP(classes=classes), batch=1024, lr=2e-3, ema=0.995, minutes=0.5),
    "digits": Recipe(lambda classes: td.UNet(width=64, patch=1, classes=classes), 128, 2e-3, 0.995, minutes=1.2),
    "mnist": Recipe(lambda classes: td.UNet(width=64, patch=2, classes=classes), 128, 2e-3, 0.999, minutes=10),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 1 for a failed self-test, 2 for bad input, 130 for Ctrl-C."""
    args = _parser().parse_args(argv)
    try:
        code: int | None = args.run(args)
        return code or 0
    except (ValueError, OSError, FloatingPointError, ModuleNotFoundError) as error:
        text = error.strerror + f": {error.filename}" if isinstance(error, OSError) and error.filename else str(error)
        print(f"tinydiff: {text}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ntinydiff: stopped.", file=sys.stderr)
        return 130


# --- train -----------------------------------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> None:
    """Train into a run folder: run.json, log.csv, samples.png, checkpoint.safetensors. Run again to go on."""
    if (args.data == "toy") != (args.name is not None):
        raise ValueError(
            f"toy needs a name: tinydiff train toy {next(iter(TOYS))} (or {', '.join(list(TOYS)[1:])})."
            if args.data == "toy"
            else f"{args.data} takes no name, but {args.name!r} was given: tinydiff train {args.data}."
        )
    for option in ("steps", "minutes", "batch", "lr", "width"):
        if (value := getattr(args, option, None)) is not None and not value > 0:
            raise ValueError(f"--{option} {value:g} must be greater than 0.")
    device = choose_device(args.device)
    recipe = RECIPES[args.data]
    minutes = None if args.steps else (args.minutes or recipe.minutes)
    out = Path(args.out or f"runs/{args.name or args.data}")
    settings = {
        "data": args.name or args.data,
        "seed": args.seed,
        "steps": args.steps,
        "minutes": minutes,
        "batch": args.batch or recipe.batch,
        "lr": args.lr or recipe.lr,
    }
    _check_run(out, settings)

    x, y = _load(args.data, args.name)
    torch.manual_seed(args.seed)  # the initial weights and label dropout; all else comes from the generator
    generator = torch.Generator().manual_seed(args.seed)
    denoiser = td.VDenoiser(recipe.net(int(y.max()) + 1), td.cosine() if x.ndim == 4 else td.linear()).to(device)
    denoiser.info = settings | {"shape": list(x.shape[1:]), "classes": int(y.max()) + 1}
    ema = td.EMA(denoiser, recipe.ema)
    checkpoint = out / "checkpoint.safetensors"
    parameters = sum(p.numel() for p in denoiser.parameters())
    print(f"{settings['data']}: {len(x):,} samples of shape {tuple(x.shape[1:])}; {parameters:,} parameters on {device}")
    if checkpoint.exists():
        print(f"going on from {checkpoint}")

    states = td.train(
        denoiser,
        td.batches(x.to(device), y.to(device), size=settings["batch"], generator=generator),
        ema=ema,
        steps=args.steps,
        seconds=None if minutes is None else 60 * minutes,
        lr=settings["lr"],
        generator=generator,
        checkpoint=checkpoint,
    )
    try:
        _follow(states, ema, out, args.steps, minutes)
    except KeyboardInterrupt:
        states.close()  # writes the checkpoint
        print(f"\nstopped; nothing is lost. Go on with the same command, or: tinydiff sample {checkpoint}")
        raise
    print(f"{out / 'samples.png'} shows samples; draw more with: tinydiff sample {checkpoint}")


def _check_run(out: Path, settings: dict[str, Any]) -> None:
    """Make the run folder, or make sure that the one there holds the same run."""
    record = out / "run.json"
    if record.exists():
        theirs = json.loads(record.read_text())
        if changed := [name for name in settings if theirs.get(name) != settings[name]]:
            name = changed[0]
            raise ValueError(
                f"{out} holds a run with {name} {theirs.get(name)}, and this one has {settings[name]}: "
                "choose another folder with --out, or delete that one."
            )
    else:
        out.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(settings, indent=2) + "\n")


def _follow(states: Iterator[td.Progress], ema: td.EMA, out: Path, steps: int | None, minutes: float | None) -> None:
    """A progress bar, a line of log.csv every second, samples.png at 5, 10, 20, 40, ... seconds and at the end."""
    log_path = out / "log.csv"
    fresh = not log_path.exists()
    unit = {"total": steps, "unit": "step"} if steps else {"total": round(60 * (minutes or 0)), "unit": "s"}
    smooth, logged, preview, p = None, 0.0, 5.0, None
    with open(log_path, "a", newline="") as file, tqdm(desc="training", **unit) as bar:  # type: ignore[call-overload]
        log = csv.writer(file)
        if fresh:
            log.writerow(["step", "seconds", "loss", "lr", "images_per_second"])
        for p in states:
            smooth = p.loss if smooth is None else 0.98 * smooth + 0.02 * p.loss
            bar.update((p.step if steps else min(p.seconds, bar.total)) - bar.n)
            if p.seconds - logged >= 1 or p.fraction == 1:
                log.writerow([p.step, f"{p.seconds:.1f}", f"{smooth:.5f}", f"{p.lr:.2e}", f"{p.images_per_second:.0f}"])
                bar.set_postfix_str(f"loss {smooth:.3f}, {p.images_per_second:.0f} samples/s")
                logged = p.seconds
            if p.seconds >= preview:
                picture(ema.denoiser, out / "samples.png")
                preview = 2 * p.seconds
    picture(ema.denoiser, out / "samples.png")


# --- sample ----------------------------------------------------------------------------------------------------------


def sample(args: argparse.Namespace) -> None:
    """Draw from a checkpoint into a PNG or an array."""
    for option in ("n", "steps"):
        if getattr(args, option) < 1:
            raise ValueError(f"--{option} {getattr(args, option)} must be at least 1.")
    out = Path(args.out)
    if out.suffix not in (".png", ".npy"):
        raise ValueError(f"--out {out} must end in .png (a picture) or .npy (an array).")
    denoiser = td.load(args.checkpoint, choose_device(args.device))
    start = time.perf_counter()
    if out.suffix == ".png":
        picture(denoiser, out, args.n, args.steps, SAMPLERS[args.sampler], args.seed, args.label, progress=True)
    else:
        import numpy as np

        x, _ = draw(denoiser, args.n, args.steps, SAMPLERS[args.sampler], args.seed, args.label, progress=True)
        with open(out, "wb") as file:
            np.save(file, x.numpy(), allow_pickle=False)
    print(f"{args.n} samples in {time.perf_counter() - start:.1f} s: {out}")


def draw(
    denoiser: td.Denoiser,
    n: int,
    steps: int = 20,
    sampler: Callable[..., Iterator[td.State]] = td.dpm_solver_pp,
    seed: int = 0,
    label: int | None = None,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """n samples and their labels on the CPU, the labels 0, 1, 2, ... in turn unless one is given."""
    info = denoiser.info
    if "shape" not in info:
        raise ValueError("This checkpoint does not say what shape its samples have: make it with tinydiff train.")
    if label is not None and not 0 <= label < info["classes"]:
        raise ValueError(f"--label {label} must be one of the {info['classes']} classes 0..{info['classes'] - 1}.")
    y = torch.arange(n) % info["classes"] if label is None else torch.full((n,), label)
    device = next(denoiser.parameters()).device
    x = td.sample(
        denoiser,
        (n, *info["shape"]),
        steps=steps,
        sampler=sampler,
        generator=torch.Generator().manual_seed(seed),
        progress=progress,
        y=y.to(device),
    )
    return x.cpu(), y


def picture(denoiser: td.Denoiser, path: Path, n: int | None = None, *args: Any, **options: Any) -> None:
    """Samples as a PNG: a grid with a column for each class, or a cloud in 2-D."""
    from tinydiff import plot

    points = len(denoiser.info.get("shape", [])) == 1
    x, y = draw(denoiser, n or (2000 if points else 8 * denoiser.info["classes"]), *args, **options)
    if points:
        plot.save_png(path, plot.cloud(x, y, limit=1.3, size=512))
    else:
        plot.save_png(path, plot.grid(x, columns=min(denoiser.info["classes"], len(x)), scale=max(1, 56 // x.shape[-1])))


# --- data, demo, doctor, lessons -------------------------------------------------------------------------------------


def data(args: argparse.Namespace) -> None:
    """List the data sets, or load one (downloading MNIST if need be) and draw it."""
    from tinydiff import plot

    if args.name is None:
        print(f"toy      {', '.join(TOYS)}: points in the plane, drawn on demand")
        print("digits   1,797 real digits of 8x8 pixels, part of scikit-learn")
        print(f"mnist    70,000 real digits of 28x28 pixels, {_where_mnist()}")
        print("Draw one with: tinydiff data NAME")
        return
    known = [*TOYS, "digits", "mnist"]
    if args.name not in known:
        raise ValueError(f"There is no data set {args.name!r}: choose one of {', '.join(known)}.")
    x, y = _load("toy" if args.name in TOYS else args.name, args.name)
    out = Path(args.out or f"{args.name}.png")
    if x.ndim == 2:
        plot.save_png(out, plot.cloud(x[:4000], y[:4000], limit=1.3, size=512))
    else:
        columns = [x[y == k][:8] for k in range(10)]
        plot.save_png(out, plot.grid(torch.stack(columns, 1).flatten(0, 1), columns=10, scale=max(1, 56 // x.shape[-1])))
    print(f"{args.name}: {len(x):,} samples of shape {tuple(x.shape[1:])}, {int(y.max()) + 1} classes; drawn in {out}")


def demo(args: argparse.Namespace) -> None:
    """Train on the real 8x8 digits, sample three ways from the same noise, draw and measure."""
    from tinydiff import plot

    out = Path(args.out)
    train(_parser().parse_args(["train", "digits", "--out", str(out / "run"), "--minutes", str(args.minutes)]))
    denoiser = td.load(out / "run" / "checkpoint.safetensors")
    real, labels = td.digits()
    half = torch.randperm(len(real), generator=torch.Generator().manual_seed(0))
    a, b = real[half[:898]].flatten(1), real[half[898:1796]].flatten(1)
    floor = metrics.energy_distance(a, b)
    rows: list[tuple[str, int, float, float]] = []
    sheets = [torch.stack([real[labels == k][0] for k in range(10)])]
    for name, sampler, steps in (
        ("DDPM", td.ddpm, 1000),
        ("DDPM", td.ddpm, 20),
        ("DDIM", td.ddim, 20),
        ("DPM-Solver++(2M)", td.dpm_solver_pp, 20),
    ):
        start = time.perf_counter()
        x, _ = draw(denoiser, 300, steps, sampler, progress=True)
        seconds = time.perf_counter() - start
        rows.append((name, steps, seconds, metrics.energy_distance(x.flatten(1), b)))
        sheets.append(x[:10])
    plot.save_png(out / "comparison.png", plot.grid(torch.cat(sheets), columns=10, scale=6))
    print(f"\n{'sampler':18} {'calls':>6} {'seconds':>8} {'energy distance':>16}   (300 samples against real digits)")
    for name, steps, seconds, distance in rows:
        print(f"{name:18} {steps:6d} {seconds:8.1f} {distance:16.3f}")
    print(f"{'real digits':18} {'-':>6} {'-':>8} {floor:16.3f}")
    print(f"\n{out / 'comparison.png'}: from top to bottom real digits, then the samplers in the table's order.")


def doctor(args: argparse.Namespace) -> int:
    """What is installed, which device, which data; then a self-test of a few seconds against known answers."""
    print(f"tinydiff {td.__version__}, Python {platform.python_version()}, {platform.platform()}")
    packages = ("torch", "numpy", "matplotlib", "scikit-learn", "jupyterlab", "ipywidgets", "nbval")
    print(", ".join(f"{name} {_version(name)}" for name in packages))
    dtype = str(td.fast_dtype(torch.zeros(1, 1, 8, 8, device=choose_device("auto")))).removeprefix("torch.")
    print(f"device {choose_device('auto')}, {torch.get_num_threads()} threads, pictures are trained in {dtype}")
    print(f"MNIST {_where_mnist()}; lessons in {_lessons()}")
    failures = 0
    for title, test in SELF_TESTS.items():
        start = time.perf_counter()
        ok, figure = test()
        failures += not ok
        print(f"{'ok    ' if ok else 'FAILED'} {title}: {figure} ({time.perf_counter() - start:.1f} s)")
    return int(failures > 0)


def _test_sampling() -> tuple[bool, str]:
    """Samples of an exact world have its moments."""
    world = td.GaussianMixture(torch.tensor([[0.5, -0.2]], dtype=torch.float64), 0.3)
    schedule = td.linear()
    x = torch.randn(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = td.final(td.dpm_solver_pp(world.denoiser(schedule), x, td.uniform(schedule, 50)))
    error = (out - td.gaussian_flow(schedule, world.means[0], 0.3, x, 1000, 0)).abs().max().item()
    return error < 0.02, f"largest error of 50 DPM-Solver++ steps {error:.4f}, must be below 0.02"


def _test_training() -> tuple[bool, str]:
    """A network trained for three seconds beats the best constant."""
    x, _ = td.toy("eight_gaussians", 2000, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    denoiser = td.X0Denoiser(td.MLP(hidden=64), td.linear())
    generator = torch.Generator().manual_seed(0)
    losses = [p.loss for p in td.train(denoiser, td.batches(x, size=512, generator=generator), seconds=3)]
    loss, constant = sum(losses[-20:]) / len(losses[-20:]), x.var(0, unbiased=False).mean().item()
    return loss < 0.8 * constant, f"loss {loss:.3f}, must be below 80 % of the data's variance {constant:.3f}"


SELF_TESTS = {"sampling": _test_sampling, "training": _test_training}


def lessons(args: argparse.Namespace) -> int:
    """Open the lessons in JupyterLab, copied to a folder first unless they lie in a checkout."""
    source = _lessons()
    if args.dir is None and source.parent.joinpath("pyproject.toml").exists():
        folder = source
    else:
        folder = Path(args.dir or "tinydiff-lessons")
        new = _copy_lessons(source, folder)
        print(f"{new} new files in {folder}; files that were there before are left as they are")
    if args.no_launch:
        return 0
    if importlib.util.find_spec("jupyterlab") is None:
        raise ModuleNotFoundError('JupyterLab is not installed: pip install "tinydiff[lessons]".')
    command = [sys.executable, "-m", "jupyterlab", str(folder / "00_start_here.ipynb")]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    try:
        webbrowser.get()
    except webbrowser.Error:
        command.append("--no-browser")
        print("There is no browser here: open the address below, which starts with http://127.0.0.1, in one.")
    return subprocess.run(command, check=False).returncode


def _copy_lessons(source: Path, folder: Path) -> int:
    """Copy what is not there yet; returns how many files."""
    new = 0
    for path in sorted(source.glob("*.ipynb")):
        target = folder / path.name
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            new += 1
    return new


# --- helpers ---------------------------------------------------------------------------------------------------------


def choose_device(name: str) -> torch.device:
    """auto: CUDA if there is a GPU, then Apple's MPS, then the CPU."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available[name]:
        there = ", ".join(device for device, ok in available.items() if ok)
        raise ValueError(f"--device {name} is not available here: choose auto or {there}.")
    return torch.device(name)


def _load(kind: str, name: str | None) -> tuple[Tensor, Tensor]:
    if kind == "toy":
        return td.toy(str(name), 50_000, torch.Generator().manual_seed(0))
    return td.digits() if kind == "digits" else td.mnist()


def _where_mnist() -> str:
    from tinydiff.data import SPLITS, _find

    found = {_find(name) for names in SPLITS.values() for name in names}
    if None in found:
        return "not on this machine yet (the first use downloads 11 MB)"
    return f"found in {next(path.parent for path in found if path)}"


def _lessons() -> Path:
    package = Path(__file__).resolve().parent
    for folder in (package.parent / "lessons", package / "_lessons"):
        if (folder / "00_start_here.ipynb").exists():
            return folder
    raise FileNotFoundError("The lessons are not beside this installation: reinstall tinydiff, or clone its repository.")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tinydiff",
        description="Diffusion models on a laptop.",
        epilog="first steps:\n  tinydiff demo\n  tinydiff lessons\n  tinydiff train digits",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tinydiff {td.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(run: Callable[[argparse.Namespace], int | None], summary: str, *examples: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            run.__name__,
            help=summary,
            description=summary,
            epilog="examples:\n" + "\n".join(f"  tinydiff {run.__name__} {example}" for example in examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run)
        return added

    def common(command: argparse.ArgumentParser) -> None:
        command.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto", help="default: auto")
        command.add_argument("--seed", type=int, default=0, help="the same seed gives the same result (default: 0)")

    p = command(
        train,
        "Train a denoiser into a run folder; the same command again goes on where it stopped.",
        "digits",
        "mnist --minutes 10",
        "toy moons --steps 2000 --out runs/my-moons",
    )
    p.add_argument("data", choices=list(RECIPES), help="what to train on")
    p.add_argument("name", nargs="?", help=f"which toy: {', '.join(TOYS)}")
    budget = p.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=int, help="train for so many steps")
    budget.add_argument("--minutes", type=float, help="train for so many minutes; default: toy 0.5, digits 1.2, mnist 10")
    p.add_argument("--batch", type=int, help="samples in a batch")
    p.add_argument("--lr", type=float, help="peak learning rate")
    p.add_argument("--out", metavar="DIR", help="run folder (default: runs/NAME)")
    common(p)

    p = command(
        sample,
        "Draw samples from a checkpoint.",
        "runs/digits/checkpoint.safetensors",
        "runs/mnist/checkpoint.safetensors --label 7 --n 16 --out sevens.png",
        "runs/mnist/checkpoint.safetensors --sampler ddpm --steps 1000 --n 1000 --out samples.npy",
    )
    p.add_argument("checkpoint", help="a file written by tinydiff train or tinydiff.save")
    p.add_argument("--n", type=int, default=80, help="number of samples (default: 80)")
    p.add_argument("--steps", type=int, default=20, help="steps of the sampler (default: 20)")
    p.add_argument("--sampler", choices=list(SAMPLERS), default="dpm_solver_pp", help="default: dpm_solver_pp")
    p.add_argument("--label", type=int, help="draw this class only; default: all in turn")
    p.add_argument("--out", default="samples.png", help="a .png or .npy file (default: samples.png)")
    common(p)

    p = command(data, "List the data sets, or load one and draw it.", "", "moons", "mnist --out mnist.png")
    p.add_argument("name", nargs="?", help=f"{', '.join(TOYS)}, digits or mnist")
    p.add_argument("--out", help="PNG file (default: NAME.png)")

    p = command(demo, "Train on real digits, sample with DDPM, DDIM and DPM-Solver++, and compare.", "", "--minutes 0.5")
    p.add_argument("--out", default="demo", help="folder (default: demo)")
    p.add_argument("--minutes", type=float, default=1.2, help="training time (default: 1.2)")

    command(doctor, "Show what is installed and found, and run a self-test of ten seconds.", "")

    p = command(lessons, "Open the lessons in JupyterLab.", "", "my-lessons", "my-lessons --no-launch")
    p.add_argument("dir", nargs="?", help="copy the lessons into this folder first; your own edits there are kept")
    p.add_argument("--no-launch", action="store_true", help="only copy, do not start JupyterLab")
    return parser
