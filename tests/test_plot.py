import io
import os
import stat
import struct

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from PIL import Image

from tinydiff import plot


def decode(data):
    image = Image.open(io.BytesIO(data))
    return np.asarray(image.convert("RGB") if image.mode == "P" else image)


def test_grid_places_every_pixel():
    images = torch.tensor([-1.0, 0.0, 1.0])[:, None, None].expand(3, 1, 2)  # three pictures of 1 x 2
    sheet = plot.grid(images, columns=2, scale=2, gap=1)
    black, grey, white = [0] * 4, [128] * 4, [255] * 4
    assert sheet.tolist() == [
        [*black, 255, *grey],
        [*black, 255, *grey],
        [255] * 9,
        [*white, 255, *white],  # the last place is empty, so white
        [*white, 255, *white],
    ]


def test_grid_is_row_by_row_and_keeps_colours_in_order():
    images = torch.full((3, 3, 2, 2), -1.0)
    for i in range(3):
        images[i, i] = 1
    sheet = plot.grid(images, columns=3, gap=0)
    assert sheet.shape == (2, 6, 3)
    assert sheet[0].tolist() == [[255, 0, 0]] * 2 + [[0, 255, 0]] * 2 + [[0, 0, 255]] * 2


def test_grid_clips_and_survives_broken_samples():
    sheet = plot.grid(torch.tensor([[[-7.0, 7.0, torch.nan]]]))
    assert sheet.tolist() == [[0, 255, 128]]


@pytest.mark.parametrize("shape", [(2, 2), (2, 2, 5, 5), (0, 1, 8, 8)])
def test_grid_refuses_what_is_no_image(shape):
    with pytest.raises(ValueError, match="must be"):
        plot.grid(torch.zeros(shape))


def test_cloud_puts_dots_where_the_points_are():
    pixels = plot.cloud(torch.tensor([[1.0, 1.0]]), limit=2, size=40)
    assert pixels.shape == (40, 40, 3)
    rows, columns = np.nonzero((pixels[1:-1, 1:-1] < 255).any(2))
    assert (rows.mean() + 1, columns.mean() + 1) == (10, 30)  # up is up: y = 1 lies a quarter below the top


def test_cloud_darkens_with_crowd_and_colours_by_label():
    one, many = (plot.cloud(torch.zeros(n, 2), size=41)[20, 20].astype(int) for n in (1, 50))
    assert many.sum() < one.sum()
    for label in range(3):
        pixels = plot.cloud(torch.zeros(50, 2), torch.full((50,), label), size=41)
        assert pixels[20, 20].tolist() == list(bytes.fromhex(plot.OKABE_ITO[label][1:]))


def test_cloud_leaves_out_what_lies_outside():
    outside = torch.tensor([[9.0, 0.0], [0.0, -9.0], [-2.2, 0.0], [1e9, -1e9]])
    assert np.array_equal(plot.cloud(outside, limit=2), plot.cloud(torch.zeros(0, 2), limit=2))


