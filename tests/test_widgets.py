import asyncio
import os

import numpy as np
import pytest
from PIL import Image

from tinydiff import plot

widgets = pytest.importorskip("tinydiff.widgets")


def draw(t, shade=0):
    return np.full((4, 4), t + shade, dtype=np.uint8)


def parts(box):
    """(sliders, message, picture) of an explorer."""
    *sliders, _, message, picture = box.children
    return sliders, message, picture


def test_moving_a_slider_shows_the_direct_drawing():
    box = widgets.explore(draw, alt="A grey square.", t=range(5), shade=[0, 100])
    (t, shade), _, picture = parts(box)
    assert picture.value == plot.png(draw(0))
    t.value = 3
    assert picture.value == plot.png(draw(3))
    shade.value = 100
    assert picture.value == plot.png(draw(3, 100))


def test_a_picture_may_be_drawn_too():
    figure = plot.curves([0, 1], {"a": [0, 1]}, alt="A line.")
    assert parts(widgets.explore(lambda t: figure, alt="A line.", t=[1]))[2].value == figure.png


def test_no_frame_is_drawn_twice():
    calls = []

    def counted(t):
        calls.append(t)
        return draw(t)

    (t,), _, _ = parts(widgets.explore(counted, alt="A square.", t=range(3)))
    for value in (1, 2, 1, 0, 2):
        t.value = value
    assert calls == [0, 1, 2]


def test_an_exception_appears_under_the_slider_and_leaves_with_its_cause():
    def fragile(t):
        if t == 1:
            raise ValueError("t = 1 is <cursed>")
        return draw(t)

    (t,), message, picture = parts(widgets.explore(fragile, alt="A square.", t=range(3)))
    assert message.value == ""
    t.value = 1
    assert "ValueError: t = 1 is &lt;cursed&gt;" in message.value
    assert "in fragile" in message.value  # the traceback names the learner's function
    assert picture.layout.display == "none"  # not the picture of another value
    t.value = 2
    assert message.value == ""
    assert picture.layout.display is None
    assert picture.value == plot.png(draw(2))


def test_a_drawing_of_the_wrong_kind_is_named():
    (t,), message, _ = parts(widgets.explore(lambda t: draw(t) if t == 0 else draw(t) / 2, alt="A square.", t=[0, 1]))
    t.value = 1
    assert "uint8" in message.value


