"""What every stage costs, and how far from the machine's floor: operations, seconds, memory, of forward and backward.

    python 10_benchmark.py                      the stages, one training step, one image, Tables 2-3's tensor, on this machine
    python 10_benchmark.py --device cuda        the same on a GPU, and 1024 rays: eager, bfloat16, compiled
    python 10_benchmark.py --curves FILE.png    how CRA and dense attention grow with rays, samples and views
    python 10_benchmark.py --tried              each means of speed by itself: with it and without
    python 10_benchmark.py --skipping CKPT      what --keep and --coarse-stride save, and what they change

The job: 8 source views of 320x240, 512 rays, 64 + 64 samples. Every figure is measured in a fresh process of its own, so that
peak memory is that figure's and nobody else's. How each number is made:

    GFLOP       counted by PyTorch's FlopCounterMode with attention's plain (math) backend, because it counts zero for the fused CPU
                kernel; 2 per multiply-add, matrix products and convolutions only (04 computes packed sequences of up to 8 tokens
                without any: their scores are not in it, some 3% of a step)
    seconds     the best of several repeats. user: processor time of all threads together
    U           the user-seconds of one 1024^3 float32 matrix product on one thread, best of ten: a unit that travels between machines
                better than seconds do. A figure's own U is the mean of two, taken in its process before and after it, because
                the clocks of a shared machine wander
    peak        CPU: the process's largest resident size, less what it was before (or in all, for the step and the image), freed
                memory given back first; GPU: torch.cuda.max_memory_allocated
    floor       the larger of operations / measured matrix rate and bytes / measured copy bandwidth, where bytes are the stage's inputs
                and outputs read or written once (three times with backward). "x floor": measured / floor

Test: pytest tests/test_10_benchmark.py
"""
import argparse
import contextlib
import ctypes
import functools
import json
import os
import platform
import resource
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "passive")    # as 07 does, before torch starts its threads

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

data = import_module("01_data")                # example_views, Scene
encoder = import_module("02_encoder")
reprojection = import_module("03_reprojection")
cra = import_module("04_cra")
geometry = import_module("06_geometry_render")
training = import_module("07_train")           # SRay, Config, training_step
evaluation = import_module("08_eval")          # psnr

STAGES = ["decode", "encoder", "reprojection", "geometry", "CRA", "weighting", "rendering"]


# ---------------------------------------------------------------------------------------------------- measuring one thing

def resident() -> float:
    """This process's resident memory now, MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2 ** 20


def largest() -> float:
    """The largest it has been, since forget_peak() on Linux, MiB (getrusage counts in bytes on macOS, in KiB elsewhere)."""
    with contextlib.suppress(OSError, StopIteration):
        status = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 2 ** 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2 ** 20 if sys.platform == "darwin" else 2 ** 10)


def forget_peak() -> None:
    """Give freed memory back to the system and forget how much there was before: the next peak is that of what comes now."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def user_seconds() -> float:
    """Processor time of this process so far, all threads."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


def clock(work: Callable, repeats: int, device: str) -> tuple[float, float]:
    """The best (seconds, user-seconds) of some repeats of work()."""
    best, best_user = float("inf"), float("inf")
    for _ in range(repeats):
        if device == "cuda":
            torch.cuda.synchronize()
        start, user = time.perf_counter(), user_seconds()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        best, best_user = min(best, time.perf_counter() - start), min(best_user, user_seconds() - user)
    return best, best_user


def count_flops(work: Callable) -> float:
    """GFLOP of work(), attention by its plain backend."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e9


def size(*tensors) -> int:
    """Bytes of some tensors."""
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))


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


def product(n: int, device: str) -> Callable:
    """One n^3 float32 matrix product."""
    a, b, c = (torch.randn(n, n, device=device) for _ in range(3))
    return lambda: torch.mm(a, b, out=c)


def unit() -> float:
    """U: the best of ten, on one thread; each is the mean of five, because processor time is counted in steps of milliseconds."""
    threads, work = torch.get_num_threads(), product(1024, "cpu")
    torch.set_num_threads(1)
    work()
    best = clock(lambda: [work() for _ in range(5)], 10, "cpu")[1] / 5
    torch.set_num_threads(threads)
    return best


def measure_machine(args) -> dict:
    """The machine's own rates: U, matrix products and copies per second, on one thread and on all."""
    if args.device == "cuda":
        big, source = product(8192, "cuda"), torch.empty(2 ** 28, device="cuda")
        target = torch.empty_like(source)
        big(), target.copy_(source)
        return {"matrix_gflops": 2 * 8192 ** 3 / clock(big, 5, "cuda")[0] / 1e9,
                "copy_gbs": 2 * size(source) / clock(lambda: target.copy_(source), 5, "cuda")[0] / 1e9}
    threads, work = torch.get_num_threads(), product(1024, "cpu")
    source, target = torch.ones(2 ** 25), torch.ones(2 ** 25)                 # 128 MiB each: no cache holds them
    copy, found = (lambda: target.copy_(source)), {"threads": threads, "U": unit()}
    for count, name in ((1, "one_thread"), (threads, "all_threads")):
        torch.set_num_threads(count)
        work(), copy()
        found |= {f"matrix_gflops_{name}": 2 * 1024 ** 3 / clock(work, 50, "cpu")[0] / 1e9,
                  f"copy_gbs_{name}": 2 * size(source) / clock(copy, 5, "cpu")[0] / 1e9}
    return found | {"matrix_gflops": found["matrix_gflops_all_threads"], "copy_gbs": found["copy_gbs_all_threads"]}


