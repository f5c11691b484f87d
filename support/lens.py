"""Lenses: where a distorting camera sees a ray, and photographs resampled to one pinhole camera.

A scene in ScanNet's layout has one pinhole camera. Photographs with lens distortion, or with cameras of their
own, are resampled to it. Two kinds of lens are known, both OpenCV's. With r the ray's distance from the axis:

    perspective   r (1 + k1 r^2 + k2 r^4 + k3 r^6 + k4 r^8), and p1, p2 for a lens that is not centred
    fisheye       t (1 + k1 t^2 + k2 t^4 + k3 t^6 + k4 t^8), t the angle atan(r): equidistant

The fourth perspective term is nerfstudio's and RealityCapture's. (OpenCV's own k4 is a denominator.)

Test: pytest tests/test_tool_import_lens.py
"""
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from support.files import DataError


class Camera(NamedTuple):
    """A camera in pixels (centres at integers) and the distortion of its lens."""
    fx: float
    fy: float
    cx: float
    cy: float
    k1: float = 0.0
    k2: float = 0.0
    k3: float = 0.0
    k4: float = 0.0
    p1: float = 0.0
    p2: float = 0.0
    fisheye: bool = False

    def matrix(self) -> np.ndarray:
        """K (3, 3)."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]])

    def straight(self) -> bool:
        """A pinhole camera: no distortion."""
        return not any(self[4:])


def distorted(u: np.ndarray, v: np.ndarray, camera: Camera, target: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Where the ray through pixel (u, v) of the pinhole camera `target` falls in the image of camera."""
    x, y = (u - target.cx) / target.fx, (v - target.cy) / target.fy
    r2, c = x * x + y * y, camera
    if camera.fisheye:
        r = np.sqrt(r2)
        t = np.arctan(r)
        t2 = t * t
        bent = t * (1 + t2 * (c.k1 + t2 * (c.k2 + t2 * (c.k3 + t2 * c.k4))))
        scale = np.divide(bent, r, out=np.ones_like(r), where=r > 1e-9)
        return c.fx * x * scale + c.cx, c.fy * y * scale + c.cy
    radial = 1 + r2 * (c.k1 + r2 * (c.k2 + r2 * (c.k3 + r2 * c.k4)))
    xd = x * radial + 2 * c.p1 * x * y + c.p2 * (r2 + 2 * x * x)
    yd = y * radial + c.p1 * (r2 + 2 * y * y) + 2 * c.p2 * x * y
    return c.fx * xd + c.cx, c.fy * yd + c.cy


def folds(camera: Camera, r2: float) -> bool:
    """Does the lens map two rays, up to sqrt(r2) from the axis, to one pixel? Its formula then means
    nothing."""
    x2 = np.linspace(0, np.arctan(np.sqrt(r2)) ** 2 if camera.fisheye else r2, 50)
    c = camera
    slope = 1 + x2 * (3 * c.k1 + x2 * (5 * c.k2 + x2 * (7 * c.k3 + x2 * 9 * c.k4)))
    return bool((slope <= 0).any())


def one_camera(cameras: list[Camera], size: tuple[int, int], where: str) -> Camera:
    """The pinhole camera for the whole scene: theirs if all are one without distortion, else their median,
    zoomed in until all of them see its every pixel. DataError beyond twice the focal length, or for a lens
    that folds the image back on itself."""
    kinds = set(cameras)
    if len(kinds) == 1 and cameras[0].straight():
        return cameras[0]
    h, w = size
    edges = [(u, v) for u in range(w) for v in (0, h - 1)] + [(u, v) for v in range(h) for u in (0, w - 1)]
    border = np.array(edges, float).T                                         # (2, P)
    middle = np.median(np.array(cameras, float), axis=0)
    for zoom in np.arange(1, 2, 0.01):
        target = Camera(*(float(x) for x in middle[:4] * [zoom, zoom, 1, 1]))
        r2 = max((((border.T - middle[2:4]) / [target.fx, target.fy]) ** 2).sum(1))
        if any(folds(camera, r2) for camera in kinds):
            continue
        seen = np.array([distorted(*border, camera, target) for camera in kinds])             # (c, 2, P)
        if seen.min() >= -0.5 and (seen.max(axis=(0, 2)) <= [w - 0.5, h - 0.5]).all():
            return target
    raise DataError(f"{where}: no pinhole camera fits into all frames (cameras too different, or distortion "
                    "too strong); undistort them first (COLMAP: colmap image_undistorter)")


def resample(image: np.ndarray, camera: Camera, target: Camera, mode: str = "bilinear") -> np.ndarray:
    """What a pinhole camera `target` would have seen in place of `camera` with its lens: image (H, W, 3) or
    (H, W), same size."""
    h, w = image.shape[:2]
    u, v = distorted(*np.meshgrid(np.arange(w), np.arange(h)), camera, target)
    grid = torch.from_numpy(np.stack([2 * u / (w - 1) - 1, 2 * v / (h - 1) - 1], axis=-1))[None]
    x = torch.from_numpy(image.reshape(h, w, -1).astype(np.float64)).permute(2, 0, 1)[None]
    y = F.grid_sample(x, grid, mode=mode, padding_mode="border", align_corners=True)
    return y[0].permute(1, 2, 0).round().numpy().astype(image.dtype).reshape(image.shape)


def check_middle(K: np.ndarray, size: tuple[int, int], where: str) -> None:
    """DataError where the principal point lies far from the middle of an image of size (H, W): more than 15%
    of a side, or more than 4% in both by one factor. The numbers are then most likely of another size."""
    (h, w), (cx, cy) = size, K[:2, 2]
    x, y = (cx + 0.5) / w, (cy + 0.5) / h                                     # 1/2 in the middle
    if max(abs(x - 0.5), abs(y - 0.5)) > 0.15 or min(abs(x - 0.5), abs(y - 0.5)) > 0.04 > 4 * abs(x - y):
        raise DataError(f"{where}: its principal point {cx:.1f}, {cy:.1f} is far from the middle of images "
                        f"of {w}x{h}: the numbers seem to belong to about {2 * cx + 1:.0f}x{2 * cy + 1:.0f}; "
                        "scale fx, cx by the ratio of the widths and fy, cy by that of the heights, or use "
                        "images of that size")


def check_same_view(K: np.ndarray, size: tuple, depth_K: np.ndarray, depth_size: tuple, where: str) -> None:
    """DataError where the colour and the depth camera, which sit side by side, see fields of view that differ
    by more than half."""
    for axis, name in ((0, "wide"), (1, "high")):
        side, depth_side = size[1 - axis], depth_size[1 - axis]
        ratio = (K[axis, axis] / side) / (depth_K[axis, axis] / depth_side)
        if not 1 / 1.5 < ratio < 1.5:
            angles = [2 * np.degrees(np.arctan(s / 2 / k[axis, axis]))
                      for s, k in ((side, K), (depth_side, depth_K))]
            raise DataError(f"{where}: the colour camera is {angles[0]:.0f} degrees {name}, the depth camera "
                            f"{angles[1]:.0f}: the numbers of one belong to another image size (colour is "
                            f"{size[1]}x{size[0]}, depth {depth_size[1]}x{depth_size[0]}); correct them")
