"""Denoisers as files: safetensors with the whole configuration in the header, so that a file rebuilds its denoiser.

Tensors are named `net.*`, in a training checkpoint also `ema.*`, `optim.*` and `random.*`, and `schedule.log_alpha_bar`
is the noise schedule in float64. The header names tinydiff's classes, never code.
"""

import errno
import json
import os
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tinydiff import files
from tinydiff.denoise import Denoiser, EpsDenoiser, VDenoiser, X0Denoiser
from tinydiff.nets import MLP, UNet
from tinydiff.schedule import Schedule

VERSION = 1
DENOISERS: dict[str, type[Denoiser]] = {c.__name__: c for c in (EpsDenoiser, X0Denoiser, VDenoiser)}
NETS: dict[str, type[nn.Module]] = {c.__name__: c for c in (MLP, UNet)}


def save(path: str | Path, denoiser: Denoiser, **info: Any) -> None:
    """Write a denoiser, its schedule and how to rebuild both to one safetensors file, whole or not at all.

    Args:
        info: added to `denoiser.info` in the header; anything JSON can hold.

    Raises:
        TypeError: a class of denoiser or network that `load` would not know.
        OSError: the folder is missing or read-only, or the disk is full; an older file at `path` stays as it was.
    """
    header = header_of(denoiser) | {"info": json.dumps(denoiser.info | info)}
    write(Path(path), tensors_of(denoiser, "net."), header)


def load(path: str | Path, device: torch.device | str = "cpu") -> Denoiser:
    """The denoiser in a file of `save`, or in a checkpoint of `train` (its average, if it kept one), in eval mode.

    Half precision, as in the shipped files, becomes float32.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, not tinydiff's, or of a newer tinydiff.
    """
    header, tensors = read(Path(path))
    if "denoiser" not in header:
        raise ValueError(
            f"{path} holds no denoiser: give a file of tinydiff.save or tinydiff train; load_classifier() and "
            "load_autoencoder() read theirs."
        )
    stored = strip(tensors, "ema.") or strip(tensors, "net.")
    weights = {name: value.to(torch.promote_types(value.dtype, torch.float32)) for name, value in stored.items()}
    try:
        with torch.device("meta"):  # first weights would be drawn in vain, and from the caller's random numbers
            net = NETS[header["net"]](**json.loads(header["config"]))
        denoiser = DENOISERS[header["denoiser"]](net, Schedule(tensors["schedule.log_alpha_bar"]))
        net.load_state_dict(weights, assign=True)
        denoiser.info = json.loads(header.get("info", "{}"))
    except KeyError as error:
        raise ValueError(f"{path} needs {error}, which this tinydiff does not have: upgrade tinydiff.") from None
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit its own description, make or fetch it again: {error}") from None
    return denoiser.to(device).eval()


def check_training(path: Path, denoiser: Denoiser) -> None:
    """Refuse before training what `save_training` would refuse after it.

    Raises:
        TypeError: a class that `load` would not know, or an `info` that JSON cannot hold.
        OSError: the folder is missing or read-only.
    """
    header_of(denoiser)
    json.dumps(denoiser.info)
    code = errno.EACCES if path.parent.is_dir() else errno.ENOENT
    if _is_first() and (code == errno.ENOENT or not os.access(path.parent, os.W_OK)):
        raise OSError(code, f"Cannot write {path} ({os.strerror(code)}): choose a folder that exists and is yours")


def save_training(
    path: Path, models: dict[str, Denoiser], optimiser: Optimizer, random: dict[str, Tensor], told: dict[str, Any]
) -> None:
    """Write everything that the next training step depends on.

    Args:
        models: by the prefix of their tensors' names; "net." is the one in training.
        random: states of random number generators.
        told: whatever else JSON can hold.
    """
    info = {"info": json.dumps(models["net."].info), "training": json.dumps(told)}
    header = header_of(models["net."]) | info
    tensors = dict(random)
    for prefix, model in models.items():
        tensors |= tensors_of(model, prefix)
    for i, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"optim.{i}.{name}": value for name, value in moments.items()}
    write(path, tensors, header)


def load_training(
    path: Path, models: dict[str, Denoiser], optimiser: Optimizer, random: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The inverse of `save_training`: fills models and optimiser, returns `told` and `random`.

    Raises:
        ValueError: the file is not a checkpoint of this very model; nothing has been filled then.
    """
    header, tensors = read(path)
    if "training" not in header:
        raise ValueError(f"{path} holds weights and nothing to resume from: load it, or choose another checkpoint.")
    for name, ours in header_of(models["net."]).items():
        if header.get(name) != ours:
            raise ValueError(
                f"{path} is another model, its {name} is {header.get(name)} and here {ours}: choose another checkpoint."
            )
    same = torch.equal(tensors["schedule.log_alpha_bar"], models["net."].schedule.log_alpha_bar)
    found = {name.split(".")[0] + "." for name in tensors} - {"optim.", "random.", "schedule."}
    if not same or found != set(models) or {name for name in tensors if name.startswith("random.")} != set(random):
        raise ValueError(
            f"{path} was trained with another schedule, or with an EMA or a generator where there is none now (or the "
            "reverse): pass the same, or choose another checkpoint."
        )
    for prefix, model in models.items():
        model.net.load_state_dict(strip(tensors, prefix))
    state = optimiser.state_dict()
    state["state"] = {i: strip(tensors, f"optim.{i}.") for i in state["param_groups"][0]["params"]}
    optimiser.load_state_dict(state)
    return json.loads(header["training"]), {name: tensors[name] for name in random}


def header_of(denoiser: Denoiser) -> dict[str, str]:
    """The header that lets `load` rebuild the denoiser; TypeError if it could not."""
    kind, net = type(denoiser), type(getattr(denoiser, "net", None))
    if DENOISERS.get(kind.__name__) is not kind or NETS.get(net.__name__) is not net:
        raise TypeError(
            f"A file can hold {', '.join(DENOISERS)} around {', '.join(NETS)}, not {kind.__name__} around "
            f"{net.__name__}: keep your own classes with safetensors.torch.save_file(net.state_dict(), path)."
        )
    header = {"denoiser": kind.__name__, "net": net.__name__, "config": json.dumps(denoiser.net.config)}
    return {"format": "tinydiff", "version": str(VERSION), **header}


def tensors_of(denoiser: Denoiser, prefix: str) -> dict[str, Tensor]:
    """The network's tensors, named with the prefix, and the schedule's table."""
    weights = {prefix + name: value for name, value in denoiser.net.state_dict().items()}
    return {**weights, "schedule.log_alpha_bar": denoiser.schedule.log_alpha_bar}


def strip(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix, named without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of one of tinydiff's files."""
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, f"There is no file {path}: check its name and folder, or train a model")
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error}): make or fetch it again.") from None
    if header.get("format") != "tinydiff":
        raise ValueError(f"{path} is a safetensors file, but not tinydiff's: give a file written by tinydiff.save.")
    if header.get("version") != str(VERSION):
        raise ValueError(
            f"{path} has format {header.get('version')}, and this tinydiff reads {VERSION}: pip install -U tinydiff."
        )
    return header, tensors


def write(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """Replace `path` in one move, so that a reader finds the old file or the new one, and either of them whole.

    Of a group of processes, which hold the same tensors, the first one writes.
    """
    if not _is_first():
        return
    data = safetensors.torch.save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, header)
    files.write(path, data)


def _is_first() -> bool:
    """Whether this process is the first of its group, or alone."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
