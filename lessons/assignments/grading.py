"""How submissions are graded: nbgrader never runs them. Both steps below work in nbgrader's own process, on text.

`Restore` rebuilds a submission around the assignment as it was handed out: of what students sent only their answers and
their own extra cells are kept; test cells, points and ids come from the gradebook. `Judge` replaces nbgrader's `Execute`:
for each test cell it hands the answers' source code to `tinydiff.check.isolated`, which calls the function asked for in a
process of its own (another user where possible, no files, no network), and compares the arrays that come back out here.
What a test cell prints, patches or kills in a student's kernel therefore has no say in the marks.
"""

import atexit
import hashlib
import html
import json
import os
import re
import secrets
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from nbgrader.api import Gradebook
from nbgrader.exchange.default import ExchangeCollect
from nbgrader.preprocessors import NbGraderPreprocessor
from questions import NUMBERS, find
from room import House
from traitlets import Float, Integer, Unicode

from tinydiff.check import isolated

SPEC = re.compile(r"^# graded by: (\w+)$", re.MULTILINE)  # the line in a test cell that names the question
HIDDEN = re.compile(r"\n?### BEGIN HIDDEN TESTS.*?### END HIDDEN TESTS", re.DOTALL)

NUMBER = """
_number = globals().get("{name}")
_kept = _number is None or isinstance(_number, str)
{name} = lambda: _number if _kept else None if _number is ... else float(_number)
"""
"""Run after an answer that is a variable: what is judged is a function. NumPy's and torch's numbers are numbers, too."""


def code_for(answer: str, others: list[str]) -> list[str]:
    """The cells to run for one question: what is defined around the answer, then the answer."""
    return [isolated.around(others), answer]


def secret_of(folder: Path) -> str:
    """What the hidden inputs are drawn from: TINYDIFF_GRADING_SECRET, or a file that is made at the first use.

    Keep the file with the gradebook: with it the marks can be reproduced to the last digit.
    """
    if secret := os.environ.get("TINYDIFF_GRADING_SECRET"):
        return secret
    path = folder / "grading.secret"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    with open(descriptor, "w") as file:
        file.write(secrets.token_hex(16) + "\n")
    return path.read_text().strip()


