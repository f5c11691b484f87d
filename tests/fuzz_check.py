"""What a fuzz case that succeeded has read, against what is known: 3D points on the walls of conftest's box.

A point has one colour. So wherever 01's project() puts it in a frame of 01's Scene, at three quarters of its
size, the image must show that colour. What the damage itself made false is left out: a frame whose image or
pose holds other bytes.
"""
import hashlib
import json
import re
from importlib import import_module

import numpy as np
import torch
import torch.nn.functional as F
from conftest import HALF, LOST, NUMBERS, camera

from support.files import DataError, image_size

data = import_module("01_data")
LEVELS, WORST = 10, 40                         # of 255: what a jpg and a resampling may change
LEFT_OUT = re.compile(r"(\d+) more without a pose"
                      r"|^ *(?:\S+: )?(\d+)(?: of \d+)? (?:images|frames|photographs) "
                      r".*(?:left out|twice)", re.M)


def points_and_colours() -> tuple[torch.Tensor, torch.Tensor]:
    """4,000 points on the walls (P, 3), and their colours (P, 3) in 0 .. 255."""
    points = np.random.default_rng(0).uniform(-1, 1, (4000, 3)) * HALF
    points /= np.abs(points / HALF).max(1, keepdims=True)
    waves = points @ np.array([[7.0, 5, -4], [-4, 8, 5], [5, -3, 8]]).T
    return torch.from_numpy(points).float(), torch.from_numpy(127.5 + 100 * np.sin(waves)).float()


POINTS, COLOURS = points_and_colours()


def errors(views) -> list[float]:
    """For each frame, by how many levels the image differs from the known points' colours: half of the points
    by less, and all but 3% by less than WORST / LEVELS as much. inf where no known point is in it."""
    uv, z = data.project(POINTS, views.K, views.c2w)                          # (P, N, 2), (P, N)
    N, _, h, w = views.images.shape
    grid = 2 * (uv + 0.5) / torch.tensor([w, h]) - 1
    grid = grid.transpose(0, 1)[:, None]                                      # (N, 1, P, 2)
    shown = 255 * F.grid_sample(views.images, grid, align_corners=False)[:, :, 0].transpose(1, 2)  # (N, P, 3)
    mask = torch.ones(N, h, w) if views.mask is None else views.mask.float()
    mask = -F.max_pool2d(-mask[:, None], 3, 1, 1)                             # with its neighbours
    seen = F.grid_sample(mask, grid, mode="nearest", align_corners=False)[:, 0, 0] > 0            # (N, P)
    margin = (uv > 1).all(-1) & (uv[..., 0] < w - 2) & (uv[..., 1] < h - 2) & (z > 0.3)
    use, wrong = seen & margin.T, (shown - COLOURS).abs().mean(-1)            # (N, P)
    inside, result = margin.sum(0), []
    for i in range(N):
        half, most = wrong[i, use[i]].quantile(torch.tensor([0.5, 0.97])) if use[i].any() else (0.0, 0.0)
        result.append(float(max(half, most * LEVELS / WORST)) if inside[i] > 20 else torch.inf)
    return result


def readable(scene) -> list[int]:
    """Frames that can be decoded; the run may not have read the others."""
    good = []
    for i in range(len(scene)):
        try:
            scene.load(i)
            good.append(i)
        except DataError:
            pass
    return good


def misread(scene, origin: dict[int, int], free: set[int]) -> str:
    """What is wrong in a scene, in words, or "". origin: frame number -> which of the box's cameras took it.
    Frames of `free` cameras may hold anything."""
    known = [i for i in readable(scene) if origin.get(scene.frames[i]) not in free | {None}]
    views = scene.views(known) if known else None
    for i, wrong in zip(known, errors(views) if known else ()):
        number, taken = scene.frames[i], origin[scene.frames[i]]
        moved = np.abs(scene.poses[i] - camera(taken)).max()
        if moved > 1e-4:
            return f"frame {number}: another pose, by {moved:.3g}"
        if wrong > LEVELS:
            return f"frame {number}: known points are {wrong:.0f} levels off"
    return depth_misread(views, scene) if known and (scene.folder / "import.json").exists() else ""