class Job:
    """The yardstick's inputs: a model, source views of a furnished room, rays of a target camera, one level's stages by hand."""

    def __init__(self, args, **settings):
        torch.manual_seed(0)
        self.device, self.rays, self.samples = args.device, settings.pop("rays", args.rays), args.samples
        self.config = training.Config(height=args.height, width=args.width, views=args.views, rays=self.rays, coarse=args.samples,
                                      fine=args.samples, **settings)
        views = data.example_views(args.height, args.width, args.views).to(args.device)
        self.sources, self.target = views[:-1], views[-1]
        self.model = training.SRay(self.config).to(args.device)
        generator = torch.Generator().manual_seed(0)
        flat = torch.randint(args.height * args.width, (self.rays,), generator=generator)
        self.pixels = data.pixel_grid(args.height, args.width)[flat].to(args.device)
        self.batch = training.Batch(self.sources, self.target.K, self.target.c2w, self.pixels,
                                    self.target.images.flatten(1)[:, flat].T, self.target.labels.flatten()[flat],
                                    self.sources.images[:0], self.sources.labels[:0])

    def ray(self) -> tuple[Tensor, Tensor, Tensor]:
        """Depths (R, S), points (R, S, 3) of the target's rays, and where they start."""
        c = self.config
        origin, directions = data.rays(self.pixels, self.target.K, self.target.c2w)
        z = geometry.coarse_samples(c.near, c.far, self.rays, self.samples, c.spacing, None, self.device)
        return z, origin + z[..., None] * directions[:, None], origin

    def stage(self, name: str) -> tuple[Callable, tuple]:
        """A stage of the fine level as a function of its inputs, and them. Inputs that have a gradient in training have one."""
        level, s, packed = self.model.fine, self.sources, self.config.packed and self.device == "cpu"
        if name == "encoder":
            return self.model.encoder, (s.images,)
        with torch.no_grad():
            sources = self.model.encode(s)
            z, points, origin = self.ray()
            context = level.reprojection(points, origin, *sources[:4], packed=packed)             # as training does it
            seen = level.geometry(*context)
            refined = level.cra(context.M, context.mask)
            logits = torch.randn(self.rays, self.samples, len(data.CLASSES), device=self.device)
        M, mask = context.M.requires_grad_(), context.mask
        if name == "reprojection":
            return (lambda features: level.reprojection(points, origin, features, *sources[1:4], packed=packed).M), (
                sources.features.requires_grad_(),)
        if name == "geometry":
            return (lambda M, *rest: level.geometry(M, *rest)[:2]), (M, *context[1:])
        if name == "CRA":
            return level.cra, (M, mask)
        if name == "weighting":
            def weigh(M: Tensor, refined: Tensor) -> Tensor:
                """w, semantic ray, logits"""
                w = level.weights(M, context.differences, seen.visibility, mask)
                return level.head(training.weighting.semantic_ray(w, refined, mask))
            return weigh, (M, refined.requires_grad_())

        def render(sigma: Tensor, colour: Tensor, logits: Tensor) -> tuple:
            """pixel values, and where the next level's samples go"""
            weights = geometry.rendering_weights(sigma, geometry.sample_lengths(z, self.config.far, torch.ones_like(z[:, 0])))
            geometry.fine_samples(z, weights, self.samples, None)
            return tuple(geometry.render(weights, x) for x in (colour, logits, z[..., None]))
        return render, (seen.sigma.requires_grad_(), seen.colour.requires_grad_(), logits.requires_grad_())


def forward_backward(work: Callable, inputs: tuple) -> None:
    """work(*inputs), then the gradient of all its outputs for its inputs and parameters."""
    outputs = work(*inputs)
    outputs = [o for o in (outputs if isinstance(outputs, tuple) else (outputs,)) if o.requires_grad]
    torch.autograd.backward(outputs, [torch.ones_like(o) for o in outputs])


def measure_stage(args, name: str, backward: bool) -> dict:
    """One stage: forward without gradient, or forward + backward."""
    if name == "decode":
        return measure_decoding(args)
    function, inputs = Job(args).stage(name)
    work = (lambda: forward_backward(function, inputs)) if backward else (lambda: function(*inputs))
    with torch.set_grad_enabled(backward):
        peak = peak_of(work, args.device)
        seconds, user = clock(work, args.repeats, args.device)
        gflop = count_flops(work)
        outputs = function(*inputs)
    moved = size(*inputs) + size(*(outputs if isinstance(outputs, tuple) else (outputs,)))
    return {"gflop": gflop, "bytes": moved * (3 if backward else 1), "seconds": seconds, "user": user, "peak": peak}


