"""One process that forks, in place of one process each: what a child does must not reach the next, nor the answers."""

import os
import sys
import time

import pytest
from course import CLASSROOM  # makes the next line possible
from room import House

from tinydiff import check

assert CLASSROOM.is_dir()
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere `isolated.run` is used")
RIGHT = "def between(w, beta, beta_tilde):\n    return beta**w * beta_tilde ** (1 - w)"


@pytest.fixture(scope="module")
def house():
    house = House(1)
    yield house
    house.close()


def judged(house, code, **options):
    (verdict,) = house.judge([(check.between, [code], 1)], **{"seconds": 1, "total": 4} | options)
    return verdict


@pytest.mark.parametrize(
    ("trick", "told"),
    [
        ("import os; os._exit(3)", "ended by itself (exit code 3)"),
        ("exit(0)", "SystemExit"),
        ("import os, signal; os.kill(os.getppid(), 9)", "not allowed"),
        ("import threading; threading.Thread(target=print).start()", "can't start new thread"),
        ("import os; os.fork()", "not allowed"),
        ("def between(*given):\n    while True: pass", "not done after 1 seconds"),
        (
            "def between(*given):\n  while True:\n    try:\n      while True: pass\n    except BaseException: pass",
            "not done after",
        ),
        ("import torch\ndef between(*given):\n    return torch.zeros(3 * 10**6)", "sent more than"),
        ("import torch\ndef between(*given):\n    return torch.zeros(10**10)", "memory"),
        ("import os\nos.closerange(0, 99)\nwhile True: pass", "No answer"),
        (
            "import os\nfor fd in range(99):\n    try: os.write(fd, b'right' * 999)\n    except OSError: pass",
            "No answer",
        ),
        (
            "import os\nraise ValueError([fd for fd in range(6, 99) if os.path.exists(f'/proc/self/fd/{fd}')])",
            "ValueError: []",
        ),
        ("import os\nraise ValueError(os.listdir('..'))", "may not be opened"),
        ("raise ValueError(open('../jobs/job').read())", "may not be opened"),
    ],
)
def test_tricks_earn_nothing_and_the_next_one_is_graded_as_ever(house, trick, told):
    verdict = judged(house, trick, answers=4 * 2**20, memory=2**29)
    assert verdict.score == 0
    assert told in verdict.text(), verdict.text()
    room = house.free.queue[0]
    assert judged(house, RIGHT)
    assert house.free.queue[0] is room  # the same process still


def test_nothing_of_one_answer_is_left_for_the_next(house):
    """Neither in the globals of a module, nor in memory that is handed out again."""
    assert judged(house, "import tinydiff\ntinydiff.left = 1.0\nimport torch\nx = torch.full((10**6,), 77.0)\n" + RIGHT)
    look = (
        "import torch, tinydiff\nfound = [bool((torch.empty(10**6) == 77).any()) for _ in range(9)]\n"
        "raise ValueError((hasattr(tinydiff, 'left'), found))"
    )
    assert f"ValueError: (False, {[False] * 9})" in judged(house, look).text()


def test_a_room_that_is_lost_is_replaced(house):
    assert judged(house, RIGHT)
    house.free.queue[0].process.kill()
    house.free.queue[0].process.wait()
    assert judged(house, RIGHT)


def test_a_question_takes_a_fraction_of_a_second(house):
    judged(house, RIGHT)
    start = time.process_time(), os.times()
    assert judged(house, RIGHT)
    assert time.process_time() - start[0] < 1


def test_several_at_once_keep_their_order():
    house = House(2)
    wrong = RIGHT.replace("(1 - w)", "w")
    got = house.judge([(check.between, [code], 1) for code in (RIGHT, wrong, RIGHT, wrong, wrong)])
    assert [bool(v) for v in got] == [True, False, True, False, False]
    house.close()


def test_elsewhere_each_question_gets_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    house = House(1)
    verdict = judged(house, RIGHT)
    assert verdict
    assert verdict.notes[0] == "seed: 1"
    assert house.free.queue[0] is None  # no room was opened
    house.close()


def test_a_room_that_cannot_start_is_the_grader_s_problem(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    house = House(1)
    with pytest.raises(RuntimeError, match="did not start"):
        judged(house, RIGHT)
    house.close()
