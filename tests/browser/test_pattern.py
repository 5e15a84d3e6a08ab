"""The one widget of the course in a real browser: play, save, errors, haste, themes; and the guards of test_sliders."""

import re

import driver
import pytest
from PIL import Image

SETUP = """
import time
import numpy as np
from tinydiff import plot, widgets

drawn = []

def draw(t, shade=0):
    square = np.full((200, 300), 255, dtype=np.uint8)
    square[20:180, 10 + 5 * t : 60 + 5 * t] = shade
    return square

def slow(t):
    drawn.append(t)
    time.sleep(0.1)
    return draw(t)

def fragile(t):
    if t == 2:
        raise ValueError("t = 2 is <cursed>")
    return draw(t)
"""
GOOD = (
    SETUP,
    'widgets.explore(draw, t=range(30), shade=[0, 100], play="t", title="square", alt="A square.")',
    'widgets.explore(slow, t=range(100), title="slow", alt="A square.")',
    'widgets.explore(fragile, t=range(4), title="fragile", alt="A square.")',
)


@pytest.fixture(scope="module")
def notebook(desk):
    notebook = desk.notebook("pattern.ipynb", *GOOD)
    notebook.run(len(GOOD) - 1)
    return notebook


def test_a_good_widget_has_no_faults(notebook):
    assert driver.faults(notebook, notebook.explorer(1)) == []


def test_frames_are_drawn_ahead(notebook):
    square = notebook.explorer(1)
    notebook.press(square, "t", "Home", "ArrowRight")
    driver.wait_for(lambda: notebook.ask(f"len(Out[{square.count}].frames)") == "60", 20)


def test_play_runs_to_the_end_and_can_be_paused_with_keys(notebook):
    square = notebook.explorer(1)
    notebook.press(square, "t", "Home")
    driver.settle(notebook, square)
    button = notebook.page.locator(f"{square.selector} .tinydiff-play")
    assert "play" in button.inner_text()
    assert notebook.page.locator(f"{square.selector} .widget-play").is_hidden()
    button.press("Space")
    driver.wait_for(lambda: "pause" in button.inner_text(), 5)
    driver.wait_for(lambda: int(notebook.look(square).labels[0]) >= 3, 10)
    button.press("Space")
    driver.wait_for(lambda: "play" in button.inner_text(), 5)
    look, wrong = driver.settle(notebook, square)
    assert wrong is None
    paused = int(look.labels[0])
    assert 3 <= paused < 29
    notebook.page.wait_for_timeout(600)
    assert notebook.look(square).labels[0] == str(paused)
    notebook.press(square, "t", "ArrowRight")  # play goes on from where the slider is
    driver.settle(notebook, square)
    seen = []
    button.press("Enter")
    while (at := int(notebook.look(square).labels[0])) < 29:
        seen.append(at)
    assert seen[0] >= paused + 1
    assert seen == sorted(seen)
    driver.wait_for(lambda: "play" in button.inner_text(), 5)  # released at the end
    assert driver.settle(notebook, square)[1] is None


def test_files_are_saved_beside_the_notebook(notebook):
    square, folder = notebook.explorer(1), notebook.server.root
    notebook.press(square, "shade", "Home")
    notebook.press(square, "t", "Home", "ArrowRight")
    driver.settle(notebook, square)
    status = notebook.page.locator(f"{square.selector} [role=status]")
    for name in ("square-t-1-shade-0.png", "square-t-1-shade-0-2.png"):
        notebook.page.locator(f"{square.selector} .tinydiff-png").click()
        driver.wait_for(lambda name=name: status.count() and name in status.inner_text(), 5)
        assert Image.open(folder / name).size == (300, 200)
    notebook.page.locator(f"{square.selector} .tinydiff-gif").click()
    driver.wait_for(lambda: status.count() and ".gif" in status.inner_text(), 20)
    name = re.search(r"square\S*\.gif", status.inner_text())[0]
    assert Image.open(folder / name).n_frames == 30


def test_forty_fast_keys_leave_no_queue_of_stale_frames(notebook):
    slow = notebook.explorer(2)
    notebook.press(slow, "t", "Home")
    driver.settle(notebook, slow)
    notebook.watch(slow)
    already = int(notebook.ask("len(drawn)"))
    notebook.press(slow, "t", *["ArrowRight"] * 40)
    driver.wait_for(lambda: notebook.look(slow).labels == ["40"], 10)
    notebook.page.wait_for_timeout(500)  # five times what a frame takes; forty of them would take four seconds
    look, wrong = driver.settle(notebook, slow)
    assert (look.labels, wrong) == (["40"], None)
    assert notebook.page.evaluate("() => window.tinydiff.pictures") < 25
    assert int(notebook.ask("len(drawn)")) - already < 30


