"""S-Ray assembled from 02-06, its losses, training and fine-tuning.

    python 07_train.py --scene scannet              60 scenes of data/scannet, or rooms of our own where there is no ScanNet
    python 07_train.py --scene PATH --preset smoke  any scene in the ScanNet layout, in seconds
    python 07_train.py --finetune CKPT --scene PATH --scenes NAME --steps 2000
    torchrun --nproc-per-node 4 07_train.py --scene scannet        the same training on 4 GPUs
    python 07_train.py --resume --out RUN --export weights/sray_rooms.pt     a finished run's weights, small enough to give away

The model: one encoder (Table 8, L1-L19), run once per source view; a coarse and a fine level, each with heads of its own (L20-L22,
Tables 9, 10, 11). The coarse level's rendering weights place the fine level's samples. Training sees, each step, one random
target view of a random scene, V of its nearest views as sources, and R random pixels of the target:

    L_sem   = mean over labelled rays of CE(coarse logits) + CE(fine logits)                          (eq. 1)
    L       = lambda1 L_sem + lambda2 L_photometric  (mean squared error, coarse + fine)              (eq. 2)
            + source_loss * CE of the encoder's features through a 1x1 head on the source views      (not in the paper: 0)

Every setting is a field of Config, the defaults are the paper's, each one is a flag; `--preset laptop` is a smaller size of the
same code. The random draws of step i depend on (seed, i) only, so a resumed run continues exactly, whatever stopped it.

Dimension key: R rays, S samples, V source views, C channels, L classes.     Test: pytest tests/test_07_train.py
"""
import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")    # read when torch starts its threads: do not spin between operations

import argparse
import csv
import ctypes
import errno
import hashlib
import io
import itertools
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

data = import_module("01_data")                # Scene, Views, rays, training_pair, find_dataset, DataError
encoder = import_module("02_encoder")          # Encoder
reprojection = import_module("03_reprojection")    # Reprojection -> M
cra = import_module("04_cra")                  # CRA -> M''
weighting = import_module("05_weighting")      # WeightNetwork, semantic_ray
geometry = import_module("06_geometry_render")     # GeometryNetwork, samples, volume rendering


def setting(default, help: str):
    """A dataclass field with the text of its flag."""
    return field(default=default, metadata={"help": help})


@dataclass
class Config:
    """Every setting. Defaults: the paper's (supplement, section 1), or where it is silent what README.md shows as measured."""
    height: int = setting(240, "image height in training and evaluation (section 1: 320x240 on ScanNet)")
    width: int = setting(320, "image width")
    views: int = setting(8, "V, source views (section 1)")
    pool: int = setting(12, "sources are sampled from this many nearest views")
    angle_weight: float = setting(1.0, "metres that a radian between viewing directions counts in 'nearest'")
    every: int = setting(1, "take every n-th frame of a scan")
    targets: int = setting(1, "target views a step, each of a scene of its own with its own sources")
    rays: int = setting(1024, "R, rays a step, shared among its targets")
    coarse: int = setting(64, "S, coarse samples a ray")
    fine: int = setting(64, "fine samples a ray")
    union: bool = setting(False, "the fine level sees coarse and fine samples together (NeRF) instead of the fine ones alone")
    near: float = setting(0.3, "nearest sample, metres along z")
    far: float = setting(8.0, "farthest sample, metres along z")
    spacing: str = setting("linear", "coarse samples even in: linear (depth) | disparity | mix (their mean)")
    cra: str = setting("full", "attention, Tables 2-3: none | intra | cross | full | dense")
    cra_relu: bool = setting(True, "ReLU on the attention's output, as Table 9 lists it")
    position: str = setting("index", "position embedding of the sample's index | depth (its place in inverse depth)")
    pooling: str = setting("mean", "Table 11, L5-L6, over the valid views: mean | weighted (by L3)")
    tau: float = setting(0.7, "eq. 3's tau in (0, 1] (Table 4)")
    density: str = setting("softplus", "activation of sigma: softplus | relu (Table 11)")
    use_delta: bool = setting(True, "alpha = 1 - exp(-sigma delta); false drops delta")
    encoder_activation: str = setting("elu", "activation of Table 8's L11-L18: elu | none, as the table lists")
    lambda1: float = setting(1.0, "eq. 2: weight of the semantic loss (Table 1)")
    lambda2: float = setting(1.0, "eq. 2: weight of the photometric loss")
    source_loss: float = setting(0.0, "weight of the cross-entropy on the source views' own labels (not in the paper)")
    extra_views: int = setting(0, "further views for each target, each of another scene, for the source-view loss alone")
    colour_jitter: float = setting(0.0, "each training scene's light changes at random by up to this share (not in the paper) [0: as it is]")
    steps: int = setting(260_000, "training steps (section 1)")
    lr: float = setting(1e-3, "Adam's first learning rate")
    lr_final: float = setting(5e-5, "and its last (cosine in between)")
    clip: float = setting(10.0, "gradient norm is clipped here")
    save_every: int = setting(1000, "steps between checkpoints")
    keep_every: int = setting(0, "also keep a copy of the checkpoint every so many steps, checkpoint_STEP.pt [0: no copies]")
    validation: int = setting(0, "the 4 test views of so many of the training scenes stay out of training, to validate on")
    keep: int = setting(0, "in evaluation, labels come from this many samples of largest weight a ray [0: from all]")
    coarse_stride: int = setting(1, "in evaluation, the coarse level places the samples of every n-th row and column's rays; those "
                                 "between are interpolated")
    chunk: int = setting(0, "rays rendered at a time in evaluation [0: 16,384 samples' worth; 262,144 samples' on a GPU]")
    piece: int = setting(0, "rays that go forward and backward together in training [0: a core's share, 64 to 256; on a GPU all]")
    train_rooms: int = setting(60, "with --scene rooms: rooms to train on (section 1: 60 scenes)")
    varied_rooms: int = setting(0, "and so many more whose sizes, colours and cameras differ more (00_rooms.VARIED)")
    test_rooms: int = setting(10, "with --scene rooms: unseen rooms to evaluate on (section 1: 10)")
    seed: int = setting(0, "seed of weights and of every random draw")
    device: str = setting("auto", "auto | cpu | cuda")
    bf16: bool = setting(False, "encoder, attention and MLPs in bfloat16; cameras, sums over views, rendering, losses in float32")
    compile: bool = setting(False, "torch.compile the levels' modules (a minute or more at the start; needs a C++ compiler on a CPU)")
    packed: bool = setting(True, "on a CPU, compute valid tokens alone: the same result, sooner")
    workers: int = setting(0, "threads that share a step's targets, or a target's pieces, or an image's chunks [0: as many as help]")


PRESETS = {   # what differs from the paper's sizes; measured choices in README.md
    "paper": {},
    "laptop": dict(height=96, width=128, views=5, targets=2, extra_views=10, rays=128, coarse=24, fine=24, steps=2000, lr=3e-3,
                   source_loss=5.0, save_every=500, train_rooms=150),
    "smoke": dict(height=48, width=64, views=4, rays=64, coarse=8, fine=8, steps=30, source_loss=1.0, save_every=10,
                  train_rooms=2, test_rooms=1),
}
REPLICA = dict(height=480, width=640, steps=100_000)     # what section 1 changes in the paper preset for Replica


# ---------------------------------------------------------------------------------------------------- the model

