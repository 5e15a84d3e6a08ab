"""Data as two tensors: x in [-1, 1] and integer class labels y. Toy sets in the plane, 8x8 digits, MNIST."""

import difflib
import gzip
import hashlib
import io
import math
import os
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pooch
import torch
from torch import Generator, Tensor

_HERE = Path(__file__).resolve().parent
_CHECKOUT = _HERE.parent / "datasets"  # in a wheel this folder is absent, or is somebody else's package

EIGHT_RADIUS, EIGHT_STD = 0.8, 0.05  # eight_gaussians is a mixture with a known density: lessons compare against it


def toy(name: str, n: int, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
    """Draw n independent points of a two-dimensional set, and the class of each.

    All but about one point in 10,000 lie in [-1, 1]^2 (the rest are Gaussian tails); classes are equally likely except
    in smiley. With u ~ U[0, 1):

    - moons: two half circles of radius 0.57, std 0.03. y: 0 upper, 1 lower moon (as scikit-learn's).
    - swiss_roll: r = 0.9 phi/(4.5 pi), phi = 1.5 pi (1 + 2u), std 0.02. y: 0 inner (u < 1/2), 1 outer half of the roll.
    - eight_gaussians: centre 0.8 (cos, sin)(y pi/4), std 0.05. y: which Gaussian, 0..7, anticlockwise from the right.
    - checkerboard: uniform on the 8 dark squares of a 4x4 board. y: which square, 0..7, by rows from the lower left.
    - spirals: r = 0.9 phi/(3 pi), phi = 3 pi sqrt(u), the second turned by pi, std 0.02. y: which arm, 0..1.
    - rings: radius 0.3 (y + 1), std 0.025. y: which ring, 0..2, from the inside.
    - smiley: a point of the drawing datasets/smiley.csv, std 0.008. y: 0 head, 1 eyes and brows, 2 mouth.

    Args:
        name: one of `TOYS`.
        n: number of points, at least 1.
        generator: the only source of randomness when given; the points are made on its device.

    Returns:
        x (n, 2) float32 and y (n,) int64.

    Raises:
        ValueError: name is not in `TOYS`, or n is not a whole number of at least 1.
    """
    if name not in TOYS:
        close = difflib.get_close_matches(str(name), TOYS, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"{name!r} is not a toy set{hint}: choose one of {', '.join(TOYS)}.")
    if not (isinstance(n, int) and n >= 1):
        raise ValueError(f"n = {n!r} must be a whole number of at least 1.")
    with torch.device("cpu" if generator is None else generator.device):
        x, y = TOYS[name](n, generator)
    return x.float(), y


def _polar(radius: Tensor | float, angle: Tensor) -> Tensor:
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)


def _blur(x: Tensor, std: float, generator: Generator | None) -> Tensor:
    return x + std * torch.randn(x.shape, generator=generator)


