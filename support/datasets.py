"""Finding scenes and telling which are for training and which for testing: what --scene, --data, --scenes
and --split mean.

Test: pytest tests/test_support_datasets.py
"""
import os
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from support import strange
from support.files import DataError, read_text

# rooms are numbered by their seed: those of 5000 .. 8999 differ more, those from 9000 on are for testing;
# those from 20000 on bring a split.txt, and --scene rooms takes none of them (support/rooms)
VARIED_ROOM, TEST_ROOM = 5000, 9000

# other layouts -> what their folders hold, the first that fits. tools/import_scenes.py turns them into ours
SIGNS = {
    "Blender / nerfstudio": ["transforms.json", "transforms_*.json"],
    "COLMAP": [f"{place}/cameras.{end}" for place in ("sparse/0", "sparse", "colmap/sparse/0", "dense/sparse",
                                                      "distorted/sparse/0") for end in ("bin", "txt")],
    "LLFF": ["poses_bounds.npy"],
    "ScanNet download": ["*.sens"],
    "Replica for Semantic-NeRF": ["traj_w_c.txt"],
}


@dataclass
class Dataset:
    """Where scenes are and which are for what. kind: "rooms" (ours), "scannet", "replica", or "path" for
    somebody's folder."""
    kind: str
    root: Path
    train: list[str]
    test: list[str]


def find_dataset(scene: str, data: str | None, train_rooms: int, test_rooms: int, make_rooms: Callable,
                 scenes: list[str] | None = None, split_file: str | None = None,
                 room_size: tuple[int, int] = (240, 320), varied_rooms: int = 0) -> Dataset:
    """Resolve --scene rooms | scannet | replica | PATH with --data ROOT and --scenes a,b,c.

    scannet: ROOT or data/scannet; when neither --data nor that folder exists, says so in one loud line and
    takes rooms. replica: ROOT or data/replica, which tools/import_scenes.py writes. rooms: made by make_rooms
    (00's) on first use in ROOT or data/rooms; `train_rooms` (0: none are needed), `varied_rooms` more to
    train on, and `test_rooms`. PATH: a scene folder, or a folder of scenes. `scenes` replaces the training
    list; the same spaces leave the test list.
    """
    if scene == "scannet" and data is None and not Path("data/scannet").is_dir():
        print("*** NO SCANNET ON DISK (data/scannet; point --data at yours): MAKING ROOMS INSTEAD. "
              "Everything below is about rooms, not ScanNet. ***", flush=True)
        scene = "rooms"
    check_names(scenes or [], "--scenes")
    if scene == "rooms":
        root = Path(data or "data/rooms")
        there = scenes and all((root / name / "color").is_dir() for name in scenes)  # no others to train on
        training = [*range(train_rooms), *range(VARIED_ROOM, VARIED_ROOM + varied_rooms)]
        testing = [*range(TEST_ROOM, TEST_ROOM + test_rooms)]
        seeds = testing if there else training + testing
        if data:                              # somebody's folder: add what is missing, rewrite nothing
            seeds = [seed for seed in seeds if not (root / room_name(seed) / "color").is_dir()]
        make_rooms(root, seeds, frames=24, width=room_size[1], height=room_size[0])
        dataset = Dataset("rooms", root, [*map(room_name, training)], [*map(room_name, testing)])
    else:
        dataset = scenes_on_disk(scene, data, split_file)
    return dataset if not scenes else trained_on(dataset, scenes)


def room_name(seed: int) -> str:
    """The folder of 00's room of this seed."""
    return f"room{seed:04d}_00"


def scenes_on_disk(scene: str, data: str | None, split_file: str | None) -> Dataset:
    """--scene scannet | replica | PATH: what is there, split. DataError where nothing is."""
    known = scene in ("scannet", "replica")
    root = Path(data or f"data/{scene}") if known else Path(scene)
    if scene == "replica" and not root.is_dir():
        raise DataError(f"{root}: no Replica here; import your copy (README, \"Your own data\") with: "
                        f"python -m tools.import_scenes FOLDER --out {shlex.quote(str(root))}")
    if not known and data:
        raise DataError(f"--scene {scene} is a path already; leave out --data {data}")
    if not known and (root / "color").is_dir():                               # one scene folder
        root, names = root.resolve().parent, [root.resolve().name]
    else:
        names = list_scenes(root)
    if not split_file and (root / "split.txt").is_file():
        split_file = root / "split.txt"
    return Dataset(scene if known else "path", root, *split_by_space(names, split_file))


def trained_on(dataset: Dataset, scenes: list[str]) -> Dataset:
    """The same with these scenes for training, and none of their spaces for testing. DataError where one of
    them is not there."""
    for name in scenes:
        if not (dataset.root / name / "color").is_dir():
            raise DataError(f"{dataset.root / name}: no such scene; --scenes takes names of folders in "
                            f"{dataset.root}")
    taken = {space(name) for name in scenes}
    test = [name for name in dataset.test if space(name) not in taken]
    return Dataset(dataset.kind, dataset.root, list(scenes), test)


def check_training(dataset: Dataset) -> None:
    """DataError unless there is a scene to train on."""
    if not dataset.train:
        raise DataError(f"{dataset.root}: no scene to train on; for testing there are {some(dataset.test)}; "
                        "change the split's lines 'train NAME', or name scenes with --scenes")


