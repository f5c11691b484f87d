"""Shared by the tests: the scripts importable by name, a scratch working directory, and a tiny scene in
ScanNet layout.

The scene is the inside of a textured box, computed ray by ray in numpy: colour, depth and labels are exact,
every pixel is seen by every view that has it in its image (a box is convex), and nothing of the project helps
to make it.
"""
import os

if "PYTEST_XDIST_WORKER" in os.environ:                          # make test: two processes, a core each
    # torch reads it at its start; the scripts started by tests inherit it
    os.environ["OMP_NUM_THREADS"] = "1"

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import imageio.v3 as iio
import numpy as np
import pytest
from mine import Mine

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))
# for `python -m tools.X` started in a temporary folder
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPO), os.environ.get("PYTHONPATH")]))



def pytest_addoption(parser):
    parser.addoption("--mine", action="store_true", help="test a student's stages: python -m tools.exercise")
    parser.addoption("--exercises", default="exercises", metavar="FOLDER", help="of those stages [exercises]")


def pytest_configure(config):
    if config.getoption("mine"):
        config.pluginmanager.register(Mine(config))


HALF = np.array([2.0, 1.2, 2.5])                                 # the box: half its size in metres
WALLS = [1, 3, 0, 1163, 1357, 21]  # raw label ids of the walls -x, +x, -y, +y, -z, +z
# wall, floor, unlabelled, nyu40 id 40, otherfurniture, window
RAW_TO_CLASS = {1: 0, 3: 1, 0: -1, 1163: -1, 1357: 19, 21: 8}
TSV = [(1, "wall", 1), (3, "floor", 2), (21, "window", 9), (1163, "object", 40), (1357, "mailbox", 39),
       (7, "nothing", "")]
SIZE, K = (48, 64), np.array([[50.0, 0, 31.0], [0, 52.0, 24.5], [0, 0, 1]])
# sees a little less than K
DEPTH_SIZE, DEPTH_K = (60, 80), np.array([[66.0, 0, 40.5], [0, 66.0, 28.5], [0, 0, 1]])
NUMBERS = [2 + 4 * i for i in range(26)]                         # 2, 6, 10, ... 102: as text, "10" < "2"
LOST = 30                                                        # tracking was lost in this frame


def camera(i):
    """Pose (4, 4) of the i-th frame: a slow arc with turning, nodding and rolling."""
    a, b, c = 0.2 + 0.05 * i, 0.15 * np.sin(0.5 * i), 0.02 * i   # yaw, pitch, roll
    yaw = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    pitch = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    roll = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    pose = np.eye(4)
    pose[:3, :3] = yaw @ pitch @ roll
    pose[:3, 3] = 0.8 * np.cos(0.1 * i), 0.2 * np.sin(0.4 * i), 0.8 * np.sin(0.1 * i)
    return pose


def photograph(intrinsics, pose, height, width):
    """What a camera in the box sees: colour (H, W, 3) uint8, depth along z (H, W) metres, raw label (H,
    W)."""
    v, u = np.mgrid[:height, :width]
    direction = pose[:3, :3] @ np.linalg.inv(intrinsics) @ np.stack([u, v, 1 + 0 * u]).reshape(3, -1)
    origin = pose[:3, 3:]
    # (3, H*W) where the ray leaves each slab
    exits = (np.sign(direction) * HALF[:, None] - origin) / direction
    axis, depth = exits.argmin(0), exits.min(0)
    wall = 2 * axis + (np.take_along_axis(direction, axis[None], 0)[0] > 0)
    waves = np.array([[7.0, 5, -4], [-4, 8, 5], [5, -3, 8]]) @ (origin + depth * direction)
    colour = (127.5 + 100 * np.sin(waves)).T.round().astype(np.uint8)
    raw = np.array(WALLS, np.uint16)[wall]
    return colour.reshape(height, width, 3), depth.reshape(height, width), raw.reshape(height, width)


