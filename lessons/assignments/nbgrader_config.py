"""The course for nbgrader; `build.py` copies this file into the course folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from grading import CollectFiles, Judge, OfflineFeedback, Restore, Unlink
from nbconvert.preprocessors.sanitize import SanitizeHTML
from nbgrader.preprocessors import (
    AssignLatePenalties,
    CheckCellMetadata,
    ClearOutput,
    LimitOutput,
    OverwriteKernelspec,
    SaveAutoGrades,
)

c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "tinydiff"

# The submitted notebook is rebuilt around the handed-out one and judged from outside. nbgrader's own Execute, which
# would run the students' cells with the rights of whoever grades, is not among these.
c.Autograde.sanitize_preprocessors = [Restore, ClearOutput, OverwriteKernelspec, CheckCellMetadata]
c.Autograde.autograde_preprocessors = [
    Judge,
    LimitOutput,
    SaveAutoGrades,
    AssignLatePenalties,
    SanitizeHTML,  # what students wrote is shown to their teachers: without scripts,
    Unlink,  # and without links
    CheckCellMetadata,
]
c.SanitizeHTML.enabled = True
c.Judge.seconds = 5.0  # one call
c.Judge.total = 10.0  # all calls of one question: what an endless loop costs

c.ClearSolutions.code_stub = {"python": "..."}
c.ClearSolutions.text_stub = "Your answer here."

c.ExchangeFactory.collect = CollectFiles  # of what students left in the exchange, links are not followed

# Feedback pages ask no other server for MathJax: formulas stay as they were typed.
c.GenerateFeedback.exporter_class = OfflineFeedback
