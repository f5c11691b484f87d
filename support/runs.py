"""The folder of a run: its lock, its checkpoint, its log, its curves; and how a run is asked to stop.

A run is killed at any moment and goes on from its last checkpoint.

Test: pytest tests/test_support_runs.py
"""
import csv
import errno
import itertools
import math
import os
import re
import signal
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from support.checkpoints import load_state as load_state
from support.checkpoints import not_a_checkpoint as not_a_checkpoint
from support.checkpoints import read_state as read_state
from support.checkpoints import resume_optimiser as resume_optimiser
from support.checkpoints import write_state
from support.files import DataError, figure_text, read_text, write_atomically

# ------------------------------------------------------------------------------------------------- the folder

def lock_folder(out: Path):
    """Take a run folder for this process, until it ends, however it ends -> the open lock file; None if
    another process has it."""
    out.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    lock = open(out / ".lock", "a", opener=lambda path, _: os.open(path, flags, 0o666))
    try:
        if os.name == "nt":
            import msvcrt
            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # not just deleted by the one who had it
        if os.stat(out / ".lock").st_ino == os.fstat(lock.fileno()).st_ino:
            return lock
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK, errno.ENOENT):
            return lock                                                       # a file system without locks
    lock.close()


def free_folder(wanted: str | None, name: str) -> tuple[Path, object]:
    """--out, or runs/NAME, runs/NAME-2 ...: a folder without a run, and its lock, to be kept. DataError if
    --out has a run, or files that a run would write over."""
    for count in itertools.count(1):
        out = Path(wanted or Path("runs") / (name if count == 1 else f"{name}-{count}"))
        taken = (out / "checkpoint.pt").exists()
        if not wanted:
            taken = out.exists() and any(not is_remains(path) for path in out.iterdir())
        lock = None if taken else lock_folder(out)
        if lock and not (out / "checkpoint.pt").exists():  # the one before us may have finished just now
            check_foreign(out)
            remove_remains(out)
            return out, lock
        if wanted:
            raise not_free(out)


def is_remains(path: Path) -> bool:
    """Is this file what a run leaves that is killed before its first checkpoint?"""
    if path.name == "log.csv":
        return path.is_file() and path.stat().st_size < 200 and path.read_bytes()[:5] in (b"", b"step,")
    return path.name == ".lock" or bool(re.fullmatch(r"\.checkpoint.*\.pt\..*|\..*\.part", path.name))


def check_foreign(out: Path) -> None:
    """DataError where a new run would write over files of somebody else's."""
    for path in out.iterdir():
        ours = path.name in ("log.csv", "curves.png", "eval", "metrics.json")
        if (ours or re.fullmatch(r"checkpoint_\d+\.pt", path.name)) and not is_remains(path):
            raise DataError(f"{path}: not of a run that can be continued, and it stays; move it away or name "
                            "another --out")


def remove_remains(out: Path) -> None:
    """Remove what a killed writer left half-written."""
    for path in out.iterdir():
        if is_remains(path) and path.name.startswith(".") and path.name != ".lock":
            path.unlink()


def not_free(out: Path) -> DataError:
    """What to tell somebody whose --out has a run already, or a run of another process that has not come so
    far."""
    if (out / "checkpoint.pt").exists():
        return DataError(f"{out}: holds a run already; --resume continues it, another --out starts a new one")
    return DataError(f"{out}: another process trains in it; name another --out")


def folder_to_resume(wanted: str | None, rank: int = 0) -> tuple[Path, object]:
    """--out with --resume: the folder of a run and, for rank 0, its lock, to be kept. DataError if there is
    none, or it is on."""
    if not wanted:
        raise DataError("--resume continues the run in --out; name that folder")
    out = Path(wanted)
    if not (out / "checkpoint.pt").exists():
        raise DataError(f"{out / 'checkpoint.pt'}: no such checkpoint; a run killed before its first step "
                        f"starts "
                        "again with the command that started it")
    if rank:
        return out, None
    lock = lock_folder(out)
    if not lock:
        raise DataError(f"{out}: another process trains in it; wait for its end")
    remove_remains(out)
    return out, lock


