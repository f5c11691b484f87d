"""Near and far of a scene in another scale than the model has learned from (`--typical`).

What a level knows of depth it knows in samples: a surface at the 12th of 24. In rooms of 3 to 5 m that is
4 m, and so it is in a shop 10 m deep. Here near and far are scaled until the median depth of what a scene's
photographs show, told by a plane sweep, is the typical depth: the surface is at the 12th sample again.

Test: pytest tests/test_support_ranges.py
"""
import math
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from support.files import DataError, read_text, write_atomically
from support.frames import digest
from support.processes import rank_and_world
from support.sweep import reduced, typical_depth

MOST = 8              # views of a scene that are swept
SWEPT = 2             # a part of the cache's key: another one where the same photographs tell another depth


def follow(scenes: list, config, protocol) -> list:
    """The scenes, ready for a model of these settings: the range of each that has no near_far.txt becomes
    config.near and far times its median depth / config.typical. Where no depth can be told they stay as they
    are, and a line says so. Nothing happens where typical is 0. protocol: 01's."""
    free = [scene for scene in scenes if not scene.near_far] if config.typical else []
    quiet = not free or rank_and_world()[0] > 0
    with tqdm(free, desc="measuring depth", unit="scene", leave=False, disable=quiet) as bar:
        depths = [median_depth(scene, protocol) for scene in bar]
    for scene, depth in zip(free, depths):
        factor = depth / config.typical if depth else 1
        scene.range = config.near * factor, config.far * factor
    told = [depth / config.typical for depth in depths if depth]
    untold = [scene.name for scene, depth in zip(free, depths) if not depth]
    if told and not quiet:
        print(f"near and far: times {min(told):.2g} to {max(told):.2g} in {len(told)} of {len(scenes)} "
              f"scenes, for a median depth of {config.typical:g} (--typical, a plane sweep)", flush=True)
    if untold and not quiet:
        print(f"near and far: as they are in {len(untold)} of {len(scenes)} scenes, whose photographs tell "
              f"no depth: {', '.join(untold[:4])}" + ", ..." * (len(untold) > 4), flush=True)
    return scenes


def median_depth(scene, protocol) -> float | None:
    """Of what a scene's photographs show, in its own unit: measured once, then out of the cache. None where
    it cannot be told. DataError where the cache cannot be written."""
    frames = swept_frames(scene, protocol)
    path = cache_path(scene, frames)
    depth = read(path)
    if depth is None:
        depth = sweep(scene, frames) or 0.0
        try:
            write_atomically(path, lambda file: file.write(str(depth).encode()))
        except OSError as error:
            raise DataError(f"{path.parent}: cannot write the cache ({error.strerror or error}); name "
                            "another folder with --cache") from None
    return depth or None


def swept_frames(scene, protocol) -> list[int]:
    """The frames that are swept, the same in training and evaluation: the protocol's source views, and so no
    test view. Of a scene too small for a protocol, MOST frames that may be trained on, evenly spread."""
    try:
        frames = protocol(scene)[0]
    except DataError:
        train = scene.parts()[0]
        frames = [train[i] for i in np.unique(np.linspace(0, len(train) - 1, MOST).round().astype(int))]
    return scene.readable(frames)


def sweep(scene, frames: list[int]) -> float | None:
    """The plane sweep over these frames' photographs, at their own size and not the model's. DataError where
    one cannot be read."""
    if not frames:
        return None
    K = torch.from_numpy(scene.native_K)
    images, Ks = zip(*(reduced([scene.photograph(scene.frames[i])], K) for i in frames))      # (1, 3, h, w)
    return typical_depth(torch.cat(images), Ks[0], scene.c2w[frames])


def cache_path(scene, frames: list[int]) -> Path:
    """Where a scene's median depth is kept, beside its decoded frames. The name stands for all that it is
    measured from: cameras, poses, and size and time of the photographs."""
    files = [scene.files(scene.frames[i])[0] for i in frames]
    stamps = [f"{path.name}.{path.stat().st_size}.{path.stat().st_mtime_ns}" for path in files]
    key = ";".join([str(SWEPT), scene.shared, str(scene.poses[frames].tolist()), *stamps])
    return scene.cache / f"depth_{digest(key)}.txt"


def read(path: Path) -> float | None:
    """A kept depth, 0 where none could be told. None where nothing is kept, or what is kept is damaged."""
    try:
        depth = float(read_text(path, 100))
    except (DataError, ValueError):
        return None
    return depth if 0 <= depth < math.inf else None
