"""The training loop, to be read from top to bottom, and the running average of weights that one samples from."""

import copy
import inspect
import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tinydiff.checkpoint import check_training, load, load_training, save, save_training
from tinydiff.denoise import Denoiser
from tinydiff.diffuse import ddpm_loss
from tinydiff.muon import Muon

__all__ = ["EMA", "Progress", "batches", "fast_dtype", "load", "save", "train"]


@dataclass(frozen=True)
class Progress:
    """Where training stands after a step. Seconds are those spent training, over all resumed runs."""

    step: int
    fraction: float  # of the budget, 0 to 1
    loss: float  # of this step's batch
    lr: float
    seconds: float
    images_per_second: float


class EMA:
    """A running average of a denoiser's weights: w <- d w + (1-d) w_new, d = min(decay, (1+n)/(10+n)) at update n >= 0.

    The small first d let the average forget its random start (TensorFlow's ExponentialMovingAverage).
    `ema.denoiser` is the averaged denoiser, in eval mode and without gradients: sample from it.
    """

    def __init__(self, denoiser: Denoiser, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay = {decay} must lie in [0, 1): 0 follows the weights, 1 would never move.")
        self.denoiser = copy.deepcopy(denoiser).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, denoiser: Denoiser) -> None:
        """Move the average towards the denoiser's weights; buffers are copied."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.denoiser.parameters()), list(denoiser.parameters()), 1 - decay)
        for mine, theirs in zip(self.denoiser.buffers(), denoiser.buffers(), strict=True):
            mine.copy_(theirs)
        self.updates += 1


def batches(
    x: Tensor, y: Tensor | None = None, *, size: int, generator: torch.Generator | None = None
) -> Iterator[Tensor | tuple[Tensor, Tensor]]:
    """Endless batches of `size` samples drawn with replacement: x0, or (x0, y) when there are labels.

    The generator is all the state there is: give `train` the same one, and a resumed run sees the batches that an
    uninterrupted one would have seen.
    """
    if not len(x) or size < 1 or (y is not None and len(y) != len(x)):
        labels = "none" if y is None else len(y)
        raise ValueError(f"{len(x)} samples, {labels} labels, {size=}: needs samples, as many labels, and size >= 1.")
    device = x.device if generator is None else generator.device
    while True:
        rows = torch.randint(len(x), (size,), generator=generator, device=device).to(x.device)
        yield x[rows] if y is None else (x[rows], y[rows])


def fast_dtype(x0: Tensor) -> torch.dtype:
    """bfloat16 for float32 pictures where the hardware multiplies it natively, else x0's own (points need digits)."""
    if x0.ndim < 4 or x0.dtype != torch.float32:
        return x0.dtype
    if x0.device.type == "cuda":
        native = torch.cuda.get_device_capability(x0.device) >= (8, 0)
    else:
        native = x0.device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX512"
        native = native and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return torch.bfloat16 if native else torch.float32


