"""Files, read carefully and written whole; and the one line that tells a user what is wrong with one.

Whoever reads a file of somebody else's raises DataError (FrameError for one frame of many). `run_script`
prints its message and ends with status 2.

Test: pytest tests/test_support_files.py
"""
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import imageio.v3 as iio
import numpy as np

MAX_PIXELS = 2 ** 25  # 8192x4096: an image that claims to be larger is refused before it is decoded


class DataError(Exception):
    """Bad input. The message is one line: which file, what is wrong, what to do. Scripts print it and exit
    with status 2."""


class FrameError(DataError):
    """One frame cannot be read. A scene skips few of them (01's Scene.skip)."""


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main(). Bad input, or a folder that cannot be read or written, ends it with one clear
    line and status 2."""
    try:
        main()
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    # a full disk, a folder without permission; files are written whole or not at all
    except OSError as error:
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}; make room, or name another "
              "folder (--out, --cache, --data), and type the command again", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted; type the command again to go on", file=sys.stderr)
        raise SystemExit(130) from None


def read_image(path: Path) -> np.ndarray:
    """Decode a jpg or png as it is on disk. FrameError if missing, damaged, of another kind, or larger than
    MAX_PIXELS."""
    if not path.is_file():                    # nor is a pipe or a device one, which might never end
        raise FrameError(f"{path}: no such file; export the frame again or remove its pose")
    try:
        with open(path, "rb") as file:
            if not file.read(4).startswith((b"\xff\xd8\xff", b"\x89PNG")):
                raise ValueError("neither jpg nor png")
        with iio.imopen(path, "r", plugin="pillow") as file:
            height, width = file.properties(index=0).shape[:2]                # from the header alone
            if height * width > MAX_PIXELS:
                raise ValueError(f"claims to be {width}x{height}, more than {MAX_PIXELS:,} pixels")
            return file.read(index=0)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError ... for damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FrameError(f"{path}: cannot be decoded ({reason}); copy or export it again") from None


def read_text(path: Path, limit: int, missing: str) -> str:
    """A text file of at most `limit` bytes. DataError otherwise; `missing` says what to do where there is
    none."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; {missing}")
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise ValueError(f"longer than {limit:,} bytes")
        return content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); copy or export it again") from None


def read_matrix(path: Path) -> np.ndarray:
    """A 4x4 matrix of numbers in text, as poses and intrinsics are written: (4, 4) float64, -inf and nan
    kept. DataError for anything else."""
    text = read_text(path, 10_000, "a ScanNet export has one")
    try:
        matrix = np.array([[float(x) for x in line.split()] for line in text.split("\n") if line.strip()])
    except ValueError:
        raise DataError(f"{path}: not a 4x4 matrix of numbers; export it again") from None
    if matrix.shape != (4, 4):
        raise DataError(f"{path}: holds {matrix.shape} numbers instead of 4x4; export it again")
    return matrix


def read_pose(path: Path) -> np.ndarray | None:
    """A camera-to-world pose (4, 4) float64; None where tracking was lost, which ScanNet writes as -inf.
    DataError unless it is a rotation and a place: no NaN, no scale, no mirror, last row 0 0 0 1."""
    pose = read_matrix(path)
    if np.isneginf(pose[:3]).all():
        return None
    R = pose[:3, :3]
    if not (np.isfinite(pose).all() and np.abs(pose).max() < 1e5 and np.abs(R.T @ R - np.eye(3)).max() < 1e-2
            and np.linalg.det(R) > 0 and np.abs(pose[3] - [0, 0, 0, 1]).max() < 1e-4):
        raise DataError(f"{path}: not a camera's pose (finite, a rotation without scale or mirror, metres, "
                        "last row 0 0 0 1); export it again")
    return pose


def read_intrinsics(path: Path) -> np.ndarray:
    """intrinsic_{color,depth}.txt -> K (3, 3) float64. DataError unless focal lengths are positive and all is
    finite."""
    K = read_matrix(path)[:3, :3]
    if not (np.isfinite(K).all() and (1e-2 < K.diagonal()).all() and np.abs(K).max() < 1e6 and K[1, 0] == 0
            and np.allclose(K[2], [0, 0, 1])):
        raise DataError(f"{path}: not a pinhole camera (finite, positive focal lengths in pixels, last row "
                        "0 0 1); export it again")
    return K


def read_near_far(path: Path) -> tuple[float, float] | None:
    """near_far.txt, two numbers: the nearest and farthest depth worth sampling, in the scene's units. None if
    there is no such file, DataError unless 0 < near < far."""
    if not path.is_file():
        return None
    try:
        near, far = (float(x) for x in path.read_text().split())
    except (ValueError, UnicodeDecodeError):
        near = far = 0.0
    if not 0 < near < far < float("inf"):
        raise DataError(f"{path}: not two numbers 0 < near < far; write them, or remove the file if the "
                        "scene is in metres")
    return near, far


def write_atomically(path: Path, write: Callable) -> None:
    """Call write(file) on a temporary binary file beside path, then rename it: a reader sees the old file or
    the new one. OSError, with path as its filename, if the disk is full or the folder cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        error.filename = str(path)            # not the temporary one
        raise
