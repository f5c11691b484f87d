"""Files, read carefully and written whole; and the one line that tells a user what is wrong with one.

Whoever reads a file of somebody else's raises DataError (FrameError for one frame of many). `run_script`
prints its message and ends with status 2.

Test: pytest tests/test_support_files.py
"""
import errno
import json
import math
import os
import re
import secrets
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import imageio.v3 as iio
import numpy as np
from PIL import Image  # imageio's own: it reads pictures with it

from support.streams import patient_streams

MAX_PIXELS = 2 ** 25  # 8192x4096: an image that claims to be larger is refused before it is decoded
MAX_IMAGE_BYTES = 2 ** 28
JPG, PNG = b"\xff\xd8\xff", b"\x89PNG"       # how these files begin


class DataError(Exception):
    """Bad input. The message is one line: which file, what is wrong, what to do. Scripts print it and exit
    with status 2."""


class FrameError(DataError):
    """One frame cannot be read. A scene skips few of them (01's Scene.skip)."""


def shown(text) -> str:
    """A name or message as one line of printable characters: others are escaped as in Python."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
                   for c in str(text))


def figure_text(text) -> str:
    """A name as matplotlib shows it: as it is, not as mathematics."""
    return shown(text).replace("$", r"\$")


def program() -> list[str]:
    """What python was told to run: a script, or "-m" and a tool."""
    spec = sys.modules["__main__"].__spec__
    return ["-m", spec.name] if spec and spec.name.startswith("tools.") else [sys.argv[0]]


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main(). Bad input, a folder that cannot be read or written, or too little memory ends it
    with one clear line and status 2."""
    with patient_streams():
        try:
            main()
        except (DataError, OSError, MemoryError, RuntimeError) as error:
            line = explained(error)
            if line is None:
                raise
            if speaks(error):
                print(f"error: {shown(line)}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("interrupted; type the command again to go on", file=sys.stderr)
            raise SystemExit(130) from None


def explained(error: Exception) -> str | None:
    """What is wrong and what to do; None for an error that is the program's own."""
    if isinstance(error, DataError):
        return str(error)
    if isinstance(error, OSError):             # a full disk, a folder without permission
        return (f"{error.filename or 'a file'}: {error.strerror or error}; make room, or name another folder "
                "(--out, --cache, --data), and type the command again")
    words = reason(error)
    # on a GPU torch.OutOfMemoryError, once torch.cuda's, or cuBLAS's own; on a CPU a plain RuntimeError
    if type(error).__name__ == "OutOfMemoryError" or "_ALLOC_FAILED" in words:
        return (f"the GPU is out of memory ({words}); fewer rays together give the same numbers: in training "
                "--piece 256, or less; in evaluation --chunk 512, or less (python -m tools.memory)")
    if isinstance(error, MemoryError) or re.search("(out of|allocate|enough) memory", words):
        return (f"out of memory ({words}); ask for less: smaller images, fewer rays or samples, --piece or "
                "--chunk")
    return None


def speaks(error: Exception) -> bool:
    """Does this process print its error? Of several that torchrun started on a machine the first does, for
    all find the same; a frame, a disk or a memory may be one process's own trouble."""
    return os.environ.get("LOCAL_RANK", "0") == "0" or type(error) is not DataError


# ---------------------------------------------------------------------------------------------------- reading

def open_file(path: Path, limit: int, missing: str = "copy or export it again") -> BinaryIO:
    """A file opened to be read. DataError unless it is a regular one (a pipe or a device might never end) of
    at most `limit` bytes; `missing` says what to do where there is none."""
    try:
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        file = open(path, "rb", opener=lambda name, _: os.open(name, flags))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path}: no such file; {missing}") from None
    except (OSError, ValueError) as error:     # a folder, no permission; a name that no file can have
        raise DataError(f"{path}: cannot be read ({reason(error)}); copy or export it again") from None
    state = os.fstat(file.fileno())
    if stat.S_ISREG(state.st_mode) and state.st_size <= limit:
        return file
    file.close()
    kind = f"{state.st_size:,} bytes, more than {limit:,}" if stat.S_ISREG(state.st_mode) else "not a file"
    raise DataError(f"{path}: cannot be read ({kind}); copy or export it again")


def read_bytes(path: Path, limit: int, missing: str = "copy or export it again") -> bytes:
    """The content of a file of at most `limit` bytes. DataError otherwise."""
    with open_file(path, limit, missing) as file:
        try:
            return file.read(limit)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({reason(error)}); copy it again") from None


