"""What tools/benchmark.py measures: a level's stages, a training step, an image, the tensor of Tables 2-3.

Every measure_NAME gives a dictionary of figures. Test: pytest tests/test_tool_benchmark.py
"""
import math
import tempfile
from argparse import Namespace
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Callable

import imageio.v3 as iio
import numpy as np
import torch
from torch import Tensor

import fast
from support import machine
from tools import HERE
from tools.measuring import clock, count_flops, peak_of, rates, size, whole_peak

data = import_module("01_data")                # example_views, Scene
cra = import_module("04_cra")                  # CRA, fused_attention
weighting = import_module("05_weighting")      # semantic_ray
geometry = import_module("06_geometry_render")     # samples, volume rendering
training = import_module("07_train")           # SRay, Config, training_step

WEIGHTS = HERE / "weights" / "sray_rooms.pt"


def options(args, how: str = "true", **changes) -> Namespace:
    """What 07's and 08's command lines ask of fast/; how: --fast."""
    others = dict(bf16=False, compile=False, keep=0, coarse_stride=1, workers=0)
    return Namespace(device=args.device, fast=how, **{**others, **changes})


class Job:
    """The yardstick's inputs: a model, source views of a furnished room, rays of a target camera."""

    def __init__(self, args, weights: Path | None = None):
        torch.manual_seed(0)
        self.args, self.device = args, torch.device(args.device)
        sizes = dict(height=args.height, width=args.width, views=args.views, rays=args.rays,
                     coarse=args.samples, fine=args.samples)
        given = training.load_checkpoint(weights)[0] if weights else None
        self.config = replace(given.config, **sizes) if given else training.Config(**sizes)
        views = data.example_views(args.height, args.width, args.views).to(args.device)
        self.views, self.target = views[:-1], views[-1]
        self.model = training.SRay(self.config)
        if given:
            self.model.load_state_dict(given.state_dict())
        self.model.to(args.device)
        generator = torch.Generator().manual_seed(0)
        flat = torch.randint(args.height * args.width, (args.rays,), generator=generator)
        self.pixels = data.pixel_grid(args.height, args.width)[flat].to(args.device)
        self.camera = self.target.K, self.target.c2w
        self.batch = training.Batch(
            self.views, *self.camera, self.pixels, self.target.images.flatten(1)[:, flat].T,
            self.target.labels.flatten()[flat], self.views.images[:0], self.views.labels[:0])

    @torch.no_grad()
    def encoded(self):
        """The source views, encoded."""
        return self.model.encode(self.views)

    @torch.no_grad()
    def draw(self, sources, fine_only: bool = True) -> dict:
        """The rays, rendered without gradient."""
        return self.model(sources, self.pixels, *self.camera, fine_only=fine_only)


# ------------------------------------------------------------------------------------------------ the stages

def stage_of(job: Job, name: str) -> tuple[Callable, tuple]:
    """A stage of the plain fine level as a function of its inputs, and them. Inputs that have a gradient in
    training have one."""
    level, c = job.model.fine, job.config
    origin, directions = data.rays(job.pixels, *job.camera)
    z = geometry.coarse_samples(c.near, c.far, c.rays, c.coarse, None, job.device)
    points = origin + z[..., None] * directions[:, None]                      # (R, S, 3)
    with torch.no_grad():
        features, *others = job.model.encode(job.views)[:4]
        M, colours, differences, mask = level.reprojection(points, origin, features, *others)
        sigma, colour, visibility = level.geometry(M, colours, differences, mask)
        refined = level.cra(M, mask)
        logits = torch.randn(*z.shape, len(data.CLASSES), device=job.device)

    def reproject(features: Tensor) -> Tensor:
        """M"""
        return level.reprojection(points, origin, features, *others).M

    def see(M: Tensor, *rest) -> tuple:
        """sigma, colour"""
        return level.geometry(M, *rest)[:2]

    def weigh(M: Tensor, refined: Tensor) -> Tensor:
        """w, semantic ray, logits"""
        w = level.weights(M, differences, visibility, mask)
        return level.head(weighting.semantic_ray(w, refined))

    def render(sigma: Tensor, colour: Tensor, logits: Tensor) -> tuple:
        """pixel values, and where the next level's samples go"""
        lengths = geometry.sample_lengths(z, c.far, torch.ones_like(z[:, 0]))
        weights = geometry.rendering_weights(sigma, lengths)
        geometry.fine_samples(z, weights, c.fine, None)
        return tuple(geometry.render(weights, x) for x in (colour, logits, z[..., None]))
    for x in (features, M, refined, sigma, colour, logits):
        x.requires_grad_()
    return {"encoder": (job.model.encoder, (job.views.images,)), "reprojection": (reproject, (features,)),
            "geometry": (see, (M, colours, differences, mask)), "CRA": (level.cra, (M, mask)),
            "weighting": (weigh, (M, refined)), "rendering": (render, (sigma, colour, logits))}[name]


