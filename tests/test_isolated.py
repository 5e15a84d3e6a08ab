"""Grading in a process of its own: what obtains marks without an answer elsewhere must not do so here."""

import io
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tinydiff import check
from tinydiff.check import isolated
from tinydiff.check.harness import (
    Case,
    Observation,
    Spec,
    pack,
    pack_cases,
    pack_observation,
    unpack,
    unpack_cases,
    unpack_observation,
)

LINUX = sys.platform.startswith("linux")
RIGHT = """
def between(w, beta, beta_tilde):
    return beta**w * beta_tilde ** (1 - w)
"""


def graded(source, exercise=check.between, **options):
    return isolated.run(exercise, textwrap.dedent(source), **{"seed": 1, "seconds": 5, "total": 30} | options)


def test_right_code_is_right_whatever_stands_around_it():
    cells = [
        "%matplotlib inline\nimport torch\nhalf = 0.5\nprint('x' * 100_000)",
        RIGHT.replace("w *", "(half + w - 0.5) *"),
    ]
    verdict = isolated.run(check.between, [cells[0], RIGHT])
    assert verdict, verdict.text()
    assert verdict.score == 1
    assert verdict.notes[0].startswith("seed: ")
    assert isolated.describe(verdict)["score"] == 1


def test_a_known_mistake_earns_its_hint_and_half_right_its_part():
    verdict = graded("def between(w, beta, beta_tilde):\n    return w * beta + (1 - w) * beta_tilde")
    assert verdict.mistake.name == "the arithmetic mean"
    assert verdict.score == 0
    half = """
    def between(w, beta, beta_tilde):
        if beta.ndim:
            raise ValueError("one at a time, please")
        return beta**w * beta_tilde ** (1 - w)
    """
    verdict = graded(half)
    assert 0.4 < verdict.score < 0.9
    assert "one at a time, please" in verdict.text()
    assert "in between, line 4" in verdict.text()
    assert isolated.describe(verdict)["mistake"] is None


@pytest.mark.parametrize(
    ("exercise", "code"),
    [
        (
            check.q_sample,
            "def q_sample(alpha_bar, x0, t, noise):\n"
            "    a = alpha_bar[t].reshape(-1, *[1] * (x0.ndim - 1)).to(x0)\n"
            "    return a.sqrt() * x0 + (1 - a).sqrt() * noise",
        ),
        (
            check.v_loss,
            "def v_loss(net, schedule, x0, t, eps):\n"
            "    alpha, sigma = schedule(t, like=x0)\n"
            "    return (net(alpha * x0 + sigma * eps, t) - (alpha * eps - sigma * x0)).square().mean()",
        ),
    ],
)
def test_schedules_networks_gradients_and_dtypes_reach_the_other_side(exercise, code):
    verdict = graded(code, exercise)
    assert verdict, verdict.text()


ATTEMPTS = """
import os, sys
def between(w, beta, beta_tilde):
    done = []
    def attempt(name, work):
        try:
            done.append(f"{name}: {work()}")
        except (Exception, SystemExit) as error:
            pass
    attempt("import the check", lambda: __import__("tinydiff.check.core"))
    attempt("import an exercise", lambda: __import__("tinydiff.check.lessons01to03"))
    def other():
        sys.path.insert(0, REPOSITORY)
        for name in [m for m in sys.modules if m.startswith("tinydiff")]:
            del sys.modules[name]
        return __import__("tinydiff.check")
    attempt("import it from the repository", other)
    attempt("read the reference", lambda: open(REPOSITORY + "/tinydiff/check/core.py").read())
    attempt("read with os.open", lambda: os.open(REPOSITORY + "/tinydiff/check/core.py", os.O_RDONLY))
    reference = REPOSITORY + "/tinydiff/check/core.py"
    attempt("read with torch", lambda: torch.UntypedStorage.from_file(reference, False, 99))
    attempt("read passwords", lambda: open("/etc/passwd").read())
    attempt("list", lambda: os.listdir(REPOSITORY))
    attempt("write", lambda: open("here.txt", "w").write("x"))
    attempt("change the library", lambda: open(torch.__file__, "a"))
    attempt("remove", lambda: os.remove(torch.__file__ + ".not-there-is-another-error"))
    attempt("write with numpy", lambda: __import__("numpy").save("/tmp/here", 1))
    attempt("start a program", lambda: __import__("subprocess").run(["ls"]))
    attempt("system", lambda: os.system("ls"))
    attempt("fork", lambda: os.fork())
    attempt("socket", lambda: __import__("socket").create_connection(("127.0.0.1", 80)))
    attempt("ctypes", lambda: __import__("ctypes").CDLL(None).getpid())
    attempt("kill the grader", lambda: os.kill(os.getppid(), 9))
    attempt("see the grader's environment", lambda: os.environ["TINYDIFF_SECRET"])
    attempt("become root", lambda: os.setuid(0) if os.getuid() else 1 / 0)
    attempt("undo the limits", lambda: __import__("resource").setrlimit(7, (99, 99)) )
    raise ValueError(f"DONE {done} AS {os.getuid()} IN {os.getcwd()}")
"""


