"""Folders of rooms: each appears whole or not at all, and several processes may write them at a time."""
import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path

from tqdm import tqdm

from support.rooms.classes import write_label_table


def is_there(folder, about):
    """Is this room complete, and made with these settings? room.json is the last file of a room."""
    try:
        have = json.loads((folder / "room.json").read_text())
        return {key: have.get(key) for key in about} == about
    except (OSError, ValueError, AttributeError):
        return False


def write_whole(target, about, write):
    """Call write(folder) on a temporary folder, then rename it to target. Where another process has made the
    same room meanwhile, its room stays; one with other settings than `about` is replaced."""
    temporary, old = (target.with_name(f".{target.name}.{os.getpid()}.{what}") for what in ("tmp", "old"))
    try:
        write(temporary)
        if not is_there(target, about):
            if target.exists():
                os.rename(target, old)  # in one move, deleted afterwards: no half-deleted room under its name
            try:
                os.rename(temporary, target)
            except OSError:
                if not target.is_dir():
                    raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_missing(root, seeds, about, write, workers=None):
    """The label table, and those of the rooms `seeds` that are not there, under `root`. -> names of all.

    about(seed): the settings of a room; write(root, name, seed): writes it, and can be pickled.
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    write_label_table(root / "scannetv2-labels.combined.tsv")
    for part in root.glob(".room*.*"):  # of writers that were killed
        with contextlib.suppress(OSError):  # or just finished
            if time.time() - part.stat().st_mtime > 3600:
                shutil.rmtree(part, ignore_errors=True)
    rooms = [(f"room{seed:04d}_00", seed) for seed in seeds]
    jobs = [(name, seed) for name, seed in rooms if not is_there(root / name, about(seed))]
    _run(partial(_write, write, str(root)), jobs, min(workers or os.cpu_count() or 1, len(jobs)))
    return [name for name, _ in rooms]


def _write(write, root, job):
    write(root, *job)


def _run(work, jobs, workers):
    """work(job) for all jobs, in `workers` processes of one thread each, or in this one."""
    bar = partial(tqdm, total=len(jobs), desc="rooms", unit="room", disable=not jobs)
    if workers <= 1:
        for job in bar(jobs):
            work(job)
        return
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the workers
    try:
        ignore = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends this process, and it ends them
        with multiprocessing.get_context("spawn").Pool(workers, signal.signal, ignore) as pool:
            for _ in bar(pool.imap_unordered(work, jobs)):
                pass
    finally:
        os.environ.pop("OMP_NUM_THREADS") if threads is None else os.environ.update(OMP_NUM_THREADS=threads)