def measure_decoding(args) -> dict:
    """A frame of ScanNet's size (jpg 1296x968, label png 1296x968) from its files, and again from the cache; one thread."""
    import imageio.v3 as iio
    import numpy as np
    import tempfile
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        names = data.rooms.make_rooms(Path(folder) / "small", [0], frames=24, width=64, height=48, workers=1)
        scene = Path(folder) / "small" / names[0]
        for kind, suffix, resize in (("color", "jpg", 0), ("label-filt", "png", 1)):
            for file in scene.glob(f"{kind}/*"):
                image = iio.imread(file)
                rows, columns = data.nearest_pixels(968, image.shape[0]), data.nearest_pixels(1296, image.shape[1])
                iio.imwrite(file.with_suffix(f".{suffix}"), np.ascontiguousarray(image[rows][:, columns]))
        frames = data.Scene(scene, args.height, args.width, Path(folder) / "cache")
        frames.load(0), frames.K                                              # the label table and the image's size
        forget_peak()
        before = resident()
        start, user = time.perf_counter(), user_seconds()
        for i in range(1, 13):
            frames.load(i)
        first, first_user = (time.perf_counter() - start) / 12, (user_seconds() - user) / 12
        again, again_user = clock(lambda: [frames.load(i) for i in range(1, 13)], 3, "cpu")
    return {"gflop": 0.0, "bytes": 1296 * 968 * 5, "seconds": first, "user": first_user,
            "peak": max(0.0, largest() - before), "cached_seconds": again / 12, "cached_user": again_user / 12}


def measure_step(args, **settings) -> dict:
    """One training step after a warm-up: forward, backward, Adam. peak: of the whole process on a CPU."""
    job = Job(args, **settings)
    optimiser = torch.optim.Adam(job.model.parameters(), fused=True)
    pool = training.step_pool(job.config, torch.device(args.device))
    step = lambda: (training.training_step(job.model, [job.batch], 0, pool), optimiser.step())
    step(), step()
    seconds, user = clock(step, args.repeats, args.device)
    peak = torch.cuda.max_memory_allocated() / 2 ** 20 if args.device == "cuda" else largest()
    with torch.no_grad():
        forward = count_flops(lambda: job.model(job.model.encode(job.sources), job.pixels, job.target.K, job.target.c2w))
    alone = lambda: training.training_step(job.model, [job.batch], 0)         # the counter sees its own thread alone
    both = None if settings.get("compile") else count_flops(alone)
    return {"gflop": forward, "gflop_both": both, "seconds": seconds, "user": user, "peak": peak, "rays_per_second": job.rays / seconds}


def measure_image(args, keep: int, coarse_stride: int = 1) -> dict:
    """A full image from source views encoded once, by weights/sray_rooms.pt (which samples weigh nothing, training decides). keep:
    labels from so many samples a ray (0: from all); coarse_stride: the coarse level sees every n-th row and column."""
    job = Job(args, keep=keep, coarse_stride=coarse_stride)
    job.model.load_state_dict(training.load_checkpoint(Path(__file__).parent / "weights" / "sray_rooms.pt")[0].state_dict())
    pool = training.image_pool(job.config, torch.device(args.device))
    model, K, c2w = job.model, job.target.K, job.target.c2w
    with torch.no_grad():
        encoding = clock(lambda: model.encode(job.sources), 2, args.device)
        sources = model.encode(job.sources)
        draw = lambda: model.render_image(sources, K, c2w, args.height, args.width, pool)
        if args.device == "cuda":
            draw()                                                            # the first image warms up
        seconds, user = clock(draw, 3 if args.device == "cuda" else 1, args.device)
        peak = torch.cuda.max_memory_allocated() / 2 ** 20 if args.device == "cuda" else largest()
        part = job.pixels[:64]
        placing = model.coarse_weights(sources, part, K, c2w)
        gflop = count_flops(lambda: model(sources, part, K, c2w, keep=keep, placing=placing))
        gflop += count_flops(lambda: model.coarse_weights(sources, part, K, c2w)) / coarse_stride ** 2
    return {"gflop": gflop * args.height * args.width / len(part), "seconds": seconds, "user": user, "peak": peak,
            "encode_seconds": encoding[0], "encode_user": encoding[1]}


def attention_only(mode: str, kind: str) -> cra.CRA:
    """CRA by its plain definition ("einsum") or by PyTorch's fused kernel alone ("fused")."""
    cra.EINSUM_UP_TO = 0
    return cra.CRA(mode, fused=kind != "einsum")


