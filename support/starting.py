"""How a training starts: its command line, its settings, its scenes, its first weights.

Test: pytest tests/test_support_starting.py
"""
import argparse
import os
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from support.datasets import TEST_ROOM, VARIED_ROOM, check_names, check_training, find_dataset
from support.files import MAX_PIXELS, DataError, program, shown
from support.frames import decode_all, say_where_frames_are_close
from support.labels import SCANNET, Classes, other_classes
from support.machine import pick_device
from support.processes import first_on_this_machine, rank_and_world
from support.ranges import follow
from support.runs import not_free, read_state
from support.settings import add_settings, boolean, check, given, reads_it

# flags that no checkpoint holds: a resumed run is given them again
AGAIN = ("cache", "save_every", "keep_every", "device", "fast", "piece", "workers", "bf16", "compile")


def parse_arguments(description: str, config: type, presets: dict) -> argparse.Namespace:
    """The command line of 07: what to train on and where to write, the machine, one flag for each setting."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    add = parser.add_argument
    add("--scene", default="scannet", help="rooms | scannet | replica | PATH [scannet]")
    add("--data", help="folder that holds the scene folders [data/scannet, data/replica, data/rooms]")
    add("--preset", choices=presets, help="[paper with CUDA and real data, else laptop]")
    add("--scenes", help="a,b,c: train on these scenes [the training side of the split]")
    add("--split", help="file of lines 'train NAME', 'test NAME' [ROOT/split.txt if there]")
    add("--varied-rooms", type=int, default=0, help="with --scene rooms: so many more, that differ more [0]")
    add("--validation", type=int, default=0, help="keep the 4 test views of so many training scenes out [0]")
    add("--out", help="folder of the run [runs/...]")
    add("--crop", type=int, default=0, metavar="N", help="pixels taken off every side of the photographs [0]")
    add("--cache", default="cache", help="folder for decoded frames [cache]")
    add("--resume", action="store_true", help="continue the run in --out from its last checkpoint")
    add("--finetune", metavar="CKPT",
        help="start from these weights, on the source and fine-tuning views of --scenes; the 4 test views "
             "stay out")
    add("--labels", metavar="FOLDER",
        help="train on the labels in FOLDER/SCENE/FRAME.png (pseudo labels, ids as in label-filt) instead "
             "of the "
             "scenes' own; evaluation never sees them")
    add("--encoder", metavar="CKPT",
        help="start the encoder, and the 1x1 head of --source-loss, from this checkpoint's")
    add("--init", metavar="CKPT",
        help="start every weight from this checkpoint's; data, settings and optimiser are this training's "
             "own")
    add("--no-eval", action="store_true", help="do not run 08_eval.py at the end")
    add("--save-every", type=int, default=1000, help="steps between checkpoints [1000]")
    add("--keep-every", type=int, default=0, help="steps between copies that stay [0: none]")
    group = parser.add_argument_group("the machine")
    group.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="[auto]")
    group.add_argument("--fast", default="auto", choices=("auto", "true", "false"),
                       help="compute by fast/, if it equals 02-06 [auto]")
    group.add_argument("--piece", type=int, default=0, help="rays that go together [0: as fits]")
    group.add_argument("--workers", type=int, default=0, help="threads that share a step's work [0: as many "
                                                              "as help]")
    group.add_argument("--bf16", type=boolean, default=False, help="networks in bfloat16 [false]")
    group.add_argument("--compile", type=boolean, default=False, help="torch.compile the networks [false]")
    add_settings(parser, config)
    args = parser.parse_args()
    args.again = [word for name in AGAIN if getattr(args, name) != parser.get_default(name)
                  for word in (f"--{name.replace('_', '-')}", str(getattr(args, name)))]
    for name in ("varied_rooms", "crop", "validation", "save_every", "keep_every", "piece", "workers"):
        least = int(name == "save_every")
        if getattr(args, name) < least:
            raise DataError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be at least {least}")
    if args.varied_rooms > TEST_ROOM - VARIED_ROOM:  # the next seeds are test rooms
        raise DataError(f"--varied-rooms {args.varied_rooms}: must be at most {TEST_ROOM - VARIED_ROOM}")
    return args


def starting_point(args, config: type, presets: dict, replica: dict, load_checkpoint) -> tuple:
    """-> settings, the checkpoint to start from (None: random weights), a name for the run folder.

    --resume takes the run's own settings and --finetune the checkpoint's, else a preset; flags given go on
    top.
    """
    state, name = None, "finetune"
    if args.resume:
        model, state = load_checkpoint(Path(args.out) / "checkpoint.pt")
        if "optimiser" not in state:
            raise DataError(f"{args.out}: its checkpoint has weights only, without an optimiser; go on from "
                            f"it with "
                            "--finetune")
        base, why = asdict(model.config), "the run's own settings"
    elif args.finetune:
        model, state = load_checkpoint(args.finetune)
        # one scene: two targets would have nearly the same sources encoded twice
        base = {**asdict(model.config), "steps": 2000, "lr": 5e-4, "extra_views": 0, "targets": 1}
        why = f"the settings of {args.finetune}, 2000 steps, a target each"
    else:
        there = args.scene != "scannet" or args.data or Path("data/scannet").is_dir()
        real = args.scene != "rooms" and there
        cuda = torch.cuda.is_available()
        name = args.preset or ("paper" if real and cuda else "laptop")
        base = {**asdict(config()), **presets[name], **(replica if (name, args.scene) == ("paper",
                                                                                          "replica") else {})}
        reason = "CUDA and real data" if name == "paper" else "no real data" if cuda else "no CUDA"
        why = f"preset {name}: " + ("you asked for it" if args.preset else reason)
    c = usable(config(**{**base, **given(args, config)}))
    print(f"{why}; {c.width}x{c.height}, {c.views} source views, {c.rays} rays, {c.coarse}+{c.fine} samples, "
          f"{c.steps} steps, {pick_device(args.device)}", flush=True)
    check_start(args, state, max(1, c.rays // c.targets) * c.targets)
    return c, state, name


def usable(config):
    """The settings themselves. DataError for a value, or values together, that no run could use."""
    check(config)
    if config.height * config.width > MAX_PIXELS:
        raise DataError(f"--height {config.height} --width {config.width}: more than {MAX_PIXELS:,} pixels")
    if not 0 < config.near < config.far:
        raise DataError(f"--near {config.near} --far {config.far}: needs 0 < near < far")
    if not 0 < config.tau <= 1:
        raise DataError(f"--tau {config.tau}: eq. 3 needs 0 < tau <= 1")
    return config


def places_of_indices(config) -> int:
    """`places` of a checkpoint that is older than this setting: its samples stood at their index. ValueError
    where its two levels have different numbers of them, and so different places."""
    if config.coarse != config.fine:
        samples = f"{config.coarse} + {config.fine} samples"
        raise ValueError(f"{samples}, embedded by index: {reads_it('position')}")
    return config.coarse


def check_start(args, state: dict | None, rays: int) -> None:
    """DataError for flags that do not go together, before any data is made or decoded."""
    if not args.resume and args.out and (Path(args.out) / "checkpoint.pt").exists():
        raise not_free(Path(args.out))
    for flag in ("encoder", "init"):
        if getattr(args, flag) and (state or flag == "init" and args.encoder):
            raise DataError(f"--{flag}: is for new trainings; --resume, --finetune and --encoder have "
                            f"weights already")
    world = rank_and_world()[1]
    if rays < world:
        raise DataError(f"--rays {rays}: fewer than the {world} processes that share them")


def training_frames(scene, run: dict, views: int, protocol) -> list[int]:
    """What may be drawn from a training scene: all frames, of a scene with a split the training frames; never
    the test views of a scene that will be evaluated or validated on; in fine-tuning the 8 source and 8
    fine-tuning views alone. DataError if too few."""
    frames = scene.parts()[0]                 # a scene's own test and val frames are never trained on
    if scene.name in run["test"] or scene.name in run["train"][:run.get("validation", 0)]:
        source, tune, test = protocol(scene)
        frames = sorted(source + tune) if run["finetuned"] else [i for i in frames if i not in test]
        assert not set(frames) & set(test), "a test view among the training frames"
    if len(frames) < views + 1:
        raise DataError(f"{scene.folder}: {len(frames)} usable frames, but {views} source views and a "
                        f"target are asked "
                        "for; leave the scene out or lower --views")
    return frames


def find_run(args, config, state: dict | None, name: str, make_rooms) -> tuple[dict, str]:
    """What a run says of its data: "data" (kind), "root", "train", "test" ...; and the name of its folder."""
    if args.resume:                           # the run knows its data, unless that was moved
        moved = {"root": args.data, "labels": args.labels}
        return {**state["run"], **{key: path for key, path in moved.items() if path}}, name
    names = args.scenes.split(",") if args.scenes else None
    found = find_dataset(args.scene, args.data, config.train_rooms, config.test_rooms, make_rooms, names,
                         args.split, varied_rooms=args.varied_rooms)
    if args.finetune and not names:
        found.train = found.test[:1] or found.train[:1]                       # one unseen scene
    check_training(found)
    # one space only, or fine-tuning: evaluate on the training scenes' own test views, and keep them out of
    # training
    test = found.train if args.finetune else found.test or found.train
    return {"data": found.kind, "root": str(found.root), "train": found.train, "test": test, "seconds": 0.0,
            "finetuned": bool(args.finetune), "labels": args.labels, "validation": args.validation,
            "crop": args.crop}, \
        f"{found.kind}-{name}"


def open_scenes(args, config, run: dict, scene_type: type, protocol) -> tuple[list, list]:
    """The run's training scenes, decoded, and what may be drawn of each."""
    if not run["train"]:
        raise DataError(f"{args.out}: its checkpoint names no scene to train on, so it cannot be resumed; "
                        f"go on "
                        "from it with --finetune")
    check_names(run["train"] + run["test"], run["root"])
    quiet = rank_and_world()[0] > 0
    with tqdm(run["train"], desc="reading poses", unit="scene", leave=False, disable=quiet) as bar:
        scenes = [scene_type(Path(run["root"]) / scene, config.height, config.width, Path(args.cache),
                             config.every, run.get("labels"), run.get("crop", 0)) for scene in bar]
    for scene in scenes:
        scene.check_camera()
    check_labels(scenes, config)
    frames = [training_frames(scene, run, config.views, protocol) for scene in scenes]
    same = set(run["train"]) & set(run["test"])
    note = " (the same: their 4 test views are kept out of training)" if same else ""
    print(f"data: {run['data']} in {shown(run['root'])}; {len(scenes)} scenes to train on, "
          f"{len(run['test'])} to evaluate on{note}", flush=True)
    say_where_frames_are_close(scenes)
    own = [scene.name for scene in scenes if scene.near_far]
    if own:
        print(f"near and far: each scene's own near_far.txt instead of {config.near:g} to {config.far:g} in "
              f"{len(own)} "
              "of them: " + ", ".join(own[:4]) + ", ..." * (len(own) > 4), flush=True)
    frames = decode_all(scenes, frames)
    return follow(scenes, config, protocol), frames


