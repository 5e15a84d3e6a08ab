"""Sliders over pictures. The only import of ipywidgets (pip install "tinydiff[lessons]")."""

import asyncio
import html
import io
import itertools
import math
import re
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ipywidgets
import traitlets
from PIL import Image

from tinydiff import files, plot

KEPT = 1024  # frames; beyond that the oldest is forgotten
REST = 0.1  # seconds without a movement, after which frames are drawn ahead
Values = tuple[Any, ...]


def explore(
    draw: Callable[..., plot.Pixels | plot.Picture],
    *,
    alt: str,
    title: str = "picture",
    start: Mapping[str, Any] | None = None,
    play: str | None = None,
    **sliders: Iterable[Any],
) -> "Explorer":
    """Sliders above a picture, `draw(**values)`, redrawn whenever a slider moves.

    Frames are kept, so that no value is drawn twice; once a slider has been moved, the others are drawn ahead while
    nothing else happens. An exception in `draw` appears under the sliders in place of the picture; the first frame is
    drawn at once, and its exception raised. Buttons save the picture as PNG, and the film of `play` as GIF, beside the
    notebook, under a name that is still free.

    Args:
        draw: takes one keyword for each slider, returns a uint8 array (plot.grid, plot.cloud) or a plot.Picture.
        alt: what the picture shows, for readers who do not see it.
        title: the picture's CSS class is pic-<title>, a slider's is sl-<its name>.
        start: values to begin with, by slider; the first one where absent.
        play: the slider that a play button runs through, where time is the story.
        sliders: name=values, such as t=range(0, 1001, 10) or steps=[1, 2, 5, 10].

    Returns:
        A widget; leave it on the last line of a cell. Arrow keys, Home and End move a slider that has the focus. Where
        no kernel runs, `alt` stands in for it.

    Raises:
        ValueError: alt is empty, there is no slider, play names none, or a slider has no values or not the one to start
            with.
    """
    if not alt.strip() or not sliders:
        raise ValueError("explore needs a sentence for alt and at least one slider, such as t=range(0, 1001, 10).")
    if play is not None and play not in sliders:
        raise ValueError(f"play={play!r} names no slider: choose among {', '.join(sliders)}.")
    controls = {name: _slider(name, list(values), (start or {}).get(name)) for name, values in sliders.items()}
    return Explorer(draw, controls, alt, title, play)


