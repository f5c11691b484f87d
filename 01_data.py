"""Cameras, rays, and scenes: posed photographs in ScanNet's layout, read at training resolution.

A scene is a folder of posed photographs. support/frames.py says what its files are. A training example is
one target view and V source views around it. Depth is read for evaluation and pictures only: no depth sensor
is an input of S-Ray. (tools/import_scenes.py turns other layouts into this one.)

Conventions, everywhere in this project:
- Poses are c2w, camera to world. Axes are OpenCV's: x right, y down, z forward. Lengths are metres.
- Depth is along z, not along the ray.
- Pixel centres are integers, the first one 0. Resizing an image by f per axis moves a centre c to
  (c + 1/2) f - 1/2.
- Labels are indices 0..19 into CLASSES, or IGNORE (-1) where unlabelled. Unlabelled is not a class.

Dimension key: R rays, V source views, N frames, H, W image size, L classes.
Run: python 01_data.py     Test: pytest tests/test_01_data.py
"""
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from support.files import DataError, run_script
from support.frames import MASKED, SceneFolder, unpack
from support.labels import IGNORE, SCANNET
from support.labels import Classes as Classes  # for users of this file

rooms = import_module("00_rooms")             # make_rooms: a scene for those who have none

CLASSES = SCANNET.names                       # L = 20
PALETTE = np.array(SCANNET.colours, np.uint8)                                           # (L, 3)


# ------------------------------------------------------------------------------------------ cameras and rays

