"""Make a course for nbgrader: `python lessons/assignments/build.py FOLDER` (build/classroom by default).

Writes nbgrader's configuration, the grading modules and source/ps*/ps*.ipynb into the folder, and the release version
through `nbgrader generate_assignment`. Submissions, marks and the secret of the hidden inputs live in that folder, not in
the repository.

A problem set is one text file, src/ps1.py, in jupytext's percent format. Four kinds of cells mean more than text:

    # %% read="setup"                       shown, not to be changed
    # %% answer="q_sample"                  the student's; ### BEGIN SOLUTION ... ### END SOLUTION become a stub
    # %% test="q_sample" points=4           what students may run; graded by the question of that name
    # %% [markdown] written="why" points=3  an answer in words, graded by a person
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat

HERE = Path(__file__).resolve().parent
KINDS = ("read", "answer", "test", "written")
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def notebook(path: Path) -> nbformat.NotebookNode:
    """The teacher's notebook of a problem set, with nbgrader's metadata."""
    made = jupytext.read(path)
    numbers: dict[str, int] = {}
    for i, cell in enumerate(made.cells):
        cell.id = f"{path.stem}-{i:03d}"
        told, cell.metadata = cell.metadata, nbformat.NotebookNode()
        kind = next((kind for kind in KINDS if kind in told), None)
        if kind is None:
            continue
        name = told[kind]
        if kind == "test" and name not in numbers:
            sys.exit(f"{path.name}: the test of {name} comes before its answer.")
        if kind != "test" and name in numbers:
            sys.exit(f"{path.name}: two cells are called {name}.")
        number = numbers.setdefault(name, len(numbers))
        marked = {"grade": kind in ("test", "written"), "solution": kind in ("answer", "written"), "task": False}
        marked |= {"locked": kind in ("read", "test"), "schema_version": 3, "cell_type": cell.cell_type}
        marked |= {"grade_id": f"{path.stem}-{number:02d}-{name}" + "-test" * (kind == "test")}
        if marked["grade"]:
            marked["points"] = told["points"]
        if kind == "test":
            cell.source += f"\n### BEGIN HIDDEN TESTS\n# graded by: {name}\n### END HIDDEN TESTS"
        cell.metadata["nbgrader"] = nbformat.from_dict(marked)
    made.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    return made


def course(folder: Path) -> list[str]:
    """Write a course into a folder; what is there of submissions, marks and settings stays. Returns the sets' names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("grading.py", "questions.py", "room.py"):
        shutil.copyfile(HERE / name, folder / name)
    settings = folder / "nbgrader_config.py"
    if settings.exists() and settings.read_bytes() != (HERE / settings.name).read_bytes():
        print(f"{settings} differs from {HERE / settings.name} and was kept: delete it to have that one instead.")
    else:
        shutil.copyfile(HERE / settings.name, settings)
    names = []
    for path in sorted((HERE / "src").glob("ps*.py")):
        target = folder / "source" / path.stem / f"{path.stem}.ipynb"
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook(path), target)
        names.append(path.stem)
    return names


def release(folder: Path, names: list[str]) -> None:
    """What students get, in folder/release."""
    for name in names:
        nbgrader(folder, "generate_assignment", name, "--force")


def nbgrader(folder: Path, *command: str) -> None:
    """Run nbgrader in a course; exits with its output if it fails."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # it calls alembic by name
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", *command],
        cwd=folder,
        env=os.environ | {"PATH": path},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        sys.exit(f"nbgrader {' '.join(command)} failed:\n{done.stdout}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=HERE.parents[1] / "build" / "classroom")
    parser.add_argument("--open", action="store_true", help="copy the release version and open it as a student would")
    chosen = parser.parse_args()
    try:
        names = course(chosen.folder)
    except OSError as error:
        print(f"No course can be made in {chosen.folder}: {error}.", file=sys.stderr)
        sys.exit(2)
    release(chosen.folder, names)
    print(
        f"{', '.join(names)}: for students in {chosen.folder / 'release'}, with solutions in {chosen.folder / 'source'}"
    )
    if chosen.open:
        student = chosen.folder / "as-a-student"
        for name in names:
            if not (student / name).exists():  # answers that were tried out stay
                shutil.copytree(chosen.folder / "release" / name, student / name)
        os.chdir(student)
        root = ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", *root])


if __name__ == "__main__":
    main()