def remove_empty(out: Path) -> None:
    """Leave nothing of a run that did not come to its first checkpoint."""
    if not (out / "checkpoint.pt").exists():
        with suppress(OSError):
            for name in ("log.csv", ".lock"):
                (out / name).unlink(missing_ok=True)
            out.rmdir()


# --------------------------------------------------------------------------------------------- the checkpoint

def save(out: Path, model, optimiser, run: dict, progress: "Progress", keep_every: int, rank: int,
         step: int) -> None:
    """Write a run's checkpoint.pt as it is after so many steps; before it, every keep_every steps, a copy
    that stays. Rank 0 alone writes."""
    run["seconds"] = progress.seconds()
    state = {"model": model.state_dict(), "config": asdict(model.config), "classes": model.classes._asdict(),
             "step": step, "optimiser": optimiser.state_dict(), "run": run}
    copy = bool(step and keep_every and step % keep_every == 0)
    for name in [f"checkpoint_{step}.pt"] * copy + ["checkpoint.pt"]:
        if rank == 0:
            write_state(out / name, state)


def check_finite(step: int, parts: dict[str, float], norm: float, out: Path) -> None:
    """DataError if the loss or its gradient's norm is not a number that one can train with."""
    if not (math.isfinite(parts["loss"]) and math.isfinite(norm)):
        values = ", ".join(f"{key} {value:.4g}" for key, value in parts.items())
        raise DataError(f"step {step}: the loss is {parts['loss']}, its gradient's norm {norm:.4g} "
                        f"({values}); "
                        f"training stopped, the last good checkpoint is {out / 'checkpoint.pt'}; resume "
                        f"from it "
                        "with a lower --lr")


# ---------------------------------------------------------------------------------------------------- the log

def open_log(out: Path, first_step: int, rank: int):
    """log.csv, to be written on from first_step: rows after it, and half a row, are what a killed run wrote
    after its last checkpoint. For ranks but 0 a file that keeps nothing."""
    path = out / "log.csv"
    if rank:
        return open(os.devnull, "w", newline="")
    if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
        raise DataError(f"{path}: not a file; move it away")
    if first_step and path.exists():
        trim_log(path, first_step)
    return open(path, "a" if first_step else "w", newline="")


def trim_log(path: Path, step: int) -> None:
    """Take the rows after `step`, and half a row, out of log.csv."""
    header, *rows = read_text(path, 2 ** 30).splitlines() or [""]
    kept = [row for row in rows if row.count(",") == header.count(",") and int(row.split(",")[0]) <= step]
    write_atomically(path, lambda file: file.write("\n".join([header, *kept, ""]).encode()))