def scale_intrinsics(K: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:  # exercise
    """K (..., 3, 3) of an image of size old (H, W) -> K of the same image resized to new (H, W).

    Each axis has its own factor f. A pixel centre c moves to (c + 1/2) f - 1/2: the focal length scales by f,
    and the principal point moves like a centre.
    """
    K = K.clone()
    for axis, f in ((0, new[1] / old[1]), (1, new[0] / old[0])):
        K[..., axis, :2] *= f
        K[..., axis, 2] = (K[..., axis, 2] + 0.5) * f - 0.5
    return K


def pixel_grid(height: int, width: int) -> Tensor:
    """All pixel centres (u, v), row by row: (H*W, 2) float32."""
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([u, v], dim=-1).view(-1, 2).float()


def rays(pixels: Tensor, K: Tensor, c2w: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels (R, 2) of one camera -> origin (3,), directions (R, 3): origin + z * direction has depth z.

    A direction is one long along the camera's z axis. Its own length is more, except in the middle.
    """
    homogeneous = torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=-1)           # (R, 3)
    directions = homogeneous @ (c2w[:3, :3] @ torch.linalg.inv(K)).T                    # (R, 3)
    return c2w[:3, 3], directions


def unproject(pixels: Tensor, depth: Tensor, K: Tensor, c2w: Tensor) -> Tensor:  # exercise: pixel -> world
    """Pixels (R, 2) at depth (R,) metres along z -> world points (R, 3)."""
    origin, directions = rays(pixels, K, c2w)
    return origin + depth[:, None] * directions


def project(points: Tensor, K: Tensor, c2w: Tensor) -> tuple[Tensor, Tensor]:  # exercise: K [R^T | -R^T t]
    """World points (..., 3) into V cameras, K (V, 3, 3), c2w (V, 4, 4) -> pixels (..., V, 2), depth (..., V).

    A camera is K [R^T | -R^T t], 3x4. V of them stack to 3V x 4: all views in one matrix product. Behind the
    camera (z <= 0) the pixel is meaningless but finite; callers mask by z.
    """
    V = K.shape[0]
    R, t = c2w[:, :3, :3], c2w[:, :3, 3]
    KR = K @ R.transpose(1, 2)                                                          # (V, 3, 3)
    shift = -(KR @ t[:, :, None])[:, :, 0]                                              # (V, 3)
    uvz = points.reshape(-1, 3) @ KR.reshape(V * 3, 3).T + shift.view(-1)               # (P, 3V)
    uvz = uvz.view(*points.shape[:-1], V, 3)                                            # (..., V, 3)
    z = uvz[..., 2]                                                                     # (..., V)
    safe = torch.where(z.abs() < 1e-6, torch.full_like(z, 1e-6), z)
    return uvz[..., :2] / safe[..., None], z


# ------------------------------------------------------------------------------------ a frame at another size

def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Colour image (h, w, 3) uint8 -> (H, W, 3) uint8, antialiased bilinear, half-pixel centres."""
    if image.shape[:2] == (height, width):
        return image
    x = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()    # (1, 3, h, w)
    x = F.interpolate(x, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
    return x[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()                   # (H, W, 3)


def nearest_pixels(new: int, old: int) -> np.ndarray:
    """For each of `new` pixels, the one of `old` whose cell holds its centre: floor((c + 1/2) old / new)."""
    return ((np.arange(new) + 0.5) * old / new).astype(np.int64)


# ---------------------------------------------------------------------------------------------------- a scene

@dataclass
class Views:
    """N posed frames.

    images (N, 3, H, W) in [0, 1]; K (N, 3, 3); c2w (N, 4, 4); labels (N, H, W) int64, IGNORE where there is
    none; depth (N, H, W) metres along z, 0 where unknown (a truth, never an input);
    near_far (N, 2) where the scene has a range of its own, else None: the model's holds. mask (N, H, W) where
    the scene has masks, else None: false where a pixel is no truth and no source.
    """
    images: Tensor
    K: Tensor
    c2w: Tensor
    labels: Tensor
    depth: Tensor
    near_far: Tensor | None = None
    mask: Tensor | None = None

    def __getitem__(self, index) -> "Views":
        return Views(*(None if x is None else x[index] for x in vars(self).values()))

    def to(self, device) -> "Views":
        """The same views on another device."""
        return Views(*(None if x is None else x.to(device, non_blocking=True) for x in vars(self).values()))


class Scene(SceneFolder):
    """Scene(folder, height, width, cache="cache", every=1, labels=None, crop=0): one scene's frames at HxW.

    SceneFolder finds, checks and caches the files. From it come frames (N file numbers), poses, native_K and
    size of the colour images, label_table, range; read(frame), a frame's files as they are on disk; and
    load(index), a frame decoded, out of the cache if it is there.
    """

    @cached_property
    def c2w(self) -> Tensor:
        """Poses of the frames (N, 4, 4)."""
        return torch.tensor(self.poses, dtype=torch.float32)

    @cached_property
    def K(self) -> Tensor:
        """Intrinsics (3, 3) at height x width, from the colour images' real size."""
        return scale_intrinsics(torch.tensor(self.native_K), self.size, (self.height, self.width))

    def decode(self, frame: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A frame at H x W: colour (H, W, 3) uint8, classes (H, W) int8, depth (H, W) uint16 millimetres."""
        colour, raw, depth = self.read(frame)
        labels = np.full((self.height, self.width), IGNORE, np.int8) if raw is None else self.classify(raw)
        depth = np.zeros((self.height, self.width), np.uint16) if depth is None else self.align(depth)
        return resize_image(colour, self.height, self.width), *self.hide(frame, labels, depth)

    def classify(self, raw: np.ndarray) -> np.ndarray:
        """Raw label ids (h, w) -> classes (H, W) int8. Ids are not averaged: each pixel takes the nearest."""
        rows, columns = nearest_pixels(self.height, raw.shape[0]), nearest_pixels(self.width, raw.shape[1])
        raw = raw[rows[:, None], columns].astype(np.int64)                              # (H, W)
        known = raw < len(self.label_table)
        return np.where(known, self.label_table[raw * known], np.int8(IGNORE))

    def align(self, depth: np.ndarray) -> np.ndarray:
        """A depth map (h, w) of the depth camera -> (H, W) of the colour camera, 0 where it sees nothing.

        ScanNet's depth camera has a size and intrinsics of its own, and the colour camera's pose. So the ray
        (x, y, 1) of a pixel meets the depth image at D (x, y, 1).
        """
        K, D, (h, w) = self.K, torch.from_numpy(self.read_camera("depth")), depth.shape
        x = (torch.arange(self.width) - K[0, 2]) / K[0, 0]                              # (W,)
        y = (torch.arange(self.height) - K[1, 2]) / K[1, 1]                             # (H,)
        u = torch.round(x * D[0, 0] + D[0, 2]).long().numpy()
        v = torch.round(y * D[1, 1] + D[1, 2]).long().numpy()[:, None]
        inside = (v >= 0) & (v < h) & (u >= 0) & (u < w)                                # (H, W)
        nearest = depth[v.clip(0, h - 1), u.clip(0, w - 1)]                             # (H, W)
        return (nearest * inside).astype(np.uint16)

    def views(self, indices) -> Views:
        """These frames (0..N-1) as Views."""
        indices = [int(i) for i in indices]
        packed = np.stack([self.load(i) for i in indices])                              # (N, H, W, 6)
        colour, labels, depth = map(torch.from_numpy, unpack(packed))
        near_far = torch.tensor(self.range).expand(len(indices), 2) if self.range else None
        return Views(images=colour.permute(0, 3, 1, 2).float() / 255,
                     K=self.K.expand(len(indices), 3, 3), c2w=self.c2w[indices],
                     labels=labels.long().clamp(min=IGNORE), depth=depth.float() / 1000, near_far=near_far,
                     mask=labels != MASKED if self.has_masks else None)


# ----------------------------------------------------------------------------------- which views look at what

def nearest_views(target: Tensor, c2w: Tensor, count: int, angle_weight: float = 1.0,  # exercise
                  among: list[int] | None = None) -> list[int]:
    """The `count` cameras of c2w (N, 4, 4), or of some `among` them, nearest to the pose target (4, 4).

    Nearest first. Distance in metres plus angle_weight metres per radian between the viewing directions: a
    camera at the same place that looks the other way is no help (docs/choices.md).
    """
    distance = (c2w[:, :3, 3] - target[:3, 3]).norm(dim=-1)                             # (N,)
    angle = torch.arccos((c2w[:, :3, 2] @ target[:3, 2]).clamp(-1, 1))                  # (N,)
    order = torch.argsort(distance + angle_weight * angle, stable=True).tolist()
    allowed = range(len(c2w)) if among is None else set(among)
    return [i for i in order if i in allowed][:count]


def unit(scene: Scene) -> float:
    """How much of the scene's own unit is a metre: 1, or with a near_far.txt its far over 8 (a room's)."""
    return scene.near_far[1] / 8 if scene.near_far else 1.0


def training_pair(scene: Scene, views: int, generator: torch.Generator, pool: int = 12,
                  frames: list[int] | None = None, angle_weight: float = 1.0) -> tuple[int, list[int]]:
    """A random target frame and `views` source frames out of its `pool` nearest, never the target itself. All
    are drawn from `frames`, if given (fine-tuning). DataError where they are too few."""
    frames = list(range(len(scene)) if frames is None else frames)
    if len(frames) < views + 1:
        raise DataError(f"{scene.folder}: {len(frames)} usable frames, but {views} source views and a target "
                        "are asked for; leave this scene out or lower --views")
    target = frames[int(torch.randint(len(frames), (), generator=generator))]
    others = [i for i in frames if i != target]
    near = nearest_views(scene.c2w[target], scene.c2w, max(pool, views), angle_weight * unit(scene), others)
    sources = [near[i] for i in torch.randperm(len(near), generator=generator)[:views].tolist()]
    assert target not in sources
    return target, sources


def protocol(scene: Scene) -> tuple[list[int], list[int], list[int]]:
    """Section 1 of the supplement: 20 nearby views -> 8 source, 8 for fine-tuning, 4 test (frame indices).

    Nearby: the middle frame and the 19 nearest to it, in time order. The 4 test views are every fifth of the
    20. The other 16 alternate between source and fine-tuning, so that every test view lies between source
    views. Where the scene has a split, nearby counts from its middle test frame, the 4 are test frames and
    the 16 training frames. DataError where there are fewer than 20.
    """
    train, test = scene.parts()
    if len(train) < (16 if test else 20):
        raise DataError(f"{scene.folder}: {len(train)} usable frames, but the protocol takes 20 (8 source, 8 "
                        "fine-tuning, 4 test); leave this scene out")
    middle = scene.c2w[test[len(test) // 2] if test else train[len(train) // 2]]
    twenty = sorted(nearest_views(middle, scene.c2w, 16 if test else 20, unit(scene), train))
    test = sorted(nearest_views(middle, scene.c2w, 4, unit(scene), test)) or twenty[2::5]
    rest = [i for i in twenty if i not in test]
    return rest[0::2], rest[1::2], test


def example_views(height: int = 240, width: int = 320, views: int = 8, seed: int = 3) -> Views:
    """A furnished room seen by `views` source cameras and, last, a target camera: views + 1 Views.

    For pictures and notebooks. The room is written to data/example once and read back like any other scene.
    """
    name, = rooms.make_rooms(Path("data/example"), [seed], frames=24, width=320, height=240, workers=1)
    scene = Scene(Path("data/example") / name, height, width)
    target, *sources = nearest_views(scene.c2w[len(scene) // 2], scene.c2w, views + 1)
    return scene.views([*sources, target])


def main() -> None:
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    views = example_views()
    target, sources = views[8], views[:8]
    for name in ("images", "K", "c2w", "labels", "depth"):
        print(f"{name:8} {str(tuple(getattr(views, name).shape)):20} {getattr(views, name).dtype}")
    pixels = pixel_grid(240, 320)                                                       # (H*W, 2)
    points = unproject(pixels, target.depth.view(-1), target.K, target.c2w)             # (H*W, 3)
    uv, z = project(points, sources.K, sources.c2w)                           # (H*W, V, 2), (H*W, V)
    inside = (z > 0) & (uv >= 0).all(-1) & (uv[..., 0] <= 319) & (uv[..., 1] <= 239)    # (H*W, V)
    u, v = uv[..., 0].round().long().clamp(0, 319), uv[..., 1].round().long().clamp(0, 239)
    surface = sources.depth[torch.arange(8), v, u]  # (H*W, V) what is seen there
    visible = inside & ((surface - z).abs() < 0.05)
    print(f"One fact: {inside.float().sum(1).mean():.1f} source views on average have a target pixel's point "
          f"inside their image, but {visible.float().sum(1).mean():.1f} see it. The rest is occlusion.")
    figure, axes = plt.subplots(2, 5, figsize=(15, 5), constrained_layout=True)
    pick = int(torch.argmax(visible.sum(1)))                                     # a pixel that many views see
    for axis, index in zip(axes.flat, [8, *range(8)]):
        axis.imshow(views.images[index].permute(1, 2, 0))
        hidden = "" if index == 8 or visible[pick, index] else " (does not see it)"
        axis.set_title(f"source {index}{hidden}" if index < 8 else "target")
        x, y = pixels[pick] if index == 8 else uv[pick, index]
        if index == 8 or inside[pick, index]:
            axis.plot(float(x), float(y), "o", mfc="none", mec="#d55e00", ms=14, mew=3)
        axis.set_axis_off()
    seen = axes[1, 4].imshow(visible.sum(1).view(240, 320), vmin=0, vmax=8)
    figure.colorbar(seen, ax=axes[1, 4], label="source views that see it")
    axes[1, 4].set_axis_off()
    figure.suptitle("One target pixel, unprojected with its true depth and projected into eight source views")
    Path("outputs").mkdir(exist_ok=True)
    figure.savefig("outputs/01_data.png", dpi=100)
    print("picture: outputs/01_data.png")


if __name__ == "__main__":
    run_script(main)
