"""Several processes, one result: `torchrun --nproc-per-node N -m tinydiff ...` (torch's own DistributedDataParallel).

Every process draws the whole batch, its times and its noise from the same generator and works on its share of it, so
that N processes compute what one would, within rounding.
"""

import os
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tinydiff.denoise import Denoiser
from tinydiff.diffuse import randn, stratified_times


def start(device: torch.device) -> torch.device:
    """Join the group of processes that torchrun started, if it did; returns this process's own device."""
    if "RANK" not in os.environ:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def wait() -> None:
    """Wait until all processes are here.

    A process that ends right after its last message may be aborted by torch, whose threads still hold on to that
    message's tensors (github.com/pytorch/pytorch/pull/179291).
    """
    if dist.is_initialized():
        dist.barrier()


def stop() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, 0 for the first and for a process alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(n: int) -> slice:
    """This process's part of n things, in order."""
    return slice(n * rank() // world(), n * (rank() + 1) // world())


def clock() -> float:
    """Seconds on the first process's clock, so that all processes agree when the time is up."""
    if world() == 1:
        return time.perf_counter()
    now = torch.tensor(time.perf_counter(), dtype=torch.float64)
    now = now.cuda() if dist.get_backend() == "nccl" else now
    dist.broadcast(now, 0)
    return now.item()


def gather(x: Tensor, n: int) -> Tensor:
    """The shares (of n) of all processes, put together again on each of them."""
    if world() == 1:
        return x
    largest = -(-n // world())
    padded = torch.cat([x, x.new_zeros(largest - len(x), *x.shape[1:])])
    parts = [torch.empty_like(padded) for _ in range(world())]
    dist.all_gather(parts, padded)
    sizes = [n * (r + 1) // world() - n * r // world() for r in range(world())]
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


class _Loss(nn.Module):
    """The loss as a module's forward, which is what DistributedDataParallel wraps."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x0: Tensor, t: Tensor, noise: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return self.denoiser.loss(x0, t, noise, **cond)


def sharded_loss(denoiser: Denoiser) -> Callable[..., Tensor]:
    """`ddpm_loss` with `stratified_times`, on this process's share of the batch; gradients are averaged over processes.

    For `train(loss=...)`. Raises ValueError where the batch does not divide by the number of processes, as the mean of
    the shares' means would not be the batch's.
    """
    module: nn.Module = _Loss(denoiser)
    device = next(denoiser.parameters()).device
    if world() > 1:
        module = nn.parallel.DistributedDataParallel(module, [device] if device.type == "cuda" else None)

    def loss(_: Denoiser, x0: Tensor, *, generator: torch.Generator | None = None, **cond: Any) -> Tensor:
        if len(x0) % world():
            raise ValueError(f"A batch of {len(x0)} does not divide by {world()} processes: choose another --batch.")
        t = stratified_times(denoiser.schedule, len(x0), generator).to(x0.device)
        noise, mine = randn(x0.shape, generator, x0), share(len(x0))
        value: Tensor = module(x0[mine], t[mine], noise[mine], {name: c[mine] for name, c in cond.items()})
        if world() > 1:  # report the whole batch's loss; the gradient stays that of the share
            mean = value.detach().clone()
            dist.all_reduce(mean)
            value = value + (mean / world() - value).detach()
        return value

    return loss
