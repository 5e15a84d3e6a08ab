"""What a run does besides training: choosing threads."""

from collections.abc import Iterator

import pytest
import torch

import tinydiff as td
from tinydiff import run


@pytest.mark.parametrize(("busy_until", "expected"), [(0, 2), (1000, 1)])
def test_threads_follow_what_is_faster(busy_until: float, expected: int) -> None:
    """A step takes 1/n s on n threads while the machine is idle, and 5 s on more than one while it is busy."""
    used: list[int] = []

    def states() -> Iterator[td.Progress]:
        seconds = 0.0
        for step in range(1, 400):
            threads = torch.get_num_threads()
            seconds += 5.0 if threads > 1 and seconds < busy_until else 1 / threads
            used.append(threads)
            yield td.Progress(step, step / 400, 0.0, 0.0, seconds, 1.0)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen = [p.step for p in run.balanced(states(), every=30)]
        assert torch.get_num_threads() == 2, "the caller's number is restored"
    finally:
        torch.set_num_threads(before)
    assert seen == list(range(1, 400)), "no step is lost or repeated"
    assert used.count(expected) > 300


def test_one_thread_stays_one() -> None:
    states = [td.Progress(i, i / 5, 0.0, 0.0, float(i), 1.0) for i in range(5)]
    assert torch.get_num_threads() == 1  # conftest
    assert list(run.balanced(iter(states))) == states