@pytest.mark.skipif(not LINUX, reason="Landlock is Linux's")
def test_files_programs_network_and_the_references_are_out_of_reach(monkeypatch):
    monkeypatch.setenv("TINYDIFF_SECRET", "x")
    repository = str(Path(check.__file__).parents[2])
    verdict = graded(f"import torch\nREPOSITORY = {repository!r}\n" + ATTEMPTS)
    assert "DONE []" in verdict.text(), verdict.text()
    if os.geteuid() == 0 and not any(note.startswith("user") for note in verdict.notes):
        assert "AS 0" not in verdict.text()
    assert not any(note.startswith("limits") for note in verdict.notes)


@pytest.mark.skipif(not LINUX, reason="reads a file of this test's")
def test_without_landlock_python_s_own_locks_hold_and_the_notes_say_so(monkeypatch):
    copy = isolated.copy_library

    def without(folder):
        copy(folder)
        with (folder / "harness.py").open("a") as file:
            file.write("\n_landlock = lambda readable: False\n")

    monkeypatch.setattr(isolated, "copy_library", without)
    repository = str(Path(check.__file__).parents[2])
    verdict = graded(f"import torch\nREPOSITORY = {repository!r}\n" + ATTEMPTS)
    done = verdict.text().partition("DONE [")[2].partition("]")[0]
    assert done == "" or ("read with torch" in done and done.count("'") <= 4), verdict.text()  # C++ opens what it can
    assert any(note.startswith("files: not locked") for note in verdict.notes)


def test_checks_in_the_submitted_cells_do_no_harm_and_no_good():
    code = """
    import tinydiff as td
    from tinydiff import check
    from tinydiff.check import between as theirs
    def between(w, beta, beta_tilde):
        known = theirs(w, beta, beta_tilde)
        return beta**w * beta_tilde ** (1 - w) if known is None else known
    if check.between(between, hint=2):
        raise SystemExit
    td.check.between(between)
    """
    assert graded(code)


def test_the_library_s_own_answer_is_taken_away():
    code = """
    import tinydiff as td
    from tinydiff.diffuse import q_sample as theirs
    class Schedule:
        def __init__(self, alpha_bar): self.alpha_bar = alpha_bar
        def __call__(self, t, like):
            a = self.alpha_bar[t].reshape(-1, *[1] * (like.ndim - 1)).to(like)
            return a.sqrt(), (1 - a).sqrt()
    def q_sample(alpha_bar, x0, t, noise):
        try:
            return td.q_sample(Schedule(alpha_bar), x0, t, noise)
        except NotImplementedError:
            return theirs(Schedule(alpha_bar), x0, t, noise)
    """
    verdict = graded(code, check.q_sample)
    assert verdict.score == 0
    assert "td.q_sample is what this exercise asks for" in verdict.text()


