"""S-Ray assembled from 02-06, its losses, training and fine-tuning.

    python 07_train.py --scene scannet              60 scenes of data/scannet; where there is none, our own rooms
    python 07_train.py --scene PATH --preset smoke  any scene in the ScanNet layout, in seconds
    python 07_train.py --finetune CKPT --scene PATH --scenes NAME --steps 2000

The model: one encoder (Table 8, L1-L19), run once per source view; a coarse and a fine level, each with heads
of its own (L20-L22, Tables 9, 10, 11). The coarse level's rendering weights place the fine level's samples. A
training step sees a random target view of a random scene, V of its nearest views as sources, R of its pixels:

    L_sem   = mean over labelled rays of CE(coarse logits) + CE(fine logits)                    (eq. 1)
    L       = lambda1 L_sem + lambda2 L_photometric  (mean squared error, coarse + fine)        (eq. 2)
            + source_loss * CE of the encoder's features through a 1x1 head on the source views

Eq. 1 is a sum over the rays in the supplement. Ours is a mean, so that lambda1 does not depend on how many
rays a step has or how many of them are labelled. The last term is not in the paper: 0 at the paper's
settings.

The random draws of step i depend on (seed, i) only, so a resumed run continues exactly, whatever stopped it.

Dimension key: R rays, S samples, V source views, C channels, L classes, E extra views, N = V + E.
Test: pytest tests/test_07_train.py
"""
import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")    # read when torch starts its threads: do not spin

import argparse
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from support import datasets, frames, machine, processes, runs, settings
from support.files import DataError, run_script
from support.labels import other_classes
from support.settings import setting

rooms = import_module("00_rooms")                  # make_rooms, where there is no dataset
data = import_module("01_data")                    # Scene, Views, rays, training_pair, protocol
encoder = import_module("02_encoder")              # Encoder
reprojection = import_module("03_reprojection")    # Reprojection -> M
cra = import_module("04_cra")                      # CRA -> M''
weighting = import_module("05_weighting")          # WeightNetwork, semantic_ray
geometry = import_module("06_geometry_render")     # GeometryNetwork, samples, volume rendering


@dataclass
class Config:
    """The method, its data and its schedule. Defaults: the paper's, or where it is silent what was
    measured."""
    height: int = setting(240, "image height (section 1: 320x240 on ScanNet)", least=32)
    width: int = setting(320, "image width", least=32)
    views: int = setting(8, "V, source views (section 1)", least=1)
    pool: int = setting(12, "sources are sampled from this many nearest views", least=1)
    angle_weight: float = setting(1.0, "metres that a radian between viewing directions counts in 'nearest'")
    every: int = setting(1, "take every n-th frame of a scan", least=1)
    targets: int = setting(1, "target views a step, each of a scene of its own", least=1)
    rays: int = setting(1024, "R, rays a step, shared among its targets", least=1)
    coarse: int = setting(64, "S, coarse samples a ray", least=1)
    fine: int = setting(64, "fine samples a ray", least=1)
    near: float = setting(0.3, "nearest sample, metres along z")
    far: float = setting(8.0, "farthest sample, metres along z")
    spacing: str = setting("linear", "coarse samples even in: linear (depth) | disparity | mix (their mean)",
                           choices=("linear", "disparity", "mix"))
    cra: str = setting("full", "attention, Tables 2-3: none | intra | cross | full | dense", choices=cra.MODES)
    cra_relu: bool = setting(True, "ReLU on the attentions' output (Table 9, L4 and L6)")
    geometry_relu: bool = setting(True, "ReLU on the attention's output (Table 11, L9)")
    position: str = setting("index", "position embedding of a sample's index | depth (its place in inverse depth)",
                            choices=("index", "depth"))
    tau: float = setting(0.7, "eq. 3's tau in (0, 1] (Table 4)")
    density: str = setting("softplus", "activation of sigma: softplus | relu (Table 11, L11)",
                           choices=("softplus", "relu"))
    encoder_activation: str = setting("elu", "activation of Table 8's L11-L18: elu | none, as the table lists",
                                      choices=("elu", "none"))
    lambda1: float = setting(1.0, "eq. 2: weight of the semantic loss (Table 1)")
    lambda2: float = setting(1.0, "eq. 2: weight of the photometric loss")
    source_loss: float = setting(0.0, "weight of the cross-entropy on the source views' labels (not in the paper)")
    extra_views: int = setting(0, "further views for each target, of other scenes, for that loss alone", least=0)
    colour_jitter: float = setting(0.0, "a training scene's light changes by up to this share (not in the paper)",
                                   least=0)
    steps: int = setting(260_000, "training steps (section 1)", least=1)
    lr: float = setting(1e-3, "Adam's first learning rate")
    lr_final: float = setting(5e-5, "and its last (cosine in between)")
    clip: float = setting(10.0, "gradient norm is clipped here")
    train_rooms: int = setting(60, "with --scene rooms: rooms to train on (section 1: 60 scenes)", least=0)
    test_rooms: int = setting(10, "with --scene rooms: unseen rooms to evaluate on (section 1: 10)", least=0)
    seed: int = setting(0, "seed of weights and of every random draw")


