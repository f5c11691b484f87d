"""Pictures of rendered views: labels in their colours, an evaluation's sheet.

Test: pytest tests/test_support_pictures.py
"""
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from support.files import figure_text, write_atomically
from support.labels import IGNORE, SCANNET, Classes

ORANGE = (0.84, 0.37, 0.0)


def colour_labels(labels: Tensor, classes: Classes = SCANNET) -> np.ndarray:
    """Labels (H, W) -> their colours (H, W, 3) uint8, black where unlabelled."""
    palette = np.array([*classes.colours, [0, 0, 0]], np.uint8)               # IGNORE = -1 is the last row
    return palette[labels.cpu().numpy()]


def evaluation_sheet(path: Path, title: str, shots: list[dict], has_labels: bool, scores: dict,
                     classes: Classes = SCANNET, semantic: bool = True) -> None:
    """Up to four of the test views that 08's render_views gives, one a row: colour, labels and depth. Each is
    truth, ours and the error, or ours alone where there is no truth (labels only if the model is `semantic`:
    trained on some). Beside them stand the `scores` (label_metrics) of all these views by class."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    has_depth = any((shot["true_depth"] > 0).any() for shot in shots)
    rows = shots[:4]
    far = max(1e-3, *(float(shot["true_depth" if has_depth else "depth"].max()) for shot in rows))
    h, w = rows[0]["truth"].shape[:2]
    columns = 3 + (3 if has_labels else semantic) + (3 if has_depth else 1)
    size = 1.9 * columns + 3.2, len(rows) * 1.9 * h / w + 1.5
    figure = left = plt.figure(layout="constrained", figsize=size)
    if has_labels or semantic:
        left, right = figure.subfigures(1, 2, width_ratios=[1.9 * columns, 3.2])
        class_bars(right.subplots(), shots, scores, classes, has_labels)
    heights = [1] * len(rows) + [0.07]                                        # last: colour bars
    axes = left.subplots(len(rows) + 1, columns, squeeze=False, height_ratios=heights)
    unit = "m" if has_depth else "scene units"
    for row, shot in enumerate(rows):
        parts = colour_panels(shot) + label_panels(shot, classes, has_labels, semantic)
        for column, (name, picture, options) in enumerate(parts + depth_panels(shot, has_depth, far)):
            image = axes[row, column].imshow(np.asarray(picture), **options)
            axes[row, column].set(xticks=[], yticks=[])
            if row == 0:
                axes[0, column].set_title(name, fontsize=10)
                scale_below(left, axes[-1, column], image if options else None,
                            "of full scale" if column == 2 else unit)
        miou = f"\n{shot['miou']:.0f} mIoU" if shot["miou"] is not None else ""
        axes[row, 0].set_ylabel(f"view {shot['frame']}\n{shot['psnr']:.1f} dB{miou}", fontsize=9)
    figure.suptitle(figure_text(title), fontsize=12)
    write_atomically(path, lambda file: figure.savefig(file, dpi=100, format="png"))
    plt.close(figure)


def scale_below(figure, axis, image, label: str) -> None:
    """A colour bar below a column of pictures; nothing where image is None."""
    if image is None:
        axis.set_axis_off()
    else:
        figure.colorbar(image, cax=axis, orientation="horizontal", label=label)


def colour_panels(shot: dict) -> list[tuple]:
    """Truth, ours and error as (title, picture, imshow's options)."""
    ours, truth = shot["colour"].clamp(0, 1), shot["truth"]
    return [("colour: truth", truth, {}), ("ours", ours, {}),
            ("error, mean of RGB", (ours - truth).abs().mean(-1), dict(cmap="cividis", vmin=0, vmax=0.3))]


def label_panels(shot: dict, classes: Classes, has_labels: bool, semantic: bool) -> list[tuple]:
    """Truth, ours and wrong pixels; ours alone where there is no truth; nothing from a model without
    semantics."""
    ours = colour_labels(shot["labels"], classes)
    if not has_labels:
        return [("labels: ours", ours, {})] if semantic else []
    grey = 0.6 + 0.4 * shot["truth"].mean(-1, keepdim=True).expand(-1, -1, 3)    # (H, W, 3) the room, faintly
    wrong = shot["labels"] != shot["true_labels"]                             # (H, W)
    marked = torch.where(wrong[..., None], torch.tensor(ORANGE), grey)
    marked[shot["true_labels"] == IGNORE] = 0
    truth = colour_labels(shot["true_labels"], classes)
    return [("labels: truth", truth, {}), ("ours", ours, {}), ("wrong: orange", marked, {})]


def depth_panels(shot: dict, has_depth: bool, far: float) -> list[tuple]:
    """Truth, ours and error up to `far`; ours alone where there is no truth."""
    scale = dict(cmap="viridis", vmin=0, vmax=far)
    if not has_depth:
        return [("depth: ours", shot["depth"], scale)]
    truth = torch.where(shot["true_depth"] > 0, shot["true_depth"], torch.nan)    # white where none is known
    error = (shot["depth"] - truth).abs()
    return [("depth: truth", truth, scale), ("ours", shot["depth"], scale),
            ("error", error, dict(cmap="cividis", vmin=0, vmax=1))]


def class_bars(axis, shots: list[dict], scores: dict, classes: Classes, has_labels: bool) -> None:
    """The IoU of each class that is in the truth or was answered, in the classes' colours: the legend too."""
    there = [shot["true_labels"] for shot in shots] + [shot["labels"][shot["true_labels"] != IGNORE]
                                                       for shot in shots]
    there = sorted({int(label) for labels in there for label in labels.unique()} - {IGNORE})
    there = there or sorted({int(label) for shot in shots for label in shot["labels"].unique()})
    palette = np.array(classes.colours) / 255
    iou = [(scores["per_class_iou"] or {}).get(classes.names[label]) for label in there]
    axis.barh(range(len(there)), [x or 0 for x in iou], color=palette[there], edgecolor="black", lw=0.5)
    for i, (label, x) in enumerate(zip(there, iou)):
        missing = "not there" if has_labels else "answered"
        axis.text((x or 0) + 2, i, missing if x is None else f"{x:.0f}", va="center", fontsize=8)
        # a square of the class's colour, for bars too short to show it
        axis.plot(-7, i, "s", ms=8, mfc=palette[label], mec="black", mew=0.5, clip_on=False)
    axis.set_yticks(range(len(there)), [figure_text(classes.names[label]) for label in there])
    axis.tick_params(axis="y", length=0, pad=14, labelsize=9)
    axis.set(xlim=(0, 112), xlabel="IoU, %")
    mean = f": {scores['miou']:.1f} mIoU" if scores["miou"] is not None else ""
    axis.set_title("all test views" + mean, fontsize=10)
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)
