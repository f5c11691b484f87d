"""Seconds, processor time, operations and memory of some work; and the rates of the machine it runs on.

Test: pytest tests/test_tool_benchmark.py
"""
import contextlib
import ctypes
import os
import platform
import sys
import time
from pathlib import Path
from typing import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

try:
    import resource
except ImportError:     # Windows
    resource = None


def resident() -> float:
    """This process's resident memory now, MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2 ** 20


def largest() -> float:
    """The largest it has been, since forget_peak() on Linux, MiB."""
    with contextlib.suppress(OSError, StopIteration):
        status = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 2 ** 10
    if resource is None:
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss                 # bytes on macOS, KiB elsewhere
    return peak / (2 ** 20 if sys.platform == "darwin" else 2 ** 10)


def forget_peak() -> None:
    """Give freed memory back to the system and forget how much there was: the next peak is that of what comes
    now."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_of(work: Callable, device: str) -> float:
    """MiB that work() needs above what is there before it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2 ** 20
    forget_peak()
    before = resident()
    work()
    return max(0.0, largest() - before)


def whole_peak(device: str) -> float:
    """MiB that the process has needed: on a GPU its memory there."""
    return torch.cuda.max_memory_allocated() / 2 ** 20 if device == "cuda" else largest()


def user_seconds() -> float:
    """Processor time of this process so far, all threads."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime if resource else os.times().user


def clock(work: Callable, repeats: int, device: str = "cpu") -> tuple[float, float]:
    """The best (seconds, user-seconds) of some repeats of work()."""
    wait = torch.cuda.synchronize if device == "cuda" else int
    best, best_user = float("inf"), float("inf")
    for _ in range(repeats):
        wait()
        start, user = time.perf_counter(), user_seconds()
        work()
        wait()
        best, best_user = min(best, time.perf_counter() - start), min(best_user, user_seconds() - user)
    return best, best_user


def count_flops(work: Callable) -> float:
    """GFLOP of work(), attention by its plain backend; of this thread alone."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e9


def size(*tensors) -> int:
    """Bytes of some tensors."""
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))


# ------------------------------------------------------------------------------------------------ the machine

def product(n: int, device: str) -> Callable:
    """One n^3 float32 matrix product."""
    a, b, c = (torch.randn(n, n, device=device) for _ in range(3))
    return lambda: torch.mm(a, b, out=c)


def rates(threads: int, device: str = "cpu") -> dict:
    """GFLOP/s of matrix products and GB/s of copies, read and written, on so many threads; on a CPU also
    U."""
    n, floats = (8192, 2 ** 28) if device == "cuda" else (1024, 2 ** 25)  # 128 MiB: no CPU's cache holds it
    before, work = torch.get_num_threads(), product(n, device)
    torch.set_num_threads(threads)
    source, target = torch.ones(floats, device=device), torch.ones(floats, device=device)
    work(), target.copy_(source)
    # processor time is counted in steps of milliseconds: the mean of five products
    seconds, user = clock(lambda: [work() for _ in range(5)], 5, device)
    copying, _ = clock(lambda: target.copy_(source), 5, device)
    torch.set_num_threads(before)
    found = {"matrix_gflops": 5 * 2 * n ** 3 / seconds / 1e9, "copy_gbs": 2 * size(source) / copying / 1e9}
    return found if device == "cuda" else found | {"U": user / 5}


def available() -> float:
    """Free memory, MiB (infinite where the system does not say)."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) / 1024
    except (OSError, KeyError):
        return float("inf")


def hardware(device: str) -> str:
    """The machine in words."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    gpu = torch.cuda.get_device_name() if device == "cuda" else "no GPU used"
    return f"{name}, {torch.get_num_threads()} threads, {gpu}, torch {torch.__version__}"