@pytest.mark.parametrize(
    ("trick", "told"),
    [
        ("import os; os._exit(0)", "ended by itself (exit code 0)"),
        ("exit(0)", "SystemExit"),
        ("raise KeyboardInterrupt", "No answer"),
        ("def between(w, *given):\n    while True: pass", "not done after 1 seconds"),
        (
            "def between(*given):\n    while True:\n        try: sum(range(999))\n        except BaseException: pass",
            "was",
        ),
        ("def between(*given): return torch.zeros(10**10)", "memory"),
        ("def between(*given): return torch.zeros(3 * 10**6)", "sent more than"),
        ("def between(*given): return [torch.zeros(1)] * 10**6", "1,000,000 values"),
        ("x = 1", "no function between"),
        ("def between(:", "SyntaxError"),
        ("def between(*given): ...", "not attempted yet"),
        (
            "import os\nfor fd in range(3, 64):\n    try: os.write(fd, bytes(8) + b'junk' * 999)\n"
            "    except OSError: pass\ndef between(*given): return 1.0",
            "No answer",
        ),
        (
            "import sys, numpy\nnumpy.allclose = lambda *a, **k: True\n"
            "class Yes:\n    __eq__ = lambda self, other: True\n    __array__ = lambda *a, **k: numpy.zeros(())\n"
            "def between(*given): return Yes()",
            "neither a tensor nor a number",
        ),
        (
            "import sys\nh = sys.modules['harness']\n"
            "h.observe = lambda f, case: h.Observation([numpy.ones(())], ['float32'])\n"
            "import numpy\ndef between(*given): return 1.0",
            "wrong",
        ),
    ],
)
def test_tricks_earn_nothing_and_are_told(trick, told):
    verdict = graded("import torch\n" + trick, seconds=1, total=6, answers=4 * 2**20, memory=2**29)
    assert not verdict
    assert verdict.score == 0
    assert told in verdict.text(), verdict.text()


def test_what_stood_before_a_fatal_call_counts():
    code = """
    import os
    def between(w, beta, beta_tilde):
        if w == 1.0:
            os._exit(0)
        return beta**w * beta_tilde ** (1 - w)
    """
    verdict = graded(code)
    assert 0 < verdict.score < 1
    assert "ended by itself" in verdict.text()


def test_usual_imports_work_and_a_closed_python_is_noted(tmp_path):
    verdict = graded("import math, random, functools, itertools, numpy as np\nimport torch.nn.functional as F" + RIGHT)
    assert verdict, verdict.text()
    closed = os.name == "posix" and os.geteuid() == 0 and not isolated.open_to_others(Path(sys.base_prefix))
    assert any(note.startswith("imports: nobody may not read") for note in verdict.notes) == closed
    tmp_path.chmod(0o700)
    (tmp_path / "inside").mkdir(mode=0o755)
    assert not isolated.open_to_others(tmp_path / "inside")
    assert isolated.open_to_others(Path("/"))


def test_a_secret_seed_is_drawn_and_known_answers_do_not_help():
    outputs = [case.args for case in check.between.cases(1)]
    table = {repr(args[0]): float(check.between.reference(*args).sum()) for args in outputs}
    verdict = isolated.run(check.between, f"def between(w, beta, beta_tilde): return {table!r}.get(repr(w), 0.0)")
    assert verdict.score == 0


def test_without_root_the_notes_say_so(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    verdict = graded(RIGHT)
    assert verdict
    assert any(note.startswith("user: the code ran as the grader's own user") for note in verdict.notes)


def test_a_process_that_cannot_start_is_the_grader_s_problem(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="did not start"):
        graded(RIGHT)


@pytest.mark.skipif(not LINUX, reason="looks into /proc")
def test_processes_left_behind_are_ended():
    """A grandchild in a session of its own, which a kill of the group does not reach."""
    code = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(60)\nprint(1, flush=True)\ntime.sleep(60)"
    )
    environment = os.environ | {"TINYDIFF_JOB": "test-token"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, start_new_session=True
    )
    process.stdout.readline()
    time.sleep(0.2)
    mark = b"TINYDIFF_JOB=test-token"
    assert sum(isolated._has(p, mark) for p in Path("/proc").glob("[0-9]*")) == 2
    isolated._kill(process, "test-token")
    process.wait()
    assert process.returncode == -signal.SIGKILL
    time.sleep(0.2)
    assert sum(isolated._has(p, mark) for p in Path("/proc").glob("[0-9]*")) == 0
    process.stdout.close()