PRESETS = {   # what differs from the paper's sizes
    "paper": {},
    "laptop": dict(height=96, width=128, views=5, targets=2, extra_views=10, rays=128, coarse=24, fine=24,
                   steps=2000, lr=3e-3, source_loss=5.0, train_rooms=150),
    "smoke": dict(height=48, width=64, views=4, rays=64, coarse=8, fine=8, steps=30, source_loss=1.0,
                  train_rooms=2, test_rooms=1),
}
REPLICA = dict(height=480, width=640, steps=100_000)  # what section 1 changes in the paper preset for Replica
ABSENT = {"geometry_relu": False}  # what a checkpoint without this setting was made with
REMOVED = {"union": False, "pooling": "mean", "use_delta": True}  # settings that are gone: what all have now


# ------------------------------------------------------------------------------------------- the model

class Sources(NamedTuple):
    """A source set, encoded once."""
    features: Tensor                  # (V, C, h, w)
    images: Tensor                    # (V, 3, H, W)
    K: Tensor                         # (V, 3, 3)
    c2w: Tensor                       # (V, 4, 4)
    near_far: Tensor | None = None  # (V, 2) where the scene knows better than the settings (its near_far.txt)


class LevelContext(NamedTuple):
    """What a level keeps of its samples from context_and_density to semantics."""
    M: Tensor                         # (R, S, V, C)
    differences: Tensor               # (R, S, V, 4)
    mask: Tensor                      # (R, S, V)
    visibility: Tensor                # (R, S, V, 1)
    index: Tensor | None              # (R, S) positions to embed; None: 0 .. S-1


def depth_range(config: Config, sources: Sources) -> tuple:
    """Nearest and farthest sample along z: the scene's own (0-dimensional tensors), or the settings'."""
    return (config.near, config.far) if sources.near_far is None else sources.near_far[0].unbind()


