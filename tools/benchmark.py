"""What every stage costs, and how far from the machine's floor: operations, seconds, memory.

    python -m tools.benchmark                      stages, a training step, an image, Tables 2-3's tensor
    python -m tools.benchmark --device cuda        the same on a GPU, and 1024 rays: bfloat16, compiled
    python -m tools.benchmark --curves FILE.png    how CRA and dense attention grow with rays, samples, views
    python -m tools.benchmark --tried              each means of speed by itself: without it and with it
    python -m tools.benchmark --skipping CKPT      what --keep and --coarse-stride save, and what they change

The job: 8 source views of 320x240, 512 rays, 64 + 64 samples. Each figure comes from a fresh process, so that
peak memory is that figure's and nobody else's. "fast" is 07's and 08's default, "plain" their --fast false.

    GFLOP    2 per multiply-add, matrix products and convolutions alone, by PyTorch's FlopCounterMode and by
             attention's plain form. Scores of short packed sequences are not in it, some 3% of a step
    s        the best of several repeats. user s: processor time of all threads
    U        user-seconds of one 1024^3 float32 matrix product on one thread: a unit that travels between
             machines better than seconds do. Each figure has its own, the mean of two, before and after it
    copy     GB/s, read and written, of copies on one thread, taken with U, which does not know it
    MiB      peak. On a CPU the process's size less what it was before (stages), or in all (step, image),
             freed memory given back first; on a GPU what torch allocated
    x floor  time over the larger of operations / matrix rate and bytes / copy rate, where bytes are the
             stage's inputs and outputs, read or written once (three times with backward)

Test: pytest tests/test_tool_benchmark.py
"""
import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")    # as 07 does, before torch starts its threads

import argparse
import json
import subprocess
import sys
import time
from argparse import Namespace
from importlib import import_module
from pathlib import Path

import torch

import fast
from support.files import run_script, write_json
from support.machine import pick_device, prepare_cpu
from support.ranges import follow
from tools import python, tried, workloads
from tools.measuring import available, forget_peak, hardware, rates
from tools.workloads import KINDS, options

data = import_module("01_data")                # Scene, protocol
cra = import_module("04_cra")                  # MODES
training = import_module("07_train")           # load_checkpoint
evaluation = import_module("08_eval")          # psnr

STAGES = ["encoder", "reprojection", "geometry", "CRA", "weighting", "rendering"]
MEASURES = {name: getattr(workloads, f"measure_{name}")
            for name in ("machine", "decoding", "stage", "step", "image", "tensor")}
MEASURES["tried"] = tried.measure_tried
SIZES = ("device", "rays", "samples", "views", "height", "width", "repeats")


# ----------------------------------------------------------------------------------------- fresh processes

