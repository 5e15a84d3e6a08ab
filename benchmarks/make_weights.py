"""Make a file of tinydiff/weights, its checksum and its entry in the card.

    python benchmarks/make_weights.py mnist-classifier                        # trains it: five minutes on two cores
    python benchmarks/make_weights.py mnist-autoencoder                       # likewise
    python benchmarks/make_weights.py mnist runs/mnist/checkpoint.safetensors # packs a checkpoint of tinydiff train

Only averaged weights are kept, in half precision if that changes the measured quality by less than 2 % of the floor.
"""

import argparse
import copy
import hashlib
import json
import time
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

import tinydiff as td
from tinydiff import metrics, run
from tinydiff.checkpoint import header_of, read, tensors_of, write
from tinydiff.classifier import Classifier, train_classifier
from tinydiff.data import TOYS
from tinydiff.evaluate import features, load_reference, measure, quality, reference_from
from tinydiff.pretrained import AUTOENCODER, CLASSIFIER, WEIGHTS

TIMES = (0, 200, 400, 500, 600, 700, 800, 1000)
CARD = """# Weights that come with tinydiff

Made by tinydiff's developers from the data sets named, for `tinydiff.load_pretrained(name)` and, for classifier and
autoencoder, `tinydiff.load_classifier()` and `tinydiff.load_autoencoder()`; MIT licence, like the code. Half-precision
weights are read as float32. Each quality was measured when the file was made and stands beside its floor, what real
data of the same number reach. This page and `SHA256SUMS` are written by `benchmarks/make_weights.py`.

`mnist-classifier` also holds what `tinydiff.evaluate` compares with: mean and covariance of its 64 features of the
60,000 training digits, their 16 leading principal components in 8 bits each, and the floor: how the 10,000 test digits
compare. Frechet distances are its own: they cannot be compared with those on other features. t counts noise on
`tinydiff.cosine()`, 0 is clean. Its minutes are those of one core, as the autoencoder's. The others' minutes, and all
seconds, are by the clock, on a machine that was busy with other work. `mnist-autoencoder` was measured on the 10,000
test digits, encoded and decoded; samples of `mnist-latent` are latents, and were decoded with it.
"""


def pack(checkpoint: Path, name: str, folder: Path = WEIGHTS) -> None:
    """Put the denoiser of a training checkpoint into the folder of weights, and renew checksums and card."""
    denoiser = td.load(checkpoint)
    minutes = json.loads(read(checkpoint)[0]["training"])["seconds"] / 60
    rounded = copy.deepcopy(denoiser)
    rounded.load_state_dict({key: value.half().float() for key, value in denoiser.state_dict().items()})
    (exact, floor), (half, _) = figures(denoiser), figures(rounded)
    figure = next(iter(floor))
    small = abs(half[figure] - exact[figure]) <= 0.02 * abs(floor[figure])
    print(f"{figure}: {exact[figure]:.4f} in float32, {half[figure]:.4f} in half precision, floor {floor[figure]:.4f}")
    made = {
        "command": f"{_command(denoiser.info)} && python benchmarks/make_weights.py {name} CHECKPOINT",
        "training minutes": round(minutes, 1),
        "parameters": sum(p.numel() for p in denoiser.parameters()),
        "stored in": "float16" if small else "float32",
        "quality": half if small else exact,
        "floor": floor,
    }
    tensors = tensors_of(denoiser, "net.")
    if small:
        tensors = {key: value.half() if key.startswith("net.") else value for key, value in tensors.items()}
    folder.mkdir(exist_ok=True)
    header = header_of(denoiser) | {"info": json.dumps(denoiser.info | made)}
    write(folder / f"{name}.safetensors", tensors, header)
    publish(folder)


