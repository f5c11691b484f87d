"""What near and far are worth: rooms imported as captures, rendered between several ranges of depth.

    python -m tools.near_far 9000 9001 9002            docs/data.md's table, a quarter of an hour on one core

Each room is photographed twice: on its own walk, across the room, and by cameras side by side that look at
one thing. A capture is a transforms.json and photographs alone, as a user has it. Its import measures near
and far by a plane sweep (support/sweep.py). 08_eval.py then renders the same test views from the same sources
between

    sweep       what the import found
    true        the same percentiles and margin, of the room's true depths
    poses       what it would have guessed from the poses
    less, more  what it found, with half the margin and with 1.5 times

and the table has PSNR and the mean relative error of depth.     Test: pytest tests/test_support_sweep.py
"""
import argparse
import json
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import imageio.v3 as iio
import numpy as np

from support import near_far
from support.files import DataError, run_script, write_json
from support.layouts import MARGIN
from tools import import_scenes
from tools.captures import look_at

rooms, data = import_module("00_rooms"), import_module("01_data")
REPO = Path(__file__).resolve().parent.parent
WALKS = "across", "at one thing"
NAMES = "sweep", "true", "poses", "less", "more"


def poses_of(walk: str, room, seed: int, K: np.ndarray, height: int, width: int) -> np.ndarray:
    """24 cameras c2w (24, 4, 4): the room's walk, or its first 1.5 m, looking at what its middle one sees."""
    if walk == "across":
        return rooms.camera_path(room, 24, seed)
    path = rooms.camera_path(room, 7, seed)
    middle = path[3]
    z = rooms.trace(room, middle, K, height, width)[0][height // 2, width // 2]
    time = np.linspace(0, 6, 24)
    eyes = np.stack([np.interp(time, range(7), path[:, axis, 3]) for axis in range(3)], axis=1)   # (24, 3)
    eyes[:, 2] += 0.15 * np.sin(3.4 * time)
    return np.stack([look_at(eye, middle[:3, 3] + z * middle[:3, 2]) for eye in eyes])


def write_capture(folder: Path, walk: str, seed: int, height: int,
                  width: int) -> tuple[np.ndarray, np.ndarray]:
    """Photographs of a room and their transforms.json -> true depths (24, H, W) metres, c2w (24, 4, 4)."""
    room = rooms.make_room(seed)
    K = rooms.intrinsics(room, width, height)
    c2w = poses_of(walk, room, seed, K, height, width)
    images, depths, _ = zip(*(rooms.render(room, pose, K, height, width) for pose in c2w))
    (folder / "images").mkdir(parents=True)
    frames = []
    for i, (image, pose) in enumerate(zip(images, c2w)):
        iio.imwrite(folder / f"images/{i:03d}.jpg", image, quality=95)
        matrix = (pose * [1, -1, -1, 1]).tolist()                             # y up, z back
        frames.append({"file_path": f"images/{i:03d}.jpg", "transform_matrix": matrix})
    camera = {"fl_x": K[0, 0], "fl_y": K[1, 1], "cx": width / 2, "cy": height / 2, "w": width, "h": height}
    write_json(folder / "transforms.json", camera | {"frames": frames})
    return np.stack(depths), c2w


def add_truth(scene: Path, depths: np.ndarray) -> None:
    """Write the true depths into an imported scene, which 08 then compares with."""
    (scene / "depth").mkdir()
    for i, depth in enumerate(depths):
        iio.imwrite(scene / f"depth/{i}.png", np.rint(1000 * depth).astype(np.uint16))
    shutil.copy(scene / "intrinsic/intrinsic_color.txt", scene / "intrinsic/intrinsic_depth.txt")


def fix_views(scene: Path, true: tuple[float, float]) -> None:
    """Write a split.txt with the protocol's 20 frames in the true range: nearness counts in units of far, and
    would choose others for each range."""
    (scene / "near_far.txt").write_text(f"{true[0]} {true[1]}\n")
    frames = data.Scene(scene, 24, 32)
    source, tune, test = data.protocol(frames)
    kinds = dict.fromkeys(source + tune, "train") | dict.fromkeys(test, "test")
    lines = [f"{kinds.get(i, 'val')} {number}\n" for i, number in enumerate(frames.frames)]
    (scene / "split.txt").write_text("".join(lines))


def ranges(found: tuple[float, float], depths: np.ndarray,
           c2w: np.ndarray) -> dict[str, tuple[float, float]]:
    """Near and far by each of NAMES."""
    low, high = found[0] / MARGIN[0], found[1] / MARGIN[1]
    true, guess = np.percentile(depths, (1, 99)), near_far.guess_near_far(c2w, False, "a room")
    share = 1 - MARGIN[0], MARGIN[1] - 1
    return {"sweep": found, "true": (MARGIN[0] * true[0], MARGIN[1] * true[1]), "poses": guess[:2],
            "less": (low * (1 - 0.5 * share[0]), high * (1 + 0.5 * share[1])),
            "more": (low * (1 - 1.5 * share[0]), high * (1 + 1.5 * share[1]))}


def evaluated(scene: Path, out: Path, args: argparse.Namespace) -> tuple[float, float]:
    """PSNR and depth error of a scene, by 08_eval.py. DataError where it ends in an error."""
    command = [sys.executable, REPO / "08_eval.py", "--checkpoint", args.checkpoint, "--scene", scene,
               "--out", out, "--preview", args.preview, "--keep", 8, "--cache", args.out / "cache"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        raise DataError(done.stderr.strip().split("\n")[-1].removeprefix("error: "))
    metrics = json.loads((out / "metrics.json").read_text())
    return metrics["psnr"], metrics["depth_abs_rel"]


def row(walk: str, seed: int, args: argparse.Namespace) -> str:
    """A line of the table: a room and a walk."""
    name = f"{walk.split()[-1]}{seed}"
    depths, c2w = write_capture(args.out / "captures" / name, walk, seed, args.height, args.width)
    job = import_scenes.Job(import_scenes.BLENDER, args.out / "captures" / name, name)
    scene = args.out / "scenes" / name
    scene.parent.mkdir(exist_ok=True)
    print(import_scenes.import_scene(job, scene, 1, None, None), file=sys.stderr)
    add_truth(scene, depths)
    low, high = map(float, (scene / "near_far.txt").read_text().split())
    cells = [f"{seed}, {walk}"] + ["{:.2f} to {:.2f}".format(*np.percentile(depths, (1, 99))),
                                   f"{low / MARGIN[0]:.2f} to {high / MARGIN[1]:.2f}"]
    tried = ranges((low, high), depths, c2w)
    fix_views(scene, tried["true"])
    for what, (near, far) in tried.items():
        (scene / "near_far.txt").write_text(f"{near:.6g} {far:.6g}\n")
        psnr, error = evaluated(scene, args.out / "eval" / f"{name}-{what}", args)
        cells.append(f"{psnr:.1f}, {error:.3f}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.near_far", description=__doc__.split("\n")[0])
    parser.add_argument("seeds", nargs="+", type=int, help="of 00's rooms")
    parser.add_argument("--checkpoint", default=REPO / "weights/sray_rooms.pt")
    parser.add_argument("--preview", type=int, default=2, help="every n-th row and column alone [2]")
    parser.add_argument("--height", type=int, default=240)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--out", type=Path, default=Path("outputs/near_far"), help="a new folder")
    args = parser.parse_args()
    if args.out.exists():
        raise DataError(f"{args.out}: there already; name another --out")
    print(f"| room, cameras look | true 1st to 99th, m | swept | {' | '.join(NAMES)} |")
    print(f"{'|---' * 8}|", flush=True)
    for walk in WALKS:
        for seed in args.seeds:
            print(row(walk, seed, args), flush=True)


if __name__ == "__main__":
    run_script(main)
