"""What is attention for? The supplement's Tables 2-4 in the paper's own setting, with their control.

    python -m tools.attention encoder                  the 2D segmenter that every training starts from
    python -m tools.attention train ROW --seed N       (a) generalisation: trained on rooms, tested on others
    python -m tools.attention finetune ROW --seed N    (b) as the paper's tables: from (a)'s weights, each of
                                                       five unseen rooms by itself, no source-view loss
    python -m tools.attention probe ROW --seed N       (a)'s weights with other tau, and with uniform scores
    python -m tools.attention look ROW --seed N        Figure 1: is the surface looked at, and who sees it?
    python -m tools.attention power                    how small a difference can the pairs show?
    python -m tools.attention table                    all of it, from results/attention/*.json

ROW: none, mlp, uniform, full, intra, cross, dense, average (tools/variants.py). mlp is the control: as many
parameters as full CRA, and no token reads another. Every row has the same rooms, the same draws, the same
number of source views in training and evaluation and, but for the attention, the same initial weights.

Diagnostics: --join moments | visibility (stands beside M where attention reads it), --true-depth (fine
samples at the true surface); and --tau (Table 4). probe and look take --checkpoint weights/sray_rooms.pt too.

A run is one small file in results/attention and a folder in runs/attention. What is there is not run again,
and what was interrupted goes on. A training step is 07's, an evaluation 08's.
Test: pytest tests/test_tool_attention.py
"""
import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")    # read when torch starts its threads: do not spin

import argparse
import shlex
import sys
import time
from argparse import Namespace
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import torch

import fast
from support import machine, runs, starting
from support.evaluating import check_least
from support.files import DataError, run_script, write_json
from support.ranges import follow
from tools import attention_table, benchmark
from tools.experiments import SEGMENTER, unseen_root
from tools.tables import code_version
from tools.variants import JOINED, ROWS, TrueDepth, Variant, initial, load, looking, mean_of_keys

rooms = import_module("00_rooms")              # make_rooms
data = import_module("01_data")                # Scene, protocol
training = import_module("07_train")           # Config, PRESETS, train
evaluation = import_module("08_eval")          # evaluate

# What a size changes of 07's preset of the same name; how it fine-tunes and how the segmenter is trained. The
# paper fine-tunes for 2,000 of 260,000 steps, 1.7 times all rays of a scene's 16 views. 600 steps of 128 rays
# are 0.7 times those at 96x72; more would leave no time for five rooms and three seeds.
SIZES = {
    "laptop": dict(height=72, width=96, views=8, fine=16, extra_views=4, steps=1600, test_rooms=10),
    "smoke": dict(height=48, width=64, views=4, rays=16, coarse=4, fine=4, steps=3),
}
FINETUNE = {"laptop": dict(steps=600), "smoke": dict(steps=2)}
ENCODER = {"laptop": {**SEGMENTER, "extra_views": 14, "steps": 2500}, "smoke": {**SEGMENTER, "steps": 2}}
ROOMS = 5                                      # unseen rooms that are fine-tuned on
TAUS = (1.0, 0.8, 0.7, 0.5, 0.2)               # Table 4
FAST = Namespace(fast="auto", bf16=False, compile=False, workers=1, keep=0, coarse_stride=1)   # of 07, 08
METRICS = ("miou", "total_acc", "avg_acc", "psnr", "depth_abs_rel")


# ----------------------------------------------------------------------------------------------- one training

def config_of(args, variant: Variant, **changes) -> "training.Config":
    """The settings of a training of this size."""
    given = {**training.PRESETS[args.size], **SIZES[args.size], **changes}
    given |= {"steps": args.steps} if args.steps else {}
    given |= {"cra": ROWS[variant.row][1], "tau": variant.tau, "seed": args.seed}
    return starting.usable(training.Config(**given))


