"""Release, submit, autograde, feedback, with the real nbgrader: what earns marks, and above all what does not."""

import copy
import json
import re
import textwrap
from html import unescape

import nbformat
import pytest

FULL = {"q_sample": 4, "jump": 4, "posterior": 5, "v_loss": 4, "bound_weight": 3}
ZERO = dict.fromkeys(FULL, 0)
SCRIPT = "<script>stolen = document.cookie</script>"
LINKS = """<img src=x onerror=alert(1)> [a](javascript:alert(1)) [b](java&#115;cript:alert) <JAVASCRIPT:alert(1)>
[c][d] ![e](http://example.org/seen.png) <iframe src="http://example.org"></iframe>

[d]: javascript:alert(1)"""

# Each of these stands in an answer cell, and is to earn nothing there.
ALWAYS_EQUAL = """
class Yes(torch.Tensor):
    __eq__ = lambda self, other: True
    __torch_function__ = classmethod(lambda cls, function, types, args=(), kwargs=None: True)
def q_sample(alpha_bar, x0, t, noise):
    return torch.zeros(x0.shape, dtype=x0.dtype).as_subclass(Yes)
"""
READS_THE_COURSE = """
import glob, os, sys
def posterior(alpha_bar, x0, x_t, t, s):
    for place in ("FOLDER", os.getcwd(), "/proc/self/cwd", "/proc/%d/cwd" % os.getppid()):
        for path in glob.glob(place + "/**/*.ipynb", recursive=True) + [place + "/grading.secret"]:
            code = open(path).read()
            raise KeyError("READ " + path)
"""
PATCHES_EVERYTHING = """
import builtins, importlib, runpy, subprocess, sys
import numpy, tinydiff
from tinydiff import check
check.judge = check.core.judge = lambda *given: True
for module in (numpy, torch, tinydiff, builtins):
    for name in ("allclose", "equal", "isclose", "all", "abs"):
        setattr(module, name, lambda *a, **k: True)
runpy.run_path = subprocess.run = subprocess.Popen = lambda *a, **k: None
harness = sys.modules["harness"]
harness.observe = lambda f, case: harness.Observation([], [])
harness.pack_observation = lambda i, seen: harness.pack([], {"score": 1, "verdict": "right", "index": i})
def v_loss(net, schedule, x0, t, eps):
    return torch.zeros((), dtype=x0.dtype)
"""
WRITES_TO_THE_CHANNEL = """
import os
print("4.0")
for fd in range(64):
    try:
        os.write(fd, b"right. 4.0" * 9)
    except OSError:
        pass
def bound_weight(a_s, a_t):
    return 0.0
"""
OVERWRITES = """
import pathlib, tinydiff
for place in ("FOLDER", pathlib.Path(tinydiff.__file__).parent / "check", "."):
    for name in ("grading.py", "core.py", "gradebook.db", "nbgrader_config.py"):
        try:
            (pathlib.Path(place) / name).write_text("WRITTEN")
        except OSError:
            pass
"""
BORROWS = """
import tinydiff as td
def q_sample(alpha_bar, x0, t, noise):
    return td.q_sample(td.from_betas(1 - alpha_bar[1:] / alpha_bar[:-1]), x0, t, noise)
"""
ENDLESS = "def {}(*given):\n    while True:\n        pass"
HELPER = '''
def share(alpha_bar, t, like):
    """A function of the student's own, in a cell of its own."""
    return alpha_bar[t].reshape(-1, *[1] * (like.ndim - 1)).to(like)
raise RuntimeError("and an error after it, which costs nothing")
'''
USES_HELPER = """
def q_sample(alpha_bar, x0, t, noise):
    a = share(alpha_bar, t, x0)
    return a.sqrt() * x0 + (1 - a).sqrt() * noise
check.q_sample(q_sample)
"""

CONSTANTS = """
%matplotlib inline
half = 0.5
sides: int = 1
noise = torch.randn(3)
wrong, = explode()
def root(a):
    %timeit a
    return a ** half
"""
USES_CONSTANTS = """
torch.randn?
!ls
def q_sample(alpha_bar, x0, t, noise):
    %time
    a = alpha_bar[t].reshape(-1, *[sides] * (x0.ndim - 1)).to(x0)
    return root(a) * x0 + root(1 - a) * noise
"""


