"""What students get: no answers in it, and it runs as it is. And what the teacher's answers to all four sets earn."""

import nbformat
import pytest
from nbclient import NotebookClient

SETS = ("ps1", "ps2", "ps3", "ps4")


def test_there_are_four_problem_sets(course):
    assert tuple(course.names) == SETS


def test_every_cell_has_an_id_of_its_own(course):
    ids = [
        cell.metadata.nbgrader.grade_id
        for name in SETS
        for cell in course.read("source", name).cells
        if "nbgrader" in cell.metadata
    ]
    assert len(set(ids)) == len(ids) > 40


@pytest.mark.parametrize("name", SETS)
def test_the_release_holds_no_answers(course, name):
    source, release = course.read("source", name), course.read("release", name)
    text = nbformat.writes(release)
    for word in ("SOLUTION", "HIDDEN", "graded by", "seed"):
        assert word not in text
    assert "BEGIN SOLUTION" in nbformat.writes(source)
    for given, asked in zip(source.cells, release.cells, strict=True):
        if given.metadata.get("nbgrader", {}).get("solution"):
            lines = given.source.split("### BEGIN SOLUTION")[1].split("### END SOLUTION")[0].splitlines()
            assert not [line for line in lines if len(line.strip("# ")) > 10 and line.strip() in asked.source]


@pytest.mark.parametrize("name", SETS)
def test_the_release_runs_as_it_is(course, name):
    notebook = course.read("release", name)
    NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert {o.output_type for o in outputs} == {"stream"}
    assert {o.name for o in outputs} == {"stdout"}
    checks = [c for c in notebook.cells if c.source.startswith("check.")]
    assert len(checks) >= 2
    for cell in checks:
        assert [o.text for o in cell.outputs] == [cell.source[6:].split("(")[0] + ": not attempted yet\n"]


@pytest.mark.parametrize("name", SETS[1:])  # the first set has tests of its own
def test_the_teacher_s_answers_earn_all_points_and_none_earn_none(course, name):
    course.submit("teacher", name, course.answers(name, course.solutions(name)))
    course.submit("nobody", name, course.read("release", name))
    said = course.nbgrader("autograde", name)
    assert said.endswith("exit code 0"), said
    points = {
        cell.metadata.nbgrader.grade_id.split("-", 2)[-1].removesuffix("-test"): cell.metadata.nbgrader.points
        for cell in course.read("source", name).cells
        if cell.metadata.get("nbgrader", {}).get("grade")
    }
    assert course.scores(name, "teacher") == points | ({"why": None} if "why" in points else {})
    assert course.scores(name, "nobody") == dict.fromkeys(points, 0)
    told = [
        o.text for c in course.read("autograded", name, "nobody").cells for o in c.get("outputs", []) if "text" in o
    ]
    assert all(text.endswith(": not attempted yet\n") for text in told), told
