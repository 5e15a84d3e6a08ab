"""Exercises that check themselves: `from tinydiff import check`, then `check.q_sample(my_q_sample)`.

Prints what was checked, or a hint; hint=2 tells more. `tinydiff check --list` prints all exercises and known mistakes.
"""

from tinydiff.check.core import Draw, Exercise, Mistake, Verdict, exercise, judge
from tinydiff.check.harness import Case, Spec
from tinydiff.check.lessons01to03 import ancestral_step, between, jump, posterior, q_sample, v_loss

EXERCISES: dict[str, Exercise] = {e.name: e for e in (q_sample, jump, posterior, v_loss, between, ancestral_step)}
"""All exercises, in the order of the lessons."""

__all__ = [
    "EXERCISES",
    "Case",
    "Draw",
    "Exercise",
    "Mistake",
    "Spec",
    "Verdict",
    "ancestral_step",
    "between",
    "exercise",
    "judge",
    "jump",
    "posterior",
    "q_sample",
    "v_loss",
]