def check_names(names: list[str], where: str) -> None:
    """DataError unless these are plain folder names: a list of scenes must not lead out of the folder of
    scenes."""
    for name in names:
        plain = isinstance(name, str) and name not in ("", ".", "..") and name.isprintable()
        if not plain or any(kind(name).name != name for kind in (PurePosixPath, PureWindowsPath)):
            raise DataError(f"{where}: {str(name)[:80]!r} is not the name of a scene; names of folders only, "
                            "no paths")


# -------------------------------------------------------------------------------------------------- splitting

def space(name: str) -> str:
    """The room a scan shows: scene0160_01 -> scene0160. Splits go by space: two scans of one room are one
    room."""
    match = re.fullmatch(r"(.+)_\d\d", name)
    return match.group(1) if match else name


def split_by_space(names: list[str], split_file: Path | None = None) -> tuple[list[str], list[str]]:
    """Scene names -> (train, test), no space in both.

    split_file has a line "train NAME" or "test NAME" for each scene or space. Without one, every seventh
    space in name order is for testing (the paper's 60 / 10); one space alone has no test scene.
    """
    if split_file:
        part = read_split(Path(split_file))
        if not set(part) & {space(name) for name in names}:
            raise DataError(f"{split_file}: names none of the scenes that are there; it has {some(part)}, "
                            f"there "
                            f"are {some(names)} (letter case counts)")
    else:
        spaces = sorted({space(n) for n in names})
        held_out = spaces[6::7] or spaces[1:][-1:]                            # fewer than seven: the last
        part = {s: "test" if s in held_out else "train" for s in spaces}
    return tuple([n for n in names if part.get(space(n)) == side] for side in ("train", "test"))


def some(names) -> str:
    """The first few of these names, for a message."""
    names = list(names)
    return (", ".join(names[:4]) + ", ..." * (len(names) > 4))[:200] or "none"


def read_split(path: Path) -> dict[str, str]:
    """A split file -> {space: "train" or "test"}. DataError, with the line, where it says anything else."""
    if not path.is_file():
        raise DataError(f"{path}: no such split file; it has lines 'train NAME' and 'test NAME'")
    part: dict[str, str] = {}
    for number, line in enumerate(read_text(path, 10_000_000, "").splitlines(), 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or words[0] not in ("train", "test"):
            raise DataError(f"{path}, line {number}: '{line[:80]}' is not 'train NAME' or 'test NAME'")
        check_names(words[1:], f"{path}, line {number}")
        if part.setdefault(space(words[1]), words[0]) != words[0]:
            raise DataError(f"{path}, line {number}: {space(words[1])} is in train and in test; two scans of "
                            "one room belong to one side")
    return part


# ---------------------------------------------------------------------------------------- what is in a folder

def list_scenes(root: Path) -> list[str]:
    """Names of the scene folders (those with color/) below root, sorted. DataError if there are none."""
    root = Path(root)
    there = sorted(p.name for p in root.iterdir() if (p / "color").is_dir()) if root.is_dir() else []
    if not there:
        say_how_to_import(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; --data takes the folder that holds the scene folders")
    names = [name for name in there if not name.startswith(".")]
    if not names:
        raise DataError(f"{root}: no scene in it (a scene has color/, pose/, intrinsic/); check --data")
    return names


def say_how_to_import(root: Path) -> None:
    """DataError with the command that imports it, if root is somebody else's layout."""
    found = foreign_scenes(root)
    if found:
        layout, full = found[0][0], root.resolve()
        name = re.sub(r"[^\w.-]", "_", (full if full.is_dir() else full.parent).name)
        name = {"ScanNet download": "scannet", "Replica for Semantic-NeRF": "replica"}.get(layout, name)
        raise DataError(f"{root}: another layout ({layout}); import it once, then use --scene data/{name}: "
                        f"python -m tools.import_scenes {shlex.quote(str(root))} --out data/{name}")
    hint = root.exists() and (strange.level(root, is_scene) or strange.what_is(root))
    if hint:
        raise DataError(hint)


def is_scene(folder: Path) -> bool:
    """Is it a scene, in ScanNet's layout or in another?"""
    return is_export(folder) or layout_of(folder) is not None


def is_export(folder: Path) -> bool:
    """Is it a scene in ScanNet's layout, as 01 reads it?"""
    return (folder / "color").is_dir() and (folder / "pose").is_dir()


def foreign_scenes(path: Path) -> list[tuple[str, Path]]:
    """The (layout in SIGNS, folder) of every scene of somebody else's in path (a folder, or the telling file
    in it), at any depth. A scene is not searched for further ones."""
    path = Path(path)
    if path.is_file():
        fits = any(path.match(sign) for signs in SIGNS.values() for sign in signs)
        if not fits:
            return []
        path = path.parent.parent if path.parent.name in ("0", "sparse") else path.parent
        path = path.parent if path.name == "sparse" else path
    return [found for folder in folders_below(path, lambda one: layout_of(one) or is_export(one))
            if (found := (layout_of(folder), folder))[0]]


def layout_of(folder: Path) -> str | None:
    """The layout in SIGNS whose sign a folder holds, if any."""
    return next((layout for layout, signs in SIGNS.items()
                 if any(next(folder.glob(sign), None) for sign in signs)), None)


def folders_below(folder: Path, enough: Callable, depth: int = 8) -> Iterator[Path]:
    """A folder and all below it, in name order, hidden ones and links to folders left out. Where
    enough(folder) holds, nothing below it."""
    yield folder
    if depth and folder.is_dir() and os.access(folder, os.R_OK | os.X_OK) and not enough(folder):
        for below in sorted(folder.iterdir()):
            if below.is_dir() and not below.is_symlink() and not below.name.startswith("."):
                yield from folders_below(below, enough, depth - 1)
