"""What tables are made of: the real commands, each run once, and the spread of their figures over seeds.

A training lies in runs/tables/KEY, where KEY says its settings. Tables share what they have in common, an
interrupted one is resumed, a finished one is read back.
Test: pytest tests/test_tool_tables.py
"""
import hashlib
import json
import statistics
import subprocess
import time
from importlib import import_module
from pathlib import Path

from support.datasets import find_dataset
from support.files import DataError, write_atomically
from tools import python

rooms = import_module("00_rooms")              # make_rooms
training = import_module("07_train")           # load_checkpoint

PRESETS = {   # flags of 07 for every training of a table; a row changes what it is about and nothing else
    "quick": dict(preset="laptop", height=48, width=64, steps=60, train_rooms=20, test_rooms=2),
    "laptop": dict(preset="laptop", height=72, width=96, steps=400, fine=16, extra_views=4, test_rooms=6,
                   save_every=100),
    "paper": dict(preset="paper"),
    "smoke": dict(preset="smoke", steps=30, train_rooms=4, test_rooms=1),     # for the tests
}
KEEP = {"laptop": 8}    # of 08: labels from so many samples a ray
# The 2D segmenter: the encoder and its 1x1 head, trained on single images by 07 with the rays' losses at
# zero. It stands where the paper has a pretrained DeepLabV3+ (Table 5). At laptop size every training's
# encoder starts from it, so that a row's few minutes go to what the row is about.
SEGMENTER = dict(lambda1=0, lambda2=0, source_loss=1, views=1, rays=2, coarse=2, fine=2, targets=2)
SEGMENTER_STEPS = {"quick": 200, "laptop": 2500, "paper": 20_000, "smoke": 30}
SEGMENTER_IMAGES = {"quick": 15, "laptop": 15, "paper": 8, "smoke": 4}         # for each of a step's targets
UNIT = {"smoke": 2, "quick": 10, "laptop": 40, "paper": 2000}     # the paper's 2k steps on one scene, in ours


def shown(script: str, flags: tuple) -> str:
    """A command as a user types it."""
    return " ".join(["python", *([] if script.endswith(".py") else ["-m"]), script, *map(str, flags)])


def unseen_root(run: dict) -> Path:
    """The folder of a run's unseen scenes. Rooms that are not on disk are made in data/rooms. DataError where
    the run has no unseen scene."""
    if not run["test"]:
        raise DataError("the checkpoint says of no scene that it was kept for testing; name another")
    root = Path(run["root"])
    if run.get("data") == "rooms" and not all((root / name / "color").is_dir() for name in run["test"]):
        root = find_dataset("rooms", None, 0, min(len(run["test"]), 100), rooms.make_rooms).root
    return root


class Bench:
    """Runs trainings and evaluations, once each; remembers the commands and their seconds."""

    def __init__(self, args):
        self.args, self.commands, self.seconds = args, [], 0.0
        self.where = ["--scene", "scannet", "--data", args.data] if args.data else ["--scene", "rooms"]
        self.runs = Path(args.runs)

    def run(self, script: str, *flags) -> None:
        """A numbered script, or a tool by its module's name, in a process of its own."""
        print(f"\n$ {shown(script, flags)}", flush=True)
        command, env = python(script, *flags)
        start = time.time()
        code = subprocess.call(command, env=env)
        self.seconds += time.time() - start
        if code:
            raise DataError(f"{shown(script, flags)}: ended with status {code} (see above); run the table "
                            "again to go on from there")

    def once(self, product: Path, script: str, *flags) -> Path:
        """Run a script unless what it makes is there -> that. --out must be the last flag."""
        self.commands.append(shown(script, flags))
        if not product.exists():
            self.run(script, *flags)
        return product

    def train(self, *flags, out: Path) -> Path:
        """07, resumed if it was interrupted -> its folder, with a finished checkpoint."""
        checkpoint = self.once(out / "checkpoint.pt", "07_train.py", *self.where, *flags, "--no-eval",
                               "--out", out)
        model, state = training.load_checkpoint(checkpoint)
        if state["step"] < model.config.steps:
            self.run("07_train.py", "--resume", "--no-eval", "--out", out)
        return out

    def segmenter(self) -> Path:
        """The 2D segmenter's folder."""
        size = self.args.size
        return self.trained("segmenter", **SEGMENTER, extra_views=SEGMENTER_IMAGES[size] - 1,
                            steps=SEGMENTER_STEPS[size])

    def trained(self, name: str = "", **changes) -> Path:
        """The folder of the preset's training with these settings changed. With --checkpoint, those weights
        stand for the training with nothing changed."""
        if self.args.checkpoint and not name and not changes:
            return self.given(Path(self.args.checkpoint))
        settings = {**PRESETS[self.args.size], **changes}
        if not name and self.args.size in ("quick", "laptop"):
            settings["encoder"] = str(self.segmenter() / "checkpoint.pt")
        name = name or "-".join(f"{k}_{v}" for k, v in sorted(changes.items())) or "base"
        digest = hashlib.sha1(json.dumps([settings, self.where], sort_keys=True).encode()).hexdigest()[:6]
        flags = [x for key, value in settings.items() for x in (f"--{key.replace('_', '-')}", value)]
        return self.train(*flags, out=self.runs / f"{self.args.size}-{name}-{digest}")

    def given(self, weights: Path) -> Path:
        """A folder of ours with a copy of somebody's weights, to work in."""
        training.load_checkpoint(weights)
        content = weights.read_bytes()
        out = self.runs / f"given-{weights.stem}-{hashlib.sha256(content).hexdigest()[:6]}"
        self.commands.append(f"(weights: {weights})")
        if not (out / "checkpoint.pt").exists():
            write_atomically(out / "checkpoint.pt", lambda file: file.write(content))
        return out

    def evaluated(self, checkpoint: Path, name: str = "eval", *flags) -> dict:
        """08 of a checkpoint, written to `name` beside it -> its metrics."""
        keep = ["--keep", KEEP[self.args.size]] if self.args.size in KEEP else []
        out = checkpoint.parent / name
        product = self.once(out / "metrics.json", "08_eval.py", "--checkpoint", checkpoint, *keep, *flags,
                            "--out", out)
        return json.loads(product.read_text())

    def seeds(self, **changes) -> list[dict]:
        """The metrics of one variant for each seed."""
        return [self.evaluated(self.trained(**changes, **({"seed": seed} if seed else {})) / "checkpoint.pt")
                for seed in range(self.args.seeds)]

    def training_seconds(self) -> float:
        """Of all trainings behind a table, whichever call made them: what their logs (07) or histories (09)
        say."""
        total = 0.0
        for command in dict.fromkeys(self.commands):
            out = Path(command.split(" --out ")[-1])
            if command.startswith("python 07_train.py"):
                total += float((out / "log.csv").read_text().splitlines()[-1].split(",")[-1])
            elif command.startswith("python 09_semantic_nerf.py"):
                total += max(h["train_seconds"] for h in history(out).values())
        return total