def training_curves(folder: Path) -> None:
    """A run's log.csv -> curves.png beside it: every logged loss (running means over some 50 steps) against
    the step."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if not (folder / "log.csv").exists():
        return
    rows = list(csv.DictReader(read_text(folder / "log.csv", 2 ** 30).splitlines()))
    units = {"semantic": "nats, coarse + fine", "source": "nats",
             "photometric": "squared error,\ncoarse + fine"}
    names = [name for name in units if rows and name in rows[0]]
    if len(rows) < 2:                         # nothing to draw a line through
        return
    size = 4.6 * len(names), 5
    with plt.rc_context({"font.size": 18, "lines.linewidth": 3}):           # read from the back row of a room
        figure, axes = plt.subplots(1, len(names), figsize=size, layout="constrained", squeeze=False)
        for axis, name, colour in zip(axes[0], names, ("#d55e00", "#0072b2", "#009e73")):
            axis.plot([int(row["step"]) for row in rows], [float(row[name]) for row in rows], color=colour)
            axis.set(xlabel="step", ylabel=units[name], title=f"{name} loss", ylim=(0, None))
            axis.locator_params(nbins=4)
            axis.grid(alpha=0.3)
        name, seconds = figure_text(folder.name), float(rows[-1]["seconds"])
        figure.suptitle(f"{name}: {rows[-1]['step']} steps in {seconds:,.0f} s")
        write_atomically(folder / "curves.png", lambda file: figure.savefig(file, dpi=100, format="png"))
        plt.close(figure)


# ---------------------------------------------------------------------------------------- being asked to stop

class Stopped(Exception):
    """Training was asked to stop, and has saved; args: "STEP of STEPS"."""


@contextmanager
def ending(out: Path, how: str, rank: int):
    """However a training ends: asked to stop, it has saved, and the line `how` that continues it is printed;
    without its first checkpoint it leaves no empty folder."""
    try:
        with asked_to_stop() as stop:
            yield stop
    except Stopped as stopped:
        if rank == 0:
            print(f"stopped at step {stopped}; everything is saved; continue with: {how}", file=sys.stderr)
        raise SystemExit(130) from None
    except KeyboardInterrupt:
        raise DataError(f"interrupted; steps since the last checkpoint are lost; continue with: "
                        f"{how}") from None
    finally:
        if rank == 0:
            remove_empty(out)


@contextmanager
def asked_to_stop():
    """Ctrl-C, or the SIGTERM of a cluster that wants its machine back, fills the list given here; a second
    Ctrl-C interrupts."""
    asked: list = []

    def note(number, _) -> None:
        """Say so, safely within whatever was interrupted."""
        asked.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with suppress(OSError):                # nobody may read it any more
            os.write(2, b"\nstopping after this step, to save; Ctrl-C once more stops at once\n")
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ----------------------------------------------------------------------------------- on screen and in log.csv

class Progress:
    """A training on screen and in log.csv: steps, ETA, running means of the losses, rays a second."""

    def __init__(self, out: Path, run: dict, names: tuple, first_step: int, steps: int, rays: int, rank: int):
        self.names, self.first_step, self.steps, self.rays = names, first_step, steps, rays
        # a resumed run goes on from these
        self.mean, self.before = run.setdefault("mean", {}), run["seconds"]
        self.start, self.waited = time.time(), 0.0
        self.log = open_log(out, first_step, rank)
        if not self.log.tell():
            csv.writer(self.log, lineterminator="\n").writerow(["step", *names, "seconds"])
        self.bar = tqdm(total=steps, initial=first_step, unit="step", dynamic_ncols=True, smoothing=0.05,
                        disable=rank > 0, mininterval=0.5 if sys.stderr.isatty() else 15)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()
        self.log.close()

    def seconds(self) -> float:
        """Of training so far, in all processes that worked on the run one after the other. The log is
        written, so that it is on the disk before a checkpoint that says this number."""
        self.log.flush()
        return self.before + time.time() - self.start

    def wait_for(self, coming):
        """The result of a future, the time that it took noted."""
        asked = time.perf_counter()
        result = coming.result()
        self.waited += time.perf_counter() - asked
        return result

    def update(self, done: int, parts: dict[str, float]) -> None:
        """So many steps are done; the parts of the last one's loss."""
        self.bar.update()
        for key in self.names:
            self.mean[key] = 0.98 * self.mean.get(key, parts[key]) + 0.02 * parts[key]
        if done % 10 == 0 or done == self.steps:
            row = [done, *(f"{self.mean[key]:.5g}" for key in self.names), f"{self.seconds():.1f}"]
            csv.writer(self.log, lineterminator="\n").writerow(row)
            rate = (done - self.first_step) * self.rays / (time.time() - self.start)
            shown = {key: f"{value:.3f}" for key, value in self.mean.items()}
            self.bar.set_postfix({**shown, "rays/s": f"{rate:,.0f}"}, refresh=False)

    def summary(self) -> str:
        """What a finished training says."""
        return (f"trained {self.steps - self.first_step} steps in {time.time() - self.start:.0f} s, "
                f"{self.waited:.1f} s of them waiting for data")