def read_text(path: Path, limit: int, missing: str = "copy or export it again") -> str:
    """A text file of at most `limit` bytes, UTF-8 with or without its mark. DataError otherwise."""
    content = read_bytes(path, limit, missing)
    try:
        if b"\0" in content:
            raise ValueError("not text")
        return content.decode("utf-8-sig")
    except ValueError as error:                # or UnicodeDecodeError, which is one
        raise DataError(f"{path}: cannot be read ({reason(error)}); copy or export it again") from None


def read_json(path: Path, limit: int = 50_000_000, missing: str = "copy or export it again") -> Any:
    """What a JSON file of at most `limit` bytes says. DataError otherwise."""
    text = read_text(path, limit, missing)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({reason(error)}); export it again") from None


def reason(error: Exception) -> str:
    """An error in a few words."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0][:100]


def read_image(path: Path, kinds: tuple[bytes, ...] = (JPG, PNG)) -> np.ndarray:
    """Decode a jpg or png as it is on disk, CMYK as RGB. FrameError if missing, damaged, of another kind, or
    larger than MAX_PIXELS."""
    return examine(path, kinds, decoded)


def image_size(path: Path) -> tuple[int, int]:
    """(H, W) of a jpg or png, from its header. FrameError as read_image."""
    return examine(path, (JPG, PNG), lambda file: file.properties(index=0).shape[:2])


def examine(path: Path, kinds: tuple[bytes, ...], look: Callable):
    """look(image file opened by imageio). FrameError if it is none of these kinds, or too large."""
    try:
        with open_file(path, MAX_IMAGE_BYTES, "export the frame again or remove its pose") as raw:
            if not raw.read(4).startswith(kinds):
                raise ValueError("neither jpg nor png" if JPG in kinds else "not a png")
            raw.seek(0)
            with iio.imopen(raw, "r", plugin="pillow") as file:
                height, width = file.properties(index=0).shape[:2]            # from the header alone
                if height * width > MAX_PIXELS:
                    raise ValueError(f"claims to be {width}x{height}, more than {MAX_PIXELS:,} pixels")
                return look(file)
    except DataError as error:
        raise FrameError(str(error)) from None
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError ... for damaged files
        raise FrameError(f"{path}: cannot be decoded ({reason(error)}); copy or export it again") from None


def decoded(file) -> np.ndarray:
    """The pixels of an image file opened by imageio: (H, W) or (H, W, channels). Print's four colours become
    the three of a screen."""
    image = file.read(index=0)
    if file.metadata(index=0)["mode"] == "CMYK":
        image = np.array(Image.fromarray(image, "CMYK").convert("RGB"))
    return image


def read_map(path: Path, bits: tuple[int, ...], what: str) -> np.ndarray:
    """A png of one channel and so many bits, whose values are numbers and not light: (H, W). FrameError for
    anything else, whose values would be others: a jpg, a palette, a scaled grey."""
    image = read_image(path, (PNG,))
    with open_file(path, MAX_IMAGE_BYTES) as file:
        header = file.read(26)                 # ... width, height, bits a channel, kind (0: one channel)
    if image.ndim != 2 or header[25] != 0 or header[24] not in bits:
        many = " or ".join(map(str, bits))
        raise FrameError(f"{path}: not {what} (a png of one channel, {many} bits); export it again")
    return image


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
    if not os.path.lexists(path):
        return None
    try:
        near, far = (float(x) for x in read_text(path, 10_000).split())
    except ValueError:
        near = far = 0.0
    if not 0 < near < far < float("inf"):
        raise DataError(f"{path}: not two numbers 0 < near < far; write them, or remove the file if the "
                        "scene is in metres")
    return near, far


# ---------------------------------------------------------------------------------------------------- writing

def write_atomically(path: Path, write: Callable) -> None:
    """Call write(file) on a temporary binary file beside path, then rename it: a reader sees the old file or
    the new one, with the rights that the umask leaves. OSError, with path as its filename, if the disk is
    full, the folder cannot be written, or path is something else than a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "not a file")
        temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(6)}.part")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        handle = os.open(temporary, flags, 0o666)
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        error.filename = str(path)            # not the temporary one
        raise


def save_picture(figure, path: str, dpi: int = 100) -> None:
    """Write a matplotlib figure as png, and say where."""
    write_atomically(Path(path), lambda file: figure.savefig(file, dpi=dpi, format="png"))
    print(f"picture: {path}")


def write_json(path: Path, value) -> None:
    """Atomically write JSON that any program reads: what is no finite number becomes null."""
    text = json.dumps(finite(value), indent=1, allow_nan=False)
    write_atomically(path, lambda file: file.write(text.encode()))


def finite(value):
    """The same lists and dictionaries, None for every number that is NaN or infinite."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