class Level(nn.Module):
    """One level's heads: reprojection (Table 8, L20-L22), CRA (Table 9), weights (Table 10), geometry (Table
    11)."""

    def __init__(self, config: Config, classes: int):
        super().__init__()
        self.config = config
        self.reprojection = reprojection.Reprojection()
        self.geometry = geometry.GeometryNetwork(density=config.density, relu=config.geometry_relu)
        self.cra = cra.CRA(config.cra, relu=config.cra_relu)
        self.weights = weighting.WeightNetwork(tau=config.tau)
        self.head = nn.Linear(encoder.CHANNELS, classes)

    def context_and_density(self, origin: Tensor, directions: Tensor, z: Tensor, sources: Sources,
                            colour: bool = True) -> tuple[LevelContext, Tensor, Tensor | None]:
        """Rays, origin (3,), directions (R, 3), at depths z (R, S) -> the context of the samples, their
        density (R, S) and colour (R, S, 3), None unless asked for. Density reads M: nothing of Tables 9 and
        10 runs."""
        points = origin + z[..., None] * directions[:, None]                  # (R, S, 3)
        M, colours, differences, mask = self.reprojection(points, origin, *sources[:4], colour)
        index = None
        if self.config.position == "depth":
            near, far = depth_range(self.config, sources)
            index = z.shape[1] * (1 / near - 1 / z) / (1 / near - 1 / far)    # (R, S) in 0 .. S
        sigma, colours, visibility = self.geometry(M, colours, differences, mask, index)
        return LevelContext(M, differences, mask, visibility, index), sigma, colours

    def semantics(self, context: LevelContext) -> tuple[Tensor, Tensor]:
        """-> logits (R, S, L) and view weights w (R, S, V)."""
        M, differences, mask, visibility, index = context
        refined = self.cra(M, mask, index)                                    # M'': (R, S, V, C)
        w = self.weights(M, differences, visibility, mask)                    # (R, S, V) in C(tau)
        return self.head(weighting.semantic_ray(w, refined)), w


