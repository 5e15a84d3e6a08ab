"""Guards for the notebooks. What their cells compute is checked by `pytest --nbval lessons/*.ipynb`."""

import re
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext")
nbformat = pytest.importorskip("nbformat")

LESSONS = Path(__file__).resolve().parents[1] / "lessons"
STEMS = sorted(path.stem for path in (LESSONS / "src").glob("[0-9]*.py"))
IGNORE = "nbval-ignore-output"
IGNORING = {  # all other cells are compared
    "00_start_here": 1,  # the cell about the reader's machine
    "02_ddpm_loss": 1,  # errors of a trained network over seven powers of ten; asserted in the next cell
    "13_limits": 1,  # the table of a search; what it shows is asserted in the next cell
}
LIMIT = 1_000_000  # bytes
FORBIDDEN = {
    "interact": r"\binteract(ive)?\b",
    "Output": r"\bOutput\(",
    "clear_output": r"\bclear_output\b",
    "display(...).update": r"\bupdate_display\b|\bdisplay_id\b",
    "SVG": r"(?i)\bsvg\b",
    "a trailing semicolon": r";\s*(#.*)?$",
    "an nbval comment": r"#\s*(NBVAL|PYTEST_VALIDATE)_",
    "numpy's global random state": r"\bnp\.random\.",  # torch.manual_seed is allowed: first weights take no generator
}
ABSOLUTE = re.compile(r"(?<![\w.:/~-])/(home|Users|root|work|tmp|usr|var|opt|mnt)/|\b[A-Z]:\\\\?\w")


def faults(notebook, source, stem="99_test"):
    """Everything that is wrong with an executed notebook, as sentences."""
    found = []
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")

    if [outline(cell) for cell in notebook.cells] != [outline(cell) for cell in source.cells]:
        found.append("notebook and source differ: run `make notebooks`")
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("execution counts are not 1..n")
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("the kernel is not named python3")
    if len(nbformat.writes(notebook)) > LIMIT:
        found.append("more than 1 MB")

    tags = [tag for cell in notebook.cells for tag in cell.metadata.get("tags", [])]
    found += [f"tag {tag} hides a cell from the tests" for tag in tags if tag != IGNORE]
    if tags.count(IGNORE) > IGNORING.get(stem, 0):
        found.append("too many cells ignore their output")

    for cell in code:
        for what, pattern in FORBIDDEN.items():
            if any(re.search(pattern, line) for line in cell.source.splitlines()):
                found.append(f"{what} in a cell: {cell.source[:40]!r}")
        for output in cell.outputs:
            found += output_faults(output)
    for cell in notebook.cells:
        if ABSOLUTE.search(cell.source):
            found.append(f"absolute path in a cell: {cell.source[:40]!r}")
    if re.search(r"!\[\s*\]\(", prose) or re.search(r"<img(?![^>]*\balt=.\S)", prose):
        found.append("a picture in the text has no alt text")

    for i, cell in enumerate(code):
        if "explore(" in cell.source and not any("plot.strip(" in later.source for later in code[i : i + 3]):
            found.append("a slider has no static twin")
    for word in ("predict", "summary", "exercise", "papers"):
        if word not in prose.lower():
            found.append(f"the lesson has no {word}")
    lines = sum(bool(line.strip()) for cell in code for line in cell.source.splitlines())
    if not 3 <= words(prose) / max(lines, 1) <= 12:
        found.append(f"{words(prose)} words to {lines} lines of code is not about six to one")
    return found


def output_faults(output):
    if output.output_type == "error":
        return [f"an error in an output: {output.ename}"]
    if output.output_type == "stream":
        found = ["something on stderr"] if output.name == "stderr" else []
        return found + (["absolute path in an output"] if ABSOLUTE.search(output.text) else [])
    found = []
    if "image/svg+xml" in output.data:
        found.append("SVG in an output")
    if "image/png" in output.data and not output.metadata.get("image/png", {}).get("alt", "").strip():
        found.append("a picture in an output has no alt text")
    if any("widget" in kind for kind in output.data):
        found.append("a widget without its kernel in an output")
    if ABSOLUTE.search(str(output.data.get("text/plain", ""))):
        found.append("absolute path in an output")
    return found


def outline(cell):
    return cell.cell_type, cell.source, tuple(cell.metadata.get("tags", []))


