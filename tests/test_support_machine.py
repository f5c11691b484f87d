"""support/machine.py: the device, a pool of cores, how many rays go together."""
import threading

import pytest
import torch

from support import machine
from support.files import DataError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def cores(monkeypatch):
    """This machine has so many."""
    return lambda count: monkeypatch.setattr(torch, "get_num_threads", lambda: count)


def test_a_piece_is_a_cores_share_of_the_rays_from_64_to_256_and_all_of_them_on_a_gpu(cores):
    cores(2)
    assert [machine.piece_size(CPU, rays) for rays in (32, 128, 400, 401, 1024)] == [64, 64, 200, 201, 256]
    assert machine.piece_size(CUDA, 1024) == 1024
    assert machine.piece_size(CUDA, 1024, 7) == machine.piece_size(CPU, 1024, 7) == 7


@pytest.mark.parametrize("count, jobs, workers, expected", [
    (4, 8, 0, 4), (4, 3, 0, 3), (4, 1, 0, 1), (1, 8, 0, 1), (4, 8, 2, 2), (1, 8, 3, 3), (4, 8, 1, 1)])
def test_a_pool_has_as_many_workers_as_help_or_as_are_asked_for_and_one_is_a_plain_loop(
        cores, count, jobs, workers, expected):
    cores(count)
    pool = machine.core_pool(CPU, jobs, workers)
    assert (1 if pool is None else pool._max_workers) == expected


def test_a_gpu_needs_no_pool_unless_it_is_asked_for(cores):
    cores(4)
    assert machine.core_pool(CUDA, 8) is None and machine.core_pool(CUDA, 8, 2)._max_workers == 2


def test_the_workers_of_a_pool_share_the_cores(cores, monkeypatch):
    cores(5)
    given, meet = [], threading.Barrier(2, timeout=10)                        # both work at the same time
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    with machine.core_pool(CPU, 2) as pool:
        assert list(pool.map(lambda x: (meet.wait(), 2 * x)[1], range(4))) == [0, 2, 4, 6]
    assert given == [2, 2]


def test_a_gpu_that_is_not_there_is_refused_and_auto_takes_what_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine.pick_device("auto") == machine.pick_device("cpu") == CPU
    with pytest.raises(DataError, match="--device cuda: .* no GPU"):
        machine.pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert machine.pick_device("auto") == machine.pick_device("cuda") == CUDA
    assert machine.pick_device("cpu") == CPU


def test_numbers_below_1e_38_become_zero():
    tiny = torch.tensor([1e-30])
    try:
        machine.prepare_cpu()
        assert float(tiny * 1e-12) == 0
    finally:
        torch.set_flush_denormal(False)
    assert float(tiny * 1e-12) > 0