class SRay(nn.Module):
    """The whole of S-Ray: encode() once per source set, forward() for any rays of any target camera.

    level: the class of its two levels, this file's Level or another with the same two methods and parameters.
    """

    def __init__(self, config: Config, classes: "data.Classes" = data.SCANNET, level: type = Level):
        super().__init__()
        self.config, self.classes = config, classes
        self.encoder = encoder.Encoder(config.encoder_activation)
        self.coarse, self.fine = level(config, len(classes.names)), level(config, len(classes.names))
        # a 2D segmenter, for source_loss
        self.source_head = nn.Conv2d(encoder.CHANNELS, len(classes.names), 1)

    def encode(self, views: "data.Views") -> Sources:
        """Views (V) -> Sources. The features depend on the source views alone: once per source set."""
        return Sources(self.encoder(views.images), views.images, views.K, views.c2w, views.near_far)

    def segment(self, images: Tensor) -> Tensor:
        """What source_loss trains, the encoder and a 1x1 head: images (V, 3, H, W) -> logits (V, L, H, W)."""
        logits = self.source_head(self.encoder(images))  # (V, L, h, w), every fourth pixel
        return encoder.upsample_onto(encoder.upsample_onto(logits, images[..., ::2, ::2]), images)

    def render_level(self, level: nn.Module, origin: Tensor, directions: Tensor, z: Tensor, sources: Sources,
                     density_only: bool = False) -> dict[str, Tensor]:
        """A level at samples at depths z (R, S) -> z, weights (R, S), depth (R,) in metres along z; and
        unless density_only: colour (R, 3), logits (R, L), view weights w (R, S, V)."""
        context, sigma, colours = level.context_and_density(origin, directions, z, sources, not density_only)
        far = depth_range(self.config, sources)[1]
        # directions are as long as a metre of z is along the ray
        delta = geometry.sample_lengths(z, far, directions.norm(dim=-1))      # (R, S)
        # a scene with a far of its own: in metres, were its far the settings'; its unit does not matter
        weights = geometry.rendering_weights(sigma, delta * (self.config.far / far))          # (R, S)
        depth = (weights * z).sum(1) / weights.sum(1).clamp(min=1e-6)  # (R,) finite where nothing is met
        result = {"z": z, "weights": weights, "depth": depth}
        if not density_only:
            logits, w = level.semantics(context)                              # (R, S, L), (R, S, V)
            result |= {"colour": geometry.render(weights, colours), "logits": geometry.render(weights, logits), "w": w}
        return result

    def forward(self, sources: Sources, pixels: Tensor, K: Tensor, c2w: Tensor, jitter: Tensor | None = None,
                fine_only: bool = False) -> dict[str, dict[str, Tensor]]:
        """Pixels (R, 2) of the target camera K (3, 3), c2w (4, 4) -> {"coarse": ..., "fine": ...} of
        render_level.

        jitter (R, coarse + fine) in [0, 1) moves the samples (training); None: fixed samples. fine_only
        (inference): the coarse samples get a density, which places the fine ones, and nothing else."""
        c, (near, far) = self.config, depth_range(self.config, sources)
        origin, directions = data.rays(pixels, K, c2w)                        # (3,), (R, 3)
        first, second = (None, None) if jitter is None else jitter.split([c.coarse, c.fine], dim=1)
        # (R, S)
        z = geometry.coarse_samples(near, far, len(pixels), c.coarse, c.spacing, first, pixels.device)
        coarse = self.render_level(self.coarse, origin, directions, z, sources, fine_only)
        z = geometry.fine_samples(z, coarse["weights"], c.fine, second)       # (R, fine)
        return {"coarse": coarse, "fine": self.render_level(self.fine, origin, directions, z, sources)}

    @torch.no_grad()
    def render_image(self, sources: Sources, K: Tensor, c2w: Tensor, height: int, width: int, chunk: int = 0,
                     stride: int = 1) -> dict[str, Tensor]:
        """A whole target image: colour (H, W, 3), logits (H, W, L), depth (H, W). chunk: rays rendered
        together (0: some 16,384 samples' worth). stride n: every n-th row and column of it alone."""
        # (h, w, 2)
        grid = data.pixel_grid(height, width).view(height, width, 2)[::stride, ::stride].to(K.device)
        chunk = chunk or max(1, 2 ** 14 // max(self.config.coarse, self.config.fine))
        parts = [self(sources, pixels, K, c2w, fine_only=True)["fine"] for pixels in grid.flatten(0, 1).split(chunk)]
        return {key: torch.cat([part[key] for part in parts]).unflatten(0, grid.shape[:2])
                for key in ("colour", "logits", "depth")}


def load_checkpoint(path: str | Path, level: type = Level) -> tuple[SRay, dict]:
    """A checkpoint -> model on the CPU, and the whole dictionary. DataError if it is none of ours."""
    state = runs.read_state(Path(path))
    try:
        config = settings.read_settings(Config, state["config"], ABSENT, REMOVED)
        classes = data.Classes(**state["classes"]) if "classes" in state else data.SCANNET
        model = SRay(config, classes, level)
        model.load_state_dict(state["model"])
    except Exception as error:                # missing keys, other shapes, settings that no run could use
        raise runs.not_a_checkpoint(path, error) from None
    return model, state


# ------------------------------------------------------------------------------------------- losses

def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the labelled of logits (R, L), labels (R,); zero, with a zero gradient, if none is
    labelled."""
    total = F.cross_entropy(logits, labels, ignore_index=data.IGNORE, reduction="sum")
    return total / (labels != data.IGNORE).sum().clamp(min=1)


def losses(result: dict, colours: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 1 and eq. 2's L_photometric: both levels' results, true colours (R, 3), labels (R,)."""
    semantic = sum(cross_entropy(result[level]["logits"], labels) for level in ("coarse", "fine"))
    photometric = sum(F.mse_loss(result[level]["colour"], colours) for level in ("coarse", "fine"))
    return semantic, photometric


def source_view_loss(model: SRay, features: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of a 1x1 head on features (N, C, h, w) against the views' labels (N, H, W): feature (i,
    j) is centred on pixel (4i, 4j), so every fourth label is its truth."""
    logits = model.source_head(features).permute(0, 2, 3, 1)                  # (N, h, w, L)
    labels = labels[:, ::encoder.STRIDE, ::encoder.STRIDE]                    # (N, h, w)
    return cross_entropy(logits.flatten(0, 2), labels.flatten())


# ------------------------------------------------------------------------------------------- a training step

class Batch(NamedTuple):
    """One target, R rays of it, its source views, and further views for the source-view loss."""
    sources: "data.Views"             # V of them
    K: Tensor                         # (3, 3) of the target
    c2w: Tensor                       # (4, 4)
    pixels: Tensor                    # (R, 2)
    colours: Tensor                   # (R, 3)
    labels: Tensor                    # (R,)
    extra_images: Tensor              # (E, 3, H, W)
    extra_labels: Tensor              # (E, H, W)


def generator_of(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step: a resumed run draws what it would have drawn."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def relight(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """images (..., 3, H, W) in [0, 1] as another lamp and exposure would show them: a random gamma and a
    random gain of each channel, within a factor of 1 + amount. The same for all images: they still agree."""
    if not amount:
        return images
    change = (1 + amount) ** (2 * torch.rand(4, generator=generator) - 1)  # in 1 / (1 + amount) .. 1 + amount
    return (images ** change[0] * change[1:, None, None]).clamp(max=1)


def draw_batch(scene, frames: list[int], extra: list, config: Config, generator: torch.Generator,
               mine: bool = True) -> Batch | None:
    """A random target of a scene, sources, pixels; a view of each of the extra (scene, frames). Not mine, but
    another process's: the same draws, and nothing is read."""
    c, R = config, max(1, config.rays // config.targets)
    target, sources = data.training_pair(scene, c.views, generator, c.pool, frames, c.angle_weight)
    flat = torch.randint(c.height * c.width, (R,), generator=generator)
    picks = [(s, f[int(torch.randint(len(f), (), generator=generator))]) for s, f in extra]
    if not mine:
        return None
    views = scene.views([*sources, target])
    views = replace(views, images=relight(views.images, c.colour_jitter, generator))
    further = [s.views([i]) for s, i in picks]
    images = [relight(view.images, c.colour_jitter, generator) for view in further]
    truth = views[-1]  # the target's own photograph and labels
    return Batch(views[:-1], truth.K, truth.c2w, torch.stack([flat % c.width, flat // c.width], dim=-1).float(),
                 truth.images.flatten(1)[:, flat].T, truth.labels.flatten()[flat],
                 torch.cat([views.images[:0], *images]), torch.cat([views.labels[:0], *(v.labels for v in further)]))


def draw_batches(scenes: list, frames: list, config: Config, step: int) -> list[Batch | None]:
    """The `targets` batches of a step, each of a random scene, and extra views of further ones; no scene
    twice, while there are enough. frames[i]: what may be drawn of scene i."""
    generator = generator_of(config.seed, step)
    count = config.targets * (1 + config.extra_views)
    order = (torch.randperm(len(scenes), generator=generator).tolist() * count)[:count]
    R, batches = max(1, config.rays // config.targets), []
    for b in range(config.targets):
        pick, *others = order[b::config.targets]
        share = processes.share(R, config.targets, b)
        batches.append(draw_batch(scenes[pick], frames[pick], [(scenes[i], frames[i]) for i in others], config,
                                  generator, share.start < share.stop))
    return batches


def batch_loss(model: SRay, sources: Sources, batch: Batch, rays: Tensor, jitter: Tensor) -> tuple[Tensor, dict]:
    """The share of some rays (indices into the batch's) in eq. 2, and its parts: all shares sum to the
    loss."""
    labels, c = batch.labels[rays], model.config
    result = model(sources, batch.pixels[rays], batch.K, batch.c2w, jitter[rays])
    semantic, photometric = losses(result, batch.colours[rays], labels)       # means over these rays
    semantic = semantic * (labels != data.IGNORE).sum() / (batch.labels != data.IGNORE).sum().clamp(min=1)
    photometric = photometric * (len(rays) / len(batch.labels))
    loss = c.lambda1 * semantic + c.lambda2 * photometric
    return loss, {"semantic": semantic.detach(), "photometric": photometric.detach(), "loss": loss.detach()}


def batch_gradients(model: SRay, batch: Batch, generator: torch.Generator, mine: slice = slice(None),
                    piece: int = 0, pool: ThreadPoolExecutor | None = None) -> tuple[list, dict]:
    """The gradient of a batch's loss for each parameter (None: there is none), and the loss's parts. mine: of
    these rays alone.

    Once the source views are encoded the rays are independent: they go forward and backward `piece` at a time
    (0: all), so that memory does not grow with their number, with a pool a piece on each core. The features
    collect the gradients of all pieces, in order; the encoder goes backward once.
    """
    c, V, R = model.config, len(batch.sources.K), len(batch.pixels)
    parameters = [p for p in model.parameters() if p.requires_grad]
    features = model.encoder(torch.cat([batch.sources.images, batch.extra_images]))       # (N, C, h, w)
    leaf = features.detach().requires_grad_()
    sources = Sources(leaf[:V], batch.sources.images, batch.sources.K, batch.sources.c2w, batch.sources.near_far)
    jitter = torch.rand(R, c.coarse + c.fine, generator=generator).to(leaf.device)        # (R, 2 S)

    def gradients(rays: Tensor) -> tuple[tuple, dict]:
        """Of a piece of the loss, for the features and the parameters."""
        loss, parts = batch_loss(model, sources, batch, rays, jitter)
        return torch.autograd.grad(loss, [leaf, *parameters], allow_unused=True), parts
    numbers = torch.arange(R, device=leaf.device)[mine]
    found = list((pool.map if pool else map)(gradients, numbers.split(piece or R)))
    if c.source_loss:
        labels = torch.cat([batch.sources.labels, batch.extra_labels])        # (N, H, W)
        loss = source_view_loss(model, leaf, labels) * (len(numbers) / R)
        total = torch.autograd.grad(c.source_loss * loss, [leaf, *parameters], allow_unused=True)
        found.append((total, {"source": loss.detach(), "loss": c.source_loss * loss.detach()}))
    of_features, *sums = (add(column) for column in zip(*(column for column, _ in found)))
    encoded = torch.autograd.grad(features, parameters, of_features, allow_unused=True)
    parts = {key: sum(p[key] for _, p in found if key in p) for key in {k: 0 for _, p in found for k in p}}
    # a parameter is the encoder's or not
    return [a if b is None else b for a, b in zip(sums, encoded)], parts


def add(gradients) -> Tensor | None:
    """The sum of those that are there."""
    there = [g for g in gradients if g is not None]
    return sum(there[1:], there[0]) if there else None


def training_step(model: SRay, batches: list[Batch | None], step: int, piece: int = 0,
                  pool: ThreadPoolExecutor | None = None) -> dict[str, float]:
    """Set every .grad to the gradient of the batches' mean loss -> the mean of the loss and its parts. With a
    pool each batch, or the pieces of a single one, on a core of its own. Of several processes each does its
    share."""
    R, T = max(1, model.config.rays // model.config.targets), len(batches)
    mine = [(i, batch) for i, batch in enumerate(batches) if batch is not None]
    alone = len(mine) == 1

    def gradients(numbered: tuple[int, Batch]) -> tuple[list, dict]:
        """Of one batch."""
        i, batch = numbered
        share = processes.share(len(batch.pixels), T, i)
        return batch_gradients(model, batch, generator_of(model.config.seed + 1 + i, step), share, piece,
                               pool if alone else None)
    found = list((pool.map if pool and not alone else map)(gradients, mine))
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter, *column in zip(parameters, *(g for g, _ in found)):
        total = add(column)
        parameter.grad = total if total is None or T == 1 else total / T
    processes.add_gradients(parameters)
    parts = {key: sum(float(p[key]) for _, p in found) / T for key in found[0][1]}
    return dict(zip(parts, processes.sum_over_processes(*parts.values())))
