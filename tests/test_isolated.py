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
from tinydiff.check import harness, isolated
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


def end_the_harness_with(monkeypatch, line):
    """Take a lock off: the process of its own runs a copy of the harness with one more line."""
    copy = isolated.copy_library

    def longer(folder):
        copy(folder)
        with (folder / "harness.py").open("a") as file:
            file.write(f"\n{line}\n")

    monkeypatch.setattr(isolated, "copy_library", longer)


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
    end_the_harness_with(monkeypatch, "_landlock = lambda readable: False")
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


DETOURS = {
    "a copy of the module": (
        check.q_sample,
        "import importlib, tinydiff.diffuse",
        "importlib.reload(tinydiff.diffuse).q_sample(schedule, x0, t, noise)",
    ),
    "the whole package again": (
        check.q_sample,
        "import sys\nfor name in [m for m in sys.modules if m.startswith('tinydiff')]: del sys.modules[name]\n"
        "import tinydiff as td",
        "td.q_sample(schedule, x0, t, noise)",
    ),
    "its source": (
        check.q_sample,
        "import tinydiff.diffuse\nspace = {}\nexec(open(tinydiff.diffuse.__file__).read(), space)",
        "space['q_sample'](schedule, x0, t, noise)",
    ),
    "what other functions hold": (
        check.q_sample,
        "import gc, types\nfound = [f for f in gc.get_objects() if isinstance(f, types.FunctionType)"
        " and f.__qualname__ == 'q_sample']",
        "found[0](schedule, x0, t, noise)",
    ),
    "a network that looks": (
        check.q_sample,
        "import tinydiff as td, torch\nclass Net(torch.nn.Module):\n"
        "    def forward(self, x, t):\n        self.seen = x\n        return x",
        "(net := Net(), td.VDenoiser(net, schedule).loss(x0, t, noise)) and net.seen",
    ),
    "a subclass of its class": (
        check.v_loss,
        "import tinydiff as td\nV = next(c for c in td.Denoiser.__subclasses__() if c.__name__ == 'VDenoiser')",
        "V(net, schedule).loss(x0, t, eps)",
    ),
    "a class by the one around it": (
        check.dynamic_threshold,
        "from tinydiff import guide\nD = next(c for c in guide.Wrapper.__subclasses__() if 'Dynamic' in c.__name__)",
        "D(lambda x, t: x, quantile)(x0_hat, 0)",
    ),
}


@pytest.mark.skipif(not LINUX, reason="without Landlock torch can read the library's files")
@pytest.mark.parametrize(("exercise", "before", "answer"), DETOURS.values(), ids=DETOURS)
def test_the_library_s_own_answer_is_not_found_by_a_detour(exercise, before, answer):
    schedule = ""
    if exercise is check.q_sample:
        schedule = "    import tinydiff\n    schedule = tinydiff.from_betas(1 - alpha_bar[1:] / alpha_bar[:-1])\n"
    verdict = graded(f"{before}\ndef {exercise.signature}:\n{schedule}    return {answer}\n", exercise)
    assert verdict.score == 0
    told = ("is what this exercise asks for", "may not be opened here", "is not allowed", "No module named")
    assert any(words in verdict.text() for words in told), verdict.text()