def figures(denoiser: td.Denoiser) -> tuple[dict[str, float], dict[str, float]]:
    """Quality of 20-step DPM-Solver++(2M) samples and of real data, the deciding figure first; MNIST's also by SDE.

    Of a consistency model the quality of 1, 2 and 4 of its own steps.
    """
    if "teacher" in denoiser.info:
        values, floor = {}, {}
        for steps in (1, 2, 4):
            found = td.evaluate(denoiser, steps=steps)
            values |= {f"{key}, consistency {steps}": value for key, value in vars(found.samples).items()}
            floor |= {f"{key}, consistency {steps}": value for key, value in vars(found.real).items()}
        return values, floor
    if denoiser.info["data"] in ("mnist", "mnist-latent"):
        ode, sde = (td.evaluate(denoiser, sampler=partial(td.dpm_solver_pp, eta=eta)) for eta in (0.0, 1.0))
        noisy = {f"{key}, SDE": value for key, value in vars(sde.samples).items()}
        return vars(ode.samples) | noisy | {"seconds per 1000": ode.seconds_per_1000}, dict(vars(ode.real))
    x, y = run.load_data(denoiser.info["data"])
    order, n = torch.randperm(len(x), generator=seeded(1)), min(2000, len(x) // 2)
    x, y = x[order], y[order[:n]]
    drawn = td.sample(denoiser, (n, *x.shape[1:]), generator=seeded(0), y=y)
    made, others, real = (part.flatten(1) for part in (drawn, x[n : 2 * n], x[:n]))
    values, floor = (
        {
            f"sliced W2, n = {n}": metrics.sliced_wasserstein(part, real, generator=seeded(0)),
            f"energy distance, n = {n}": metrics.energy_distance(part, real),
        }
        for part in (made, others)
    )
    return values, floor


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _command(info: dict[str, Any]) -> str:
    """The training command that the settings in `info` came from."""
    data = info["data"]
    recipe = run.RECIPES.get(data, run.RECIPES["toy"])
    words = ["tinydiff train", f"toy {data}" if data in TOYS else data]
    if "teacher" in info:
        words = ["tinydiff distill", info["teacher"]]
    usual = {"steps": None, "minutes": None, "width": recipe.width, "batch": recipe.batch, "lr": recipe.lr, "seed": 0}
    words += [f"--{key} {info[key]}" for key, value in usual.items() if info.get(key) not in (None, value)]
    return " ".join(words)


def make_classifier(steps: int = 4000, folder: Path = WEIGHTS) -> None:
    """Train the classifier on MNIST, measure the training set with it, and store both in one file."""
    (x, y), (test_x, test_y) = td.mnist(), td.mnist("test")
    torch.manual_seed(0)
    classifier, generator = Classifier(), seeded(0)
    start = time.process_time()
    for _ in tqdm(train_classifier(classifier, x, y, steps=steps, generator=generator), total=steps):
        pass
    cpu = time.process_time() - start
    weights = {key: value.half() for key, value in classifier.state_dict().items()}
    classifier.load_state_dict(weights)  # measured as shipped
    classifier.requires_grad_(False)
    right = {t: accuracy(classifier, test_x, test_y, t) for t in TIMES}
    reference = reference_tensors(classifier, x, test_x, test_y)
    made = {
        "data": "mnist",
        "command": f"python benchmarks/make_weights.py {CLASSIFIER}",
        "training minutes": round(cpu / 60, 1),  # of one core, whatever else the machine did
        "parameters": sum(p.numel() for p in classifier.parameters()),
        "stored in": "float16",
        "quality": {f"test accuracy at t = {t}": value for t, value in right.items()},
        "floor": {f"Frechet distance of {int(row[0])} test digits": row[1].item() for row in reference["floor"]},
    }
    header = {"format": "tinydiff", "version": "1", "config": json.dumps(classifier.config), "info": json.dumps(made)}
    tensors = {f"net.{key}": value for key, value in weights.items()}
    tensors |= {f"reference.{key}": value for key, value in reference.items()}
    tensors["schedule.log_alpha_bar"] = classifier.schedule.log_alpha_bar
    folder.mkdir(exist_ok=True)
    write(folder / f"{CLASSIFIER}.safetensors", tensors, header)
    publish(folder)


def make_autoencoder(steps: int = 4000, kl: float = 0.02, folder: Path = WEIGHTS) -> None:
    """Train the autoencoder on MNIST, measure unseen digits decoded from their latents, and store its average."""
    (x, _), (test_x, test_y) = td.mnist(), td.mnist("test")
    torch.manual_seed(0)
    autoencoder, generator = td.Autoencoder(), seeded(0)
    ema, source = td.EMA(autoencoder), td.batches(x, size=128, generator=generator)
    options: dict[str, Any] = {"lr": 3e-3, "loss": partial(td.autoencoder_loss, kl=kl), "generator": generator}
    start = time.process_time()
    for _ in tqdm(td.train(autoencoder, source, ema=ema, steps=steps, **options), total=steps):
        pass
    cpu = time.process_time() - start
    weights = {key: value.half() for key, value in ema.denoiser.state_dict().items()}
    ema.denoiser.load_state_dict(weights)  # measured as shipped
    autoencoder = ema.denoiser.set_scale(x)
    made = {
        "data": "mnist",
        "command": f"python benchmarks/make_weights.py {AUTOENCODER}",
        "kl": kl,
        "training minutes": round(cpu / 60, 1),  # of one core, whatever else the machine did
        "parameters": sum(p.numel() for p in autoencoder.parameters()),
        "stored in": "float16",
        "quality": reconstruction(autoencoder, test_x, test_y),
        "floor": vars(load_reference().real(len(test_x))),
    }
    header = {"format": "tinydiff", "version": "1", "config": json.dumps(autoencoder.config), "info": json.dumps(made)}
    tensors = {f"net.{key}": value for key, value in weights.items()} | {"net.scale": autoencoder.scale}
    folder.mkdir(exist_ok=True)
    write(folder / f"{AUTOENCODER}.safetensors", tensors, header)
    publish(folder)


@torch.no_grad()
def reconstruction(autoencoder: td.Autoencoder, x: Tensor, y: Tensor) -> dict[str, float]:
    """How digits come back from their means and from draws of q(z | x), and what their latents cost."""
    parts = [(autoencoder.encode(part), autoencoder.sample(part, seeded(0))) for part in torch.split(x, 500)]
    back, drawn = (torch.cat([autoencoder.decode(z) for z in column]) for column in zip(*parts, strict=True))
    mean, log_var = autoencoder.posterior(x[:1000])
    return vars(measure(back, y)) | {
        "frechet, z drawn from q": measure(drawn, y).frechet,
        "squared error of a pixel": (back - x).square().mean().item(),
        "KL in nats": td.kl_divergence(mean, log_var).mean().item(),
    }


@torch.no_grad()
def accuracy(classifier: Classifier, x: Tensor, y: Tensor, t: float) -> float:
    """Share of digits recognised at time t."""
    x = td.q_sample(classifier.schedule, x, t, generator=seeded(0))
    predicted = torch.cat([classifier(part, t).argmax(1) for part in torch.split(x, 500)])
    return metrics.class_agreement(y, predicted)


def reference_tensors(classifier: Classifier, x: Tensor, test_x: Tensor, test_y: Tensor) -> dict[str, Tensor]:
    """What `reference_from` reads."""
    seen, test = features(classifier, x), features(classifier, test_x)
    mean, cov = metrics.moments(seen)
    basis = torch.linalg.eigh(cov).eigenvectors.flip(1)[:, :16].contiguous()
    points = (seen.double() - mean) @ basis
    scale = points.std(0) * (8 / 255)  # 8 bits span four standard deviations on either side; farther out is clipped
    codes = (points / scale).round().clamp(-127, 127).to(torch.int8)
    tensors = {"mean": mean, "cov": cov, "basis": basis, "codes": codes, "scale": scale}
    tensors |= {"close": torch.zeros(()), "floor": torch.zeros(1, 8)}
    draft = reference_from(tensors)
    tensors["close"] = metrics.nearest_distance(draft.project(test), draft.points).quantile(0.01)

    order = torch.randperm(len(test), generator=seeded(0))
    predicted, reference, rows = classifier.head(test).argmax(1), reference_from(tensors), []
    for n in (500, 1000, 2000, 5000, 10_000):
        parts = order.split(n)
        values = [astuple(quality(test[part], predicted[part], test_y[part], reference)) for part in parts]
        rows.append([n, *torch.tensor(values, dtype=torch.float64).mean(0).tolist()])
        print(rows[-1])
    return tensors | {"floor": torch.tensor(rows, dtype=torch.float64)}


def publish(folder: Path) -> None:
    """Write SHA256SUMS and README.md for the files in the folder."""
    sums, card, paths = [], [CARD], sorted(folder.glob("*.safetensors"))
    for path in paths:
        content, info = path.read_bytes(), json.loads(read(path)[0]["info"])
        sums.append(f"{hashlib.sha256(content).hexdigest()}  {path.name}\n")
        quality, floor = info["quality"], info["floor"]
        card.append(
            f"\n## {path.stem}\n\n{info['parameters']:,} parameters in {info['stored in']}, {len(content):,} bytes."
        )
        card.append(f" Trained on {info['data']} for {info['training minutes']} minutes. Made by\n\n")
        card.append(f"    {info['command']}\n\n| measured | value | real data |\n| --- | --- | --- |\n")
        for key in quality | floor:
            value, real = quality.get(key), floor.get(key)
            card.append(f"| {key} | {_cell(value)} | {_cell(real)} |\n")
    (folder / "SHA256SUMS").write_text("".join(sums))
    (folder / "README.md").write_text("".join(card))
    print(f"{len(paths)} files, {sum(path.stat().st_size for path in paths):,} bytes in {folder}")


def _cell(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.4f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="the name to load it by")
    parser.add_argument(
        "checkpoint", nargs="?", type=Path, help="of tinydiff train; not for classifier and autoencoder"
    )
    args = parser.parse_args()
    if args.name == CLASSIFIER:
        make_classifier()
    elif args.name == AUTOENCODER:
        make_autoencoder()
    elif args.checkpoint is None:
        parser.error(f"{args.name} needs a checkpoint")
    else:
        pack(args.checkpoint, args.name)
