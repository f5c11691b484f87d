"""Rooms photographed as the paper's two colour datasets are, in their layouts, for Table 6.

All around (Blender's transforms.json, NeRF's synthetic scenes) and facing forward (LLFF's poses_bounds.npy).
Test: pytest tests/test_tool_tables.py
"""
import json
import math
from importlib import import_module
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from tqdm import tqdm

from support.files import write_atomically

rooms = import_module("00_rooms")              # make_room, intrinsics, render


def look_at(eye: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """An upright camera at eye (3,) that looks at centre (3,), z up -> c2w (4, 4), OpenCV axes."""
    forward = (centre - eye) / np.linalg.norm(centre - eye)
    right = np.cross(forward, [0.0, 0, 1])
    right /= np.linalg.norm(right)
    c2w = np.eye(4)
    c2w[:3] = np.stack([right, np.cross(forward, right), forward, eye], axis=1)
    return c2w


def orbit(room) -> np.ndarray:
    """24 cameras around a room, on the free way of its walks, looking across its middle: c2w (24, 4, 4)."""
    angle = np.arange(24) * 2 * np.pi / 24
    x, y, a, b = room.loop
    height = 1.4 + 0.2 * (np.arange(24) % 2)
    eyes = np.stack([x + a * np.cos(angle), y + b * np.sin(angle), height], axis=1)               # (24, 3)
    return np.stack([look_at(eye, np.array([0, 0, 1.1])) for eye in eyes])


def forward_facing(room) -> np.ndarray:
    """24 cameras in a grid of 6 x 4, 0.5 m wide, that all look the same way: c2w (24, 4, 4)."""
    first = orbit(room)[0]
    poses = np.repeat(first[None], 24, axis=0)
    for i, pose in enumerate(poses):
        pose[:3, 3] += 0.1 * (i % 6 - 2.5) * first[:3, 0] + 0.08 * (i // 6 - 1.5) * first[:3, 1]
    return poses


def write_image(path: Path, image: np.ndarray) -> None:
    """A picture (H, W, 3) uint8 as png."""
    write_atomically(path, lambda file: iio.imwrite(file, image, extension=".png"))


def write_blender(folder: Path, images: list[np.ndarray], K: np.ndarray, c2w: np.ndarray) -> None:
    """Images (H, W, 3) uint8, K (3, 3), c2w (N, 4, 4) -> transforms.json: OpenGL axes, the horizontal
    angle."""
    frames = []
    for i, (image, pose) in enumerate(zip(images, c2w)):
        write_image(folder / "images" / f"r_{i}.png", image)
        matrix = (pose * [1, -1, -1, 1]).tolist()                             # y up, z back
        frames.append({"file_path": f"./images/r_{i}", "transform_matrix": matrix})
    angle = 2 * math.atan(images[0].shape[1] / (2 * K[0, 0]))
    text = json.dumps({"camera_angle_x": angle, "frames": frames}, indent=1)
    write_atomically(folder / "transforms.json", lambda file: file.write(text.encode()))


def write_llff(folder: Path, images: list[np.ndarray], K: np.ndarray, c2w: np.ndarray,
               depths: list[np.ndarray]) -> None:
    """The same as poses_bounds.npy: rows of [R|t|hwf], axes down, right, back; then near and far."""
    rows = []
    for i, (image, pose, depth) in enumerate(zip(images, c2w, depths)):
        write_image(folder / "images" / f"image{i:03d}.png", image)
        hwf = [*image.shape[:2], K[0, 0]]
        axes = np.stack([pose[:3, 1], pose[:3, 0], -pose[:3, 2], pose[:3, 3], hwf], axis=1)       # (3, 5)
        rows.append(np.concatenate([axes.flatten(), np.quantile(depth, [0.001, 0.999])]))
    write_atomically(folder / "poses_bounds.npy", lambda file: np.save(file, np.stack(rows)))


def write_captures(folder: Path, seeds: range, width: int, height: int) -> dict[str, Path]:
    """Captures of these rooms, those made before kept -> {"blender": ..., "llff": ...}, their folders."""
    found = {layout: folder / layout for layout in ("blender", "llff")}
    for seed in tqdm(seeds, desc="captures", unit="room", leave=False):
        blender, llff = (root / f"room{seed}" for root in found.values())
        if (llff / "poses_bounds.npy").exists():                              # the last that is written
            continue
        room = rooms.make_room(seed)
        K, around, facing = rooms.intrinsics(room, width, height), orbit(room), forward_facing(room)
        write_blender(blender, [rooms.render(room, pose, K, height, width)[0] for pose in around], K, around)
        images, depths, _ = zip(*(rooms.render(room, pose, K, height, width) for pose in facing))
        write_llff(llff, images, K, facing, depths)
    return found