def words(prose):
    """Words outside formulas and tables' rules."""
    return len(re.findall(r"[A-Za-z]{2,}", re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$|`[^`]*`", " x ", prose, flags=re.DOTALL)))


def test_every_lesson_has_source_and_notebook():
    assert sorted(path.stem for path in LESSONS.glob("[0-9]*.ipynb")) == STEMS
    numbers = [stem[:2] for stem in STEMS]
    assert numbers == [f"{i:02d}" for i in range(len(numbers))]


@pytest.mark.parametrize("stem", STEMS)
def test_lesson(stem):
    notebook = nbformat.read(LESSONS / f"{stem}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert faults(notebook, jupytext.read(LESSONS / "src" / f"{stem}.py"), stem) == []


@pytest.mark.parametrize("stem", STEMS)
def test_links_lead_to_lessons_that_exist(stem):
    for target in re.findall(r"\]\((?!https?:)([^)#,\s]+)\)", (LESSONS / "src" / f"{stem}.py").read_text()):
        assert (LESSONS / target).is_file(), f"{stem} links to {target}"


# --- the guards themselves must be able to fail -----------------------------------------------------------------------

TWIN = """\
# %% [markdown]
# # 99 · A lesson
#
# **Predict** what one plus one is. It is a very old question, but let us run it anyway and see.

# %%
print(1 + 1)

# %% [markdown]
# Summary: two. Exercise: three. Papers: none.

# %%
widgets.explore(draw, t=range(3), alt="Numbers.")

# %%
plot.strip(frames, alt="Numbers.")
"""


def miniature():
    """A flawless notebook of five cells and its source."""
    notebook, source = jupytext.reads(TWIN, fmt="py:percent"), jupytext.reads(TWIN, fmt="py:percent")
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    first, slider, twin = (cell for cell in notebook.cells if cell.cell_type == "code")
    first.outputs = [nbformat.v4.new_output("stream", name="stdout", text="2\n")]
    slider.outputs = [nbformat.v4.new_output("execute_result", data={"text/plain": "[slider: t] Numbers."})]
    twin.outputs = [
        nbformat.v4.new_output(
            "execute_result",
            data={"image/png": "iVBORw0KGgo=", "text/plain": "Picture(alt='Numbers.')"},
            metadata={"image/png": {"alt": "Numbers."}},
        )
    ]
    for i, cell in enumerate((first, slider, twin)):
        cell.execution_count = i + 1
    return notebook, source


def code(notebook, i):
    return [cell for cell in notebook.cells if cell.cell_type == "code"][i]


def both(i, text):
    """Replace the source of code cell i in notebook and twin."""

    def change(notebook, source):
        code(notebook, i).source = code(source, i).source = text

    return change


def tagged(tag):
    def change(notebook, source):
        for document in (notebook, source):
            code(document, 0).metadata["tags"] = [tag]

    return change


def emits(*arguments, **keywords):
    return lambda notebook, source: code(notebook, 0).outputs.append(nbformat.v4.new_output(*arguments, **keywords))


def prose(text):
    def change(notebook, source):
        notebook.cells[2].source = source.cells[2].source = text

    return change


def test_a_flawless_miniature_has_no_faults():
    assert faults(*miniature()) == []


BREAKS = {
    "source and notebook differ": ("differ", lambda n, s: s.cells.pop()),
    "a cell was edited": ("differ", lambda n, s: n.cells[0].update(source="# changed")),
    "a tag in one of the two": ("differ", lambda n, s: s.cells[1].metadata.update(tags=["x"])),
    "a cell was not run": ("execution counts", lambda n, s: code(n, 1).update(execution_count=None)),
    "cells were run out of order": ("execution counts", lambda n, s: code(n, 0).update(execution_count=3)),
    "another kernel": ("python3", lambda n, s: n.metadata.kernelspec.update(name="my-venv")),
    "too large": ("1 MB", emits("display_data", data={"text/plain": "x" * LIMIT})),
    "skipped": ("hides a cell", tagged("nbval-skip")),
    "may raise": ("hides a cell", tagged("raises-exception")),
    "output ignored": ("ignore their output", tagged(IGNORE)),
    "skipped by a comment": ("nbval comment", both(0, "# NBVAL_SKIP\nprint(1)")),
    "interact": ("interact", both(0, "interact(f, x=3)")),
    "an Output widget": ("Output", both(0, "out = widgets.Output()")),
    "clear_output": ("clear_output", both(0, "clear_output(wait=True)")),
    "a live display": ("update", both(0, "display(x, display_id=True)")),
    "SVG asked for": ("SVG", both(0, "set_matplotlib_formats('svg')")),
    "a semicolon": ("semicolon", both(0, "plot(x);")),
    "the global generator": ("global random state", both(0, "np.random.seed(0)")),
    "an error": ("error in an output", emits("error", ename="ValueError", evalue="", traceback=[])),
    "stderr": ("stderr", emits("stream", name="stderr", text="warning")),
    "SVG drawn": ("SVG", emits("display_data", data={"image/svg+xml": "<svg/>"})),
    "a figure without alt": ("no alt text", emits("display_data", data={"image/png": "iVBORw0KGgo="})),
    "a grey box": ("without its kernel", emits("display_data", data={"application/vnd.jupyter.widget-view+json": {}})),
    "a path in code": ("absolute path", both(0, "open('/home/me/data.csv')")),
    "a path in an output": ("absolute path", emits("stream", name="stdout", text="saved to /tmp/x.png")),
    "a Windows path": ("absolute path", both(0, r"open('C:\data.csv')")),
    "an image without alt": ("text has no alt", prose("Summary exercise papers ![](x.png)")),
    "an img tag without alt": ("text has no alt", prose("Summary exercise papers <img src='x.png'>")),
    "a slider without twin": ("static twin", both(2, "print(3)")),
    "no summary": ("no summary", prose("Exercise papers and some more words here to read.")),
    "a wall of text": ("six to one", prose("Summary exercise papers " + "word " * 100)),
    "a wall of code": ("six to one", both(0, "x = 1\n" * 100)),
}


@pytest.mark.parametrize("name", BREAKS)
def test_each_guard_fails_when_it_should(name):
    message, change = BREAKS[name]
    notebook, source = miniature()
    change(notebook, source)
    assert [fault for fault in faults(notebook, source) if message in fault]
