"""A dataset for those who have none: procedural furnished rooms, on disk as if ScanNet had scanned them.

S-Ray learns from posed photographs with class labels. ScanNet has them behind a signed form, so this file
makes its own: rooms. A room is a list of *parts*: boxes, cylinders and balls of any proportions, each with a
material and a label. `make_room` (support/rooms/house.py) draws one from a seed, `camera_path` walks through
it. This file takes the pictures, one ray a pixel, and writes a ScanNet export, which 01_data.py reads.

One pixel, start to end:
1. Ray. Pixel (u, v) of a camera at c sees the points  c + z R K⁻¹ [u, v, 1]ᵀ;  the number z *is* the depth.
2. Local frame. A part is a unit cube, cylinder or ball, scaled by S (`half`), turned by Q (`rot`), moved to
   m (`centre`). There the ray is  o + z d  with  o = S⁻¹ Qᵀ (c − m),  d = M [u, v, 1]ᵀ,  M = S⁻¹ Qᵀ R K⁻¹.
3. Slab test.  |o_k + z d_k| ≤ 1  holds from  z = −o_k/d_k − |1/d_k|  to  z = −o_k/d_k + |1/d_k|.  The ray is
   in the cube where this holds for k = x, y and z; in the ball where  |o + z d|² ≤ 1,  a quadratic in z.
4. Z-buffer. Of all parts, the pixel keeps the one that its ray enters first: depth and label.
5. Shading, the same from every view (Lambertian):
       colour = albedo · (ambient + Σ_lamps power · lit · cosθ / (distance² + 0.6) + emitted).
   `lit`: does the lamp, by the same z-buffer, see the point? A tone curve and a square root make bytes.

What makes the task honest: all classes draw colours from one palette, so a pixel's colour does not give its
class away. The camera moves by about 0.25 m and 13° a frame, so copying the nearest view is a poor answer.

Letters in shapes: H, W image; N = H·W pixels; P parts, the first six of which are the room's own faces.

Run:   python 00_rooms.py [--out outputs] [--count 6]      # a contact sheet, class shares, time per frame
       python 00_rooms.py --seed 20000 --count 48 --test 8 --data data/doubted    # 56 scenes to be doubted
       python 00_rooms.py --seed 40000 --count 1000 --test 10 --data data/wide    # of any size and surface
Test:  pytest tests/test_00_rooms.py tests/test_support_rooms.py
"""
import argparse
import json
import time
from functools import partial, reduce
from pathlib import Path

import imageio.v3 as iio
import numpy as np

from support.files import run_script
from support.labels import SCANNET20
from support.rooms import DOUBTED, VARIED, VERSION, WIDE, WIDE_VERSION, asked_seeds
from support.rooms.bounds import rectangles
from support.rooms.camera import camera_of, on_film, pixels
from support.rooms.classes import RAW
from support.rooms.export import write_missing, write_split, write_whole
from support.rooms.house import Room, make_room
from support.rooms.occlusion import shares
from support.rooms.parts import BALL, BOX, CYLINDER
from support.rooms.paths import camera_path
from support.rooms.shadows import cube_cameras, lit
from support.rooms.sheet import contact_sheet, print_facts
from support.rooms.surface import surface_at
from support.rooms.textures import patterns

__all__ = ["DOUBTED", "Room", "SCANNET20", "VARIED", "VERSION", "camera_path", "intrinsics", "make_room",
           "make_rooms", "render", "write_room"]


# ------------------------------------------------------------------------------------------- rays and parts

def intrinsics(room, width, height):
    """K (3, 3) of the room's camera at this image size; pixel centres are integers."""
    f = room.focal * width
    return np.array([[f, 0, (width - 1) / 2], [0, f, (height - 1) / 2], [0, 0, 1.0]])


def directions(M, u, v):
    """M [u, v, 1]ᵀ for M (3, 3): a list of x, y and z, each of the shape that u and v have together."""
    return [M[k, 0] * u + (M[k, 1] * v + M[k, 2]) for k in range(3)]


def intersect(shape, o, d):
    """Depths where rays o + z d enter and leave a unit shape; o (3,), d three arrays -> two arrays like d's.

    A ray misses where it does not enter before it leaves, and where a depth is NaN.
    """
    spans = []  # between which two depths each condition holds
    for k in {BOX: (0, 1, 2), CYLINDER: (2,), BALL: ()}[shape]:  # |o_k + z d_k| <= 1
        w = np.reciprocal(d[k])
        middle, size = w * -o[k], np.abs(w)
        spans.append((middle - size, middle + size))
    if shape != BOX:  # |o + z d|² <= 1 over x, y (cylinder) or x, y, z (ball):  a z² + 2 b z + c <= 0
        n = 2 if shape == CYLINDER else 3
        a, b = sum(d[k] * d[k] for k in range(n)), sum(d[k] * o[k] for k in range(n))
        root = np.sqrt(b * b - a * (sum(o[k] ** 2 for k in range(n)) - 1))
        spans.append(((-b - root) / a, (-b + root) / a))
    enter, leave = zip(*spans)
    return reduce(np.maximum, enter), reduce(np.minimum, leave)  # all conditions at once


