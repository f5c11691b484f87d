"""The paper's experiments on the rooms, one command each: `python 11_tables.py 4` runs the supplement's Table 4.

    python 11_tables.py WHAT [--quick]                    a laptop's recipe, on rooms
    python 11_tables.py WHAT --preset paper --data ROOT   at the paper's size, on ScanNet in ROOT

WHAT: a table, 1 to 7, 12 or 13; `beyond`, a table of what the paper leaves out; figure1 to figure4; or all.

Every training and every evaluation is the real command (07_train.py, 08_eval.py, 09_semantic_nerf.py), run as a user would type
it, in runs/tables/KEY, where KEY says its settings: tables share what they have in common, an interrupted table goes on where
it stopped, a finished one is read back. A table is written to results/table_NN.md and .json: our figures beside the paper's, in
the paper's rows and columns, with data, commands, steps, seeds, hardware and time. Ours are about rooms, the paper's about
ScanNet: what can be compared is the order of the rows, never the level.

Test: pytest tests/test_11_tables.py
"""
import argparse
import hashlib
import json
import math
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import imageio.v3 as iio
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

rooms = import_module("00_rooms")              # captures for Table 6
data = import_module("01_data")
encoder = import_module("02_encoder")          # pca_picture
reprojection = import_module("03_reprojection")    # lookup, in_view
cra = import_module("04_cra")                  # sample_positions
geometry = import_module("06_geometry_render")     # render
training = import_module("07_train")           # Config, load_checkpoint
evaluation = import_module("08_eval")          # metrics, label colours
nerf = import_module("09_semantic_nerf")       # load
benchmark = import_module("10_benchmark")      # fresh, hardware: operations and memory of Tables 2-3

HERE = Path(__file__).parent
PRESETS = {   # flags of 07 for every training of a table; no row has more or less than these, except where the row is that flag
    "quick": dict(preset="laptop", height=48, width=64, steps=60, train_rooms=20, test_rooms=2, save_every=50),
    "laptop": dict(preset="laptop", height=72, width=96, steps=400, fine=16, extra_views=4, keep=8, test_rooms=6, save_every=100),
    "paper": dict(preset="paper"),
    "smoke": dict(preset="smoke", steps=30, train_rooms=4, test_rooms=1),     # for the tests
}
# The 2D segmenter: the encoder and a 1x1 head, trained on single images of the training scenes by the same command with the rays'
# losses at zero. It stands where the paper used a pretrained DeepLabV3+ (Table 5). At laptop size it is also where every
# training's encoder starts, so that a row's few minutes go to what the row is about; at the paper's sizes nothing is pretrained.
SEGMENTER = dict(lambda1=0, lambda2=0, source_loss=1, views=1, rays=2, coarse=2, fine=2)
SEGMENTER_STEPS = {"quick": 200, "laptop": 2500, "paper": 20_000, "smoke": 30}
SEGMENTER_IMAGES = {"quick": 15, "laptop": 15, "paper": 8, "smoke": 4}         # for each of a step's targets


# ---------------------------------------------------------------------------------------------------- running the real commands

class Bench:
    """Runs trainings and evaluations, once each; remembers the commands and their seconds."""

    def __init__(self, args):
        self.args, self.commands, self.seconds = args, [], 0.0
        self.where = ["--scene", "scannet", "--data", args.data] if args.data else ["--scene", "rooms"]
        self.runs = Path(args.runs)

    def run(self, script: str, *flags) -> None:
        """A script of this project in a process of its own, its output left on the screen."""
        command = [sys.executable, str(HERE / script), *map(str, flags)]
        shown = " ".join(["python", script, *map(str, flags)])
        print(f"\n$ {shown}", flush=True)
        start = time.time()
        code = subprocess.call(command)
        self.seconds += time.time() - start
        if code:
            raise data.DataError(f"{shown}: ended with status {code} (see above); run the table again to go on from there")

    def segmenter(self) -> Path:
        """The 2D segmenter -> its folder, with a finished checkpoint."""
        size = self.args.size
        return self.trained("segmenter", **SEGMENTER, targets=2, extra_views=SEGMENTER_IMAGES[size] - 1, steps=SEGMENTER_STEPS[size])

    def trained(self, name: str = "", **changes) -> Path:
        """A training of the preset with these settings changed -> its folder, with a finished checkpoint. With --checkpoint, those
        weights stand for the training with nothing changed."""
        if self.args.checkpoint and not name and not changes:
            return self.given(Path(self.args.checkpoint))
        settings = {**PRESETS[self.args.size], **changes}
        if not name and self.args.size in ("quick", "laptop"):
            settings["encoder"] = str(self.segmenter() / "checkpoint.pt")
        name = name or "-".join(f"{k}_{v}" for k, v in sorted(changes.items())) or "base"
        digest = hashlib.sha1(json.dumps([settings, self.where], sort_keys=True).encode()).hexdigest()[:6]
        out = self.runs / f"{self.args.size}-{name}-{digest}"
        flags = [x for key, value in settings.items() for x in (f"--{key.replace('_', '-')}", str(value))]
        checkpoint = out / "checkpoint.pt"
        self.commands.append(" ".join(["python 07_train.py", *self.where, *flags, "--no-eval", "--out", str(out)]))
        if not checkpoint.exists():
            self.run("07_train.py", *self.where, *flags, "--no-eval", "--out", out)
        else:
            model, state = training.load_checkpoint(checkpoint)
            if state["step"] < model.config.steps:
                self.run("07_train.py", "--resume", "--no-eval", "--out", out)
        return out

    def given(self, weights: Path) -> Path:
        """Somebody's weights -> a folder of ours with a copy of them, to work in; unseen rooms are made where they are not on disk."""
        _, state = training.load_checkpoint(weights)
        out = self.runs / f"given-{weights.stem}-{hashlib.sha256(weights.read_bytes()).hexdigest()[:6]}"
        self.commands.append(f"(weights: {weights})")
        if not (out / "checkpoint.pt").exists():
            data.write_atomically(out / "checkpoint.pt", lambda file: file.write(weights.read_bytes()))
        run = state["run"]
        if run["data"] == "rooms" and not all((Path(run["root"]) / name / "color").is_dir() for name in run["test"]):
            data.find_dataset("rooms", run["root"] if Path(run["root"]).is_dir() else None, 0, len(run["test"]))
        return out

    def evaluated(self, checkpoint: Path, name: str = "eval", *flags) -> dict:
        """08_eval.py of a checkpoint -> metrics.json, read back if it is there."""
        out = checkpoint.parent / name
        command = ["--checkpoint", checkpoint, "--out", out, *flags]
        self.commands.append(" ".join(["python 08_eval.py", *map(str, command)]))
        if not (out / "metrics.json").exists():
            self.run("08_eval.py", *command)
        return json.loads((out / "metrics.json").read_text())

    def once(self, product: Path, script: str, *flags, resume: Path | None = None) -> None:
        """Run a script unless what it makes is there already; if it was interrupted after `resume` was written, go on from that."""
        self.commands.append(" ".join(["python", script, *map(str, flags)]))
        if not product.exists() and resume and resume.exists():
            self.run(script, "--resume", "--no-eval", "--out", resume.parent)
        elif not product.exists():
            self.run(script, *flags)

    def training_seconds(self) -> float:
        """Of all the trainings behind a table, whichever call made them: what their logs (07) or histories (09) say."""
        total = 0.0
        for command in dict.fromkeys(self.commands):
            out = Path(command.split(" --out ")[-1])                          # --out is the last flag of every command here
            if command.startswith("python 07_train.py"):
                total += float((out / "log.csv").read_text().splitlines()[-1].split(",")[-1])
            elif command.startswith("python 09_semantic_nerf.py"):
                total += json.loads((out / "metrics.json").read_text())["history"][-1]["train_seconds"]
        return total

    def seeds(self, **changes) -> list[dict]:
        """The metrics of one variant for each seed."""
        return [self.evaluated(self.trained(**changes, **({"seed": seed} if seed else {})) / "checkpoint.pt")
                for seed in range(self.args.seeds)]


