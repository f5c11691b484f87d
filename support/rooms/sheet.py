"""The contact sheet of 00_rooms.py: colour, depth and labels of a few rooms; and their classes' shares."""
import numpy as np

from support.files import write_atomically
from support.labels import SCANNET20


def contact_sheet(path, rows):
    """Save a picture at `path`: a line for each (title, [(rgb, depth, label), ...]) in rows."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    palette = np.zeros((256, 3), np.uint8)
    for i, _, rgb in SCANNET20:
        palette[i] = rgb
    columns = 3 * len(rows[0][1])
    fig, axes = plt.subplots(len(rows), columns, figsize=(2.5 * columns, 2 * len(rows) + .8), squeeze=False)
    for line, (title, shots) in zip(axes, rows):
        images = [image for rgb, depth, label in shots for image in (rgb, depth, palette[label])]
        for ax, image in zip(line, images):
            ax.imshow(image, cmap="viridis_r")
            ax.set(xticks=[], yticks=[])
        line[0].set_ylabel(title)
    handles = [plt.Rectangle((0, 0), 1, 1, color=palette[i] / 255, label=name) for i, name, _ in SCANNET20]
    fig.legend(handles=handles, loc="lower center", ncol=10, frameon=False)
    fig.subplots_adjust(.035, .8 / fig.get_figheight(), 1, 1, .02, .02)
    write_atomically(path, lambda file: fig.savefig(file, dpi=80, format="png"))
    plt.close(fig)


def print_facts(rows):
    """What the pictures of rows, as above, consist of: arrays, and each class's share of the pixels."""
    label = np.stack([label for _, shots in rows for _, _, label in shots])
    share = np.bincount(label.ravel(), minlength=256) / label.size
    for name, x in zip(("rgb", "depth", "label"), rows[-1][1][0]):
        print(f"{name:16s} {x.shape} {x.dtype}")
    print(f"{'class':16s} share of pixels")
    for i, name, _ in SCANNET20:
        print(f"{name:16s} {share[i]:6.1%}")
    print(f"{'(not in the 20)':16s} {1 - sum(share[i] for i, _, _ in SCANNET20):6.1%}")
