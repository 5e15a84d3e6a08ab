"""Every slider of every lesson in a real browser: it moves, and shows the picture that belongs to it."""

import io
import os
from pathlib import Path

import driver
import pytest
from PIL import Image, ImageChops

STEMS = sorted(path.stem for path in driver.LESSONS.glob("[0-9]*.ipynb"))
SCREENSHOTS = os.environ.get("SCREENSHOTS")  # a folder to write a picture of each widget to


@pytest.fixture
def lesson(desk, request):
    yield desk.lesson(request.param)
    desk.close()
    desk.pages.clear()


@pytest.mark.parametrize("lesson", STEMS, indirect=True)
def test_every_slider_shows_the_picture_that_belongs_to_it(lesson, record_property):
    cells = lesson.slider_cells()
    assert cells
    for explorer in lesson.run(cells[-1]):
        lesson.explorer(explorer.cell)  # into view
        name = f"{lesson.path.stem} {explorer.title}"
        if SCREENSHOTS:
            screenshot(lesson, explorer, Path(SCREENSHOTS) / f"{lesson.path.stem}-{explorer.title}.png")
        assert fits(lesson, explorer), f"{name} is larger than a window of 1280 x 720"
        lesson.watch(explorer)
        assert driver.faults(lesson, explorer) == []
        record_property(name, lesson.taken())
        alt = lesson.ask(f"Out[{explorer.count}].alt")[1:-1]
        assert alt.strip()
        assert lesson.page.locator(explorer.selector).get_by_role("img").get_attribute("title") == alt
        if lesson.ask(f"Out[{explorer.count}].play") != "None":
            assert plays(lesson, explorer), f"{name} does not play"


def fits(lesson, explorer) -> bool:
    """Slider and picture are seen together, without scrolling."""
    widget = lesson.page.locator(explorer.selector).bounding_box()
    view = lesson.page.locator(".jp-WindowedPanel-outer").bounding_box()
    image = lesson.page.locator(f"{explorer.selector} img").bounding_box()
    cell = lesson.page.locator(explorer.selector).evaluate("e => e.scrollWidth <= e.clientWidth + 1")
    return cell and widget["height"] <= view["height"] and image["width"] <= widget["width"]


def plays(lesson, explorer) -> bool:
    slider = explorer.sliders.index(lesson.ask(f"Out[{explorer.count}].play").strip("'"))
    lesson.press(explorer, explorer.sliders[slider], "Home")
    driver.settle(lesson, explorer)
    before = lesson.look(explorer)
    button = lesson.page.locator(f"{explorer.selector} .tinydiff-play")
    button.click()
    driver.wait_for(lambda: lesson.look(explorer).labels[slider] != before.labels[slider], 5)
    if "pause" in button.inner_text():
        button.click()
    driver.wait_for(lambda: "play" in button.inner_text(), 20)
    look, wrong = driver.settle(lesson, explorer)
    return wrong is None and look.picture != before.picture


def screenshot(lesson, explorer, path: Path) -> None:
    """The widget as it starts, or, where all sliders start at their first value, farther on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handles = [lesson.handle(explorer, slider) for slider in explorer.sliders]
    if all(float(handle.get_attribute("aria-valuenow")) == 0 for handle in handles):
        lesson.drag(explorer, explorer.sliders[0], 0.6)
        lesson.page.mouse.move(0, 0)
        driver.settle(lesson, explorer)
    drawn = Image.open(io.BytesIO(lesson.page.locator(explorer.selector).screenshot())).convert("RGB")
    drawn = drawn.crop((0, 0, drawn.width, drawn.height - 2))  # a line of the page
    ink = ImageChops.invert(drawn).convert("L").point(lambda v: 255 * (v > 8)).getbbox()
    drawn = drawn.crop((0, 0, min(drawn.width, ink[2] + 8), drawn.height))
    drawn.quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)
