"""Folders of rooms: each appears whole or not at all, and several processes may write them at a time. Nothing
that is not a room of ours is ever replaced."""
import contextlib
import multiprocessing
import os
import secrets
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from support.datasets import read_split, space
from support.files import DataError, read_json, write_atomically
from support.folders import part_of, remove_parts, whole_folder
from support.labels import CLASSES_CSV, LABELS_TSV, NYU40_IDS, read_label_table
from support.rooms import TEST
from support.rooms.classes import RAW, write_label_table


def said_of(folder):
    """What room.json, the last file of a room, says; {} if it is none of ours."""
    try:
        about = read_json(folder / "room.json", 10_000)
    except DataError:
        return {}
    return about if isinstance(about, dict) and about.get("generator") == "00_rooms.py" else {}


def is_there(folder, about):
    """Is this room complete, and made with these settings?"""
    have = said_of(folder)
    return {key: have.get(key) for key in about} == about


def write_whole(target, about, write, mark=""):
    """Call write(folder) on a temporary folder, then rename it to target. Where another process has made the
    same room meanwhile, its room stays; one with other settings than `about` is replaced. mark: of the
    temporary folders' names."""
    old = part_of(target, mark + "o" if mark else "")
    try:
        with whole_folder(target, mark) as temporary:
            write(temporary)
            if os.path.lexists(target) and not is_there(target, about):
                check_ours(target)
                os.rename(target, old)  # in one move: no half-deleted room under its name
    finally:
        shutil.rmtree(old, ignore_errors=True)


def check_ours(folder):
    """DataError if there is something of this name that is not a room of 00_rooms.py."""
    if os.path.lexists(folder) and not (said_of(folder) and not folder.is_symlink()):
        raise DataError(f"{folder}: not a room that 00_rooms.py made, and it stays; move it away, or "
                        "name another folder with --data")


def provide_label_table(root):
    """The label table beside the rooms, written unless there is one. DataError where that one, or a class
    list, gives the rooms' labels another meaning."""
    path = root / LABELS_TSV
    if os.path.lexists(root / CLASSES_CSV):
        raise DataError(f"{root / CLASSES_CSV}: the scenes here have classes of their own, and rooms "
                        "ScanNet's; name another folder for rooms")
    if not os.path.lexists(path):
        write_label_table(path)
        return
    table = read_label_table(path)
    for nyu40, categories in RAW.items():
        label = NYU40_IDS.index(nyu40) if nyu40 in NYU40_IDS else -1
        ids = np.array(list(categories.values()))
        if ids.max() >= len(table) or (table[ids] != label).any():
            raise DataError(f"{path}: not the label table of rooms, and it stays; name another folder for "
                            "rooms")


def write_missing(root, seeds, about, write, workers=None):
    """The label table, and those of the rooms `seeds` that are not there, under `root`. -> names of all.

    about(seed): the settings of a room; write(root, name, seed, mark): writes it, and can be pickled.
    """
    root, mark = Path(root), secrets.token_hex(6)
    rooms = [(f"room{seed:04d}_00", seed) for seed in seeds]
    jobs = [(name, seed) for name, seed in rooms if not is_there(root / name, about(seed))]
    if not jobs and (not rooms or os.path.lexists(root / LABELS_TSV)):
        return [name for name, _ in rooms]
    for name, _ in jobs:
        check_ours(root / name)
    root.mkdir(parents=True, exist_ok=True)
    provide_label_table(root)
    remove_parts(root)                  # of writers that were killed
    try:
        _run(partial(_write, write, str(root), mark), jobs, min(workers or os.cpu_count() or 1, len(jobs)))
    finally:
        for made in (mark, mark + "o"):  # of workers that were stopped half-way
            with contextlib.suppress(OSError):
                remove_parts(root, made)
    return [name for name, _ in rooms]


def write_split(root, names):
    """<root>/split.txt says which of these rooms are for training and which for testing. Lines that are there
    for other scenes stay; so does somebody's other choice."""
    path = Path(root) / "split.txt"
    lines = {space(name): "test" if any(int(name[4:-3]) in seeds for seeds in TEST) else "train"
             for name in names}
    lines |= read_split(path) if path.is_file() else {}
    text = "".join(f"{side} {name}\n" for name, side in sorted(lines.items()))
    write_atomically(path, lambda file: file.write(text.encode()))


def _write(write, root, mark, job):
    write(root, *job, mark=mark)


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
