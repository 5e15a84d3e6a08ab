"""The table of exercises and known mistakes, as text for a terminal and as the page lessons/EXERCISES.md."""

from collections.abc import Iterable

from tinydiff.check.core import QUIET, UNTOUCHED, Exercise

HEAD = """\
# Exercises and known mistakes

Each lesson ends with an exercise or two that check themselves: write the function, run the cell below it. The other
exercises here are for the classroom, or for an empty notebook of your own.

    from tinydiff import check
    check.q_sample(q_sample)            # what was checked, or a hint
    check.q_sample(q_sample, hint=2)    # tells more

A wrong answer is recognised by its values: if yours are those of a mistake listed here, you get the hint beside it.
This page is made by `tinydiff check --list --markdown`.
"""


def text(exercises: Iterable[Exercise]) -> str:
    """For a terminal."""
    blocks = []
    for e in exercises:
        count = f"{len(properties(e))} properties, {len(e.mistakes)} known mistakes"
        blocks.append(f"{e.lesson:02d}  {e.signature}: {count}\n" + "\n".join(f"      {m.name}" for m in e.mistakes))
    return "\n".join(blocks)


def markdown(exercises: Iterable[Exercise]) -> str:
    """The page."""
    blocks = [HEAD]
    for e in exercises:
        checked = "; ".join(properties(e))
        blocks.append(f"## {e.lesson:02d} · `{e.signature}`\n\n{' '.join(e.task.split())}\n\n*Checked:* {checked}.\n")
        rows = [f"| {_cell(m.name)} | {_cell(m.hint)} |" for m in e.mistakes]
        blocks.append("\n".join(["| mistake | hint |", "| --- | --- |", *rows]) + "\n")
    return "\n".join(blocks)


def properties(exercise: Exercise) -> list[str]:
    """What is checked, the values first."""
    return [*dict.fromkeys(case.what for case in exercise.cases()), UNTOUCHED, QUIET]


def _cell(words: str) -> str:
    return words.replace("|", "\\|")
