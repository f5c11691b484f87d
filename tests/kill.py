"""Kill training with SIGKILL at random moments, resume it, and compare what it ends with to a run that nobody
touched: the weights, the optimiser, the log and the metrics must be the same to the bit.

    python tests/kill.py     20 kill points, 10 to 20 minutes; exit status 1 if one of them ends differently

Each point starts 07_train.py (smoke preset, a checkpoint every second step), kills it and all it has started
after a random time, does so again half of the time, and then types what a user would: --resume, or where
there is no checkpoint yet the first command again. The points share one folder of rooms. A fixed seed makes
the times the same shares of a whole run.
"""
import argparse
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

import torch

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))
SMOKE = ["--preset", "smoke", "--steps", "9", "--rays", "8", "--coarse", "4", "--fine", "4"]
MACHINE = ["--save-every", "2", "--device", "cpu"]               # no settings: named again with --resume


class Command:
    """07_train.py in a process of its own, started as a user does."""

    def __init__(self, arguments: list[str], cwd: Path):
        self.log = open(cwd / "output.txt", "ab")
        self.process = subprocess.Popen(
            [sys.executable, str(REPO / "07_train.py"), *arguments], cwd=cwd, stdout=self.log,
            stderr=self.log, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

    def wait(self, seconds: float | None = None) -> int | None:
        """The exit status; None if it still runs after so many seconds."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """The machine dies: no process of it gets a chance to tidy up."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def result(run: Path) -> dict:
    """All that a run must end with: tensors as bytes, the log without its seconds, the metrics without times
    and names."""
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    moments = state["optimiser"]["state"]
    optimiser = {(i, key): value for i in moments for key, value in moments[i].items()}
    metrics = {}
    if (run / "eval" / "metrics.json").exists():
        metrics = json.loads((run / "eval" / "metrics.json").read_text())
        metrics = {key: x for key, x in metrics.items() if "seconds" not in key and "command" not in key}
        for image in metrics["images"]:
            del image["seconds"]
    return {"step": state["step"], "mean": state["run"]["mean"], "metrics": metrics,
            "weights": {key: value.numpy().tobytes() for key, value in state["model"].items()},
            "optimiser": {key: value.numpy().tobytes() for key, value in optimiser.items()},
            "log": [row[:-1] for row in csv.reader(open(run / "log.csv"))]}


def whole(root: Path, work: Path, start=Command, flags: tuple = ()) -> tuple[dict, float]:
    """A run that nobody touches -> its result, and its seconds."""
    work.mkdir(parents=True)
    begin = time.time()
    status = start(["--scene", str(root), *SMOKE, *MACHINE, "--out", "run", *flags], work).wait()
    assert status == 0, (work / "output.txt").read_text()[-2000:]
    return result(work / "run"), time.time() - begin


def where(run: Path) -> str:
    """Where a run was killed."""
    if not (run / "checkpoint.pt").exists():
        return "before its first checkpoint"
    step = torch.load(run / "checkpoint.pt", weights_only=True)["step"]
    writing = ", writing the next" * any(run.glob(".checkpoint*"))
    return f"after the checkpoint of step {step}{writing}" + ", training done" * (step == 9)


def point(root: Path, work: Path, seconds: list[float], start=Command,
          flags: tuple = ()) -> tuple[dict, list[str]]:
    """A run killed after seconds[0], continued, killed again after seconds[1] ... -> its result, and where it
    was killed."""
    work.mkdir(parents=True)
    killed, run = [], work / "run"
    for limit in [*seconds, None]:
        again = ["--resume"] if (run / "checkpoint.pt").exists() else ["--scene", str(root), *SMOKE]
        process = start([*again, *MACHINE, "--out", "run", *flags], work)
        status = process.wait(limit)
        if status is None:
            process.kill()
            killed.append(where(run))
            continue
        assert status == 0, (work / "output.txt").read_text()[-2000:]
        break
    assert not list(run.glob(".checkpoint*")), "a killed writer's part is still there"
    return result(run), killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--points", type=int, default=20, help="how many kill points [20]")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments [0]")
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="kill"))
    import_module("00_rooms").make_rooms(work / "rooms", [0, 9000], frames=24, width=64, height=48, workers=1)
    kinds = [("--no-eval",), ()]  # every second point evaluates as well
    wholes = [whole(work / "rooms", work / f"whole{i}", flags=flags) for i, flags in enumerate(kinds)]
    print(f"a whole run: {wholes[0][1]:.1f} s, with its evaluation {wholes[1][1]:.1f} s", flush=True)
    random.seed(args.seed)
    different = 0
    for i in range(args.points):
        shares = [random.random() for _ in range(1 + (random.random() < 0.5))]
        flags, (expected, duration) = kinds[i % 2], wholes[i % 2]
        for attempt in range(10):  # sooner, if it ended before it could be killed
            times = [share * duration for share in shares]
            got, killed = point(work / "rooms", work / f"point{i}-{attempt}", times, flags=flags)
            if killed:
                break
            shares = [share / 2 for share in shares]
        same = got == expected
        different += not same
        when = " and ".join(f"{seconds:.1f} s" for seconds in times)
        how = "same" if same else "DIFFERENT"
        print(f"{i + 1:3}  {how}  killed after {when}: {'; '.join(killed)}", flush=True)
    shutil.rmtree(work)
    print(f"{args.points - different} of {args.points} ended with the weights, optimiser, log and metrics "
          f"of the whole run")
    raise SystemExit(different > 0)


if __name__ == "__main__":
    main()
