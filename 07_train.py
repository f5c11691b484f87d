"""S-Ray assembled from 02-06, its losses, training and fine-tuning.

    python 07_train.py --scene scannet              60 scenes of data/scannet; where there is none, our rooms
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
settings. What step i draws depends on (seed, i) alone: a resumed run continues exactly.

Dimension key: R rays, S samples, V source views, C channels, L classes, E extra views, N = V + E.
Test: pytest tests/test_07_train.py
"""
import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")    # read when torch starts its threads: do not spin

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support import augment, machine, processes, runs, settings, starting
from support.files import run_script
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
    """The method, its data and its schedule. Defaults: the paper's; where it is silent, and for Table 11's
    L11, what was measured (docs/choices.md)."""
    height: int = setting(240, "image height (section 1: 320x240 on ScanNet)", least=32)
    width: int = setting(320, "image width", least=32)
    views: int = setting(8, "V, source views (section 1)", least=1, most=1000)
    pool: int = setting(12, "sources are sampled from this many nearest views", least=1, most=1000000)
    angle_weight: float = setting(1.0, "metres that a radian between viewing directions counts in 'nearest'")
    every: int = setting(1, "take every n-th frame of a scan", least=1)
    targets: int = setting(1, "target views a step, each of a scene of its own", least=1, most=1000)
    rays: int = setting(1024, "R, rays a step, shared among its targets", least=1, most=10 ** 6)
    coarse: int = setting(64, "S, coarse samples a ray", least=1, most=4096)
    fine: int = setting(64, "fine samples a ray", least=1, most=4096)
    near: float = setting(0.3, "nearest sample, metres along z")
    far: float = setting(8.0, "farthest sample, metres along z")
    typical: float = setting(0.0, "near and far are scaled until a scene's median depth, by a plane sweep "
                             "over its views, is so many metres (0: as they are)", least=0, most=1000)
    cra: str = setting("full", "attention, Tables 2-3", choices=cra.MODES)
    cra_relu: bool = setting(True, "ReLU on the attentions' output (Table 9, L4 and L6)")
    geometry_relu: bool = setting(True, "ReLU on the attention's output (Table 11, L9)")
    places: int = setting(64, "positions on a ray, over which a level's samples are spread (Table 9, L2)",
                          least=2, most=4096)
    tau: float = setting(0.7, "eq. 3's tau in (0, 1] (Table 4)")
    density: str = setting("softplus", "activation of sigma (Table 11, L11)", choices=("softplus", "relu"))
    encoder_activation: str = setting("elu", "activation of Table 8's L11-L18", choices=("elu", "none"))
    lambda1: float = setting(1.0, "eq. 2: weight of the semantic loss (Table 1)")
    lambda2: float = setting(1.0, "eq. 2: weight of the photometric loss")
    source_loss: float = setting(0.0, "weight of the loss on the source views' labels (not the paper's)")
    extra_views: int = setting(0, "views of other scenes a target, for that loss alone", least=0, most=1000)
    colour_jitter: float = setting(0.0, "a scene's light changes up to so much (not the paper's)", least=0)
    steps: int = setting(260_000, "training steps (section 1)", least=1)
    lr: float = setting(1e-3, "Adam's first learning rate, after a warm-up over 1% of the steps")
    lr_final: float = setting(5e-5, "and its last (cosine in between)")
    clip: float = setting(10.0, "gradient norm is clipped here")
    train_rooms: int = setting(60, "--scene rooms: rooms to train on (section 1: 60)", least=0, most=5000)
    test_rooms: int = setting(10, "--scene rooms: others to evaluate on (section 1: 10)", least=0, most=1000)
    seed: int = setting(0, "seed of weights and of every random draw")


PRESETS = {   # what differs from the paper's sizes
    "paper": {},
    "laptop": dict(height=96, width=128, views=5, targets=2, extra_views=6, rays=128, coarse=24, fine=24,
                   places=24, steps=2200, lr=3e-3, source_loss=5.0, train_rooms=150),
    "smoke": dict(height=48, width=64, views=4, rays=64, coarse=8, fine=8, places=8, steps=30,
                  source_loss=1.0, train_rooms=2, test_rooms=1),
}
REPLICA = dict(height=480, width=640, steps=100_000)     # what section 1 changes for Replica
# what a checkpoint without this setting was made with, and settings that are gone: what is left
ABSENT = {"geometry_relu": False, "places": starting.places_of_indices}
REMOVED = {"union": False, "pooling": "mean", "use_delta": True, "position": "index",
           "spacing": "linear"}


