import numpy as np
import pytest

from tinydiff import plot

widgets = pytest.importorskip("tinydiff.widgets")


def draw(t, shade=0):
    return np.full((4, 4), t + shade, dtype=np.uint8)


def parts(box):
    """(sliders, message, picture) of an explorer."""
    *sliders, message, picture = box.children
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


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("a sentence for alt", {"alt": " ", "t": [1]}),
        ("at least one slider", {"alt": "x"}),
        ("slider t has no values", {"alt": "x", "t": []}),
        ("cannot start at 9", {"alt": "x", "t": [1], "start": {"t": 9}}),
    ],
)
def test_mistakes_are_explained(message, arguments):
    with pytest.raises(ValueError, match=message):
        widgets.explore(draw, **arguments)