def fresh(args, name: str, **values) -> dict:
    """MEASURES[name](args, **values) in a process of its own -> its figures, or {"failed": why}."""
    sizes = [x for flag in SIZES for x in (f"--{flag}", getattr(args, flag))]
    command, env = python("tools.benchmark", "--measure", json.dumps([name, values]), *sizes)
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode in (-9, 137):
        return {"failed": "out of memory"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(args, name: str, values: dict) -> dict:
    """In the fresh process: the figures, and on a CPU U and the copy rate around them."""
    prepare_cpu()
    if args.device == "cuda" or name not in ("step", "image", "tensor"):
        return MEASURES[name](args, **values)
    before = rates(1)
    forget_peak()
    found, after = MEASURES[name](args, **values), rates(1)
    unit, copy = ((before[key] + after[key]) / 2 for key in ("U", "copy_gbs"))
    return found | {"unit": unit, "U": found["user"] / unit, "copy_gbs": copy}


def attention_cost(args, mode: str, kind: str, R: int) -> dict:
    """Tables 2-3: measure_tensor in a fresh process, unless memory does not suffice."""
    needed = 7 * R * 4 * (args.samples * args.views) ** 2 * 4 / 2 ** 20       # MiB: the scores, seven times
    if args.device == "cpu" and (mode, kind) == ("dense", "einsum") and needed > available():
        return {"failed": f"not run: needs about {needed / 1024:.0f} GiB"}
    return fresh(args, "tensor", mode=mode, kind=kind, R=R)


# ----------------------------------------------------------------------------------------------- reports

def figure(value, digits: int = 2, width: int = 9) -> str:
    """A right-aligned number, or - where there is none."""
    return f"{'-' if value is None else format(value, f',.{digits}f'):>{width}}"


def floor_of(f: dict, machine: dict) -> float:
    """Seconds that operations and bytes take at the machine's measured rates: the larger of the two."""
    return max(f["gflop"] / machine["matrix_gflops"], f["bytes"] / machine["copy_gbs"] / 1e9)


def report_stages(args, machine: dict) -> dict:
    """A line for each stage of the plain level, forward and forward + backward."""
    names = "".join(f"{name:>9}" for name in ("GFLOP", "ms", "share", "MiB", "x floor"))
    print(f"\nstages of one plain level ({args.rays} rays, {args.samples} samples, {args.views} views of "
          f"{args.width}x{args.height})\n{'':14}{'forward':>9}{'':36}   {'forward + backward':>20}\n"
          f"{'':14}{names}   {names}")
    found = {name: {way: fresh(args, "stage", stage=name, backward=way == "both")
                    for way in ("forward", "both")} for name in STAGES}
    for name, ways in found.items():
        cells = []
        for way, f in ways.items():
            total = sum(other[way].get("seconds", 0) for other in found.values())
            if "failed" not in f:
                f["floor"] = floor_of(f, machine)
                cells.append(f"{figure(f['gflop'])}{figure(1000 * f['seconds'], 1)}"
                             f"{100 * f['seconds'] / total:8.0f}%{figure(f['peak'], 0)}"
                             f"{figure(f['seconds'] / f['floor'], 1)}")
        print(f"{name:14}{'   '.join(cells) or ways['forward']['failed']}", flush=True)
    decoding = found["decoding"] = fresh(args, "decoding")
    print(f"decoding a frame of 1296x968: {1000 * decoding['seconds']:.1f} ms, from the cache "
          f"{1000 * decoding['cached_seconds']:.1f} ms")
    return found


HEAD = f"{'':44}" + "".join(f"{name:>9}" for name in (
    "GFLOP", "f+b", "s", "user s", "U", "copy", "MiB", "of rate"))


def report_row(name: str, f: dict, machine: dict) -> dict:
    """One line of GFLOP, seconds, U beside the copy rate, memory, share of the machine's matrix rate -> f."""
    if "failed" in f:
        print(f"{name:44} {f['failed']}", flush=True)
        return f
    gflop = f.get("gflop_both") or f["gflop"]
    rate = figure(None) if gflop is None else f"{100 * gflop / f['seconds'] / machine['matrix_gflops']:8.0f}%"
    digits = {"gflop": 1, "gflop_both": 1, "seconds": 3, "user": 2, "U": 0, "copy_gbs": 1, "peak": 0}
    print(f"{name:44}" + "".join(figure(f.get(key), n) for key, n in digits.items()) + rate, flush=True)
    return f


def report_whole(args, machine: dict) -> dict:
    """One training step, one image, by the fast and by the plain path; on a GPU the large sizes too."""
    print(f"\n{HEAD}")
    step, image, found = f"step, {args.rays} rays", f"image {args.width}x{args.height}", {}

    def row(key: str, text: str, name: str, sizes: Namespace = args, **values) -> None:
        """Measure, print and keep one figure."""
        found[key] = report_row(text, fresh(sizes, name, **values), machine)
    for how, path in (("true", "fast"), ("false", "plain")):
        row(f"step_{path}", f"{step}, {path}", "step", how=how)
    for how, path in (("true", "fast"), ("false", "plain")):
        row(f"image_{path}", f"{image}, in full, {path}", "image", how=how)
    row("image_keep_8", f"{image}, --keep 8", "image", keep=8)
    row("image_keep_8_stride_4", f"{image}, --keep 8 --coarse-stride 4", "image", keep=8, coarse_stride=4)
    if args.device == "cpu":                                                  # what a GPU holds in memory
        large = Namespace(**{**vars(args), "height": 2 * args.height, "width": 2 * args.width,
                             "rays": 2 * args.rays, "repeats": 1})
        row("step_in_one_piece", f"step, {large.rays} rays, {large.width}x{large.height}, one piece, plain",
            "step", large, how="false", piece=large.rays, workers=1)
        return found
    for height, width in ((240, 320), (480, 640)):
        sizes = Namespace(**{**vars(args), "height": height, "width": width, "rays": 1024})
        for label, changes in (("float32", {}), ("bfloat16", {"bf16": True})):
            text = f"step, 1024 rays, {width}x{height}, {label}"
            row(text, text, "step", sizes, **changes)
        row(f"image {width}x{height}", f"image {width}x{height}, in full", "image", sizes)
    return found


def report_compiled(args, machine: dict) -> dict:
    """A step of 1024 rays by torch.compile, which takes minutes before the first."""
    found, sizes = {}, Namespace(**{**vars(args), "rays": 1024})
    print(f"\n{HEAD}")
    for label, bf16 in (("float32", False), ("bfloat16", True)):
        text = f"step, 1024 rays, {args.width}x{args.height}, {label}, compiled"
        found[text] = report_row(text, fresh(sizes, "step", compile=True, bf16=bf16), machine)
    return found


def report_tensor(args, machine: dict) -> dict:
    """Tables 2-3: what each attention costs on their tensor."""
    R, found = 1024 if args.rays >= 512 else args.rays, {}
    print(f"\nattention on {R} x {args.samples} x {args.views} x 32, forward + backward\n{HEAD}")
    for mode in cra.MODES:
        for kind, text in KINDS.items():
            if (mode == "none" and kind != "einsum") or (args.device == "cuda" and kind == "packed"):
                continue
            name = "none" if mode == "none" else f"{mode}, {text}"
            found[name] = report_row(name, attention_cost(args, mode, kind, R), machine)
    return found


REPORTS = {"stages": report_stages, "whole": report_whole, "tensor": report_tensor,
           "compiled": report_compiled}


def report_tried(args) -> dict:
    """A line for each means."""
    found = {}
    print(f"one thread, best of five; but for images forward + backward\n"
          f"{'':76}{'without':>12}{'with':>12}{'ratio':>8}")
    for name, (text, _) in tried.TRIED.items():
        f = found[name] = fresh(args, "tried", means=name)
        print(f"{text:76}" + (f["failed"] if "failed" in f else
                              f"{1000 * f['without']:9.1f} ms{1000 * f['with']:9.1f} ms"
                              f"{f['with'] / f['without']:8.2f}"), flush=True)
    return found


# ---------------------------------------------------------------------------------------- what skipping costs

def difference(got: dict, full: dict, truth) -> dict:
    """An image beside the one computed in full and the truth: labels changed and total accuracy in percent,
    PSNR, colour changed by (of 0 .. 255), depth changed by (percent)."""
    labels, known = got["logits"].argmax(-1), truth.labels >= 0               # (H, W)
    return {"changed": 100 * float((labels != full["logits"].argmax(-1)).float().mean()),
            "accuracy": 100 * float((labels == truth.labels)[known].float().mean()),
            "psnr": evaluation.psnr(got["colour"], truth.images.permute(1, 2, 0)),
            "colour": 255 * float((got["colour"] - full["colour"]).abs().mean()),
            "depth": 100 * float((got["depth"] / full["depth"] - 1).abs().mean())}


def skipping(args, checkpoint: str) -> dict:
    """A test view of each of a run's unseen scenes (the first --scenes of them), in full and with what
    skipping leaves: labels from the `keep` heaviest samples of each ray, the coarse level at every
    `coarse_stride`-th row and column. keep alone changes neither colour nor depth."""
    from tools.experiments import unseen_root
    model, state = training.load_checkpoint(checkpoint)
    model.to(args.device).eval()
    c, root = model.config, unseen_root(state["run"])
    ways = [way for way in ((0, 1), (16, 1), (8, 1), (4, 1), (8, 2), (8, 4), (8, 8)) if way[0] < c.fine]
    rows: dict = {way: [] for way in ways}
    for name in state["run"]["test"][:args.scenes]:
        scene, = follow([data.Scene(root / name, c.height, c.width)], c, data.protocol)
        source, _, test = data.protocol(scene)
        truth = scene.views(test[:1]).to(args.device)[0]
        with torch.no_grad():
            sources, full = model.encode(scene.views(source).to(args.device)), None
        for keep, stride in ways:
            model = fast.renderer(model, options(args, "auto", keep=keep, coarse_stride=stride))
            start = time.perf_counter()
            got = model.render_image(sources, truth.K, truth.c2w, c.height, c.width)
            seconds, full = time.perf_counter() - start, full or got
            rows[keep, stride].append({"seconds": seconds, **difference(got, full, truth)})
    print(f"\n{checkpoint}, {len(rows[0, 1])} test views of {c.width}x{c.height}, {c.fine} fine samples; "
          f"colour of 0 .. 255\n{'labels from':>12}{'coarse at':>12}{'an image':>11}{'labels changed':>16}"
          f"{'total acc':>11}{'PSNR':>8}{'colour by':>11}{'depth by':>10}")
    found = {}
    for (keep, stride), images in rows.items():
        row = found[f"keep {keep}, coarse stride {stride}"] = {
            key: sum(image[key] for image in images) / len(images) for key in images[0]}
        print(f"{keep or 'all':>12}{'all' if stride == 1 else f'1/{stride} x 1/{stride}':>12}"
              f"{row['seconds']:>9.2f} s{row['changed']:>15.2f}%{row['accuracy']:>10.2f}%{row['psnr']:>8.2f}"
              f"{row['colour']:>11.3f}{row['depth']:>9.2f}%")
    return found


# ----------------------------------------------------------------------------------------- how the cost grows

def curves(args, path: Path) -> None:
    """Measure and draw seconds and operations of CRA and dense attention against rays, samples and views."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    small = args.rays < 64                                                    # for the tests
    base = {"rays": 2, "samples": 4, "views": 2} if small else {"rays": 64, "samples": 32, "views": 8}
    found: dict = {"base": base, "hardware": hardware(args.device)}
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), sharey=True, constrained_layout=True)
    for axis, (name, middle) in zip(axes, base.items()):
        values = [int(middle * f) for f in ((0.5, 1, 2) if small else (0.25, 0.5, 1, 2, 4))]
        for mode, colour in (("full", "#0072b2"), ("dense", "#d55e00")):
            rows = []
            for value in values:
                sizes = Namespace(**{**vars(args), **base, name: value})
                rows.append(fresh(sizes, "tensor", mode=mode, kind="fused", R=sizes.rays))
            found[f"{mode} against {name}"] = rows
            scale = 1000 * rows[-1]["seconds"] / rows[-1]["gflop"]
            axis.plot(values, [1000 * r["seconds"] for r in rows], "o-", color=colour, label=mode)
            axis.plot(values, [scale * r["gflop"] for r in rows], "--", color=colour,
                      label=f"{mode}, operations")
        fixed = ", ".join(f"{value} {other}" for other, value in base.items() if other != name)
        axis.set(xscale="log", yscale="log", xticks=values, xticklabels=values, xlabel=name,
                 title=f"{name} ({fixed})")
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("forward + backward, ms")
    axes[2].legend(frameon=False, fontsize=8)
    figure.suptitle("Cross-Reprojection Attention grows linearly in rays and views, almost so in samples; "
                    "dense attention with the square of samples × views. Fused kernels", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    write_json(path.with_suffix(".json"), found)
    print(f"wrote {path} and {path.with_suffix('.json')}")


# ------------------------------------------------------------------------------------------ the command line

def parse_arguments() -> Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--rays", type=int, default=512)
    add("--samples", type=int, default=64, help="coarse, and as many fine ones")
    add("--views", type=int, default=8)
    add("--height", type=int, default=240)
    add("--width", type=int, default=320)
    add("--repeats", type=int, default=4)
    add("--device", default="cpu", choices=["cpu", "cuda"])
    add("--only", nargs="+", choices=REPORTS, help="which parts to measure [all, compiled on a GPU alone]")
    add("--json", metavar="FILE", help="write all figures there")
    add("--curves", metavar="FILE.png", help="instead: draw how attention's cost grows")
    add("--tried", action="store_true", help="instead: measure each means of speed by itself")
    add("--skipping", metavar="CKPT", help="instead: what --keep and --coarse-stride save and change")
    add("--scenes", type=int, metavar="N", help="--skipping: of so many of its unseen scenes, not of all")
    add("--measure", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    pick_device(args.device)  # complains where there is no GPU
    if args.measure:  # the fresh process of one figure
        print(json.dumps(measure(args, *json.loads(args.measure))))
        return
    if args.curves:
        return curves(args, Path(args.curves))
    machine = fresh(args, "machine")
    found: dict = {"hardware": hardware(args.device), "machine": machine,
                   "command": " ".join(["python -m tools.benchmark", *sys.argv[1:]])}
    print(found["hardware"])
    print("  ".join(f"{key} {value:,.4g}" for key, value in machine.items()), flush=True)
    if args.skipping:
        prepare_cpu()
        found["skipping"] = skipping(args, args.skipping)
    elif args.tried:
        found["tried"] = report_tried(args)
    else:
        parts = args.only or [part for part in REPORTS if part != "compiled" or args.device == "cuda"]
        found |= {part: REPORTS[part](args, machine) for part in parts}
    if args.json:
        write_json(Path(args.json), found)
        print(f"wrote {args.json}")


if __name__ == "__main__":
    run_script(main)
