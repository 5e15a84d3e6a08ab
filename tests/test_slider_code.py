"""A slider shows the same whether later cells ran or not: none may rebind a name that its drawing function reads."""

import ast
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext")

LESSONS = Path(__file__).resolve().parents[1] / "lessons"
STEMS = sorted(path.stem for path in (LESSONS / "src").glob("[0-9]*.py"))


def rebound(notebook) -> list[tuple[str, str]]:
    """(drawing function, name) for each name that it reads, itself or through others, and a later cell binds anew."""
    cells = [ast.parse(cell.source) for cell in notebook.cells if cell.cell_type == "code"]
    found = []
    for i, cell in enumerate(cells):
        for draw in (node.args[0].id for node in ast.walk(cell) if is_explore(node)):
            functions = {
                node.name: node
                for earlier in cells[: i + 1]
                for node in ast.walk(earlier)
                if isinstance(node, ast.FunctionDef | ast.ClassDef)
            }
            needed, todo = set(), set(reads(functions[draw]))
            while todo:
                name = todo.pop()
                needed.add(name)
                todo |= (reads(functions[name]) if name in functions else set()) - needed
            later = set().union(*map(binds, cells[i + 1 :]))
            found += [(draw, name) for name in sorted(needed & later)]
    return found


def is_explore(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).endswith("explore")


def reads(function: ast.AST) -> set[str]:
    """Names a function takes from outside."""
    names = [node for node in ast.walk(function) if isinstance(node, ast.Name)]
    own = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    own |= {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
    return {node.id for node in names} - own


def binds(node: ast.AST) -> set[str]:
    """Names that a cell binds at its top level."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        return set()
    if isinstance(node, ast.alias):
        return {(node.asname or node.name).split(".")[0]}
    if isinstance(node, ast.Name):
        return set() if isinstance(node.ctx, ast.Load) else {node.id}
    return set().union(*map(binds, ast.iter_child_nodes(node)))


@pytest.mark.parametrize("stem", STEMS)
def test_later_cells_leave_a_slider_alone(stem):
    assert rebound(jupytext.read(LESSONS / "src" / f"{stem}.py")) == []


LESSON = """\
# %%
size = 3
def outer(t):
    inner = lambda: size
    return inner() + t
def draw(t):
    return outer(t)
# %%
widgets.explore(draw, t=range(3), alt="Numbers.")
# %%
{}
"""


@pytest.mark.parametrize(
    ("later", "name"),
    [
        ("size = 4", "size"),
        ("for size in (1, 2):\n    pass", "size"),
        ("def outer(t):\n    return 0", "outer"),
        ("import numpy as outer", "outer"),
        ("with open('x') as size:\n    pass", "size"),
        ("t = inner = 5\n[size for size in 'abc']\ndef draw(t):\n    return 1", None),  # draw itself was handed over
    ],
)
def test_the_guard_fails_when_it_should(later, name):
    assert rebound(jupytext.reads(LESSON.format(later), fmt="py:percent")) == ([("draw", name)] if name else [])
