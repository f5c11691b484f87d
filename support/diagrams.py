"""The notebooks' pictures: two or three abreast, with text that is read from the back row of a room; and the
ray explorer in a notebook.

Test: pytest tests/test_notebooks.py
"""
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import IFrame
from matplotlib_inline.backend_inline import set_matplotlib_formats
from torch import Tensor

ORANGE, BLUE, SKY, GREY = "#d55e00", "#0072b2", "#56b4e9", "#999999"


def back_row() -> None:
    """At least 15 points of text in pictures of 11 inches across: 18 points on a slide of 13.3 inches. Prints
    the versions of Python and torch."""
    plt.rcParams.update({"figure.dpi": 80, "font.size": 15, "axes.titlesize": 16, "figure.titlesize": 17,
                         "lines.linewidth": 2.5, "figure.constrained_layout.use": True})
    set_matplotlib_formats("jpeg")                       # photographs: a fifth of a PNG
    print("Python", sys.version.split()[0], "| torch", torch.__version__, "| device: cpu")


def picture(axis, image: Tensor | np.ndarray, title: str = "", pixel=None, colour: str = ORANGE, **options):
    """An image (3, H, W), (H, W, 3) or (H, W) on a matplotlib axis without ticks; a ring around pixel (u, v).
    options go to imshow, whose result is returned."""
    image = np.asarray(image)
    image = image.transpose(1, 2, 0) if image.ndim == 3 and len(image) == 3 else image
    shown = axis.imshow(image, **options)
    if pixel is not None:
        for width, ink in ((6, "white"), (3, colour)):                        # seen on dark and on bright
            axis.plot(*np.asarray(pixel), "o", mfc="none", mec=ink, ms=16, mew=width)
    axis.set(title=title, xticks=[], yticks=[])
    return shown


def ray_explorer(folder: str, stride: int = 16) -> IFrame:
    """tools/explore.py's page of a scene's folder, with rays of every stride-th row and column: some MB in
    outputs/, which git ignores. The notebook holds a frame around the page, not the page."""
    scene = Path(folder)
    out = Path("outputs") / f"explorer_{scene.name}.html"
    out.parent.mkdir(exist_ok=True)
    words = ["-m", "tools.explore", "--checkpoint", "weights/sray_rooms.pt", "--scene", str(scene.parent),
             "--scenes", scene.name, "--stride", str(stride), "--out", str(out)]
    print("$ python", *words)
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stdout.strip().splitlines()[-1])
    return IFrame(f"../{out.as_posix()}", width="100%", height=900)
