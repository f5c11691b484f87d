"""The paper's experiments on rooms, one command each: `python -m tools.tables 4` runs the supplement's Table
4.

    python -m tools.tables WHAT [--quick]                    a laptop's recipe, on rooms
    python -m tools.tables WHAT --preset paper --data ROOT   at the paper's size, on ScanNet in ROOT

WHAT: a table, 1 to 7, 12 or 13; `beyond`, a table of what the paper leaves out; figure1 to figure4; or all.

Every training and every evaluation is the real command, in runs/tables (tools/experiments.py). A table goes
to results/table_NN.md and .json: our figures beside the paper's, in the paper's rows and columns, with data,
commands, steps, seeds, hardware and time. Ours are about rooms, the paper's about ScanNet: what can be
compared is the order of the rows, never the level.

Test: pytest tests/test_tool_tables.py
"""
import argparse
import json
import subprocess
import sys
from argparse import Namespace
from importlib import import_module
from pathlib import Path

import torch

from support.datasets import TEST_ROOM
from support.files import DataError, run_script, write_atomically, write_json
from tools import HERE, benchmark
from tools.beyond import beyond
from tools.captures import write_captures
from tools.experiments import PRESETS, Bench, history, paired, per_scene, spread, steps_of
from tools.figures import figure_1, figure_2, figure_3, figure_4

training = import_module("07_train")           # Config, PRESETS, load_checkpoint


def columns(*names: str) -> list[str]:
    """Our columns, then the paper's of the same names."""
    return [*names, *(f"paper: {name}" for name in names)]


# ------------------------------------------------------------------------------------------------ ablations

def table_1(bench: Bench) -> tuple[list, list]:
    """λ1/λ2. The base has 1/1, so a row a/b is trained with 2a/2b (Adam does not see a common factor); the
    source-view loss, a semantic one, is weighted with λ1."""
    paper = {"1/0": "17.49 55.10", "0.75/0.25": "25.26 56.51", "0.5/0.5": "25.35 57.15",
             "0.25/0.75": "26.24 58.12", "0/1": "26.57 3.62"}
    source_loss = training.PRESETS[PRESETS[bench.args.size]["preset"]].get("source_loss", 0.0)
    rows = []
    for name, quoted in paper.items():
        a, b = (2 * float(x) for x in name.split("/"))
        changes = {} if a == b == 1 else dict(lambda1=a, lambda2=b, source_loss=a * source_loss)
        rows.append([name, *spread(bench.seeds(**changes), "psnr", "miou", "depth_abs_rel"), *quoted.split()])
    return ["λ1/λ2", "PSNR", "mIoU", "depth abs rel", "paper: PSNR", "paper: mIoU"], rows


MODES = {"w/o CRA": "none", "Dense Attention": "dense", "only intra-view Att": "intra",
         "only cross-view Att": "cross", "full CRA": "full"}
QUALITY = {"none": "76.30 86.02", "dense": "90.46 94.52", "intra": "81.24 89.58", "cross": "87.01 93.34",
           "full": "91.08 98.20"}               # the paper's mIoU and total accuracy


def attention_rows(bench: Bench, paper: dict, cost) -> list:
    """A row for each attention: its cost, its metrics, the difference to full CRA, the paper's."""
    full = bench.seeds()
    rows = []
    for name, mode in MODES.items():
        runs = full if mode == "full" else bench.seeds(cra=mode)
        rows.append([name, *cost(mode), *spread(runs, "miou", "total_acc"),
                     "" if mode == "full" else paired(runs, full), paper[mode], *QUALITY[mode].split()])
    return rows


def tensor_cost(bench: Bench, mode: str, kind: str) -> dict:
    """What one attention costs on 1024x64x8x32, measured once: GFLOP, and peak MiB of forward + backward."""
    R, S, V = (16, 8, 4) if bench.args.size == "smoke" else (1024, 64, 8)
    path = bench.runs / f"cost_{mode}_{kind}_{R}x{S}x{V}.json"
    if not path.exists():
        flags = Namespace(device="cpu", rays=R, samples=S, views=V, height=48, width=64, repeats=1)
        found = benchmark.attention_cost(flags, mode, kind, R)
        write_json(path, found)
    return json.loads(path.read_text())