class Sources(NamedTuple):
    """A source set, encoded once: features (V, C, h, w), images (V, 3, H, W), K (V, 3, 3), c2w (V, 4, 4); near_far (V, 2) where the
    scene knows better than the settings (its near_far.txt), else None. Images are channels-last in memory, for lookups by pixel."""
    features: Tensor
    images: Tensor
    K: Tensor
    c2w: Tensor
    near_far: Tensor | None = None


def half_precision(config: Config, like: Tensor) -> torch.autocast:
    """--bf16: linear layers, convolutions and attention in here compute in bfloat16."""
    return torch.autocast(like.device.type, torch.bfloat16, enabled=config.bf16)


def depth_range(config: Config, sources: Sources) -> tuple:
    """Nearest and farthest sample along z: the scene's own (0-dimensional tensors), or the settings'."""
    return (config.near, config.far) if sources.near_far is None else sources.near_far[0].unbind()


class Level(nn.Module):
    """One level's heads: reprojection (Table 8, L20-L22), CRA (Table 9), weight network (Table 10), geometry (Table 11)."""

    def __init__(self, config: Config, classes: int = len(data.CLASSES)):
        super().__init__()
        self.config = config
        self.reprojection = reprojection.Reprojection()
        self.geometry = geometry.GeometryNetwork(density=config.density, pooling=config.pooling)
        self.cra = cra.CRA(config.cra, relu=config.cra_relu)
        self.weights = weighting.WeightNetwork(tau=config.tau)
        self.head = nn.Linear(encoder.CHANNELS, classes)

    def look(self, origin: Tensor, directions: Tensor, z: Tensor, sources: Sources, colour: bool, packed: bool = False) -> tuple:
        """origin (3,), directions (R, 3), depths z (R, S) -> what the views show there: Context, Geometry and the positions to
        embed, None for 0 .. S-1. Without colour: the density alone. packed: of the valid tokens alone."""
        points = origin + z[..., None] * directions[:, None]                  # (R, S, 3)
        context = self.reprojection(points, origin, *sources[:4], colour, packed)
        c, index = self.config, None
        if c.position == "depth":
            near, far = depth_range(c, sources)
            index = z.shape[1] * (1 / near - 1 / z) / (1 / near - 1 / far)    # (R, S) in 0 .. S
        with half_precision(c, z):
            return context, self.geometry(*context, index), index

    def label(self, context, seen, index: Tensor | None, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """-> logits (R, S, L) and view weights w (R, S, V); with keep (R, n) only of those n samples."""
        M, _, differences, mask = context
        visibility = seen.visibility
        with half_precision(self.config, M):
            refined = self.cra(M, mask, index, keep)                          # M'': (R, S, V, C)
            if keep is not None:
                kept = torch.zeros_like(mask[:, :, 0]).scatter(1, keep, True)[..., None].expand(mask.shape)      # (R, S, V)
                tokens = kept[mask].nonzero()[:, 0]                           # (n,) the valid tokens of the kept samples
                M, differences, visibility = (x.index_select(0, tokens) if x.dim() == 2 else
                                              x.take_along_dim(keep[:, :, None, None], dim=1)
                                              for x in (M, differences, visibility))
                mask = mask.take_along_dim(keep[:, :, None], dim=1)
            w = self.weights(M, differences, visibility, mask)                # (R, S, V) in C(tau)
            return self.head(weighting.semantic_ray(w, refined, mask)), w


class SRay(nn.Module):
    """The whole of S-Ray. encode() once per source set, forward() for any rays of any target camera."""

    def __init__(self, config: Config, classes: "data.Classes" = data.SCANNET):
        super().__init__()
        self.config, self.classes = config, classes
        self.encoder = encoder.Encoder(config.encoder_activation)
        self.coarse, self.fine = Level(config, len(classes.names)), Level(config, len(classes.names))
        if config.compile:
            for level in (self.coarse, self.fine):
                for module in (level.reprojection, level.geometry, level.cra, level.weights):
                    module.compile()
        self.source_head = nn.Conv2d(encoder.CHANNELS, len(classes.names), 1)  # for source_loss: a 2D segmenter

    def encode(self, views: "data.Views") -> Sources:
        """Views (V) -> Sources. The features depend on the source views alone: call it once per source set."""
        images = views.images.contiguous(memory_format=torch.channels_last)
        return Sources(self.features(views.images), images, views.K, views.c2w, views.near_far)

    def features(self, images: Tensor) -> Tensor:
        """images (V, 3, H, W) -> features (V, C, h, w), float32 whatever the encoder works in."""
        with half_precision(self.config, images):
            return self.encoder(images).to(images.dtype)

    def segment(self, images: Tensor) -> Tensor:
        """The 2D segmenter that source_loss trains, the encoder and a 1x1 head: images (V, 3, H, W) -> logits (V, L, H, W)."""
        logits = self.source_head(self.features(images))                      # (V, L, h, w), at every fourth pixel
        return encoder.upsample_onto(encoder.upsample_onto(logits, images[..., ::2, ::2]), images)

    def weigh(self, level: Level, origin: Tensor, directions: Tensor, z: Tensor, sources: Sources, colour: bool) -> tuple:
        """A level looks at samples at depths z (R, S) -> their rendering weights (R, S), and what look() returns."""
        c = self.config
        packed = c.packed and z.device.type == "cpu" and not (c.bf16 or c.compile)                # no compiler's: shapes change
        context, seen, index = level.look(origin, directions, z, sources, colour, packed)
        far = depth_range(c, sources)[1]
        # directions are as long as a metre of z is along the ray
        delta = geometry.sample_lengths(z, far, directions.norm(dim=-1)) if c.use_delta else None
        if delta is not None and sources.near_far is not None:                # in metres, were the scene's far the settings':
            delta = delta * (c.far / far)                                     # the scene's unit does not matter
        return geometry.rendering_weights(seen.sigma, delta), context, seen, index

    def coarse_depths(self, sources: Sources, rays: int, jitter: Tensor | None, device) -> Tensor:
        """(R, coarse) depths of the coarse samples."""
        near, far = depth_range(self.config, sources)
        return geometry.coarse_samples(near, far, rays, self.config.coarse, self.config.spacing, jitter, device)

    def coarse_weights(self, sources: Sources, pixels: Tensor, K: Tensor, c2w: Tensor) -> Tensor:
        """Pixels (R, 2) -> weights (R, coarse) of the coarse samples, which place the fine ones."""
        origin, directions = data.rays(pixels, K, c2w)
        z = self.coarse_depths(sources, len(pixels), None, pixels.device)     # (R, coarse)
        return self.weigh(self.coarse, origin, directions, z, sources, False)[0]

    def forward(self, sources: Sources, pixels: Tensor, K: Tensor, c2w: Tensor, jitter: Tensor | None = None,
                fine_only: bool = False, keep: int = 0, placing: Tensor | None = None) -> dict[str, dict[str, Tensor]]:
        """Pixels (R, 2) of the target camera K (3, 3), c2w (4, 4) -> {"coarse": ..., "fine": ...}, each with pixel values
        logits (R, L), colour (R, 3), depth (R,) in metres along z, and per sample z (R, S), weights (R, S), w (R, S, V).

        jitter (R, coarse + fine) in [0, 1) moves the samples (training); None: fixed samples. fine_only (inference) computes
        nothing but the density of the coarse samples, which places the fine ones: colour, CRA, weight network and head are
        left out there. keep > 0 (inference): only the `keep` samples of largest weight on each ray get logits and w. placing
        (R, coarse): the coarse samples' weights, where they are known; then there is no "coarse".
        """
        c = self.config
        origin, directions = data.rays(pixels, K, c2w)                        # (3,), (R, 3)
        first, second = (None, None) if jitter is None else jitter.split([c.coarse, c.fine], dim=1)
        z = self.coarse_depths(sources, len(pixels), first, pixels.device)    # (R, S)
        result = {}
        for name, level, rendered in (("coarse", self.coarse, not fine_only and placing is None), ("fine", self.fine, True)):
            if name == "coarse" and placing is not None:
                weights = placing
            else:
                weights, context, seen, index = self.weigh(level, origin, directions, z, sources, rendered)
                # expected depth of what the ray meets; a ray that meets nothing has no depth, and gets a finite one
                depth = (weights * z).sum(1) / weights.sum(1).clamp(min=1e-6)     # (R,)
                result[name] = {"depth": depth, "z": z, "weights": weights}
            if rendered:
                top = weights.topk(keep, dim=1).indices.sort(dim=1).values if 0 < keep < z.shape[1] else None   # (R, keep)
                logits, w = level.label(context, seen, index, top)
                kept = weights if top is None else weights.gather(1, top)
                result[name] |= {"colour": geometry.render(weights, seen.colour), "logits": geometry.render(kept, logits), "w": w}
            if name == "coarse":
                extra = geometry.fine_samples(z, weights, c.fine, second)     # (R, fine)
                z = torch.cat([z, extra], dim=1).sort(dim=1).values if c.union else extra
        return result

    def render_image(self, sources: Sources, K: Tensor, c2w: Tensor, height: int, width: int,
                     pool: ThreadPoolExecutor | None = None, stride: int = 1) -> dict[str, Tensor]:
        """A whole target image, chunk_size() rays at a time: colour (H, W, 3), logits (H, W, L), depth (H, W). A pool
        (core_pool) renders the chunks on several cores. stride n: every n-th row and column of it alone."""
        c, grid = self.config, data.pixel_grid(height, width).view(height, width, 2)[::stride, ::stride]

        def render_chunk(pixels: Tensor) -> dict[str, Tensor]:
            """The fine level's pixel values of some rays."""
            with torch.no_grad():                                             # grad mode belongs to a thread
                known = {} if weights is None else {"placing": reprojection.lookup(
                    weights, pixels, stride * c.coarse_stride, torch.zeros(len(pixels), dtype=torch.long, device=K.device))}
                return self(sources, pixels, K, c2w, fine_only=True, keep=c.keep, **known)["fine"]

        def place_chunk(pixels: Tensor) -> Tensor:
            """The coarse weights (R, S) of some rays."""
            with torch.no_grad():
                return self.coarse_weights(sources, pixels, K, c2w)

        def in_chunks(job: Callable, pixels: Tensor) -> list:
            """job of all pixels (h, w, 2), some at a time."""
            return list((pool.map if pool else map)(job, pixels.reshape(-1, 2).to(K.device).split(chunk_size(c, K.device))))
        weights, some = None, grid[::c.coarse_stride, ::c.coarse_stride]      # (h, w, 2) rays that the coarse level sees
        if c.coarse_stride > 1:
            weights = torch.cat(in_chunks(place_chunk, some)).T.view(1, -1, *some.shape[:2])      # (1, S, h, w)
        parts = in_chunks(render_chunk, grid)
        return {key: torch.cat([p[key] for p in parts]).view(*grid.shape[:2], *parts[0][key].shape[1:])
                for key in ("colour", "logits", "depth")}


# ---------------------------------------------------------------------------------------------------- losses

def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the labelled of logits (R, L), labels (R,); zero, with a zero gradient, if none is labelled."""
    total = F.cross_entropy(logits, labels, ignore_index=data.IGNORE, reduction="sum")
    return total / (labels != data.IGNORE).sum().clamp(min=1)


def losses(result: dict, colours: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 1 and the photometric loss: results of both levels, true colours (R, 3), labels (R,) -> L_sem, L_photometric."""
    semantic = sum(cross_entropy(result[level]["logits"], labels) for level in ("coarse", "fine"))
    photometric = sum(F.mse_loss(result[level]["colour"], colours) for level in ("coarse", "fine"))
    return semantic, photometric


def source_view_loss(model: SRay, features: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of a 1x1 head on the encoder's features (N, C, h, w) against the same views' labels (N, H, W): feature
    (i, j) is centred on pixel (4i, 4j), so every fourth label is its truth."""
    logits = model.source_head(features)                                      # (N, L, h, w)
    return cross_entropy(logits.permute(0, 2, 3, 1).flatten(0, 2), labels[:, ::encoder.STRIDE, ::encoder.STRIDE].flatten())


# ---------------------------------------------------------------------------------------------------- checkpoints

def save_checkpoint(path: Path, model: SRay, optimiser, step: int, run: dict) -> None:
    """Atomically write {"model", "config", "classes", "step", "optimiser", "run"}; run says which scenes, command and seconds."""
    state = {"model": model.state_dict(), "config": asdict(model.config), "classes": model.classes._asdict(), "step": step,
             "optimiser": optimiser.state_dict(), "run": run}
    content = io.BytesIO()
    torch.save(state, content)

    def write(file) -> None:
        """To the disk, not to its cache: after a power cut, too, there is the old checkpoint or the new one."""
        file.write(content.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    data.write_atomically(path, write)


def export_weights(path: Path, state: dict) -> None:
    """Atomically write a checkpoint's weights in half precision, with everything else but the optimiser: a sixth of the
    size, and load_checkpoint reads it like any other (in float32). It cannot be resumed. How many rays went at a time was a matter
    of the machine it was trained on, and is left out."""
    small = {key: value for key, value in state.items() if key not in ("model", "optimiser")}
    small |= {"model": {k: x.half() for k, x in state["model"].items()},
              "config": {**state["config"], **{name: getattr(Config, name) for name in ("chunk", "piece", "workers")}}}
    data.write_atomically(path, lambda file: torch.save(small, file))


def load_checkpoint(path: str | Path) -> tuple[SRay, dict]:
    """Read a checkpoint (weights_only) -> model on the CPU, and the whole dictionary. DataError if it is none of ours."""
    if not Path(path).is_file():
        raise data.DataError(f"{path}: no such checkpoint; train one with 07_train.py")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        config = Config(**{f.name: state["config"][f.name] for f in fields(Config) if f.name in state["config"]})
        wrong = [name for name, value in asdict(config).items() if not isinstance(value, (type(getattr(Config, name)), int))]
        if wrong or not isinstance(state["step"], int) or not isinstance(state["run"], dict):
            raise ValueError(f"unusable {wrong or 'step or run'}")
        check(config)
        classes = data.Classes(**state["classes"]) if "classes" in state else data.SCANNET
        model = SRay(config, classes)
        model.load_state_dict(state["model"])
    except Exception as error:                # a damaged zip, a foreign pickle, missing keys, other shapes
        raise data.DataError(f"{path}: not a checkpoint of this model ({str(error).splitlines()[0][:120]}); "
                             "train again or name another file") from None
    return model, state


# ---------------------------------------------------------------------------------------------------- several processes

def rank_and_world() -> tuple[int, int]:
    """Which process this is, of how many: (0, 1) unless torchrun started several."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def join_processes() -> tuple[int, int]:
    """Meet the processes that torchrun started, one for each GPU (or on CPUs) -> this one's rank and their number. Rank 0 alone
    prints and writes."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        local = int(os.environ["LOCAL_RANK"])
        if 0 < torch.cuda.device_count() <= local:
            raise data.DataError(f"torchrun --nproc-per-node {os.environ['LOCAL_WORLD_SIZE']}: this machine has "
                                 f"{torch.cuda.device_count()} GPUs; start as many processes (CUDA_VISIBLE_DEVICES= for CPUs)")
        if torch.cuda.is_available():
            torch.cuda.set_device(local)
        # a day: the first process of a machine may decode a large dataset while the others wait
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(days=1))
        if dist.get_rank():
            sys.stdout = open(os.devnull, "w")
    return rank_and_world()


def sum_over_processes(*values: float) -> list[float]:
    """The sums of these numbers over all processes; they are where all wait for each other, too."""
    total = torch.tensor(values, dtype=torch.float64)
    if rank_and_world()[1] > 1:
        dist.all_reduce(total)
    return total.tolist()


@contextmanager
def first_on_this_machine():
    """What is in here (making rooms, decoding frames) one process of each machine does first, and the others find done."""
    first = int(os.environ.get("LOCAL_RANK", 0)) == 0
    if not first:
        sum_over_processes(0)
    yield
    if first:
        sum_over_processes(0)


class Handover(nn.Module):
    """Gradients for DistributedDataParallel to average. Its hooks wait for backward() to reach the parameters, but batch_gradients
    asks torch.autograd.grad for gradients, which reaches none. So they are handed over: d/dp of sum(p g) is g, exactly."""

    def __init__(self, model: SRay):
        super().__init__()
        self.model = model

    def forward(self, parameters: list[Tensor], gradients: list[Tensor]) -> Tensor:
        """The sum whose gradient is known."""
        return sum((p * g).sum() for p, g in zip(parameters, gradients))

    @staticmethod
    def reduce(team: nn.parallel.DistributedDataParallel, parameters: list[Tensor]) -> None:
        """Make every .grad the sum over all processes."""
        mine = [p.grad for p in parameters]
        for p in parameters:
            p.grad = None
        N = rank_and_world()[1]                                               # by which the average has to be multiplied
        team(parameters, [torch.zeros_like(p) if g is None else N * g for p, g in zip(parameters, mine)]).backward()
        for p, g in zip(parameters, mine):
            if g is None:                                                     # the optimiser leaves alone what no loss reaches
                p.grad = None


# ---------------------------------------------------------------------------------------------------- training

class Batch(NamedTuple):
    """One target: source Views (V), its camera K (3, 3), c2w (4, 4), pixels (R, 2), colours (R, 3), labels (R,); and further
    images (E, 3, H, W) with labels (E, H, W) for the source-view loss."""
    sources: "data.Views"
    K: Tensor
    c2w: Tensor
    pixels: Tensor
    colours: Tensor
    labels: Tensor
    extra_images: Tensor
    extra_labels: Tensor


def generator_of(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step: a function of (seed, step), so that a resumed run draws what it would have drawn."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def share(config: Config, target: int) -> slice:
    """The rays of a step's target that are this process's work: all of them, unless there are N processes. Then the rays of all
    targets, in a row, are cut into N equal parts: with N targets each process has one, with one target each has R / N rays of it
    (and encodes its source views again)."""
    rank, world = rank_and_world()
    R = max(1, config.rays // config.targets)
    first, last = (R * config.targets * part // world - R * target for part in (rank, rank + 1))
    return slice(min(max(first, 0), R), min(max(last, 0), R))


def relight(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """images (..., 3, H, W) in [0, 1] as another lamp and exposure would show them: a random gamma for all channels and a random
    gain for each, both within a factor of 1 + amount. The same for all images: photo-consistency stays."""
    if not amount:
        return images
    change = (1 + amount) ** (2 * torch.rand(4, generator=generator) - 1)     # in 1 / (1 + amount) .. 1 + amount
    return (images ** change[0] * change[1:, None, None]).clamp(max=1)


def draw_batches(scenes: list, frames: list, config: Config, step: int) -> list[Batch]:
    """The `targets` batches of a step, each of a random scene: a target view, sources, random pixels, and extra views of other
    scenes. frames[i]: what may be drawn from scene i. No scene twice, while there are enough. Every process draws the same; what
    belongs to another one is not read and None."""
    generator = generator_of(config.seed, step)
    count = config.targets * (1 + config.extra_views)
    order = (torch.randperm(len(scenes), generator=generator).tolist() * count)[:count]
    batches = []
    for b in range(config.targets):
        pick, *others = order[b::config.targets]
        target, sources = data.training_pair(scenes[pick], config.views, generator, config.pool, frames[pick],
                                             config.angle_weight)
        flat = torch.randint(config.height * config.width, (max(1, config.rays // config.targets),), generator=generator)
        extra = [(scenes[i], frames[i][int(torch.randint(len(frames[i]), (), generator=generator))]) for i in others]
        mine = share(config, b)
        if mine.start == mine.stop:
            batches.append(None)
            continue
        views = scenes[pick].views([*sources, target])
        views = replace(views, images=relight(views.images, config.colour_jitter, generator))
        pixels = torch.stack([flat % config.width, flat // config.width], dim=-1)                 # (R, 2)
        images, labels = views.images[:0], views.labels[:0]                   # (0, 3, H, W), (0, H, W)
        for scene, index in extra:
            view = scene.views([index])
            images = torch.cat([images, relight(view.images, config.colour_jitter, generator)])
            labels = torch.cat([labels, view.labels])
        batches.append(Batch(views[:-1], views.K[-1], views.c2w[-1], pixels.float(), views.images[-1].flatten(1)[:, flat].T,
                             views.labels[-1].flatten()[flat], images, labels))
    return batches


def learning_rate(config: Config, step: int) -> float:
    """Linear warm-up over 1% of the run, then a cosine from lr to lr_final."""
    warm = max(1, config.steps // 100)
    cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / config.steps))
    return (config.lr_final + (config.lr - config.lr_final) * cosine) * min(1.0, (step + 1) / warm)


def batch_loss(model: SRay, sources: Sources, batch: Batch, rays: Tensor, jitter: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The share of some rays (indices into the batch's) in eq. 2, total and parts: the shares of all pieces sum to the loss."""
    config, labels = model.config, batch.labels[rays]
    result = model(sources, batch.pixels[rays], batch.K, batch.c2w, jitter[rays])
    semantic, photometric = losses(result, batch.colours[rays], labels)       # means over these rays
    semantic = semantic * (labels != data.IGNORE).sum() / (batch.labels != data.IGNORE).sum().clamp(min=1)
    photometric = photometric * (len(rays) / len(batch.labels))
    loss = config.lambda1 * semantic + config.lambda2 * photometric
    return loss, {"semantic": semantic.detach(), "photometric": photometric.detach(), "loss": loss.detach()}


def batch_gradients(model: SRay, batch: Batch, parameters: list[Tensor], generator: torch.Generator,
                    mine: slice = slice(None), pool: ThreadPoolExecutor | None = None) -> tuple[list, dict]:
    """The gradient of one batch's loss (eq. 2, and the source-view loss) for each parameter, None where there is none; and the
    parts of the loss. mine: these rays' share of it alone; the shares of all rays sum to the loss.

    The rays are independent once the source views are encoded: they go forward and backward `piece` at a time, so that memory
    does not grow with their number, with a pool a piece on each core. The features collect the gradients of all pieces, in their
    order; the encoder goes backward once.
    """
    config, V, R = model.config, len(batch.sources.K), len(batch.pixels)
    features = model.features(torch.cat([batch.sources.images, batch.extra_images]))             # (V + E, C, h, w)
    leaf = features.detach().requires_grad_()
    images = batch.sources.images.contiguous(memory_format=torch.channels_last)
    sources = Sources(leaf[:V], images, batch.sources.K, batch.sources.c2w, batch.sources.near_far)
    jitter = torch.rand(R, config.coarse + config.fine, generator=generator).to(leaf.device)
    sums: list = [None] * (1 + len(parameters))
    parts: dict = {}

    def gradients(loss: Tensor, found: dict) -> tuple[tuple, dict]:
        """The gradients of a piece of the loss for the features and the parameters; and its parts."""
        return torch.autograd.grad(loss, [leaf, *parameters], allow_unused=True), found

    def add(gradients: tuple, found: dict) -> None:
        """Add those of one piece to the sums."""
        for i, gradient in enumerate(gradients):
            if gradient is not None:
                sums[i] = gradient if sums[i] is None else sums[i].add_(gradient)
        parts.update({key: parts.get(key, 0) + value for key, value in found.items()})

    numbers = torch.arange(R, device=leaf.device)[mine]
    pieces = numbers.split(piece_size(config, R, leaf.device))
    one = lambda rays: gradients(*batch_loss(model, sources, batch, rays, jitter))
    for found in (pool.map if pool and len(pieces) > 1 else map)(one, pieces):
        add(*found)
    if config.source_loss:
        loss = source_view_loss(model, leaf, torch.cat([batch.sources.labels, batch.extra_labels])) * (len(numbers) / R)
        add(*gradients(config.source_loss * loss, {"source": loss.detach(), "loss": config.source_loss * loss.detach()}))
    encoded = torch.autograd.grad(features, parameters, sums[0], allow_unused=True)
    return [a if b is None else b for a, b in zip(sums[1:], encoded)], parts  # a parameter is the encoder's or not


def training_step(model: SRay, batches: list[Batch | None], step: int, pool: ThreadPoolExecutor | None = None,
                  team: nn.parallel.DistributedDataParallel | None = None) -> dict[str, float]:
    """Set every parameter's gradient to that of the batches' mean loss -> the mean of its parts and of the "loss". With a team
    (several processes, each with its share of the rays): of all processes' rays, in every process.

    The batches are independent (no layer mixes views of different images), so each may run on a core of its own: two cores
    with a batch each take two thirds of the time of two cores sharing every small operation (README, "Speed"). Of a single batch
    it is the pieces that do. Gradients are added in order: the result does not depend on who finishes first.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    mine = [numbered for numbered in enumerate(batches) if numbered[1] is not None]
    alone = len(mine) == 1

    def gradients(numbered: tuple[int, Batch]):
        """The gradients and the parts of the loss of one batch."""
        index, batch = numbered
        generator = generator_of(model.config.seed + 1 + index, step)
        return batch_gradients(model, batch, parameters, generator, share(model.config, index), pool if alone else None)

    results = list((pool.map if pool and not alone else map)(gradients, mine))
    for parameter, *grads in zip(parameters, *(g for g, _ in results)):
        grads = [g for g in grads if g is not None]
        parameter.grad = sum(grads[1:], grads[0]) if grads else None
        if grads and len(batches) > 1:
            parameter.grad = parameter.grad / len(batches)
    parts = {key: sum(parts[key] for _, parts in results).item() / len(batches) for key in results[0][1]}
    if team:
        Handover.reduce(team, parameters)
        parts = dict(zip(parts, sum_over_processes(*parts.values())))
    return parts


def trim_log(path: Path, step: int) -> None:
    """Take out of log.csv the rows after `step`, and half a row: what a killed run wrote after its last checkpoint."""
    header, *rows = path.read_text().splitlines() or [""]
    kept = [row for row in rows if row.count(",") == header.count(",") and int(row.split(",")[0]) <= step]
    data.write_atomically(path, lambda file: file.write("\n".join([header, *kept, ""]).encode()))


def train(model: SRay, optimiser, scenes: list, frames: list, out: Path, run: dict, first_step: int, device,
          stop: list | tuple = ()) -> None:
    """Train from first_step to config.steps; out/checkpoint.pt at the start, every save_every steps (once their loss is known
    to be finite) and at the end, out/log.csv. When something appears in `stop`: save and raise Stopped."""
    config, path, (rank, world) = model.config, out / "checkpoint.pt", rank_and_world()
    model.to(device).train()
    team = nn.parallel.DistributedDataParallel(Handover(model)) if world > 1 else None
    trained_before, start = run["seconds"], time.time()
    names = ["semantic", "photometric"] + ["source"] * bool(config.source_loss)
    pool, mean = step_pool(config, device), run.setdefault("mean", {})

    def save(steps_done: int) -> None:
        """Write the checkpoint of the weights as they are now; the log first, and checkpoint.pt last: it says that all is there."""
        log.flush()
        run["seconds"] = trained_before + time.time() - start
        if rank == 0 and steps_done and config.keep_every and steps_done % config.keep_every == 0:
            save_checkpoint(out / f"checkpoint_{steps_done}.pt", model, optimiser, steps_done, run)
        if rank == 0:
            save_checkpoint(path, model, optimiser, steps_done, run)

    if first_step and rank == 0 and (out / "log.csv").exists():
        trim_log(out / "log.csv", first_step)
    with open(out / "log.csv" if rank == 0 else os.devnull, "a" if first_step else "w", newline="") as log, \
            ThreadPoolExecutor(1) as loader, \
            tqdm(total=config.steps, initial=first_step, unit="step", dynamic_ncols=True, smoothing=0.05, disable=rank > 0,
                 mininterval=0.5 if sys.stderr.isatty() else 15) as bar:
        if not log.tell():
            csv.writer(log).writerow(["step", *names, "seconds"])
        if first_step == 0:
            save(0)                                                           # from now on --resume works
        coming, waited = loader.submit(draw_batches, scenes, frames, config, first_step), 0.0
        for step in range(first_step, config.steps):
            asked = time.perf_counter()
            batches = [batch and Batch(*(x.to(device) for x in batch)) for batch in coming.result()]
            waited += time.perf_counter() - asked
            coming = loader.submit(draw_batches, scenes, frames, config, step + 1)                # the disk works meanwhile
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(config, step)
            parts = training_step(model, batches, step, pool, team)
            norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            if not (math.isfinite(parts["loss"]) and math.isfinite(norm)):
                values = ", ".join(f"{key} {parts[key]:.4g}" for key in names)
                raise data.DataError(f"step {step}: the loss is {parts['loss']}, its gradient's norm {norm:.4g} ({values}); "
                                     f"training stopped, the last good checkpoint is {path}; resume from it with a lower --lr")
            stopping = sum_over_processes(len(stop))[0] > 0
            due = step % config.save_every == 0 or (config.keep_every and step % config.keep_every == 0) or stopping
            if step > first_step and due:                                     # only weights that have just shown a finite loss
                save(step)
            if stopping:
                raise Stopped(step)
            optimiser.step()
            bar.update()
            mean.update({key: 0.98 * mean.get(key, parts[key]) + 0.02 * parts[key] for key in names})
            if (step + 1) % 10 == 0 or step + 1 == config.steps:
                seconds = trained_before + time.time() - start
                csv.writer(log).writerow([step + 1, *(f"{mean[key]:.5g}" for key in names), f"{seconds:.1f}"])
                rate = (step + 1 - first_step) * config.rays / (time.time() - start)
                bar.set_postfix({**{k: f"{v:.3f}" for k, v in mean.items()}, "rays/s": f"{rate:,.0f}"}, refresh=False)
        if first_step < config.steps:
            save(config.steps)
    if first_step < config.steps:
        print(f"trained {config.steps - first_step} steps in {time.time() - start:.0f} s, {waited:.1f} s of them waiting for data")


class Stopped(Exception):
    """Training was asked to stop, and has saved; args: the step."""


@contextmanager
def asked_to_stop():
    """Ctrl-C, or the SIGTERM of a cluster that wants its machine back, fills the list given here; a second Ctrl-C interrupts."""
    asked: list = []

    def note(number, _) -> None:
        """Say so, safely within whatever was interrupted."""
        asked.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.write(2, b"\nstopping after this step, to save; Ctrl-C once more stops at once\n")
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def training_curves(folder: Path) -> None:
    """A run's log.csv -> curves.png beside it: every logged loss (running means over some 50 steps) against the step."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if not (folder / "log.csv").exists():
        return
    with open(folder / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    titles = {"semantic": "semantic loss, eq. 1 (nats, coarse + fine)", "source": "source-view loss (nats)",
              "photometric": "photometric loss (squared error, coarse + fine)"}
    names = [name for name in titles if rows and name in rows[0]]
    if len(rows) < 2:                         # nothing to draw a line through
        return
    figure, axes = plt.subplots(1, len(names), figsize=(4.6 * len(names), 3.6), layout="constrained", squeeze=False)
    for axis, name, colour in zip(axes[0], names, ("#d55e00", "#0072b2", "#009e73")):
        axis.plot([int(row["step"]) for row in rows], [float(row[name]) for row in rows], color=colour)
        axis.set(xlabel="step", ylabel=name, ylim=(0, None))
        axis.set_title(titles[name], fontsize=10)
        axis.grid(alpha=0.3)
    figure.suptitle(f"{folder.name}: {rows[-1]['step']} steps in {float(rows[-1]['seconds']):,.0f} s")
    data.write_atomically(folder / "curves.png", lambda file: figure.savefig(file, dpi=100, format="png"))
    plt.close(figure)


# ---------------------------------------------------------------------------------------------------- the command line

def add_settings(parser: argparse.ArgumentParser, settings: type = Config) -> None:
    """One flag for each field of a dataclass of settings; a flag not given stays None, so that presets and checkpoints can fill it."""
    def boolean(text: str) -> bool:
        """true or false, as a flag takes it"""
        if text.lower() not in ("true", "false", "1", "0"):
            raise argparse.ArgumentTypeError("true or false")
        return text.lower() in ("true", "1")
    group = parser.add_argument_group("settings (defaults are the paper's; a preset changes some)")
    for f in fields(settings):
        kind = boolean if f.type is bool else f.type
        group.add_argument(f"--{f.name.replace('_', '-')}", type=kind, default=None, metavar=kind.__name__.upper(),
                           help=f"{f.metadata['help']} [{f.default}]")


def check(config: Config) -> None:
    """DataError for settings no run could use."""
    for name in ("height", "width"):
        if getattr(config, name) < 32:
            raise data.DataError(f"--{name} {getattr(config, name)}: the encoder needs at least 32 pixels")
    if config.height * config.width > data.MAX_PIXELS:
        raise data.DataError(f"--height {config.height} --width {config.width}: more than {data.MAX_PIXELS:,} pixels")
    for name in ("views", "targets", "rays", "coarse", "fine", "steps", "every", "save_every", "pool", "coarse_stride"):
        if getattr(config, name) < 1:
            raise data.DataError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be at least 1")
    for name in ("extra_views", "keep_every", "validation", "keep", "chunk", "piece", "workers"):
        if getattr(config, name) < 0:
            raise data.DataError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be 0 or more")
    if not 0 < config.near < config.far:
        raise data.DataError(f"--near {config.near} --far {config.far}: needs 0 < near < far")
    if not 0 <= config.varied_rooms <= len(data.rooms.VARIED):
        raise data.DataError(f"--varied-rooms {config.varied_rooms}: must be 0 to {len(data.rooms.VARIED)}")
    if not config.colour_jitter >= 0:
        raise data.DataError(f"--colour-jitter {config.colour_jitter}: must be 0 or more")
    if not 0 < config.tau <= 1:
        raise data.DataError(f"--tau {config.tau}: eq. 3 needs 0 < tau <= 1")
    for name, allowed in (("cra", cra.MODES), ("density", ("relu", "softplus")), ("encoder_activation", ("none", "elu")),
                          ("spacing", ("disparity", "linear", "mix")),
                          ("position", ("index", "depth")), ("pooling", ("mean", "weighted")),
                          ("device", ("auto", "cpu", "cuda"))):
        if getattr(config, name) not in allowed:
            raise data.DataError(f"--{name.replace('_', '-')} {getattr(config, name)}: one of {', '.join(allowed)}")


def prepare_cpu() -> None:
    """Two settings for training and rendering on a CPU (README, "Speed"). glibc, which gives every large buffer back to the system and
    takes page faults for the next one, is told to keep them; elsewhere than on glibc, nothing. And numbers below 1e-38 become
    zero, because a CPU computes with them by a slow way and vanishing gradients may be full of them."""
    for kind in (np.float32, np.float64):      # asked for its limits without denormals, numpy would warn: ask now, it remembers
        np.finfo(kind)
    torch.set_flush_denormal(True)             # holds for this thread and those it starts
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(-8, 1 + torch.get_num_threads())    # M_ARENA_MAX: a heap for each thread that works on a core of its own
        libc.mallopt(-4, 0)                    # M_MMAP_MAX: no buffer of its own mapping
        libc.mallopt(-1, 2 ** 31 - 1)          # M_TRIM_THRESHOLD: do not shrink the heap
    except (OSError, AttributeError, TypeError):
        pass


def core_pool(config: Config, device: torch.device, jobs: int) -> ThreadPoolExecutor | None:
    """A pool for so many independent jobs at a time: `workers` threads that share the cores evenly (torch.set_num_threads holds
    for the thread that calls it). None, for a plain loop, where one worker is enough."""
    cores = torch.get_num_threads()
    workers = config.workers or (1 if device.type == "cuda" else max(1, min(cores, jobs)))
    if workers == 1:
        return None
    return ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(max(1, cores // workers),))


def chunk_size(config: Config, device: torch.device) -> int:
    """How many rays of an image are rendered together: many enough for large operations, few enough to fit beside others."""
    if config.chunk:
        return config.chunk
    samples = config.coarse + config.fine if config.union else max(config.coarse, config.fine)
    return max(1, (2 ** 18 if device.type == "cuda" else 2 ** 14) // samples)


def image_pool(config: Config, device: torch.device) -> ThreadPoolExecutor | None:
    """The pool for rendering: for the chunks of an image."""
    return core_pool(config, device, math.ceil(config.height * config.width / chunk_size(config, device)))


def piece_size(config: Config, R: int, device: torch.device) -> int:
    """How many of a target's R rays go forward and backward together."""
    return config.piece or (R if device.type == "cuda" else min(256, max(64, math.ceil(R / torch.get_num_threads()))))


def step_pool(config: Config, device: torch.device) -> ThreadPoolExecutor | None:
    """The pool for a training step: for its targets, or for the pieces of a single one."""
    R = max(1, config.rays // config.targets)
    return core_pool(config, device, config.targets if config.targets > 1 else math.ceil(R / piece_size(config, R, device)))


def pick_device(name: str) -> torch.device:
    """"auto" takes CUDA where there is some."""
    if name == "cuda" and not torch.cuda.is_available():
        raise data.DataError("--device cuda: this PyTorch sees no GPU; leave the flag out")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def lock_folder(out: Path):
    """Take a run folder for this process, until it ends, however it ends -> the open lock file; None if another process has it."""
    out.mkdir(parents=True, exist_ok=True)
    lock = open(out / ".lock", "a")
    try:
        if os.name == "nt":
            import msvcrt
            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(out / ".lock").st_ino == os.fstat(lock.fileno()).st_ino:   # not just deleted by the one who had it
            return lock
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK, errno.ENOENT):
            return lock                                                       # a file system without locks
    lock.close()


def free_folder(wanted: str | None, name: str) -> tuple[Path, object]:
    """--out, or runs/NAME, runs/NAME-2 ...: a folder without a run, and its lock, to be kept. DataError if --out has a run."""
    for count in itertools.count(1):
        out = Path(wanted or Path("runs") / (name if count == 1 else f"{name}-{count}"))
        taken = (out / "checkpoint.pt").exists() if wanted else out.exists() and any(p.name != ".lock" for p in out.iterdir())
        lock = None if taken else lock_folder(out)
        if lock and not (out / "checkpoint.pt").exists():                     # the one before us may have finished just now
            return out, lock
        if wanted:
            raise not_free(out)


def not_free(out: Path) -> data.DataError:
    """What to tell somebody whose --out has a run already, or a run of another process that has not come so far."""
    if (out / "checkpoint.pt").exists():
        return data.DataError(f"{out}: holds a run already; --resume continues it, another --out starts a new one")
    return data.DataError(f"{out}: another process trains in it; name another --out")


def folder_to_resume(wanted: str | None, rank: int = 0) -> tuple[Path, object]:
    """--out with --resume: the folder of a run and, for rank 0, its lock, to be kept. DataError if there is none, or it is on."""
    if not wanted:
        raise data.DataError("--resume continues the run in --out; name that folder")
    out = Path(wanted)
    if not (out / "checkpoint.pt").exists():
        raise data.DataError(f"{out / 'checkpoint.pt'}: no such checkpoint; a run killed before its first step starts again with "
                             "the command that started it")
    if rank:
        return out, None
    lock = lock_folder(out)
    if not lock:
        raise data.DataError(f"{out}: another process trains in it; wait for its end")
    for part in out.glob(".checkpoint*"):                                     # of a writer that was killed
        part.unlink()
    return out, lock


def parse_arguments() -> argparse.Namespace:
    """The command line: what to train on and where to write, then one flag for each setting."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--scene", default="scannet", help="rooms | scannet | replica | PATH of a scene or a folder of them [scannet]")
    parser.add_argument("--data", help="folder that holds the scene folders [data/scannet, data/replica, data/rooms]")
    parser.add_argument("--preset", choices=PRESETS, help="[paper with CUDA and real data, else laptop]")
    parser.add_argument("--scenes", help="a,b,c: train on these scenes [the training side of the split]")
    parser.add_argument("--split", help="file of lines 'train NAME', 'test NAME' [ROOT/split.txt if there]")
    parser.add_argument("--out", help="folder of the run [runs/...]")
    parser.add_argument("--cache", default="cache", help="folder for decoded frames [cache]")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out from its last checkpoint")
    parser.add_argument("--finetune", metavar="CKPT", help="start from these weights, on the source and fine-tuning views of "
                        "--scenes; the 4 test views stay untouched")
    parser.add_argument("--labels", metavar="FOLDER", help="train on the labels in FOLDER/SCENE/FRAME.png (pseudo labels, ids as in "
                        "label-filt) instead of the scenes' own; evaluation never sees them")
    parser.add_argument("--encoder", metavar="CKPT", help="start the encoder, and the 1x1 head that --source-loss trains, from this "
                        "checkpoint's; the rest from random weights")
    parser.add_argument("--init", metavar="CKPT", help="start every weight from this checkpoint's, say of a training at a smaller "
                        "size, with data, settings and optimiser of this training's own")
    parser.add_argument("--export", metavar="PATH", help="only write the weights of the run in --out (with --resume) to PATH, in "
                        "half precision, and stop")
    parser.add_argument("--no-eval", action="store_true", help="do not run 08_eval.py at the end")
    add_settings(parser)
    return parser.parse_args()


def starting_point(args: argparse.Namespace) -> tuple[Config, dict | None, str, str]:
    """-> settings, the checkpoint to start from (None: random weights), a name for the run folder, why these settings.

    --resume takes the run's own settings and --finetune the checkpoint's, else a preset; flags given go on top.
    """
    state, name = None, "finetune"
    if args.resume:
        model, state = load_checkpoint(Path(args.out) / "checkpoint.pt")
        if "optimiser" not in state and not args.export:
            raise data.DataError(f"{args.out}: its checkpoint has weights only, without an optimiser; go on from it with --finetune")
        base, why = asdict(model.config), "the run's own settings"
    elif args.finetune:
        model, state = load_checkpoint(args.finetune)
        # one scene: two targets would have nearly the same sources encoded twice
        base = {**asdict(model.config), "steps": 2000, "lr": 5e-4, "extra_views": 0, "targets": 1}
        why = f"the settings of {args.finetune}, 2000 steps, a target each"
    else:
        real = args.scene != "rooms" and (args.scene != "scannet" or args.data or Path("data/scannet").is_dir())
        name = args.preset or ("paper" if real and torch.cuda.is_available() else "laptop")
        base = {**asdict(Config()), **PRESETS[name], **(REPLICA if (name, args.scene) == ("paper", "replica") else {})}
        why = f"preset {name}: " + ("you asked for it" if args.preset else "CUDA and real data" if name == "paper" else
                                    "no real data" if torch.cuda.is_available() else "no CUDA")
    given = {f.name: getattr(args, f.name) for f in fields(Config) if getattr(args, f.name) is not None}
    return Config(**{**base, **given}), state, name, why


def training_frames(scene, run: dict, config: Config) -> list[int]:
    """What may be drawn from a training scene: all frames; never the test views of a scene that will be evaluated or validated on;
    in fine-tuning the 8 source and 8 fine-tuning views alone. DataError if too few."""
    frames = list(range(len(scene)))
    if scene.name in run["test"] or scene.name in run["train"][:config.validation]:
        source, tune, test = data.protocol(scene)
        frames = sorted(source + tune) if run["finetuned"] else [i for i in frames if i not in test]
        assert not set(frames) & set(test), "a test view among the training frames"
    if len(frames) < config.views + 1:
        raise data.DataError(f"{scene.folder}: {len(frames)} usable frames, but {config.views} source views and a target are "
                             "asked for; leave the scene out or lower --views")
    return frames


def decode_all(scenes: list, frames: list, quiet: bool = False) -> list:
    """Decode every frame that is not in the cache yet, on all cores, with progress: the first pass over the files, after which
    training reads decoded frames only. -> frames, without those that cannot be read (Scene.skip)."""
    todo = [(scene, i) for scene, indices in zip(scenes, frames) for i in indices if not scene.cached(i)]
    if todo:
        with ThreadPoolExecutor(os.cpu_count()) as pool, \
                tqdm(total=len(todo), desc="decoding frames, first time only", unit="frame", disable=quiet,
                     mininterval=0.5 if sys.stderr.isatty() else 15) as bar:
            for (scene, i), error in zip(todo, pool.map(lambda one: one[0].attempt(one[1]), todo)):
                if error:
                    scene.skip(scene.frames[i], error)
                bar.update()
    return [scene.readable(indices) for scene, indices in zip(scenes, frames)]


def main() -> None:
    prepare_cpu()
    args = parse_arguments()
    rank, world = join_processes()
    launcher = "python" if world == 1 else f"torchrun --nproc-per-node {os.environ['LOCAL_WORLD_SIZE']}"
    if args.resume:
        out, lock = folder_to_resume(args.out, rank)
    elif args.out and (Path(args.out) / "checkpoint.pt").exists():
        raise not_free(Path(args.out))
    config, state, name, why = starting_point(args)
    if args.export:
        if not args.resume:
            raise data.DataError(f"--export {args.export}: needs --resume --out RUN, the run whose weights are meant")
        export_weights(Path(args.export), state)
        file = Path(args.export).read_bytes()
        print(f"{args.export}: {len(file) / 1e6:.2f} MB, step {state['step']}, sha256 {hashlib.sha256(file).hexdigest()}")
        return
    check(config)
    for flag in ("encoder", "init"):
        if getattr(args, flag) and (state or flag == "init" and args.encoder):
            raise data.DataError(f"--{flag}: is for new trainings; --resume, --finetune and --encoder have weights already")
    start = args.encoder or args.init
    given = load_checkpoint(start)[1] if start else None                      # complains before any data is made or decoded
    if max(1, config.rays // config.targets) * config.targets < world:
        raise data.DataError(f"--rays {config.rays}: fewer than the {world} processes that share them")
    device = pick_device(config.device)
    print(f"{why}; {config.width}x{config.height}, {config.views} source views, {config.rays} rays, "
          f"{config.coarse}+{config.fine} samples, {config.steps} steps, {device}", flush=True)

    with first_on_this_machine():
        if args.resume:                                                           # the run knows its data
            run = dict(state["run"])
        else:
            names = args.scenes.split(",") if args.scenes else None
            found = data.find_dataset(args.scene, args.data, config.train_rooms, config.test_rooms, names, args.split,
                                      varied_rooms=config.varied_rooms)
            if args.finetune and not names:
                found.train = found.test[:1] or found.train[:1]                   # one unseen scene
            # one space only, or fine-tuning: evaluate on the training scenes' own test views, and keep them out of training
            test = found.train if args.finetune else found.test or found.train
            run = {"data": found.kind, "root": str(found.root), "train": found.train, "test": test,
                   "finetuned": bool(args.finetune), "labels": args.labels, "seconds": 0.0}
            name = f"{found.kind}-{name}"
        run["command"] = " ".join([launcher, *sys.argv])
        data.check_names(run["train"] + run["test"], run["root"])
        with tqdm(run["train"], desc="reading poses", unit="scene", leave=False, disable=rank > 0) as bar:
            scenes = [data.Scene(Path(run["root"]) / scene, config.height, config.width, Path(args.cache), config.every,
                                 run.get("labels")) for scene in bar]
        frames = [training_frames(scene, run, config) for scene in scenes]
        same = " (the same: their 4 test views are kept out of training)" if set(run["train"]) & set(run["test"]) else ""
        print(f"data: {run['data']} in {run['root']}; {len(scenes)} scenes to train on, {len(run['test'])} to evaluate on{same}",
              flush=True)
        own = [scene.name for scene in scenes if scene.near_far]
        if own:
            print(f"near and far: each scene's own near_far.txt instead of {config.near:g} to {config.far:g} in {len(own)} of them: "
                  + ", ".join(own[:4]) + ", ..." * (len(own) > 4), flush=True)
        classes = scenes[0].classes
        if state:
            known = data.Classes(**state["classes"]) if "classes" in state else data.SCANNET
            if known.names != classes.names and any(scene.has_labels for scene in scenes):
                raise data.DataError(f"{run['root']}: {data.other_classes(known, classes)}; start without these weights")
            classes = known
        frames = decode_all(scenes, frames)

    torch.manual_seed(config.seed)
    model = SRay(config, classes)
    if state:
        try:
            model.load_state_dict(state["model"])
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()[:100]
            raise data.DataError(f"{args.finetune or args.out}: weights of another shape ({reason}); drop the flag that changes "
                                 "the model") from None
    if given:
        taken = {k: x.float() for k, x in given["model"].items() if args.init or k.startswith(("encoder.", "source_head."))}
        if taken["source_head.weight"].shape != model.source_head.weight.shape:
            raise data.DataError(f"{start}: for {len(taken['source_head.bias'])} classes, the scenes have {len(classes.names)}; "
                                 "name another checkpoint")
        try:
            model.load_state_dict(model.state_dict() | taken)
        except RuntimeError as error:
            raise data.DataError(f"{start}: weights of another model ({str(error).splitlines()[-1].strip()[:100]}); drop the flag "
                                 "that changes the model") from None
    model.to(device)
    optimiser = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    if args.resume:
        optimiser.load_state_dict(state["optimiser"])
    if rank == 0 and not args.resume:
        out, lock = free_folder(args.out, name)
    elif not args.resume:
        out = Path(os.devnull)                                                # rank 0 alone writes
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters; run folder {out}", flush=True)
    how = f"{launcher} {sys.argv[0]} --resume --out {out}" + (f" --cache {args.cache}" if args.cache != "cache" else "")
    try:
        with asked_to_stop() as stop:
            train(model, optimiser, scenes, frames, out, run, state["step"] if args.resume else 0, device, stop)
    except Stopped as stopped:
        if rank == 0:
            print(f"stopped at step {stopped} of {config.steps}; everything is saved; continue with: {how}", file=sys.stderr)
        raise SystemExit(130) from None
    except KeyboardInterrupt:
        raise data.DataError(f"interrupted; steps since the last checkpoint are lost; continue with: {how}") from None
    finally:
        if rank == 0 and not (out / "checkpoint.pt").exists():                # not even the first one: leave no empty run
            with suppress(OSError):
                for name in ("log.csv", ".lock"):
                    (out / name).unlink(missing_ok=True)
                out.rmdir()
    if world > 1:
        dist.destroy_process_group()
    if rank == 0:
        training_curves(out)
    if rank == 0 and not args.no_eval:                                        # in one process: the others are done
        raise SystemExit(subprocess.call([sys.executable, str(Path(__file__).with_name("08_eval.py")), "--checkpoint",
                                          str(out / "checkpoint.pt"), "--out", str(out / "eval"), "--cache", args.cache],
                                         env={**os.environ, "WORLD_SIZE": "1"}))


if __name__ == "__main__":
    data.run_script(main)
