"""The questions that only teachers have: references pass, mistakes earn their own hint, and no other."""

import ast
import math
import re
import sys

import grading
import pytest
import questions
import torch
from course import CLASSROOM  # makes the next line possible

from tinydiff import check
from tinydiff.check import isolated

TEACHERS = pytest.mark.parametrize("question", questions.QUESTIONS.values(), ids=questions.QUESTIONS)


@TEACHERS
@pytest.mark.parametrize("seed", [0, 1])
def test_the_reference_passes(question, seed):
    verdict = question.verdict(question.reference, seed)
    assert verdict, verdict.text()


@TEACHERS
def test_each_mistake_is_rejected_with_its_own_hint(question):
    assert len(question.mistakes) >= 2
    for mistake in question.mistakes:
        verdict = question.verdict(mistake.function, seed=3)
        assert verdict.mistake is mistake, f"{mistake.name}: {verdict.text()}"
        assert verdict.score < 1


SPELLINGS = {
    "lesson 04": lambda half: torch.exp(torch.arange(half) * (-math.log(10000) / half)),
    "a power": lambda half: 10000 ** (-torch.arange(half) / half),
    "one over": lambda half: 1 / 10000 ** (torch.arange(half) / half),
    "a list": lambda half: torch.tensor([10000 ** (-i / half) for i in range(half)]),
    "logspace": lambda half: torch.logspace(0, -4 * (half - 1) / half, half),
}


@pytest.mark.parametrize("frequencies", SPELLINGS.values(), ids=SPELLINGS)
def test_the_lesson_s_own_formula_of_the_clocks_is_right(frequencies):
    """In float32, as there: the task asks for no more digits than t has."""

    def mine(t, dim):
        angle = t[:, None] * frequencies(dim // 2)
        return torch.cat([angle.cos(), angle.sin()], 1)

    for seed in range(20):
        verdict = questions.QUESTIONS["time_features"].verdict(mine, seed)
        assert verdict, verdict.text()


def test_clocks_in_float64_cost_one_property():
    asked = questions.QUESTIONS["time_features"]
    verdict = asked.verdict(lambda t, dim: asked.reference(t.double(), dim))
    assert [what for what, held in verdict.properties.items() if not held] == ["float32 stays float32"]
    assert verdict.mistake is None


def test_the_weights_of_the_bound_may_become_tensors():
    def mine(a_s, a_t):
        a_s, a_t = torch.as_tensor(a_s), torch.as_tensor(a_t)
        return (a_s / (1 - a_s) - a_t / (1 - a_t)) / 2

    for seed in range(20):
        verdict = questions.QUESTIONS["bound_weight"].verdict(mine, seed)
        assert verdict, verdict.text()


def test_a_number_may_be_rounded_to_four_digits():
    asked = questions.QUESTIONS["huber_c"]
    assert asked.verdict(lambda: 0.015120001)
    assert not asked.verdict(lambda: 0.0152)
    assert asked.verdict(lambda: None).score == 0


@pytest.mark.parametrize(
    ("name", "answer", "score"),
    [
        ("huber_c", "0.00054 * np.sqrt(28 * 28)", 1),
        ("huber_c", "0.00054 * torch.tensor(784.0, dtype=torch.float64).sqrt()", 1),
        ("huber_c", "0.00054 * torch.tensor([784]).sqrt()", 1),
        ("parameters", "np.prod([4, 3, 3, 3]) + 4", 1),
        ("parameters", "torch.tensor(112)", 1),
        ("parameters", "np.int64(108)", 0),
        ("parameters", "...", 0),
        ("parameters", "None", 0),
        ("parameters", "'112'", 0),
        ("parameters", "torch.tensor([112, 112])", 0),
    ],
)
def test_right_numbers_of_any_kind_are_right(name, answer, score):
    space = {}
    exec(f"import numpy as np, torch\n{name} = {answer}\n" + grading.NUMBER.format(name=name), space)
    verdict = questions.QUESTIONS[name].verdict(space[name])
    assert verdict.score == score, verdict.text()
    assert bool(verdict.properties) == (answer not in ("...", "None"))  # else it is "not attempted yet"


def test_the_problem_sets_ask_for_what_can_be_graded():
    named = []
    for path in sorted((CLASSROOM / "src").glob("ps*.py")):
        text = path.read_text()
        ast.parse(text)
        tests = re.findall(r'^# %% test="(\w+)" points=(\d+)$', text, re.MULTILINE)
        written = re.findall(r'^# %% \[markdown\] written="(\w+)" points=(\d+)$', text, re.MULTILINE)
        assert 4 <= len(tests) + len(written) <= 6
        total = sum(int(points) for _, points in tests + written)
        assert f"{total} points" in text
        headings = re.findall(r"^# ## \d · .*\((\d+) points.*\)$", text, re.MULTILINE)
        assert sorted(headings) == sorted(points for _, points in tests + written)
        for name, _ in tests:
            assert questions.find(name).name == name
            named.append(name)
        assert re.search(r"About \d+ minutes", text)
    assert len(set(named)) == len(named)
    assert set(questions.QUESTIONS) <= set(named)
    with pytest.raises(KeyError, match="No question is called 'nothing'"):
        questions.find("nothing")


def test_what_is_taken_away_exists():
    modules = [m for name, m in sys.modules.items() if name.startswith("tinydiff")]
    for asked in questions.QUESTIONS.values():
        for name in asked.library:
            assert any(hasattr(m, name) for m in modules), name


@pytest.mark.parametrize(
    ("name", "borrowed"),
    [
        (
            "pseudo_huber",
            "from tinydiff.distill import pseudo_huber as theirs\nANSWER\n    return theirs(a, b, c).mean()",
        ),
        (
            "consistency_function",
            "import tinydiff as td\nV = next(c for c in td.Denoiser.__subclasses__() if c.__name__ == 'VDenoiser')\n"
            "ANSWER\n    return V(net, schedule)(x, t)",
        ),
        (
            "first_order",
            "import importlib, sys\ntheirs = importlib.reload(sys.modules['tinydiff.sample'])\n"
            "ANSWER\n    return theirs.step(schedule, x, x0, t, s)",
        ),
        ("first_order", "from tinydiff.distill import ddim_step\nANSWER\n    return ddim_step(Exact(x0), x, t, s)"),
    ],
)
def test_the_library_s_own_answers_are_switched_off(name, borrowed):
    asked = questions.QUESTIONS[name]
    exact = "class Exact:\n    def __init__(self, x0): self.x0 = x0\n    def __call__(self, x, t): return self.x0\n"
    code = exact + borrowed.replace("ANSWER", f"def {asked.signature}:\n    Exact.schedule = locals().get('schedule')")
    verdict = isolated.run(asked, code, seconds=5, total=30)
    assert verdict.score == 0
    assert re.search("is what this exercise asks for|may not be opened", verdict.text()), verdict.text()


def test_names_do_not_hide_exercises_of_the_lessons():
    assert not set(questions.QUESTIONS) & set(check.EXERCISES)
