"""A run folder: run.json, log.csv, samples.png and checkpoint.safetensors, made by one recipe for each kind of data."""

import copy
import csv
import json
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

import tinydiff as td
from tinydiff import files, parallel, plot
from tinydiff.data import TOYS, mnist_is_here
from tinydiff.diffuse import randn
from tinydiff.distill import PICTURES
from tinydiff.pretrained import AUTOENCODER, pictures
from tinydiff.sample import Sampler, launch, usual


@dataclass(frozen=True)
class Recipe:
    """How a kind of data is trained: measured defaults."""

    denoiser: Callable[[int, int], td.Denoiser]  # of width and number of classes
    width: int
    batch: int
    lr: float
    decay: float  # of the EMA
    minutes: float
    autoencoder: str | None = None  # the shipped one whose latents are the data
    distilling: dict[str, Any] = field(default_factory=dict)  # options of `td.distill`


RECIPES = {
    "toy": Recipe(
        lambda w, k: td.VDenoiser(td.MLP(hidden=w, classes=k), td.linear()), 128, 1024, 5e-3, 0.995, minutes=0.5
    ),
    "digits": Recipe(
        lambda w, k: td.VDenoiser(td.UNet(width=w, patch=1, classes=k), td.cosine()), 32, 128, 3e-3, 0.999, minutes=1.2
    ),
    "mnist": Recipe(
        lambda w, k: td.VDenoiser(td.UNet(width=w, patch=2, classes=k), td.cosine()),
        *(32, 128, 3e-3, 0.999),
        minutes=10,
        distilling=PICTURES,
    ),
    "mnist-latent": Recipe(
        lambda w, k: td.VDenoiser(td.UNet(channels=3, width=w, patch=1, classes=k), td.cosine()),
        *(32, 128, 3e-3, 0.999),
        minutes=10,
        autoencoder=AUTOENCODER,
        distilling=PICTURES,
    ),
}


def load_data(name: str) -> tuple[Tensor, Tensor]:
    """(x, y) of a toy set (50,000 points), "digits", "mnist" or "mnist-latent", a latent for each of its digits."""
    if name in ("digits", "mnist"):
        return td.digits() if name == "digits" else td.mnist()
    if name == "mnist-latent":
        (x, y), autoencoder, generator = td.mnist(), td.load_autoencoder(), torch.Generator().manual_seed(0)
        return torch.cat([autoencoder.sample(part, generator) for part in torch.split(x, 500)]), y
    return td.toy(name, 50_000, torch.Generator().manual_seed(0))


def train(
    name: str,
    out: Path,
    *,
    device: torch.device,
    seed: int = 0,
    steps: int | None = None,
    minutes: float | None = None,
    width: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    compile: bool = False,
) -> td.Denoiser:
    """Train on the data set `name` into the folder `out`, or go on with the run that lies there.

    Shows a progress bar; writes log.csv every second of training, samples.png at 5, 10, 20, 40, ... seconds and at the
    end, and the checkpoint every minute, at the end and when stopped. Returns the averaged denoiser.

    Raises:
        ValueError: the name is unknown, or the folder holds another run.
    """
    recipe = RECIPES.get(name, RECIPES["toy"])
    minutes = None if steps else minutes or recipe.minutes
    settings: dict[str, Any] = {"data": name, "seed": seed, "steps": steps, "minutes": minutes}
    settings |= {"width": width or recipe.width, "batch": batch or recipe.batch, "lr": lr or recipe.lr}
    x, y = load_data(name)
    classes = int(y.max()) + 1
    device, first = parallel.start(device), parallel.rank() == 0
    if first:
        _claim(out, settings)

    torch.manual_seed(seed)  # the initial weights and label dropout; all else comes from the generator
    generator = torch.Generator().manual_seed(seed)
    denoiser = recipe.denoiser(settings["width"], classes).to(device)
    denoiser.info = settings | {"shape": list(x.shape[1:]), "classes": classes}
    if recipe.autoencoder:
        denoiser.info["autoencoder"] = recipe.autoencoder
    ema = td.EMA(denoiser, recipe.decay)
    if compile:
        denoiser.net.compile()
    checkpoint = out / "checkpoint.safetensors"
    parameters = sum(p.numel() for p in denoiser.parameters())
    if first:
        print(f"{name}: {len(x):,} samples of shape {tuple(x.shape[1:])}; {parameters:,} parameters on {device}")
        if checkpoint.exists():
            print(f"going on from {checkpoint}")
    steps_of_training = td.train(
        denoiser,
        td.batches(x.to(device), y.to(device), size=settings["batch"], generator=generator),
        ema=ema,
        steps=steps,
        seconds=None if minutes is None else 60 * minutes,
        lr=settings["lr"],
        loss=parallel.sharded_loss(denoiser),
        generator=generator,
        checkpoint=checkpoint,
        clock=parallel.clock,
    )
    _run(steps_of_training, ema, out, steps, minutes)
    return ema.denoiser