def check_labels(scenes: list, config) -> None:
    """Say how many scenes have labels. DataError where none has, and the loss has a part that needs them."""
    labelled = sum(scene.has_labels for scene in scenes)
    print(f"labels: {labelled} of {len(scenes)} training scenes have some", flush=True)
    if not labelled and config.lambda1 > 0:
        hint = next(filter(None, (scene.label_hint() for scene in scenes)), "")
        raise DataError(f"{scenes[0].folder}: no training scene has labels (label-filt/)"
                        + f"; {hint}" * bool(hint) + "; --lambda1 0 trains colour and depth alone")
    masked = [scene.name for scene in scenes if scene.has_masks]
    if masked:
        print(f"masks: in {len(masked)} scenes their black pixels are no truth and no source", flush=True)
    split = [scene.name for scene in scenes if scene.parts()[1]]
    if split:
        print(f"split.txt: {len(split)} scenes have test frames of their own, which are not trained "
              f"on", flush=True)


def classes_of(scenes: list, state: dict | None, root: str) -> Classes:
    """The label set: of the checkpoint, which the scenes must share if they have labels; else of the
    scenes."""
    classes = scenes[0].classes
    if not state:
        return classes
    known = Classes(**state["classes"]) if "classes" in state else SCANNET
    if known.names != classes.names and any(scene.has_labels for scene in scenes):
        raise DataError(f"{root}: {other_classes(known, classes)}; start without these weights")
    return known


