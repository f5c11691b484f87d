"""What a ray needs to know of the surface that it hits: its normal, and where on the face the point is."""
from typing import NamedTuple

import numpy as np

from support.rooms.parts import BALL, BOX, CYLINDER


class Surface(NamedTuple):
    """N points on faces of parts, in float32."""
    normal: list       # 3 arrays (N,): the unit normal in world axes, towards the viewer
    a: np.ndarray      # (N,) place across the face in -1…1 (radians around a round side)
    b: np.ndarray      # (N,) place up the face in -1…1
    ha: np.ndarray     # (N,) half the face's size across, metres
    hb: np.ndarray     # (N,) and up
    front: np.ndarray  # (N,) bool: the side at the part's +y, which has doors and spines


def surface_at(parts, part, point, ray):
    """Surface of N hits: parts as in Room, part (N,) index into them, point and ray 3 arrays (N,) each."""
    half, rot = parts["half"].astype(np.float32), parts["rot"].astype(np.float32)
    q = _to_unit(half, rot, parts["centre"].astype(np.float32), part, point)
    shape, h = parts["shape"][part], half.T[:, part]  # (N,), (3, N)
    lid = (shape == CYLINDER) & (np.abs(q[2]) > .9995)
    axis = np.where(shape == BOX, np.abs(q).argmax(0), np.where(lid, 2, 3))  # of the face; 3: a round side
    around = np.flatnonzero(axis == 3)

    local = [np.where(axis == k, np.sign(q[k]), 0) for k in range(3)]  # the normal in the part's axes
    gradient = q[:, around] / h[:, around]
    gradient[2] *= shape[around] == BALL  # a cylinder's side has no slope along its axis
    gradient /= np.sqrt((gradient * gradient).sum(0)) + 1e-9
    for k in range(3):
        local[k][around] = gradient[k]
    normal = [sum(rot[:, k, j][part] * local[j] for j in range(3)) for k in range(3)]
    away = sum(normal[k] * ray[k] for k in range(3)) > 0
    normal = [n * np.where(away, -1, 1).astype(np.float32) for n in normal]  # the room is seen from inside

    a, b = np.where(axis == 0, q[1], q[0]), np.where(axis == 2, q[1], q[2])
    ha, hb = np.where(axis == 0, h[1], h[0]), np.where(axis == 2, h[1], h[2])
    a[around] = np.arctan2(q[1][around], q[0][around])  # a round side is unrolled
    return Surface(normal, a, b, ha, hb, (axis == 1) & (q[1] > 0))


def _to_unit(half, rot, centre, part, point):
    """The points in the frames where their parts are the unit cube, cylinder or ball: (3, N)."""
    inverse = rot.transpose(0, 2, 1) / half[:, :, None]  # (P, 3, 3)
    offset = -np.einsum("pij,pj->pi", inverse, centre)   # (P, 3)
    return np.stack([sum(inverse[:, k, j][part] * point[j] for j in range(3)) + offset[:, k][part]
                     for k in range(3)])
