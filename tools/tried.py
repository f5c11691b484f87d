"""Each means of speed by itself, without it and with it: `python -m tools.benchmark --tried`.

A pair is two pieces of work, of which the second has the means. Test: pytest tests/test_tool_benchmark.py
"""
import functools
from importlib import import_module
from typing import Callable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import fast
from fast import attention as packed_attention
from fast import lookup as by_rows
from fast import packed as packed_level
from tools.measuring import clock
from tools.workloads import WEIGHTS, Job, attention_module, forward_backward, options

data = import_module("01_data")                # project, example_views
reprojection = import_module("03_reprojection")    # lookup
cra = import_module("04_cra")                  # attention, fused_attention
training = import_module("07_train")           # training_step

Pair = tuple[Callable, Callable]


def both(work: Callable, *inputs) -> Callable:
    """Forward + backward."""
    return lambda: forward_backward(work, *inputs)


def fused(args, length: int) -> Pair:
    """04's two attentions, on a quarter of a level's tokens."""
    count = max(1, args.rays // 4 * args.samples * args.views // length)
    q, k, v = (torch.randn(count, 4, length, 8, requires_grad=True) for _ in range(3))
    keys = torch.rand(count, length) < 0.7
    return both(cra.attention, q, k, v, keys), both(cra.fused_attention, q, k, v, keys)


def packed(args, mode: str, kind: str) -> Pair:
    """fast/attention.py against one of 04's, projections and norm included, on a quarter of a level's tokens,
    every one valid."""
    M = torch.randn(args.rays // 4, args.samples, args.views, 32, requires_grad=True)
    mask = torch.ones(M.shape[:3], dtype=torch.bool)
    return tuple(both(attention_module(mode, k), M, mask) for k in (kind, "packed"))


def lookup(args) -> Pair:
    """03's lookup and fast/lookup.py's, every token valid."""
    R, S, V = args.rays // 4, args.samples, args.views
    maps = torch.randn(V, 32, args.height // 4, args.width // 4, requires_grad=True)
    pixels = torch.rand(R, S, V, 2) * torch.tensor([args.width - 1.0, args.height - 1.0])
    rows, view = pixels.flatten(0, 2), torch.arange(V).repeat(R * S)
    return (both(lambda maps: reprojection.lookup(maps, pixels, 4).contiguous(), maps),
            both(lambda maps: by_rows.lookup(maps, rows, view, 4), maps))


def projection(args) -> Pair:
    """All views in one product (01), against one after the other."""
    points = torch.rand(args.rays // 4, args.samples, 3) * 4 - 2
    views = data.example_views(args.height, args.width, args.views)
    cameras = list(zip(views.K[:, None], views.c2w[:, None]))
    return (lambda: [data.project(points, *camera) for camera in cameras],
            lambda: data.project(points, views.K, views.c2w))


def norm(args) -> Pair:
    """02's group norm with a channel a group, against instance norm."""
    x = torch.randn(args.views, 32, args.height // 4, args.width // 4, requires_grad=True)
    return both(nn.InstanceNorm2d(32, affine=True), x), both(nn.GroupNorm(32, 32), x)


def step(job: Job, piece: int = 128) -> Callable:
    """A training step in pieces, on one thread."""
    return lambda: training.training_step(job.model, [job.batch], 0, piece)


def faster(args, how: str = "true", **changes) -> Job:
    """A job whose model computes by fast/."""
    job = Job(args)
    job.model, _ = fast.faster(job.model, training.training_step, options(args, how, **changes))
    return job


def image(args, keep: int = 0, faster: bool = True) -> Callable:
    """Every fourth row and column of an image by weights/sray_rooms.pt."""
    job = Job(args, WEIGHTS)
    model = fast.renderer(job.model, options(args, "true" if faster else "false", keep=keep, workers=1))
    sources, size = job.encoded(), (args.height, args.width)
    return lambda: model.render_image(sources, *job.camera, *size, stride=4)


def lookup_by_view(maps: torch.Tensor, pixels: torch.Tensor, view: torch.Tensor, stride: int) -> torch.Tensor:
    """fast/lookup.py's, by 03's grid_sample, a view at a time: (T, C)."""
    order = view.argsort(stable=True)
    parts = pixels[order].split(view.bincount(minlength=len(maps)).tolist())
    found = [reprojection.lookup(maps[i:i + 1], part[None, :, None], stride)[0, :, 0]
             for i, part in enumerate(parts)]
    return torch.cat(found)[order.argsort()]


def attend_all(module: nn.Module, x: torch.Tensor, reading, asking, askers: torch.Tensor) -> torch.Tensor:
    """fast/attention.py's ask, where all ask."""
    return packed_attention.attend(module, x, reading).index_select(0, askers)


LEFT_OUT = {   # a means of fast/: where it is, and what stands there without it
    "elu": (packed_level, "elu", nn.functional.elu),
    "rows": (packed_level, "lookup", lookup_by_view),
    "like length": (packed_attention, "SIZES", ()),
    "side by side": (packed_attention, "SHORT", 0),
    "a cacheful": (packed_attention, "TILE", 2 ** 40),
    "ask": (packed_attention, "ask", attend_all)}


def left_out(name: str, make: Callable) -> Pair:
    """Work that make() makes, without a means of fast/ and with it."""
    module, attribute, other = LEFT_OUT[name]

    def without(call: Callable) -> Callable:
        """call(), while the means is left out."""
        def run():
            own = getattr(module, attribute)
            setattr(module, attribute, other)
            try:
                return call()
            finally:
                setattr(module, attribute, own)
        return run
    return without(without(make)()), make()


def one_less(args, name: str, kind: str) -> Pair:
    """A step or an image by fast/ without a means."""
    return left_out(name, (lambda: step(faster(args))) if kind == "step" else lambda: image(args))


def geometry_first(args) -> Pair:
    """Rendering the job's rays with the density of the coarse samples alone (07's fine_only)."""
    job = faster(args)
    sources = job.encoded()
    return lambda: job.draw(sources, fine_only=False), lambda: job.draw(sources)


def recomputing(args) -> Pair:
    """A step whose attention and weighting are computed again in backward."""
    plain, other = Job(args), Job(args)
    for level in (other.model.coarse, other.model.fine):
        level.semantics = functools.partial(checkpoint, level.semantics, use_reentrant=False)
    return step(plain), step(other)


def flush(args) -> Pair:
    """Denormal numbers as zeros (support/machine.py)."""
    work = step(faster(args))

    def with_flush(on: bool) -> Callable:
        """A step so."""
        return lambda: (torch.set_flush_denormal(on), work())
    return with_flush(False), with_flush(True)


TRIED = {
    "attention 8": ("fused attention (04), against the einsum: sequences of 8", lambda a: fused(a, 8)),
    "attention 16": ("the same, of 16", lambda a: fused(a, 16)),
    "attention 32": ("the same, of 32", lambda a: fused(a, 32)),
    "attention 64": ("the same, of 64", lambda a: fused(a, 64)),
    "packed cross-view": ("packed cross-view attention (fast/), against the einsum",
                          lambda a: packed(a, "cross", "einsum")),
    "packed intra-view": ("packed intra-view attention (fast/), against the fused kernel",
                          lambda a: packed(a, "intra", "fused")),
    "lookup": ("feature lookup by rows (fast/), against grid_sample (03)", lookup),
    "packed step": ("a step on valid tokens alone (fast/), against all tokens (04)",
               lambda a: (step(Job(a)), step(faster(a)))),
    "packed image": ("an image of 80x60, the same", lambda a: (image(a, faster=False), image(a))),
    **{f"{name}, {kind}": (f"{text}, {kind}", functools.partial(one_less, name=name, kind=kind))
       for name, text in {"elu": "ELU in place, for an image by exp2 (fast/packed.py)",
                          "rows": "lookup of rows (fast/lookup.py)",
                          "like length": "blocks of like length (fast/attention.py)",
                          "side by side": "short sequences side by side (the same)",
                          "a cacheful": "scores a cacheful at a time (the same)"}.items()
       for kind in ("step", "image")},
    "ask": ("labels from 8 samples: 8 ask, not all (fast/attention.py), an image",
            lambda a: left_out("ask", lambda: image(a, 8))),
    "projection": ("all views projected in one product (01), against one after the other", projection),
    "norm": ("group norm with a channel a group (02), against instance norm", norm),
    "geometry first": ("rendering these rays with the coarse samples' density alone (07)", geometry_first),
    "pieces": ("a step in pieces of 128 rays (07), against one piece",
               lambda a: (step(faster(a), a.rays), step(faster(a)))),
    "flush": ("a step with denormal numbers flushed to zero", flush),
    "checkpointing": ("a plain step with attention computed again in backward (not used)", recomputing),
    "bfloat16": ("a plain step with --bf16 true", lambda a: (step(Job(a)), step(faster(a, bf16=True)))),
    "torch.compile": ("a plain step with --compile true",
                      lambda a: (step(Job(a)), step(faster(a, compile=True)))),
}


def measure_tried(args, means: str) -> dict:
    """One means, without it and with it, in turn in one process; the best of five pairs after a warm-up. One
    thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pair, times = TRIED[means][1](args), ([], [])
    for _ in range(6):
        for work, seconds in zip(pair, times):
            seconds.append(clock(work, 1)[0])
    return dict(zip(("without", "with"), (min(seconds[1:]) for seconds in times)))
