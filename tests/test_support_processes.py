"""support/processes.py: who does what of several processes, and what they add up to."""
import multiprocessing
import os
import socket
import time
from argparse import Namespace

import pytest
import torch

from support import processes
from support.files import DataError


def test_alone_a_process_is_the_first_of_one_and_nothing_is_added():
    parameter = torch.nn.Parameter(torch.zeros(2))
    processes.add_gradients([parameter])
    assert parameter.grad is None
    assert processes.rank_and_world() == processes.join_processes() == (0, 1)
    assert processes.sum_over_processes(1.5, 2) == [1.5, 2]
    assert processes.gather_on_first([3, 1]) == [3, 1]
    assert processes.share(7, 3, 1) == slice(0, 7)
    with processes.first_on_this_machine():
        pass
    processes.leave_processes()


@pytest.mark.parametrize("rays, targets, world", [
    (16, 1, 2), (15, 1, 2), (5, 3, 2), (7, 2, 3), (4, 3, 8), (1, 3, 3), (10, 4, 4), (9, 3, 5)])
def test_the_shares_are_every_ray_of_every_target_once_and_as_many_for_each_process(
        monkeypatch, rays, targets, world):
    times, sizes = torch.zeros(targets, rays, dtype=torch.int64), []
    for rank in range(world):
        monkeypatch.setattr(processes, "rank_and_world", lambda: (rank, world))
        shares = [processes.share(rays, targets, target) for target in range(targets)]
        for row, part in zip(times, shares):
            row[part] += 1
        sizes.append(sum(part.stop - part.start for part in shares))
    assert (times == 1).all() and max(sizes) - min(sizes) <= 1


def test_of_n_targets_each_of_n_processes_has_one(monkeypatch):
    for rank in range(3):
        monkeypatch.setattr(processes, "rank_and_world", lambda: (rank, 3))
        lengths = [s.stop - s.start for s in (processes.share(5, 3, target) for target in range(3))]
        assert lengths == [5 * (target == rank) for target in range(3)]


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(DataError, match="torchrun --nproc-per-node 3: this machine has 2 GPUs"):
        processes.join_processes()


# ---------------------------------------------------------------------------------------------- two processes

GRADIENTS = {   # of both processes, each parameter's: there in both, in one, in none
    "both": (torch.tensor([[1.0, 2, 3]]), torch.tensor([[10.0, 20, 30]])),
    "second": (None, torch.tensor([5.0, 6])), "first": (torch.tensor(7.0), None), "none": (None, None)}


def one_of_two(rank, port, folder):
    """What each of the two processes does; torchrun sets these variables."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=port, CUDA_VISIBLE_DEVICES="")
    place = processes.join_processes()
    print("only the first process speaks", rank, flush=True)
    parameters = []
    for both in GRADIENTS.values():
        there = next((g for g in both if g is not None), torch.zeros(4))
        parameters.append(torch.nn.Parameter(torch.zeros_like(there)))
        parameters[-1].grad = None if both[rank] is None else both[rank].clone()
    processes.add_gradients(parameters)
    with processes.first_on_this_machine():
        begin = time.time()
        time.sleep(0.3)
        end = time.time()
    torch.save({
        "place": place, "gradients": [p.grad for p in parameters], "times": (begin, end),
        "sums": processes.sum_over_processes(rank + 1, 0.5),
        "all": processes.gather_on_first([rank, "x" * rank]),
        "shares": [(s.start, s.stop) for s in (processes.share(5, 3, target) for target in range(3))]},
        f"{folder}/{rank}.pt")
    processes.leave_processes()


def in_two_processes(function, *arguments) -> None:
    """function(rank, port, *arguments) for ranks 0 and 1, each in a process of its own; both must succeed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=function, args=(rank, port, *arguments)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]


@pytest.mark.slow
def test_two_processes_have_the_sums_of_both_and_the_first_goes_first(tmp_path, capfd):
    in_two_processes(one_of_two, str(tmp_path))
    first, second = (Namespace(**torch.load(tmp_path / f"{rank}.pt")) for rank in range(2))
    assert (first.place, second.place) == ((0, 2), (1, 2))
    for found in (first, second):
        for gradient, both in zip(found.gradients, GRADIENTS.values(), strict=True):
            there = [g for g in both if g is not None]
            assert (gradient is None) if not there else torch.equal(gradient, sum(there[1:], there[0]))
        assert found.sums == [3, 1]
    assert first.all == [0, "", 1, "x"] and second.all == []
    assert first.times[1] <= second.times[0]
    assert first.shares == [(0, 5), (0, 2), (0, 0)] and second.shares == [(5, 5), (2, 5), (0, 5)]
    assert capfd.readouterr().out.split() == "only the first process speaks 0".split()
