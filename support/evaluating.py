"""How an evaluation starts: its command line, its scenes; and what it says of itself.

Test: pytest tests/test_08_eval.py
"""
import argparse
import os
import platform
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from support.datasets import check_names, find_dataset, space
from support.files import DataError, program, read_json, shown
from support.films import check_video
from support.frames import decode_all, say_where_frames_are_close
from support.labels import Classes, other_classes
from support.processes import rank_and_world
from support.ranges import follow
from support.settings import check

RESIZED = ("height", "width", "coarse", "fine", "typical")      # what an evaluation may choose for itself


def add_scene_flags(parser: argparse.ArgumentParser) -> None:
    """Which checkpoint, on which scenes, on which device."""
    add = parser.add_argument
    add("--checkpoint", required=True, help="written by 07_train.py")
    add("--scene", help="rooms | scannet | replica | PATH [what the run kept for testing]")
    add("--data", help="folder that holds the scene folders")
    add("--scenes", help="a,b,c: these scenes alone")
    add("--split", help="file of lines 'train NAME', 'test NAME'")
    add("--cache", default="cache", help="folder for decoded frames [cache]")
    add("--crop", type=int, metavar="N", help="pixels taken off every side of the photographs [the run's]")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="[auto]")


def parse_arguments(description: str, config: type) -> argparse.Namespace:
    """The command line of 08. config: 07's dataclass of settings, which describes the sizes."""
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add_scene_flags(parser)
    add("--out", help="folder for metrics.json and pictures [eval beside the checkpoint]")
    for name in RESIZED:
        field = config.__dataclass_fields__[name]
        add(f"--{name}", type=field.type, help=f"{field.metadata['help']} [the run's]")
    add("--views", type=int, default=8,
        help="source views, 1 to 16; beyond 8 they borrow the fine-tuning views [8]")
    add("--preview", type=int, default=1, metavar="N",
        help="every N-th row and column of each view alone: figures and pictures of a sample, N x N times as "
             "fast, no SSIM [1]")
    add("--lpips", action="store_true",
        help="LPIPS too: needs requirements-lpips.txt, and VGG's weights from the network")
    add("--video", metavar="FILE", help="instead: a fly-through of the first scene, .mp4 or .gif")
    add("--frames", type=int, default=60, help="of --video, 12 a second [60]")
    add("--chunk", type=int, default=0, help="rays rendered together [0: some 16,384 samples' worth]")
    group = parser.add_argument_group("the faster renderer, fast/render.py")
    group.add_argument("--fast", default="auto", choices=("auto", "true", "false"),
                       help="compute by fast/, if it equals 02-06 [auto]")
    group.add_argument("--keep", type=int, default=0, metavar="N",
                       help="labels come from the N samples of largest weight on a ray [0: from all]")
    group.add_argument("--coarse-stride", type=int, default=1, metavar="N",
                       help="the coarse level places the samples of every N-th row and column's rays; those "
                            "between take over their weights [1]")
    group.add_argument("--workers", type=int, default=0,
                       help="threads that share an image [0: as many as help]")
    args = parser.parse_args()
    check_arguments(args)
    return args


def check_arguments(args: argparse.Namespace) -> None:
    """DataError for what no evaluation could do."""
    if args.video:
        check_video(Path(args.video))
    if args.frames < 2:
        raise DataError(f"--frames {args.frames}: a fly-through has at least 2")
    if args.preview < 1 or args.preview > 1 and args.lpips:
        raise DataError(f"--preview {args.preview}: must be 1 or more, and 1 with --lpips")
    if not 1 <= args.views <= 16:
        raise DataError(f"--views {args.views}: the protocol has 8 source and 8 fine-tuning views; give 1 to "
                        "16")
    check_least(args, chunk=0, keep=0, coarse_stride=1, workers=0)


def check_least(args: argparse.Namespace, **least: int) -> None:
    """DataError for a flag whose value is less than it may be."""
    for name, value in least.items():
        if getattr(args, name) < value:
            flag = f"--{name.replace('_', '-')} {getattr(args, name)}"
            raise DataError(f"{flag}: must be at least {value}")


def resize(config, args: argparse.Namespace) -> None:
    """Put what the command line names of RESIZED into a checkpoint's settings."""
    for name in RESIZED:
        if getattr(args, name) is not None:
            setattr(config, name, getattr(args, name))
    check(config)


