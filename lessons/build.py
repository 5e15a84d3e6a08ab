"""Execute lessons/src/*.py into lessons/*.ipynb: `python lessons/build.py [01_forward_process ...]`, all by default.

Prints the seconds each takes. Lessons are built one by one, each in a kernel of its own; several builds may run at once.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

LESSONS = Path(__file__).resolve().parent
WIDGET = "application/vnd.jupyter.widget-view+json"


def build(stem: str) -> float:
    """Execute one lesson and replace its notebook; an error leaves the old notebook. Returns the seconds it took."""
    notebook = jupytext.read(LESSONS / "src" / f"{stem}.py")
    for i, cell in enumerate(notebook.cells):
        cell.id = f"{stem[:2]}-{i:03d}"  # the same in every build, for small diffs
    start = time.perf_counter()
    NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=300,
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(LESSONS)}},
    ).execute()
    seconds = time.perf_counter() - start
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET, None)  # without its kernel a widget is a grey box: keep its text
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    target = LESSONS / f"{stem}.ipynb"
    temporary = target.with_name(f".{stem}.{os.getpid()}")
    nbformat.write(notebook, temporary)
    temporary.replace(target)
    return seconds


def main() -> None:
    stems = sorted(path.stem for path in (LESSONS / "src").glob("[0-9]*.py"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stems", nargs="*", metavar="lesson", help="file names without .py, such as 01_forward_process")
    chosen = parser.parse_args().stems or stems
    if unknown := [stem for stem in chosen if stem not in stems]:
        sys.exit(f"No lesson named {', '.join(unknown)}: choose among {', '.join(stems)}.")
    for stem in chosen:
        print(f"{stem}: {build(stem):.1f} s", flush=True)


if __name__ == "__main__":
    main()
