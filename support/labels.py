"""Label sets: ScanNet's 20 classes, ScanNet's table of raw ids, and class lists of other data.

A label is an index into a list of classes, IGNORE (-1) where a pixel is unlabelled. Files hold raw ids. A
table (int8 array) leads from a raw id to the index.

Test: pytest tests/test_support_labels.py
"""
import csv
import io
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from support.files import DataError, read_text

IGNORE = -1
LABELS_TSV = "scannetv2-labels.combined.tsv"  # beside the scenes: raw id -> nyu40 id
CLASSES_CSV = "classes.csv"                   # instead of it, where the labels are not ScanNet's

# the 20 classes of the ScanNet benchmark: nyu40 id, name, colour
SCANNET20 = (
    (1, "wall", (174, 199, 232)), (2, "floor", (152, 223, 138)), (3, "cabinet", (31, 119, 180)),
    (4, "bed", (255, 187, 120)), (5, "chair", (188, 189, 34)), (6, "sofa", (140, 86, 75)),
    (7, "table", (255, 152, 150)), (8, "door", (214, 39, 40)), (9, "window", (197, 176, 213)),
    (10, "bookshelf", (148, 103, 189)), (11, "picture", (196, 156, 148)), (12, "counter", (23, 190, 207)),
    (14, "desk", (247, 182, 210)), (16, "curtain", (219, 219, 141)), (24, "refrigerator", (255, 127, 14)),
    (28, "shower curtain", (158, 218, 229)), (33, "toilet", (44, 160, 44)), (34, "sink", (112, 128, 144)),
    (36, "bathtub", (227, 119, 194)), (39, "otherfurniture", (82, 84, 163)))
NYU40_IDS = [nyu40 for nyu40, _, _ in SCANNET20]


class Classes(NamedTuple):
    """A label set: names and colours [red, green, blue] of L classes. A model remembers its own."""
    names: list[str]
    colours: list[list[int]]


SCANNET = Classes([name for _, name, _ in SCANNET20], [list(colour) for _, _, colour in SCANNET20])


def read_label_table(path: Path) -> np.ndarray:
    """scannetv2-labels.combined.tsv -> table (max raw id + 1,) int8: raw id -> index into SCANNET, IGNORE
    elsewhere. DataError if it is missing or something else."""
    text = read_text(path, 10_000_000,
                     "the scenes have labels, which need it; ScanNet's download script brings it")
    try:
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t")
        pairs = [(int(row["id"]), int(row["nyu40id"])) for row in rows if row["nyu40id"]]
        if not all(0 <= raw < 2 ** 16 for raw, _ in pairs):
            raise ValueError("an id that no label image can hold")
        table = np.full(max(raw for raw, _ in pairs) + 1, IGNORE, np.int8)
        for raw, nyu40 in pairs:
            if nyu40 in NYU40_IDS:
                table[raw] = NYU40_IDS.index(nyu40)
    except (KeyError, TypeError, ValueError, IndexError, csv.Error) as error:
        raise DataError(f"{path}: not ScanNet's label table (needs columns id and nyu40id of numbers: "
                        f"{error})") from None
    return table


def read_classes(path: Path) -> tuple[Classes, np.ndarray]:
    """classes.csv, columns id (the raw label), name, colour (#rrggbb) -> Classes in the file's order, and a
    table like read_label_table's. Ids that share a name are one class; ids that are not listed are
    unlabelled. DataError if malformed."""
    lines = io.StringIO(read_text(path, 1_000_000), newline="")
    try:
        rows = [(int(row["id"]), row["name"].strip(),
                 bytes.fromhex(row["colour"].strip().removeprefix("#"))) for row in csv.DictReader(lines)]
    except (KeyError, TypeError, AttributeError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: not a class list (needs columns id,name,colour like 93,wall,#aec7e8: "
                        f"{error})") from None
    ids, names = [raw for raw, _, _ in rows], list(dict.fromkeys(name for _, name, _ in rows))
    if not 1 <= len(names) <= 127 or not all(map(usable_name, names)) or len(set(ids)) < len(ids) \
            or not 0 <= min(ids) <= max(ids) <= 65535:
        raise DataError(f"{path}: needs 1 to 127 classes, with names of one line of at most 100 characters, "
                        "each id once and from 0 to 65535")
    if any(len(colour) != 3 for _, _, colour in rows):
        raise DataError(f"{path}: a colour is six hexadecimal digits, like #aec7e8")
    table = np.full(max(ids) + 1, IGNORE, np.int8)
    table[ids] = [names.index(name) for _, name, _ in rows]
    # the first of those that share a name
    colours = {name: list(colour) for _, name, colour in reversed(rows)}
    return Classes(names, [colours[name] for name in names]), table


def usable_name(name) -> bool:
    """Can this be the name of a class: a line of printable characters?"""
    return isinstance(name, str) and 0 < len(name) <= 100 and name.isprintable()


def checked_classes(saved) -> Classes:
    """The label set that a checkpoint holds as {"names": ..., "colours": ...}. ValueError if it is none."""
    names, colours = saved["names"], saved["colours"]
    if not (type(names) is type(colours) is list and 1 <= len(names) == len(colours) <= 127):
        raise ValueError("unusable classes: not 1 to 127 names with a colour each")
    if not all(map(usable_name, names)) or len(set(names)) < len(names):
        raise ValueError("unusable classes: their names are no different lines of text")
    for colour in colours:
        if type(colour) not in (list, tuple) or len(colour) != 3 \
                or not all(type(x) is int and 0 <= x <= 255 for x in colour):
            raise ValueError("unusable classes: a colour is not three numbers of 0 to 255")
    return Classes(names, [list(colour) for colour in colours])


def classes_of(root: Path) -> Classes:
    """The label set of the scenes in root: its classes.csv, or else ScanNet's 20 classes."""
    path = root / CLASSES_CSV
    return read_classes(path)[0] if os.path.lexists(path) else SCANNET


def table_of(root: Path, labelled: bool = True) -> np.ndarray:
    """The table raw id -> class of the scenes in root: from its classes.csv, or else from ScanNet's table.
    Scenes that are not labelled need neither: their pseudo labels are nyu40 ids then."""
    if os.path.lexists(root / CLASSES_CSV):
        return read_classes(root / CLASSES_CSV)[1]
    if labelled or os.path.lexists(root / LABELS_TSV):
        return read_label_table(root / LABELS_TSV)
    table = np.full(41, IGNORE, np.int8)
    table[NYU40_IDS] = range(len(NYU40_IDS))
    return table


def other_classes(known: Classes, given: Classes) -> str:
    """One clause that says how a checkpoint's label set and a scene's differ."""
    lists = [f"{len(c.names)} classes ({', '.join(c.names[:3])} ...)" for c in (known, given)]
    return f"the checkpoint knows {lists[0]}, the scenes are labelled with {lists[1]}"