def scene_flags(args, scenes: str | None = None, finetune: Path | None = None) -> Namespace:
    """The flags of 07 that say what to train on."""
    return Namespace(scene=args.scene, data=args.data, scenes=scenes, finetune=finetune, cache=args.cache,
                     out="", split=None, labels=None, varied_rooms=0, validation=0, crop=0, resume=False,
                     save_every=200, keep_every=0, piece=256)


@contextmanager
def folder_of(args, name: str):
    """runs/attention/NAME, this process's own. DataError if another one has it."""
    out = Path(args.runs) / name
    lock = runs.lock_folder(out)
    if not lock:
        raise DataError(f"{out}: another process trains in it")
    with lock:
        yield out


def true_depth(variant: Variant) -> TrueDepth | None:
    """Where a diagnostic that is told the truth finds it."""
    return TrueDepth() if variant.told else None


def trained(args, name: str, variant: Variant, config, flags: Namespace, weights: dict,
            known: dict | None = None) -> tuple:
    """Train a variant in runs/attention/NAME, from its last checkpoint if there is one, else from `weights`
    by name. known: the checkpoint that they are of, in fine-tuning. -> model, run, true depths."""
    with folder_of(args, name) as out:
        run, scenes, frames, classes, _ = starting.load_data(flags, config, known, name, data, rooms)
        truth, path = true_depth(variant), out / "checkpoint.pt"
        if truth:
            truth.add(scenes)
        model, step = initial(variant, config, classes, truth, weights), 0
        state = None
        if path.exists():
            model, state = load(variant, path, truth)
            if asdict(model.config) != asdict(config):
                raise DataError(f"{path}: of other settings; move {out} away, or name another --runs")
        take_step = training.training_step
        if not truth:
            model, take_step = fast.faster(model, take_step, FAST)
        optimiser = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
        if state:
            runs.resume_optimiser(optimiser, state, path)
            run, step = state["run"], state["step"]
        run["variant"] = variant.label
        with runs.ending(out, command(), 0) as stop:
            training.train(model, optimiser, scenes, frames, out, run, step, flags, stop, take_step)
    return model.eval(), run, truth


def open_scene(args, config, run: dict, name: str, truth: TrueDepth | None):
    """A room of a run, its true depth known to a diagnostic that needs it."""
    root = unseen_root(run) if name in run["test"] else Path(run["root"])
    scene = data.Scene(root / name, config.height, config.width, Path(args.cache), config.every)
    follow([scene], config, data.protocol)
    if truth:
        truth.add([scene])
    return scene


def measure(args, model, run: dict, names: list[str], truth: TrueDepth | None, out: Path) -> dict[str, dict]:
    """08's evaluation of each of these rooms by itself, with as many source views as in training."""
    c, found = model.config, {}
    if not truth:
        model = fast.renderer(deepcopy(model), FAST)                          # which changes its levels
    for name in names:
        scene = open_scene(args, c, run, name, truth)
        metrics = evaluation.evaluate(model, [scene], out, f"{c.width}x{c.height}", c.views, 0, args.preview)
        found[name] = {key: metrics[key] for key in METRICS}
    return found


def command() -> str:
    """What the user typed."""
    return f"python -m tools.attention {shlex.join(sys.argv[1:])}"


def record(args, name: str, variant: Variant, config, started: float, **facts) -> None:
    """results/attention/NAME.json: the row, what made it (settings: what is not 07's default), what came
    out."""
    usual = asdict(training.Config())
    settings = {key: value for key, value in asdict(config).items() if value != usual[key]}
    write_json(Path(args.out) / f"{name}.json", {
        "row": variant.row, "join": variant.join, "true_depth": variant.true_depth, "tau": variant.tau,
        "seed": args.seed, "command": command(), "code": code_version(),
        "hardware": benchmark.hardware("cpu"), "seconds_of_this_call": round(time.time() - started),
        "settings": settings, **facts})
    print(f"wrote {Path(args.out) / name}.json", flush=True)


def there(args, name: str) -> bool:
    """Is this run's file there already?"""
    path = Path(args.out) / f"{name}.json"
    if path.exists():
        print(f"{path}: there already")
    return path.exists()