def train(
    denoiser: Denoiser,
    batches: Iterable[Tensor | tuple[Tensor, Tensor]],
    *,
    ema: EMA | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    lr: float = 2e-3,
    warmup: float = 0.05,
    weight_decay: float = 0.01,
    clip: float = 1.0,
    dtype: torch.dtype | None = None,
    loss: Callable[..., Tensor] = ddpm_loss,
    generator: torch.Generator | None = None,
    checkpoint: str | Path | None = None,
    save_every: float = 60.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Generator[Progress]:
    """Train the denoiser, yielding after every step: `for p in train(...)`; leave the loop to stop early.

    `Muon` with the gradient's norm clipped; the learning rate rises linearly over the first `warmup` of the budget and
    falls along a cosine to 0 at its end. Between steps the denoiser is in eval mode, ready to be sampled.

    With a `checkpoint`, training resumes from that file if it exists and writes it every `save_every` seconds, at the
    end, and when stopped by `break`, an exception or Ctrl-C. With `steps`, a stopped and resumed run ends in the very
    weights of an uninterrupted one, provided that the batches are drawn from the same `generator`.

    Args:
        batches: yields x0 (B, ...) or (x0, y) on the denoiser's device, as `batches` or a DataLoader does; begun again
            when it runs out.
        ema: updated after every step.
        steps, seconds: the budget, one of the two.
        lr: peak learning rate.
        dtype: of the network's arithmetic; by default `fast_dtype` of the batch.
        loss: called as loss(denoiser, x0, generator=generator, y=y), and with fraction=, the share of the budget that
            is spent, 0 to 1, if it has a parameter of that name.
        generator: source of the loss's randomness; without it, torch's global one, from which labels are dropped in
            any case: for the same weights again, torch.manual_seed(0), too.
        clock: what counts seconds, the same in all processes of a group.

    Raises:
        ValueError: not exactly one budget, no weight to train, a checkpoint of something else, no batches, or a data
            set in their place.
        TypeError: a checkpoint is wanted of classes that `load` would not know.
        OSError: the checkpoint's folder is missing or read-only.
        FloatingPointError: the loss or its gradient is no longer finite; the checkpoint stays as it last was.
    """
    if (steps is None) == (seconds is None) or not (steps or seconds or 0) > 0:
        raise ValueError(
            f"Say how long to train with steps or seconds, one of the two and above 0: {steps=}, {seconds=}."
        )
    if isinstance(batches, tuple) and len(batches) == 2 and getattr(batches[1], "ndim", 0) == 1:
        raise ValueError("The batches are (x, y), a whole data set: draw batches from it, td.batches(x, y, size=128).")
    parameters = [p for p in denoiser.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(
            "No weight of this denoiser wants a gradient, as in the average of an EMA: train a copy of it, "
            "copy.deepcopy(denoiser).requires_grad_(True)."
        )
    fused = parameters[0].device.type in ("cpu", "cuda")
    optimiser = Muon(parameters, lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=fused)
    now = Progress(step=0, fraction=0.0, loss=math.nan, lr=0.0, seconds=0.0, images_per_second=0.0)
    models = {"net.": denoiser} if ema is None else {"net.": denoiser, "ema.": ema.denoiser}
    random = _random_state(generator)
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and path.exists():
        told, random = load_training(path, models, optimiser, random)
        now = Progress(**{field: told[field] for field in Progress.__dataclass_fields__})
        torch.set_rng_state(random["random.torch"])
        if generator is not None:
            generator.set_state(random["random.generator"])
        if ema is not None:
            ema.updates = told["updates"]

    def done(step: float, elapsed: float) -> float:
        return min(1.0, step / steps if steps else elapsed / seconds)  # type: ignore[operator]

    def keep(path: Path) -> None:
        told = asdict(now) | {"updates": 0 if ema is None else ema.updates}
        save_training(path, models, optimiser, random, told)

    paced = "fraction" in inspect.signature(loss).parameters
    first, saved, images, source = now.seconds, now.seconds, 0, _endless(batches)
    if (fraction := done(now.step, now.seconds)) == 1:
        yield now
    elif path is not None:
        check_training(path, denoiser)  # what cannot be saved is better known before training than after
    try:
        while fraction < 1:
            started = clock()
            batch = next(source)
            x0, *labels = (batch,) if isinstance(batch, Tensor) else batch
            cond = {"y": labels[0]} if labels else {}

            fraction = done(now.step + 0.5, now.seconds)
            rate = lr * min(1.0, fraction / warmup if warmup else 1.0) * (1 + math.cos(math.pi * fraction)) / 2
            for group in optimiser.param_groups:
                group["lr"] = rate

            pace = {"fraction": fraction} if paced else {}
            denoiser.train()
            compute = dtype or fast_dtype(x0)
            with torch.autocast(x0.device.type, compute, enabled=compute in (torch.bfloat16, torch.float16)):
                value = loss(denoiser, x0, generator=generator, **cond, **pace)
            denoiser.eval()
            optimiser.zero_grad()
            torch.autograd.backward(value)
            norm = nn.utils.clip_grad_norm_(parameters, clip)
            if not math.isfinite((value + norm).item()):
                path = None  # nothing from here on is worth keeping
                raise FloatingPointError(
                    f"The loss is {value.item():g} and its gradient's norm {norm.item():g} at step {now.step + 1}: "
                    f"lower lr={lr:g}, or look for nan and inf in the data."
                )

            with _uninterrupted():  # Ctrl-C finds whole steps only
                optimiser.step()
                if ema is not None:
                    ema.update(denoiser)
                random = _random_state(generator)
                images, elapsed = images + len(x0), now.seconds + clock() - started
                fraction = done(now.step + 1, elapsed)
                now = Progress(now.step + 1, fraction, value.item(), rate, elapsed, images / (elapsed - first))
            if path is not None and now.seconds - saved >= save_every and fraction < 1:
                keep(path)
                saved = now.seconds
            yield now
    finally:
        denoiser.eval()
        if path is not None and now.seconds > saved:
            with _uninterrupted():
                keep(path)


def _random_state(generator: torch.Generator | None) -> dict[str, Tensor]:
    """Torch's global state, from which labels are dropped, and the generator's."""
    state = {"random.torch": torch.get_rng_state()}
    return state if generator is None else state | {"random.generator": generator.get_state()}


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches, again and again."""
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError("The batches ran out: pass what can begin again, like tinydiff.batches or a DataLoader.")


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the block is done."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only
        return
    pressed: list[Any] = []
    handler = signal.signal(signal.SIGINT, lambda *args: pressed.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if pressed and callable(handler):
            handler(*pressed[0])
