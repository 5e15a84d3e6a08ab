"""Shipped weights: every file loads as it was shipped or not at all, and the script that makes them keeps its word."""

import hashlib
import importlib.util
import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import safetensors
import torch

import tinydiff as td
from tinydiff import cli, pretrained

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(pretrained.WEIGHTS.glob("*.safetensors"))
NAMES = [path.stem for path in FILES]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_weights", ROOT / "benchmarks" / "make_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def packed(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights with one model in it, and the checkpoint that it was packed from."""
    folder = tmp_path_factory.mktemp("packed")
    command = [
        "train",
        "toy",
        "moons",
        "--steps",
        "30",
        "--batch",
        "128",
        "--out",
        str(folder / "run"),
        "--device",
        "cpu",
    ]
    assert cli.main(command) == 0
    script.pack(folder / "run" / "checkpoint.safetensors", "toy-moons", folder / "weights")
    return folder


@pytest.fixture
def folder(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, from which `load_pretrained` reads."""
    copy = shutil.copytree(packed / "weights", tmp_path / "weights")
    monkeypatch.setattr(pretrained, "WEIGHTS", copy)
    return copy


def test_all_files_are_listed_carded_and_small() -> None:
    sums = dict(line.split()[::-1] for line in (pretrained.WEIGHTS / "SHA256SUMS").read_text().splitlines())
    assert sums == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in FILES}
    assert sum(path.stat().st_size for path in pretrained.WEIGHTS.iterdir()) < 12e6
    assert "mnist-classifier" in NAMES
    card = (pretrained.WEIGHTS / "README.md").read_text()
    assert re.findall(r"^## (.+)$", card, re.MULTILINE) == NAMES
    for path in FILES:
        with safetensors.safe_open(path, "pt") as file:
            assert json.loads(file.metadata()["info"])["command"] in card


@pytest.mark.parametrize("name", pretrained.shipped())
def test_every_shipped_denoiser_samples(name: str) -> None:
    denoiser = td.load_pretrained(name)
    shape, classes = denoiser.info["shape"], denoiser.info["classes"]
    assert not denoiser.training
    assert {p.dtype for p in denoiser.parameters()} == {torch.float32}
    cond = {"y": torch.arange(4) % classes} if classes else {}
    x = td.sample(denoiser, (4, *shape), steps=5, generator=torch.Generator().manual_seed(0), **cond)
    assert x.shape == (4, *shape)
    assert 0.3 < pretrained.pictures(denoiser, x).abs().max() < 2


def test_denoisers_are_all_but_classifier_and_autoencoder() -> None:
    assert set(NAMES) - set(pretrained.shipped()) == {"mnist-classifier", "mnist-autoencoder"}


def test_shipped_classifier_is_ready_to_use() -> None:
    classifier = td.load_classifier()
    assert not classifier.training
    assert {p.dtype for p in classifier.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in classifier.parameters())
    assert torch.equal(classifier.schedule.log_alpha_bar, td.cosine().log_alpha_bar)
    assert next(path for path in FILES if path.stem == "mnist-classifier").stat().st_size < 1.5e6


def test_half_precision_files_load_to_the_weights_that_were_measured(packed: Path, folder: Path) -> None:
    trained, shipped = td.load(packed / "run" / "checkpoint.safetensors"), td.load_pretrained("toy-moons")
    assert shipped.info["stored in"] == "float16"
    for ours, theirs in zip(shipped.parameters(), trained.parameters(), strict=True):
        assert torch.equal(ours, theirs.half().float())
    assert torch.equal(shipped.schedule.log_alpha_bar, trained.schedule.log_alpha_bar)
    assert shipped.info["data"] == "moons"
    whole = (packed / "run" / "checkpoint.safetensors").stat().st_size
    assert (folder / "toy-moons.safetensors").stat().st_size < whole / 6  # one of four copies, and half of it
    assert "tinydiff train toy moons --steps 30 --batch 128 && python" in (folder / "README.md").read_text()
    quality, floor = shipped.info["quality"], shipped.info["floor"]
    assert list(quality) == list(floor) == ["sliced W2, n = 2000", "energy distance, n = 2000"]
    assert all(quality[key] > 3 * floor[key] for key in floor)  # after 30 steps


