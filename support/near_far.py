"""Near and far of an imported scene: the range of depths in which samples are worth their time.

In this order: the depth maps; what the capture knows (LLFF's bounds, sparse points); a plane sweep over the
photographs; a guess from the poses.

Test: pytest tests/test_support_sweep.py
"""
from pathlib import Path

import numpy as np

from support import sweep
from support.files import DataError, read_image
from support.layouts import MARGIN, Range


def found(source: Path, folder: Path, c2w: np.ndarray, K: np.ndarray, ranges: list, given: Range | None,
          transparent: bool) -> Range:
    """Near and far of the scene written in `folder` (frames c2w (N, 4, 4), one camera K). ranges: of each
    depth map, the 1st and 99th percentile. given: what the capture knows."""
    if ranges:
        lows, highs = zip(*ranges)
        return Range(MARGIN[0] * min(lows), MARGIN[1] * max(highs), "from the depth maps")
    if given:
        return given
    return swept(folder, c2w, K) or guess_near_far(c2w, transparent, str(source))


def swept(folder: Path, c2w: np.ndarray, K: np.ndarray, most: int = 60) -> Range | None:
    """The 1st and 99th percentile of the depths that a plane sweep measures, with MARGIN. None where it
    measures too few. Of many frames it takes `most`."""
    numbers = sorted((int(path.stem), path) for path in (folder / "color").iterdir())
    some = np.unique(np.linspace(0, len(numbers) - 1, most).round().astype(int))
    images = [read_image(numbers[i][1])[..., :3] for i in some]
    z = sweep.measured_depths(images, K, c2w[some])
    if len(z) < 100:
        return None
    low, high = np.percentile(z, (1, 99))
    why = f"measured: {len(z):,} rays on which the photographs agree"
    return Range(MARGIN[0] * float(low), MARGIN[1] * float(high), why)


def guess_near_far(c2w: np.ndarray, transparent: bool, where: str) -> Range:
    """From poses (N, 4, 4) alone. DataError where all cameras are in one place.

    Cameras that look at one thing, with the point nearest to all optical axes at depths z: from half the
    smallest to 1.5 times the largest; where images show a background too, from 0.3 to 5 times. Cameras that
    look around: from 0.2 to 6 times their farthest distance from their middle.
    """
    centre, forward = c2w[:, :3, 3], c2w[:, :3, 2]
    across = np.eye(3) - forward[:, :, None] * forward[:, None, :]  # (N, 3, 3): distance from each axis
    total = across.sum(0)
    point = np.linalg.pinv(total, rcond=1e-6) @ (across @ centre[:, :, None])[..., 0].sum(0)
    z = ((point - centre) * forward).sum(1)                                   # (N,)
    off = np.linalg.norm((across @ (point - centre)[:, :, None])[..., 0], axis=1)
    radius = float(np.linalg.norm(centre - centre.mean(0), axis=1).max())
    if radius < 1e-6:
        raise DataError(f"{where}: all cameras are in one place: near and far cannot be told; give "
                        "--near and --far")
    if z.min() > 0 and off.mean() < 0.3 * z.mean() and np.linalg.cond(total) < 1e4:
        near, far = (0.5, 1.5) if transparent else (0.3, 5)
        return Range(near * float(z.min()), far * float(z.max()),
                     "guessed from the poses: the cameras look at one thing")
    return Range(0.2 * radius, 6 * radius, "guessed from the poses: how far the cameras move")


def chosen_near_far(found: Range | None, near: float | None, far: float | None, source: Path) -> Range | None:
    """--near and --far over what was found. None: metres, and 07's own range."""
    if not (near or far or found):
        return None
    why = found.why if found else "metres"
    if near and far:
        why = "as you said"
    elif near or far:
        why += ", and as you said"
    low, high, _ = found or (0.3, 8.0, "")
    near, far = near or low, far or high
    if not 0 < near < far < 1e9:
        raise DataError(f"{source}: near {near:.4g} and far {far:.4g} ({why}) are no range; give --near and "
                        "--far")
    return Range(near, far, why)
