"""One JupyterLab and one Chromium for all tests of this folder."""

import os
from pathlib import Path

import driver
import nbformat
import pytest
from xdist.scheduler import LoadScopeScheduling


class OneLessonOrFile(LoadScopeScheduling):
    """What a process takes at a time: a lesson, or a whole file, whose page is then opened once."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid if "test_sliders" in nodeid else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log) -> OneLessonOrFile:
    return OneLessonOrFile(config, log)


def missing(what: str) -> None:
    """Skip, but on CI fail."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{what} The sliders were not tested in a browser.")


@pytest.fixture(scope="session")
def browser():
    if driver.chromium() is None:
        missing("Chromium was not found: install it (apt-get install chromium), or set CHROMIUM to its path.")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        missing('playwright is not installed: pip install -e ".[test]".')
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=driver.chromium(), args=driver.FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def server(browser, tmp_path_factory):
    with driver.jupyterlab(tmp_path_factory.mktemp("lab"), driver.PROMPT) as server:
        yield server


class Desk:
    """Opens notebooks, one page each, and closes them."""

    def __init__(self, browser, server):
        self.browser, self.server, self.pages = browser, server, []

    def open(self, path: Path) -> driver.Notebook:
        self.pages.append(self.browser.new_page(viewport={"width": 1280, "height": 720}))
        return driver.Notebook(self.pages[-1], self.server, path)

    def lesson(self, stem: str) -> driver.Notebook:
        return self.open(driver.unexecuted(driver.LESSONS / f"{stem}.ipynb", self.server.root))

    def notebook(self, name: str, *cells: str) -> driver.Notebook:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in (*cells, "0")])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, self.server.root / name)
        return self.open(self.server.root / name)

    def close(self) -> None:
        for page in self.pages:
            page.close()
        self.server.stop_kernels()


@pytest.fixture(scope="module")
def desk(browser, server):
    desk = Desk(browser, server)
    yield desk
    desk.close()


def pytest_terminal_summary(terminalreporter) -> None:
    """Milliseconds from input to picture, as recorded by the tests."""
    passed = terminalreporter.stats.get("passed", [])
    taken = dict(record for report in passed if report.when == "call" for record in report.user_properties)
    if taken:
        terminalreporter.section("sliders: milliseconds from input to picture, while tests run")
        for name in sorted(taken):
            terminalreporter.write_line(f"{name:36} {driver.summary(taken[name])}")
