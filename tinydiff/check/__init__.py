"""Exercises that check themselves: `from tinydiff import check`, then `check.q_sample(my_q_sample)`.

Prints what was checked, or a hint; hint=2 tells more. `tinydiff check --list` prints all exercises and known mistakes.
"""

from tinydiff.check.core import Draw, Exercise, Mistake, Verdict, exercise, judge
from tinydiff.check.harness import Case, Spec
from tinydiff.check.lessons01to03 import ancestral_step, between, jump, posterior, q_sample, v_loss
from tinydiff.check.lessons04to06 import (
    ddim_step,
    edm_denoiser,
    modulate,
    score,
    variance_after,
    weight_of,
    x0_from_flow,
)
from tinydiff.check.lessons07to10 import (
    batched,
    dynamic_threshold,
    kl_between,
    multistep,
    training_pair_loss,
    update_2m,
)
from tinydiff.check.lessons11to13 import agree, corrected, keep_known, left_uncertain, paired

EXERCISES: dict[str, Exercise] = {
    e.name: e
    for e in (
        q_sample,
        jump,
        posterior,
        v_loss,
        between,
        ancestral_step,
        weight_of,
        modulate,
        variance_after,
        ddim_step,
        score,
        x0_from_flow,
        edm_denoiser,
        update_2m,
        batched,
        dynamic_threshold,
        kl_between,
        training_pair_loss,
        multistep,
        paired,
        keep_known,
        agree,
        left_uncertain,
        corrected,
    )
}
"""All exercises, in the order of the lessons."""

__all__ = [
    "EXERCISES",
    "Case",
    "Draw",
    "Exercise",
    "Mistake",
    "Spec",
    "Verdict",
    "agree",
    "ancestral_step",
    "batched",
    "between",
    "corrected",
    "ddim_step",
    "dynamic_threshold",
    "edm_denoiser",
    "exercise",
    "judge",
    "jump",
    "keep_known",
    "kl_between",
    "left_uncertain",
    "modulate",
    "multistep",
    "paired",
    "posterior",
    "q_sample",
    "score",
    "training_pair_loss",
    "update_2m",
    "v_loss",
    "variance_after",
    "weight_of",
    "x0_from_flow",
]
