"""Grade a whole class: `python benchmarks/classroom.py [--students 100] [--set ps1]`, on whatever cores there are.

Writes a course into a temporary folder, lets that many students hand in one problem set (of ten: one with an endless
loop in one question, one half done, six with two mistakes, two right), and runs nbgrader's autograde and
generate_feedback once over all. Prints seconds, failures and the marks.

`--seats 01_forward_process ...` measures a seat on a hub instead: the memory and processor time of a kernel that runs
these lessons from top to bottom, and the memory of an idle JupyterLab.
"""

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "classroom"), str(ROOT / "lessons" / "assignments")]

from course import Course  # noqa: E402

WRONG = [  # what is changed in the teacher's answers to the first set
    {"q_sample": ("(1 - a).sqrt()", "(1 - a)"), "posterior": ("return mean, like(beta * ", "return mean, like(1 * ")},
    {"jump": ("alpha_bar[t] / alpha_bar[s]", "alpha_bar[t]"), "bound_weight": (" / 2", "")},
    {"v_loss": ("- sigma * x0", "+ sigma * x0"), "q_sample": (".to(x0.dtype)", "")},
]


def hand_in(course: Course, name: str, students: int) -> None:
    """Everybody's submission; other sets than the first have only right, empty and endless ones."""
    right = course.solutions(name)
    functions = [key for key, code in right.items() if code.startswith("def ")]
    endless = {functions[1]: f"def {functions[1]}(*given):\n    while True:\n        pass"}
    for i in range(students):
        answers = dict(right)
        if i % 10 == 0:
            answers |= endless
        elif i % 10 == 1:
            answers = {key: right[key] for key in functions[:2]}
        elif i % 10 < 8 and name == "ps1":
            for key, (old, new) in WRONG[i % 3].items():
                answers[key] = right[key].replace(old, new)
        course.submit(f"student{i:03d}", name, course.answers(name, answers))


def grade(students: int, name: str) -> None:
    with tempfile.TemporaryDirectory(prefix="classroom-") as folder:
        course = Course(Path(folder) / "course")
        hand_in(course, name, students)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        said = course.nbgrader("autograde", name)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = course.seconds
        processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        failed = len(re.findall(r"There was an error processing assignment '", said))
        pages = course.nbgrader("generate_feedback", name)
        scores = [course.scores(name, f"student{i:03d}") for i in range(students)]
        none = sum(v is None for s in scores for key, v in s.items() if key != "why")
        totals = [sum(v or 0 for v in s.values()) for s in scores]
        print(f"{students} submissions of {name}, {os.cpu_count()} cores, load before {os.getloadavg()[0]:.1f}")
        print(f"autograde: {seconds:.0f} s, {seconds / students:.2f} s each; processor time {processor:.0f} s")
        print(f"failed: {failed}; test cells without a mark: {none}")
        print(f"feedback: {course.seconds:.0f} s, {course.seconds / students:.2f} s each; {pages.splitlines()[-1]}")
        print(f"marks: lowest {min(totals):g}, mean {sum(totals) / students:.1f}, highest {max(totals):g}")


SEAT = """
import resource, sys, time, nbformat
from IPython.core.interactiveshell import InteractiveShell
import matplotlib; matplotlib.use("agg")
shell = InteractiveShell.instance()
start = time.perf_counter()
for cell in nbformat.read(sys.argv[1], as_version=4).cells:
    if cell.cell_type == "code":
        result = shell.run_cell(cell.source, store_history=False)
        result.raise_error()
used = resource.getrusage(resource.RUSAGE_SELF)
print(f"SEAT {used.ru_maxrss / 1024:.0f} {used.ru_utime + used.ru_stime:.0f} {time.perf_counter() - start:.0f}")
"""


def seat(stem: str) -> None:
    """Memory and time of one kernel that runs one lesson."""
    done = subprocess.run(
        [sys.executable, "-c", SEAT, str(ROOT / "lessons" / f"{stem}.ipynb")],
        cwd=ROOT / "lessons",
        text=True,
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    found = re.search(r"SEAT (\d+) (\d+) (\d+)", done.stdout)
    if not found:
        sys.exit(done.stderr[-2000:])
    megabytes, processor, seconds = found.groups()
    print(f"{stem}: {megabytes} MB at most, {processor} s of processor time, {seconds} s", flush=True)


def idle() -> None:
    """Memory of a JupyterLab server without kernels."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {f"JUPYTER_{name}_DIR": folder for name in ("CONFIG", "DATA", "RUNTIME")}
        server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jupyterlab",
                "--no-browser",
                "--allow-root",
                "--port=0",
                f"--notebook-dir={folder}",
            ],
            env=os.environ | settings,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(30)
        status = Path(f"/proc/{server.pid}/status").read_text()
        server.terminate()
        server.wait()
    memory = re.search(r"VmHWM:\s+(\d+)", status)
    print(f"JupyterLab, idle: {int(memory[1]) / 1024:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", type=int, default=100)
    parser.add_argument("--set", default="ps1")
    parser.add_argument("--seats", nargs="*", metavar="lesson", help="measure these lessons, and grade nobody")
    chosen = parser.parse_args()
    start = time.perf_counter()
    if chosen.seats is None:
        grade(chosen.students, chosen.set)
    else:
        idle()
    for stem in chosen.seats or []:
        seat(stem)
    print(f"({time.perf_counter() - start:.0f} s in all)")


if __name__ == "__main__":
    main()