def table_2(bench: Bench) -> tuple[list, list]:
    """GFLOP of each attention, 2 per multiply-add, of all projections and products, and quality."""
    paper = {"none": "0", "dense": "10.25", "intra": "3.05", "cross": "2.35", "full": "5.40"}

    def cost(mode: str) -> list:
        """GFLOP forward, and forward + backward."""
        found = tensor_cost(bench, mode, "fused")
        return [f"{found['gflop']:.2f}", f"{found['gflop_both']:.2f}"]
    return (["attention", "GFLOP forward", "GFLOP forward + backward", "mIoU", "total acc",
             "mIoU less full CRA's", "paper: GFLOPs", "paper: mIoU", "paper: total acc"],
            attention_rows(bench, paper, cost))


def table_3(bench: Bench) -> tuple[list, list]:
    """Peak memory of each attention, forward + backward, its input included; and quality, shared with Table
    2."""
    paper = {"none": "0", "dense": "17647", "intra": "3899", "cross": "1583", "full": "4143"}

    def cost(mode: str) -> list:
        """MiB of the plain einsum, of the fused kernel, and of it in pieces of 128 rays."""
        if mode == "none":
            return ["0"] * 3
        found = [tensor_cost(bench, mode, kind) for kind in ("einsum", "fused", "pieces")]
        return [f["failed"] if "failed" in f else f"{f['peak']:.0f}" for f in found]
    return (["attention", "MiB einsum", "MiB fused", "MiB fused, 128 rays at a time", "mIoU", "total acc",
             "mIoU less full CRA's", "paper: MB", "paper: mIoU", "paper: total acc"],
            attention_rows(bench, paper, cost))


def table_4(bench: Bench) -> tuple[list, list]:
    """τ of eq. 3; the base has 0.7."""
    paper = {1: "54.21 77.13 59.05", 0.8: "56.33 78.01 60.37", 0.7: "57.15 78.24 62.55",
             0.5: "55.70 76.64 60.80", 0.2: "54.03 77.25 61.34"}
    base, rows = bench.seeds(), []
    for tau, quoted in paper.items():
        runs = base if tau == 0.7 else bench.seeds(tau=tau)
        rows.append([str(tau), *spread(runs, "miou", "total_acc", "avg_acc"),
                     "" if tau == 0.7 else paired(runs, base), *quoted.split()])
    return ["τ", "mIoU", "total acc", "avg acc", "mIoU less τ = 0.7's", "paper: mIoU", "paper: total acc",
            "paper: avg acc"], rows


# --------------------------------------------------------------------------------- one model, other questions