def spread(runs: list[dict], key: str, digits: int = 2) -> str:
    """Mean and, of several seeds, the standard deviation: "57.15" or "57.15 ± 0.4"."""
    values = [run[key] for run in runs if run[key] is not None]
    if not values:
        return "-"
    text = f"{statistics.mean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):.{digits}f}"


STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}   # Student's t, two-sided 95%, of so many differences


def paired(runs: list[dict], base: list[dict], key: str = "miou") -> str:
    """The difference to the base, seed by seed: mean ± deviation; "indistinguishable" if 0 lies in its 95% confidence interval."""
    differences = [a[key] - b[key] for a, b in zip(runs, base) if a[key] is not None and b[key] is not None]
    if not differences:
        return "-"
    mean = statistics.mean(differences)
    if len(differences) == 1:
        return f"{mean:+.2f} (one seed)"
    deviation = statistics.stdev(differences)
    close = abs(mean) < STUDENT.get(len(differences), 2.3) * deviation / len(differences) ** 0.5
    return f"{mean:+.2f} ± {deviation:.2f}" + (" (indistinguishable)" if close else "")


# ---------------------------------------------------------------------------------------------------- the tables

def table_1(bench: Bench) -> tuple[list, list]:
    """λ1/λ2. The base has 1/1, so a row a/b is trained with 2a/2b (Adam does not see a common factor); the source-view loss, a
    semantic one, is weighted with λ1."""
    paper = {"1/0": ("17.49", "55.10"), "0.75/0.25": ("25.26", "56.51"), "0.5/0.5": ("25.35", "57.15"),
             "0.25/0.75": ("26.24", "58.12"), "0/1": ("26.57", "3.62")}
    source_loss = {**training.PRESETS.get(PRESETS[bench.args.size]["preset"], {})}.get("source_loss", 0.0)
    rows = []
    for name, quoted in paper.items():
        a, b = (2 * float(x) for x in name.split("/"))
        runs = bench.seeds(**({} if a == b == 1 else dict(lambda1=a, lambda2=b, source_loss=a * source_loss)))
        rows.append([name, spread(runs, "psnr"), spread(runs, "miou"), spread(runs, "depth_abs_rel", 4), *quoted])
    return ["λ1/λ2", "PSNR", "mIoU", "depth abs rel", "paper: PSNR", "paper: mIoU"], rows


MODES = {"w/o CRA": "none", "Dense Attention": "dense", "only intra-view Att": "intra", "only cross-view Att": "cross",
         "full CRA": "full"}


def attention_rows(bench: Bench, paper: dict, cost) -> list:
    """A row for each attention: its cost, its metrics, the difference to full CRA, the paper's."""
    full = bench.seeds()
    rows = []
    for name, mode in MODES.items():
        runs = full if mode == "full" else bench.seeds(cra=mode)
        rows.append([name, *cost(mode), spread(runs, "miou"), spread(runs, "total_acc"),
                     "" if mode == "full" else paired(runs, full), *paper[name]])
    return rows


def tensor_cost(bench: Bench, mode: str, kind: str) -> dict:
    """What one attention costs on 1024x64x8x32, measured once: GFLOP forward and both, peak MiB of forward + backward."""
    R, S, V = (16, 8, 4) if bench.args.size == "smoke" else (1024, 64, 8)
    path = bench.runs / f"cost_{mode}_{kind}_{R}x{S}x{V}.json"
    if not path.exists():
        flags = Namespace(device="cpu", rays=R, samples=S, views=V, height=48, width=64, repeats=1)
        needed = 7 * R * 4 * (S * V) ** 2 * 4 / 2 ** 20 if (mode, kind) == ("dense", "einsum") else 0
        found = benchmark.fresh(flags, "tensor", mode, kind, R, S, V) if needed < benchmark.available() else {"failed": "not run"}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
    return json.loads(path.read_text())


def table_2(bench: Bench) -> tuple[list, list]:
    """GFLOP of each attention, 2 per multiply-add, of all projections and products, and quality."""
    paper = {"w/o CRA": ("0", "76.30", "86.02"), "Dense Attention": ("10.25", "90.46", "94.52"),
             "only intra-view Att": ("3.05", "81.24", "89.58"), "only cross-view Att": ("2.35", "87.01", "93.34"),
             "full CRA": ("5.40", "91.08", "98.20")}

    def cost(mode: str) -> list:
        """GFLOP forward, and forward + backward."""
        found = {"gflop": 0, "gflop_both": 0} if mode == "none" else tensor_cost(bench, mode, "fused")
        return [f"{found['gflop']:.2f}", f"{found['gflop_both']:.2f}"]
    return (["attention", "GFLOP forward", "GFLOP forward + backward", "mIoU", "total acc", "mIoU less full CRA's", "paper: GFLOPs",
             "paper: mIoU", "paper: total acc"], attention_rows(bench, paper, cost))


def table_3(bench: Bench) -> tuple[list, list]:
    """Peak memory of each attention, forward + backward, its input included; and quality, shared with Table 2."""
    paper = {"w/o CRA": ("0", "76.30", "86.02"), "Dense Attention": ("17647", "90.46", "94.52"),
             "only intra-view Att": ("3899", "81.24", "89.58"), "only cross-view Att": ("1583", "87.01", "93.34"),
             "full CRA": ("4143", "91.08", "98.20")}

    def cost(mode: str) -> list:
        """MiB of the plain einsum, of the fused kernel, and in pieces of 128 rays."""
        found = [{"peak": 0} if mode == "none" else tensor_cost(bench, mode, kind) for kind in ("einsum", "fused", "pieces")]
        return [f["failed"] if "failed" in f else f"{f['peak']:.0f}" for f in found]
    return (["attention", "MiB einsum", "MiB fused", "MiB fused, 128 rays at a time", "mIoU", "total acc", "mIoU less full CRA's",
             "paper: MB", "paper: mIoU", "paper: total acc"], attention_rows(bench, paper, cost))


def table_4(bench: Bench) -> tuple[list, list]:
    """τ of eq. 3; the base has 0.7."""
    paper = {1: ("54.21", "77.13", "59.05"), 0.8: ("56.33", "78.01", "60.37"), 0.7: ("57.15", "78.24", "62.55"),
             0.5: ("55.70", "76.64", "60.80"), 0.2: ("54.03", "77.25", "61.34")}
    base, rows = bench.seeds(), []
    for tau, quoted in paper.items():
        runs = base if tau == 0.7 else bench.seeds(tau=tau)
        rows.append([str(tau), spread(runs, "miou"), spread(runs, "total_acc"), spread(runs, "avg_acc"),
                     "" if tau == 0.7 else paired(runs, base), *quoted])
    return ["τ", "mIoU", "total acc", "avg acc", "mIoU less τ = 0.7's", "paper: mIoU", "paper: total acc", "paper: avg acc"], rows


CAPTURE_SIZE = {"smoke": (64, 48)}                                           # else 320x240