def forward_backward(work: Callable, *inputs) -> None:
    """work(*inputs), then the gradient of all its outputs for its inputs and parameters."""
    outputs = work(*inputs)
    outputs = [o for o in (outputs if isinstance(outputs, tuple) else (outputs,)) if o.requires_grad]
    torch.autograd.backward(outputs, [torch.ones_like(o) for o in outputs])


def measure_stage(args, stage: str, backward: bool) -> dict:
    """One stage: forward without gradient, or forward + backward."""
    function, inputs = stage_of(Job(args), stage)
    with torch.set_grad_enabled(backward):
        work = (lambda: forward_backward(function, *inputs)) if backward else (lambda: function(*inputs))
        peak = peak_of(work, args.device)
        seconds, user = clock(work, args.repeats, args.device)
        gflop = count_flops(work)
        outputs = function(*inputs)
    moved = size(*inputs) + size(*(outputs if isinstance(outputs, tuple) else (outputs,)))
    return {"gflop": gflop, "bytes": moved * (3 if backward else 1), "seconds": seconds, "user": user,
            "peak": peak}


def measure_decoding(args) -> dict:
    """A frame of ScanNet's size (jpg and label png of 1296x968) from its files, and again from the cache; one
    thread."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "small"
        name, = data.rooms.make_rooms(root, [0], frames=24, width=64, height=48, workers=1)
        for kind, suffix in (("color", "jpg"), ("label-filt", "png")):
            for file in (root / name / kind).iterdir():
                image = iio.imread(file)
                rows, columns = (data.nearest_pixels(*pair) for pair in zip((968, 1296), image.shape))
                iio.imwrite(file.with_suffix(f".{suffix}"), np.ascontiguousarray(image[rows][:, columns]))
        for file in (root / name / "intrinsic").iterdir():
            K = torch.from_numpy(np.loadtxt(file))                            # (4, 4)
            K[:3, :3] = data.scale_intrinsics(K[:3, :3], (48, 64), (968, 1296))
            np.savetxt(file, K)
        for file in (root / name / "depth").iterdir():                        # the job has no depth
            file.unlink()
        frames = data.Scene(root / name, args.height, args.width, Path(folder) / "cache")
        frames.load(0), frames.K  # the label table, the image's size
        times = []

        def load() -> None:
            """Twelve frames."""
            times.append(clock(lambda: [frames.load(i) for i in range(1, 13)], 1))
        peak = peak_of(load, "cpu")
        load()
        (first, user), (again, _) = times
        return {"seconds": first / 12, "user": user / 12, "peak": peak, "cached_seconds": again / 12}


# ------------------------------------------------------------------------------------------------ the whole

def measure_step(args, how: str = "true", piece: int = 0, workers: int = 0, **changes) -> dict:
    """One training step after a warm-up: forward, backward, Adam. how: --fast; piece, workers and the
    changes: other flags of 07. peak: of the whole process on a CPU."""
    job = Job(args)
    model, take_step = fast.faster(job.model, training.training_step,
                                   options(args, how, workers=workers, **changes))
    optimiser = torch.optim.Adam(model.parameters(), fused=True)
    piece = machine.piece_size(job.device, args.rays, piece)

    def step() -> None:
        """As 07 does one."""
        take_step(model, [job.batch], 0, piece)
        optimiser.step()
    step(), step()
    seconds, user = clock(step, args.repeats, args.device)
    found = {"gflop": None, "gflop_both": None, "seconds": seconds, "user": user,
             "peak": whole_peak(args.device), "rays_per_second": args.rays / seconds}
    if not changes.get("compile"):  # the counter does not see into it
        with torch.no_grad():
            found["gflop"] = count_flops(lambda: model(model.encode(job.views), job.pixels, *job.camera))
        found["gflop_both"] = count_flops(lambda: training.training_step(model, [job.batch], 0, piece))
    return found


def measure_image(args, how: str = "true", **changes) -> dict:
    """A full image from source views encoded once, by weights/sray_rooms.pt (which samples weigh nothing,
    training decides). how: --fast; changes: keep and coarse_stride, as 08's flags. Operations are counted on
    every fourth row and column."""
    job = Job(args, WEIGHTS)
    model = fast.renderer(job.model, options(args, how, **changes))
    sources, camera = job.encoded(), (*job.camera, args.height, args.width)
    if args.device == "cuda":
        model.render_image(sources, *camera)                                  # the first image warms up
    repeats = 3 if args.device == "cuda" else 1
    seconds, user = clock(lambda: model.render_image(sources, *camera), repeats, args.device)
    peak = whole_peak(args.device)
    model = fast.renderer(model, options(args, how, workers=1, **changes))    # the counter sees one thread
    gflop = count_flops(lambda: model.render_image(sources, *camera, stride=4))
    rays = math.ceil(args.height / 4) * math.ceil(args.width / 4)
    return {"gflop": gflop * args.height * args.width / rays, "seconds": seconds, "user": user, "peak": peak}


KINDS = {"einsum": "einsum", "fused": "fused", "pieces": "fused, 128 rays at a time",
         "packed": "packed, 128 rays at a time"}


def attention_module(mode: str, kind: str) -> Callable:
    """04's CRA as a function of M (R, S, V, C) and mask: einsum, fused kernel, or packed tokens (fast/)."""
    module = cra.CRA(mode)
    for part in module.modules():
        if kind in ("fused", "pieces") and isinstance(part, cra.MultiHeadAttention):
            part.attend = cra.fused_attention
    if kind != "packed":
        return module
    from fast.attention import refine
    from fast.tokens import Tokens
    # all tokens are valid
    return lambda M, mask: refine(module, M[mask], Tokens.of(mask), None).view(M.shape)


