"""A course folder, and what the tests do in it with the real nbgrader."""

import copy
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat

CLASSROOM = Path(__file__).resolve().parents[2] / "lessons" / "assignments"
sys.path.insert(0, str(CLASSROOM))

import build  # noqa: E402


class Course:
    """A course folder, with what the tests do in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = build.course(folder)
        build.release(folder, self.names)
        self.seconds = 0.0

    def read(self, step: str, name: str, student: str = "."):
        return nbformat.read(self.folder / step / student / name / f"{name}.ipynb", as_version=4)

    def answers(self, name: str, answers: dict[str, str]):
        """The released notebook with these answers in it."""
        notebook = copy.deepcopy(self.read("release", name))
        for cell in notebook.cells:
            known = cell.metadata.get("nbgrader", {}).get("grade_id", "")
            if cell.metadata.get("nbgrader", {}).get("solution") and known.split("-", 2)[-1] in answers:
                cell.source = answers[known.split("-", 2)[-1]]
        return notebook

    def solutions(self, name: str) -> dict[str, str]:
        """The teacher's answers, without the marks around them."""
        return {
            cell.metadata.nbgrader.grade_id.split("-", 2)[-1]: re.sub(r" *### (BEGIN|END) SOLUTION\n?", "", cell.source)
            for cell in self.read("source", name).cells
            if cell.metadata.get("nbgrader", {}).get("solution")
        }

    def submit(self, student: str, name: str, notebook) -> Path:
        folder = self.folder / "submitted" / student / name
        folder.mkdir(parents=True)
        nbformat.write(notebook, folder / f"{name}.ipynb")
        return folder

    def nbgrader(self, *command: str) -> str:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "nbgrader", *command],
            cwd=self.folder,
            env=os.environ | {"PATH": path, "TINYDIFF_GRADING_SECRET": "for the tests"},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=500,
        )
        self.seconds = time.perf_counter() - start
        return done.stdout + f"\nexit code {done.returncode}"

    def scores(self, name: str, student: str) -> dict[str, float | None]:
        """Points by question; None where nobody has decided yet."""
        from nbgrader.api import Gradebook

        with Gradebook(f"sqlite:///{self.folder / 'gradebook.db'}") as gradebook:
            submission = gradebook.find_submission(name, student)
            return {
                grade.cell.name.split("-", 2)[-1].removesuffix("-test"): grade.auto_score
                for notebook in submission.notebooks
                for grade in notebook.grades
            }

    def feedback(self, name: str, student: str) -> str:
        return (self.folder / "feedback" / student / name / f"{name}.html").read_text()