def table_5(bench: Bench) -> tuple[list, list, str]:
    """mIoU on one unseen scene: Semantic-NeRF trained on its 16 views against S-Ray fine-tuned on them, with
    true labels (gt) and with pseudo labels (p), those of our 2D segmenter, which stands where the paper used
    DeepLabV3+. The paper's steps, scaled; "converge" is 100k of them for Semantic-NeRF and 60k for S-Ray,
    which the paper does not say. The seeds are those of the runs on the scene; S-Ray starts them all from one
    training."""
    paper = {"S-NeRF": "N/A 78.59 86.32 85.64 91.33 92.10 95.24",
             "S-Ray": "77.82 88.07 93.40 91.25 95.15 92.43 95.39"}
    ours, theirs = [], []
    runs = [[per_scene(bench, labels, seed) for seed in range(bench.args.seeds)]
            for labels in ("pseudo", "gt")]
    base, _, _, scene = runs[0][0]
    for ours_at, theirs_at in (("5k", "5k"), ("50k", "50k"), ("60k", "100k")):
        at, late = steps_of(ours_at, bench), steps_of(theirs_at, bench)
        for seeds in runs:
            tunings = [bench.evaluated(tuned / f"checkpoint_{at}.pt", f"eval-{at}", "--scenes", scene)
                       for _, tuned, _, _ in seeds]
            ours += spread(tunings, "miou")
            theirs += spread([history(nerf)[late] for _, _, nerf, _ in seeds], "miou")
    untouched = bench.evaluated(base / "checkpoint.pt", f"eval-{scene}", "--scenes", scene)
    names = ["w/o ft", "ft 5k(p)", "ft 5k(gt)", "ft 50k(p)", "ft 50k(gt)", "ft converge(p)",
             "ft converge(gt)"]
    rows = [["S-NeRF", "N/A", *theirs, *paper["S-NeRF"].split()],
            ["S-Ray", *spread([untouched], "miou"), *ours, *paper["S-Ray"].split()]]
    pseudo = json.loads((bench.segmenter() / "pseudo" / "metrics.json").read_text())
    miou, accuracy = spread([pseudo], "miou", "total_acc")
    steps = ", ".join(str(steps_of(name, bench)) for name in ("5k", "50k", "60k", "100k"))
    note = (f"The pseudo labels on the scene's 16 views: {miou} mIoU, {accuracy} total accuracy. Our steps "
            f"for the paper's 5k, 50k, 60k and 100k: {steps}.")
    return ["mIoU", *columns(*names)], rows, note


def captures(bench: Bench) -> dict[str, Path]:
    """{"blender": ..., "llff": ...}: of unseen rooms, made here; or --captures ROOT's nerf_synthetic and
    nerf_llff_data, as NeRF's authors publish them."""
    if bench.args.captures:
        return {"blender": Path(bench.args.captures) / "nerf_synthetic",
                "llff": Path(bench.args.captures) / "nerf_llff_data"}
    width, height = (64, 48) if bench.args.size == "smoke" else (320, 240)
    count = PRESETS[bench.args.size].get("test_rooms", training.Config.test_rooms)
    seeds = range(TEST_ROOM, TEST_ROOM + count)
    return write_captures(bench.runs / f"captures-{width}x{height}", seeds, width, height)


def table_6(bench: Bench) -> tuple[list, list, str]:
    """S-Ray as a renderer of colour alone (λ1 = 0, trained on the same rooms as everything else), on captures
    in the layouts of the paper's two datasets, brought in by tools.import_scenes: all around (Blender's
    layout) and facing forward (LLFF's). The rows of MVSNeRF, IBRNet, NeuRay and of the paper's S-Ray are
    quoted from the supplement: other scenes, other training."""
    quoted = {"MVSNeRF": "23.46 0.851 0.172 22.93 0.794 0.260",
              "IBRNet": "24.52 0.874 0.158 24.17 0.802 0.215",
              "NeuRay": "26.73 0.908 0.123 25.35 0.824 0.198",
              "S-Ray": "26.84 0.917 0.115 25.68 0.833 0.180"}
    checkpoint = bench.trained(lambda1=0.0, lambda2=2.0, source_loss=0.0) / "checkpoint.pt"   # Table 1's 0/1
    known = [] if bench.args.captures else ["--near", 0.3, "--far", 8]        # of our rooms we know it
    ours, copied = [], []
    for layout, source in captures(bench).items():
        target, name = bench.runs / f"{source.name}-imported", f"eval-{layout}"
        bench.once(checkpoint.parent / name / "metrics.json", "tools.import_scenes", source, *known, "--out",
                   target)
        run = bench.evaluated(checkpoint, name, "--scene", target, *["--lpips"] * bench.args.lpips)
        ours += spread([run], "psnr", "ssim", "lpips")
        copied += [*spread([run["baseline_copy_nearest"]], "psnr"), "-", "-"]
    rows = [[f"{name} (quoted)", *cells.split()] for name, cells in quoted.items()]
    what = "their real scenes" if bench.args.captures else "rooms in these layouts"
    rows += [[f"S-Ray, ours, on {what}", *ours], [f"nearest source view copied, {what}", *copied]]
    names = [f"{where}: {metric}" for where in ("Realistic Synthetic 360°", "Real Forward-facing")
             for metric in ("PSNR", "SSIM", "LPIPS")]
    note = "" if bench.args.lpips else "LPIPS of ours: not run (--lpips; needs requirements-lpips.txt)."
    return ["method", *names], rows, note