def test_weights_that_half_precision_would_spoil_stay_whole(
    script: ModuleType, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([1.0, 1.05])
    monkeypatch.setattr(script, "figures", lambda denoiser: ({"d": next(values)}, {"d": 0.5}))
    script.pack(packed / "run" / "checkpoint.safetensors", "toy-moons", tmp_path)
    monkeypatch.setattr(pretrained, "WEIGHTS", tmp_path)
    trained, shipped = td.load(packed / "run" / "checkpoint.safetensors"), td.load_pretrained("toy-moons")
    assert all(map(torch.equal, shipped.parameters(), trained.parameters()))
    assert (shipped.info["stored in"], shipped.info["quality"]) == ("float32", {"d": 1.0})


def test_a_model_of_mnist_is_carded_with_its_evaluation(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    denoiser = td.VDenoiser(td.UNet(width=32, classes=10), td.cosine())
    denoiser.info = {"data": "mnist", "shape": [1, 28, 28], "classes": 10, "minutes": 10.0}
    training = td.train(denoiser, td.batches(torch.zeros(9, 1, 28, 28), torch.arange(9), size=4), steps=1, lr=1e-3,
                        checkpoint=tmp_path / "checkpoint.safetensors")  # fmt: skip
    assert len(list(training)) == 1
    quick = partial(td.evaluate, n=500, steps=2, progress=False)
    monkeypatch.setattr(td, "evaluate", quick)
    script.pack(tmp_path / "checkpoint.safetensors", "mnist", tmp_path / "weights")
    card, e = (tmp_path / "weights" / "README.md").read_text(), quick(denoiser)
    assert f"| {e.real.frechet:.4f} |" in card
    assert "| agreement | 0." in card
    assert "tinydiff train mnist --minutes 10.0 && python benchmarks/make_weights.py mnist CHECKPOINT" in card


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "toy-moon",
            r"^'toy-moon' is not a shipped denoiser \(did you mean 'toy-moons'\?\): choose one of toy-moons; ",
        ),
        ("xyz", r"^'xyz' is not a shipped denoiser: choose one of toy-moons; load\(path\) reads a file of yours\.$"),
        ("mnist-classifier", r"choose one of toy-moons; load_classifier\(\) gives the classifier\.$"),
        ("mnist-autoencoder", r"choose one of toy-moons; load_autoencoder\(\) gives the autoencoder\.$"),
        ("../weights/toy-moons", "is not a shipped denoiser"),
        (None, "^None is not a shipped denoiser: choose"),
    ],
)
def test_wrong_name_lists_the_right_ones(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        td.load_pretrained(name)


@pytest.mark.parametrize("place", [0, 9, 2000, -1])
def test_one_flipped_bit_is_refused(folder: Path, place: int) -> None:
    path = folder / "toy-moons.safetensors"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"toy-moons\.safetensors is damaged, its SHA-256 is \w{12}… in .* reinstall"):
        td.load_pretrained("toy-moons")


def test_cut_short_or_missing_is_refused(folder: Path) -> None:
    path = folder / "toy-moons.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is damaged"):
        td.load_pretrained("toy-moons")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"toy-moons\.safetensors is missing from this installation: reinstall"):
        td.load_pretrained("toy-moons")
    with pytest.raises(FileNotFoundError, match=r"mnist-classifier\.safetensors is missing"):
        td.load_classifier()


def test_no_network_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(event: str, args: tuple[object, ...]) -> None:
        if armed and event.startswith("socket."):
            raise AssertionError(f"{event} {args}")

    armed = [True]
    sys.addaudithook(refuse)
    try:
        td.load_classifier()
        td.load_autoencoder()
        for name in pretrained.shipped():
            td.load_pretrained(name)
    finally:
        armed.clear()  # an audit hook cannot be removed


def test_loading_leaves_the_callers_random_numbers_alone(packed: Path) -> None:
    before = torch.get_rng_state()
    td.load(packed / "run" / "checkpoint.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_classifiers_file_is_no_denoiser() -> None:
    with pytest.raises(ValueError, match=r"mnist-classifier\.safetensors holds no denoiser: give a file of"):
        td.load(pretrained.WEIGHTS / "mnist-classifier.safetensors")