# ----------------------------------------------------------------------------------------------- the commands

def encoder(args) -> None:
    """The 2D segmenter, by 07's source-view loss alone; one for all rows and seeds."""
    variant = Variant("none")
    config = config_of(args, variant, **ENCODER[args.size])
    trained(args, "encoder", variant, config, scene_flags(args), {})


def encoder_weights(args) -> dict:
    """Its weights. DataError if they are not there."""
    path = Path(args.runs) / "encoder" / "checkpoint.pt"
    if not path.exists():
        raise DataError(f"{path}: no segmenter yet; train it with: python -m tools.attention encoder")
    state = runs.read_state(path)
    if state["step"] < state["config"]["steps"]:
        raise DataError(f"{path}: not finished; go on with: python -m tools.attention encoder")
    return {k: x for k, x in state["model"].items() if k.startswith(("encoder.", "source_head."))}


def train(args) -> None:
    """(a): a row trained on the training rooms, measured on every unseen one."""
    variant, started = variant_of(args), time.time()
    name = name_of(args, "generalise", variant)
    if there(args, name):
        return
    config = config_of(args, variant)
    model, run, truth = trained(args, name, variant, config, scene_flags(args), encoder_weights(args))
    record(args, name, variant, config, started, train_seconds=round(run["seconds"]), steps=config.steps,
           rooms=measure(args, model, run, run["test"], truth, Path(args.runs) / name / "eval"))


def name_of(args, kind: str, variant: Variant) -> str:
    """A run's name, for its folder and its file."""
    return f"{kind}-{Path(args.checkpoint).stem if args.checkpoint else f'{variant.label}-seed{args.seed}'}"


def base_of(args, variant: Variant) -> Path:
    """The finished checkpoint of (a), or --checkpoint. DataError if there is none."""
    if args.checkpoint:
        return Path(args.checkpoint)
    name = name_of(args, "generalise", variant)
    path = Path(args.runs) / name / "checkpoint.pt"
    if not path.exists() or not (Path(args.out) / f"{name}.json").exists():
        raise DataError(f"{path}: not trained to its end; first, with the same flags: "
                        f"python -m tools.attention train {variant.row} --seed {args.seed}")
    return path


def finetune(args) -> None:
    """(b): the weights of (a), each of the unseen rooms by itself, on its 8 source and 8 tuning views."""
    variant = variant_of(args)
    path = base_of(args, variant)
    before, base = training.load_checkpoint(path, variant.level(None))
    given = {"steps": args.steps} if args.steps else {}
    config = starting.usable(training.Config(**{
        **asdict(before.config), "lr": 5e-4, "extra_views": 0, "targets": 1, "source_loss": 0.0,
        **FINETUNE[args.size], **given}))
    for room in base["run"]["test"][:args.rooms or ROOMS]:
        name, started = f"{name_of(args, 'finetune', variant)}-{room}", time.time()
        if there(args, name):
            continue
        flags = scene_flags(args, room, path)
        model, run, truth = trained(args, name, variant, config, flags, base["model"], base)
        record(args, name, variant, config, started, train_seconds=round(run["seconds"]), steps=config.steps,
               rooms=measure(args, model, run, [room], truth, Path(args.runs) / name / "eval"))


def weights_of(args, variant: Variant) -> tuple:
    """A row's trained weights, as they are -> model, state, what places its samples at the true depth."""
    truth = true_depth(variant)
    return *load(variant, base_of(args, variant), truth), truth


