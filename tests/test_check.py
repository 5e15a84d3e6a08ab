"""Every exercise: its reference passes, each known mistake earns its own hint and no other."""

import re

import pytest
import torch

from tinydiff import check
from tinydiff.check import EXERCISES, Case, Draw, core
from tinydiff.check.harness import observe

SEEDS = range(3)
MISTAKES = [pytest.param(e, m, id=f"{e.name}: {m.name}") for e in EXERCISES.values() for m in e.mistakes]


def each_exercise():
    return pytest.mark.parametrize("exercise", EXERCISES.values(), ids=EXERCISES.keys())


@each_exercise()
@pytest.mark.parametrize("seed", SEEDS)
def test_every_reference_passes(exercise, seed):
    verdict = exercise.verdict(exercise.reference, seed)
    assert verdict, verdict.text()
    assert verdict.score == 1
    assert len(verdict.properties) >= 5


@pytest.mark.parametrize(("exercise", "mistake"), MISTAKES)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_mistake_is_rejected_with_its_own_hint_and_no_other(exercise, mistake, seed):
    verdict = exercise.verdict(mistake.function, seed)
    assert not verdict
    assert verdict.score < 1
    assert verdict.mistake is mistake, verdict.text()
    text = verdict.text(hint=2)
    assert [m.name for m in exercise.mistakes if m.hint in text or m.more in text] == [mistake.name]
    assert mistake.hint in verdict.text()
    assert mistake.more not in verdict.text()
    assert mistake.hint not in verdict.text(hint=0)


@each_exercise()
@pytest.mark.parametrize("seed", SEEDS)
def test_mistakes_can_be_told_apart(exercise, seed):
    """Not by the order in which they are tried: no two of them, and none and the reference, give the same."""
    cases = exercise.cases(seed)
    given = [
        [observe(f, case) for case in cases] for f in (exercise.reference, *(m.function for m in exercise.mistakes))
    ]
    names = ["the reference", *(m.name for m in exercise.mistakes)]
    for i, a in enumerate(given):
        for j, b in enumerate(given[:i]):
            assert not all(core._same(x, y) for x, y in zip(a, b, strict=True)), f"{names[i]} is {names[j]}"
        assert any(x.outputs for x in a), f"{names[i]} always fails: nothing to recognise it by"


def test_every_lesson_has_an_exercise_and_every_exercise_five_mistakes():
    assert {exercise.lesson for exercise in EXERCISES.values()} == set(range(1, 14))
    assert [e.lesson for e in EXERCISES.values()] == sorted(e.lesson for e in EXERCISES.values())
    for exercise in EXERCISES.values():
        assert len(exercise.mistakes) >= 5, exercise.name
        assert len({m.hint for m in exercise.mistakes} | {m.more for m in exercise.mistakes}) == 2 * len(
            exercise.mistakes
        )
        assert len({m.name for m in exercise.mistakes}) == len(exercise.mistakes)
        assert exercise.task.endswith("."), exercise.name
        assert getattr(check, exercise.name) is exercise


@pytest.mark.parametrize(("exercise", "mistake"), MISTAKES)
def test_hints_guide_and_do_not_print_the_answer(exercise, mistake):
    """No code in them: no call, no assignment of a formula, no operator between names."""
    for text in (mistake.hint, mistake.more):
        assert not re.search(r"\w+\.\w+\(|\*\*|\w \* \w|\w / \w|sqrt|reshape\(", text), text
        assert text[-1] in ".?!)", text


@each_exercise()
def test_stubs_are_not_attempted_yet(exercise, capsys):
    verdict = exercise(lambda *given: None)
    assert capsys.readouterr().out == f"{exercise.name}: not attempted yet\n"
    assert not verdict
    assert verdict.score == 0


@each_exercise()
def test_answers_that_are_none_are_wrong_and_none_passes(exercise):
    """What obtained marks elsewhere: a constant, the argument itself, an object that equals everything."""

    class Yes:
        def __eq__(self, other):
            return True

        __hash__ = None

    for lazy in (lambda *g: 0.0, lambda *g: g[-1], lambda *g: Yes(), lambda *g: torch.zeros(()), lambda *g: "right"):
        verdict = exercise.verdict(lazy)
        assert not verdict
        assert verdict.score == 0, verdict.text()


@each_exercise()
def test_the_same_seed_gives_the_same_cases_and_another_others(exercise):
    def values(seed):
        return [repr(a) for case in exercise.cases(seed) for a in case.args]

    assert values(0) == values(0)
    assert values(0) != values(1)


def test_an_exception_is_shown_with_its_input_and_its_line():
    def mine(alpha_bar, x0, t, noise):
        return alpha_bar[t] * x0 + undefined  # noqa: F821

    text = check.q_sample.verdict(mine).text()
    assert "NameError: name 'undefined' is not defined" in text
    assert "x0=float64 (4, 2), t=" in text
    assert "in mine, line" in text
    assert "alpha_bar[t] * x0 + undefined" in text


def test_a_keyboard_interrupt_is_not_swallowed():
    def mine(alpha_bar, x0, t, noise):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check.q_sample.verdict(mine)


def test_writing_into_arguments_costs_a_property():
    def mine(alpha_bar, x0, t, noise):
        answer = check.q_sample.reference(alpha_bar, x0, t, noise)
        x0.zero_()
        return answer

    verdict = check.q_sample.verdict(mine)
    assert [what for what, held in verdict.properties.items() if not held] == [core.UNTOUCHED]
    assert "writes into x0" in verdict.text()
    assert 0.8 < verdict.score < 1