def _moons(n: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
    y = torch.randint(2, (n,), generator=generator)
    turn = _polar(1, math.pi * (torch.rand(n, generator=generator) + y))
    x = turn + y[:, None] * torch.tensor([1, 0.5]) - torch.tensor([0.5, 0.25])  # the second moon hooks into the first
    return _blur(x * 0.85 / 1.5, 0.03, generator), y


def _swiss_roll(n: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
    u = torch.rand(n, generator=generator)
    angle = 1.5 * math.pi * (1 + 2 * u)
    return _blur(_polar(0.9 * angle / (4.5 * math.pi), angle), 0.02, generator), (u >= 0.5).long()


def _eight_gaussians(n: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
    y = torch.randint(8, (n,), generator=generator)
    return _blur(_polar(EIGHT_RADIUS, y * math.pi / 4), EIGHT_STD, generator), y


def _checkerboard(n: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
    y = torch.randint(8, (n,), generator=generator)
    row = y // 2
    column = 2 * (y % 2) + row % 2
    return (torch.stack([column, row], dim=-1) + torch.rand(n, 2, generator=generator)) / 2 - 1, y


def _spirals(n: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
    y = torch.randint(2, (n,), generator=generator)
    angle = 3 * math.pi * torch.rand(n, generator=generator).sqrt()  # the root spreads points evenly along the arm
    return _blur(_polar(0.9 * angle / (3 * math.pi), angle + math.pi * y), 0.02, generator), y


def _rings(n: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
    y = torch.randint(3, (n,), generator=generator)
    return _blur(_polar(0.3 * (y + 1), 2 * math.pi * torch.rand(n, generator=generator)), 0.025, generator), y


def _smiley(n: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
    folders = _HERE / "_datasets", _CHECKOUT  # as a wheel ships it, as a checkout holds it
    path = next(folder / "smiley.csv" for folder in folders if (folder / "smiley.csv").is_file())
    drawing = torch.tensor(np.loadtxt(path, delimiter=",", skiprows=1, dtype=np.float32))
    drawing = drawing[torch.randint(len(drawing), (n,), generator=generator)]
    return _blur(drawing[:, :2], 0.008, generator), drawing[:, 2].long()


TOYS: dict[str, Callable[[int, Generator | None], tuple[Tensor, Tensor]]] = {
    "moons": _moons,
    "swiss_roll": _swiss_roll,
    "eight_gaussians": _eight_gaussians,
    "checkerboard": _checkerboard,
    "spirals": _spirals,
    "rings": _rings,
    "smiley": _smiley,
}


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 handwritten digits, x = (pixel - 8)/8 for pixels 0..16; no download, they come with it.

    Returns:
        x (1797, 1, 8, 8) float32 in [-1, 1], ink is +1, and y (1797,) int64, the digit.

    Source: Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository.
    """
    from sklearn.datasets import load_digits  # here: it takes a second, and most users of this module never need it

    bunch = load_digits()
    return (torch.tensor(bunch.images).float().unsqueeze(1) - 8) / 8, torch.tensor(bunch.target).long()


MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
SPLITS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
SHA256 = {  # of the uncompressed content: the gzip bytes differ between mirrors
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def mnist(split: str = "train") -> tuple[Tensor, Tensor]:
    """The MNIST handwritten digits, x = (pixel - 127.5)/127.5 for pixels 0..255, downloaded on first use.

    Each file, raw or .gz, is looked for in $TINYDIFF_DATA/mnist, $TINYDIFF_DATA, datasets/mnist of a checkout and the
    user's cache, in this order. A missing one is downloaded (11 MB in all) into $TINYDIFF_DATA/mnist when the variable
    is set, else into the checkout when it is writable, else into the cache. Content is verified at every load.

    Args:
        split: "train" (60,000 images) or "test" (10,000).

    Returns:
        x (N, 1, 28, 28) float32 in [-1, 1], ink is +1, and y (N,) int64, the digit.

    Raises:
        ValueError: split is another word, or a file that was found is damaged or not MNIST's.
        ConnectionError: a file is missing and no mirror delivers it.
        OSError: $TINYDIFF_DATA is not a folder (NotADirectoryError), or the download cannot be written.

    Source: LeCun, Cortes & Burges 1998, The MNIST database of handwritten digits.
    """
    if split not in SPLITS:
        raise ValueError(f"split = {split!r} is not a part of MNIST: choose 'train' or 'test'.")
    images, labels = (_load(name) for name in SPLITS[split])
    return images.unsqueeze(1).float().sub_(127.5).div_(127.5), labels.long()  # float first: uint8 would wrap around


def _folders() -> list[Path]:
    """Where MNIST is looked for, in order."""
    folders = [_CHECKOUT / "mnist"] if (_CHECKOUT / "smiley.csv").is_file() else []
    if home := os.environ.get("TINYDIFF_DATA"):
        folder = Path(home).expanduser()
        if not folder.is_dir():
            raise NotADirectoryError(f"TINYDIFF_DATA = {home!r} is not a folder: create it, or unset the variable.")
        folders = [folder / "mnist", folder, *folders]
    return [*folders, Path(pooch.os_cache("tinydiff")) / "mnist"]


def mnist_is_here() -> bool:
    """Whether `mnist` finds its files without a download."""
    return all(_find(name) for names in SPLITS.values() for name in names)


def _find(name: str) -> Path | None:
    """The first file that claims to be `name`, damaged or not."""
    paths = (folder / (name + suffix) for folder in _folders() for suffix in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def _load(name: str) -> Tensor:
    path = _find(name)
    if path is None:
        return _download(name)
    try:
        return _decode(name, path.read_bytes())
    except ValueError as error:  # never passed over: a set that is silently another one costs days
        raise ValueError(f"{path} is not MNIST's {name}, {error}: delete it to have it downloaded again.") from None


def _decode(name: str, data: bytes) -> Tensor:
    """The uint8 array of an IDX file, gzipped or not (big-endian: magic 2048 + ndim, sizes, bytes), verified."""
    if data.startswith(b"\x1f\x8b"):  # by content: browsers and proxies unpack .gz files without renaming them
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"its gzip data is cut short or damaged ({error})") from None
    ndim = int(name[name.index("idx") + 3])
    magic = int.from_bytes(data[:4], "big")
    if magic != 2048 + ndim:
        raise ValueError(f"it starts with {magic} in place of the magic number {2048 + ndim}")
    digest = hashlib.sha256(data).hexdigest()
    if digest != SHA256[name]:
        raise ValueError(f"its content has SHA-256 {digest[:12]}… in place of {SHA256[name][:12]}…")
    start = 4 * (1 + ndim)
    shape = struct.unpack(f">{ndim}I", data[4:start])
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=start).reshape(shape)


def _download(name: str) -> Tensor:
    """Fetch name.gz from the first mirror that has it; the file appears whole and verified, or not at all."""
    folders = _folders()
    ours = os.environ.get("TINYDIFF_DATA") or os.access(_CHECKOUT, os.W_OK)
    folder = folders[0] if ours else folders[-1]
    failures = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as scratch:  # on one disk: the move is atomic
            for mirror in MIRRORS:
                pooch.get_logger().info(f"Downloading {mirror}{name}.gz to {folder}")
                packed = io.BytesIO()
                try:
                    pooch.HTTPDownloader(progressbar=True)(f"{mirror}{name}.gz", packed, None)
                    array = _decode(name, packed.getvalue())
                except (OSError, ValueError) as error:  # requests' errors are OSErrors; nothing here touches the disk
                    failures.append(f"{mirror} ({_reason(error)})")
                    continue
                part = Path(scratch) / f"{name}.gz"
                part.write_bytes(packed.getvalue())
                part.replace(folder / part.name)
                return array
    except OSError as error:
        raise type(error)(
            f"MNIST cannot be saved in {folder} ({error.strerror}): set TINYDIFF_DATA to a folder you can write to."
        ) from None
    raise ConnectionError(
        f"{name}.gz could not be downloaded from {' or '.join(failures)}: go online, or copy the four MNIST files to "
        f"{folder}, or set TINYDIFF_DATA to a folder that holds them."
    )


def _reason(error: Exception) -> str:
    """A few words for an error whose own text may run over many lines."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"HTTP {status}"
    return type(error).__name__ if isinstance(error, OSError) else str(error)