def look_at(eye: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """A camera at eye (3,) that looks at centre (3,), upright in a world whose z is up -> c2w (4, 4), OpenCV axes."""
    forward = (centre - eye) / np.linalg.norm(centre - eye)
    right = np.cross(forward, [0.0, 0, 1])
    right /= np.linalg.norm(right)
    c2w = np.eye(4)
    c2w[:3] = np.stack([right, np.cross(forward, right), forward, eye], axis=1)
    return c2w


def orbit(room) -> np.ndarray:
    """24 cameras all around a room on the free way of its walks, at two heights, looking across its middle: c2w (24, 4, 4)."""
    angle = np.arange(24) * 2 * np.pi / 24
    x, y, a, b = room.loop
    eyes = np.stack([x + a * np.cos(angle), y + b * np.sin(angle), 1.4 + 0.2 * (np.arange(24) % 2)], axis=1)
    return np.stack([look_at(eye, np.array([0, 0, 1.1])) for eye in eyes])


def forward_facing(room) -> np.ndarray:
    """24 cameras in a grid of 6 x 4, 0.5 m wide, that all look the same way: c2w (24, 4, 4)."""
    first = orbit(room)[0]
    poses = np.repeat(first[None], 24, axis=0)
    for i, pose in enumerate(poses):
        pose[:3, 3] += 0.1 * (i % 6 - 2.5) * first[:3, 0] + 0.08 * (i // 6 - 1.5) * first[:3, 1]
    return poses


def write_blender(folder: Path, images: list[np.ndarray], K: np.ndarray, c2w: np.ndarray) -> None:
    """Images (H, W, 3) uint8, K (3, 3), c2w (N, 4, 4) as NeRF's Blender scenes: transforms.json, OpenGL axes, horizontal angle."""
    frames = []
    for i, (image, pose) in enumerate(zip(images, c2w)):
        data.write_atomically(folder / "images" / f"r_{i}.png", lambda file: iio.imwrite(file, image, extension=".png"))
        frames.append({"file_path": f"./images/r_{i}", "transform_matrix": (pose * [1, -1, -1, 1]).tolist()})             # y up, z back
    angle = 2 * math.atan(images[0].shape[1] / (2 * K[0, 0]))
    text = json.dumps({"camera_angle_x": angle, "frames": frames}, indent=1)
    data.write_atomically(folder / "transforms.json", lambda file: file.write(text.encode()))


def write_llff(folder: Path, images: list[np.ndarray], K: np.ndarray, c2w: np.ndarray, depths: list[np.ndarray]) -> None:
    """The same as an LLFF capture: poses_bounds.npy, rows of [R|t|hwf] with the axes down, right, back, and near and far."""
    rows = []
    for i, (image, pose, depth) in enumerate(zip(images, c2w, depths)):
        data.write_atomically(folder / "images" / f"image{i:03d}.png", lambda file: iio.imwrite(file, image, extension=".png"))
        axes = np.stack([pose[:3, 1], pose[:3, 0], -pose[:3, 2], pose[:3, 3], [*image.shape[:2], K[0, 0]]], axis=1)       # (3, 5)
        rows.append(np.concatenate([axes.flatten(), np.quantile(depth, [0.001, 0.999])]))
    data.write_atomically(folder / "poses_bounds.npy", lambda file: np.save(file, np.stack(rows)))


def captures(bench: Bench) -> dict[str, Path]:
    """-> {"blender": ..., "llff": ...}, folders of captures in those layouts: of unseen rooms, all around and facing forward, made
    here; with --captures ROOT, ROOT/nerf_synthetic and ROOT/nerf_llff_data as NeRF's authors publish them."""
    if bench.args.captures:
        return {"blender": Path(bench.args.captures) / "nerf_synthetic", "llff": Path(bench.args.captures) / "nerf_llff_data"}
    width, height = CAPTURE_SIZE.get(bench.args.size, (320, 240))
    found = {layout: bench.runs / f"captures-{width}x{height}" / layout for layout in ("blender", "llff")}
    rooms_wanted = PRESETS[bench.args.size].get("test_rooms", training.Config.test_rooms)
    for seed in tqdm(range(data.TEST_ROOM, data.TEST_ROOM + rooms_wanted), desc="captures", unit="room", leave=False):
        room = rooms.make_room(seed)
        K, last = rooms.intrinsics(room, width, height), found["llff"] / f"room{seed}" / "poses_bounds.npy"
        if not last.exists():
            around, facing = orbit(room), forward_facing(room)
            write_blender(found["blender"] / f"room{seed}", [rooms.render(room, pose, K, height, width)[0] for pose in around], K, around)
            seen = [rooms.render(room, pose, K, height, width) for pose in facing]
            write_llff(found["llff"] / f"room{seed}", [s[0] for s in seen], K, facing, [s[1] for s in seen])
    return found


def table_6(bench: Bench) -> tuple[list, list, str]:
    """S-Ray as a renderer of colour alone (λ1 = 0, trained on the same rooms as everything else), on captures in the layouts of the
    paper's two datasets, brought in by 12_import.py: all around (Blender's layout) and facing forward (LLFF's). The rows of
    MVSNeRF, IBRNet, NeuRay and of the paper's S-Ray are quoted from the supplement: other scenes, other training."""
    quoted = {"MVSNeRF": ("23.46", "0.851", "0.172", "22.93", "0.794", "0.260"), "IBRNet": ("24.52", "0.874", "0.158", "24.17", "0.802", "0.215"),
              "NeuRay": ("26.73", "0.908", "0.123", "25.35", "0.824", "0.198"), "S-Ray": ("26.84", "0.917", "0.115", "25.68", "0.833", "0.180")}
    checkpoint = bench.trained(lambda1=0.0, lambda2=2.0, source_loss=0.0) / "checkpoint.pt"             # Table 1's row 0/1
    ours, copied = [], []
    for layout, source in captures(bench).items():
        target = bench.runs / f"{source.name}-imported"
        known = [] if bench.args.captures else ["--near", 0.3, "--far", 8]                        # of our rooms we know it
        bench.once(checkpoint.parent / f"eval-{layout}" / "metrics.json", "12_import.py", source, "--out", target, *known)
        run = bench.evaluated(checkpoint, f"eval-{layout}", "--scene", target, *(["--lpips"] if bench.args.lpips else []))
        ours += [spread([run], "psnr"), spread([run], "ssim", 3), spread([run], "lpips", 3)]
        copied += [spread([run["baseline_copy_nearest"]], "psnr"), "-", "-"]
    rows = [[f"{name} (quoted)", *cells] for name, cells in quoted.items()]
    what = "their real scenes" if bench.args.captures else "rooms in these layouts"
    rows += [[f"S-Ray, ours, on {what}", *ours], [f"nearest source view copied, {what}", *copied]]
    names = [f"{where}: {metric}" for where in ("Realistic Synthetic 360°", "Real Forward-facing") for metric in ("PSNR", "SSIM", "LPIPS")]
    return ["method", *names], rows, "" if bench.args.lpips else "LPIPS of ours: not run (--lpips; needs requirements-lpips.txt)."


def table_7(bench: Bench) -> tuple[list, list]:
    """Source views. One model (the base), trained with one number of views, evaluated with each; 12 and 16 borrow fine-tuning
    views."""
    paper = {1: ("67.55", "86.15", "73.73", "26.47", "0.9077"), 4: ("75.41", "90.51", "81.06", "30.90", "0.9368"),
             8: ("79.97", "93.06", "84.92", "29.52", "0.9106"), 12: ("83.21", "93.89", "88.07", "28.57", "0.8969"),
             16: ("84.84", "94.33", "89.78", "27.85", "0.8859")}
    checkpoint, rows = bench.trained() / "checkpoint.pt", []
    for views, quoted in paper.items():
        run = [bench.evaluated(checkpoint) if views == 8 else bench.evaluated(checkpoint, f"eval-{views}-views", "--views", views)]
        rows.append([str(views), *(spread(run, key) for key in ("miou", "total_acc", "avg_acc", "psnr")), spread(run, "ssim", 4), *quoted])
    names = ["mIoU", "total acc", "avg acc", "PSNR", "SSIM"]
    return ["source views", *names, *(f"paper: {n}" for n in names)], rows


def table_12(bench: Bench) -> tuple[list, list]:
    """Training steps. Validation: the 4 test views of four training scenes, kept out of training; test: unseen scenes. The paper's
    rows, scaled to the length of our run; nothing is selected by either."""
    paper = {"10k": ("63.70", "85.70", "71.86", "48.53", "74.75", "56.55"), "50k": ("72.85", "88.72", "79.52", "52.32", "77.31", "59.38"),
             "100k": ("81.25", "94.80", "86.84", "54.27", "79.13", "61.76"), "200k": ("89.31", "97.91", "91.10", "54.44", "76.46", "60.63"),
             "260k": ("89.57", "98.54", "91.02", "57.15", "78.24", "62.55"), "300k": ("88.99", "98.40", "90.39", "55.84", "77.67", "62.15")}
    steps = PRESETS[bench.args.size].get("steps", training.Config.steps)
    out = bench.trained(validation=4, keep_every=max(1, steps // 30))
    _, state = training.load_checkpoint(out / "checkpoint.pt")
    rows = []
    for name, quoted in paper.items():
        at = round(int(name[:-1]) / 300 * 30) * max(1, steps // 30)
        checkpoint = out / f"checkpoint_{at}.pt"
        seen = bench.evaluated(checkpoint, f"validation-{at}", "--scenes", ",".join(state["run"]["train"][:4]))
        unseen = bench.evaluated(checkpoint, f"test-{at}")
        rows.append([f"{at} ({name})", *(spread([run], key) for run in (seen, unseen) for key in ("miou", "total_acc", "avg_acc")), *quoted])
    names = [f"{where} {what}" for where in ("validation", "test") for what in ("mIoU", "total acc", "avg acc")]
    return ["steps (the paper's)", *names, *(f"paper: {n}" for n in names)], rows


UNIT = {"smoke": 2, "quick": 10, "laptop": 40, "paper": 2000}                # Tables 5 and 13: the paper's 2k steps, at each size


def steps_of(name: str, bench: Bench) -> int:
    """"5k", a number of the paper's steps on one scene -> our number of steps."""
    return int(name.rstrip("k") or 0) * UNIT[bench.args.size] // 2


def per_scene_nerf(bench: Bench, base: Path, name: str, *flags) -> Path:
    """09 on the unseen scene of a training (`base`), at its size, for the paper's 100k steps -> its folder, `name` in base's."""
    model, state = training.load_checkpoint(base / "checkpoint.pt")
    c, out = model.config, base / name
    preset = bench.args.size if bench.args.size in ("paper", "smoke") else "laptop"
    bench.once(out / "checkpoint.pt", "09_semantic_nerf.py", "--scene", Path(state["run"]["root"]) / state["run"]["test"][0], "--preset", preset,
               "--height", c.height, "--width", c.width, "--near", c.near, "--far", c.far, "--steps", steps_of("100k", bench), *flags, "--out", out)
    return out


def history(run: Path) -> dict[int, dict]:
    """09's evaluations on the way: steps -> metrics."""
    return {h["steps"]: h for h in json.loads((run / "metrics.json").read_text())["history"]}


def per_scene(bench: Bench, labels: str = "gt", seed: int = 0) -> tuple[Path, Path, Path, str, Path]:
    """One unseen scene: S-Ray fine-tuned on its 8 source and 8 fine-tuning views for the paper's 60k steps, with copies on the way,
    and Semantic-NeRF trained on them for 100k, both with this seed. labels: "gt", the scene's own, or "pseudo", the 2D segmenter's
    on these views. -> S-Ray's, its fine-tuning's and the NeRF's folders, the scene and its root."""
    base, unit = bench.trained(), UNIT[bench.args.size]
    _, state = training.load_checkpoint(base / "checkpoint.pt")
    scene, root = state["run"]["test"][0], Path(state["run"]["root"])
    given = []
    if labels == "pseudo":
        segmenter = bench.segmenter()
        folder = segmenter / "pseudo"
        bench.once(folder / "metrics.json", "08_eval.py", "--checkpoint", segmenter / "checkpoint.pt", "--scenes", scene,
                   "--pseudo-labels", folder, "--out", folder)
        given = ["--labels", folder]
    ending = f"{scene}-{unit}" + "-pseudo" * bool(given) + f"-seed_{seed}" * bool(seed)
    given += ["--seed", seed] if seed else []
    tuned = base / f"finetuned-{ending}"
    last = steps_of("60k", bench)
    bench.once(tuned / f"checkpoint_{last}.pt", "07_train.py", *bench.where, "--scenes", scene, "--finetune", base / "checkpoint.pt",
               "--steps", last, "--keep-every", unit // 2, *given, "--no-eval", "--out", tuned, resume=tuned / "checkpoint.pt")
    stops = sorted({steps_of(name, bench) for name in ("2k", "4k", "5k", "6k", "8k", "30k", "50k")})
    baseline = per_scene_nerf(bench, base, f"nerf-{ending}", "--evaluate-at", ",".join(map(str, stops)), *given)
    return base, tuned, baseline, scene, root


def table_5(bench: Bench) -> tuple[list, list, str]:
    """mIoU on one unseen scene: Semantic-NeRF trained on its 16 views against S-Ray fine-tuned on them, with true labels (gt) and
    with pseudo labels (p), those of our 2D segmenter, which stands where the paper used DeepLabV3+. The paper's steps, scaled;
    "converge" is 100k of them for Semantic-NeRF and 60k for S-Ray, which the paper does not say. The seeds are those of the runs on
    the scene; S-Ray starts them all from one training."""
    paper = {"S-NeRF": ("N/A", "78.59", "86.32", "85.64", "91.33", "92.10", "95.24"),
             "S-Ray": ("77.82", "88.07", "93.40", "91.25", "95.15", "92.43", "95.39")}
    ours, theirs = [], []
    runs = [[per_scene(bench, labels, seed) for seed in range(bench.args.seeds)] for labels in ("pseudo", "gt")]
    base, _, _, scene, _ = runs[0][0]
    for name in ("5k", "50k", "converge"):
        for seeds in runs:
            at = steps_of("60k" if name == "converge" else name, bench)
            ours.append([bench.evaluated(tuned / f"checkpoint_{at}.pt", f"eval-{at}", "--scenes", scene) for _, tuned, *_ in seeds])
            at = steps_of("100k" if name == "converge" else name, bench)
            theirs.append([history(baseline)[at] for _, _, baseline, *_ in seeds])
    untouched = bench.evaluated(base / "checkpoint.pt", f"eval-{scene}", "--scenes", scene)
    found = json.loads((bench.segmenter() / "pseudo" / "metrics.json").read_text())
    names = ["w/o ft", *(f"ft {steps}({kind})" for steps in ("5k", "50k", "converge") for kind in ("p", "gt"))]
    rows = [["S-NeRF", "N/A", *(spread(some, "miou") for some in theirs), *paper["S-NeRF"]],
            ["S-Ray", *(spread(some, "miou") for some in ([untouched], *ours)), *paper["S-Ray"]]]
    note = (f"The pseudo labels on the scene's 16 views: {spread([found], 'miou')} mIoU, {spread([found], 'total_acc')} total accuracy. "
            f"Our steps for the paper's 5k, 50k, 60k and 100k: {', '.join(str(steps_of(k, bench)) for k in ('5k', '50k', '60k', '100k'))}.")
    return ["mIoU", *names, *(f"paper: {n}" for n in names)], rows, note


def table_13(bench: Bench) -> tuple[list, list]:
    """Steps on one unseen scene: S-Ray fine-tuned on its 8 source and 8 fine-tuning views, Semantic-NeRF trained on them from
    nothing. The paper's steps, scaled; 0 is S-Ray as it comes. The seeds are those of the runs on the scene; S-Ray starts them all
    from one training. Seconds: training alone, on the machine named below."""
    paper = {"0": (("77.22", "81.68", "88.53", "29.47"), None),
             "2k": (("92.66", "98.73", "98.73", "29.80"), ("78.32", "82.69", "85.81", "20.62")),
             "4k": (("93.40", "98.97", "98.97", "29.86"), ("86.97", "86.61", "87.48", "21.85")),
             "6k": (("94.17", "99.06", "99.06", "29.92"), ("87.08", "87.85", "88.01", "22.62")),
             "8k": (("94.59", "99.15", "99.15", "29.95"), ("88.78", "88.57", "89.67", "22.94")),
             "30k": (("95.10", "99.43", "99.42", "30.05"), ("91.78", "94.86", "95.78", "24.78")),
             "100k": (None, ("95.05", "98.73", "99.02", "29.97"))}
    runs, rows, keys = [per_scene(bench, seed=seed) for seed in range(bench.args.seeds)], [], ("miou", "avg_acc", "total_acc", "psnr")
    base, _, _, scene, _ = runs[0]
    for name, (ours_quoted, theirs_quoted) in paper.items():
        at = steps_of(name, bench)
        ours = [] if not ours_quoted else [
            bench.evaluated(tuned / f"checkpoint_{at}.pt", f"eval-{at}", "--scenes", scene) for _, tuned, *_ in runs] if at else [
            bench.evaluated(base / "checkpoint.pt", f"eval-{scene}", "--scenes", scene) | {"train_seconds": 0}]
        theirs = [history(baseline)[at] for _, _, baseline, *_ in runs] if theirs_quoted else []
        rows += [[f"{at} ({name})", method, *(spread(some, key) for key in keys), spread(some, "train_seconds", 0), *quoted]
                 for method, some, quoted in (("S-Ray", ours, ours_quoted), ("Semantic-NeRF", theirs, theirs_quoted)) if quoted]
    names = ["mIoU", "avg acc", "total acc", "PSNR"]
    return ["steps (the paper's)", "method", *names, "seconds on the scene", *(f"paper: {n}" for n in names)], rows


# ---------------------------------------------------------------------------------------------------- what the paper leaves out

def average_2d(maps: Tensor, points: Tensor, sources) -> Tensor:
    """The 2D segmenter's logits maps (V, L, h, w) of the source views at points (R, S, 3), averaged over the views that have the
    point in their image: (R, S, L). No attention, no view weights, no notion of occlusion."""
    H, W = sources.images.shape[-2:]
    uv, z = data.project(points, sources.K, sources.c2w)                      # (R, S, V, 2), (R, S, V)
    seen = reprojection.in_view(uv, z, H, W)                                  # (R, S, V)
    logits = reprojection.lookup(maps, torch.where(seen[..., None], uv, 0.0), encoder.STRIDE)     # (R, S, V, L)
    # average[r,s,l] = sum_v seen[r,s,v] logits[r,s,v,l] / sum_v seen[r,s,v]
    return torch.einsum("rsv,rsvl->rsl", seen.float(), logits) / seen.sum(-1, keepdim=True).clamp(min=1)


def both_ways(model, sources, maps: dict[str, Tensor], pixels: Tensor, K: Tensor, c2w: Tensor, depth: Tensor) -> dict[str, Tensor]:
    """Some rays (R) rendered as S-Ray does and as 2D logits averaged, by the model's own density and at the true depth (R,): logits
    (R, L) of each way, and "colour", "colour at true depth" (R, 3). maps: name -> (V, L, h, w)."""
    result = model(sources, pixels, K, c2w, fine_only=True)["fine"]
    origin, directions = data.rays(pixels, K, c2w)
    z, weights = result["z"], result["weights"]                               # (R, S)
    found = {"S-Ray": result["logits"], "colour": result["colour"]}
    for name, logits in maps.items():
        found[name] = geometry.render(weights, average_2d(logits, origin + z[..., None] * directions[:, None], sources))
    # the sample nearest the true depth moves onto it and is all that is rendered; the others are still there to attend to
    nearest = (z - depth[:, None]).abs().argmin(1, keepdim=True)              # (R, 1)
    z = z.scatter(1, nearest, depth[:, None].clamp(min=model.config.near))
    context, seen, index = model.fine.look(origin, directions, z, sources, True)
    found["S-Ray, true depth"] = model.fine.label(context, seen, index, nearest)[0][:, 0]
    found["colour at true depth"] = seen.colour.take_along_dim(nearest[..., None], 1)[:, 0]
    for name, logits in maps.items():
        found[f"{name}, true depth"] = average_2d(logits, origin + depth[:, None, None] * directions[:, None], sources)[:, 0]
    return found


def consistency(labels: list[Tensor], views) -> tuple[int, int]:
    """Label maps (H, W) of views in order: each view's pixels carried to the next by their true depth -> how many land on the same
    label, of how many. A pixel counts if the next view sees its point: in the image, and its own depth there within 2%."""
    H, W = labels[0].shape
    agree = total = 0
    for a in range(len(labels) - 1):
        one, two = views[a], views[a + 1]
        known = (one.depth > 0).flatten()
        points = data.unproject(data.pixel_grid(H, W)[known], one.depth.flatten()[known], one.K, one.c2w)          # (N, 3)
        uv, z = data.project(points, two.K[None], two.c2w[None])
        u, v, z = uv[:, 0, 0].round().long(), uv[:, 0, 1].round().long(), z[:, 0]
        inside = (z > 0) & (u >= 0) & (u < W) & (v >= 0) & (v < H)
        u, v = u.clamp(0, W - 1), v.clamp(0, H - 1)
        seen = inside & ((two.depth[v, u] - z).abs() < 0.02 * z)
        agree += int((labels[a].flatten()[known] == labels[a + 1][v, u])[seen].sum())
        total += int(seen.sum())
    return agree, total


def measure_beyond(checkpoint: Path, segmenter: Path, stride: int = 1) -> dict[str, dict]:
    """The rows of `beyond` for one training: name -> label metrics, psnr (None without colour), consistency in percent. stride n:
    every n-th row and column of each view alone, and no consistency."""
    model, state = training.load_checkpoint(checkpoint)
    L = len(model.classes.names)
    alone, _ = training.load_checkpoint(segmenter)
    model.eval(), alone.eval()
    c, run = model.config, state["run"]
    tables: dict[str, Tensor] = {}
    psnr: dict[str, list[float]] = {}
    same: dict[str, list[int]] = {}
    with torch.no_grad(), tqdm(total=4 * len(run["test"]), desc="beyond", unit="view", mininterval=15) as bar:
        for name in run["test"]:
            scene = data.Scene(Path(run["root"]) / name, c.height, c.width)
            source_ids, _, test_ids = data.protocol(scene)
            truth, sources = scene.views(test_ids), model.encode(scene.views(source_ids))
            grid = data.pixel_grid(c.height, c.width).view(c.height, c.width, 2)[::stride, ::stride]              # (h, w, 2)
            chunk = training.chunk_size(c, grid.device)
            maps, flat = {}, {"truth": truth.labels}                          # logits of the source views, labels of the test views
            if (alone.config.height, alone.config.width) == (c.height, c.width):                  # it knows no other size
                maps["2D average, the segmenter's"] = alone.source_head(alone.features(sources.images))
                flat["the segmenter on the true picture"] = alone.segment(truth.images).argmax(1)
            if c.source_loss:
                maps["2D average, own encoder's"] = model.source_head(sources.features)
                flat["own encoder on the true picture"] = model.segment(truth.images).argmax(1)
            shown: dict[str, list[Tensor]] = {way: list(labels[:, ::stride, ::stride]) for way, labels in flat.items()}
            for i in range(len(test_ids)):
                depth = truth.depth[i, ::stride, ::stride].flatten()
                parts = [both_ways(model, sources, maps, pixels, truth.K[i], truth.c2w[i], z) for pixels, z in
                         zip(grid.reshape(-1, 2).split(chunk), depth.split(chunk))]
                for way in parts[0]:
                    whole = torch.cat([p[way] for p in parts])
                    if way.startswith("colour"):
                        psnr.setdefault("S-Ray" + ", true depth" * (way != "colour"), []).append(
                            evaluation.psnr(whole.view(*grid.shape[:2], 3), truth.images[i, :, ::stride, ::stride].permute(1, 2, 0)))
                    else:
                        shown.setdefault(way, []).append(whole.argmax(-1).view(grid.shape[:2]))
                bar.update()
            for way, labels in shown.items():
                n = evaluation.confusion_matrix(torch.stack(labels).flatten(), truth.labels[:, ::stride, ::stride].flatten(), L)
                tables[way] = tables.get(way, 0) + n
                if stride == 1:
                    same[way] = [x + y for x, y in zip(same.get(way, (0, 0)), consistency(labels, truth))]
    return {way: {**{k: evaluation.label_metrics(n)[k] for k in ("miou", "total_acc", "avg_acc")},
                  "psnr": sum(psnr[way]) / len(psnr[way]) if way in psnr else None,
                  "consistency": 100 * same[way][0] / max(1, same[way][1]) if way in same else None} for way, n in tables.items()}


def beyond(bench: Bench) -> tuple[list, list]:
    """What the paper leaves out. S-Ray's labels against a 2D segmenter's logits of the source views, looked up at the same samples,
    averaged over the views that have them in their image, and rendered with the same density: what attention and view weights add.
    "True depth": only the sample at the true depth is rendered: how much of the error is geometry, how much semantics. "The true
    picture": a 2D segmenter on the very photograph that all others have to do without. The segmenter's rows are left out where it was
    trained at another image size than S-Ray. Consistency: pixels of one test view carried
    to the next by true depth that land on the label they left with; the truth's own rate is what rounding and edges allow."""
    runs = []
    for seed in range(bench.args.seeds):
        folder, segmenter = bench.trained(**({"seed": seed} if seed else {})), bench.segmenter()
        path = folder / ("beyond.json" if bench.args.preview == 1 else f"beyond-{bench.args.preview}.json")
        if not path.exists():
            found = measure_beyond(folder / "checkpoint.pt", segmenter / "checkpoint.pt", bench.args.preview)
            data.write_atomically(path, lambda file: file.write(json.dumps(found, indent=1).encode()))
        runs.append(json.loads(path.read_text()))
    order = ["S-Ray", "2D average, own encoder's", "2D average, the segmenter's"]
    order = [*order, *(f"{name}, true depth" for name in order), "the segmenter on the true picture",
             "own encoder on the true picture", "truth"]
    rows = [[name, *(spread([run[name] for run in runs], key) for key in ("miou", "total_acc", "avg_acc", "psnr", "consistency")),
             paired([run[name] for run in runs], [run["S-Ray"] for run in runs]) if name not in ("S-Ray", "truth") else ""]
            for name in order if name in runs[0]]
    return ["labels from", "mIoU", "total acc", "avg acc", "PSNR", "consistency %", "mIoU less S-Ray's"], rows


# ---------------------------------------------------------------------------------------------------- Figures 1-4

class Shown(NamedTuple):
    """A trained model before an unseen scene: sources encoded from its 8 source views, and its 4 test views."""
    model: training.SRay
    name: str
    sources: training.Sources
    source_views: data.Views
    targets: data.Views


def unseen(checkpoint: Path, which: int = 0) -> Shown:
    """The model of a checkpoint and the `which`-th scene that its run kept for testing."""
    model, state = training.load_checkpoint(checkpoint)
    model.eval()
    c, name = model.config, state["run"]["test"][which]
    scene = data.Scene(Path(state["run"]["root"]) / name, c.height, c.width)
    source_ids, _, test_ids = data.protocol(scene)
    views = scene.views(source_ids)
    return Shown(model, name, model.encode(views), views, scene.views(test_ids))


def truly_visible(points: Tensor, views, tolerance: float = 1.05) -> Tensor:
    """Points (..., 3) -> (..., V) bool: in a view's image and not behind what its true depth shows there (by 5%)."""
    V, H, W = views.depth.shape
    uv, z = data.project(points, views.K, views.c2w)                          # (..., V, 2), (..., V)
    u, v = uv.round().long().unbind(-1)
    inside = (z > 0) & (u >= 0) & (u < W) & (v >= 0) & (v < H)
    depth = views.depth[torch.arange(V), v.clamp(0, H - 1), u.clamp(0, W - 1)]
    return inside & (z < tolerance * depth)


def rank_agreement(score: Tensor, truth: Tensor) -> float:
    """How often a true one of scores (N,) is above a false one, in percent (the area under the ROC curve); 50 is chance."""
    order = score.argsort().argsort().double() + 1
    positive = truth.sum().item()
    pairs = positive * (len(truth) - positive)
    return 100 * (order[truth].sum().item() - positive * (positive + 1) / 2) / pairs if pairs else float("nan")


def attention_received(shown: Shown, target: int, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rays of a test view at pixels (R, 2) -> intra-view attention maps (R, V, S, S), mean of the heads; the mask (R, S, V); true
    visibility (R, S, V); and the depths (R, S). At the fine level's samples."""
    model, view = shown.model, shown.targets[target]
    z = model(shown.sources, pixels, view.K, view.c2w, fine_only=True)["fine"]["z"]
    origin, directions = data.rays(pixels, view.K, view.c2w)
    context, _, index = model.fine.look(origin, directions, z, shown.sources, False)
    position = cra.sample_positions(z.shape[1] if index is None else index, encoder.CHANNELS)
    maps = model.fine.cra.L4.maps(context.M, context.mask, position).mean(2)  # (R, V, S, S)
    return maps, context.mask, truly_visible(origin + z[..., None] * directions[:, None], shown.source_views), z


def figure_1(bench: Bench, plt) -> tuple:
    """The encoder's features as pictures, and intra-view attention along a query ray beside true visibility. A column of a map is a
    sample that is read, a row one that reads; the strip below is the mean over the readers, and below it, in green, where the
    source view truly sees the sample."""
    shown = unseen(bench.trained() / "checkpoint.pt")
    H, W = shown.targets.depth.shape[1:]
    some = data.pixel_grid(H, W)[:: max(1, H * W // 500)]
    agreement, size = [], shown.model.config.fine
    for target in range(4):                                                   # a figure of the claim, not of one ray
        maps, mask, visible, _ = attention_received(shown, target, some)
        received = maps.mean(2).permute(0, 2, 1)                              # (R, S, V): mean over the readers
        agreement += [rank_agreement(received[:, :, v][mask[:, :, v]], visible[:, :, v][mask[:, :, v]]) for v in range(mask.shape[2])]
    agreement = [a for a in agreement if a == a]
    # the ray, and the three views, in which most samples are partly seen and partly hidden
    _, mask, visible, _ = attention_received(shown, 1, some)
    mixed = 0.5 - ((visible & mask).float().mean(1) - 0.5).abs()              # (R, V)
    maps, mask, visible, z = attention_received(shown, 1, some[mixed.topk(3, dim=1).values.sum(1).argmax()][None])
    chosen = mixed[mixed.topk(3, dim=1).values.sum(1).argmax()].topk(3).indices.tolist()
    picture = encoder.pca_picture(shown.sources.features)
    figure, axes = plt.subplots(3, 3, figsize=(11, 9.6), layout="constrained", height_ratios=[1, 1, 1.5])
    for column, v in enumerate(chosen):
        axes[0, column].imshow(shown.source_views.images[v].permute(1, 2, 0))
        axes[0, column].set_title(f"source view {v}")
        axes[1, column].imshow(picture[v])
        axes[1, column].set_title("its features, three main directions")
        attention = axes[2, column].imshow(maps[0, v], cmap="cividis", vmin=0)
        strip = maps[0, v].mean(0)
        axes[2, column].set(title="intra-view attention", xlabel="sample that is read, near to far", ylim=(size + 5.5, -0.5))
        axes[2, column].set_yticks([0, size // 2, size - 1, size + 1.5, size + 4.5], [0, size // 2, size - 1, "mean", "visible"])
        axes[2, column].imshow(strip[None], cmap="cividis", extent=(-0.5, size - 0.5, size + 2.5, size + 0.5), vmin=0, aspect="equal")
        green = torch.stack([visible[0, :, v] & mask[0, :, v]] * 3, -1) * torch.tensor([0.0, 0.62, 0.45]) + 0.9 * ~(
            visible[0, :, v] & mask[0, :, v])[:, None]
        axes[2, column].imshow(green[None], extent=(-0.5, size - 0.5, size + 5.5, size + 3.5), aspect="equal")
        figure.colorbar(attention, ax=axes[2, column], shrink=0.7)
    axes[2, 0].set_ylabel("sample that reads, near to far")
    for axis in axes[:2].flat:
        axis.set_axis_off()
    figure.suptitle(f"{shown.name}: one query ray in three source views (samples {z.min():.1f} to {z.max():.1f} m)")
    mean = sum(agreement) / len(agreement)
    note = (f"Over {len(some)} rays of each of 4 test views: a sample that a source view truly sees receives more of that view's "
            f"attention than one it does not see in {mean:.1f}% of pairs (50 is chance; "
            f"{min(agreement):.0f} to {max(agreement):.0f} over views).")
    return figure, note


def figure_2(bench: Bench, plt) -> tuple:
    """View weights beside the source views they weigh, for three query rays: each number is a view's weight averaged over the samples
    by rendering weight. A cross marks where the surface point (true depth) falls; the title is green where the view truly sees it."""
    shown = unseen(bench.trained() / "checkpoint.pt")
    (H, W), V = shown.targets.depth.shape[1:], len(shown.source_views.K)
    grid = data.pixel_grid(H, W)
    looks = []
    for target in range(len(shown.targets.K)):                                # the test view with most hidden points says most
        view = shown.targets[target]
        points = data.unproject(grid, view.depth.flatten(), view.K, view.c2w)                     # (H*W, 3)
        uv, z = data.project(points, shown.source_views.K, shown.source_views.c2w)
        inside = (z > 0) & (uv >= 0).all(-1) & (uv[..., 0] <= W - 1) & (uv[..., 1] <= H - 1)      # (H*W, V)
        visible = truly_visible(points, shown.source_views)                   # (H*W, V)
        # clearly hidden: by a fifth of the depth, so that it is no matter of an edge's pixel
        hidden = inside & ~truly_visible(points, shown.source_views, tolerance=1.2) & (view.depth.flatten() > 0)[:, None]
        looks.append((int((hidden.any(1) & visible.any(1)).sum()), view, uv, inside, visible, hidden))
    _, view, uv, inside, visible, hidden = max(looks, key=lambda look: look[0])
    parts = [shown.model(shown.sources, pixels, view.K, view.c2w, fine_only=True)["fine"] for pixels in grid.split(512)]
    w, weights = (torch.cat([p[key] for p in parts]) for key in ("w", "weights"))
    w = torch.einsum("rs,rsv->rv", weights, w) / weights.sum(1, keepdim=True).clamp(min=1e-6)     # (H*W, V)
    known = hidden.any(1) & visible.any(1)                                    # seen by some, hidden from some
    pick, score = [], hidden.sum(1) * known + 1e-3 * visible.sum(1)           # (H*W,): three pixels apart, hidden from most
    for _ in range(3):
        pick.append(int(score.argmax()))
        score = score * ((grid - grid[pick[-1]]).norm(dim=1) > W / 5)
    figure, axes = plt.subplots(3, V + 1, figsize=(1.9 * (V + 1), 5.4), layout="constrained", squeeze=False)
    for row, i in zip(axes, pick):
        row[0].imshow(view.images.permute(1, 2, 0))
        row[0].plot(*grid[i], "x", color="#d55e00", ms=9, mew=2.5)
        row[0].set_title("query ray", fontsize=9)
        for v in range(V):
            row[v + 1].imshow(shown.source_views.images[v].permute(1, 2, 0))
            if inside[i, v]:
                row[v + 1].plot(*uv[i, v], "x", color="#d55e00", ms=9, mew=2.5)
            state = "seen" if visible[i, v] else "hidden" if inside[i, v] else "outside"
            row[v + 1].set_title(f"{w[i, v]:.3f} {state}", fontsize=9, color="#007a4d" if visible[i, v] else "#777777")
    for axis in axes.flat:
        axis.set_axis_off()
    figure.suptitle(f"{shown.name}: view weights w of three query rays (eq. 3, τ = {shown.model.config.tau})")
    seen, not_seen = w[known][visible[known]], w[known][hidden[known]]
    order = rank_agreement(torch.cat([seen, not_seen]), torch.arange(len(seen) + len(not_seen)) < len(seen))
    note = (f"Over the {int(known.sum())} pixels of this view that some source views see and from some something hides (by 20% of the depth or more): "
            f"mean weight {seen.mean():.4f} where the view sees the point, {not_seen.mean():.4f} where it is hidden; a weight of the first kind is "
            f"above one of the second in {order:.1f}% of pairs (50 is chance).")
    return figure, note


def renderings(checkpoint: Path, model, scene_name: str, root: Path) -> tuple[list[dict], data.Views]:
    """A model's pictures of a scene's 4 test views, and the truth. The settings are those of `checkpoint`."""
    c = training.load_checkpoint(checkpoint)[0].config
    scene = data.Scene(root / scene_name, c.height, c.width)
    source_ids, _, test_ids = data.protocol(scene)
    sources, targets = model.eval().encode(scene.views(source_ids)), scene.views(test_ids)
    return [model.render_image(sources, targets.K[i], targets.c2w[i], c.height, c.width) for i in range(len(test_ids))], targets


def comparison(bench: Bench, plt, colour: bool) -> tuple:
    """Rows: the 4 test views of one unseen scene. Columns: truth, the per-scene method early and at its end, S-Ray without and with
    fine-tuning."""
    base, tuned, baseline, scene, root = per_scene(bench)
    last, name = steps_of("60k", bench), "NeRF" if colour else "Semantic-NeRF"
    if colour:                                                                # a NeRF has no semantic loss
        baseline = per_scene_nerf(bench, base, f"nerf-colour-{scene}-{UNIT[bench.args.size]}", "--lambda1", 0)
    columns = {f"{name}, {steps_of('100k', bench)} steps": nerf.load(baseline / "checkpoint.pt"),
               "S-Ray, never trained here": training.load_checkpoint(base / "checkpoint.pt")[0],
               f"S-Ray, fine-tuned {last} steps": training.load_checkpoint(tuned / f"checkpoint_{last}.pt")[0]}
    pictures = {title: renderings(base / "checkpoint.pt", model, scene, root) for title, model in columns.items()}
    targets = next(iter(pictures.values()))[1]
    rows, (H, W) = len(targets.K), targets.depth.shape[1:]
    figure, axes = plt.subplots(rows, 4, figsize=(12, 3 * rows * H / W + 1.2), layout="constrained", squeeze=False)
    used = set(targets.labels.unique().tolist())
    for i in range(rows):
        truth = targets.images[i].permute(1, 2, 0)
        axes[i, 0].imshow(truth if colour else evaluation.colour_labels(targets.labels[i]))
        axes[i, 0].set_ylabel(f"test view {i + 1}")
        for axis, (title, (got, _)) in zip(axes[i, 1:], pictures.items()):
            labels = got[i]["logits"].argmax(-1)
            used |= set(labels.unique().tolist()) if not colour else set()
            axis.imshow(got[i]["colour"].clamp(0, 1) if colour else evaluation.colour_labels(labels))
            n = evaluation.confusion_matrix(labels.flatten(), targets.labels[i].flatten(), len(data.CLASSES))
            miou = evaluation.label_metrics(n)["miou"]
            axis.set_title(f"{evaluation.psnr(got[i]['colour'], truth):.1f} dB" if colour else "" if miou is None else f"{miou:.0f} mIoU", fontsize=9)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], ["truth", *pictures]):
        axis.set_title(title + (f"\n{axis.get_title()}" if axis.get_title() else ""), fontsize=9)
    if not colour:
        figure.legend(handles=[plt.matplotlib.patches.Patch(color=data.PALETTE[l] / 255, label=data.CLASSES[l]) for l in sorted(used - {-1})],
                      loc="outside lower center", ncols=8, fontsize=8, frameon=False)
    figure.suptitle(f"{scene}: {'colour' if colour else 'labels'} of views that no training or fine-tuning saw")
    return figure, ""


def figure_3(bench: Bench, plt) -> tuple:
    """Labels of one unseen scene: Semantic-NeRF trained on it, S-Ray without and with fine-tuning on the same views."""
    return comparison(bench, plt, colour=False)


def figure_4(bench: Bench, plt) -> tuple:
    """Colour of one unseen scene: NeRF trained on it, S-Ray without and with fine-tuning on the same views. (The paper's third
    method, NeuRay, is not here.)"""
    return comparison(bench, plt, colour=True)


TABLES = {1: table_1, 2: table_2, 3: table_3, 4: table_4, 5: table_5, 6: table_6, 7: table_7, 12: table_12, 13: table_13}
WHAT = {**{str(number): table for number, table in TABLES.items()}, "beyond": beyond, "figure1": figure_1, "figure2": figure_2,
        "figure3": figure_3, "figure4": figure_4}


# ---------------------------------------------------------------------------------------------------- writing a table

def code_version() -> str:
    """The commit of this checkout, "+" if something is changed; "unknown" outside a checkout."""
    def git(*words) -> str:
        """git's answer"""
        return subprocess.run(["git", "-C", str(HERE), *words], capture_output=True, text=True, check=True).stdout.strip()
    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def facts_of(what: str, bench: Bench) -> dict:
    """What made a table or figure: command, data, settings, seeds, code, hardware, seconds, every command."""
    settings = {key: value for key, value in PRESETS[bench.args.size].items() if key != "preset"}
    if bench.args.checkpoint:
        settings = {"weights": bench.args.checkpoint}
    return {"what": what, "command": " ".join(["python", *sys.argv]), "data": bench.args.data or "rooms", "settings": settings,
            "preset": PRESETS[bench.args.size]["preset"], "seeds": list(range(bench.args.seeds)), "code": code_version(),
            "hardware": benchmark.hardware(Namespace(device="cpu")), "seconds_of_this_call": round(bench.seconds),
            "training_seconds": round(bench.training_seconds()),
            "commands": list(dict.fromkeys(bench.commands))}


def origin_line(facts: dict, path: Path) -> str:
    """Where the figures come from, in words."""
    return (f"Command: `{facts['command']}`. Preset {facts['preset']} with {facts['settings'] or 'nothing changed'}; seeds {facts['seeds']}; "
            f"{facts['hardware']}; code {facts['code']}; trainings {'besides those weights ' * ('weights' in facts['settings'])}of together "
            f"{facts['training_seconds']} s, shared between tables and read back where they were made before "
            f"({facts['seconds_of_this_call']} s in this call). Every command that made a figure is in `{path.name}`.")


def write_table(what: str, bench: Bench, head: list, rows: list, out: Path, *notes: str) -> Path:
    """results/table_NN.md (or WHAT.md) and .json."""
    facts, quotes = facts_of(what, bench), any(name.startswith("paper") for name in head)
    path = out / (f"table_{int(what):02d}.md" if what.isdigit() else f"{what}.md")
    title = f"The supplement's Table {what}" if what.isdigit() else "What the paper leaves out"
    lines = [f"# {title}, on {facts['data']}", "", " ".join(WHAT[what].__doc__.split()), "",
             f"Ours: {facts['data']}." + (" The columns marked *paper* are the supplement's, on ScanNet: compare the order of rows, not levels."
                                          if quotes else ""),
             "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows), "",
             *(line for note in notes for line in (note, "")), origin_line(facts, path.with_suffix(".json")), ""]
    data.write_atomically(path, lambda file: file.write("\n".join(lines).encode()))
    data.write_atomically(path.with_suffix(".json"), lambda file: file.write(
        json.dumps({**facts, "columns": head, "rows": rows, "notes": notes}, indent=1, ensure_ascii=False).encode()))
    return path


def write_figure(what: str, bench: Bench, out: Path) -> Path:
    """results/figure_0N.png, .md with what it shows and .json with the commands."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.patches
    import matplotlib.pyplot as plt

    with torch.no_grad():
        figure, note = WHAT[what](bench, plt)
    number, facts = int(what.removeprefix("figure")), facts_of(what, bench)
    path = out / f"figure_{number:02d}.png"
    data.write_atomically(path, lambda file: figure.savefig(file, dpi=90, format="png"))
    plt.close(figure)
    lines = [f"# The supplement's Figure {number}, on {facts['data']}", "", f"![Figure {number}]({path.name})", "",
             " ".join(WHAT[what].__doc__.split()), "", note, "", origin_line(facts, path.with_suffix(".json")), ""]
    data.write_atomically(path.with_suffix(".md"), lambda file: file.write("\n".join(lines).encode()))
    data.write_atomically(path.with_suffix(".json"), lambda file: file.write(json.dumps({**facts, "notes": [note]}, indent=1).encode()))
    return path.with_suffix(".md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("what", choices=[*WHAT, "all"], metavar="WHAT", help=f"{', '.join(WHAT)} or all")
    parser.add_argument("--quick", action="store_true", help="tiny trainings: to see that it works, not what it shows")
    parser.add_argument("--preset", choices=["laptop", "paper", "smoke"], default="laptop")
    parser.add_argument("--data", default=None, help="folder of ScanNet scenes [rooms]")
    parser.add_argument("--checkpoint", default=None, help="Tables 5, 7, 13, beyond and the figures: of these weights, instead of a training "
                        "of the preset")
    parser.add_argument("--rooms", type=int, default=None, help="rooms to train on [the preset's]")
    parser.add_argument("--steps", type=int, default=None, help="training steps [the preset's]")
    parser.add_argument("--seeds", type=int, default=None, help="seeds of each row [3 for Tables 2-5, 13 and beyond, else 1; with --quick 1]")
    parser.add_argument("--captures", default=None, help="Table 6: folder with nerf_synthetic/ and nerf_llff_data/ [rooms in their layouts]")
    parser.add_argument("--preview", type=int, default=1, metavar="N", help="beyond: of every N-th row and column of each view alone")
    parser.add_argument("--lpips", action="store_true", help="Table 6: LPIPS too, needs requirements-lpips.txt")
    parser.add_argument("--runs", default="runs/tables", help="folder of the trainings")
    parser.add_argument("--out", default="results", help="folder of the tables")
    args = parser.parse_args()
    args.size = "quick" if args.quick else args.preset
    PRESETS[args.size] |= {key: value for key, value in (("train_rooms", args.rooms), ("steps", args.steps)) if value}
    seeds = args.seeds or (1 if args.checkpoint else None)
    if args.checkpoint and args.what in ("1", "2", "3", "4", "6", "12", "all"):
        raise data.DataError(f"--checkpoint: {args.what} compares trainings; it is for 5, 7, 13, beyond and the figures")
    if args.preview < 1:
        raise data.DataError(f"--preview {args.preview}: must be 1 or more")
    for what in WHAT if args.what == "all" else [args.what]:
        args.seeds = seeds or (3 if what in ("2", "3", "4", "5", "13", "beyond") and args.size in ("laptop", "paper") else 1)
        bench = Bench(args)
        if what.startswith("figure"):
            path = write_figure(what, bench, Path(args.out))
        else:
            head, rows, *notes = WHAT[what](bench)
            path = write_table(what, bench, head, rows, Path(args.out), *notes)
        print(f"\n{path.read_text()}\nwrote {path} and {path.with_suffix('.json')}")


if __name__ == "__main__":
    data.run_script(main)