def load_data(args, config, state: dict | None, name: str, data, rooms) -> tuple:
    """-> what the run says of itself, its scenes, their frames, the label set and the name of its folder.
    data: 01."""
    with first_on_this_machine():
        run, name = find_run(args, config, state, name, rooms.make_rooms)
        run["command"] = f"{launcher()} {shlex.join(program() + sys.argv[1:])}"
        scenes, frames = open_scenes(args, config, run, data.Scene, data.protocol)
    return run, scenes, frames, classes_of(scenes, state, run["root"]), name


def launcher() -> str:
    """What the command line begins with."""
    world = rank_and_world()[1]
    return "python" if world == 1 else f"torchrun --nproc-per-node {os.environ['LOCAL_WORLD_SIZE']}"


def load_weights(model: nn.Module, args, state: dict | None) -> None:
    """The weights to start from: of a checkpoint (state), or of --encoder or --init. DataError if they do not
    fit."""
    path = args.encoder or args.init or args.finetune or args.out
    weights = state["model"] if state else {}
    if args.encoder or args.init:
        parts = ("encoder.", "source_head.") if args.encoder else ("",)
        weights = {k: x.float() for k, x in read_state(Path(path))["model"].items() if k.startswith(parts)}
        head = weights.get("source_head.weight", torch.empty(0))
        if head.shape != model.source_head.weight.shape:
            raise DataError(f"{path}: for {len(head)} classes, the scenes have "
                            f"{len(model.classes.names)}; name another checkpoint")
    try:
        model.load_state_dict(model.state_dict() | weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()[:100]
        raise DataError(f"{path}: weights of another model ({reason}); drop the flag that changes the "
                        f"model") from None


def resume_command(args, out: Path) -> str:
    """The command line that continues this run."""
    given = {"--data": args.resume and args.data, "--labels": args.resume and args.labels}
    more = [word for flag, value in given.items() if value for word in (flag, value)] + args.again
    if args.no_eval:
        more.append("--no-eval")
    return f"{launcher()} {shlex.join([*program(), '--resume', '--out', str(out), *more])}"


def evaluate(script: Path, out: Path, args) -> None:
    """Run 08 on a finished run, in one process, and end with its status; with --no-eval nothing."""
    if not args.no_eval:
        command = [sys.executable, str(script),
                   "--checkpoint", str(out / "checkpoint.pt"), "--out", str(out / "eval"),
                   "--cache", args.cache]
        raise SystemExit(subprocess.call(command, env={**os.environ, "WORLD_SIZE": "1"}))