class Explorer(ipywidgets.VBox):  # type: ignore[misc]  # ipywidgets has no types
    """What `explore` returns: sliders, buttons, a line for errors, and the picture."""

    def __init__(
        self,
        draw: Callable[..., plot.Pixels | plot.Picture],
        sliders: Mapping[str, ipywidgets.SelectionSlider],
        alt: str,
        title: str,
        play: str | None,
    ) -> None:
        self.draw, self.sliders, self.alt, self.title, self.play = draw, dict(sliders), alt, title, play
        self.frames: dict[Values, tuple[bytes, str] | None] = {}  # PNG and width; None where drawing ahead failed
        self._timer: asyncio.TimerHandle | None = None
        layout = ipywidgets.Layout(
            max_width="calc(100% - 4px)", align_self="flex-start"
        )  # its own size; margins are 2px
        self.image = _Image(format="png", tooltip=alt, layout=layout).add_class(f"pic-{title}")
        self.message = ipywidgets.HTML().add_class("tinydiff-error")
        self._show()
        for slider in self.sliders.values():
            slider.observe(self._moved, names="value")
        buttons = ipywidgets.HBox(self._buttons())
        super().__init__([*self.sliders.values(), buttons, self.message, self.image])
        self.add_class("tinydiff-explorer")

    def __repr__(self) -> str:
        return f"[slider: {', '.join(self.sliders)}] {self.alt}"

    @property
    def values(self) -> Values:
        """Where the sliders are."""
        return tuple(slider.value for slider in self.sliders.values())

    def png(self, *values: Any) -> bytes:
        """The picture for such values, one for each slider, drawn anew."""
        return self._drawn(values)[0]

    def _drawn(self, values: Values) -> tuple[bytes, str]:
        drawing = self.draw(**dict(zip(self.sliders, values, strict=True)))
        return (drawing.png, str(drawing.width)) if isinstance(drawing, plot.Picture) else (plot.png(drawing), "")

    def _frame(self, values: Values) -> tuple[bytes, str]:
        frame = self.frames.get(values)
        if frame is None:
            frame = self.frames[values] = self._drawn(values)
            if len(self.frames) > KEPT:
                del self.frames[next(iter(self.frames))]
        return frame

    def _show(self) -> None:
        png, width = self._frame(self.values)
        with self.image.hold_sync():  # in one message
            self.image.value, self.image.width = png, width

    def _moved(self, _: object = None) -> None:
        try:
            self._show()
            self.message.value, self.image.layout.display = "", None
        except Exception as error:  # a callback's exception would vanish in the server's log
            self.message.value, self.image.layout.display = _explain(error), "none"
        self._after(REST)

    # --- drawing ahead: by the kernel's own loop, so never beside a cell or another frame, and only while it idles ----

    def _after(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        with suppress(RuntimeError):  # no loop runs outside a kernel
            self._timer = asyncio.get_running_loop().call_later(seconds, self._draw_ahead)

    def _draw_ahead(self) -> None:
        """Draw the nearest frame that is missing, then make room for what else the kernel has to do."""
        self._timer = None
        missing = next((values for values in self._neighbours() if values not in self.frames), None)
        if missing is None:
            return
        began = time.perf_counter()
        try:
            self._frame(missing)
        except Exception:  # shown when the slider gets there
            self.frames[missing] = None
        self._after(max(0.01, time.perf_counter() - began))

    def _neighbours(self) -> list[Values]:
        """All values, those first that one slider reaches in the fewest moves; none where they are too many to keep."""
        options = [list(enumerate(slider.options)) for slider in self.sliders.values()]
        if math.prod(map(len, options)) > KEPT:
            return []
        here = [slider.index for slider in self.sliders.values()]

        def distance(place: tuple[tuple[int, Any], ...]) -> tuple[int, int]:
            moves = [abs(index - at) for (index, _), at in zip(place, here, strict=True)]
            return sum(move > 0 for move in moves), sum(moves)

        return [tuple(value for _, value in p) for p in sorted(itertools.product(*options), key=distance)]

    # --- buttons ------------------------------------------------------------------------------------------------------

    def _buttons(self) -> list[ipywidgets.Widget]:
        buttons = [self._saver("PNG", "this picture", self._save_png)]
        if self.play is not None:
            buttons = [
                *self._player(self.sliders[self.play]),
                *buttons,
                self._saver("GIF", f"the film of {self.play}", self._save_gif),
            ]
        return buttons

    def _saver(self, kind: str, what: str, save: Callable[[], str]) -> ipywidgets.Button:
        """A button that saves, and says under the sliders where."""

        def pressed(_: object) -> None:
            try:
                name = html.escape(f"{Path.cwd().name}/{save()}")
                self.message.value = f'<div role="status">saved as <code>{name}</code></div>'
            except Exception as error:
                self.message.value = _explain(error)

        button = ipywidgets.Button(
            description=f"save {kind}", icon="download", tooltip=f"Save {what} as a file.", layout=_narrow()
        )
        button.on_click(pressed)
        return button.add_class(f"tinydiff-{kind.lower()}")

    def _player(self, slider: ipywidgets.SelectionSlider) -> list[ipywidgets.Widget]:
        """A labelled button, and behind it a clock in the browser, which waits for the kernel between frames."""
        self.interval = round(min(250, max(50, 6000 / len(slider.options))))  # milliseconds
        clock = ipywidgets.Play(
            value=slider.index, max=len(slider.options) - 1, interval=self.interval, layout={"display": "none"}
        )
        self.button = ipywidgets.ToggleButton(
            description="play", icon="play", tooltip=f"Play or pause {self.play}.", layout=_narrow()
        ).add_class("tinydiff-play")

        def label(change: Mapping[str, Any]) -> None:
            self.button.description = self.button.icon = "pause" if change["new"] else "play"

        clock.observe(label, names="playing")
        self._links = [
            ipywidgets.jslink((clock, "value"), (slider, "index")),
            ipywidgets.jslink((self.button, "value"), (clock, "playing")),
        ]
        return [self.button, clock]

    def _save_png(self) -> str:
        parts = [f"{name}-{value}" for name, value in zip(self.sliders, self.values, strict=True)]
        return _write("-".join([self.title, *parts]), ".png", self._frame(self.values)[0])

    def _save_gif(self) -> str:
        assert self.play is not None
        held = dict(zip(self.sliders, self.values, strict=True))
        shown = [tuple((held | {self.play: value}).values()) for value in self.sliders[self.play].options]
        parts = [f"{name}-{value}" for name, value in held.items() if name != self.play]
        frames = [self._frame(values)[0] for values in shown]
        return _write("-".join([self.title, *parts]), ".gif", _gif(frames, self.interval))


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
        tooltip=f"{name}: drag it, or click on it and use the arrow keys, Home and End.",
        layout=ipywidgets.Layout(width="28em", max_width="100%"),
    ).add_class(f"sl-{name}")


def _narrow() -> ipywidgets.Layout:
    return ipywidgets.Layout(width="auto")


def _gif(frames: Sequence[bytes], interval: int) -> bytes:
    """PNG files as an animated GIF that goes on for ever and rests on its last frame."""
    pictures = [Image.open(io.BytesIO(frame)).convert("RGB") for frame in frames]
    size = max(p.width for p in pictures), max(p.height for p in pictures)
    sheets = [Image.new("RGB", size, "white") for _ in pictures]
    for sheet, picture in zip(sheets, pictures, strict=True):
        sheet.paste(picture)
    first, *rest = [sheet.quantize(128, dither=Image.Dither.NONE) for sheet in sheets]
    buffer = io.BytesIO()
    duration = [interval] * len(rest) + [1500]
    first.save(buffer, format="GIF", save_all=True, append_images=rest, duration=duration, loop=0)
    return buffer.getvalue()


def _write(stem: str, suffix: str, data: bytes) -> str:
    """Write into the current folder under the first free name, all or nothing; returns the name."""
    stem = re.sub(r"[^\w.+-]+", "-", stem)
    for i in itertools.count(1):
        path = Path(f"{stem}{f'-{i}' * (i > 1)}{suffix}")
        try:
            path.open("xb").close()  # the name is ours
            break
        except FileExistsError:
            pass
    try:
        files.write(path, data)
    except BaseException:
        path.unlink()
        raise
    return path.name


def _explain(error: Exception) -> str:
    """The error's last line in bold behind a red bar, its traceback folded away."""
    summary = html.escape("".join(traceback.format_exception_only(error)).strip())
    details = html.escape("".join(traceback.format_exception(error)))
    return (
        f'<div role="alert" style="border-left: 4px solid #D55E00; padding-left: 8px"><b>{summary}</b>'
        f"<details><summary>traceback</summary><pre>{details}</pre></details></div>"
    )
