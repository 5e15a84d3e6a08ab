"""The page for lectures: sliders of every lesson, no code."""

import hashlib
import sys

import driver
import pytest

sys.path.insert(0, str(driver.LESSONS))
import app


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    folder, port = tmp_path_factory.mktemp("app"), driver.free_port()
    command = [sys.executable, str(driver.LESSONS / "app.py"), "--no-browser", f"--port={port}"]
    with driver.serving(folder, command) as process:
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        driver.visit(page, f"http://127.0.0.1:{port}", process, folder / "log")
        yield page
        page.close()


def test_menu_sliders_and_no_code(page):
    assert list(app.titles()) == sorted(path.stem for path in driver.LESSONS.glob("[0-9]*.ipynb"))
    page.wait_for_selector(".tinydiff-explorer img", timeout=240_000)
    page.wait_for_function("() => document.querySelector('.tinydiff-explorer img').naturalWidth > 0")
    assert page.locator(".jp-InputArea, .highlight").count() == 0
    ((_, widget),) = app.stage("00_start_here")
    handle = page.locator(".sl-steps .noUi-handle")
    for key, steps in (("End", 20), ("Home", 0), ("ArrowRight", 1)):
        handle.focus()
        page.keyboard.press(key)
        right = hashlib.sha256(widget.png(steps)).hexdigest()
        driver.wait_for(lambda right=right: page.evaluate(driver.LOOK, ".tinydiff-explorer")["picture"] == right, 20)
    image = page.locator(".tinydiff-explorer img").bounding_box()
    assert image["height"] > 400  # seen from the last row
    assert image["x"] + image["width"] <= 1280
    assert page.errors == []


def test_another_lesson(page):
    page.locator("select").select_option(app.titles()["03_ddpm_sampling"])
    page.wait_for_selector(".sl-step", timeout=240_000)
    assert page.locator(".sl-steps").count() == 0
    before = page.evaluate(driver.LOOK, ".tinydiff-explorer")
    page.locator(".sl-step .noUi-handle").press("End")
    driver.wait_for(lambda: page.evaluate(driver.LOOK, ".tinydiff-explorer")["picture"] != before["picture"], 20)
    assert page.errors == []