def measure_tensor(args, mode: str, kind: str, R: int = 1024, S: int = 64, V: int = 8) -> dict:
    """Tables 2-3: one mode on a tensor of R x S x V x 32, all tokens valid, forward + backward. kind "pieces": as training does
    it, 128 rays at a time, each length by the way that is faster for it."""
    torch.manual_seed(0)
    module = (cra.CRA(mode) if kind == "pieces" else attention_only(mode, kind)).to(args.device)
    M = torch.randn(R, S, V, 32, device=args.device)
    mask, upstream, gradient = torch.ones(R, S, V, dtype=torch.bool, device=args.device), torch.ones_like(M), torch.empty_like(M)

    def both(rays: slice) -> None:
        """Forward and backward of some rays."""
        leaf = M[rays].detach().requires_grad_()
        module(leaf, mask[rays]).backward(upstream[rays])
        gradient[rays] = leaf.grad

    piece = 128 if kind == "pieces" else R
    both(slice(0, 2))                                                         # libraries loaded, kernels chosen
    gradient.zero_()                                                          # its memory is there before the measuring begins
    work = lambda: [both(slice(i, i + piece)) for i in range(0, R, piece)]
    peak = peak_of(work, args.device)
    seconds, user = clock(work, args.repeats, args.device)
    n = min(8, R)
    with torch.no_grad():
        forward = count_flops(lambda: module(M[:n], mask[:n])) * R / n
    return {"gflop": forward, "gflop_both": count_flops(lambda: both(slice(0, n))) * R / n, "seconds": seconds, "user": user,
            "peak": peak + size(M) / 2 ** 20, "tensor": [R, S, V, 32]}        # the tensor itself is part of what it takes


# ---------------------------------------------------------------------------------------------------- fresh processes