# ------------------------------------------------------------------------------------------- the model
class Sources(NamedTuple):
    """A source set, encoded once. near_far: the scene's own, where it has a range of its own."""
    features: Tensor                  # (V, C, h, w)
    images: Tensor                    # (V, 3, H, W)
    K: Tensor                         # (V, 3, 3)
    c2w: Tensor                       # (V, 4, 4)
    near_far: Tensor | None = None    # (V, 2)
    mask: Tensor | None = None        # (V, H, W) bool: false where a pixel is no source


def depth_range(config: Config, sources: Sources) -> tuple:
    """Nearest and farthest sample along z: the scene's own (0-dimensional tensors), or the settings'."""
    return (config.near, config.far) if sources.near_far is None else sources.near_far[0].unbind()


class Level(nn.Module):
    """One level's heads: Table 8's reprojection, Table 9's CRA, Table 10's weights, Table 11's geometry."""

    def __init__(self, config: Config, classes: int):
        super().__init__()
        c = self.config = config
        self.reprojection = reprojection.Reprojection()
        self.geometry = geometry.GeometryNetwork(density=c.density, relu=c.geometry_relu, places=c.places)
        self.cra = cra.CRA(c.cra, relu=c.cra_relu, places=c.places)
        self.weights = weighting.WeightNetwork(tau=c.tau)
        self.head = nn.Linear(encoder.CHANNELS, classes)

    def context_and_density(self, origin: Tensor, directions: Tensor, z: Tensor, sources: Sources,
                            colour: bool = True) -> tuple:
        """Rays, origin (3,), directions (R, 3), at depths z (R, S) -> what semantics() reads, density sigma
        (R, S) in 1/m, colour (R, S, 3) or None. Nothing of Tables 9 and 10 runs."""
        points = origin + z[..., None] * directions[:, None]                  # (R, S, 3)
        M, colours, differences, mask = self.reprojection(points, origin, *sources[:4], colour, sources.mask)
        sigma, blended, visibility = self.geometry(M, colours, differences, mask)
        return (M, differences, mask, visibility), sigma, blended

    def semantics(self, context: tuple) -> tuple[Tensor, Tensor]:
        """context_and_density's context -> logits (R, S, L) and view weights w (R, S, V)."""
        M, differences, mask, visibility = context
        refined = self.cra(M, mask)                                           # M'': (R, S, V, C)
        w = self.weights(M, differences, visibility, mask)                    # (R, S, V) in C(tau)
        return self.head(weighting.semantic_ray(w, refined)), w               # (R, S, L)