def depth_misread(views, scene) -> str:
    """The same of depth maps: a pixel's point is on a wall of the box."""
    for i in range(len(views.images)):
        v, u = torch.nonzero(views.depth[i] > 0, as_tuple=True)
        pixels = torch.stack([u, v], 1).float()
        points = data.unproject(pixels, views.depth[i, v, u], views.K[i], views.c2w[i])
        off = ((points.abs() / torch.from_numpy(HALF)).amax(1) - 1).abs()
        if len(off) and off.median() > 0.03:
            return f"frame {scene.frames[i]}: depths are {100 * off.median():.0f}% off"
    return ""


# ---------------------------------------------------------------------------------------- an imported capture

def digests(folder) -> dict[str, str]:
    """The files of a folder, those that can be read, and what is in them."""
    return {str(path.relative_to(folder)): hashlib.sha1(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.stat().st_size < 10 ** 8 and not path.is_symlink()}


def camera_of(name: str) -> int | None:
    """Which camera took images/0007.png, rgb/rgb_7.png, or a copy, copy.png, of it."""
    number = re.search(r"\d+", name.rsplit("/", 1)[-1])
    return int(number[0]) if number else 7 if "copy" in name else None


def import_misread(out, truth, before: dict, after: dict, screen: str) -> str:
    """What is wrong with an imported capture, in words, or "". before and after the damage: digests()."""
    if truth.refused and before == after:
        return "it must be refused"
    folder, = (path for path in out.iterdir() if (path / "color").is_dir())
    about = json.loads((folder / "import.json").read_text())["frames"]
    counted = sum(int(a or b) for a, b in LEFT_OUT.findall(screen))
    if before == after and len(about) + counted < truth.made:
        return f"{len(about)} of {truth.made} photographs came in, {counted} were counted"
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    pictures = {name for name in changed if name.lower().endswith((".png", ".jpg")) and "/" in name}
    if changed - pictures:                    # what says where the cameras are
        return ""
    free = {camera_of(name) for name in pictures}
    origin = {frame["number"]: camera_of(frame.get("image", str(frame["number"]))) for frame in about}
    h, w = (side if side <= 32 else 3 * side // 4 for side in image_size(next((folder / "color").iterdir())))
    return misread(data.Scene(folder, h, w, out.parent / "check"), origin, free)


# ----------------------------------------------------------------------------------- a scene of 07's and 08's

# these acts say nothing false of a camera that is believed, or must be refused
HONEST = {"rename", "remove", "lists", "sent", "names", "titles", "cameras", "bits", "padded", "again",
          "fewer", "frames25k", "masks", "parts"}


def content(path) -> bytes:
    """What is in a file; nothing of what is none, or too large to be one of the good scene's."""
    return path.read_bytes() if path.is_file() and path.stat().st_size < 10 ** 6 else b""


def export_misread(good, scans, acts: list[str]) -> str:
    """What is wrong with a scene in ScanNet's layout that was read, in words, or ""."""
    folder = next((path for path in scans.iterdir() if (path / "color").is_dir()), None)
    if folder is None:
        return ""
    there = {path.read_bytes(): NUMBERS.index(int(path.stem)) for path in (good / "color").iterdir()}
    poses = {path.read_bytes() for path in (good / "pose").iterdir()}
    scene, origin, free = data.Scene(folder, 36, 48, scans.parent / "check"), {}, {NUMBERS.index(LOST)}
    lies = set(acts) - HONEST
    same = content(good / "intrinsic/intrinsic_color.txt") == content(scene.camera_path("color"))
    if lies and not same:
        return ""
    for number in scene.frames:
        origin[number] = taken = there.get(content(scene.listing.path("color", number)))
        if lies and ("swap" in lies or content(scene.listing.files["pose"][number]) not in poses):
            free.add(taken)
    return misread(scene, origin, free)