def seed_for(secret: str, assignment: str, question: str) -> int:
    """The seed of a question's hidden inputs: the same for every student, and again the same tomorrow."""
    digest = hashlib.sha256(f"{secret}/{assignment}/{question}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


class Restore(NbGraderPreprocessor):
    """Keep the student's answers and extra cells, without metadata; take everything else from the gradebook."""

    def preprocess(self, nb, resources):
        told = resources["nbgrader"]
        path = Path(resources["metadata"]["path"], f"{told['notebook']}.ipynb")
        if path.is_symlink():
            raise ValueError(f"{path} is a link, not a notebook: a submission has to be a file of its own.")
        nb.nbformat, nb.nbformat_minor = 4, 5  # older formats know no ids of cells, which are about to be given
        if any("### BEGIN SOLUTION" in str(cell.get("source", "")) for cell in nb.cells):
            raise ValueError(
                f"{path} holds the teacher's answers, with the marks around them: no student was sent those."
            )
        with Gradebook(told["db_url"]) as gradebook:
            notebook = gradebook.find_notebook(told["notebook"], told["assignment"])
            originals = {c.name: c for c in notebook.source_cells}
            points = {c.name: c.max_score for c in notebook.grade_cells}
            answers = {c.name for c in notebook.solution_cells}
            nb.cells = rebuild(nb.cells, originals, points, answers, self.log)
        nb.metadata = nbformat.from_dict({"language_info": {"name": "python"}})
        return nb, resources


def rebuild(cells, originals, points, answers, log):
    """The notebook as it was handed out, with the student's answers in it and their extra cells where they were.

    Ids sort in the order of the notebook: ps1-01-q_sample, ps1-01-q_sample-test, ps1-02-...
    """
    own, extra, place = {}, {}, None  # extra: by the known cell that stands before them
    for cell in cells:
        cell, name = plain(cell), grade_id(cell)
        if name in answers and originals[name].cell_type == cell.cell_type:
            if name in own:  # a copy that Jupyter made with its metadata: the last is the answer, as in nbgrader
                extra.setdefault(place, []).append(own[name])
            own[name], place = cell, name
        elif name in originals and name not in answers:
            place = name  # its original is put back
        else:
            extra.setdefault(place, []).append(cell)
    restored = list(extra.get(None, []))
    for name in sorted(originals):
        original = originals[name]
        if name in answers and name not in own:
            log.warning("The answer cell %s is missing: it counts as empty.", name)
        cell = own.get(name) or plain({"cell_type": original.cell_type, "source": original.source})
        told = {"grade": name in points, "solution": name in answers, "task": False, "locked": original.locked}
        told |= {"grade_id": name, "cell_type": original.cell_type, "checksum": original.checksum, "schema_version": 3}
        told |= {"points": points[name]} if name in points else {}
        cell.metadata["nbgrader"] = nbformat.from_dict(told)
        restored += [cell, *extra.get(name, [])]
    for i, cell in enumerate(restored):
        cell["id"] = f"cell-{i}"
    return restored


def plain(cell):
    """A cell of which only kind and source are kept, whatever else it claims to be."""
    kinds = {"code": nbformat.v4.new_code_cell, "markdown": nbformat.v4.new_markdown_cell}
    source = cell.get("source", "")
    return kinds.get(cell.get("cell_type"), nbformat.v4.new_raw_cell)(source if isinstance(source, str) else "")


def grade_id(cell):
    told = cell.get("metadata")
    told = told.get("nbgrader") if isinstance(told, dict) else None
    name = told.get("grade_id") if isinstance(told, dict) else None
    return name if isinstance(name, str) else None


class CollectFiles(ExchangeCollect):
    """`nbgrader collect` that follows no links: it would read what they point to with the rights of whoever collects."""

    def do_copy(self, src, dest, log=None):
        links = [src] if os.path.islink(src) else []
        for folder, folders, files in os.walk(src):
            links += [path for name in folders + files if os.path.islink(path := os.path.join(folder, name))]
        if links:
            self.log.error("%s is a link: this submission was not collected; ask for a file.", links[0])
        else:
            super().do_copy(src, dest, log)


class Judge(NbGraderPreprocessor):
    """Put the score and the feedback into each test cell."""

    seconds = Float(5.0, help="what one call of a student's function may take").tag(config=True)
    total = Float(10.0, help="what all calls of one function may take together").tag(config=True)
    memory = Integer(2 * 2**30, help="bytes that a student's code may use beyond PyTorch's own").tag(config=True)
    user = Unicode("nobody", help="who runs the students' code if the grader is root").tag(config=True)
    workers = Integer(os.cpu_count() or 1, help="questions judged at once").tag(config=True)
    house: House | None = None

    def preprocess(self, nb, resources):
        told = resources["nbgrader"]
        with Gradebook(told["db_url"]) as gradebook:
            cells = gradebook.find_notebook(told["notebook"], told["assignment"]).source_cells
            handed_out = {c.name: c.source for c in cells}
        secret = secret_of(Path.cwd())
        limits = {"seconds": self.seconds, "total": self.total, "memory": self.memory, "user": self.user}
        code = {i: c for i, c in enumerate(nb.cells) if c.cell_type == "code"}
        tests = {i: c for i, c in code.items() if is_test(c)}
        questions = {}
        for i, cell in tests.items():
            name = cell.metadata.nbgrader.grade_id
            question = SPEC.search(handed_out[name])
            if not question:
                raise ValueError(
                    f"Test cell {name} has no line `# graded by: question`: it would be full marks for all."
                )
            answer = next(j for j, c in code.items() if grade_id(c) == name.removesuffix("-test"))
            stub, own = handed_out[name.removesuffix("-test")], code[answer].source
            others = [stub, *(c.source for j, c in code.items() if j != answer and j not in tests)]
            if question[1] in NUMBERS:
                own += NUMBER.format(name=question[1])
            elif own == stub:
                own = ""  # perhaps it was answered in another cell
            seed = seed_for(secret, told["assignment"], question[1])
            questions[i] = find(question[1]), code_for(own, others), seed
        verdicts = self.rooms().judge(list(questions.values()), **limits)
        for i, verdict in zip(questions, verdicts, strict=True):
            self.write(nb.cells[i], verdict)
        for note in sorted({note for v in verdicts for note in v.notes if not note.startswith("seed")}):
            self.log.warning("%s: %s", told["student"], note)
        kept = [{key: value for key, value in isolated.describe(v).items() if key != "notes"} for v in verdicts]
        record = {"student": told["student"], "verdicts": kept}
        nb.metadata["tinydiff"] = nbformat.from_dict(json.loads(json.dumps(record)))
        return nb, resources

    def rooms(self):
        """The same for as long as nbgrader runs: PyTorch takes seconds to load."""
        if Judge.house is None:
            Judge.house = House(self.workers)
            atexit.register(Judge.house.close)
        return Judge.house

    def write(self, cell, verdict):
        """The score where nbgrader looks for it, the feedback above it, and the visible part of the test only."""
        points = round(verdict.score * cell.metadata.nbgrader.points, 2)
        told = "\n".join(line for line in verdict.text().splitlines() if not line.startswith("(check."))
        cell.source = HIDDEN.sub("", cell.source).strip()
        cell.execution_count = 1
        cell.outputs = [
            nbformat.v4.new_output("stream", name="stdout", text=told + "\n"),
            nbformat.v4.new_output("execute_result", data={"text/plain": str(float(points))}, execution_count=1),
        ]


def is_test(cell):
    told = cell.metadata.get("nbgrader", {})
    return bool(told.get("grade")) and not told.get("solution")


class Unlink(NbGraderPreprocessor):
    """Links in what students wrote become text: Formgrader would show them as they are, and they may hold code."""

    def preprocess_cell(self, cell, resources, index):
        if cell.cell_type != "code":
            cell.source = re.sub(r"\](\s*)([(\[:])", "]\u200b\\1\\2", cell.source)
        return cell, resources


class OfflineFeedback(HTMLExporter):
    """Feedback pages that run nothing and load nothing: no scripts, no pictures from elsewhere, no MathJax."""

    def from_notebook_node(self, nb, resources=None, **options):
        page, resources = super().from_notebook_node(nb, resources, **options)
        page = re.sub(r"<script\b.*?</script>", "", page, flags=re.DOTALL | re.IGNORECASE)
        return re.sub(
            r"""\b(href|src)\s*=\s*("[^"]*"|'[^']*'|[^\s>]+)""", harmless, page, flags=re.IGNORECASE
        ), resources


def harmless(attribute):
    """The attribute, or an empty one if it could run or load something."""
    name = attribute[1].lower()
    target = re.sub(r"[\x00-\x20]", "", html.unescape(attribute[2].strip("\"'"))).lower()
    allowed = ("#", "http://", "https://") if name == "href" else ("data:image/",)
    return attribute[0] if target.startswith(allowed) else f'{name}="#"'
