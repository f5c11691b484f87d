"""Which pixels can see a part: casting only their rays makes a picture of 100 parts affordable."""
import numpy as np


def rectangles(parts, c2w, K, height, width):
    """(p, (rows, columns)) of every part that may be in the picture: slices of pixels around its eight
    corners there; all pixels where a corner lies behind the camera. The room's own six faces are left out."""
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    corners = parts["centre"][:, None] + np.einsum("pij,cj,pj->pci", parts["rot"], signs, parts["half"])
    cam = (corners - c2w[:3, 3]) @ c2w[:3, :3]  # (P, 8, 3)
    front = cam[..., 2] > .05  # (P, 8)
    uv = cam[..., :2] / np.maximum(cam[..., 2:], .05) * (K[0, 0], K[1, 1]) + (K[0, 2], K[1, 2])  # (P, 8, 2)
    lo, hi = np.floor(uv.min(1)).astype(int), np.ceil(uv.max(1)).astype(int) + 1  # (P, 2)
    whole = ~front.all(1, keepdims=True)
    lo = np.where(whole, 0, np.clip(lo, 0, (width, height)))
    hi = np.where(whole, (width, height), np.clip(hi, 0, (width, height)))
    for p in range(6, len(corners)):
        (x0, y0), (x1, y1) = lo[p], hi[p]
        if front[p].any() and x0 < x1 and y0 < y1:
            yield p, np.s_[y0:y1, x0:x1]