def choose_scenes(args: argparse.Namespace, config, run: dict, make_rooms) -> tuple[str, Path, list[str]]:
    """The kind of the scenes, the folder that holds them and their names: what the run kept unseen, or what
    the command line asks for."""
    if getattr(args, "crop", None) is None:
        args.crop = run.get("crop", 0)
    check_least(args, crop=0)
    names = args.scenes.split(",") if args.scenes else None
    if args.scene is None and args.data is None:
        kind, root, scenes = run["data"], Path(run["root"]), names or run["test"]
        if not scenes:
            raise DataError(f"{args.checkpoint}: says of no scene that it was kept for testing; give --scene")
        # weights trained elsewhere: rooms are made anew, never where a checkpoint says
        if kind == "rooms" and not all((root / name / "color").is_dir() for name in scenes):
            root = find_dataset("rooms", None, 0, config.test_rooms, make_rooms).root
    else:
        dataset = find_dataset(args.scene or "scannet", args.data, 0, config.test_rooms, make_rooms, names,
                               args.split)
        kind, root = dataset.kind, dataset.root
        scenes = names or dataset.test or dataset.train                       # one space alone has no split
    check_names(scenes, "--scenes" if names else args.checkpoint)
    return kind, root, scenes


def open_scenes(folders: list[Path], data, config, args, chosen) -> list:
    """The scenes, decoded where chosen(scene) -> source and test views needs it, their near and far as the
    model's settings want them. data: 01. DataError for a bad file, before anything is rendered."""
    for folder in folders:
        if not (folder / "color").is_dir():
            raise DataError(f"{folder}: no such scene; check --data and --scenes")
    scenes = [data.Scene(folder, config.height, config.width, Path(args.cache), config.every, crop=args.crop)
              for folder in folders]
    quiet = rank_and_world()[0] > 0
    with tqdm(scenes, desc="reading views", unit="scene", leave=False, disable=quiet) as bar:
        for scene in bar:
            decode_all([scene], [sum(chosen(scene), [])], quiet=True)
            if not all(chosen(scene)):
                raise DataError(f"{scene.folder}: no source view or no test view can be read; export them "
                                "again")
    return follow(scenes, config, data.protocol)


def introduce(checkpoint: str, state: dict, kind: str, root: Path, names: list[str]) -> list[str]:
    """Say what is evaluated on what -> the spaces among these scenes that the training saw."""
    known = []
    if Path(state["run"]["root"]) == root:
        known = sorted({space(name) for name in state["run"]["train"]} & {space(name) for name in names})
    print(f"{checkpoint}, step {state['step']}, on {kind} in {shown(root)}: {', '.join(names)}")
    print(f"seen in training (their test views were not): {', '.join(known)}" if known
          else "none of these was seen in training")
    return known


def thinned(view, stride: int):
    """Every stride-th row and column of a view, its images (H, W, 3); mask true where it has none."""
    labels = view.labels[::stride, ::stride]
    mask = torch.ones_like(labels, dtype=torch.bool) if view.mask is None else view.mask[::stride, ::stride]
    return replace(view, images=view.images[:, ::stride, ::stride].permute(1, 2, 0), labels=labels,
                   depth=view.depth[::stride, ::stride], mask=mask)


def comparable(scene, classes: Classes) -> bool:
    """Has the scene labels, of these classes?"""
    return scene.has_labels and scene.classes.names == classes.names


def warn(scenes: list, classes: Classes) -> None:
    """Say where a scene has samples of its own range, frames too close to each other, or labels of other
    classes than the model's."""
    say_where_frames_are_close(scenes)
    for scene in scenes:
        if scene.near_far:
            near, far = scene.near_far
            print(f"{scene.name}: samples from {near:g} to {far:g} (its near_far.txt)")
    masked = [scene.name for scene in scenes if scene.has_masks]
    if masked:
        print(f"masks: their black pixels are no truth and no source in {', '.join(masked)}")
    strange = [scene for scene in scenes if scene.has_labels and not comparable(scene, classes)]
    if strange:
        print(f"LABELS ARE NOT COMPARED: {other_classes(classes, strange[0].classes)}; colour and depth are")


def out_folder(args: argparse.Namespace) -> Path:
    """--out, or eval beside the checkpoint. DataError where its metrics.json is not of an evaluation, which
    would be written over."""
    out = Path(args.out) if args.out else Path(args.checkpoint).parent / "eval"
    path = out / "metrics.json"
    if os.path.lexists(path):
        try:
            before = read_json(path, 2 ** 28)
        except DataError:
            before = None
        if not (isinstance(before, dict) and "baseline_copy_nearest" in before):
            raise DataError(f"{path}: not of an evaluation, and it stays; move it away or name another --out")
    return out


def command_line() -> str:
    """What the user typed."""
    return f"python {shlex.join(program() + sys.argv[1:])}"


def hardware() -> str:
    """The machine in words."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    processor = platform.processor() or platform.machine()
    return f"{processor}, {torch.get_num_threads()} threads, torch {torch.__version__}, {gpu}"
