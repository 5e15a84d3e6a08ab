"""The models that come with tinydiff: small files inside the package, so that every lesson works offline.

`weights/README.md` says how each was made and how good it is; `weights/SHA256SUMS` what its bytes must be.
"""

import difflib
import errno
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinydiff.autoencoder import Autoencoder
from tinydiff.checkpoint import load, read, strip
from tinydiff.classifier import Classifier
from tinydiff.denoise import Denoiser, info_of
from tinydiff.schedule import Schedule

WEIGHTS = Path(__file__).resolve().parent / "weights"
CLASSIFIER = "mnist-classifier"
AUTOENCODER = "mnist-autoencoder"
OTHERS = {
    CLASSIFIER: "load_classifier() gives the classifier",
    AUTOENCODER: "load_autoencoder() gives the autoencoder",
}


def load_pretrained(name: str, device: torch.device | str = "cpu") -> Denoiser:
    """A shipped denoiser, in float32 and eval mode; no network needed. `denoiser.info` says how it was made.

    Raises:
        ValueError: there is no such model, or its file is damaged.
        FileNotFoundError: its file is missing from this installation.
    """
    names = shipped()
    if name not in names:
        close = difflib.get_close_matches(str(name), names, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        other = OTHERS.get(name, "load(path) reads a file of yours")
        raise ValueError(f"{name!r} is not a shipped denoiser{hint}: choose one of {', '.join(names)}; {other}.")
    return load(verified(name), device)


def shipped() -> list[str]:
    """The names that `load_pretrained` knows."""
    return [name for name in _checksums() if name not in OTHERS]


def load_classifier(device: torch.device | str = "cpu") -> Classifier:
    """The shipped MNIST classifier, clean and noise-aware, in float32, eval mode and without gradients of its own.

    Raises:
        ValueError: its file is damaged.
        FileNotFoundError: its file is missing from this installation.
    """
    header, tensors = read(verified(CLASSIFIER))
    schedule = Schedule(tensors["schedule.log_alpha_bar"])
    with torch.device("meta"):  # first weights would be drawn in vain, and from the caller's random numbers
        classifier = Classifier(**json.loads(header["config"]), schedule=schedule)
    weights = {key: value.float() for key, value in strip(tensors, "net.").items()}
    classifier.load_state_dict(weights, assign=True)
    classifier.info = json.loads(header["info"])
    return classifier.to(device).eval().requires_grad_(False)


def load_autoencoder(device: torch.device | str = "cpu") -> Autoencoder:
    """The shipped MNIST autoencoder, whose latents "mnist-latent" draws, in float32, eval mode and without gradients.

    Raises:
        ValueError: its file is damaged.
        FileNotFoundError: its file is missing from this installation.
    """
    header, tensors = read(verified(AUTOENCODER))
    with torch.device("meta"):
        autoencoder = Autoencoder(**json.loads(header["config"]))
    weights = {key: value.float() for key, value in strip(tensors, "net.").items()}
    autoencoder.load_state_dict(weights, assign=True)
    autoencoder.info = json.loads(header["info"])
    return autoencoder.to(device).eval().requires_grad_(False)


def pictures(denoiser: Any, x: Tensor) -> Tensor:
    """What a denoiser's samples x show: x itself, or, if `info` names an autoencoder, what that decodes from x.

    Raises:
        ValueError: the autoencoder is not the shipped one.
    """
    name = info_of(denoiser).get("autoencoder")
    if name is None:
        return x
    if name != AUTOENCODER:
        raise ValueError(f"These samples are latents of {name!r}, and only {AUTOENCODER!r} is known here: decode them.")
    autoencoder = load_autoencoder(x.device)
    return torch.cat([autoencoder.decode(part) for part in torch.split(x, 500)])


def _checksums() -> dict[str, str]:
    """SHA-256 of each shipped file, by its name without the ending."""
    lines = (WEIGHTS / "SHA256SUMS").read_text().splitlines()
    return {file.removesuffix(".safetensors"): digest for digest, file in map(str.split, lines)}


def verified(name: str) -> Path:
    """The path of a shipped file whose bytes are as they were shipped."""
    path = WEIGHTS / f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, f"{path} is missing from this installation: reinstall tinydiff")
    digest, expected = hashlib.sha256(path.read_bytes()).hexdigest(), _checksums()[name]
    if digest != expected:
        raise ValueError(
            f"{path} is damaged, its SHA-256 is {digest[:12]}… in place of {expected[:12]}…: reinstall tinydiff."
        )
    return path
