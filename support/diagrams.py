"""The notebooks' pictures: two or three abreast, with text that is read from the back row of a room."""
import sys

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib_inline.backend_inline import set_matplotlib_formats
from torch import Tensor

ORANGE, BLUE, SKY, GREY = "#d55e00", "#0072b2", "#56b4e9", "#999999"


def back_row() -> None:
    """At least 13 points of text in pictures of 11 inches across. Prints the versions of Python and torch."""
    plt.rcParams.update({"figure.dpi": 80, "font.size": 13, "axes.titlesize": 14, "figure.titlesize": 15,
                         "lines.linewidth": 2, "figure.constrained_layout.use": True})
    set_matplotlib_formats("jpeg")                       # photographs: a fifth of a PNG
    print("Python", sys.version.split()[0], "| torch", torch.__version__, "| device: cpu")


def picture(axis, image: Tensor | np.ndarray, title: str = "", pixel=None, colour: str = ORANGE, **options):
    """An image (3, H, W), (H, W, 3) or (H, W) on a matplotlib axis without ticks; a ring around pixel (u, v).
    options go to imshow, whose result is returned."""
    image = np.asarray(image)
    image = image.transpose(1, 2, 0) if image.ndim == 3 and len(image) == 3 else image
    shown = axis.imshow(image, **options)
    if pixel is not None:
        axis.plot(*np.asarray(pixel), "o", mfc="none", mec=colour, ms=14, mew=3)
    axis.set(title=title, xticks=[], yticks=[])
    return shown