def walls(o, d):
    """Where rays leave the room, a box seen from inside -> depth, and face 0…5: -x +x -y +y -z +z."""
    w = [1 / d[k] for k in range(3)]
    far = [np.abs(w[k]) - o[k] * w[k] for k in range(3)]
    depth = np.fmin(np.fmin(far[0], far[1]), far[2])  # fmin: a ray exactly along a wall gives NaN
    axis = np.where(far[2] == depth, 2, np.where(far[1] == depth, 1, 0))
    return depth, (2 * axis + (np.choose(axis, w) > 0)).astype(np.int32)


def trace(room, c2w, K, height, width, near=.02):
    """The z-buffer: depth (H, W) float32 and part (H, W) int32 of what each pixel's ray enters first."""
    P = room.parts
    to_local = P["rot"].transpose(0, 2, 1) / P["half"][:, :, None]                      # (P, 3, 3) S⁻¹ Qᵀ
    M = (to_local @ (c2w[:3, :3] @ np.linalg.inv(K))).astype(np.float32)                # (P, 3, 3)
    o = np.einsum("pij,pj->pi", to_local, c2w[:3, 3] - P["centre"]).astype(np.float32)  # (P, 3)
    u, v = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]  # (W,), (H, 1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        depth, part = walls(o[0], directions(M[0], u, v))                # (H, W)
        for p, (rows, columns) in rectangles(P, c2w, K, height, width):  # part p can be seen there only
            enter, leave = intersect(P["shape"][p], o[p], directions(M[p], u[columns], v[rows]))
            nearest = depth[rows, columns]  # a view: what is written into it is written into depth
            hit = (enter < leave) & (enter > near) & (enter < nearest)
            np.copyto(nearest, enter, where=hit)
            np.copyto(part[rows, columns], p, where=hit)
    return depth, part


# ----------------------------------------------------------------------------------------- light and colour

def shadow_maps(room, n=128):
    """The depth (6, n, n) that each lamp sees in the six directions of a cube around it."""
    maps = []
    for position, _ in room.lamps:
        K, cameras = cube_cameras(position, n)
        maps.append(np.stack([trace(room, c2w, K, n, n)[0] for c2w in cameras]))
    return maps


def illuminate(room, point, normal):
    """Light at N points; point and normal: x, y, z, (N,) each -> red, green, blue, (N,) each."""
    ambient = np.ones_like(point[0])
    for k in range(3):
        reach, middle = np.float32(room.size[k] / 2), np.float32(room.size[2] / 2 if k == 2 else 0)
        gap = reach - np.abs(point[k] - middle)  # metres to the nearer of two opposite faces of the room
        ambient *= 1 - .4 * np.exp(gap * -4) * (1 - np.abs(normal[k]))  # darker in corners
    ambient = ambient * (.85 + .15 * normal[2])  # and on what faces down
    light = [ambient * np.float32(room.ambient[c]) for c in range(3)]
    for (position, power), shadow in zip(room.lamps, room.shadows):
        to = np.stack([point[k] - np.float32(position[k]) for k in range(3)])  # (3, N) lamp to point
        distance2 = (to * to).sum(0)
        cos = np.maximum(-sum(to[k] * normal[k] for k in range(3)) / np.sqrt(distance2), 0)
        strength = cos * lit(shadow, to, cos) / (distance2 + .6)  # 0.6: a lamp has a size
        light = [light[c] + strength * np.float32(power[c]) for c in range(3)]
    return light


def render(room, c2w, K, height, width):
    """rgb (H, W, 3) uint8, depth (H, W) float32 in metres along z, label (H, W) uint8 in NYU-40 numbering.

    c2w (4, 4): the camera's pose, OpenCV axes; K (3, 3) in pixels.
    """
    room.shadows = room.shadows or shadow_maps(room)
    depth, part = trace(room, c2w, K, height, width)
    z, p = depth.ravel(), part.ravel()                                            # (N,) from here on
    v, u = (x.ravel().astype(np.float32) for x in np.mgrid[:height, :width])
    ray = directions((c2w[:3, :3] @ np.linalg.inv(K)).astype(np.float32), u, v)
    point = [np.float32(c2w[k, 3]) + z * ray[k] for k in range(3)]
    surface = surface_at(room.parts, p, point, ray)  # its normal; where on the face the point is
    facing = np.abs(sum(surface.normal[k] * ray[k] for k in range(3))) / np.sqrt(sum(x * x for x in ray))
    foot = z / K[0, 0] / np.clip(facing, .12, 1) + 1e-4  # metres of surface under the pixel

    materials, m = room.materials, room.parts["material"][p]
    mix, gain = patterns(materials, m, surface, foot)  # of the materials' textures
    light, emitted = illuminate(room, point, surface.normal), materials["emit"].astype(np.float32)[m]
    rgb = np.empty((height * width, 3), np.uint8)
    for c in range(3):
        a, b = (materials[name][:, c].astype(np.float32)[m] for name in "ab")
        rgb[:, c] = on_film((a + mix[c] * (b - a)) * gain * (light[c] + emitted))  # albedo · light
    return rgb.reshape(height, width, 3), depth, room.parts["label"].astype(np.uint8)[part]


