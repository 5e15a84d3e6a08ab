"""How fast sliders answer: milliseconds from the input event to the decoded picture, in JupyterLab under Chromium.

    python benchmarks/widgets.py [01_forward_process ...] [--n 60]

For every slider of every lesson: n single steps, by arrow keys and by dragging, each after the picture of the last one
has come. The first steps show frames that are drawn for them, later ones frames that are kept. Asked for: 40 ms in half
of all cases, 60 ms in 95 of 100, on two cores that have nothing else to do.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "browser"))
import driver
import numpy as np

ASKED = {50: 40.0, 95: 60.0}


def measure(notebook: driver.Notebook, explorer: driver.Explorer, slider: str, n: int) -> list[float]:
    """Milliseconds of n steps of one slider, there and back again, half by keys, half by mouse."""
    handle = notebook.handle(explorer, slider)
    values = 1 + int(float(handle.get_attribute("aria-valuemax")))
    notebook.press(explorer, slider, "Home")
    driver.settle(notebook, explorer)
    notebook.page.wait_for_timeout(1000)
    notebook.watch(explorer)
    place, step, taken = 0, 1, []
    for k in range(n):
        if not 0 <= place + step < values:
            step = -step
        place += step
        before = len(notebook.taken())
        if k < n / 2:
            notebook.page.keyboard.press("ArrowRight" if step > 0 else "ArrowLeft")
        else:
            track = notebook.page.locator(f"{explorer.selector} .sl-{slider} .noUi-base").bounding_box()
            if k - 1 < n / 2:  # take hold of the handle, which does not move it
                held = handle.bounding_box()
                notebook.page.mouse.move(held["x"] + held["width"] / 2, track["y"] + track["height"] / 2)
                notebook.page.mouse.down()
            x = track["x"] + place / (values - 1) * track["width"]
            notebook.page.mouse.move(x, track["y"] + track["height"] / 2)
        try:
            driver.wait_for(lambda before=before: len(notebook.taken()) > before, 2)
            taken.append(notebook.taken()[-1])
        except TimeoutError:  # the same picture at both places, or a place that was there already
            continue
        notebook.page.wait_for_timeout(40)
    notebook.page.mouse.up()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stems", nargs="*", metavar="lesson", help="file names without .ipynb; default: all")
    parser.add_argument("--n", type=int, default=60, help="steps of each slider (default: 60)")
    parser.add_argument("--slow-server", action="store_true", help="as Jupyter starts without `tinydiff lessons`")
    args = parser.parse_args()
    stems = args.stems or sorted(path.stem for path in driver.LESSONS.glob("[0-9]*.ipynb"))
    options = [] if args.slow_server else [driver.PROMPT]
    late = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        driver.jupyterlab(Path(folder), *options) as server,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=driver.chromium(), args=driver.FLAGS)
        print(f"{'lesson':22} {'picture':12} {'slider':10} {'p50':>5} {'p95':>5} {'n':>4}")
        for stem in stems:
            page = browser.new_page(viewport={"width": 1280, "height": 720})
            notebook = driver.Notebook(page, server, driver.unexecuted(driver.LESSONS / f"{stem}.ipynb", server.root))
            for explorer in notebook.run(notebook.slider_cells()[-1]):
                notebook.explorer(explorer.cell)
                for slider in explorer.sliders:
                    taken = measure(notebook, explorer, slider, args.n)
                    reached = {q: np.percentile(taken, q) for q in ASKED}
                    over = any(reached[q] > ASKED[q] for q in ASKED)
                    late += over
                    figures = " ".join(f"{value:5.0f}" for value in reached.values())
                    print(
                        f"{stem:22} {explorer.title:12} {slider:10} {figures} {len(taken):4}{' late' * over}",
                        flush=True,
                    )
            page.close()
            server.stop_kernels()
        browser.close()
    print(f"{late} sliders are later than asked for (p50 {ASKED[50]:.0f} ms, p95 {ASKED[95]:.0f} ms)")


if __name__ == "__main__":
    main()
