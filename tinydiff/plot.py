"""Pictures: fast uint8 arrays for sliders and PNG files, and figures for notebooks. The only import of matplotlib.

Arrays (`grid`, `cloud`, `beside`) come from numpy in milliseconds. The rest render a `Picture`, a PNG with alt text.
Colours are safe for colour-blind readers (Okabe-Ito); backgrounds are white, so that dark themes show them too.
"""

import io
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tinydiff import files

Pixels = NDArray[np.uint8]  # (H, W) grey or (H, W, 3) colour
Points = Tensor | NDArray[Any]

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
_RGB = np.array([list(bytes.fromhex(colour[1:])) for colour in OKABE_ITO], dtype=np.float32)
_DASHES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class Picture:
    """A PNG that a notebook shows, and a sentence that says what it shows to readers who do not see it."""

    png: bytes = field(repr=False)
    alt: str
    width: int = field(repr=False)  # in CSS pixels; the PNG may hold more of them

    def __post_init__(self) -> None:
        if not self.alt.strip():
            raise ValueError("alt is empty: say in a sentence what the picture shows, for readers who do not see it.")

    def _repr_png_(self) -> tuple[bytes, dict[str, Any]]:
        return self.png, {"alt": self.alt, "width": self.width}


def grid(images: Points, columns: int = 8, *, scale: int = 1, gap: int = 1) -> Pixels:
    """Images side by side, row by row: -1 is black, 1 is white, what lies beyond is clipped.

    Args:
        images: (N, H, W), (N, 1, H, W) or (N, 3, H, W).
        columns: images in a row; the last row is filled up with white.
        scale: each pixel becomes scale x scale.
        gap: white pixels between images.

    Returns:
        (rows (scale H + gap) - gap, columns (scale W + gap) - gap), with a last axis of 3 for colour.

    Raises:
        ValueError: images has another shape, or there is none.
    """
    pixels = _numpy(images)
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or len(pixels) == 0:
        raise ValueError(f"images has shape {pixels.shape}, but must be (N, H, W) or (N, C, H, W) with C = 1 or 3.")
    n, channels, height, width = pixels.shape
    columns = min(columns, n)
    rows = math.ceil(n / columns)
    ink = np.rint((np.nan_to_num(pixels).clip(-1, 1) + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)
    cells = np.full((rows * columns, scale * height + gap, scale * width + gap, channels), 255, dtype=np.uint8)
    cells[:n, : scale * height, : scale * width] = ink.repeat(scale, axis=1).repeat(scale, axis=2)
    sheet = np.concatenate(
        [np.concatenate(list(row), axis=1) for row in cells.reshape(rows, columns, *cells.shape[1:])]
    )
    sheet = sheet[: len(sheet) - gap, : sheet.shape[1] - gap]
    return sheet[..., 0] if channels == 1 else sheet


def cloud(x: Points, y: Points | None = None, *, limit: float = 2.5, size: int = 256) -> Pixels:
    """A cloud of 2-D points as dots on white, darker where they crowd: (size, size, 3).

    Args:
        x: (N, 2); points outside [-limit, limit] are not drawn.
        y: (N,) whole numbers, one colour each.
    """
    x = _numpy(x)
    hue = np.zeros(len(x), dtype=int) if y is None else _numpy(y).astype(int) % len(_RGB)
    column, row = np.floor((x / limit * (1, -1) + 1) / 2 * size).clip(-2, size + 1).astype(int).T
    ink = np.zeros((size, size, 1), dtype=np.float32)
    paint = np.zeros((size, size, 3), dtype=np.float32)
    for dy, dx in np.ndindex(3, 3):  # a dot is 3 x 3, its corners lighter
        weight = np.float32(0.8 if dy == 1 or dx == 1 else 0.3)
        i, j = row + dy - 1, column + dx - 1
        seen = (i >= 0) & (i < size) & (j >= 0) & (j < size)
        np.add.at(ink, (i[seen], j[seen]), weight)
        np.add.at(paint, (i[seen], j[seen]), weight * _RGB[hue[seen]])
    cover = 1 - np.exp(-ink)
    pixels: Pixels = np.rint(255 * (1 - cover) + cover * paint / np.maximum(ink, 1e-9)).astype(np.uint8)
    pixels[[0, -1]] = pixels[:, [0, -1]] = 200  # a thin frame
    return pixels


def beside(*arrays: Pixels, gap: int = 16) -> Pixels:
    """Arrays in a row, centred on white: (max H, sum of W and gaps, 3)."""
    height = max(len(a) for a in arrays)
    row: list[Pixels] = []
    for a in arrays:
        a = a if a.ndim == 3 else a[..., None].repeat(3, axis=2)
        top = (height - len(a)) // 2
        padding = ((top, height - len(a) - top), (gap if row else 0, 0), (0, 0))
        row.append(np.pad(a, padding, constant_values=255))
    return np.concatenate(row, axis=1)


def png(array: Pixels) -> bytes:
    """A uint8 array (H, W) or (H, W, 3) as the bytes of a PNG file.

    Raises:
        ValueError: the array has another dtype or shape.
    """
    picture = _image(array)  # checked; Pillow would write it, too, but three times as slowly, since it tries filters
    rows = np.pad(np.asarray(picture).reshape(picture.height, -1), ((0, 0), (1, 0)))  # before each row its filter: none
    colour = 0 if picture.mode == "L" else 2
    header = struct.pack(">IIBBBBB", picture.width, picture.height, 8, colour, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(rows.tobytes(), 1), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )


def save_png(path: str | os.PathLike[str], array: Pixels) -> None:
    """Write a uint8 array as a PNG file; a reader sees the old file or the new one, never half of it."""
    files.write(path, png(array))


def strip(frames: Mapping[str, Pixels], *, alt: str, columns: int = 6) -> Picture:
    """Arrays of one shape with captions, row by row: a slider's static twin, made by the slider's drawing function."""
    columns = min(columns, len(frames))
    rows = math.ceil(len(frames) / columns)
    height, width = next(iter(frames.values())).shape[:2]
    lines = 1 + max(caption.count("\n") for caption in frames)
    row = 9 / columns * height / width + 0.05 + 0.2 * lines
    figure = Figure(figsize=(9, rows * row), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes:
        ax.axis("off")
    for ax, (caption, array) in zip(axes, frames.items(), strict=False):  # the last row may have room to spare
        ax.imshow(array, cmap="gray", vmin=0, vmax=255, interpolation="auto")
        ax.set_title(caption, fontsize=10)
    return _render(figure, alt)


def film(frames: Iterable[Pixels], *, alt: str, seconds: float = 4.0) -> Picture:
    """Arrays of one shape as an animated PNG that plays once, for so many seconds, and stays on its last frame."""
    first, *rest = [_image(f).quantize(64) if f.ndim == 3 else _image(f) for f in frames]
    buffer = io.BytesIO()
    duration = round(1000 * seconds / (1 + len(rest)))
    first.save(buffer, format="PNG", save_all=True, append_images=rest, duration=duration, loop=1)
    return Picture(buffer.getvalue(), alt, first.width)


def clouds(panels: Mapping[str, Any], *, alt: str, limit: float | None = None) -> Picture:
    """A row of 2-D clouds with the same limits and equal aspect.

    Args:
        panels: title -> points (N, 2), or -> (points, labels (N,)), one colour for each label.
        alt: what the picture shows.
        limit: both axes run from -limit to limit; by default all points fit.
    """
    parts = {title: (p if isinstance(p, tuple) else (p, None)) for title, p in panels.items()}
    figure, axes = _row(parts, limit or _reach(x for x, _ in parts.values()))
    for ax, (x, y) in zip(axes, parts.values(), strict=True):
        _dots(ax, x, 4, c=OKABE_ITO[0] if y is None else _RGB[_numpy(y).astype(int) % len(_RGB)] / 255, alpha=0.6)
    return _render(figure, alt)


def paths(panels: Mapping[str, Points], *, alt: str, limit: float | None = None) -> Picture:
    """A row of trajectories (steps+1, N, 2) by title, from a cross (start) to a dot (end).

    Each of up to 7 points has a colour of its own, in all panels the same; the lines of more are grey.
    """
    figure, axes = _row(panels, limit or _reach(panels.values()))
    for ax, states in zip(axes, map(_numpy, panels.values()), strict=True):
        n = states.shape[1]
        few = n < len(OKABE_ITO)  # all but the last, yellow, are seen well on white
        line, start, end = (OKABE_ITO[:n],) * 3 if few else (("0.6",), OKABE_ITO[1:2], OKABE_ITO[:1])
        ax.set_prop_cycle(color=line)
        ax.plot(states[..., 0], states[..., 1], linewidth=0.7 + 0.2 * few, zorder=1)
        marks = {"linewidths": 0.6, "edgecolors": "white", "zorder": 2}
        _dots(ax, states[-1], 36 if few else 14, c=end, **marks)
        _dots(ax, states[0], 50 if few else 18, c=start, marker="X", **marks)
    return _render(figure, alt)


def arrows(
    panels: Mapping[str, Callable[[Tensor], Points]],
    *,
    alt: str,
    limit: float = 2.5,
    points: Points | None = None,
    n: int = 17,
) -> Picture:
    """A row of vector fields on an n x n lattice, arrows at their true length.

    Args:
        panels: title -> function of positions (n*n, 2), float32, that returns a vector for each.
        alt: what the picture shows.
        limit: both axes run from -limit to limit.
        points: (N, 2), drawn in grey behind the arrows.
    """
    ticks = torch.linspace(-0.9 * limit, 0.9 * limit, n)
    at = torch.cartesian_prod(ticks, ticks)
    figure, axes = _row(panels, limit)
    for ax, vector in zip(axes, panels.values(), strict=True):
        if points is not None:
            _dots(ax, points, 3, color="0.75")
        u, v = _numpy(vector(at)).T
        ax.quiver(*at.numpy().T, u, v, color=OKABE_ITO[0], angles="xy", scale_units="xy", scale=1, width=0.004)
    return _render(figure, alt)


def curves(x: Points | Sequence[float], lines: Mapping[str, Any], *, alt: str, **axes: Any) -> Picture:
    """Lines over a common x, told apart by colour and by dash.

    Args:
        x: (N,).
        lines: label -> (N,) values, or -> a pair (x, values) of its own.
        alt: what the picture shows.
        axes: passed to matplotlib's `Axes.set`, such as xlabel="t", yscale="log", ylim=(0, 1).
    """
    figure = Figure(figsize=(6.5, 3.2), layout="constrained")
    ax = figure.subplots()
    for i, (label, line) in enumerate(lines.items()):
        u, v = map(_numpy, line if isinstance(line, tuple) else (x, line))
        turn = i // len(OKABE_ITO)  # the second time round a colour has another dash
        dash, colour = _DASHES[(i + turn) % len(_DASHES)], OKABE_ITO[i % len(OKABE_ITO)]
        ax.plot(u, v, dash, color=colour, label=label, marker="o" if len(u) <= 20 else None, markersize=4)
    ax.set(**axes)
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    if len(lines) <= len(OKABE_ITO):
        ax.legend(frameon=False)
    else:
        ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return _render(figure, alt)


def error_bars(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, float]]]],
    *,
    alt: str,
    ylabel: str,
    level: tuple[float, float] | None = None,
    peers: Mapping[str, str] | None = None,
) -> Picture:
    """A row of panels with lines of (x, mean, standard deviation), logarithmic; means near 0 on a linear scale.

    Args:
        panels: label of x -> label of the line -> its points.
        alt: what the picture shows.
        ylabel: what the means are of.
        level: (mean, standard deviation), drawn across as a grey line and a band of twice that.
        peers: label of a line -> that of the line beside which it is drawn: crosses of its colour, without a line.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = list(figure.subplots(1, len(panels), squeeze=False, sharey=True).flat)
    labels = [label for label in next(iter(panels.values())) if label not in (peers or {})]
    means = [y for lines in panels.values() for line in lines.values() for _, y, _ in line] + (
        [level[0]] if level else []
    )
    small = 2 * level[1] if level else 0.0
    linear = 10 ** math.ceil(math.log10(small or 1e-9))  # a power of ten, so that ticks keep their distance
    scale = {"value": "log"} if min(means) > small else {"value": "symlog", "linthresh": linear, "linscale": 0.5}
    for ax, (xlabel, lines) in zip(axes, panels.items(), strict=True):
        if level:
            ax.axhspan(level[0] - 2 * level[1], level[0] + 2 * level[1], color="0.88", zorder=0)
            ax.axhline(level[0], color="0.5", linewidth=1, label="real data")
        for label, line in lines.items():
            x, y, sd = zip(*sorted(line), strict=True)
            i = labels.index((peers or {}).get(label, label))
            style = {
                "color": OKABE_ITO[i % 8],
                "linestyle": _DASHES[(i + i // 8) % 4],
                "marker": "o",
                "markersize": 3.5,
            }
            if peers and label in peers:
                style |= {"linestyle": "none", "marker": "x", "markersize": 7}
            ax.errorbar(x, y, yerr=sd, label=label, linewidth=1.2, capsize=2, zorder=2, **style)
        ax.set(xscale="log", xlabel=xlabel)
        ax.set_yscale(**scale)
        if scale["value"] == "log":
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter(NullFormatter())
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(ylabel)
    axes[-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    return _render(figure, alt)


def _render(figure: Figure, alt: str) -> Picture:
    drawn, palette = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=144)  # sharp on screens with 1.5 pixels to a CSS pixel
    colours = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)  # a third of the size
    colours.save(palette, format="PNG", optimize=True)
    return Picture(palette.getvalue(), alt, round(96 * figure.get_figwidth()))


def _row(titles: Iterable[str], limit: float) -> tuple[Figure, list[Axes]]:
    """A figure of square axes from -limit to limit, one for each title."""
    titles = list(titles)
    width = min(3.0, 9 / len(titles))
    figure = Figure(figsize=(len(titles) * width, width + 0.3), layout="constrained")
    axes = list(figure.subplots(1, len(titles), squeeze=False, sharex=True, sharey=True).flat)
    for ax, title in zip(axes, titles, strict=True):
        ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", title=title)
    return figure, axes


def _reach(clouds: Iterable[Points]) -> float:
    return 1.05 * max(float(np.abs(_numpy(x)).max()) for x in clouds)


def _dots(ax: Axes, points: Points, size: float, **style: Any) -> None:
    x, y = _numpy(points).T
    ax.scatter(x, y, size, **{"linewidths": 0, **style})


def _numpy(x: Any) -> NDArray[Any]:
    return np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x)


def _image(array: Pixels) -> Image.Image:
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ValueError(f"A picture is uint8 of shape (H, W) or (H, W, 3), not {array.dtype} of shape {array.shape}.")
    return Image.fromarray(np.ascontiguousarray(array))
