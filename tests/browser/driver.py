"""JupyterLab on localhost, driven through Chromium: what the tests beside it and benchmarks/widgets.py share."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import numpy as np

LESSONS = Path(__file__).resolve().parents[2] / "lessons"
TOKEN = "tinydiff"
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-quic"]
FLAGS += ["--disable-component-update", "--disable-sync"]
FOLDERS = ["JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"]
FOLDERS += ["JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR"]
PROMPT = "--ServerApp.kernel_websocket_connection_class=tinydiff.server.Prompt"


def chromium() -> str | None:
    """The browser's path: $CHROMIUM, or what is installed."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


# --- the server -------------------------------------------------------------------------------------------------------


@dataclass
class Server:
    root: Path  # what it serves
    url: str
    log: Path
    process: subprocess.Popen

    def api(self, method: str, path: str) -> object:
        request = urllib.request.Request(
            f"{self.url}/api/{path}", method=method, headers={"Authorization": f"token {TOKEN}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or "null")

    def stop_kernels(self) -> None:
        for kernel in self.api("GET", "kernels"):
            self.api("DELETE", f"kernels/{kernel['id']}")


@contextmanager
def jupyterlab(folder: Path, *options: str, dark: bool = False) -> Iterator[Server]:
    """A JupyterLab that serves folder/root and keeps its settings in folder, too."""
    labconfig = folder / "JUPYTER_CONFIG_DIR/labconfig"
    labconfig.mkdir(parents=True)
    quiet = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}  # a toast over the page
    (labconfig / "page_config.json").write_text(json.dumps(quiet))
    if dark:
        themes = folder / "JUPYTERLAB_SETTINGS_DIR/@jupyterlab/apputils-extension"
        themes.mkdir(parents=True)
        (themes / "themes.jupyterlab-settings").write_text('{"theme": "JupyterLab Dark"}')
    root = folder / "root"
    root.mkdir()
    port = free_port()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={root}"]
    command += ["--allow-root", "--expose-app-in-browser", *options]
    with serving(folder, command) as process:
        yield Server(root, f"http://127.0.0.1:{port}", folder / "log", process)


@contextmanager
def serving(folder: Path, command: list[str]) -> Iterator[subprocess.Popen]:
    environment = os.environ | {name: str(folder / name) for name in FOLDERS}
    for name in FOLDERS:
        (folder / name).mkdir(exist_ok=True)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def visit(page, url: str, process: subprocess.Popen, log: Path, seconds: float = 180) -> None:
    """Go there as soon as the server answers; what the page must show is for others to wait for."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            page.goto(url, timeout=180_000, wait_until="commit")
            return
        except Exception as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"The server does not answer:\n{log.read_text()[-3000:]}") from error
            time.sleep(0.3)


# --- a notebook in the page -------------------------------------------------------------------------------------------

READY = """() => {
  const panel = window.jupyterapp && jupyterapp.shell.currentWidget
  const context = panel && panel.context
  const session = context && context.isReady && context.sessionContext
  const kernel = session && session.isReady && session.session && session.session.kernel
  return kernel && kernel.connectionStatus == 'connected' && kernel.status == 'idle'
}"""

RAN = """last => {
  const panel = jupyterapp.shell.currentWidget, cells = [...panel.content.model.cells].slice(0, last + 1)
  const code = cells.filter(cell => cell.type == 'code' && cell.sharedModel.getSource().trim())
  if (code.some(cell => cell.outputs.toJSON().some(output => output.output_type == 'error'))) return true
  const idle = panel.context.sessionContext.session.kernel.status == 'idle'
  return idle && code.every(cell => cell.executionCount && cell.executionState != 'running')
}"""

ERRORS = """() => [...jupyterapp.shell.currentWidget.content.model.cells].flatMap((cell, i) =>
  cell.type != 'code' ? [] : cell.outputs.toJSON().filter(output => output.output_type == 'error')
    .map(output => `cell ${i}: ${output.ename}: ${output.evalue}`))"""

LISTEN = """() => {
  window.tinydiffErrors = []
  jupyterapp.shell.currentWidget.context.sessionContext.session.kernel.iopubMessage.connect((kernel, message) => {
    if (message.header.msg_type == 'error')
      window.tinydiffErrors.push(`${message.content.ename}: ${message.content.evalue}`)
  })
}"""

WATCH = """selector => {
  const explorer = document.querySelector(selector), image = explorer.querySelector('img')
  const watch = window.tinydiff = {input: null, taken: [], pictures: 0}
  for (const kind of ['keydown', 'pointerdown', 'pointermove'])
    window.addEventListener(kind, event => {
      if (kind != 'pointermove' || event.buttons) watch.input = event.timeStamp
    }, true)
  watch.observer = new MutationObserver(async () => {
    const input = watch.input
    await image.decode().catch(() => {})
    watch.pictures += 1
    watch.taken.push(performance.now() - input)
  })
  watch.observer.observe(image, {attributes: true, attributeFilter: ['src']})
}"""

LOOK = """async selector => {
  const explorer = document.querySelector(selector), image = explorer.querySelector('img')
  const bytes = await (await fetch(image.src)).arrayBuffer()
  const hash = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes))
  return {
    labels: [...explorer.querySelectorAll('.widget-slider .widget-readout')].map(e => e.textContent),
    picture: [...hash].map(b => b.toString(16).padStart(2, '0')).join(''),
    decoded: image.complete && image.naturalWidth > 0,
    shown: getComputedStyle(image).display != 'none',
    alert: [...explorer.querySelectorAll('[role=alert]')].map(e => e.innerText).join(' '),
  }
}"""

ASK = """async expression => {
  const kernel = jupyterapp.shell.currentWidget.context.sessionContext.session.kernel
  const request = {code: '', silent: true, store_history: false, user_expressions: {answer: expression}}
  const reply = await kernel.requestExecute(request).done
  return reply.content.user_expressions.answer
}"""


@dataclass
class Explorer:
    """A widget in the page, and the cell that made it."""

    cell: int  # its place in the notebook
    count: int  # its execution count
    title: str
    selector: str
    sliders: list[str]


@dataclass
class Look:
    """What somebody in front of the page sees."""

    labels: list[str]
    picture: str  # SHA-256 of the PNG
    decoded: bool
    shown: bool
    alert: str


@dataclass
class Notebook:
    """A notebook, open in JupyterLab."""

    page: object
    server: Server
    path: Path
    errors: list[str] = field(default_factory=list)  # of the page
    logged: int = 0  # bytes of the server's log before this notebook

    def __post_init__(self) -> None:
        self.logged = self.server.log.stat().st_size
        self.page.on("pageerror", lambda error: self.errors.append(f"page: {error}"))
        self.page.on("console", self._heard)
        visit(
            self.page,
            f"{self.server.url}/lab/tree/{self.path.name}?reset&token={TOKEN}",
            self.server.process,
            self.server.log,
        )
        self.page.wait_for_function("() => window.jupyterapp", timeout=180_000)
        self.page.evaluate("async () => { await jupyterapp.restored }")
        self.page.wait_for_function(READY, timeout=180_000)
        self.page.evaluate(LISTEN)

    def _heard(self, message) -> None:
        if message.type == "error":
            self.errors.append(f"console: {message.text[:300]}")

    def tracebacks(self) -> list[str]:
        """Exceptions in the kernel, which may appear in the browser's console or the server's log only."""
        log = self.server.log.read_bytes()[self.logged :].decode(errors="replace")
        logged = [lines.splitlines()[-1] for lines in re.findall(r"Traceback(?:.*\n\s.*)*\n.*", log)]
        return [f"kernel: {error}" for error in self.page.evaluate("() => window.tinydiffErrors") + logged]

    def slider_cells(self) -> list[int]:
        cells = nbformat.read(self.path, as_version=4).cells
        return [i for i, cell in enumerate(cells) if cell.cell_type == "code" and "explore(" in cell.source]

    def run(self, last: int, seconds: float = 400) -> list[Explorer]:
        """Run all cells up to that one; returns the explorers there, which the page draws as they come into view."""
        self.page.evaluate(
            """async last => {
              const notebook = jupyterapp.shell.currentWidget.content
              notebook.activeCellIndex = last + 1
              notebook.deselectAll()
              jupyterapp.commands.execute('notebook:run-all-above')
            }""",
            last,
        )
        self.page.wait_for_function(RAN, arg=last, timeout=1000 * seconds)
        if failed := self.page.evaluate(ERRORS):
            raise AssertionError(f"{self.path.name}: {'; '.join(failed)}")
        return [self.explorer(i) for i in self.slider_cells() if i <= last]

    def explorer(self, cell: int) -> Explorer:
        """Scroll to a slider's cell and wait until its picture is there."""
        self.page.evaluate(
            """i => {
              const notebook = jupyterapp.shell.currentWidget.content
              notebook.activeCellIndex = i
              notebook.scrollToItem(i, 'start')
            }""",
            cell,
        )
        selector = f".jp-Notebook .jp-Cell[data-windowed-list-index='{cell}'] .tinydiff-explorer"
        self.page.wait_for_function(
            "s => { const image = document.querySelector(s + ' img'); return image && image.naturalWidth }",
            arg=selector,
            timeout=30_000,
        )
        classes = self.page.locator(f"{selector} img").get_attribute("class")
        return Explorer(
            cell=cell,
            count=self.page.evaluate(
                "i => jupyterapp.shell.currentWidget.content.model.cells.get(i).executionCount", cell
            ),
            title=re.search(r"pic-(\S+)", classes)[1],
            selector=selector,
            sliders=re.findall(r"\bsl-(\S+)", " ".join(self._classes(f"{selector} .widget-slider"))),
        )

    def _classes(self, selector: str) -> list[str]:
        return self.page.evaluate("s => [...document.querySelectorAll(s)].map(e => e.className)", selector)

    def ask(self, expression: str) -> str:
        """The kernel's repr of an expression."""
        answer = self.page.evaluate(ASK, expression)
        if answer["status"] != "ok":
            raise RuntimeError(f"{expression}: {answer['ename']}: {answer['evalue']}")
        return answer["data"]["text/plain"]

    def right(self, explorer: Explorer, labels: list[str]) -> str:
        """SHA-256 of the picture that belongs to such labels, drawn anew in the kernel."""
        box = f"Out[{explorer.count}]"
        values = f"[s.options[s._options_labels.index(l)] for s, l in zip({box}.sliders.values(), {labels!r})]"
        return self.ask(f"__import__('hashlib').sha256({box}.png(*{values})).hexdigest()").strip("'")

    def look(self, explorer: Explorer) -> Look:
        return Look(**self.page.evaluate(LOOK, explorer.selector))

    def watch(self, explorer: Explorer) -> None:
        """Time pictures from now on."""
        self.page.evaluate(WATCH, explorer.selector)

    def taken(self) -> list[float]:
        """Milliseconds from the input to each picture since `watch`."""
        return self.page.evaluate("() => window.tinydiff.taken")

    def handle(self, explorer: Explorer, slider: str):
        return self.page.locator(f"{explorer.selector} .sl-{slider} .noUi-handle")

    def drag(self, explorer: Explorer, slider: str, to: float, steps: int = 6) -> None:
        """Drag a handle with the mouse to a place between 0 and 1 on its track."""
        here = self.handle(explorer, slider).bounding_box()
        track = self.page.locator(f"{explorer.selector} .sl-{slider} .noUi-base").bounding_box()
        y = here["y"] + here["height"] / 2
        self.page.mouse.move(here["x"] + here["width"] / 2, y)
        self.page.mouse.down()
        self.page.mouse.move(track["x"] + to * track["width"], y, steps=steps)
        self.page.mouse.up()

    def tap(self, explorer: Explorer, slider: str, at: float) -> None:
        track = self.page.locator(f"{explorer.selector} .sl-{slider} .noUi-base").bounding_box()
        self.page.mouse.click(track["x"] + at * track["width"], track["y"] + track["height"] / 2)

    def press(self, explorer: Explorer, slider: str, *keys: str) -> None:
        self.handle(explorer, slider).focus()
        for key in keys:
            self.page.keyboard.press(key)