def distill(
    teacher: td.Denoiser,
    name: str,
    out: Path,
    *,
    guidance: float = 1.0,
    seed: int = 0,
    steps: int | None = None,
    minutes: float | None = None,
    batch: int | None = None,
    lr: float | None = None,
) -> td.Denoiser:
    """Distil a teacher, known as `name`, into a consistency model in the folder `out`, or go on with the run there.

    Trains on the teacher's data set if it is on this machine, else on 4,096 of the teacher's own samples. Shows and
    writes what `train` does; previews take two steps of `consistency`. Returns the averaged student.

    Raises:
        ValueError: the folder holds another run, the teacher is a student itself or has no classes, or guidance is
            negative.
    """
    if not guidance >= 0:
        raise ValueError(
            f"guidance = {guidance:g} must not be negative: 1 is the teacher as it is, 0 asks for no class."
        )
    if "teacher" in teacher.info:
        raise ValueError(
            f"{name} is a consistency model already, without the steps to learn from: distil its teacher, "
            f"{teacher.info['teacher']}."
        )
    if not teacher.info.get("shape") or not teacher.info.get("classes"):
        raise ValueError(f"{name} does not say what shape and classes its samples have: make it with tinydiff train.")
    parallel.start(torch.device("cpu"))
    if parallel.world() > 1:
        raise ValueError("Distillation runs in one process: start tinydiff distill without torchrun.")
    origin, device = teacher.info.get("data", ""), next(teacher.parameters()).device
    recipe = RECIPES.get(origin, RECIPES["toy" if len(teacher.info["shape"]) == 1 else "mnist"])
    minutes = None if steps else minutes or recipe.minutes
    there = origin in TOYS or origin == "digits" or (origin in ("mnist", "mnist-latent") and mnist_is_here())
    settings: dict[str, Any] = {"teacher": name, "guidance": guidance, "samples of": origin if there else "teacher"}
    settings |= {"seed": seed, "steps": steps, "minutes": minutes}
    settings |= {"batch": batch or recipe.batch, "lr": lr or recipe.lr}
    guided = teacher if guidance == 1 else td.ClassifierFree(teacher, guidance)
    student = copy.deepcopy(teacher).requires_grad_(True)  # `train` returns an average, which wants no gradients
    kept = ("data", "shape", "classes", "autoencoder")
    student.info = {key: teacher.info[key] for key in kept if key in teacher.info} | settings
    ema, generator = td.EMA(student, 0.99), torch.Generator().manual_seed(seed)
    _claim(out, settings)
    checkpoint = out / "checkpoint.safetensors"
    if there:
        x, y = load_data(origin)
        print(f"{name} becomes a consistency model on {device}, with {len(x):,} samples of {origin}")
    else:
        print(f"{name} becomes a consistency model on {device}, with samples of its own in place of a data set")
        parts = [draw(teacher, 256, seed=seed + i) for i in tqdm(range(16), desc="sampling")]
        x, y = (torch.cat(part) for part in zip(*parts, strict=True))
    if checkpoint.exists():
        print(f"going on from {checkpoint}")
    states = td.distill(
        student,
        guided,
        td.batches(x.to(device), y.to(device), size=settings["batch"], generator=generator),
        ema=ema,
        steps=steps,
        seconds=None if minutes is None else 60 * minutes,
        lr=settings["lr"],
        generator=generator,
        checkpoint=checkpoint,
        **recipe.distilling,
    )
    _run(states, ema, out, steps, minutes)
    return ema.denoiser


def _run(
    states: Generator[td.Progress],
    ema: td.EMA,
    out: Path,
    steps: int | None,
    minutes: float | None,
) -> None:
    """Train to the end under the eyes of the user."""
    with closing(states):  # Ctrl-C between two steps writes the checkpoint, too
        on_cpu = next(ema.denoiser.parameters()).device.type == "cpu"
        timed = minutes is not None and on_cpu and parallel.world() == 1
        _follow(balanced(states) if timed else states, ema, out, steps, minutes)
    picture(ema.denoiser, out / "samples.png")


