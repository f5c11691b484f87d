"""How much of a scene must be doubted: the share of pixels that some source view has in its image without
seeing them, and the number of source views to a pixel. Computed from true depth maps.

Letters in shapes: V source views, H, W image.
"""
from typing import NamedTuple

import numpy as np

# of 24 frames of a walk, what 01's protocol takes of the middle 20: eight source views and four test views
SOURCES, TARGETS = [2, 5, 7, 10, 12, 15, 17, 20], [4, 9, 14, 19]


class Shares(NamedTuple):
    """Averages over pixels."""
    occluded: float  # share of pixels that at least one source view has in its image and does not see
    views: float     # source views that have the pixel's point in their image, seen or not


def in_view(depth, K, c2w, target, source):
    """Two masks (H, W) over the pixels of view `target`: is the point in the image of view `source`, and does
    it lie behind what that view sees there, by more than 5 cm and 3% of its depth?

    depth (N, H, W) metres along z, 0 where unknown; K (3, 3); c2w (N, 4, 4). A point without a depth is in no
    image. Where the source's own depth is unknown, nothing hides.
    """
    height, width = depth.shape[1:]
    v, u = np.mgrid[:height, :width]
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(K).T                   # (H, W, 3)
    points = (rays * depth[target][..., None]) @ c2w[target][:3, :3].T + c2w[target][:3, 3]
    local = (points - c2w[source][:3, 3]) @ c2w[source][:3, :3]                         # (H, W, 3)
    z = local[..., 2]
    x, y, _ = np.moveaxis(local @ K.T / np.maximum(z, 1e-6)[..., None], -1, 0)
    inside = (depth[target] > 0) & (z > .05)
    inside &= (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    columns, rows = (np.where(inside, np.rint(a), 0).astype(int) for a in (x, y))
    surface = depth[source][rows, columns]                                              # what is seen there
    return inside, inside & (surface > 0) & (z - surface > np.maximum(.05, .03 * z))


def shares(depth, K, c2w, sources=SOURCES, targets=TARGETS):
    """Shares over all pixels with a depth of the target views; arguments as in_view's, and two lists."""
    depth = np.asarray(depth)
    occluded, views, pixels = 0, 0, 0
    for target in targets:
        masks = [in_view(depth, K, c2w, target, source) for source in sources]
        inside, behind = map(np.stack, zip(*masks))                                     # (V, H, W) each
        occluded, views = occluded + behind.any(0).sum(), views + inside.sum()
        pixels += (depth[target] > 0).sum()
    return Shares(float(occluded / max(pixels, 1)), float(views / max(pixels, 1)))