# ------------------------------------------------------------------------------------------- one unseen scene

def steps_of(name: str, bench: Bench) -> int:
    """"5k", a number of the paper's steps on one scene -> our number of steps."""
    return int(name.rstrip("k") or 0) * UNIT[bench.args.size] // 2


def per_scene_nerf(bench: Bench, base: Path, name: str, *flags) -> Path:
    """09 on the unseen scene of a training (`base`), at its size, for the paper's 100k steps -> its folder,
    `name` in base's."""
    model, state = training.load_checkpoint(base / "checkpoint.pt")
    c, out = model.config, base / name
    preset = bench.args.size if bench.args.size in ("paper", "smoke") else "laptop"
    bench.once(out / "checkpoint.pt", "09_semantic_nerf.py",
               "--scene", unseen_root(state["run"]) / state["run"]["test"][0], "--preset", preset,
               "--height", c.height, "--width", c.width, "--near", c.near, "--far", c.far,
               "--steps", steps_of("100k", bench), *flags, "--out", out)
    return out


def history(run: Path) -> dict[int, dict]:
    """09's evaluations on the way: steps -> metrics."""
    return {h["steps"]: h for h in json.loads((run / "metrics.json").read_text())["history"]}


def per_scene(bench: Bench, labels: str = "gt", seed: int = 0) -> tuple[Path, Path, Path, str]:
    """One unseen scene: S-Ray fine-tuned on its 8 source and 8 fine-tuning views for the paper's 60k steps,
    with copies on the way, and Semantic-NeRF trained on them for 100k. labels: "gt", the scene's own, or
    "pseudo", the 2D segmenter's. -> S-Ray's, its fine-tuning's and the NeRF's folders, and the scene."""
    base, unit = bench.trained(), UNIT[bench.args.size]
    scene = training.load_checkpoint(base / "checkpoint.pt")[1]["run"]["test"][0]
    given = []
    if labels == "pseudo":
        segmenter = bench.segmenter()
        folder = segmenter / "pseudo"
        bench.once(folder / "metrics.json", "tools.pseudo_labels",
                   "--checkpoint", segmenter / "checkpoint.pt", "--scenes", scene, "--out", folder)
        given = ["--labels", folder]
    ending = f"{scene}-{unit}" + "-pseudo" * bool(given) + f"-seed_{seed}" * bool(seed)
    given += ["--seed", seed] if seed else []
    tuned = bench.train("--scenes", scene, "--finetune", base / "checkpoint.pt",
                        "--steps", steps_of("60k", bench), "--keep-every", unit // 2, *given,
                        out=base / f"finetuned-{ending}")
    stops = sorted({steps_of(name, bench) for name in ("2k", "4k", "5k", "6k", "8k", "30k", "50k")})
    nerf = per_scene_nerf(bench, base, f"nerf-{ending}", "--evaluate-at", ",".join(map(str, stops)), *given)
    return base, tuned, nerf, scene


# ------------------------------------------------------------------------------------------------ over seeds

DIGITS = {"ssim": 4, "lpips": 3, "depth_abs_rel": 4, "train_seconds": 0}
STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}  # t, two-sided 95%, by differences


def spread(runs: list[dict], *keys: str) -> list[str]:
    """A cell for each key: mean and, of several seeds, the standard deviation: "57.15" or "57.15 ± 0.40"."""
    cells = []
    for key in keys:
        values, digits = [run[key] for run in runs if run[key] is not None], DIGITS.get(key, 2)
        text = f"{statistics.mean(values):.{digits}f}" if values else "-"
        cells.append(text if len(values) < 2 else f"{text} ± {statistics.stdev(values):.{digits}f}")
    return cells


def paired(runs: list[dict], base: list[dict]) -> str:
    """mIoU less the base's, seed by seed: mean ± deviation; "indistinguishable" if 0 lies in its 95%
    confidence interval."""
    pairs = zip(runs, base)
    differences = [a["miou"] - b["miou"] for a, b in pairs if None not in (a["miou"], b["miou"])]
    if not differences:
        return "-"
    mean = statistics.mean(differences)
    if len(differences) == 1:
        return f"{mean:+.2f} (one seed)"
    deviation = statistics.stdev(differences)
    close = abs(mean) < STUDENT.get(len(differences), 2.3) * deviation / len(differences) ** 0.5
    return f"{mean:+.2f} ± {deviation:.2f}" + (" (indistinguishable)" if close else "")