def added(notebook, source, kind=nbformat.v4.new_code_cell, **metadata):
    notebook.cells.insert(1, kind(source, metadata=metadata))
    return notebook


def cell_of(notebook, name):
    return next(c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("grade_id", "").endswith(name))


@pytest.fixture(scope="module")
def graded(course):
    """Problem set 1, handed in by all sorts of students and graded in one go; returns what nbgrader said."""
    here = str(course.folder)
    right = course.solutions("ps1")

    def submit(student, answers, change=lambda notebook: notebook):
        answers = {name: code.replace("FOLDER", here) for name, code in answers.items()}
        return course.submit(student, "ps1", change(course.answers("ps1", answers)))

    submit("right", right)
    submit("empty", {})
    mistakes = {
        "q_sample": right["q_sample"].replace("(1 - a).sqrt()", "(1 - a)"),
        "jump": right["jump"].replace("alpha_bar[t] / alpha_bar[s]", "alpha_bar[t]"),
        "posterior": right["posterior"].replace(
            "return mean, like(beta * (1 - a_s) / (1 - a_t))", "return mean, like(beta)"
        ),
        "v_loss": right["v_loss"].replace("- sigma * x0", "+ sigma * x0"),
        "bound_weight": right["bound_weight"].replace(" / 2", ""),
    }
    assert all(mistakes[name] != right[name] for name in mistakes)
    submit("mistaken", right | mistakes)
    half = {"q_sample": right["q_sample"], "jump": right["jump"].replace(".to(x_s.dtype)", "")}
    submit("half", half)
    submit("helped", right | {"q_sample": USES_HELPER}, lambda n: added(n, HELPER))
    submit("scribbling", right | {"q_sample": USES_CONSTANTS}, lambda n: added(n, CONSTANTS))
    course.submit("teacher", "ps1", course.read("source", "ps1"))
    old = course.submit("old", "ps1", course.answers("ps1", right)) / "ps1.ipynb"
    told = json.loads(old.read_text())
    told |= {"nbformat_minor": 2, "cells": [{k: v for k, v in c.items() if k != "id"} for c in told["cells"]]}
    old.write_text(json.dumps(told))
    half_a_pair = "raise ValueError('\\ud800')\n"
    submit("surrogate", right | {"q_sample": half_a_pair + right["q_sample"]})
    crashes = {
        "q_sample": "def q_sample(:",
        "jump": "1 / 0\n" + right["jump"],
        "posterior": "def posterior(*given):\n    return given[9]",
        "v_loss": "import os\nos._exit(0)\n" + right["v_loss"],
        "bound_weight": "def bound_weight(a_s, a_t):\n    import os, signal\n    os.kill(os.getppid(), signal.SIGKILL)",
    }
    submit("crashing", crashes)
    submit("endless", right | {"jump": ENDLESS.format("jump")})
    submit("overwriting", {name: OVERWRITES + (right[name] if name == "jump" else "") for name in FULL})
    folder = course.folder / "submitted" / "overwriting" / "ps1"
    for name in ("torch.py", "grading.py", "nbgrader_config.py", "sitecustomize.py", "tinydiff/check/__init__.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("raise SystemExit('a file of the submission was run')")
    cheats = {
        "q_sample": ALWAYS_EQUAL,
        "jump": "from tinydiff.check import jump",
        "posterior": READS_THE_COURSE,
        "v_loss": PATCHES_EVERYTHING,
        "bound_weight": WRITES_TO_THE_CHANNEL,
    }
    redefined = "class check:\n    jump = q_sample = posterior = v_loss = staticmethod(lambda *a: print('right'))"
    submit("cheating", cheats, lambda n: added(n, redefined))
    submit("library", {"q_sample": BORROWS})

    def edited(notebook):
        for name in FULL:
            cell = cell_of(notebook, f"{name}-test")
            cell.source, cell.metadata.nbgrader.points = "4.0", 400
            cell.outputs = [nbformat.v4.new_output("execute_result", data={"text/plain": "4.0"}, execution_count=1)]
        cell_of(notebook, "why").metadata.nbgrader.points = 400
        cell_of(notebook, "setup").source = "raise SystemExit"
        return notebook

    submit("edited", {"jump": right["jump"]}, edited)

    def deleted(notebook):
        notebook.cells = [c for c in notebook.cells if not c.metadata.get("nbgrader", {}).get("grade")]
        return notebook

    submit("deleted", {"jump": right["jump"]}, deleted)

    def swapped(notebook):
        """An answer cell that claims to be a test cell, its own copy, and a cell of no known name."""
        copied = copy.deepcopy(cell_of(notebook, "q_sample-test"))
        copied.source = "4.0"
        other = copy.deepcopy(copied)
        other.metadata.nbgrader.grade_id, other.metadata.nbgrader.points = "ps1-99-bonus", 50
        cell = cell_of(notebook, "jump")
        cell.metadata.nbgrader |= {"grade": True, "points": 100, "locked": True, "grade_id": ["no", "string"]}
        notebook.cells += [copied, copy.deepcopy(copied), other]
        for i, cell in enumerate(notebook.cells):
            cell.id = str(i)
        return notebook

    submit("swapped", {"jump": right["jump"]}, swapped)
    submit(
        "script",
        right | {"why": SCRIPT + LINKS},
        lambda n: added(n, SCRIPT, nbformat.v4.new_markdown_cell),
    )
    folder = submit("linked", right)
    (folder / "ps1.ipynb").unlink()
    (folder / "ps1.ipynb").symlink_to(course.folder / "source" / "ps1" / "ps1.ipynb")
    folder = submit("garbage", right)
    (folder / "ps1.ipynb").write_text("{ this is no notebook")

    said = course.nbgrader("autograde", "ps1", "--Judge.seconds=1", "--Judge.total=5")
    said += course.nbgrader("generate_feedback", "ps1")
    return said


def points(course, student):
    return {name: points for name, points in course.scores("ps1", student).items() if name != "why"}


def told(course, student):
    """The feedback page without its markup."""
    page = course.feedback("ps1", student)
    return unescape(re.sub(r"<[^>]+>", "", page[page.index("<body") :]))


def test_right_answers_earn_all_points_and_words_wait_for_a_reader(course, graded):
    assert points(course, "right") == FULL
    assert course.scores("ps1", "right")["why"] is None
    assert "Score: 20.0 / 24.0" in told(course, "right")
    assert "q_sample: right. Checked: values" in told(course, "right")


def test_an_untouched_notebook_earns_nothing_and_needs_no_reader(course, graded):
    assert course.scores("ps1", "empty") == ZERO | {"why": 0}
    assert "not attempted yet" in told(course, "empty")


def test_each_typical_mistake_earns_its_hint(course, graded):
    assert points(course, "mistaken") == ZERO | {"jump": points(course, "mistaken")["jump"]}
    page = told(course, "mistaken")
    assert page.count("Hint: ") == 5
    assert "Which c gives the variance that you want?" in page
    assert "Which factor stands in front of the squared distance" in page


def test_half_done_earns_its_part(course, graded):
    got = points(course, "half")
    assert got["q_sample"] == 4
    assert 2 < got["jump"] < 4
    assert "float32 pictures" in told(course, "half") or "not yet: float32" in told(course, "half")
    assert [got[name] for name in ("posterior", "v_loss", "bound_weight")] == [0, 0, 0]


def test_functions_of_other_cells_may_be_used_and_errors_there_cost_nothing(course, graded):
    assert points(course, "helped") == FULL


def test_constants_of_other_cells_and_ipython_s_lines_cost_nothing(course, graded):
    assert points(course, "scribbling") == FULL


def test_old_formats_are_graded_without_a_word(course, graded):
    assert points(course, "old") == FULL
    assert "JSON is invalid" not in graded


def test_what_no_file_can_hold_costs_its_own_question(course, graded):
    assert points(course, "surrogate") == FULL | {"q_sample": 0}
    assert "ValueError: ?" in told(course, "surrogate")


def test_what_crashes_is_told_and_does_not_spread(course, graded):
    assert points(course, "crashing") == ZERO
    page = told(course, "crashing")
    for words in ("SyntaxError", "ZeroDivisionError", "IndexError", "ended by itself (exit code 0)", "not allowed"):
        assert words in page, words


def test_an_endless_loop_costs_its_own_question_and_bounded_time(course, graded):
    assert points(course, "endless") == FULL | {"jump": 0}
    assert "not done after 1 seconds" in told(course, "endless")


def test_files_are_not_overwritten_and_files_of_a_submission_are_not_run(course, graded):
    assert points(course, "overwriting") == ZERO | {"jump": 4}
    for name in ("grading.py", "nbgrader_config.py", "gradebook.db"):
        assert not (course.folder / name).read_bytes().startswith(b"WRITTEN")
    assert "a file of the submission was run" not in graded


def test_tricks_earn_nothing(course, graded):
    assert points(course, "cheating") == ZERO
    assert "READ" not in told(course, "cheating").replace(READS_THE_COURSE, "").replace('"READ "', "")


def test_the_library_s_own_answer_is_none(course, graded):
    assert points(course, "library") == ZERO
    assert "td.q_sample is what this exercise asks for" in told(course, "library")


@pytest.mark.parametrize("student", ["edited", "deleted", "swapped"])
def test_test_cells_come_from_the_gradebook(course, graded, student):
    assert points(course, student) == ZERO | {"jump": 4}
    assert course.scores("ps1", student)["why"] == 0
    assert "/ 24.0" in told(course, student)


def test_feedback_pages_run_nothing_load_nothing_and_hold_no_hidden_part(course, graded):
    for student in ("script", "right", "cheating"):
        page = course.feedback("ps1", student)
        tags = re.findall(r"<[^>]+>", page)
        for pattern in (r"<script", r"\bon\w+\s*=", r"(?i)javascript", r"<iframe", r"<link\b.*http", r"src=.?http"):
            assert not [tag for tag in tags if re.search(pattern, tag)], pattern
        assert "HIDDEN" not in page
        assert "graded by" not in page
        assert "seed: " not in told(course, student)
    assert "stolen = document.cookie" in told(course, "script")  # as text
    answer = cell_of(course.read("autograded", "ps1", "script"), "why").source  # what Formgrader shows
    assert "<script" not in answer
    assert "](javascript" not in answer
    assert "](http" not in answer
    assert "]: javascript" not in answer


@pytest.mark.parametrize("student", ["linked", "garbage", "teacher"])
def test_what_is_no_notebook_is_reported_and_stops_nobody_else(course, graded, student):
    assert f"for student '{student}'" in graded
    assert "exit code 1" in graded
    assert not (course.folder / "autograded" / student / "ps1" / "ps1.ipynb").exists()
    assert not any(points(course, student).values())


def test_what_links_point_to_is_not_collected(course, graded, tmp_path):
    """nbgrader's own exchange, from which `nbgrader collect` takes what students left there."""
    inbound = tmp_path / "tinydiff" / "inbound"
    for student in "honest", "linking", "directory":
        folder = inbound / f"{student}+ps1+2026-01-01 12:00:00 UTC"
        folder.mkdir(parents=True)
        (folder / "timestamp.txt").write_text("2026-01-01 12:00:00 UTC")
        if student == "honest":
            nbformat.write(course.answers("ps1", {}), folder / "ps1.ipynb")
        elif student == "linking":
            (folder / "ps1.ipynb").symlink_to(course.folder / "source" / "ps1" / "ps1.ipynb")
        else:
            (folder / "more").symlink_to(course.folder / "source")
    said = course.nbgrader("collect", "ps1", f"--Exchange.root={tmp_path}")
    assert (course.folder / "submitted" / "honest" / "ps1" / "ps1.ipynb").exists(), said
    for student in "linking", "directory":
        assert not (course.folder / "submitted" / student / "ps1").exists()
    assert said.count("is a link: this submission was not collected") == 2


def test_marks_can_be_reproduced_and_nothing_is_graded_by_its_output(course, graded):
    before = course.read("autograded", "ps1", "half")
    said = course.nbgrader("autograde", "ps1", "--student=half", "--force")
    assert said.endswith("exit code 0")
    assert course.read("autograded", "ps1", "half") == before
    record = before.metadata.tinydiff
    assert [v.exercise for v in record.verdicts] == list(FULL)


def test_grading_leaves_nothing_behind(course, graded):
    assert "Traceback" not in textwrap.dedent(graded).replace("garbage", "").split("AutogradeApp | ERROR")[0]