def balanced(states: Iterator[td.Progress], every: float = 60.0) -> Iterator[td.Progress]:
    """The same steps on all of torch's threads or on one, whichever is faster: both are tried every so many seconds.

    All is best on an idle machine. Where another program keeps a core busy, the threads wait for one another at every
    layer: two were measured a hundred times slower than one.
    """
    most, last = torch.get_num_threads(), td.Progress(0, 0.0, 0.0, 0.0, 0.0, 0.0)
    try:
        while most > 1:
            rates = {}
            for threads in (most, 1):
                torch.set_num_threads(threads)
                begun, steps = None, 0
                for last in states:
                    yield last
                    if begun is None:
                        begun = last.seconds  # the first step may still warm up
                        continue
                    steps += 1
                    if steps == 10 or last.seconds - begun > 1:
                        break
                if begun is None or not steps:
                    return
                rates[threads] = steps / (last.seconds - begun)
            torch.set_num_threads(max(rates, key=rates.__getitem__))
            until = last.seconds + every
            for last in states:
                yield last
                if last.seconds > until:
                    break
            else:
                return
        yield from states
    finally:
        torch.set_num_threads(most)


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Make the run folder, or make sure that the run there, if it came as far as a checkpoint, is the same one."""
    record = out / "run.json"
    if not (record.exists() and (out / "checkpoint.safetensors").exists()):
        out.mkdir(parents=True, exist_ok=True)
        (out / "log.csv").unlink(missing_ok=True)
        files.write(record, (json.dumps(settings, indent=2) + "\n").encode())
        return
    theirs = json.loads(record.read_text())
    for name, ours in settings.items():
        if theirs.get(name) != ours:
            raise ValueError(
                f"{out} holds a run with {name} = {theirs.get(name)}, and this one has {ours}: choose another folder "
                "with --out, or delete that one."
            )


def _follow(
    states: Iterator[td.Progress],
    ema: td.EMA,
    out: Path,
    steps: int | None,
    minutes: float | None,
) -> None:
    """The progress bar, the log and the previews."""
    log_path = out / "log.csv"
    fresh, smooth, logged, preview = not (log_path.exists() and log_path.stat().st_size), None, 0.0, 5.0
    total, unit = (steps, "step") if steps else (round(60 * (minutes or 0)), "s")
    first = parallel.rank() == 0
    bar = tqdm(desc="training", total=total, unit=unit, disable=not first)
    with open(log_path if first else os.devnull, "a", buffering=1, newline="") as file, bar:  # each line at once
        log = csv.writer(file)
        if fresh:
            log.writerow(["step", "seconds", "loss", "lr", "samples_per_second"])
        for p in states:
            smooth = p.loss if smooth is None else 0.98 * smooth + 0.02 * p.loss
            bar.update((p.step if steps else min(round(p.seconds), total or 0)) - bar.n)
            if p.seconds - logged >= 1 or p.fraction == 1:
                log.writerow([p.step, f"{p.seconds:.1f}", f"{smooth:.5f}", f"{p.lr:.2e}", f"{p.images_per_second:.0f}"])
                bar.set_postfix_str(f"loss {smooth:.3f}, {p.images_per_second:.0f} samples/s")
                logged = p.seconds
            if p.seconds >= preview:
                picture(ema.denoiser, out / "samples.png")
                preview = 2 * p.seconds


def draw(
    denoiser: td.Denoiser,
    n: int,
    *,
    steps: int | None = None,
    sampler: Sampler | None = None,
    seed: int = 0,
    label: int | None = None,
    progress: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """n samples of a run's denoiser and their labels on the CPU: 0, 1, 2, ... in turn, unless one label is given.

    The labels are None where `info` names no classes, and the denoiser is called without. In a group of processes each
    draws its share from the same starting noise, and all get the whole.

    Raises:
        ValueError: the checkpoint was not made by a run, or has no such label.
    """
    shape, classes = denoiser.info.get("shape"), denoiser.info.get("classes") or 0
    if shape is None:
        raise ValueError("This checkpoint does not say what shape its samples have: make it with tinydiff train.")
    if label is not None and not 0 <= label < classes:
        known = f"0..{classes - 1}: choose one of them" if classes else "as it has none: leave the label out"
        raise ValueError(f"label {label} is none of this model's classes, {known}.")
    y = torch.full((n,), label) if label is not None else torch.arange(n) % classes if classes else None
    parameter, generator = next(denoiser.parameters()), torch.Generator().manual_seed(seed)
    noise, mine = randn((n, *shape), generator, parameter), parallel.share(n)
    if parallel.rank():
        generator.manual_seed(seed + parallel.rank())  # the shares' later noise must differ
    sampler, steps, grid = usual(denoiser, sampler, steps)
    times, cond = grid(denoiser.schedule, steps), {} if y is None else {"y": y[mine].to(noise.device)}
    states = launch(sampler, denoiser, noise[mine], times, generator, cond)
    x = td.final(tqdm(states, total=steps, desc="sampling", disable=not progress or parallel.rank() > 0))
    return parallel.gather(x, n).cpu(), y


def picture(denoiser: td.Denoiser, path: Path, n: int | None = None, **options: Any) -> None:
    """Samples, latents decoded, as a PNG: a grid with a column for each class, or a cloud in 2-D; options of `draw`."""
    if len(denoiser.info.get("shape", ())) == 1:
        x, y = draw(denoiser, n or 4000, **options)
        _save_png(path, plot.cloud(x, y, limit=1.3, size=512))
    else:
        classes = int(denoiser.info.get("classes") or 10)
        x = pictures(denoiser, draw(denoiser, n or 8 * classes, **options)[0])
        _save_png(path, plot.grid(x, columns=min(classes, len(x)), scale=max(1, 56 // x.shape[-1])))


def _save_png(path: Path, pixels: plot.Pixels) -> None:
    if parallel.rank() == 0:
        plot.save_png(path, pixels)
