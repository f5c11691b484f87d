"""ScanNet as it is downloaded: scene0000_00.sens, and beside it scene0000_00_2d-label-filt.zip.

A .sens file of version 4, little endian: uint32 version; uint64 length, sensor's name; four float32 4x4
matrices: intrinsics and extrinsics of colour, then of depth; int32 compression of colour (1 png, 2 jpeg) and
of depth (0 raw, 1 zlib); uint32 width and height of colour and of depth; float32 depth units a metre; uint64
frames. A frame: float32 4x4 c2w, two uint64 times, uint64 bytes of colour and of depth, and these.
"""
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np

from support.files import MAX_IMAGE_BYTES, DataError, open_file, read_bytes
from support.layouts import checked_pose, inside

DAMAGED = (OSError, zipfile.BadZipFile, NotImplementedError)                  # what a bad zip raises


class Header(NamedTuple):
    """What holds for all frames: intrinsics (4, 4) and sizes (H, W) of colour and depth, depth units a
    metre."""
    K: np.ndarray
    depth_K: np.ndarray
    size: tuple[int, int]
    depth_size: tuple[int, int]
    shift: float
    jpeg: bool
    zlib: bool
    count: int


class Frame(NamedTuple):
    """number; c2w (4, 4), -inf where tracking was lost; colour, a jpg or png as it is; depth (h, w) uint16
    mm."""
    number: int
    c2w: np.ndarray
    colour: bytes
    depth: np.ndarray


def take(file: BinaryIO, count: int, what: str) -> bytes:
    """The next bytes of a .sens file. DataError where it ends too early."""
    raw = file.read(count)
    if len(raw) < count:
        raise DataError(f"{file.name}: ends in {what}; the download was cut off, start it again")
    return raw


def read_header(file: BinaryIO, path: Path) -> Header:
    """The header of an open .sens file. DataError where it is damaged."""
    version, length = struct.unpack("<IQ", take(file, 12, "its header"))
    if version != 4 or length > 10_000:
        raise DataError(f"{path}: not a .sens file of version 4; download it again")
    take(file, length, "its header")
    matrices = np.frombuffer(take(file, 256, "its header"), "<f4").reshape(4, 4, 4).astype(np.float64)
    numbers = struct.unpack("<iiIIIIfQ", take(file, 36, "its header"))
    colour_kind, depth_kind, w, h, dw, dh, shift, count = numbers
    if colour_kind not in (1, 2) or depth_kind not in (0, 1):
        raise DataError(f"{path}: colour or depth is compressed in a way ScanNet does not use "
                        f"({colour_kind}, {depth_kind}); download it again")
    sane = all(0 < side <= 10_000 for side in (w, h, dw, dh)) and 0 < shift < 1e6
    if not sane or not 0 < count <= path.stat().st_size // 96:
        raise DataError(f"{path}: sizes of {w}x{h} and {dw}x{dh}, {shift:g} units a metre, {count} frames: "
                        "damaged; download it again")
    K, _, depth_K, _ = matrices
    for kind, matrix in (("color", K), ("depth", depth_K)):
        positive = np.isfinite(matrix).all() and min(matrix[0, 0], matrix[1, 1]) > 0
        if not positive or not np.allclose(matrix[2, :3], [0, 0, 1]):
            raise DataError(f"{path}: its {kind} camera is not a pinhole camera; download it again")
    return Header(K, depth_K, (h, w), (dh, dw), shift, colour_kind == 2, depth_kind == 1, count)


def read_frames(file: BinaryIO, path: Path, header: Header, every: int) -> Iterator[Frame | None]:
    """The frames of an open .sens file after its header; None for those between every `every`-th."""
    total = path.stat().st_size
    for i in range(header.count):
        where = f"frame {i} of {header.count}"
        pose = np.frombuffer(take(file, 64, where), "<f4").reshape(4, 4).astype(np.float64)
        _, _, colour_bytes, depth_bytes = struct.unpack("<QQQQ", take(file, 32, where))
        if colour_bytes + depth_bytes > total - file.tell():
            raise DataError(f"{file.name}: ends in {where}; the download was cut off, start it again")
        if max(colour_bytes, depth_bytes) > MAX_IMAGE_BYTES:
            raise DataError(f"{file.name}: an image of {max(colour_bytes, depth_bytes):,} bytes in {where}; "
                            "download it again")
        if i % every:
            file.seek(colour_bytes + depth_bytes, os.SEEK_CUR)
            yield None
            continue
        colour, packed = take(file, colour_bytes, where), take(file, depth_bytes, where)
        lost = np.isinf(pose).any() and not np.isnan(pose).any()  # ScanNet's mark of lost tracking
        pose = np.full((4, 4), -np.inf) if lost else checked_pose(pose, f"{path}, {where}")
        yield Frame(i, pose, colour, unpacked_depth(packed, header, f"{path}: the depth of {where}"))


