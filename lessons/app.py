"""The sliders of all lessons on one page without code, for a lecture: `make app`, or `python lessons/app.py`.

Choose a lesson; its cells run, unseen, up to its last slider. Options after it go to voila, such as --no-browser,
--port=8866, --theme=dark.
"""

import ast
import contextlib
import html
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LESSONS = Path(__file__).resolve().parent
STYLE = """<style>
.tinydiff-page *:not(i) { font-size: 18px !important; }
.tinydiff-page .widget-slider { width: 40em !important; }
.tinydiff-page .widget-dropdown { width: 30em; }
.tinydiff-page label.widget-label { width: 5em; }
.tinydiff-page .widget-readout { min-width: 5em; }
.tinydiff-page .tinydiff-explorer img { height: 62vh; object-fit: contain; object-position: left top; }
</style>"""


def cells(stem: str) -> list[dict[str, Any]]:
    return json.loads((LESSONS / f"{stem}.ipynb").read_text(encoding="utf-8"))["cells"]


def text(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def titles() -> dict[str, str]:
    """Stem -> heading, of every lesson with a slider."""
    found = {}
    for path in sorted(LESSONS.glob("[0-9]*.ipynb")):
        if any(has_slider(cell) for cell in cells(path.stem)):
            found[path.stem] = text(cells(path.stem)[0]).splitlines()[0].strip("# ")
    return found


def has_slider(cell: dict[str, Any]) -> bool:
    return cell["cell_type"] == "code" and "explore(" in text(cell)


def stage(stem: str) -> Iterator[tuple[str, Any]]:
    """Run a lesson's cells; (the question before it, the widget) for each of its sliders."""
    lesson, scope, question = cells(stem), {"__name__": "__main__"}, ""
    last = max(i for i, cell in enumerate(lesson) if has_slider(cell))
    for cell in lesson[: last + 1]:
        if cell["cell_type"] == "markdown":
            asked = re.findall(r"\*\*Predict\.\*\*(.*?)(?:\n\n|$)", text(cell), re.DOTALL)
            question = asked[-1].strip() if asked else ""
            continue
        body = ast.parse(text(cell))
        with contextlib.redirect_stdout(io.StringIO()):
            if has_slider(cell) and isinstance(body.body[-1], ast.Expr):
                shown = ast.Expression(body.body.pop().value)
                exec(compile(body, stem, "exec"), scope)
                yield question, eval(compile(shown, stem, "eval"), scope)
            else:
                exec(compile(body, stem, "exec"), scope)


def page() -> Any:
    """A menu of lessons, and the sliders of the one that is chosen; a lesson runs once."""
    import ipywidgets
    import mistune

    ready: dict[str, list[Any]] = {}
    menu = ipywidgets.Dropdown(options={name: stem for stem, name in titles().items()}, description="lesson")
    message, stand = ipywidgets.HTML(), ipywidgets.VBox()

    def choose(_: object = None) -> None:
        stem = menu.value
        if stem not in ready:
            stand.children = []
            message.value = (
                '<div role="status">The lesson runs: a moment, or, where a network is trained, a minute.</div>'
            )
            try:
                ready[stem] = [
                    part
                    for question, widget in stage(stem)
                    for part in (ipywidgets.HTMLMath(mistune.html(question)), widget)
                ]
            except Exception as error:
                message.value = f'<div role="alert"><b>{html.escape(f"{type(error).__name__}: {error}")}</b></div>'
                return
        message.value, stand.children = "", ready[stem]

    menu.observe(choose, names="value")
    choose()
    return ipywidgets.VBox([ipywidgets.HTML(STYLE), menu, message, stand]).add_class("tinydiff-page")


def main(options: list[str]) -> int:
    """Serve the page with voila."""
    code = f"import os, sys\nos.chdir({os.getcwd()!r})\nsys.path.insert(0, {str(LESSONS)!r})\nimport app\napp.page()"
    cell = {"cell_type": "code", "id": "page", "metadata": {}, "execution_count": None, "outputs": [], "source": code}
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = {"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tinydiff.ipynb")
        path.write_text(json.dumps(notebook))
        prompt = "--Voila.kernel_websocket_connection_class=tinydiff.server.Prompt"
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # else voila would be left alone
        server = subprocess.Popen([sys.executable, "-m", "voila", str(path), prompt, *options])
        try:
            return server.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
