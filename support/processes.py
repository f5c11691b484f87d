"""One training or evaluation by several processes, as torchrun starts them.

Every process draws the same rays from (seed, step) and works on its share of them. The gradients are added.
Rank 0 alone prints and writes.

Test: pytest tests/test_support_processes.py
"""
import os
import re
import sys
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from support.files import DataError


def rank_and_world() -> tuple[int, int]:
    """Which process this is, of how many: (0, 1) unless torchrun started several."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def join_processes() -> tuple[int, int]:
    """Meet the processes that torchrun started, one for each GPU (or on CPUs) -> this one's rank and their
    number."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        local = int(os.environ["LOCAL_RANK"])
        if 0 < torch.cuda.device_count() <= local:
            raise DataError(f"torchrun --nproc-per-node {os.environ['LOCAL_WORLD_SIZE']}: this machine has "
                            f"{torch.cuda.device_count()} GPUs; start as many processes "
                            "(CUDA_VISIBLE_DEVICES= for CPUs)")
        if torch.cuda.is_available():
            torch.cuda.set_device(local)
        # a day: the first process of a machine may decode a large dataset while the others wait
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(days=1))
        if dist.get_rank():
            sys.stdout = open(os.devnull, "w")
    return rank_and_world()


def leave_processes() -> None:
    """The work is done: this process no longer waits for the others."""
    if rank_and_world()[1] > 1:
        dist.destroy_process_group()


@contextmanager
def together():
    """What all processes do together. Where another one has ended, it has said why: this one ends too, and
    says nothing."""
    try:
        yield
    except RuntimeError as error:             # gloo's, which has no kind of its own
        if not re.search("onnection (closed|reset|refused)|roken pipe|peer", str(error)):
            raise
        raise SystemExit(2) from None


def sum_over_processes(*values: float) -> list[float]:
    """The sums of these numbers over all processes; they are where all wait for each other, too."""
    total = torch.tensor(values, dtype=torch.float64)
    if rank_and_world()[1] > 1:
        with together():
            dist.all_reduce(total)
    return total.tolist()


def gather_on_first(mine: list) -> list:
    """The lists of all processes, one after the other, on rank 0; [] on the others."""
    rank, world = rank_and_world()
    if world == 1:
        return mine
    everyone = [None] * world if rank == 0 else None
    with together():
        dist.gather_object(mine, everyone)
    return [item for part in everyone or [] for item in part]


@contextmanager
def first_on_this_machine():
    """What is in here (making rooms, decoding frames) one process of each machine does first, and the others
    find done."""
    first = int(os.environ.get("LOCAL_RANK", 0)) == 0
    if not first:
        sum_over_processes(0)
    yield
    if first:
        sum_over_processes(0)


def share(rays: int, targets: int, target: int) -> slice:
    """Which of a target's rays are this process's work: all, unless there are N processes. Then the rays of
    all targets, in a row, are cut into N equal parts: with N targets each process has one, with one target
    each has a part of it."""
    rank, world = rank_and_world()
    first, last = (rays * targets * part // world - rays * target for part in (rank, rank + 1))
    return slice(min(max(first, 0), rays), min(max(last, 0), rays))


def add_gradients(parameters: list[Tensor]) -> None:
    """Make every .grad the sum over all processes; None stays None where no process has one."""
    if rank_and_world()[1] == 1:
        return
    there = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
    mine = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([there, *(g.flatten() for g in mine)])
    with together():
        dist.all_reduce(flat)
    there, *parts = flat.split([len(parameters), *(p.numel() for p in parameters)])
    for p, count, part in zip(parameters, there.tolist(), parts):
        p.grad = part.view_as(p).clone() if count else None