def table_7(bench: Bench) -> tuple[list, list]:
    """Source views. One model (the base), trained with one number of views, evaluated with each; 12 and 16
    borrow fine-tuning views."""
    paper = {1: "67.55 86.15 73.73 26.47 0.9077", 4: "75.41 90.51 81.06 30.90 0.9368",
             8: "79.97 93.06 84.92 29.52 0.9106", 12: "83.21 93.89 88.07 28.57 0.8969",
             16: "84.84 94.33 89.78 27.85 0.8859"}
    checkpoint, rows = bench.trained() / "checkpoint.pt", []
    for views, quoted in paper.items():
        other = () if views == 8 else (f"eval-{views}-views", "--views", views)
        run = bench.evaluated(checkpoint, *other)
        rows.append([str(views), *spread([run], "miou", "total_acc", "avg_acc", "psnr", "ssim"),
                     *quoted.split()])
    return ["source views", *columns("mIoU", "total acc", "avg acc", "PSNR", "SSIM")], rows


def table_12(bench: Bench) -> tuple[list, list]:
    """Training steps. Validation: the 4 test views of four training scenes, kept out of training; test:
    unseen scenes. The paper's rows, scaled to the length of our run; nothing is selected by either."""
    paper = {10: "63.70 85.70 71.86 48.53 74.75 56.55", 50: "72.85 88.72 79.52 52.32 77.31 59.38",
             100: "81.25 94.80 86.84 54.27 79.13 61.76", 200: "89.31 97.91 91.10 54.44 76.46 60.63",
             260: "89.57 98.54 91.02 57.15 78.24 62.55", 300: "88.99 98.40 90.39 55.84 77.67 62.15"}
    unit = max(1, PRESETS[bench.args.size].get("steps", training.Config.steps) // 30)  # the paper's 10k steps
    out = bench.trained(validation=4, keep_every=unit)
    known = ",".join(training.load_checkpoint(out / "checkpoint.pt")[1]["run"]["train"][:4])
    rows = []
    for thousands, quoted in paper.items():
        at = thousands // 10 * unit
        checkpoint = out / f"checkpoint_{at}.pt"
        runs = (bench.evaluated(checkpoint, f"validation-{at}", "--scenes", known),
                bench.evaluated(checkpoint, f"test-{at}"))
        cells = [cell for run in runs for cell in spread([run], "miou", "total_acc", "avg_acc")]
        rows.append([f"{at} ({thousands}k)", *cells, *quoted.split()])
    names = [f"{part} {what}" for part in ("validation", "test") for what in ("mIoU", "total acc", "avg acc")]
    return ["steps (the paper's)", *columns(*names)], rows


def table_13(bench: Bench) -> tuple[list, list]:
    """Steps on one unseen scene: S-Ray fine-tuned on its 8 source and 8 fine-tuning views, Semantic-NeRF
    trained on them from nothing. The paper's steps, scaled; 0 is S-Ray as it comes. The seeds are those of
    the runs on the scene; S-Ray starts them all from one training. Seconds: training alone, on the machine
    named below."""
    paper = {("0", "S-Ray"): "77.22 81.68 88.53 29.47",
             ("2k", "S-Ray"): "92.66 98.73 98.73 29.80", ("2k", "Semantic-NeRF"): "78.32 82.69 85.81 20.62",
             ("4k", "S-Ray"): "93.40 98.97 98.97 29.86", ("4k", "Semantic-NeRF"): "86.97 86.61 87.48 21.85",
             ("6k", "S-Ray"): "94.17 99.06 99.06 29.92", ("6k", "Semantic-NeRF"): "87.08 87.85 88.01 22.62",
             ("8k", "S-Ray"): "94.59 99.15 99.15 29.95", ("8k", "Semantic-NeRF"): "88.78 88.57 89.67 22.94",
             ("30k", "S-Ray"): "95.10 99.43 99.42 30.05", ("30k", "Semantic-NeRF"): "91.78 94.86 95.78 24.78",
             ("100k", "Semantic-NeRF"): "95.05 98.73 99.02 29.97"}
    runs, rows = [per_scene(bench, seed=seed) for seed in range(bench.args.seeds)], []
    base, _, _, scene = runs[0]
    for (name, method), quoted in paper.items():
        at = steps_of(name, bench)
        if method != "S-Ray":
            found = [history(nerf)[at] for _, _, nerf, _ in runs]
        elif at:
            found = [bench.evaluated(tuned / f"checkpoint_{at}.pt", f"eval-{at}", "--scenes", scene)
                     for _, tuned, _, _ in runs]
        else:
            as_it_comes = bench.evaluated(base / "checkpoint.pt", f"eval-{scene}", "--scenes", scene)
            found = [as_it_comes | {"train_seconds": 0}]
        rows.append([f"{at} ({name})", method,
                     *spread(found, "miou", "avg_acc", "total_acc", "psnr", "train_seconds"),
                     *quoted.split()])
    names = ["mIoU", "avg acc", "total acc", "PSNR"]
    return ["steps (the paper's)", "method", *names, "seconds on the scene",
            *(f"paper: {name}" for name in names)], rows


TABLES = {"1": table_1, "2": table_2, "3": table_3, "4": table_4, "5": table_5, "6": table_6, "7": table_7,
          "12": table_12, "13": table_13, "beyond": beyond}
FIGURES = {"figure1": figure_1, "figure2": figure_2, "figure3": figure_3, "figure4": figure_4}
WHAT = TABLES | FIGURES
TRAININGS = {"1", "2", "3", "4", "6", "12", "all"}        # what needs more than one training
SEEDED = {"2", "3", "4", "5", "13", "beyond"}             # three seeds, except in small


# -------------------------------------------------------------------------------------------- writing a table

def code_version() -> str:
    """The commit of this checkout, "+" if something is changed; "unknown" outside a checkout."""
    def git(*words) -> str:
        """git's answer"""
        return subprocess.run(["git", "-C", str(HERE), *words], capture_output=True, text=True,
                              check=True).stdout.strip()
    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + "+" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def facts_of(what: str, bench: Bench) -> dict:
    """What made a table or figure: command, data, settings, seeds, code, hardware, seconds, every command."""
    preset = dict(PRESETS[bench.args.size])
    name = preset.pop("preset")
    return {"what": what, "command": " ".join(["python -m tools.tables", *sys.argv[1:]]),
            "data": bench.args.data or "rooms", "preset": name,
            "settings": {"weights": bench.args.checkpoint} if bench.args.checkpoint else preset,
            "seeds": list(range(bench.args.seeds)), "code": code_version(),
            "hardware": benchmark.hardware("cpu"), "seconds_of_this_call": round(bench.seconds),
            "training_seconds": round(bench.training_seconds()),
            "commands": list(dict.fromkeys(bench.commands))}


def write(path: Path, facts: dict, title: str, *paragraphs: str, **more) -> Path:
    """path.md: a title, paragraphs, and where the figures come from; path.json: the facts and more."""
    settings = facts["settings"] or "nothing changed"
    besides = "besides those weights " * ("weights" in facts["settings"])
    origin = (f"Command: `{facts['command']}`. Preset {facts['preset']} with {settings}; seeds "
              f"{facts['seeds']}; {facts['hardware']}; code {facts['code']}; trainings {besides}of together "
              f"{facts['training_seconds']} s, shared between tables and read back where they were made "
              f"before ({facts['seconds_of_this_call']} s in this call). Every command that made a figure is "
              f"in `{path.with_suffix('.json').name}`.")
    about = " ".join(WHAT[facts["what"]].__doc__.split())
    parts = [f"# {title}, on {facts['data']}", about, *paragraphs, origin]
    text = "\n\n".join(part for part in parts if part) + "\n"
    write_atomically(path.with_suffix(".md"), lambda file: file.write(text.encode()))
    write_json(path.with_suffix(".json"), {**facts, **more})
    return path.with_suffix(".md")


def write_table(what: str, bench: Bench, head: list, rows: list, out: Path, *notes: str) -> Path:
    """results/table_NN.md (or WHAT.md) and .json."""
    number, facts = what.isdigit(), facts_of(what, bench)
    title = f"The supplement's Table {what}" if number else "What the paper leaves out"
    ours = f"Ours: {facts['data']}."
    if any(name.startswith("paper") for name in head):
        ours += (" The columns marked *paper* are the supplement's, on ScanNet: compare the order of rows, "
                 "not levels.")
    table = "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])
    return write(out / (f"table_{int(what):02d}" if number else what), facts, title, ours, table, *notes,
                 columns=head, rows=rows, notes=notes)


def write_figure(what: str, bench: Bench, out: Path) -> Path:
    """results/figure_0N.png, .md with what it shows and .json with the commands."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.patches
    import matplotlib.pyplot as plt

    with torch.no_grad():
        figure, note = FIGURES[what](bench, plt)
    number = int(what.removeprefix("figure"))
    path = out / f"figure_{number:02d}.png"
    write_atomically(path, lambda file: figure.savefig(file, dpi=90, format="png"))
    plt.close(figure)
    return write(path, facts_of(what, bench), f"The supplement's Figure {number}",
                 f"![Figure {number}]({path.name})", note, notes=[note])


def parse_arguments() -> Namespace:
    """The command line. DataError for what does not go together."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("what", choices=[*WHAT, "all"], metavar="WHAT", help=f"{', '.join(WHAT)} or all")
    add("--quick", action="store_true", help="tiny trainings: to see that it works, not what it shows")
    add("--preset", choices=["laptop", "paper", "smoke"], default="laptop", help="[laptop]")
    add("--data", help="folder of ScanNet scenes [rooms]")
    add("--checkpoint", help="5, 7, 13, beyond, figures: of these weights, not of a training of the preset")
    add("--rooms", type=int, help="rooms to train on [the preset's]")
    add("--steps", type=int, help="training steps [the preset's]")
    add("--seeds", type=int, help="of each row [3 for Tables 2-5, 13 and beyond, else 1; with --quick 1]")
    add("--captures", help="Table 6: folder of nerf_synthetic/ and nerf_llff_data/ [rooms in their layouts]")
    add("--preview", type=int, default=1, metavar="N", help="beyond: every N-th row and column alone [1]")
    add("--lpips", action="store_true", help="Table 6: LPIPS too, needs requirements-lpips.txt")
    add("--runs", default="runs/tables", help="folder of the trainings [runs/tables]")
    add("--out", default="results", help="folder of the tables [results]")
    args = parser.parse_args()
    if args.checkpoint and args.what in TRAININGS:
        raise DataError(f"--checkpoint: {args.what} compares trainings; it is for 5, 7, 13, beyond and the "
                        "figures")
    if args.preview < 1:
        raise DataError(f"--preview {args.preview}: must be 1 or more")
    args.size = "quick" if args.quick else args.preset
    return args


def main() -> None:
    args = parse_arguments()
    given = {"train_rooms": args.rooms, "steps": args.steps}
    PRESETS[args.size] |= {key: value for key, value in given.items() if value}
    several = not args.checkpoint and args.size in ("laptop", "paper")
    for what in WHAT if args.what == "all" else [args.what]:
        seeds = args.seeds or (3 if several and what in SEEDED else 1)
        bench = Bench(Namespace(**{**vars(args), "seeds": seeds}))
        if what in FIGURES:
            path = write_figure(what, bench, Path(args.out))
        else:
            head, rows, *notes = TABLES[what](bench)
            path = write_table(what, bench, head, rows, Path(args.out), *notes)
        print(f"\n{path.read_text()}\nwrote {path} and {path.with_suffix('.json')}")


if __name__ == "__main__":
    run_script(main)