def measure_tensor(args, mode: str, kind: str, R: int) -> dict:
    """Tables 2-3: one mode on a tensor of R x S x V x 32, all tokens valid, forward + backward. The tensor
    itself is part of the peak."""
    torch.manual_seed(0)
    M = torch.randn(R, args.samples, args.views, 32)
    module = attention_module(mode, kind)
    if args.device == "cuda":
        M, module = M.cuda(), module.cuda()
    mask, gradient = torch.ones(M.shape[:3], dtype=torch.bool, device=M.device), torch.zeros_like(M)
    upstream = torch.ones_like(M)

    def both(rays: slice) -> None:
        """Forward and backward of some rays."""
        leaf = M[rays].detach().requires_grad_()
        module(leaf, mask[rays]).backward(upstream[rays])
        gradient[rays] = leaf.grad
    piece, n = 128 if kind in ("pieces", "packed") else R, min(8, R)

    def work() -> None:
        """All of them."""
        for i in range(0, R, piece):
            both(slice(i, i + piece))
    both(slice(0, 2))  # libraries loaded, kernels chosen
    peak = peak_of(work, args.device) + size(M) / 2 ** 20
    seconds, user = clock(work, args.repeats, args.device)
    with torch.no_grad():
        forward = count_flops(lambda: module(M[:n], mask[:n])) * R / n
    both_ways = count_flops(lambda: both(slice(0, n))) * R / n
    return {"gflop": forward, "gflop_both": both_ways, "seconds": seconds, "user": user, "peak": peak,
            "tensor": [*M.shape]}


# ------------------------------------------------------------------------------------------------ the machine

def measure_machine(args) -> dict:
    """The machine's own rates, on one thread and on all; U."""
    if args.device == "cuda":
        return rates(1, "cuda")
    threads = torch.get_num_threads()
    one, every = rates(1), rates(threads)
    return {"threads": threads, "U": one["U"], "matrix_gflops": every["matrix_gflops"],
            "copy_gbs": every["copy_gbs"], "matrix_gflops_one_thread": one["matrix_gflops"],
            "copy_gbs_one_thread": one["copy_gbs"]}
