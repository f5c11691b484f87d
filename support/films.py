"""Fly-throughs: a camera's path between poses, and films of rendered views.

Test: pytest tests/test_support_pictures.py
"""
import importlib.util
import io
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from PIL import Image  # imageio's own: it reads and writes pictures with it
from torch import Tensor

from support.files import DataError, figure_text, write_atomically
from support.labels import SCANNET, Classes
from support.pictures import colour_labels


def turn(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Spherical interpolation of rotations a, b (3, 3): a at t = 0, b at t = 1, at constant speed about one
    axis between."""
    r = a.T @ b
    angle = torch.arccos(((r.trace() - 1) / 2).clamp(-1, 1))
    axis = (r - r.T) / 2 if angle < 1e-4 else angle / (2 * angle.sin()) * (r - r.T)   # (3, 3) logarithm of r
    return a @ torch.linalg.matrix_exp(t * axis)


def camera_path(c2w: Tensor, frames: int) -> Tensor:
    """A smooth way along the poses (N, 4, 4), N >= 2, in their order -> (frames, 4, 4), in even steps of time
    from the first to the last: positions on a Catmull-Rom spline, rotations `turn`ed from each to the
    next."""
    p = c2w[:, :3, 3].double()
    p = torch.cat([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])      # (N + 2, 3): one more at each end
    path = torch.eye(4).repeat(frames, 1, 1)
    for i, u in enumerate(torch.linspace(0, len(c2w) - 1, frames).tolist()):
        n = min(int(u), len(c2w) - 2)                                         # between poses n and n + 1
        t, (a, b, c, d) = u - n, p[n:n + 4]
        cubic = c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a))
        path[i, :3, 3] = (b + t / 2 * cubic).float()
        path[i, :3, :3] = turn(c2w[n, :3, :3].double(), c2w[n + 1, :3, :3].double(), t).float()
    return path


# ------------------------------------------------------------------------------------------------- the frames
def film(shots: list[dict], title: str, panel: int, classes: Classes = SCANNET) -> list[np.ndarray]:
    """Rendered views, dicts of colour (H, W, 3), labels (H, W), depth (H, W) -> pictures (h, w, 3) uint8, h
    and w multiples of 16 (video codecs want that): the three side by side, `panel` pixels wide each, one
    depth scale and one legend for all."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    depths = torch.stack([shot["depth"] for shot in shots]).numpy()           # (N, H, W)
    far = float(np.quantile(depths, 0.995))                                   # not one stray pixel's
    figure, panels = empty_frame(shots, title, panel, classes, far)
    frames = []
    for shot in shots:
        parts = (shot["colour"].clamp(0, 1).numpy(), colour_labels(shot["labels"], classes),
                 shot["depth"].numpy())
        for image, part in zip(panels, parts):
            image.set_data(part)
        figure.canvas.draw()
        frames.append(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())
    plt.close(figure)
    return frames


def empty_frame(shots: list[dict], title: str, panel: int, classes: Classes, far: float) -> tuple:
    """A figure with all that a film's frames share, and its three empty images."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    H, W = shots[0]["labels"].shape
    present = sorted({int(label) for shot in shots for label in shot["labels"].unique()})
    scale, high = panel / 320, panel * H / W                                  # text grows with the panels
    font, rows = 9 * scale, -(-len(present) // 7)
    width = -(-(3 * panel + 0.22 * panel) // 16) * 16       # three panels and the depth scale
    height = -(-(high + (58 + 18 * rows) * scale) // 16) * 16
    figure = plt.figure(figsize=(width / 100, height / 100), dpi=100)
    top = 1 - (46 * scale + high) / height
    panels, depth = [], dict(cmap="viridis", vmin=0, vmax=far)
    for i, (name, options) in enumerate((("colour", {}), ("labels", {}), ("depth", depth))):
        axis = figure.add_axes(((i + 0.02) * panel / width, top, 0.96 * panel / width, high / height))
        axis.set_title(name, fontsize=font, pad=3)
        axis.set_axis_off()
        panels.append(axis.imshow(np.zeros((H, W) if options else (H, W, 3), np.float32), **options))
    bar = figure.add_axes(((3.02 * panel) / width, top + 0.03, 0.04 * panel / width, high / height - 0.06))
    figure.colorbar(panels[2], cax=bar).set_label("m", fontsize=font)
    bar.tick_params(labelsize=0.85 * font)
    squares = [Patch(facecolor=np.array(classes.colours[label]) / 255, edgecolor="black", lw=0.5,
                     label=figure_text(classes.names[label])) for label in present]
    figure.legend(handles=squares, loc="lower center", ncols=7, fontsize=font, frameon=False,
                  columnspacing=1.2, handlelength=1.2, borderaxespad=0.1)
    figure.suptitle(figure_text(title), fontsize=1.1 * font, y=1 - 8 * scale / height)
    return figure, panels


# --------------------------------------------------------------------------------------------------- the file
def check_video(path: Path) -> None:
    """DataError unless a film can be written there: a .gif always, an .mp4 with imageio's ffmpeg."""
    if path.suffix not in (".mp4", ".gif"):
        raise DataError(f"--video {path}: name it .mp4 or .gif")
    if path.suffix == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise DataError(f"--video {path}: imageio has no ffmpeg here; pip install 'imageio[ffmpeg]', or name "
                        "a .gif")


def gif(pictures: list[np.ndarray], rate: float, classes: Classes = SCANNET) -> bytes:
    """Pictures (h, w, 3) uint8, `rate` a second -> the bytes of a looping gif. One palette of 256 colours for
    all frames, in which every class keeps its own: with a palette a frame, the legend's colours of classes
    out of sight would go to others."""
    h, colours = pictures[0].shape[0], np.array(classes.colours, np.uint8)
    stripes = colours[np.arange(h) * len(colours) // h][:, None].repeat(h, axis=1)        # (h, h, 3)
    sample = np.concatenate([stripes, *pictures[::max(1, len(pictures) // 8)]], axis=1)
    palette = Image.fromarray(sample).quantize(256)
    frames = [Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.NONE)
              for picture in pictures]
    written = io.BytesIO()
    frames[0].save(written, "gif", save_all=True, append_images=frames[1:], duration=1000 / rate, loop=0)
    return written.getvalue()


def write_film(path: Path, shots: list[dict], title: str, classes: Classes, rate: int = 12) -> None:
    """Rendered views (see film) -> an .mp4 or .gif, `rate` views a second; say what was written."""
    frames = film(shots, title, 320 if path.suffix == ".mp4" else 224, classes)
    if path.suffix == ".mp4":
        written = iio.imwrite("<bytes>", frames, extension=".mp4", plugin="FFMPEG", fps=rate)
    else:
        written = gif(frames, rate, classes)
    write_atomically(path, lambda file: file.write(written))
    h, w = frames[0].shape[:2]
    print(f"{path}: {len(frames)} frames of {w}x{h}, {rate} a second, {len(written) / 1e6:.1f} MB")
