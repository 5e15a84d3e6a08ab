"""Toy sets against their geometry, digits and MNIST against known facts, and every way that a download can fail."""

import gzip
import hashlib
import math
import os
import re
import shutil
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from tinydiff import data
from tinydiff.data import TOYS, digits, mnist, toy

ROOT = Path(__file__).resolve().parents[1]
CLASSES = {
    "moons": 2,
    "swiss_roll": 2,
    "eight_gaussians": 8,
    "checkerboard": 8,
    "spirals": 2,
    "rings": 3,
    "smiley": 3,
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def polar(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.norm(dim=1), torch.atan2(x[:, 1], x[:, 0])


def normal(z: Tensor, std: float) -> None:
    """z is N(0, std^2), within five standard errors, and has no outliers."""
    assert abs(z.mean()) < 5 * std / math.sqrt(len(z))
    assert abs(z.std() / std - 1) < 5 / math.sqrt(2 * len(z))
    assert z.abs().max() < 6 * std


def evenly(u: Tensor) -> None:
    """u is U[0, 1]: the greatest gap between the empirical and the true distribution stays below Kolmogorov's bound."""
    gap = (u.double().sort().values - torch.linspace(0, 1, len(u), dtype=torch.float64)).abs().max()
    assert gap < 2.2 / math.sqrt(len(u))  # exceeded with probability 1e-4


# Toy sets


def test_every_toy_is_here() -> None:
    assert set(TOYS) == set(CLASSES)


@pytest.mark.parametrize("name", TOYS)
def test_toy_shape_range_labels(name: str) -> None:
    x, y = toy(name, 50_000, seeded())
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((50_000, 2), torch.float32, (50_000,), torch.int64)
    assert y.unique().tolist() == list(range(CLASSES[name]))
    assert (x.abs() > 1).any(1).float().mean() < 2e-4
    assert 0.8 < x.abs().max() < 1.15  # fills the square, and the tails are short
    if name != "smiley":
        share = 1 / CLASSES[name]
        counts = y.bincount() - 50_000 * share
        assert counts.abs().max() < 5 * math.sqrt(50_000 * share * (1 - share))


@pytest.mark.parametrize("name", TOYS)
def test_toy_seed_alone_decides(name: str) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, again, other = toy(name, 100, seeded(3)), toy(name, 100, seeded(3)), toy(name, 100, seeded(4))
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    unseeded = toy(name, 100)
    torch.manual_seed(1)
    assert torch.equal(unseeded[0], toy(name, 100)[0])  # without one, torch.manual_seed rules


def test_toy_is_float32_whatever_the_default() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert {toy(name, 3)[0].dtype for name in TOYS} == {torch.float32}
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "moon",
            r"^'moon' is not a toy set \(did you mean 'moons'\?\): choose one of moons, swiss_roll, .*, smiley\.$",
        ),
        ("8gaussians", r"did you mean 'eight_gaussians'\?"),
        ("qqq", r"^'qqq' is not a toy set: choose one of moons"),
        (None, r"^None is not a toy set: choose"),
    ],
)
def test_toy_wrong_name(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy(name, 10)


@pytest.mark.parametrize("n", [0, -1, 2.5, "10", None])
def test_toy_wrong_n(n: int) -> None:
    with pytest.raises(ValueError, match=r"^n = .* must be a whole number of at least 1\.$"):
        toy("moons", n)


def test_moons_are_half_circles() -> None:
    x, y = toy("moons", 20_000, seeded())
    radius = 0.85 / 1.5
    for label, centre, up in [(0, (-0.5, -0.25), 1), (1, (0.5, 0.25), -1)]:
        z = x[y == label] - radius * torch.tensor(centre)
        r, angle = polar(z)
        assert (up * z[:, 1] > -6 * 0.03).all()  # 0 is the upper half of its circle, 1 the lower
        inside = (up * angle > 0.2) & (up * angle < math.pi - 0.2)  # the ends are rounded off by the blur
        normal(r[inside] - radius - 0.03**2 / 2 / radius, 0.03)  # E r of a blurred circle is r + std^2 / 2r
        evenly((up * angle[inside] - 0.2) / (math.pi - 0.4))


def test_swiss_roll_radius_is_proportional_to_angle() -> None:
    x, y = toy("swiss_roll", 20_000, seeded())
    r, angle = polar(x)
    turns = angle[:, None] + 2 * math.pi * torch.arange(4)  # the roll passes this direction at one of these angles
    miss = r[:, None] - 0.9 * turns / (4.5 * math.pi)
    nearest = miss.abs().argmin(1, keepdim=True)
    phi = turns.gather(1, nearest).squeeze(1)
    middle = (phi > 1.6 * math.pi) & (phi < 4.4 * math.pi)
    # across the curve the blur has std 0.02; measured along the radius it grows by 1/cos of the curve's tilt
    normal((miss.gather(1, nearest).squeeze(1) / (1 + phi**-2).sqrt())[middle], 0.02)
    evenly((phi[middle] / math.pi - 1.6) / 2.8)
    assert (y == (phi >= 3 * math.pi)).float().mean() > 0.99  # the blur swaps a few at the boundary
    assert y[phi < 2.8 * math.pi].max() == 0
    assert y[phi > 3.2 * math.pi].min() == 1


def test_eight_gaussians_centres_and_std() -> None:
    x, y = toy("eight_gaussians", 40_000, seeded())
    for k in range(8):
        z = x[y == k] - 0.8 * torch.tensor([math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)])
        normal(z[:, 0], 0.05)
        normal(z[:, 1], 0.05)
        assert abs(torch.corrcoef(z.T)[0, 1]) < 5 / math.sqrt(len(z))
    assert (data.EIGHT_RADIUS, data.EIGHT_STD) == (0.8, 0.05)