def test_an_error_is_shown_under_the_slider_in_place_of_the_picture(notebook):
    fragile = notebook.explorer(3)
    notebook.press(fragile, "t", "ArrowRight", "ArrowRight")
    alert = notebook.page.locator(f"{fragile.selector} [role=alert]")
    driver.wait_for(lambda: alert.count() == 1, 10)
    assert "ValueError: t = 2 is <cursed>" in alert.inner_text()
    assert notebook.page.locator(f"{fragile.selector} img").is_hidden()
    notebook.press(fragile, "t", "ArrowRight")
    driver.wait_for(lambda: alert.count() == 0, 10)
    assert driver.settle(notebook, fragile)[1] is None


CONTRAST = """selector => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true})
  const rgb = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1)
    return [...canvas.getImageData(0, 0, 1, 1).data] }
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0)
  const behind = e => { for (; e; e = e.parentElement) {
    const colour = rgb(getComputedStyle(e).backgroundColor)
    if (colour[3] == 255) return colour } return [255, 255, 255] }
  const found = {}
  for (const what of ['.widget-label', '.widget-readout', 'button', '[role=alert] b', '[role=alert] summary'])
    for (const e of document.querySelectorAll(`${selector} ${what}`)) if (e.textContent.trim() && e.offsetParent) {
      const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => x - y)
      found[what] = Math.min(found[what] ?? 21, (b + 0.05) / (a + 0.05))
    }
  return found
}"""


@pytest.mark.parametrize("theme", ["JupyterLab Dark", "JupyterLab Light"])
def test_words_are_readable_in_both_themes(notebook, theme):
    change = "async theme => { await jupyterapp.commands.execute('apputils:change-theme', {theme}) }"
    notebook.page.evaluate(change, theme)
    attribute = "theme => document.body.dataset.jpThemeName == theme"
    notebook.page.wait_for_function(attribute, arg=theme)
    notebook.page.wait_for_timeout(500)
    fragile = notebook.explorer(3)
    notebook.press(fragile, "t", "Home")
    driver.wait_for(lambda: not notebook.look(fragile).alert, 10)
    notebook.press(fragile, "t", "ArrowRight", "ArrowRight")
    driver.wait_for(lambda: notebook.look(fragile).alert, 10)
    contrast = notebook.page.evaluate(CONTRAST, fragile.selector)
    assert len(contrast) == 5
    assert min(contrast.values()) >= 4.5, contrast  # WCAG AA


@pytest.mark.parametrize("size", [(1280, 720), (1024, 768), (1920, 1080)])
def test_a_window_of_common_size_holds_it(notebook, size):
    notebook.page.set_viewport_size(dict(zip(("width", "height"), size, strict=True)))
    square = notebook.explorer(1)
    for part in (".sl-t", ".sl-shade", ".tinydiff-play", ".tinydiff-gif", "img"):
        box = notebook.page.locator(f"{square.selector} {part}").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= size[0]
        assert box["y"] + box["height"] <= size[1]


# --- the guards themselves must be able to fail -----------------------------------------------------------------------

BREAKS = {
    "dead": ("does not show the picture", 'dead.sliders["t"].unobserve_all()'),
    "off by one": ("does not show the picture", "dead._frame = lambda values, was=dead._frame: was((values[0] // 2,))"),
    "stuck": ("does not move", 'dead.sliders["t"].disabled = True'),
    "always the same": ("same picture everywhere", "dead.draw = lambda t: draw(0)"),
    "a callback fails": ("ZeroDivisionError", 'dead.sliders["t"].observe(lambda change: 1 / 0, names="value")'),
    "an error": ("ValueError: t = 2 is <cursed>", "dead.draw = fragile"),
}


@pytest.fixture(scope="module")
def broken(desk):
    cells = [SETUP]
    for name, (_, change) in BREAKS.items():
        cells.append(
            f'dead = widgets.explore(draw, t=range(3), title="{name[0]}", alt="A square.")\n{change}\ndead#explore('
        )
    notebook = desk.notebook("broken.ipynb", *cells)
    notebook.run(len(cells) - 1)
    return notebook


@pytest.mark.parametrize("name", BREAKS)
def test_each_guard_fails_when_it_should(broken, name):
    message, _ = BREAKS[name]
    found = driver.faults(broken, broken.explorer(1 + list(BREAKS).index(name)), patience=0.5)
    assert any(message in fault for fault in found), found


def test_an_error_in_a_cell_stops_the_test(desk):
    notebook = desk.notebook("failing.ipynb", SETUP, "1 / 0", GOOD[1])
    with pytest.raises(AssertionError, match="cell 1: ZeroDivisionError"):
        notebook.run(2)


def test_an_error_in_the_page_is_a_fault(desk):
    notebook = desk.notebook("page.ipynb", SETUP, GOOD[3].replace("fragile", "draw"))
    notebook.run(1)
    notebook.page.evaluate("() => { setTimeout(() => { throw new Error('lost') }) }")
    assert any("page: lost" in fault for fault in driver.faults(notebook, notebook.explorer(1)))
