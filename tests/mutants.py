"""Flip one sign or factor in each formula; the unit tests must go red every time: python tests/mutants.py [module ...]

Every +, -, *, / and minus sign and every number of an arithmetic expression in the formulas' modules is changed,
one at a time, in a copy of the package, and the core's tests run against it. Prints one line a mutant; exits 1 if one
survives.
"""

import ast
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULES = (
    "schedule",
    "denoise",
    "diffuse",
    "sample",
    "solvers",
    "guide",
    "likelihood",
    "muon",
    "distill",
    "autoencoder",
    "observe",
    "restore",
)
TESTS = (
    "test_denoise.py",
    "test_schedule.py",
    "test_sample.py",
    "test_diffuse.py",
    "test_guide.py",
    "test_likelihood.py",
    "test_muon.py",
    "test_distill.py",
    "test_autoencoder.py",
    "test_restore.py",
    "peers",
)
TESTED_BY = {"solvers": "sample", "observe": "restore"}
SWAP = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult}
SIGN = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**"}

# What no test can see, because nothing changes: (module, text of the expression, mutation).
EQUIVALENT = {
    ("diffuse", "u + torch.arange(n, device=device) / n", "+ -> -"): "the same even spread, in the other direction",
    ("observe", "r - length * Mp", "- -> +"): "the same span, and what is added lies at right angles to what follows",
}


def mutants(source: str) -> Iterator[tuple[int, str, str, str]]:
    """(line, expression, mutation, mutated source) for every arithmetic node outside raise statements and slices."""
    for i, node in enumerate(_sites(ast.parse(source))):
        for kind in _kinds(node):
            tree = ast.parse(source)
            target = _sites(tree)[i]
            before = ast.unparse(target)
            mutation = _apply(target, kind)
            yield node.lineno, before, mutation, ast.unparse(tree)


def _sites(tree: ast.AST) -> list[ast.expr]:
    sites: list[ast.expr] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Slice | ast.arguments):
            return
        arithmetic = isinstance(node, ast.BinOp) and type(node.op) in SWAP
        negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
        if (arithmetic and not _about_types(node)) or negative:
            sites.append(node)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return sites


def _about_types(node: ast.BinOp) -> bool:
    """Lists and shapes also use + and *."""
    return any(isinstance(side, ast.List | ast.Tuple) for side in (node.left, node.right))


def _kinds(node: ast.expr) -> list[str]:
    if isinstance(node, ast.UnaryOp):
        return ["sign"]
    sides = [side for side in ("left", "right") if _number(getattr(node, side)) is not None]
    return ["operator", *sides]


def _number(node: ast.expr) -> float | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, int | float) else None


def _apply(node: ast.expr, kind: str) -> str:
    if kind == "sign":
        node.op = ast.UAdd()
        return "- dropped"
    if kind == "operator":
        old = type(node.op)
        node.op = SWAP[old]()
        return f"{SIGN[old]} -> {SIGN[SWAP[old]]}"
    side = getattr(node, kind)
    side.value = side.value + 1 if isinstance(side.value, int) else side.value * 1.5
    return f"{kind} number -> {side.value}"


def killed(job: tuple[str, str]) -> tuple[bool, float]:
    """Whether the tests fail with this source of the module, in a process of their own."""
    module, source = job
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "tinydiff", Path(folder) / "tinydiff", ignore=shutil.ignore_patterns("__pycache__"))
        (Path(folder) / "tinydiff" / f"{module}.py").write_text(source)
        child = os.fork()  # the parent has imported torch already, which takes longer than most tests
        if child == 0:
            try:
                os._exit(_run_tests(folder, module))
            finally:
                os._exit(99)
        _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code in (98, 99):
        raise RuntimeError(f"The tests of a mutant of {module} did not run: exit code {code}.")
    return code != 0, time.perf_counter() - start


def _run_tests(folder: str, module: str) -> int:
    import signal

    import pytest

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    signal.alarm(600)  # a mutant that never ends is noticed, too
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = True
    os.chdir(ROOT)
    tests = sorted(TESTS, key=lambda name: name != f"test_{TESTED_BY.get(module, module)}.py")
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:nbval", "-p", "no:xdist"]
    code = pytest.main([*options, *(f"tests/{t}" for t in tests)])
    import tinydiff

    if not tinydiff.__file__.startswith(folder):
        return 98  # the tests ran against something else
    return int(code)


def _import_first() -> None:
    import diffusers  # noqa: F401
    import hypothesis  # noqa: F401
    import torch

    torch.set_num_threads(1)


def main() -> int:
    chosen = sys.argv[1:] or MODULES
    jobs = [
        (module, *mutant) for module in chosen for mutant in mutants((ROOT / "tinydiff" / f"{module}.py").read_text())
    ]
    survivors = 0
    with ProcessPoolExecutor(2, initializer=_import_first) as pool:
        first = [(module, (ROOT / "tinydiff" / f"{module}.py").read_text()) for module in chosen[:1]]
        if next(pool.map(killed, first))[0]:
            print("The tests fail without any mutation: mend them first.")
            return 1
        results = pool.map(killed, [(module, source) for module, *_, source in jobs])
        for (module, line, before, mutation, _), (dead, seconds) in zip(jobs, results, strict=True):
            reason = EQUIVALENT.get((module, before, mutation))
            verdict = "red" if dead else f"equivalent ({reason})" if reason else "SURVIVED"
            survivors += not dead and not reason
            print(f"{verdict:10} {module}.py:{line:<4} {mutation:22} in {before}  ({seconds:.0f} s)", flush=True)
    print(f"{len(jobs)} mutants, {survivors} survived")
    return int(survivors > 0)


if __name__ == "__main__":
    raise SystemExit(main())