# -------------------------------------------------------------------------------------- the ScanNet export

def settings(seed, frames, width, height, models=None):
    """What room.json says of a room: one with other settings is written anew. models: tools/models.py's."""
    return dict(generator="00_rooms.py", version=WIDE_VERSION if seed in WIDE else VERSION, seed=int(seed),
                frames=int(frames), width=int(width), height=int(height), models=models)


def write_scene(folder, seed, frames, width, height, make=None, draw=None, models=None):
    """A ScanNet export: color/<i>.jpg, depth/<i>.png in millimetres, label-filt/<i>.png in raw ids,
    pose/<i>.txt from camera to world, intrinsic/intrinsic_{color,depth}.txt; room.json, written last.
    make and draw: instead of make_room and render, for rooms with models."""
    room, camera = (make or make_room)(seed), camera_of(seed)
    K, poses = intrinsics(room, width, height), camera_path(room, frames, seed)
    raw = np.zeros(256, np.uint16)  # NYU-40 id -> one of its raw ids, chosen per room
    raw[list(RAW)] = [list(ids.values())[seed % len(ids)] for ids in RAW.values()]
    for name in ("color", "depth", "pose", "intrinsic", "label-filt"):
        (folder / name).mkdir()
    K4 = np.pad(K, (0, 1)) + np.diag([0, 0, 0, 1.0])
    for kind in ("color", "depth"):
        np.savetxt(folder / "intrinsic" / f"intrinsic_{kind}.txt", K4, fmt="%.6f")
    for i, c2w in enumerate(poses):
        rgb, depth, label = (draw or render)(room, c2w, K, height, width)
        iio.imwrite(folder / "color" / f"{i}.jpg", camera.develop(rgb, i), quality=camera.quality)
        iio.imwrite(folder / "depth" / f"{i}.png", np.rint(depth * 1000).astype(np.uint16), compress_level=1)
        iio.imwrite(folder / "label-filt" / f"{i}.png", raw[label], compress_level=1)
        np.savetxt(folder / "pose" / f"{i}.txt", camera.measured(c2w, i), fmt="%.9f")
    about = settings(seed, frames, width, height, models) | {"kind": room.kind}
    (folder / "room.json").write_text(json.dumps(about, indent=1))


def write_room(root, name, seed, frames=24, width=320, height=240, mark=""):
    """Write room `seed` as <root>/<name>; the folder appears whole or not at all. -> name."""
    size = dict(seed=seed, frames=frames, width=width, height=height)
    Path(root).mkdir(parents=True, exist_ok=True)
    write_whole(Path(root) / name, settings(**size), partial(write_scene, **size), mark)
    return name


def make_rooms(root, seeds, frames=24, width=320, height=240, workers=None):
    """Write rooms `seeds` and the label table under `root`, in `workers` processes (None: one a core). Rooms
    that are there with the same settings stay. -> scene names."""
    size = dict(frames=frames, width=width, height=height)
    return write_missing(root, seeds, partial(settings, **size), partial(write_room, **size), workers)


def main():
    parser = argparse.ArgumentParser(description="Procedural rooms with depth and labels: a contact sheet.")
    parser.add_argument("--out", default="outputs", help="folder for 00_rooms.png")
    parser.add_argument("--count", type=int, default=6, help="how many rooms")
    parser.add_argument("--seed", type=int, default=0, help="the first's; 20000: to be doubted; 40000: wide")
    parser.add_argument("--data", help="write them there, for --scene, with a split.txt; no contact sheet")
    parser.add_argument("--test", type=int, default=0, help="so many test rooms of their kind more")
    parser.add_argument("--width", type=pixels, default=320, help="in pixels, of what --data writes")
    parser.add_argument("--height", type=pixels, default=240)
    args = parser.parse_args()
    rows, seconds, seeds = [], [], asked_seeds(args.seed, args.count, args.test)
    if args.data:
        return write_split(args.data, make_rooms(args.data, seeds, width=args.width, height=args.height))
    for seed in seeds:
        room, camera, shots = make_room(seed), camera_of(seed), []
        K, path = intrinsics(room, 320, 240), camera_path(room, 24, seed)
        for i in (0, 8):
            start = time.perf_counter()
            rgb, *maps = render(room, path[i], K, 240, 320)
            seconds.append(time.perf_counter() - start)
            shots.append((camera.develop(rgb, i), *maps))
        small = intrinsics(room, 160, 120)
        hidden, views = shares([trace(room, c2w, small, 120, 160)[0] for c2w in path], small, path)
        rows.append((f"{room.kind}\n{hidden:.0%} occluded, {views:.1f} views", shots))
    path = Path(args.out) / "00_rooms.png"
    contact_sheet(path, rows)
    print_facts(rows)
    print(f"median {np.median(seconds) * 1000:.0f} ms per 320x240 frame; saved {path}")


if __name__ == "__main__":
    run_script(main)