def test_beside_centres_on_white():
    low, high = np.zeros((1, 2), np.uint8), np.full((3, 1, 3), 7, np.uint8)
    row = plot.beside(low, high, gap=1)
    assert row.shape == (3, 4, 3)
    assert row[..., 0].tolist() == [[255, 255, 255, 7], [0, 0, 255, 7], [255, 255, 255, 7]]


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3)])
def test_png_round_trip(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(decode(plot.png(array)), array)


def test_png_says_what_is_wrong():
    with pytest.raises(ValueError, match=r"uint8 .*float64 of shape \(2, 2\)"):
        plot.png(np.zeros((2, 2)))


def test_save_png_is_readable_by_all_and_leaves_nothing_else(tmp_path):
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    plot.save_png(tmp_path / "a.png", array)
    assert os.listdir(tmp_path) == ["a.png"]
    assert np.array_equal(decode((tmp_path / "a.png").read_bytes()), array)
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == 0o644


def test_save_png_keeps_the_old_file_when_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_text("old")

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        plot.save_png(path, np.zeros((2, 2), np.uint8))
    assert os.listdir(tmp_path) == ["a.png"]
    assert path.read_text() == "old"


POINTS = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
FIGURES = {
    "clouds": lambda alt: plot.clouds({"a": POINTS, "b": (POINTS, torch.arange(40))}, alt=alt),
    "paths": lambda alt: plot.paths({"a": torch.stack([POINTS, POINTS / 2])}, alt=alt),
    "arrows": lambda alt: plot.arrows({"a": lambda x: -x, "b": lambda x: x}, alt=alt, points=POINTS),
    "curves": lambda alt: plot.curves([1, 2], {"a": [1, 2], "b": ([1, 2, 3], [3, 2, 1])}, alt=alt, yscale="log"),
    "strip": lambda alt: plot.strip({str(i): np.zeros((8, 8), np.uint8) for i in range(3)}, alt=alt, columns=2),
    "film": lambda alt: plot.film([np.full((8, 8), 9 * i, np.uint8) for i in range(3)], alt=alt),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_carry_alt_text_and_fit_a_notebook(name):
    picture = FIGURES[name]("What it shows.")
    data, metadata = picture._repr_png_()
    assert decode(data).size
    assert metadata["alt"] == "What it shows."
    assert metadata["width"] <= 900
    assert repr(picture) == "Picture(alt='What it shows.')"  # the text that nbval compares


@pytest.mark.parametrize("name", FIGURES)
def test_figures_without_alt_text_are_refused(name):
    with pytest.raises(ValueError, match="alt is empty"):
        FIGURES[name](" ")


def test_clouds_share_their_limits():
    """The same points lie at the same place in both panels, though one panel reaches ten times as far."""
    small = torch.tensor([[0.5, 0.5]])
    alone = decode(plot.clouds({"a": small, "b": small}, alt="x", limit=5.25).png)
    beside = decode(plot.clouds({"a": small, "b": torch.tensor([[5.0, 5.0]])}, alt="x").png)
    half = alone.shape[1] // 2
    assert np.array_equal(alone[:, :half], beside[:, :half])


def test_strip_shows_each_frame_under_its_caption():
    shades = {"a": 0, "b": 100, "c": 200}
    picture = plot.strip({k: np.full((20, 20), v, np.uint8) for k, v in shades.items()}, alt="x", columns=3)
    middle = decode(picture.png)[..., 0]
    width = middle.shape[1]
    assert [int(middle[middle.shape[0] // 2, width * (2 * i + 1) // 6]) for i in range(3)] == [0, 100, 200]


@pytest.mark.parametrize("lines", [1, 2, 3])
def test_strip_makes_room_for_captions_of_several_lines(lines):
    """The pictures fill the width, whatever is written above them."""
    frames = {f"{i}" + "\nmore" * (lines - 1): np.zeros((20, 40), np.uint8) for i in range(6)}
    drawn = decode(plot.strip(frames, alt="x", columns=3).png)[..., 0]
    assert (drawn < 128).mean(0)[:5].max() < 0.02  # a margin
    assert max((row < 128).sum() for row in drawn) > 0.95 * drawn.shape[1]


def test_film_plays_all_frames_once():
    frames = [np.full((8, 8, 3), 40 * i, np.uint8) for i in range(5)]
    picture = plot.film(frames, alt="x", seconds=2)
    at = picture.png.index(b"acTL") + 4
    assert struct.unpack(">II", picture.png[at : at + 8]) == (5, 1)  # frames, plays
    film = Image.open(io.BytesIO(picture.png))
    for i in range(5):
        film.seek(i)
        assert np.array_equal(np.asarray(film.convert("RGB")), frames[i])
        assert film.info["duration"] == 400


@pytest.mark.parametrize("n", [3, 7, 8])
def test_walks_of_few_points_have_a_colour_each(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list = []
    monkeypatch.setattr(plot, "_render", lambda figure, alt: figures.append(figure))
    plot.paths({"a": POINTS[: 3 * n].reshape(3, n, 2)}, alt="Walks.", limit=3)
    (ax,) = figures[0].axes
    colours = [line.get_color() for line in ax.lines]
    ends, starts = ax.collections
    assert len(colours) == n
    assert np.allclose(starts.get_offsets(), POINTS[:n])
    assert np.allclose(ends.get_offsets(), POINTS[2 * n : 3 * n])
    if n < 8:
        assert len(set(colours)) == n
        for marks in ends, starts:
            assert [tuple(c) for c in marks.get_facecolors()] == [to_rgba(c) for c in colours]
    else:
        assert set(colours) == {"0.6"}


def test_sixteen_lines_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list = []
    monkeypatch.setattr(plot, "_render", lambda figure, alt: figures.append(figure))
    plot.curves([1, 2], {str(i): [i, i] for i in range(16)}, alt="Sixteen lines.")
    styles = {(line.get_color(), line.get_linestyle()) for line in figures[0].axes[0].lines}
    assert len(styles) == 16
