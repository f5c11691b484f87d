"""The numbered files of a scene in ScanNet's layout: which there are, which belong together, which are left.

Test: pytest tests/test_cases.py
"""
import hashlib
import re
from collections import defaultdict
from pathlib import Path

from support.files import MAX_IMAGE_BYTES, DataError, read_text
from support.processes import rank_and_world

ENDINGS = {"color": (".jpg", ".png", ".jpeg"), "pose": (".txt",), "depth": (".png",), "label-filt": (".png",),
           "mask": (".png",)}
SPLITS = ("train", "val", "test")


def numbered(folder: Path, endings: tuple[str, ...]) -> tuple[dict[int, Path], list[str]]:
    """Files named by a number, with or without zeros before it, -> {number: path}, and the names of all other
    files. Of two files with one number the plainest name, and the first ending, counts."""
    files, others = defaultdict(list), []
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.startswith("."):
            continue
        if re.fullmatch("[0-9]{1,18}", path.stem) and path.suffix.lower() in endings:
            files[int(path.stem)].append((endings.index(path.suffix.lower()), len(path.stem), path.name))
        else:
            others.append(path.name)
    chosen = {number: folder / min(names)[2] for number, names in sorted(files.items())}
    taken = {path.name for path in chosen.values()}
    return chosen, others + [name for names in files.values() for *_, name in names if name not in taken]


class Listing:
    """The files of a scene's color/, pose/, depth/, label-filt/ (or `labels`) and mask/."""

    def __init__(self, folder: Path, labels: Path):
        self.folder, self.places = folder, {kind: folder / kind for kind in ENDINGS} | {"label-filt": labels}
        found = {kind: numbered(place, ENDINGS[kind]) for kind, place in self.places.items()}
        self.files = {kind: files for kind, (files, _) in found.items()}
        self.strange = {kind: others for kind, (_, others) in found.items()}

    def path(self, kind: str, number: int) -> Path:
        """A file of this number. Where there is none, its plain name, which is not there."""
        return self.files[kind].get(number) or self.places[kind] / f"{number}{ENDINGS[kind][0]}"

    def unused(self) -> list[str]:
        """What is in color/, pose/ and depth/ and belongs to no frame: 'color/: 3 files', with an example."""
        lines = []
        for kind in ("pose", "color", "depth"):
            names = self.strange[kind] + [path.name for number, path in self.files[kind].items()
                                          if kind != "pose" and number not in self.files["pose"]]
            if names:
                lines.append(f"{len(names)} in {kind}/ ({min(names)}" + ", ..." * (len(names) > 1) + ")")
        return lines

    def check_colour(self, numbers: list[int]) -> None:
        """DataError where more than half of these frames have no image."""
        there = [number for number in numbers if number in self.files["color"]]
        if 2 * len(there) >= len(numbers):
            return
        line = f"{self.folder}: {len(numbers) - len(there)} of {len(numbers)} poses have no image in color/"
        steps = {b - a for a, b in zip(there, there[1:])}
        if len(steps) == 1 and there[0] == numbers[0]:
            step = numbers.index(there[1])
            raise DataError(f"{line}: it has one frame in {step}; give --every {step}, or remove the other "
                            f"poses")
        raise DataError(f"{line} (a pose and its image have one number); export them again")


def same_photographs(paths: dict[int, Path]) -> list[int]:
    """Frames whose image file equals an earlier one's, byte for byte. Only files of one length are read."""
    lengths = defaultdict(list)
    for number, path in paths.items():
        if path.is_file() and path.stat().st_size <= MAX_IMAGE_BYTES:
            lengths[path.stat().st_size].append(number)
    known, again = set(), []
    for numbers in lengths.values():
        for number in numbers if len(numbers) > 1 else ():
            with open(paths[number], "rb") as file:
                digest = hashlib.file_digest(file, "sha256").digest()
            if digest in known:
                again.append(number)
            known.add(digest)
    return again


def read_frame_split(path: Path) -> dict[int, str]:
    """A scene's split.txt, lines 'train 3', 'val 5', 'test 7' -> {frame: split}; nothing where there is none.
    DataError, with the line, where it says anything else."""
    part = {}
    for count, line in enumerate(read_text(path, 10_000_000, "").splitlines() if path.is_file() else (), 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or words[0] not in SPLITS or not re.fullmatch("[0-9]{1,18}", words[1]):
            raise DataError(f"{path}, line {count}: '{line[:80]}' is not 'train NUMBER', 'val NUMBER' or "
                            "'test NUMBER'")
        if part.setdefault(int(words[1]), words[0]) != words[0]:
            raise DataError(f"{path}, line {count}: frame {words[1]} is in {part[int(words[1])]} and in "
                            f"{words[0]}")
    return part


def say(line: str) -> None:
    """Print a line, of several processes by the first alone."""
    if rank_and_world()[0] == 0:
        print(line, flush=True)


def labels_beside(folder: Path) -> str:
    """What of a scene without label-filt/ may be its labels, in words; '' where nothing is."""
    if (folder / "label").is_dir():
        return (f"{folder / 'label'} is not read: if it holds raw ids, rename it to label-filt; if nyu40's "
                f"(as "
                "scannet_frames_25k's does), rename it and copy docs/classes-nyu40.csv to "
                f"{folder.parent / 'classes.csv'}")
    zips = sorted(folder.glob("*_2d-label*.zip"))
    return f"{zips[0]} is not unpacked" if zips else ""
