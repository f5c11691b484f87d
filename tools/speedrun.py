"""Time to quality: what a newcomer waits for, from an empty folder to labels of unseen rooms, in one line.

    python -m tools.speedrun                          make train's own recipe, three seeds (docs/speedrun.md)
    python -m tools.speedrun --seeds 1 -- --steps 1000          with flags of 07 after the two dashes

A run makes its rooms, reads their frames and trains, all of it in a folder of its own that was empty. What
that takes in processor time is counted in U, user-seconds of one 1024^3 float32 product on one thread: the
mean of before and after. Then 08 evaluates it on rooms 9000 to 9009, which is not counted.

Test: pytest tests/test_tool_speedrun.py
"""
import argparse
import os
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

from support.files import DataError, read_json, run_script, write_json
from tools import measuring, python
from tools.tables import code_version

RECIPE = "--scene", "rooms", "--preset", "laptop"
METRICS = {"miou": "mIoU", "total_acc": "total accuracy", "psnr": "dB"}


def processor_seconds(script: str, *flags) -> tuple[float, float]:
    """A numbered script in a process of its own -> seconds, processor seconds, its own processes included.
    DataError where it fails."""
    words, env = python(script, *flags)
    print(f"\n$ python {script} {shlex.join(map(str, flags))}", flush=True)
    before, start = os.times(), time.time()
    code = subprocess.call(words, env=env)
    after = os.times()
    if code:
        raise DataError(f"{script}: ended with status {code} (see above)")
    used = sum(getattr(after, name) - getattr(before, name) for name in ("children_user", "children_system"))
    return time.time() - start, used


def unit() -> float:
    """U, in user-seconds, on this machine now."""
    return measuring.rates(1)["U"]


def one_run(folder: Path, seed: int, more: list[str]) -> dict:
    """Rooms, training and evaluation of one seed in a folder that is not there yet -> its figures."""
    if folder.exists():
        raise DataError(f"{folder}: there already, and a run counts from nothing; move it or name another "
                        "--out")
    units = [unit()]
    seconds, used = processor_seconds(
        "07_train.py", *RECIPE, "--data", folder / "rooms", "--cache", folder / "cache", "--out",
        folder / "run", "--seed", seed, "--no-eval", *more)
    units.append(unit())
    processor_seconds("08_eval.py", "--checkpoint", folder / "run" / "checkpoint.pt", "--cache",
                      folder / "cache", "--out", folder / "eval")
    metrics, U = read_json(folder / "eval" / "metrics.json"), statistics.mean(units)
    return {"seed": seed, "minutes": seconds / 60, "processor_seconds": used, "U_seconds": U, "U": used / U,
            **{name: metrics[name] for name in METRICS}}


def line(name: str, found: dict) -> str:
    """A run, or the mean of several, in a line."""
    quality = ", ".join(f"{found[key]:.2f} {title}" for key, title in METRICS.items())
    return (f"{name}: {found['minutes']:.1f} minutes, {found['processor_seconds']:.0f} processor seconds, "
            f"{found['U']:,.0f} U of {found['U_seconds']:.4f} s; {quality}")


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """The command line, and what stands behind its two dashes. DataError where times cannot be taken."""
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="so many, from 0 [3]")
    parser.add_argument("--first", type=int, default=0, help="the first seed [0]")
    parser.add_argument("--out", default="runs/speedrun", help="a folder for the runs [runs/speedrun]")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    args = parser.parse_args(words[:cut])
    if args.seeds < 1 or args.first < 0:
        raise DataError("--seeds must be at least 1, --first at least 0")
    if sys.platform == "win32":
        raise DataError("Windows does not count the processor time of other processes; run it elsewhere")
    return args, words[cut + 1:]


def main() -> None:
    args, more = parse_arguments()
    found = []
    for seed in range(args.first, args.first + args.seeds):
        found.append(one_run(Path(args.out) / f"seed{seed}", seed, more))
        print(line(f"seed {seed}", found[-1]), flush=True)
        mean = {key: statistics.mean(run[key] for run in found) for key in found[0] if key != "seed"}
        if args.json:
            write_json(Path(args.json), {"command": f"python -m tools.speedrun {shlex.join(sys.argv[1:])}",
                                         "code": code_version(), "hardware": measuring.hardware("cpu"),
                                         "runs": found, "mean": mean})
    print(line(f"mean of {len(found)}", mean))


if __name__ == "__main__":
    run_script(main)