def test_checkerboard_parity() -> None:
    x, y = toy("checkerboard", 20_000, seeded())
    cell = ((x + 1) * 2).floor().clamp(max=3).long()
    column, row = cell.T
    assert ((column + row) % 2 == 0).all()
    dark = [(c, r) for r in range(4) for c in range(4) if (c + r) % 2 == 0]  # by rows from the lower left
    assert [dark[k] for k in y[:500]] == list(zip(column[:500].tolist(), row[:500].tolist(), strict=True))
    evenly((x[:, 0] + 1) * 2 - column)
    evenly((x[:, 1] + 1) * 2 - row)


def test_spirals_are_two_arms() -> None:
    x, y = toy("spirals", 20_000, seeded())
    r, angle = polar(x)
    turns = (angle - math.pi * y).remainder(2 * math.pi)[:, None] + 2 * math.pi * torch.arange(2)
    miss = r[:, None] - 0.9 * turns / (3 * math.pi)
    nearest = miss.abs().argmin(1, keepdim=True)
    phi = turns.gather(1, nearest).squeeze(1)
    outer = (r > 0.3) & (phi < 2.9 * math.pi)  # near the origin the arms meet
    normal((miss.gather(1, nearest).squeeze(1) / (1 + phi**-2).sqrt())[outer], 0.02)
    evenly(((phi / (3 * math.pi))[phi < 2.9 * math.pi] / (2.9 / 3)) ** 2)


def test_rings_radii() -> None:
    x, y = toy("rings", 20_000, seeded())
    r, angle = polar(x)
    for k, radius in enumerate([0.3, 0.6, 0.9]):
        normal(r[y == k] - radius - 0.025**2 / 2 / radius, 0.025)
        evenly(angle[y == k] / (2 * math.pi) + 0.5)