@pytest.mark.parametrize("name", ["q_sample", "pseudo_huber", "sample", "VDenoiser", "DynamicThreshold"])
def test_what_is_taken_away_refuses_wherever_it_is_referred_to(name):
    """In a process of its own, for it does not come back."""
    code = f"""
import tinydiff as td
from tinydiff.check import harness
modules = [vars(m) for k, m in harness.sys.modules.items() if k.split('.')[0] == 'tinydiff']
answer = next(m[{name!r}] for m in modules if isinstance(m.get({name!r}), type | harness.types.FunctionType))
harness._remove([{name!r}])
plain = harness.types.FunctionType
for function in [answer] if isinstance(answer, plain) else [f for f in vars(answer).values() if isinstance(f, plain)]:
    try:
        next(function(None, None))
    except NotImplementedError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"{name} is what this exercise asks for: write it yourself." in done.stdout, done.stderr


def test_names_of_what_is_to_be_taken_away_must_exist():
    with pytest.raises(AttributeError, match="tinydiff has no ddim_stop"):
        harness._remove(["ddim_stop"])
    for exercise in check.EXERCISES.values():
        for name in exercise.library:
            assert any(hasattr(m, name) for k, m in sys.modules.items() if k.startswith("tinydiff")), name


def test_drawing_needs_no_answer_and_may_be_imported():
    verdict = graded("from tinydiff import plot" + RIGHT)
    closed = any(note.startswith("imports") for note in verdict.notes)  # then matplotlib misses Python's own parts
    assert verdict or closed, verdict.text()
    assert "tinydiff" not in verdict.text()


@pytest.mark.skipif(
    not LINUX
    or os.uname().machine not in ("x86_64", "aarch64")
    or "Seccomp" not in Path("/proc/self/status").read_text(),
    reason="this system's kernel has no seccomp, or its numbers are not known",
)
def test_without_python_s_own_locks_the_system_s_keep_the_network_and_other_processes_safe(monkeypatch):
    end_the_harness_with(monkeypatch, "_audit = lambda readable: None")
    code = """
    import os, resource, socket, ctypes
    QUEUE = {"x86_64": 129, "aarch64": 138}[os.uname().machine]
    libc = ctypes.CDLL(None, use_errno=True)
    def between(w, beta, beta_tilde):
        done, parent = [], os.getppid()
        def attempt(name, work):
            try:
                if work() != -1:
                    done.append(name)
            except OSError:
                pass
        attempt("a socket", lambda: socket.socket())
        attempt("a socket from C", lambda: libc.socket(2, 2, 0))
        attempt("a socket of the kernel's", lambda: libc.syscall(425, 1, ctypes.create_string_buffer(120)))
        for who in parent, os.getpid():  # oneself stands for others of the same user
            attempt("kill", lambda: os.kill(who, 0))
            attempt("a queued signal", lambda: libc.syscall(QUEUE, who, 0, ctypes.create_string_buffer(128)))
            attempt("limits", lambda: resource.prlimit(who, resource.RLIMIT_CPU))
            attempt("scheduling", lambda: os.sched_setaffinity(who, os.sched_getaffinity(0)))
        attempt("my priority", lambda: os.setpriority(os.PRIO_PROCESS, 0, 19))
        attempt("my scheduling", lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)))
        attempt("a program", lambda: os.execv("/bin/true", ["true"]))
        assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
        raise ValueError(f"DONE {done}")
    """
    verdict = graded(code)
    assert "DONE []" in verdict.text(), verdict.text()
    assert not any(note.startswith("calls") for note in verdict.notes)


@pytest.mark.parametrize(
    "others",
    [
        ["compile = False  # True on a GPU", "def power(a, b): return a**b"],
        ["any, exec, isinstance = None, None, None", "def power(a, b): return a**b"],
        ["def power(a, b): return a**b", "power = 0.5  # a scratch cell"],
        ["import math", "one = math.e - math.e + 1", "def power(a, b, c=one): return a**b * c"],
    ],
)
def test_other_cells_help_and_do_no_harm(others):
    code = "def between(w, beta, beta_tilde):\n    return power(beta, w) * power(beta_tilde, 1 - w)\n"
    assert isolated.run(check.between, [isolated.around(others), code])


def test_foreign_functions_are_not_imported():
    for name in ("cffi", "_cffi_backend"):
        assert "PermissionError: import is not allowed here." in graded(f"import {name}" + RIGHT).text()


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


def test_two_calls_that_take_too_long_are_enough():
    code = "def between(*given):\n    while True: pass"
    start = time.monotonic()
    assert "not done after 2 seconds" in graded(code, seconds=2, total=60).text()
    assert time.monotonic() - start < 2 * (len(check.between.cases(1)) - 1)
    once = RIGHT.replace("    return", "    while w == 1.0: pass\n    return")
    assert graded(once, seconds=1).score > 0.5


PYTHON = [
    ("x = 1\n%matplotlib inline\ny = 2", "x = 1\npass\ny = 2"),
    ("def f():\n    %matplotlib inline\n    !ls", "def f():\n    pass\n    pass"),
    ("%%time\nx = 1\ntorch.randn?\ntorch.randn??\n?torch", "pass\nx = 1\npass\npass\npass"),
    ("files = !ls\nx = %time 5", "pass\npass"),
    ("x = (a\n% b\n!= c)", "x = (a\n% b\n!= c)"),
    ("x = '''\n%d items?\n!\n''' % 3", "x = '''\n%d items?\n!\n''' % 3"),
    ("return (x  # why?\n", "return (x  # why?\n"),
    ("%\r\nx = '\u2028'", "pass\nx = '\u2028'"),
    ("def f(:", "def f(:"),
    ("", ""),
]


@pytest.mark.parametrize(("cell", "python"), PYTHON)
def test_lines_that_only_ipython_knows_cost_nothing(cell, python):
    assert harness.plain_python(cell) == python


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


def test_members_that_overlap_are_refused_before_they_are_read():
    """One member, listed nine times: as many bytes to read as one likes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a0.npy", bytes(9999))
        archive.filelist *= 9
    with pytest.raises(ValueError, match="members overlap"):
        unpack(buffer.getvalue())


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
        pack([], {"index": 1e400, "kinds": [], "error": "", "report": "", "missing": 0, "changed": [], "drew": 0}),
        pack([], {"index": 0, "kinds": [], "error": "", "report": "", "missing": 0, "changed": [1e400], "drew": 0}),
    ],
)
def test_frames_that_lie_are_refused(data):
    with pytest.raises(ValueError, match=r"not what|differ in number"):
        unpack_observation(data)


def test_what_frames_say_can_be_judged_and_written_down():
    said = Observation([np.ones(2)], [""], "\ud800Error", "half a pair: \udfff", changed=[99, -99])
    _, told = unpack_observation(pack_observation(0, said))
    cases = check.between.cases(0)
    right = [harness.observe(check.between.reference, case) for case in cases]
    for forged in told, Observation(told.outputs, told.kinds), Observation(*vars(right[0]).values()):
        forged.changed = told.changed
        verdict = check.judge(check.between, cases, [forged, *right[1:]])
        assert verdict.score < 1
        verdict.text().encode()


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
