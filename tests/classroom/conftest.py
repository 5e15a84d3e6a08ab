"""One course for all tests of this folder, released and graded with the real nbgrader."""

import os

import pytest

try:
    import jupytext  # noqa: F401
    import nbgrader  # noqa: F401
except ModuleNotFoundError as missing:
    if os.environ.get("CI"):
        raise
    pytest.skip(
        f'{missing.name} is not installed: pip install -e ".[test]". The problem sets were not graded.',
        allow_module_level=True,
    )

from course import Course


@pytest.fixture(scope="session")
def course(tmp_path_factory) -> Course:
    return Course(tmp_path_factory.mktemp("classroom") / "course")
