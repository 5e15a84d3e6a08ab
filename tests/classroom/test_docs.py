"""The teachers' page: its example works, its table of the sets is right, its links lead somewhere."""

import re
from pathlib import Path

import questions
from course import CLASSROOM

from tinydiff.check import Case, Exercise

DOCS = CLASSROOM.parents[1] / "docs"
PAGE = (DOCS / "teaching.md").read_text()


def test_an_exercise_in_twenty_lines_is_one(monkeypatch, tmp_path):
    exercise, cells = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len([line for line in exercise.splitlines() if line.strip()]) <= 20
    monkeypatch.setattr(questions, "QUESTIONS", {})
    scope = {"Case": Case, "question": questions.question}
    exec(exercise, scope)
    made = scope["snr_to_alpha_bar"]
    assert isinstance(made, Exercise)
    assert questions.find("snr_to_alpha_bar") is made
    assert made.verdict(made.reference)
    for mistake in made.mistakes:
        assert made.verdict(mistake.function).mistake is mistake

    import build

    (tmp_path / "ps9.py").write_text(cells)
    kinds = [c.metadata.get("nbgrader", {}).get("grade_id") for c in build.notebook(tmp_path / "ps9.py").cells]
    assert kinds == [None, "ps9-00-snr_to_alpha_bar", "ps9-00-snr_to_alpha_bar-test"]


def test_the_table_of_the_sets():
    for name, heading, minutes, count, points, read in re.findall(
        r"^\| (ps\d) ([^|]+) \| (\d+) minutes \| (\d) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE
    ):
        text = (CLASSROOM / "src" / f"{name}.py").read_text()
        assert f"# # Problem set {name[2]} · {heading}\n" in text
        assert f"About {minutes} minutes, {points} points." in text
        assert len(re.findall(r"^# ## ", text, re.MULTILINE)) == int(count)
        assert sum(map(int, re.findall(r'written="\w+" points=(\d+)', text))) == int(read)
    assert len(re.findall(r"^\| ps\d ", PAGE, re.MULTILINE)) == 4


def test_links_and_files_exist():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGE):
        assert (DOCS / target).exists(), target
    for named in re.findall(r"`((?:lessons|tests|tinydiff|benchmarks)/[\w/.]+)`", PAGE):
        assert Path(CLASSROOM.parents[1], named).exists(), named