def unpacked_depth(packed: bytes, header: Header, what: str) -> np.ndarray:
    """A frame's depth in millimetres (h, w) uint16. DataError where it does not unpack to its size."""
    h, w = header.depth_size
    try:
        raw = zlib.decompressobj().decompress(packed, 2 * w * h + 1) if header.zlib else packed
    except zlib.error:
        raw = b""
    if len(raw) != 2 * w * h:
        raise DataError(f"{what} does not unpack to {w}x{h}; download it again")
    depth = np.frombuffer(raw, "<u2").reshape(h, w)
    if header.shift != 1000:
        depth = (depth * (1000 / header.shift)).round().clip(0, 65535)
    return depth.astype(np.uint16)


def labels_of(path: Path) -> tuple[Path | None, list[str]]:
    """The labels of scene0000_00.sens: its _2d-label-filt.zip, or label-filt/ beside it, unpacked. None, and
    a line on what was looked for, where there is neither."""
    zipped = path.with_name(f"{path.stem}_2d-label-filt.zip")
    if zipped.is_file():
        return zipped, []
    unzipped, beside = zipped.with_suffix(""), path.with_name("label-filt")
    for folder in (beside, unzipped / "label-filt", unzipped):
        if next(folder.glob("*.png"), None):
            if folder == beside and len([*path.parent.glob("*.sens")]) > 1:
                return None, [f"{folder}: of which of several scans? {zipped.name} is not there: no labels"]
            return folder, []
    names = f"{path.stem}_2d-label.zip", "label", "label-filt"
    seen = [name for name in names if path.with_name(name).exists()]
    other = f" ({', '.join(seen)} is, which is not read: download the other)" if seen else ""
    return None, [f"no labels: {zipped} is not there{other}"]


def label_reader(path: Path) -> Callable[[int], bytes]:
    """_2d-label-filt.zip, or the folder with what was in it -> a function from frame number to its png.
    DataError if the zip is damaged or an entry leads out."""
    if path.is_dir():
        def read_file(frame: int) -> bytes:
            """One label map, as it is in the folder."""
            file = inside(path, f"{frame}.png", str(path))
            return read_bytes(file, MAX_IMAGE_BYTES) if file.is_file() else missing_label(path, frame)
        return read_file
    try:
        archive = zipfile.ZipFile(open_file(path, 2 ** 36))
        entries = {}
        for info in archive.infolist():
            parts = PurePosixPath(info.filename.replace("\\", "/")).parts
            link = (info.external_attr >> 28) == 0o12
            if not parts or parts[0] == "/" or ".." in parts or ":" in info.filename or link:
                raise DataError(f"{path}: its entry '{info.filename}' leads out of the folder or is a link; "
                                "this is not ScanNet's zip")
            entries["/".join(parts[-2:])] = info
    except (*DAMAGED, ValueError) as error:
        raise DataError(f"{path}: cannot be opened as a zip ({error}); download it again") from None

    def read(frame: int) -> bytes:
        """One label map, as it is in the zip."""
        info = entries.get(f"label-filt/{frame}.png")
        if info is None:
            missing_label(path, frame)
        if info.file_size > 2 ** 25:
            raise DataError(f"{path}: label-filt/{frame}.png claims {info.file_size:,} bytes; this is not "
                            "ScanNet's zip")
        try:
            with archive.open(info) as file:
                return file.read(2 ** 25)
        except (*DAMAGED, zlib.error, RuntimeError, EOFError) as error:
            raise DataError(f"{path}: label-filt/{frame}.png is damaged ({error}); download it "
                            "again") from None
    return read


def missing_label(path: Path, frame: int) -> None:
    """DataError: a frame without its label map."""
    raise DataError(f"{path}: has no label-filt/{frame}.png, but the scan has that frame; download it again")