def unexecuted(notebook: Path, folder: Path) -> Path:
    """A copy of a notebook in a folder, without outputs."""
    document = nbformat.read(notebook, as_version=4)
    for cell in document.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(document, folder / notebook.name)
    return folder / notebook.name


# --- what a slider must do --------------------------------------------------------------------------------------------


def settle(notebook: Notebook, explorer: Explorer, seconds: float = 10.0) -> tuple[Look, str | None]:
    """What is seen once the right picture is there, or in the end, and what is wrong with it."""
    deadline = time.monotonic() + seconds
    right: dict[tuple[str, ...], str] = {}
    while True:
        look = notebook.look(explorer)
        labels = tuple(look.labels)
        if look.alert:
            return look, f"shows an error: {look.alert.splitlines()[0]}"
        if labels not in right:
            try:
                right[labels] = notebook.right(explorer, look.labels)
            except RuntimeError as error:  # the page is to show it, too
                right[labels] = str(error)
        if look.picture == right[labels] and look.decoded and look.shown:
            return look, None
        if time.monotonic() > deadline:
            return look, "does not show the picture that belongs to it"
        time.sleep(0.03)


def faults(notebook: Notebook, explorer: Explorer, patience: float = 10.0) -> list[str]:
    """Everything that is wrong with the sliders of a widget, as sentences."""
    found = [] if explorer.sliders else ["has no slider"]
    for place, slider in enumerate(explorer.sliders):
        moves = {
            "key End": lambda s=slider: notebook.press(explorer, s, "End"),
            "key Home": lambda s=slider: notebook.press(explorer, s, "Home"),
            "arrow key": lambda s=slider: notebook.press(explorer, s, "ArrowRight"),
            "mouse, dragged": lambda s=slider: notebook.drag(explorer, s, 0.0),
            "mouse, clicked": lambda s=slider: notebook.tap(explorer, s, 0.95),
        }
        pictures, moved = set(), set()
        for how, move in moves.items():
            before = notebook.look(explorer)
            move()
            with suppress(TimeoutError):  # End may find it there already
                wait_for(lambda b=before, p=place: notebook.look(explorer).labels[p] != b.labels[p], 2.0)
                moved.add(how)
            look, wrong = settle(notebook, explorer, patience)
            pictures.add(look.picture)
            if wrong:
                found.append(f"{slider} at {look.labels[place]}, by {how}, {wrong}")
        found += [f"{slider} does not move by {how}" for how in moves if how not in moved and how != "key End"]
        if len(pictures) < 2:
            found.append(f"{slider} shows the same picture everywhere")
    found += notebook.errors + notebook.tracebacks()
    return [f"{notebook.path.name}, {explorer.title}: {fault}" for fault in found]


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{seconds:g} s are over")
        time.sleep(0.02)


def summary(taken: list[float]) -> str:
    """The 50th and 95th percentile."""
    p50, p95 = np.percentile(taken, [50, 95])
    return f"p50 {p50:4.0f}   p95 {p95:4.0f}   of {len(taken)}"