class SRay(nn.Module):
    """The whole of S-Ray: encode() once per source set, forward() for any rays of any target camera. level:
    the class of its two levels, this file's Level or another with the same two methods and parameters."""

    def __init__(self, config: Config, classes: "data.Classes" = data.SCANNET, level: type = Level):
        super().__init__()
        self.config, self.classes = config, classes
        self.encoder = encoder.Encoder(config.encoder_activation)
        self.coarse, self.fine = level(config, len(classes.names)), level(config, len(classes.names))
        self.source_head = nn.Conv2d(encoder.CHANNELS, len(classes.names), 1)         # for source_loss

    def encode(self, views: "data.Views", features: Tensor | None = None) -> Sources:
        """Views (V) -> Sources. The features depend on the source views alone: once per source set."""
        features = self.encoder(views.images) if features is None else features           # (V, C, h, w)
        return Sources(features, views.images, views.K, views.c2w, views.near_far, views.mask)

    def render_level(self, level: nn.Module, origin: Tensor, directions: Tensor, z: Tensor, sources: Sources,
                     density_only: bool = False) -> dict[str, Tensor]:
        """A level at samples at depths z (R, S) -> z, weights (R, S), depth (R,) in metres along z; and
        unless density_only: colour (R, 3), logits (R, L), view weights w (R, S, V)."""
        context, sigma, colours = level.context_and_density(origin, directions, z, sources, not density_only)
        far = depth_range(self.config, sources)[1]
        # directions are as long as a metre of z is along the ray
        delta = geometry.sample_lengths(z, far, directions.norm(dim=-1))      # (R, S)
        # metres; a scene with a range of its own is scaled until its far is config.far
        weights = geometry.rendering_weights(sigma, delta * (self.config.far / far))      # (R, S)
        depth = (weights * z).sum(1) / weights.sum(1).clamp(min=1e-6)  # (R,) finite where nothing is met
        result = {"z": z, "weights": weights, "depth": depth}
        if not density_only:
            logits, w = level.semantics(context)                              # (R, S, L), (R, S, V)
            result |= {"colour": geometry.render(weights, colours), "w": w,
                       "logits": geometry.render(weights, logits)}
        return result

    def forward(self, sources: Sources, pixels: Tensor, K: Tensor, c2w: Tensor, jitter: Tensor | None = None,
                fine_only: bool = False) -> dict[str, dict[str, Tensor]]:
        """Pixels (R, 2) of a target camera K (3, 3), c2w (4, 4) -> render_level's "coarse" and "fine".

        jitter (R, coarse + fine) in [0, 1) moves the samples (training); None: fixed samples. fine_only
        (inference): the coarse samples get a density, which places the fine ones, and nothing else."""
        c, (near, far) = self.config, depth_range(self.config, sources)
        origin, directions = data.rays(pixels, K, c2w)                        # (3,), (R, 3)
        first, second = (None, None) if jitter is None else jitter.split([c.coarse, c.fine], dim=1)
        z = geometry.coarse_samples(near, far, len(pixels), c.coarse, first, pixels.device)   # (R, coarse)
        coarse = self.render_level(self.coarse, origin, directions, z, sources, fine_only)
        z = geometry.fine_samples(z, coarse["weights"], c.fine, second)       # (R, fine)
        return {"coarse": coarse, "fine": self.render_level(self.fine, origin, directions, z, sources)}

    @torch.no_grad()
    def render_image(self, sources: Sources, K: Tensor, c2w: Tensor, height: int, width: int, chunk: int = 0,
                     stride: int = 1) -> dict[str, Tensor]:
        """A target image, each stride-th row and column: colour (h, w, 3), logits (h, w, L), depth (h, w) in
        metres, h = ceil(H / stride). chunk: rays rendered together (0: as many as have 16,384 samples)."""
        grid = data.pixel_grid(height, width).view(height, width, 2)[::stride, ::stride]      # (h, w, 2)
        chunk = chunk or max(1, 2 ** 14 // max(self.config.coarse, self.config.fine))
        pixels = grid.flatten(0, 1).to(K.device).split(chunk)                 # (chunk, 2) each
        parts = [self(sources, part, K, c2w, fine_only=True)["fine"] for part in pixels]
        return {key: torch.cat([part[key] for part in parts]).unflatten(0, grid.shape[:2])
                for key in ("colour", "logits", "depth")}


def load_checkpoint(path: str | Path, level: type = Level) -> tuple[SRay, dict]:
    """A checkpoint -> model on the CPU, and the whole dictionary. DataError if it is none of ours."""
    state = runs.read_state(Path(path))
    try:
        config = starting.usable(settings.read_settings(Config, state["config"], ABSENT, REMOVED))
        classes = data.Classes(**state["classes"]) if "classes" in state else data.SCANNET
        model = SRay(config, classes, level)
        model.load_state_dict(state["model"])
    except Exception as error:                # missing keys, other shapes, settings that no run could use
        raise runs.not_a_checkpoint(path, error) from None
    return model, state


# ------------------------------------------------------------------------------------------- losses
def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:  # exercise: CE of eq. 1
    """Mean over the labelled of logits (R, L), labels (R,); zero, with a zero gradient, if none is."""
    total = F.cross_entropy(logits, labels, ignore_index=data.IGNORE, reduction="sum")
    return total / (labels != data.IGNORE).sum().clamp(min=1)


def losses(result: dict, colours: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:  # exercise: eqs. 1-2
    """Eq. 1 and eq. 2's L_photometric: both levels' results, true colours (R, 3), labels (R,)."""
    semantic = sum(cross_entropy(level["logits"], labels) for level in result.values())
    return semantic, sum(F.mse_loss(level["colour"], colours) for level in result.values())


def source_view_loss(model: SRay, features: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of a 1x1 head on features (N, C, h, w) against labels (N, H, W): feature (i, j) is
    centred on pixel (4i, 4j), so every fourth label is its truth."""
    logits = model.source_head(features).permute(0, 2, 3, 1)                  # (N, h, w, L)
    labels = labels[:, ::encoder.STRIDE, ::encoder.STRIDE]                    # (N, h, w)
    return cross_entropy(logits.flatten(0, 2), labels.flatten())


# ------------------------------------------------------------------------------------------- a training step
PARTS = "semantic", "photometric", "source", "loss"      # of a step's loss, as they are logged


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


def draw_batch(scene, frames: list, extra: list, config: Config, generator: torch.Generator) -> Batch:
    """A random target of a scene, its sources and pixels, and a view of each of the extra (scene, frames)."""
    c, R = config, max(1, config.rays // config.targets)
    target, sources = data.training_pair(scene, c.views, generator, c.pool, frames, c.angle_weight)
    flat = torch.randint(c.height * c.width, (R,), generator=generator)       # (R,) pixels, row by row
    picks = [int(torch.randint(len(theirs), (), generator=generator)) for _, theirs in extra]
    groups = [scene.views([*sources, target])]                                # one Views for each scene
    groups += [other.views([theirs[pick]]) for (other, theirs), pick in zip(extra, picks)]
    groups = [replace(g, images=augment.relight(g.images, c.colour_jitter, generator)) for g in groups]
    truth = groups[0][-1]  # the target's photograph and labels
    flat = augment.unmasked(flat, truth.mask)                                 # (R,) where there is truth
    u, v = flat % c.width, flat // c.width                                    # (R,), (R,)
    return Batch(sources=groups[0][:-1], K=truth.K, c2w=truth.c2w, pixels=torch.stack([u, v], -1).float(),
                 colours=truth.images.flatten(1)[:, flat].T, labels=truth.labels.flatten()[flat],
                 extra_images=torch.cat([g.images for g in groups])[c.views + 1:],
                 extra_labels=torch.cat([g.labels for g in groups])[c.views + 1:])


def draw_batches(scenes: list, frames: list, config: Config, step: int) -> list[Batch]:
    """The `targets` batches of a step, each of a random scene, with extra views of others; no scene twice,
    while there are enough. frames[i]: what may be drawn of scene i."""
    generator, count = generator_of(config.seed, step), config.targets * (1 + config.extra_views)
    order = (torch.randperm(len(scenes), generator=generator).tolist() * count)[:count]
    picks = [[(scenes[i], frames[i]) for i in order[b::config.targets]] for b in range(config.targets)]
    return [draw_batch(*first, others, config, generator) for first, *others in picks]


def learning_rate(config: Config, step: int) -> float:
    """Linear warm-up over 1% of the run, then a cosine from lr to lr_final."""
    warm = max(1, config.steps // 100)
    cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / config.steps))
    return (config.lr_final + (config.lr - config.lr_final) * cosine) * min(1.0, (step + 1) / warm)


def batch_loss(model: SRay, sources: Sources, batch: Batch, rays: Tensor, jitter: Tensor) -> tuple:
    """Some rays' share (indices into the batch's) in eq. 2, and its PARTS (4,): all shares sum to the
    loss."""
    labels, c = batch.labels[rays], model.config
    result = model(sources, batch.pixels[rays], batch.K, batch.c2w, jitter[rays])
    semantic, photometric = losses(result, batch.colours[rays], labels)       # means over these rays
    semantic = semantic * (labels != data.IGNORE).sum() / (batch.labels != data.IGNORE).sum().clamp(min=1)
    photometric = photometric * (len(rays) / len(batch.labels))
    loss = c.lambda1 * semantic + c.lambda2 * photometric
    return loss, torch.stack([semantic, photometric, torch.zeros_like(loss), loss]).detach()


def training_step(model: SRay, batches: list[Batch], step: int, piece: int = 0) -> dict[str, float]:
    """Set every .grad to the gradient of the batches' mean loss -> the means of the loss's PARTS.

    The source views are encoded once. Then rays are independent: they go forward and backward `piece` at a
    time (0: all), so that memory does not grow with their number. Their gradients gather in `leaf`, which
    stands for the features, and the encoder goes backward once. Of several processes each does its share of
    the rays.
    """
    c, T, device = model.config, len(batches), next(model.parameters()).device
    total = torch.zeros(4, device=device)                                     # of PARTS
    model.zero_grad()
    for i, batch in enumerate(batches):
        R, V = len(batch.pixels), len(batch.sources.K)
        mine = torch.arange(R, device=device)[processes.share(R, T, i)]       # of this process
        if not len(mine):
            continue
        features = model.encoder(torch.cat([batch.sources.images, batch.extra_images]))   # (N, C, h, w)
        leaf = features.detach().requires_grad_()
        sources = model.encode(batch.sources, leaf[:V])
        generator = generator_of(c.seed + 1 + i, step)                        # not that which drew the batch
        jitter = torch.rand(R, c.coarse + c.fine, generator=generator).to(device)     # (R, coarse + fine)
        for rays in mine.split(piece or R):
            loss, parts = batch_loss(model, sources, batch, rays, jitter)
            (loss / T).backward()
            total += parts / T
        if c.source_loss:
            labels = torch.cat([batch.sources.labels, batch.extra_labels])    # (N, H, W)
            loss = source_view_loss(model, leaf, labels) * (len(mine) / R)
            (c.source_loss * loss / T).backward()
            none = torch.zeros_like(loss)
            total += torch.stack([none, none, loss, c.source_loss * loss]).detach() / T
        features.backward(leaf.grad)
    processes.add_gradients(list(model.parameters()))
    return dict(zip(PARTS, processes.sum_over_processes(*total.tolist())))


# ------------------------------------------------------------------------------------------- training
def train(model: SRay, optimiser, scenes: list, frames: list, out: Path, run: dict, first_step: int, args,
          stop: list | tuple = (), take_step=training_step) -> None:
    """Train from first_step to config.steps. out/checkpoint.pt is written at the start, every args.save_every
    steps (their loss is finite then), at the end, and when something appears in `stop`: runs.Stopped."""
    c, rank, device = model.train().config, processes.rank_and_world()[0], next(model.parameters()).device
    piece = machine.piece_size(device, max(1, c.rays // c.targets), args.piece)
    names = PARTS[:3] if c.source_loss else PARTS[:2]
    with runs.Progress(out, run, names, first_step, c.steps, c.rays, rank) as progress, \
            ThreadPoolExecutor(1) as loader:
        save = partial(runs.save, out, model, optimiser, run, progress, args.keep_every, rank)
        if first_step == 0:
            save(0)                                                           # from now on --resume works
        coming = loader.submit(draw_batches, scenes, frames, c, first_step)
        for step in range(first_step, c.steps):
            batches = [Batch(*(x.to(device) for x in batch)) for batch in progress.wait_for(coming)]
            coming = loader.submit(draw_batches, scenes, frames, c, step + 1)     # the disk works meanwhile
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(c, step)
            parts = take_step(model, batches, step, piece)
            norm = nn.utils.clip_grad_norm_(model.parameters(), c.clip)
            runs.check_finite(step, parts, float(norm), out)
            stopping = processes.sum_over_processes(len(stop))[0] > 0
            due = step % args.save_every == 0 or args.keep_every and step % args.keep_every == 0
            if step > first_step and (due or stopping):  # these weights have a finite loss
                save(step)
            if stopping:
                raise runs.Stopped(f"{step} of {c.steps}")
            optimiser.step()
            progress.update(step + 1, parts)
        if first_step < c.steps:
            save(c.steps)
            print(progress.summary())


def main() -> None:
    machine.prepare_cpu()
    args = starting.parse_arguments(__doc__.split("\n")[0], Config, PRESETS)
    rank, _ = processes.join_processes()
    out, lock = runs.folder_to_resume(args.out, rank) if args.resume else (None, None)
    config, state, name = starting.starting_point(args, Config, PRESETS, REPLICA, load_checkpoint)
    run, scenes, indices, classes, name = starting.load_data(args, config, state, name, data, rooms)
    torch.manual_seed(config.seed)
    model = SRay(config, classes)
    starting.load_weights(model, args, state)
    model = model.to(machine.pick_device(args.device))
    model, take_step = import_module("fast").faster(model, training_step, args)   # the same numbers, sooner
    optimiser = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    if args.resume:
        runs.resume_optimiser(optimiser, state, out)
    else:
        out, lock = runs.free_folder(args.out, name) if rank == 0 else (Path(os.devnull), None)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters; run folder {out}", flush=True)
    with runs.ending(out, starting.resume_command(args, out), rank) as stop:
        train(model, optimiser, scenes, indices, out, run, state["step"] if args.resume else 0, args, stop,
              take_step)
    processes.leave_processes()
    if rank == 0:
        runs.training_curves(out)
        starting.evaluate(Path(__file__).with_name("08_eval.py"), out, args)


if __name__ == "__main__":
    run_script(main)
