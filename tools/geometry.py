"""Geometry that carries over: train S-Ray on rooms whose true depth is known, with or without their labels.

    python -m tools.geometry --scene data/wide --lambda1 0 --out runs/geometry            # depth and colour
    python -m tools.geometry --scene data/wide --init runs/geometry/checkpoint.pt         # and labels

Where a wall is plain, a photograph's colours say little about depth, and labels say less. What a model learns
from them is the usual room, by heart (results/choices.md). Our rooms know their depth; a sensor knows that of
ScanNet. The paper's losses do not use it, so 07_train.py does not: this is a training of its own. Each level
adds to eq. 2, for rays of known depth d:

    |depth - d| / d - SPREAD log(weight near d)      a sample counts less, the further it is from d: none of
                                                     it one coarse bin away

Flags are 07_train.py's. With --lambda1 0 nothing of Tables 9 and 10 runs. Column "semantic" of log.csv holds
these terms beside eq. 1.
Dimension key: R rays, S samples.     Test: pytest tests/test_tool_geometry.py
"""
import os
from argparse import Namespace
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor

import fast
from fast.step import StepOnCores
from support import machine, runs, starting
from support.files import DataError, run_script
from tools.variants import TrueDepth

data = import_module("01_data")                    # rays
rooms = import_module("00_rooms")                  # make_rooms
geometry = import_module("06_geometry_render")     # samples, volume rendering
training = import_module("07_train")               # Config, SRay, losses, train

SPREAD, LEAST = 0.1, 1e-2     # of the loss; so much weight is everywhere


def depth_losses(level: dict, truth: Tensor, length: Tensor | float) -> tuple[Tensor, Tensor]:
    """A level's z, weights (R, S), depth (R,), true depth (R,), 0 where unknown, metres of a coarse bin ->
    the relative error (R,), and -log of the weight near the truth (R,): 0 where it is unknown."""
    known = truth > 0
    error = (level["depth"] - truth).abs() / truth.clamp(min=1e-6)            # (R,)
    close = (1 - (level["z"] - truth[:, None]).abs() / length).clamp(min=0)   # (R, S)
    # weight[r] = sum_s w[r,s] close[r,s]
    weight = torch.einsum("rs,rs->r", level["weights"], close)
    return error * known, -(weight + LEAST).log() * known


def without_labels(model, sources, pixels: Tensor, K: Tensor, c2w: Tensor, jitter: Tensor) -> dict:
    """As SRay.forward, nothing of Tables 9 and 10 -> of both levels z, weights (R, S), depth (R,), colour (R,
    3)."""
    c, (near, far) = model.config, training.depth_range(model.config, sources)
    origin, directions = data.rays(pixels, K, c2w)                            # (3,), (R, 3)
    first, second = jitter.split([c.coarse, c.fine], dim=1)
    z, found = geometry.coarse_samples(near, far, len(pixels), c.coarse, first, pixels.device), {}
    for name, level in (("coarse", model.coarse), ("fine", model.fine)):
        _, sigma, colours = level.context_and_density(origin, directions, z, sources)
        delta = geometry.sample_lengths(z, far, directions.norm(dim=-1))      # (R, S)
        weights = geometry.rendering_weights(sigma, delta * (c.far / far))    # (R, S)
        found[name] = {"z": z, "weights": weights, "colour": geometry.render(weights, colours),
                       "depth": (weights * z).sum(1) / weights.sum(1).clamp(min=1e-6)}
        z = geometry.fine_samples(z, weights, c.fine, second)
    return found


def batch_loss(truth: TrueDepth, model, sources, batch, rays: Tensor, jitter: Tensor) -> tuple:
    """07's batch_loss, with the depth terms. truth: knows the target's depth."""
    c, labels = model.config, batch.labels[rays]
    target = batch.pixels[rays], batch.K, batch.c2w, jitter[rays]
    u, v = batch.pixels.long().unbind(-1)
    depth = truth.of(batch.c2w)[v, u]                                         # (R,) of the whole batch
    near, far = training.depth_range(c, sources)
    result = model(sources, *target) if c.lambda1 else without_labels(model, sources, *target)
    terms = [depth_losses(level, depth[rays], (far - near) / c.coarse) for level in result.values()]
    error, spread = (sum(x).sum() / (depth > 0).sum().clamp(min=1) for x in zip(*terms))
    if c.lambda1:
        semantic, photometric = training.losses(result, batch.colours[rays], labels)
        known = labels != data.IGNORE, batch.labels != data.IGNORE
        semantic = semantic * known[0].sum() / known[1].sum().clamp(min=1)
    else:
        photometric = sum(F.mse_loss(level["colour"], batch.colours[rays]) for level in result.values())
        semantic = torch.zeros_like(photometric)
    photometric = photometric * (len(rays) / len(batch.labels))
    semantic = c.lambda1 * semantic + error + SPREAD * spread
    loss = semantic + c.lambda2 * photometric
    return loss, torch.stack([semantic, photometric, torch.zeros_like(loss), loss]).detach()


def step_with_depth(truth: TrueDepth, workers: int) -> StepOnCores:
    """07's training_step with this file's batch_loss."""
    def with_truth(*args) -> tuple:
        """batch_loss."""
        return batch_loss(truth, *args)
    return StepOnCores(Namespace(batch_loss=with_truth, source_view_loss=training.source_view_loss,
                                 generator_of=training.generator_of, PARTS=training.PARTS), workers)


def main() -> None:
    machine.prepare_cpu()
    args = starting.parse_arguments(__doc__.split("\n")[0], training.Config, training.PRESETS)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise DataError("torchrun: tools.geometry is one process; start it with python")
    out, lock = runs.folder_to_resume(args.out) if args.resume else (None, None)
    config, state, name = starting.starting_point(args, training.Config, training.PRESETS, training.REPLICA,
                                                  training.load_checkpoint)
    run, scenes, frames, classes, name = starting.load_data(args, config, state, name, data, rooms)
    truth = TrueDepth()
    truth.add(scenes)
    if not any(scene.views([i]).depth.any() for scene in scenes for i in range(len(scene))):
        raise DataError(f"{scenes[0].folder.parent}: no scene has depth, which tools.geometry learns from; "
                        "train with 07_train.py")
    torch.manual_seed(config.seed)
    model = training.SRay(config, classes)
    starting.load_weights(model, args, state)
    model, _ = fast.faster(model.to(machine.pick_device(args.device)), training.training_step, args)
    optimiser = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    if args.resume:
        runs.resume_optimiser(optimiser, state, out)
    else:
        out, lock = runs.free_folder(args.out, name)
    with lock, runs.ending(out, starting.resume_command(args, out), 0) as stop:
        training.train(model, optimiser, scenes, frames, out, run, state["step"] if args.resume else 0, args,
                       stop, step_with_depth(truth, args.workers))


if __name__ == "__main__":
    run_script(main)