def fresh(args, name: str, *values) -> dict:
    """measure_NAME(args, *values) in a process of its own -> its figures; {"failed": why} if it did not end well."""
    command = [sys.executable, __file__, "--measure", json.dumps([name, *values])]
    for flag in ("device", "rays", "samples", "views", "height", "width", "repeats"):
        command += [f"--{flag}", str(getattr(args, flag))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        killed = "out of memory" if done.returncode in (-9, 137) else (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"failed": killed}
    return json.loads(done.stdout.strip().splitlines()[-1])


def available() -> float:
    """Free memory, MiB (all of it where the system does not say)."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) / 1024
    except (OSError, KeyError):
        return float("inf")


def figure(value, digits: int = 2, width: int = 9) -> str:
    """A right-aligned number, or - where there is none."""
    return f"{'-' if value is None else format(value, f',.{digits}f'):>{width}}"


def floor_of(gflop: float, moved: float, machine: dict) -> float:
    """Seconds that operations and bytes take at the machine's measured rates: the larger of the two."""
    return max(gflop / machine["matrix_gflops"], moved / machine["copy_gbs"] / 1e9)


def report_stages(args, machine: dict, found: dict) -> None:
    """A line for each stage, forward and forward + backward."""
    print(f"\nstages of one level ({args.rays} rays, {args.samples} samples, {args.views} views of {args.width}x{args.height})\n"
          f"{'':14}{'forward':>9}{'':36}   {'forward + backward':>20}\n"
          f"{'':14}{'GFLOP':>9}{'ms':>9}{'share':>9}{'MiB':>9}{'x floor':>9}   {'GFLOP':>9}{'ms':>9}{'share':>9}{'MiB':>9}{'x floor':>9}")
    for name in STAGES:
        found[name] = {way: fresh(args, "stage", name, way == "both") for way in ("forward", "both")[:1 if name == "decode" else 2]}
    total = {way: sum(found[name][way].get("seconds", 0) for name in STAGES[1:]) for way in ("forward", "both")}
    for name in STAGES:
        cells = []
        for way, f in found[name].items():
            if "failed" in f:
                cells.append(f["failed"])
                continue
            f["floor"] = floor_of(f["gflop"], f["bytes"], machine)
            share = "" if name == "decode" else f"{100 * f['seconds'] / total[way]:.0f}%"
            cells.append(f"{figure(f['gflop'])}{figure(1000 * f['seconds'], 1)}{share:>9}{figure(f['peak'], 0)}"
                         + figure(None if name == "decode" else f["seconds"] / f["floor"], 1))
        if name == "decode" and "failed" not in found[name]["forward"]:
            cells.append(f"  a frame of 1296x968, first time; then from the cache {1000 * found[name]['forward']['cached_seconds']:.1f} ms")
        print(f"{name:14}{'   '.join(cells)}", flush=True)


def report_row(name: str, f: dict, machine: dict, extra: str = "") -> None:
    """One line of seconds, user-seconds, U, GFLOP and memory."""
    if "failed" in f:
        print(f"{name:44} {f['failed']}", flush=True)
        return
    f["U"] = f["user"] / f["unit"] if "unit" in f else None
    rate = (f.get("gflop_both") or f["gflop"]) / f["seconds"] / machine["matrix_gflops"]
    print(f"{name:44}{figure(f['gflop'], 1)}{figure(f.get('gflop_both'), 1)}{figure(f['seconds'], 3)}{figure(f['user'], 2)}"
          f"{figure(f['U'], 0)}{figure(f['peak'], 0)}{figure(100 * rate, 0, 7)}%{extra}", flush=True)


def report_whole(args, machine: dict, found: dict) -> None:
    """One training step, one image, Tables 2-3's tensor; on a GPU the large sizes too."""
    print(f"\n{'':44}{'GFLOP':>9}{'f+b':>9}{'s':>9}{'user s':>9}{'U':>9}{'MiB':>9}{'of matrix rate':>15}")
    found["step"] = fresh(args, "step")
    report_row(f"training step, {args.rays} rays", found["step"], machine)
    for key, name, settings in (("image_keep_0", "in full", (0,)), ("image_keep_8", "labels from 8 samples a ray", (8,)),
                                ("image_keep_8_stride_4", "the same, coarse level at 1/4 x 1/4", (8, 4))):
        found[key] = fresh(args, "image", *settings)
        report_row(f"image {args.width}x{args.height}, {name}", found[key], machine)
    if args.device == "cpu":                                                  # what a GPU holds in memory, in float32
        large = argparse.Namespace(**{**vars(args), "height": 2 * args.height, "width": 2 * args.width, "rays": 2 * args.rays, "repeats": 1})
        found["step_in_one_piece"] = fresh(large, "step", {"packed": False, "piece": large.rays, "workers": 1})
        report_row(f"step, {large.rays} rays, {large.width}x{large.height}, in one piece", found["step_in_one_piece"], machine)
    if args.device == "cuda":
        for height, width in ((240, 320), (480, 640)):
            size_args = argparse.Namespace(**{**vars(args), "height": height, "width": width, "rays": 1024})
            for label, settings in (("eager", {}), ("bfloat16", {"bf16": True}), ("compiled", {"compile": True}),
                                    ("bfloat16, compiled", {"bf16": True, "compile": True})):
                name = f"step, 1024 rays, {width}x{height}, {label}"
                found[name] = fresh(size_args, "step", settings)
                report_row(name, found[name], machine, f"   {found[name].get('rays_per_second', 0):,.0f} rays/s")
            name = f"image {width}x{height}, in full"
            found[name] = fresh(size_args, "image", 0)
            report_row(name, found[name], machine)


def report_tensor(args, machine: dict, found: dict) -> None:
    """Tables 2-3: what each attention costs on their tensor."""
    R = 1024 if args.rays >= 512 else args.rays
    print(f"\nattention on {R} x {args.samples} x {args.views} x 32, forward + backward; 4 heads of 8; 2 FLOP per multiply-add\n"
          f"{'':44}{'GFLOP':>9}{'f+b':>9}{'s':>9}{'user s':>9}{'U':>9}{'MiB':>9}{'of matrix rate':>15}")
    for mode in cra.MODES:
        for kind in ("einsum", "fused", "pieces")[:1 if mode == "none" else 3]:
            name = "none" if mode == "none" else f"{mode}, {kind}" + (" of 128 rays" if kind == "pieces" else "")
            needed = 7 * R * 4 * (args.samples * args.views) ** 2 * 4 / 2 ** 20 if (mode, kind) == ("dense", "einsum") else 0
            if args.device == "cpu" and needed > available():
                print(f"{name:44} not run: needs about {needed / 1024:.0f} GiB")
                continue
            found[name] = fresh(args, "tensor", mode, kind, R, args.samples, args.views)
            report_row(name, found[name], machine)


# ---------------------------------------------------------------------------------------------------- what skipping costs

def skipping(args, checkpoint: str) -> dict:
    """A test view of each of a run's unseen scenes (the first --scenes of them), in full and with what skipping leaves: labels from
    the `keep` heaviest samples of each ray, the coarse level at every `coarse_stride`-th row and column. Seconds, labels that
    change, total accuracy, PSNR, and how far colour and depth are from the whole computation's. keep alone changes neither."""
    model, state = training.load_checkpoint(checkpoint)
    config, run = model.config, state["run"]
    model.to(args.device).eval()
    pool = training.image_pool(config, torch.device(args.device))
    rows: dict = {(keep, stride): dict.fromkeys(("seconds", "changed", "accuracy", "psnr", "colour", "depth"), 0.0)
                  for keep, stride in ((0, 1), (16, 1), (8, 1), (4, 1), (8, 2), (8, 4), (8, 8)) if keep < config.fine}
    root, names = Path(run["root"]), run["test"][:args.scenes]
    if run["data"] == "rooms" and not all((root / name / "color").is_dir() for name in names):    # weights trained elsewhere
        root = data.find_dataset("rooms", str(root) if root.is_dir() else None, 0, len(run["test"])).root
    scenes = [data.Scene(root / name, config.height, config.width) for name in names]
    for scene in scenes:
        source, _, test = data.protocol(scene)
        truth = scene.views(test[:1]).to(args.device)[0]
        picture, known = truth.images.permute(1, 2, 0), truth.labels >= 0
        with torch.no_grad():
            sources = model.encode(scene.views(source).to(args.device))
        full = None
        for (keep, stride), row in rows.items():
            config.keep, config.coarse_stride = keep, stride
            start = time.perf_counter()
            got = model.render_image(sources, truth.K, truth.c2w, config.height, config.width, pool)
            row["seconds"] += (time.perf_counter() - start) / len(scenes)
            full, labels = full or got, got["logits"].argmax(-1)              # (H, W)
            for key, value in (("changed", 100 * (labels != full["logits"].argmax(-1)).float().mean()),
                               ("accuracy", 100 * (labels == truth.labels)[known].float().mean()),
                               ("psnr", evaluation.psnr(got["colour"], picture)),
                               ("colour", 255 * (got["colour"] - full["colour"]).abs().mean()),
                               ("depth", 100 * (got["depth"] / full["depth"] - 1).abs().mean())):
                row[key] += float(value) / len(scenes)
    print(f"\n{checkpoint}, {len(scenes)} test views of {config.width}x{config.height}, {config.fine} fine samples; colour of 0 .. 255")
    print(f"{'labels from':>12}{'coarse at':>11}{'an image':>11}{'labels changed':>16}{'total acc':>11}{'PSNR':>8}{'colour changed by':>19}"
          f"{'depth by':>10}")
    for (keep, stride), row in rows.items():
        print(f"{keep or 'all':>12}{'all' if stride == 1 else f'1/{stride} x 1/{stride}':>11}{row['seconds']:>9.2f} s{row['changed']:>15.2f}%"
              f"{row['accuracy']:>10.2f}%{row['psnr']:>8.2f}{row['colour']:>19.3f}{row['depth']:>9.2f}%")
    return {f"keep {keep}, coarse stride {stride}": row for (keep, stride), row in rows.items()}


# ---------------------------------------------------------------------------------------------------- how the cost grows

def curves(args, path: Path) -> None:
    """Measure and draw seconds and operations of CRA and dense attention against rays, samples and views."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    base, ranges = (64, 32, 8), ([16, 32, 64, 128, 256], [8, 16, 32, 64, 128], [2, 4, 8, 16, 32])
    if args.rays < 64:                                                        # a small run, for the tests
        base, ranges = (2, 4, 2), ([1, 2, 4], [2, 4, 8], [1, 2, 4])
    found: dict = {}
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), sharey=True, constrained_layout=True)
    for axis, name, position, values in zip(axes, ("rays", "samples", "views"), range(3), ranges):
        for mode, colour in (("full", "#0072b2"), ("dense", "#d55e00")):
            shapes = [tuple(v if i == position else b for i, b in enumerate(base)) for v in values]
            rows = [fresh(args, "tensor", mode, "fused", *shape) for shape in shapes]
            found[f"{mode} against {name}"] = rows
            axis.plot(values, [1000 * r["seconds"] for r in rows], "o-", color=colour, label=f"{mode}, measured")
            scale = 1000 * rows[-1]["seconds"] / rows[-1]["gflop"]
            axis.plot(values, [scale * r["gflop"] for r in rows], "--", color=colour, alpha=0.6, label=f"{mode}, operations")
        fixed = ", ".join(f"{b} {n}" for i, (n, b) in enumerate(zip(("rays", "samples", "views"), base)) if i != position)
        axis.set(xscale="log", yscale="log", xticks=values, xticklabels=values, xlabel=name, title=f"{name} ({fixed})")
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("forward + backward, ms")
    axes[2].legend(frameon=False, fontsize=8)
    figure.suptitle("Cross-Reprojection Attention grows linearly in rays and views, almost so in samples; dense attention with the square "
                    "of samples × views", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    path.with_suffix(".json").write_text(json.dumps({"base": base, "values": ranges, "hardware": hardware(args), **found}, indent=1))
    print(f"wrote {path} and {path.with_suffix('.json')}")


# ---------------------------------------------------------------------------------------------------- each means by itself

def measure_tried(args, name: str) -> dict:
    """One means of speed, without it and with it, in one process, in turn; best of five pairs. One thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    R, S, V = args.rays // 4, args.samples, args.views
    M, mask = torch.randn(R, S, V, 32, requires_grad=True), torch.rand(R, S, V) < 0.7
    both = lambda work, *inputs: (lambda: forward_backward(work, inputs))
    draw = torch.no_grad()(lambda model, *inputs, **settings: model(*inputs, **settings))
    if name.startswith("attention"):
        length = int(name.split()[-1])
        q, k, v = (torch.randn(R * S * V // length, 4, length, 8, requires_grad=True) for _ in range(3))
        keys = torch.rand(len(q), 1, length) < 0.7
        pair = [both(function, q, k, v, keys) for function in (cra.attention, cra.fused_attention)]
    elif name.startswith("packed sequences"):
        length = int(name.split()[-1])
        module, b = cra.MultiHeadAttention(32, relu=True), max(1, R * S * V // length)
        x, keys = torch.randn(b, length, 1, 32, requires_grad=True), torch.ones(b, length, 1, dtype=torch.bool)
        y, each = x.detach().view(-1, 32).requires_grad_(), torch.full((b,), length)
        whole = cra.lay_out(torch.arange(b * length), each, each, length, 0).blocks
        pair = [both(lambda x: module(x, keys), x), both(lambda y: module.blocks(y, whole), y)]
    elif name == "ELU":
        x = torch.randn(R * S * V, 32, requires_grad=True)
        pair = [both(nn.ELU(), x), both(encoder.ELU(), x)]
    elif name == "softmax":
        score = torch.randn(R * S, 4, V, V, requires_grad=True)
        pair = [both(lambda x: x.softmax(-1), score), both(cra.Softmax.apply, score)]
    elif name == "lookup":
        maps, pixels = torch.randn(V, 32, 60, 80, requires_grad=True), torch.rand(R, S, V, 2) * torch.tensor([319.0, 239.0])
        grid = (pixels / torch.tensor([160.0, 120.0]) - 1).permute(2, 0, 1, 3)                   # (V, R, S, 2)
        sample = lambda maps: F.grid_sample(maps, grid, align_corners=True).permute(2, 3, 0, 1).contiguous()
        pair = [both(sample, maps), both(lambda maps: reprojection.lookup(maps, pixels, 4), maps)]
    elif name == "projection":
        points, cameras = torch.rand(R, S, 3) * 4 - 2, data.example_views(args.height, args.width, V)[:V]
        one_by_one = lambda points: [data.project(points, K[None], c2w[None]) for K, c2w in zip(cameras.K, cameras.c2w)]
        pair = [lambda: draw(one_by_one, points), lambda: draw(data.project, points, cameras.K, cameras.c2w)]
    elif name == "one lookup":
        maps, images = torch.randn(V, 32, args.height // 4, args.width // 4, requires_grad=True), torch.rand(V, 3, args.height, args.width)
        pixels = torch.rand(R, S, V, 2) * torch.tensor([args.width - 1.0, args.height - 1.0])
        large = lambda maps: torch.cat([F.interpolate(maps, images.shape[-2:], mode="bilinear"), images], dim=1)      # (V, 35, H, W)
        pair = [both(lambda maps: torch.cat([reprojection.lookup(maps, pixels, 4), reprojection.lookup(images, pixels, 1)], dim=-1), maps),
                both(lambda maps: reprojection.lookup(large(maps), pixels, 1), maps)]
    elif name == "view-major":
        module, x, keys = cra.MultiHeadAttention(32, relu=True), torch.randn(R, S, V, 32, requires_grad=True), torch.rand(R, S, V) < 0.7
        copied = lambda x: module(x.transpose(1, 2).reshape(R * V, S, 1, 32), keys.transpose(1, 2).reshape(R * V, S, 1))
        pair = [both(lambda x: module(x, keys), x), both(lambda x: copied(x).view(R, V, S, 32).transpose(1, 2).contiguous(), x)]
    elif name == "semantic ray":
        w = torch.rand(R, S, V, requires_grad=True)
        pair = [both(lambda w, M: torch.einsum("rsv,rsvc->rsc", w, M), w, M),
                both(lambda w, M: training.weighting.semantic_ray(w, M, mask), w, M)]
    elif name == "norm":
        x = torch.randn(V, 32, args.height // 4, args.width // 4, requires_grad=True)
        pair = [both(nn.InstanceNorm2d(32, affine=True), x), both(nn.GroupNorm(32, 32), x)]
    elif name == "channels last":
        images, net = data.example_views(args.height, args.width, V)[:V].images, encoder.Encoder("elu")
        last = encoder.Encoder("elu").to(memory_format=torch.channels_last)
        pair = [both(net, images), both(last, images.contiguous(memory_format=torch.channels_last))]
    else:
        job = Job(args, piece=128 if name == "pieces" else 0)
        other = Job(args, piece=args.rays if name == "pieces" else 0, bf16=name == "bfloat16", compile=name == "torch.compile",
                    packed=not name.startswith("packed"))
        if name == "checkpointing":
            for level in (other.model.coarse, other.model.fine):
                level.label = functools.partial(checkpoint, level.label, use_reentrant=False)
        step = lambda j: (lambda: training.training_step(j.model, [j.batch], 0))
        if name in ("packed image", "geometry first"):
            with torch.no_grad():
                sources = job.model.encode(job.sources)
            step = lambda j: (lambda: draw(j.model, sources, j.pixels, j.target.K, j.target.c2w,
                                           fine_only=name == "packed image" or j is job))
        before = name in ("pieces", "geometry first") or name.startswith("packed")                # job is the one with it
        pair = [step(other), step(job)] if before else [step(job), step(other)]
    times = [float("inf")] * 2
    for repeat in range(6):
        for i, work in enumerate(pair):
            if name == "flush":
                torch.set_flush_denormal(i == 1)
            seconds = clock(work, 1, "cpu")[0]
            times[i] = min(times[i], seconds) if repeat else times[i]         # the first pair warms up
    return {"without": times[0], "with": times[1]}


TRIED = {
    "softmax": "softmax over rows of 8 written out (04), against torch.softmax",
    "attention 8": "fused attention, against the einsum, sequences of 8",
    "attention 16": "the same, of 16 (EINSUM_UP_TO)",
    "attention 32": "the same, of 32",
    "attention 64": "the same, of 64",
    "packed sequences 8": "packed attention (04), projections and norm included, against the above: sequences of 8",
    "packed sequences 64": "the same, of 64",
    "ELU": "ELU by exp2 (02), against nn.ELU",
    "lookup": "feature lookup by rows (03), against grid_sample",
    "semantic ray": "semantic ray as a sum, against einsum's tiny products",
    "projection": "all views projected in one product (01), against one after the other",
    "one lookup": "features and colours by one lookup, the features' maps enlarged for it (not used)",
    "view-major": "intra-view attention on a copy with the samples side by side (not used), against M as it is",
    "norm": "group norm with a channel a group (02), against instance norm",
    "channels last": "encoder in channels-last memory (not used)",
    "packed": "a whole step on valid tokens alone (--packed), against all tokens",
    "packed image": "rendering these rays, the same",
    "geometry first": "rendering these rays with the density of the coarse samples alone (07, fine_only), against all of their level",
    "flush": "a whole step with denormal numbers flushed to zero (07)",
    "pieces": "a whole step in pieces of 128 rays (07), against one piece",
    "checkpointing": "a whole step with attention and weighting computed again in backward (not used)",
    "bfloat16": "a whole step with --bf16 true",
    "torch.compile": "a whole step with --compile true",
}


def tried(args) -> dict:
    """A line for each means."""
    found = {}
    print(f"forward + backward, one thread, best of five\n{'':86}{'without':>12}{'with':>12}{'ratio':>8}")
    for name, text in TRIED.items():
        f = found[name] = fresh(args, "tried", name)
        print(f"{text:86}" + (f["failed"] if "failed" in f else
                              f"{1000 * f['without']:9.1f} ms{1000 * f['with']:9.1f} ms{f['with'] / f['without']:8.2f}"), flush=True)
    return found


# ---------------------------------------------------------------------------------------------------- the command line

def hardware(args) -> str:
    """The machine in words."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        name = next(l.split(":")[1].strip() for l in Path("/proc/cpuinfo").read_text().splitlines() if l.startswith("model name"))
    gpu = torch.cuda.get_device_name() if args.device == "cuda" else "no GPU used"
    return f"{name}, {torch.get_num_threads()} threads, {gpu}, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rays", type=int, default=512)
    parser.add_argument("--samples", type=int, default=64, help="coarse, and as many fine ones")
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--height", type=int, default=240)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--only", default="stages,whole,tensor", help="which parts to measure")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--curves", metavar="FILE.png", help="measure and draw how attention's cost grows, and nothing else")
    parser.add_argument("--tried", action="store_true", help="measure each means of speed by itself, and nothing else")
    parser.add_argument("--skipping", metavar="CKPT", help="what --keep and --coarse-stride save and change for these weights, and "
                        "nothing else")
    parser.add_argument("--scenes", type=int, default=None, metavar="N", help="--skipping: of so many of their unseen scenes [all]")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    training.pick_device(args.device)                                         # complains where there is no GPU
    if args.measure:                                                          # the fresh process of one figure
        if not (args.measure.startswith('["tried"')):
            training.prepare_cpu()
        name, *values = json.loads(args.measure)
        settings = values.pop() if values and isinstance(values[-1], dict) else {}
        timed = name in ("step", "image", "tensor") and args.device == "cpu"
        before = unit() if timed else None
        found = globals()[f"measure_{name}"](args, *values, **settings)
        print(json.dumps(found | ({"unit": (before + unit()) / 2} if timed else {})))
        return
    if args.curves:
        return curves(args, Path(args.curves))
    print(hardware(args), flush=True)
    machine = fresh(args, "machine")
    print("  ".join(f"{key} {value:,.4g}" for key, value in machine.items()), flush=True)
    found: dict = {"hardware": hardware(args), "command": " ".join(["python", *sys.argv]), "machine": machine}
    if args.skipping:
        training.prepare_cpu()
        found["skipping"] = skipping(args, args.skipping)
    elif args.tried:
        found["tried"] = tried(args)
    else:
        for part, report in (("stages", report_stages), ("whole", report_whole), ("tensor", report_tensor)):
            if part in args.only.split(","):
                found[part] = {}
                report(args, machine, found[part])
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        data.write_atomically(Path(args.json), lambda file: file.write(json.dumps(found, indent=1).encode()))
        print(f"wrote {args.json}")


if __name__ == "__main__":
    data.run_script(main)
