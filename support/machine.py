"""The machine that a program runs on: its device, its cores, its memory.

Test: pytest tests/test_support_machine.py
"""
import ctypes
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from support.files import DataError


def prepare_cpu() -> None:
    """Two settings for training and rendering on a CPU (docs/speed.md). glibc gives every large buffer back
    to the system and takes page faults for the next one: it is told to keep them. Numbers below 1e-38 become
    zero, because a CPU computes with them by a slow way and vanishing gradients may be full of them."""
    # asked for its limits without denormals, numpy would warn: ask now, it remembers
    for kind in (np.float32, np.float64):
        np.finfo(kind)
    torch.set_flush_denormal(True)             # holds for this thread and those it starts
    try:
        libc = ctypes.CDLL(None)
        # M_ARENA_MAX: a heap for each thread that works on a core of its own
        libc.mallopt(-8, 1 + torch.get_num_threads())
        libc.mallopt(-4, 0)                    # M_MMAP_MAX: no buffer of its own mapping
        libc.mallopt(-1, 2 ** 31 - 1)          # M_TRIM_THRESHOLD: do not shrink the heap
    except (OSError, AttributeError, TypeError):
        pass                                   # another C library


def pick_device(name: str) -> torch.device:
    """"auto" takes CUDA where there is some. DataError for "cuda" where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise DataError("--device cuda: this PyTorch sees no GPU; leave the flag out")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def core_pool(device: torch.device, jobs: int, workers: int = 0) -> ThreadPoolExecutor | None:
    """A pool for so many independent jobs at a time: `workers` threads (0: as many as help) that share the
    cores evenly, for torch.set_num_threads holds for the thread that calls it. None, for a plain loop, where
    one worker is enough."""
    cores = torch.get_num_threads()
    workers = workers or (1 if device.type != "cpu" else max(1, min(cores, jobs)))
    if workers == 1:
        return None
    share = max(1, cores // workers)
    return ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(share,))


def piece_size(device: torch.device, rays: int, piece: int = 0) -> int:
    """How many of a target's rays go forward and backward together: `piece`, or (0) a core's share, on a GPU
    all."""
    if piece:
        return piece
    return rays if device.type != "cpu" else min(256, max(64, math.ceil(rays / torch.get_num_threads())))