def test_the_global_generator_costs_a_property_and_is_left_as_it_was():
    def mine(alpha_bar, x0, t, noise):
        torch.rand(1)
        return check.q_sample.reference(alpha_bar, x0, t, noise)

    before = torch.get_rng_state()
    verdict = check.q_sample.verdict(mine)
    assert torch.equal(before, torch.get_rng_state())
    assert [what for what, held in verdict.properties.items() if not held] == [core.QUIET]
    assert "global generator" in verdict.text()


def test_half_right_answers_earn_their_part_and_lost_digits_are_named():
    def one_time_only(alpha_bar, x0, t, noise):
        if t.ndim:
            raise ValueError("only one t, please")
        return check.q_sample.reference(alpha_bar, x0, t, noise)

    verdict = check.q_sample.verdict(one_time_only)
    assert 0.3 < verdict.score < 0.8
    assert "a time of its own for each sample" in verdict.text()

    def short(alpha_bar, x0, t, noise):
        return check.q_sample.reference(alpha_bar.float(), x0.float(), t, noise.float()).to(x0.dtype)

    assert "six digits" in check.q_sample.verdict(short).text()


def test_a_mistake_is_recognised_beside_another_fault():
    """The variance for the standard deviation, by somebody who also writes into x0 and knows only one time."""

    def mine(alpha_bar, x0, t, noise):
        if t.ndim:
            raise ValueError("only one t, please")
        return x0.mul_(alpha_bar[t].sqrt()).add_((1 - alpha_bar[t]) * noise)

    verdict = check.q_sample.verdict(mine)
    assert verdict.mistake.name == "variance for standard deviation"
    assert "x0" in verdict.text()


def test_of_two_mistakes_at_once_the_first_is_named():
    """What a beginner writes: the variance for the standard deviation, no broadcast, no cast."""

    def mine(alpha_bar, x0, t, noise):
        return alpha_bar[t].sqrt() * x0 + (1 - alpha_bar[t]) * noise

    assert check.q_sample.verdict(mine).mistake.name == "variance for standard deviation"

    def other(alpha_bar, x0, t, noise):
        a = alpha_bar[t]
        return a.sqrt() * x0 + (1 - a).sqrt() * noise if t.ndim == 0 else x0 + noise

    assert check.q_sample.verdict(other).mistake is None, "right values, then something unheard of"


@each_exercise()
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16, None], ids=str)
def test_right_values_in_another_dtype_are_no_known_mistake(exercise, kind):
    """They may cost properties, and the message names the dtype; but no hint blames what was not done."""

    def converted(value):
        if isinstance(value, tuple | list):
            return type(value)(map(converted, value))
        if not isinstance(value, torch.Tensor):
            return value
        return value.detach().numpy() if kind is None else value.to(kind)

    verdict = exercise.verdict(lambda *given: converted(exercise.reference(*given)))
    told = verdict.mistake.name if verdict.mistake else None
    assert told in (None, "no gradient", "float64 coefficients"), verdict.text()


def test_a_verdict_is_quiet_in_a_notebook_and_short_elsewhere(capsys):
    verdict = check.q_sample(check.q_sample.reference)
    assert capsys.readouterr().out.startswith("q_sample: right. Checked: values; ")
    assert verdict._ipython_display_() is None
    assert repr(verdict) == f"Verdict(q_sample: {len(verdict.properties)} of {len(verdict.properties)})"


def test_an_exercise_can_be_added_in_twenty_lines():
    """The example of core's docstring, more or less."""

    def cases(draw: Draw):
        for _ in range(3):
            yield Case("values", (draw.normal(3), draw.number(1, 2)))

    @core.exercise(lesson=1, cases=cases)
    def scaled(x, factor):
        """Multiply."""
        return x * factor

    scaled.mistake("divides", lambda x, factor: x / factor, "Larger or smaller?", "The other way.")
    assert scaled.signature == "scaled(x, factor)"
    assert scaled.verdict(lambda x, factor: factor * x)
    assert scaled.verdict(lambda x, factor: x / factor).mistake.name == "divides"
    assert scaled.verdict(lambda x, factor: x + factor).mistake is None


def test_cases_for_the_gpu_are_the_first_and_the_short_ones():
    for exercise in EXERCISES.values():
        there = [c for c in exercise.cases(0, gpu=True) if c.device == "cuda"]
        assert {c.what for c in there} <= {"on the GPU"}
        drawn = any(isinstance(a, core.Spec) and a.kind == "generator" for c in exercise.cases(0) for a in c.args)
        tensors = any(isinstance(a, torch.Tensor) for c in exercise.cases(0) for a in c.args)
        assert bool(there) == (tensors and not drawn), exercise.name
    assert check.q_sample.cases(0, gpu=True)[-1].args[1].dtype == torch.bfloat16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_the_same_on_a_gpu():
    """The references pass there and each mistake is named; `verdict` tries the GPU by itself."""
    for exercise in EXERCISES.values():
        for case in exercise.cases(0, gpu=True):
            seen = observe(exercise.reference, case)
            assert not seen.error, seen.report
            assert all(kind.endswith("on cuda") == (case.device == "cuda") for kind in seen.kinds if kind != "number")
        for mistake in exercise.mistakes:
            assert exercise.verdict(mistake.function).mistake is mistake