def test_smiley_is_the_drawing() -> None:
    drawing = torch.tensor(np.loadtxt(ROOT / "datasets" / "smiley.csv", delimiter=",", skiprows=1), dtype=torch.float32)
    x, y = toy("smiley", 5_000, seeded())
    for k in range(3):
        points, strokes = x[y == k], drawing[drawing[:, 2] == k, :2]
        distance, visited = torch.cdist(points, strokes).min(1)
        assert distance.max() < 5 * 0.008
        assert (
            0.3 * 0.008 < distance.square().mean().sqrt() < 2**0.5 * 0.008
        )  # blurred; the nearest may be another point
        assert len(visited.unique()) > 0.9 * len(strokes)
        share = len(strokes) / len(drawing)
        assert abs(len(points) / 5_000 - share) < 5 * math.sqrt(share * (1 - share) / 5_000)
    head, eyes, mouth = (drawing[drawing[:, 2] == k, :2] for k in range(3))
    assert eyes[:, 1].min() > mouth[:, 1].max()
    assert 50 < (eyes[:, 0] < -0.1).sum() < len(eyes) - 20  # an eye on each side
    assert (eyes[:, 0] > 0.1).sum() > 20
    for part in (eyes, mouth):
        assert (part.abs() < head.abs().amax(0)).all()


def test_smiley_from_a_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expected = toy("smiley", 50, seeded())
    (tmp_path / "_datasets").mkdir()
    shutil.copy(ROOT / "datasets" / "smiley.csv", tmp_path / "_datasets")
    monkeypatch.setattr(data, "_HERE", tmp_path)
    monkeypatch.setattr(data, "_CHECKOUT", tmp_path / "absent")
    assert torch.equal(toy("smiley", 50, seeded())[0], expected[0])


# Digits


def test_digits_are_scikit_learns() -> None:
    x, y = digits()
    bunch = load_digits()
    assert (x.shape, x.dtype, y.dtype) == ((1797, 1, 8, 8), torch.float32, torch.int64)
    assert (x.min(), x.max()) == (-1, 1)
    assert np.array_equal((x[:, 0].numpy() + 1) * 8, bunch.images)
    assert np.array_equal(y.numpy(), bunch.target)
    assert y.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


# MNIST, the real one


@pytest.fixture(scope="module")
def real() -> Iterator[None]:
    """The real files, wherever this machine has them."""
    with pytest.MonkeyPatch.context() as patch:
        if not os.environ.get("TINYDIFF_DATA") and (ROOT.parent / "shared" / "mnist").is_dir():
            patch.setenv("TINYDIFF_DATA", str(ROOT.parent / "shared"))
        patch.setattr(data, "MIRRORS", ())  # a test never downloads them
        if not all(data._find(name) for name in data.SHA256):
            (pytest.fail if os.environ.get("CI") else pytest.skip)(
                "MNIST is not on this machine: set TINYDIFF_DATA to a folder that holds it, or call mnist() once."
            )
        yield


@pytest.fixture(scope="module")
def real_test(real: None) -> tuple[Tensor, Tensor]:
    return mnist("test")


def test_mnist_train(real: None) -> None:
    x, y = mnist()
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((60_000, 1, 28, 28), torch.float32, (60_000,), torch.int64)
    assert y.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert y[:5].tolist() == [5, 0, 4, 1, 9]
    assert (x.min(), x.max()) == (-1, 1)
    assert x.mean(dtype=torch.float64) / 2 + 0.5 == pytest.approx(0.1307, abs=5e-5)
    assert x.std() / 2 == pytest.approx(0.3081, abs=5e-5)
    ink = [
        3,
        18,
        18,
        18,
        126,
        136,
        175,
        26,
        166,
        255,
        247,
        127,
    ]  # the top stroke of the first five: upright, not mirrored
    assert (x[0, 0, 5, 12:24] * 127.5 + 127.5).round().tolist() == ink


def test_mnist_test(real_test: tuple[Tensor, Tensor]) -> None:
    x, y = real_test
    assert x.shape == (10_000, 1, 28, 28)
    assert y.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert y[:5].tolist() == [7, 2, 1, 0, 4]
    assert (x.min(), x.max()) == (-1, 1)
    assert x.unique().diff().max() < 2 / 255 + 1e-6  # every grey value is used: no wrap-around, no rescaling to a few
    assert len(x.unique()) == 256