def probe(args) -> None:
    """(a)'s weights as they are, but for tau; and, of full CRA, for the scores: what attention's choice is
    worth to weights that were trained with it."""
    variant, started = variant_of(args), time.time()
    name = name_of(args, "probe", variant)
    if there(args, name):
        return
    model, state, truth = weights_of(args, variant)
    out, found, run = Path(args.runs) / name, {}, state["run"]
    for tau in TAUS:
        model.coarse.weights.tau = model.fine.weights.tau = tau
        found[f"tau {tau:g}"] = measure(args, model, run, run["test"][:args.rooms], truth, out)
    if variant.row == "full":
        model.coarse.weights.tau = model.fine.weights.tau = variant.tau
        for level in (model.coarse, model.fine):
            level.cra.L4.attend = level.cra.L6.attend = mean_of_keys
        found["uniform scores"] = measure(args, model, run, run["test"][:args.rooms], truth, out)
    record(args, name, variant, model.config, started, changed=found)


def look(args) -> None:
    """Figure 1's claim at the true surface, beside what needs no attention. See variants.looking."""
    variant, started = variant_of(args), time.time()
    name = name_of(args, "look", variant)
    if there(args, name):
        return
    model, state, truth = weights_of(args, variant)
    c, found = model.config, {}
    for room in state["run"]["test"][:args.rooms]:
        found[room] = looking(model, open_scene(args, c, state["run"], room, truth), c.views)
    record(args, name, variant, c, started, looking=found)


# ----------------------------------------------------------------------------------------------- command line

def variant_of(args) -> Variant:
    """The row and its diagnostics."""
    return Variant(args.row, args.join, args.true_depth, args.tau)


def power(args) -> None:
    """What the pairs can show: attention_table.power."""
    pairs = {"generalise": 3 * SIZES["laptop"]["test_rooms"], "finetune": 3 * ROOMS}
    said = attention_table.power(Path(args.out), pairs)
    write_json(Path(args.out) / "power.json", {"command": command(), **said})


def table(args) -> None:
    """results/attention/table.md: attention_table.table."""
    attention_table.table(Path(args.out))


COMMANDS = {"encoder": encoder, "train": train, "finetune": finetune, "probe": probe, "look": look,
            "power": power, "table": table}


def parse_arguments() -> Namespace:
    """The command line. DataError for a row that is missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("what", choices=COMMANDS, help="see the top of tools/attention.py")
    add("row", nargs="?", choices=ROWS, help="of train, finetune, probe, look")
    add("--seed", type=int, default=0, help="of weights and draws [0]")
    add("--tau", type=float, default=Variant.tau, help=f"eq. 3's, in training [{Variant.tau}]")
    add("--join", choices=JOINED, default="", help="diagnostic: what stands beside M for attention to read")
    add("--true-depth", action="store_true", help="diagnostic: fine samples at the true surface")
    add("--rooms", type=int, help=f"unseen rooms, of finetune [{ROOMS}], probe and look [all]")
    add("--checkpoint", help="probe, look: of these weights of full CRA, not of a training of this tool")
    add("--preview", type=int, default=1, metavar="N", help="test views' every N-th row and column alone [1]")
    add("--steps", type=int, help="of train, finetune, encoder [the size's]")
    add("--size", choices=SIZES, default="laptop", help="[laptop]")
    add("--scene", default="rooms", help="as in 07: rooms, or a folder of scenes [rooms]")
    add("--data", help="folder that holds the scene folders [data/rooms]")
    add("--cache", default="cache", help="folder for decoded frames [cache]")
    add("--runs", default="runs/attention", help="folder of the trainings [runs/attention]")
    add("--out", default="results/attention", help="folder of the results [results/attention]")
    args = parser.parse_args()
    given = [name for name in ("preview", "rooms", "steps") if getattr(args, name) is not None]
    check_least(args, **dict.fromkeys(given, 1))
    if args.checkpoint and args.what in ("probe", "look"):
        args.row = "full"
    elif args.checkpoint:
        raise DataError("--checkpoint: is for probe and look")
    if args.what in ("train", "finetune", "probe", "look") and not args.row:
        raise DataError(f"{args.what}: which row? One of {', '.join(ROWS)}")
    return args


def main() -> None:
    machine.prepare_cpu()
    args = parse_arguments()
    COMMANDS[args.what](args)


if __name__ == "__main__":
    run_script(main)
