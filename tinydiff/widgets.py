"""Sliders over pictures. The only import of ipywidgets (pip install "tinydiff[lessons]")."""

import html
import traceback
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

import ipywidgets
import traitlets

from tinydiff import plot


def explore(
    draw: Callable[..., plot.Pixels | plot.Picture],
    *,
    alt: str,
    title: str = "picture",
    start: Mapping[str, Any] | None = None,
    **sliders: Iterable[Any],
) -> ipywidgets.VBox:
    """Sliders above a picture, `draw(**values)`, redrawn whenever a slider moves.

    Frames are kept, so that no value is drawn twice. An exception in `draw` appears under the sliders in place of the
    picture; the first frame is drawn at once, and its exception raised.

    Args:
        draw: takes one keyword for each slider, returns a uint8 array (plot.grid, plot.cloud) or a plot.Picture.
        alt: what the picture shows, for readers who do not see it.
        title: the picture's CSS class is pic-<title>, a slider's is sl-<its name>.
        start: values to begin with, by slider; the first one where absent.
        sliders: name=values, such as t=range(0, 1001, 10) or steps=[1, 2, 5, 10].

    Returns:
        A widget; leave it on the last line of a cell. Arrow keys, Home and End move a slider that has the focus. Where
        no kernel runs, `alt` stands in for it.

    Raises:
        ValueError: alt is empty, there is no slider, or a slider has no values or not the one to start with.
    """
    if not alt.strip() or not sliders:
        raise ValueError("explore needs a sentence for alt and at least one slider, such as t=range(0, 1001, 10).")
    controls = {name: _slider(name, list(values), (start or {}).get(name)) for name, values in sliders.items()}
    layout = ipywidgets.Layout(max_width="100%", align_self="flex-start")  # its own size, not stretched
    image = _Image(format="png", tooltip=alt, layout=layout).add_class(f"pic-{title}")
    message = ipywidgets.HTML().add_class("tinydiff-error")

    @lru_cache(maxsize=512)
    def frame(*values: Any) -> bytes:
        drawing = draw(**dict(zip(controls, values, strict=True)))
        return drawing.png if isinstance(drawing, plot.Picture) else plot.png(drawing)

    def update(_: object = None) -> None:
        try:
            image.value = frame(*(slider.value for slider in controls.values()))
            message.value, image.layout.display = "", None
        except Exception as error:  # a callback's exception would vanish in the server's log
            message.value, image.layout.display = _explain(error), "none"

    image.value = frame(*(slider.value for slider in controls.values()))
    for slider in controls.values():
        slider.observe(update, names="value")
    box = _Box([*controls.values(), message, image])
    box.text = f"[slider: {', '.join(controls)}] {alt}"
    return box


class _Box(ipywidgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """A VBox that prints as its text."""

    text = ""

    def __repr__(self) -> str:
        return self.text


class _Image(ipywidgets.Image):  # type: ignore[misc]
    """An image with a tooltip, which readers of the screen speak: ipywidgets has no alt text for images."""

    description = traitlets.Unicode("").tag(sync=True)  # without it ipywidgets 8.1 cannot render the tooltip


def _slider(name: str, values: list[Any], start: Any) -> ipywidgets.SelectionSlider:
    if not values:
        raise ValueError(f"The slider {name} has no values.")
    if start is not None and start not in values:
        raise ValueError(f"The slider {name} cannot start at {start!r}, which is not among its values.")
    return ipywidgets.SelectionSlider(
        options=values,
        value=values[0] if start is None else start,
        description=name,
        layout=ipywidgets.Layout(width="28em"),
    ).add_class(f"sl-{name}")


def _explain(error: Exception) -> str:
    """The error's last line in bold red, its traceback folded away."""
    summary = html.escape("".join(traceback.format_exception_only(error)).strip())
    details = html.escape("".join(traceback.format_exception(error)))
    return (
        f'<div role="alert"><b style="color:#D55E00">{summary}</b>'
        f"<details><summary>traceback</summary><pre>{details}</pre></details></div>"
    )