def write_matrix(path, matrix):
    full = np.eye(4)
    full[:matrix.shape[0], :matrix.shape[1]] = matrix
    path.write_text("\n".join(" ".join(f"{x:.9f}" for x in row) for row in full) + "\n")


def write_box_scene(folder):
    """A ScanNet export of the box: 26 frames, one of them lost, and the label table beside the folder."""
    for name in ("color", "depth", "label-filt", "pose", "intrinsic"):
        (folder / name).mkdir(parents=True)
    write_matrix(folder / "intrinsic" / "intrinsic_color.txt", K)
    write_matrix(folder / "intrinsic" / "intrinsic_depth.txt", DEPTH_K)
    for i, number in enumerate(NUMBERS):
        pose = camera(i)
        colour, _, label = photograph(K, pose, *SIZE)
        _, depth, _ = photograph(DEPTH_K, pose, *DEPTH_SIZE)
        iio.imwrite(folder / "color" / f"{number}.jpg", colour, quality=95, subsampling=0)
        iio.imwrite(folder / "label-filt" / f"{number}.png", label)
        iio.imwrite(folder / "depth" / f"{number}.png", (1000 * depth).round().astype(np.uint16))
        write_matrix(folder / "pose" / f"{number}.txt", np.full((4, 4), -np.inf) if number == LOST else pose)
    lines = ["id\traw_category\tnyu40id"] + [f"{raw}\t{name}\t{nyu40}" for raw, name, nyu40 in TSV]
    (folder.parent / "scannetv2-labels.combined.tsv").write_bytes("\r\n".join(lines + [""]).encode())


@pytest.fixture(scope="session", autouse=True)
def scratch_directory(tmp_path_factory):
    """Scripts write to outputs/, data/ and cache/ below the working directory: let that be a temporary
    one."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("work"))
    yield
    os.chdir(before)


@pytest.fixture(scope="session")
def box():
    """The truth about the box scene: numbers, lost, K, size, raw_to_class, camera(i), photograph(K, pose, h,
    w)."""
    return SimpleNamespace(numbers=NUMBERS, lost=LOST, K=K, size=SIZE, depth_K=DEPTH_K, depth_size=DEPTH_SIZE,
                           raw_to_class=RAW_TO_CLASS, camera=camera, photograph=photograph)


@pytest.fixture(scope="session")
def box_folder(tmp_path_factory):
    """The box scene on disk, for reading only: <root>/scene0001_00."""
    folder = tmp_path_factory.mktemp("box") / "scene0001_00"
    write_box_scene(folder)
    return folder


@pytest.fixture(scope="module")
def root(box_folder, tmp_path_factory) -> Path:
    """Two scenes of 64x48 on disk: one to train on, one unseen."""
    folder = tmp_path_factory.mktemp("boxes")
    shutil.copytree(box_folder.parent, folder, dirs_exist_ok=True)
    shutil.copytree(box_folder, folder / "scene0002_00")
    return folder


@pytest.fixture
def box_copy(box_folder, tmp_path):
    """A copy of the box scene to damage: <tmp_path>/scans/scene0001_00."""
    shutil.copytree(box_folder.parent, tmp_path / "scans")
    return tmp_path / "scans" / box_folder.name


@pytest.fixture
def long_scene(box_copy):
    """A copy of 200 frames to damage: 174 links to the box's files, inside the scene. Colour is no link: each
    file ends in its number, for the same photograph counts once."""
    for kind, suffix in (("color", "jpg"), ("depth", "png"), ("label-filt", "png"), ("pose", "txt")):
        for number in range(1000, 1174):
            source, path = f"{2 + 4 * (number % 5)}.{suffix}", box_copy / kind / f"{number}.{suffix}"
            if kind == "color":
                path.write_bytes((box_copy / kind / source).read_bytes() + str(number).encode())
            else:
                os.symlink(source, path)
    return box_copy