def test_an_exception_in_the_first_frame_stops_the_cell():
    with pytest.raises(ZeroDivisionError):
        widgets.explore(lambda t: 1 // t, alt="Nothing.", t=[0, 1])


def test_names_for_browser_tests_and_words_for_readers():
    box = widgets.explore(draw, alt="A grey square.", title="square", t=range(3))
    (t,), _, picture = parts(box)
    assert "sl-t" in t._dom_classes
    assert "pic-square" in picture._dom_classes
    assert picture.tooltip == "A grey square."
    assert picture.get_state()["description"] == ""  # or the browser shows an error in place of the picture
    assert t.description == "t"
    assert repr(box) == "[slider: t] A grey square."


def test_start():
    (t, shade), _, picture = parts(widgets.explore(draw, alt="x", start={"shade": 7}, t=range(3), shade=[5, 7]))
    assert (t.value, shade.value) == (0, 7)
    assert picture.value == plot.png(draw(0, 7))


def test_a_picture_keeps_the_width_it_was_drawn_for():
    figure = plot.curves([0, 1], {"a": [0, 1]}, alt="A line.")  # 144 pixels to an inch, shown at 96
    (t,), _, picture = parts(widgets.explore(lambda t: figure if t else draw(t), alt="A line.", t=[1, 0]))
    assert picture.width == str(figure.width)
    t.value = 0
    assert picture.width == ""


# --- drawing ahead ----------------------------------------------------------------------------------------------------


def in_a_loop(box, **moves):
    """Move sliders in a loop such as a kernel's, then wait until nothing is left to do."""

    async def main():
        for name, value in moves.items():
            box.sliders[name].value = value
        assert box._timer is not None
        for _ in range(1000):
            await asyncio.sleep(0.02)
            if box._timer is None:
                return
        raise TimeoutError

    asyncio.run(main())


def test_after_a_move_the_other_frames_are_drawn_ahead_nearest_first(monkeypatch):
    monkeypatch.setattr(widgets, "REST", 0.01)
    calls = []

    def counted(t, shade):
        calls.append((t, shade))
        return draw(t, shade)

    box = widgets.explore(counted, alt="A square.", start={"t": 2}, t=range(5), shade=[0, 100])
    assert calls == [(2, 0)]  # nothing ahead of the first move: a lesson that is only executed draws one frame
    in_a_loop(box, t=3)
    assert calls[:2] == [(2, 0), (3, 0)]
    assert sorted(calls) == sorted((t, shade) for t in range(5) for shade in (0, 100))  # each once
    assert calls[2:4] in ([(4, 0), (3, 100)], [(3, 100), (4, 0)])
    assert box.image.value == plot.png(draw(3))  # and what is shown stays


def test_what_fails_ahead_is_shown_only_where_the_slider_gets_there(monkeypatch):
    monkeypatch.setattr(widgets, "REST", 0.01)
    calls = []

    def fragile(t):
        calls.append(t)
        if t == 2:
            raise ValueError("two")
        return draw(t)

    box = widgets.explore(fragile, alt="A square.", t=range(4))
    in_a_loop(box, t=1)
    assert sorted(calls) == [0, 1, 2, 3]
    assert box.message.value == ""
    box.sliders["t"].value = 2
    assert "ValueError: two" in box.message.value


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(widgets, "REST", 0.01)
    monkeypatch.setattr(widgets, "KEPT", 3)
    box = widgets.explore(draw, alt="A square.", t=range(9))
    for value in (5, 6, 7, 8, 0, 4):
        in_a_loop(box, t=value)
        assert box.image.value == plot.png(draw(value))
        assert len(box.frames) <= 3


# --- play and save ----------------------------------------------------------------------------------------------------


def buttons(box):
    return {child.description: child for child in box.children[-3].children if getattr(child, "description", "")}


def test_play_is_there_where_it_is_asked_for():
    box = widgets.explore(draw, alt="x", play="t", t=range(5), shade=[0, 7])
    assert list(buttons(box)) == ["play", "save PNG", "save GIF"]
    clock = next(child for child in box.children[-3].children if hasattr(child, "playing"))
    assert (clock.min, clock.max, clock.interval) == (0, 4, 250)
    clock.playing = True
    assert list(buttons(box)) == ["pause", "save PNG", "save GIF"]
    assert list(buttons(widgets.explore(draw, alt="x", t=range(5)))) == ["save PNG"]


def test_png_is_saved_beside_the_notebook_and_never_over_another_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    box = widgets.explore(draw, alt="x", title="square", t=range(3), shade=[0, 7])
    box.sliders["t"].value = 2
    buttons(box)["save PNG"].click()
    assert (tmp_path / "square-t-2-shade-0.png").read_bytes() == box.image.value
    assert "square-t-2-shade-0.png" in box.message.value
    (tmp_path / "square-t-2-shade-0.png").write_text("mine")
    buttons(box)["save PNG"].click()
    assert (tmp_path / "square-t-2-shade-0.png").read_text() == "mine"
    assert (tmp_path / "square-t-2-shade-0-2.png").read_bytes() == box.image.value
    assert "square-t-2-shade-0-2.png" in box.message.value
    assert len(list(tmp_path.iterdir())) == 2  # nothing else is left behind
    box.sliders["t"].value = 1
    assert box.message.value == ""


def test_gif_holds_every_frame_of_the_played_slider(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    large = lambda t, shade: np.full((10 + t, 12), 20 * t + shade, dtype=np.uint8)  # noqa: E731
    box = widgets.explore(large, alt="x", title="a b/c", play="t", t=range(5), shade=[0, 7])
    box.sliders["shade"].value = 7
    buttons(box)["save GIF"].click()
    assert "a-b-c-shade-7.gif" in box.message.value
    film = Image.open(tmp_path / "a-b-c-shade-7.gif")
    assert (film.n_frames, film.size) == (5, (12, 14))  # the largest frame fits
    for t in range(5):
        film.seek(t)
        pixels = np.asarray(film.convert("L"))
        assert (pixels[: 10 + t] == 20 * t + 7).all()
        assert (pixels[10 + t :] == 255).all()
        assert film.info["duration"] == (1500 if t == 4 else 250)


def test_a_folder_that_takes_no_files_is_explained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    box = widgets.explore(draw, alt="x", t=range(3))
    buttons(box)["save PNG"].click()
    assert "No space left on device" in box.message.value
    assert 'role="alert"' in box.message.value
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_one_frame_saves_no_film(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    box = widgets.explore(lambda t: draw(1 // (2 - t)), alt="x", play="t", t=range(5))
    buttons(box)["save GIF"].click()
    assert "ZeroDivisionError" in box.message.value
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("a sentence for alt", {"alt": " ", "t": [1]}),
        ("at least one slider", {"alt": "x"}),
        ("play='s' names no slider: choose among t", {"alt": "x", "play": "s", "t": [1]}),
        ("slider t has no values", {"alt": "x", "t": []}),
        ("cannot start at 9", {"alt": "x", "t": [1], "start": {"t": 9}}),
    ],
)
def test_mistakes_are_explained(message, arguments):
    with pytest.raises(ValueError, match=message):
        widgets.explore(draw, **arguments)