# --- the channel ------------------------------------------------------------------------------------------------------


def test_cases_and_observations_come_through_unchanged():
    cases = [
        Case("a", (torch.randn(2, 3, dtype=torch.bfloat16), 0.1, Spec("linear", T=5), None, torch.tensor(3))),
        Case("b", (torch.tensor([True, False]), 7, torch.randn(2, dtype=torch.float16)), "gradient"),
    ]
    back, meta = unpack_cases(pack_cases(cases, {"name": "x"}))
    assert meta == {"name": "x"}
    for case, other in zip(cases, back, strict=True):
        assert (case.what, case.probe) == (other.what, other.probe)
        for a, b in zip(case.args, other.args, strict=True):
            assert type(a) is type(b)
            assert torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b
    seen = Observation([np.eye(3), np.asarray(0.5)], ["float64", "number"], "", "", False, [1], True)
    index, other = unpack_observation(pack_observation(4, seen))
    assert index == 4
    assert all(np.array_equal(a, b) for a, b in zip(seen.outputs, other.outputs, strict=True))
    assert (seen.kinds, seen.changed, seen.drew, seen.missing) == (
        other.kinds,
        other.changed,
        other.drew,
        other.missing,
    )


def crafted(header, body=b"", compress=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compress) as archive:
        archive.writestr("meta.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + body)
    return buffer.getvalue()


def pickled():
    buffer = io.BytesIO()
    np.savez(buffer, meta=np.array([os.getcwd], dtype=object))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"junk",
        pickle.dumps([1]),
        pickled(),
        pack([], {})[:-9],
        crafted("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }\n"),
        crafted("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }\n"),
        crafted("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n", bytes(8)),
        crafted("{'descr': '|u1', 'fortran_order': False, 'shape': (99999,), }\n", bytes(99999), zipfile.ZIP_DEFLATED),
        crafted("{'descr': '|u1', 'fortran_order': False, 'shape': (2,), }\n", b"{}"),
        pack([], {"index": 0}),
        pack([], {"index": 0, "kinds": ["float32"], "error": "", "report": "", "missing": 0, "changed": [], "drew": 0}),
        pack([], {"index": 0, "kinds": 5, "error": "", "report": "", "missing": 0, "changed": [], "drew": 0}),
    ],
)
def test_frames_that_lie_are_refused(data):
    with pytest.raises(ValueError, match=r"not what|differ in number"):
        unpack_observation(data)


def test_frames_end_where_sense_ends():
    first, good = pack([], {"locks": []}), pack_observation(0, Observation([np.ones(2)], ["float64"]))
    frame = lambda data: len(data).to_bytes(8, "big") + data  # noqa: E731
    seen, locks = isolated.read(frame(first) + frame(good) + frame(b"junk") + frame(good), 3)
    assert locks == []
    assert [s is not None for s in seen] == [True, False, False]
    seen, _ = isolated.read(frame(first) + frame(pack_observation(7, Observation())) + b"\xff" * 8, 3)
    assert seen == [None] * 3
    assert isolated.read(b"", 3) == ([None] * 3, None)


def test_a_plain_unpack_gives_back_what_was_packed():
    arrays, meta = unpack(pack([np.arange(6).reshape(2, 3).T], {"a": [1, "b"]}))
    assert meta == {"a": [1, "b"]}
    assert np.array_equal(arrays[0], np.arange(6).reshape(2, 3).T)


def test_the_installed_library_is_not_among_what_can_be_read(tmp_path):
    hidden = tmp_path / "site" / "tinydiff"
    for name in ("torch", "tinydiff", "numpy"):
        (tmp_path / "site" / name).mkdir(parents=True)
    places = list(isolated._around(tmp_path, hidden))
    assert places == [tmp_path / "site" / "numpy", tmp_path / "site" / "torch"]
    assert list(isolated._around(tmp_path / "site" / "torch", hidden)) == [tmp_path / "site" / "torch"]