def test_mnist_raw_equals_gz(real_test: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in data.SPLITS["test"]:
        content = data._find(name).read_bytes()
        here_gz = content.startswith(b"\x1f\x8b")  # this machine holds one kind: make the other
        (tmp_path / (name + ("" if here_gz else ".gz"))).write_bytes(
            gzip.decompress(content) if here_gz else gzip.compress(content, 1)
        )
    monkeypatch.setenv("TINYDIFF_DATA", str(tmp_path))
    x, y = mnist("test")
    assert torch.equal(x, real_test[0])
    assert torch.equal(y, real_test[1])


# MNIST, tiny files and a local mirror

IMAGES = np.array([0, 1, 127, 128, 254, 255] * 4, dtype=np.uint8).reshape(3, 2, 4)
LABELS = np.array([7, 0, 9], dtype=np.uint8)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">{array.ndim + 1}I", 2048 + array.ndim, *array.shape) + array.tobytes()


CONTENT = {name: idx(IMAGES if "idx3" in name else LABELS) for name in data.SHA256}
FIRST, SECOND = data.SPLITS["train"]


class Mirror(ThreadingHTTPServer):
    """Serves /a/ and /b/; `replies` maps a path to a body, or to the length to announce and the part of it to send."""

    def __init__(self) -> None:
        self.replies: dict[str, bytes | tuple[int, bytes]] = {}
        self.asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler) -> None:
                self.asked.append(handler.path)
                reply = self.replies.get(handler.path)
                if reply is None:
                    return handler.send_error(404)
                length, body = (len(reply), reply) if isinstance(reply, bytes) else reply
                handler.send_response(200)
                handler.send_header("Content-Length", str(length))
                handler.end_headers()
                handler.wfile.write(body)
                return None

            def log_message(handler, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty $TINYDIFF_DATA, with tiny files in place of MNIST's; no checkout and no cache in reach."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("TINYDIFF_DATA", str(folder))
    monkeypatch.setattr(data, "SHA256", {name: hashlib.sha256(c).hexdigest() for name, c in CONTENT.items()})
    monkeypatch.setattr(data, "_CHECKOUT", tmp_path / "absent")
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.setattr(data, "MIRRORS", ())
    return folder


@pytest.fixture
def mirror(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """Two mirrors, /a/ (empty) and /b/ (complete)."""
    with Mirror() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(data, "MIRRORS", (f"{url}/a/", f"{url}/b/"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        server.replies = {f"/b/{name}.gz": gzip.compress(content) for name, content in CONTENT.items()}
        yield server
        server.shutdown()


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def is_tiny(part: tuple[Tensor, Tensor]) -> bool:
    x, y = part
    pixels = torch.tensor(IMAGES.astype(np.float64)).unsqueeze(1) / 127.5 - 1
    return x.shape == (3, 1, 2, 4) and torch.allclose(x.double(), pixels, atol=1e-7) and y.tolist() == [7, 0, 9]


def fill(folder: Path, suffix: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in CONTENT.items():
        (folder / (name + suffix)).write_bytes(gzip.compress(content) if suffix else content)


def test_mnist_scale_and_dtype(home: Path) -> None:
    fill(home)
    x, y = mnist("test")
    assert is_tiny((x, y))
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    row = torch.tensor([-255, -253, -1, 1, 253, 255, -255, -253]) / 255  # symmetric, and both ends exact
    assert torch.equal(x[0, 0].flatten(), row)
    x += 1  # writable, and not a view of anything
    assert is_tiny(mnist("test"))


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("place", ["home/mnist", "home", "checkout/mnist", "cache/tinydiff/mnist"])
def test_mnist_is_found_everywhere(
    place: str, suffix: str, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout" / "smiley.csv").touch()
    monkeypatch.setattr(data, "_CHECKOUT", tmp_path / "checkout")
    fill(tmp_path / place, suffix)
    assert is_tiny(mnist())
    assert files(home / "mnist") == ([] if place != "home/mnist" else sorted(n + suffix for n in CONTENT))


def test_mnist_looks_in_order(home: Path, tmp_path: Path) -> None:
    fill(home / "mnist")
    for later in (home, tmp_path / "cache" / "tinydiff" / "mnist"):
        fill(later)
        for name in CONTENT:
            (later / name).write_bytes(b"another")
    assert is_tiny(mnist())


def test_mnist_relative_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(home / "mnist")
    monkeypatch.chdir(home.parent)
    monkeypatch.setenv("TINYDIFF_DATA", "home")
    assert is_tiny(mnist())


def test_mnist_unpacked_under_a_gz_name(home: Path) -> None:
    for name, content in CONTENT.items():
        (home / f"{name}.gz").write_bytes(content)
    assert is_tiny(mnist())


def test_mnist_wrong_split() -> None:
    with pytest.raises(ValueError, match=r"^split = 'val' is not a part of MNIST: choose 'train' or 'test'\.$"):
        mnist("val")


@pytest.mark.parametrize("make", [Path.touch, lambda path: None])
def test_mnist_home_is_no_folder(make: object, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(home / "x")
    monkeypatch.setenv("TINYDIFF_DATA", str(home / "x"))
    with pytest.raises(NotADirectoryError, match=r"^TINYDIFF_DATA = '.*x' is not a folder: create it, or unset"):
        mnist()


LABEL_FILE = gzip.compress(CONTENT[SECOND])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (LABEL_FILE[:-9], r"its gzip data is cut short or damaged \(.*\)"),
        (LABEL_FILE[:10] + b"\xff" * 9 + LABEL_FILE[19:], r"its gzip data is cut short or damaged \(.*\)"),
        (LABEL_FILE[:-8] + bytes(8), r"its gzip data is cut short or damaged \(CRC.*\)"),
        (CONTENT[SECOND][:-1], r"its content has SHA-256 \w{12}… in place of \w{12}…"),
        (CONTENT[SECOND][:-1] + b"\x08", r"its content has SHA-256 \w{12}… in place of \w{12}…"),
        (CONTENT[FIRST], r"it starts with 2051 in place of the magic number 2049"),
        (b"<html>", r"it starts with \d+ in place of the magic number 2049"),
        (b"", r"it starts with 0 in place of the magic number 2049"),
    ],
    ids=["short gz", "broken gz", "crc", "short", "tampered", "magic", "page", "empty"],
)
def test_mnist_damaged_file_is_reported(content: bytes, reason: str, home: Path, mirror: Mirror) -> None:
    fill(home)
    path = home / SECOND
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"^{re.escape(str(path))} is not MNIST's {SECOND}, {reason}: delete it to have it downloaded"
    ):
        mnist()
    assert path.read_bytes() == content  # left for the user to look at
    assert mirror.asked == []  # neither passed over nor replaced
    path.unlink()
    assert is_tiny(mnist())  # what the message says works


# Downloads


def test_download_from_the_second_mirror(home: Path, mirror: Mirror, capfd: pytest.CaptureFixture[str]) -> None:
    assert is_tiny(mnist())
    assert files(home) == ["mnist", f"mnist/{FIRST}.gz", f"mnist/{SECOND}.gz"]  # and no scratch
    assert mirror.asked == [f"/{m}/{name}.gz" for name in (FIRST, SECOND) for m in "ab"]
    assert "100%" in capfd.readouterr().err  # the progress bar
    assert is_tiny(mnist())
    assert len(mirror.asked) == 4  # the second call reads the disk


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (None, "HTTP 404"),
        (b"<html>Sign in to the hotel network</html>", r"it starts with \d+ in place of .*"),
        (LABEL_FILE[:-12], r"its gzip data is cut short or damaged \(.*\)"),
        ((len(LABEL_FILE), LABEL_FILE[:20]), r"ChunkedEncodingError|ConnectionError|its gzip .*"),
        (gzip.compress(CONTENT[SECOND][:-1] + b"\x08"), r"its content has SHA-256 \w{12}… in place of \w{12}…"),
    ],
    ids=["404", "page", "short", "cut off", "tampered"],
)
def test_bad_mirror(reply: bytes | tuple[int, bytes] | None, reason: str, home: Path, mirror: Mirror) -> None:
    fill(home)
    (home / SECOND).unlink()
    if reply is not None:
        mirror.replies[f"/a/{SECOND}.gz"] = reply
    good = mirror.replies.pop(f"/b/{SECOND}.gz")
    a, b = data.MIRRORS
    with pytest.raises(
        ConnectionError,
        match=rf"^{SECOND}\.gz could not be downloaded from {a} \(({reason})\) or {b} \(HTTP 404\): go online, or copy "
        rf"the four MNIST files to {re.escape(str(home / 'mnist'))}, or set TINYDIFF_DATA to a folder that holds them",
    ):
        mnist()
    assert files(home / "mnist") == []
    mirror.replies[f"/b/{SECOND}.gz"] = good
    assert is_tiny(mnist())  # the second mirror makes up for the first
    assert files(home / "mnist") == [f"{SECOND}.gz"]


def test_offline(home: Path, mirror: Mirror) -> None:
    mirror.shutdown()
    mirror.server_close()
    with pytest.raises(
        ConnectionError, match=r"could not be downloaded from .*/a/ \(ConnectionError\) or .*/b/ \(Conn"
    ):
        mnist()
    assert files(home) == ["mnist"]


@pytest.mark.usefixtures("mirror")
def test_ctrl_c_while_downloading(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def __init__(self, progressbar: bool) -> None:
            assert progressbar

        def __call__(self, url: str, output: object, pooch: object) -> None:
            output.write(LABEL_FILE[:10])
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pooch, "HTTPDownloader", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            mnist()
    assert files(home) == ["mnist"]
    assert is_tiny(mnist())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
@pytest.mark.usefixtures("mirror")
def test_stopped_while_writing(error: BaseException, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_half(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write_half)
        with pytest.raises(type(error)) as caught:
            mnist()
    assert files(home) == ["mnist"]
    if isinstance(error, OSError):
        assert str(caught.value) == (
            f"MNIST cannot be saved in {home / 'mnist'} (No space left on device): "
            "set TINYDIFF_DATA to a folder you can write to."
        )
    assert is_tiny(mnist())


def test_read_only_folder(home: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", "…")

    monkeypatch.setattr(Path, "mkdir", refuse)  # chmod does not stop root
    with pytest.raises(
        PermissionError,
        match=rf"^MNIST cannot be saved in {re.escape(str(home / 'mnist'))} \(Permission denied\): set ",
    ):
        mnist()
    assert mirror.asked == []  # found out before the transfer


def test_a_file_where_the_folder_should_be(home: Path, mirror: Mirror) -> None:
    (home / "mnist").touch()
    with pytest.raises(FileExistsError, match=r"^MNIST cannot be saved in .* \(File exists\): set TINYDIFF_DATA to"):
        mnist()
    assert mirror.asked == []


@pytest.mark.parametrize(
    ("is_checkout", "writable", "lands"),
    [(True, True, "checkout/mnist"), (True, False, "cache/tinydiff/mnist"), (False, True, "cache/tinydiff/mnist")],
)
@pytest.mark.usefixtures("mirror")
def test_where_downloads_land_without_the_variable(
    is_checkout: bool, writable: bool, lands: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "checkout").mkdir()  # site-packages may hold another package called datasets
    if is_checkout:
        (tmp_path / "checkout" / "smiley.csv").touch()
    monkeypatch.delenv("TINYDIFF_DATA")
    monkeypatch.setattr(data, "_CHECKOUT", tmp_path / "checkout")
    monkeypatch.setattr(os, "access", lambda path, mode: writable and Path(path).exists() and mode == os.W_OK)
    assert is_tiny(mnist())
    assert [str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("*.gz")] == [lands, lands]
