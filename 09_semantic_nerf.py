"""NeRF and Semantic-NeRF: the per-scene baseline the paper compares with (Tables 5 and 13, Figure 4).

    python 09_semantic_nerf.py --scene PATH_OF_ONE_SCENE --preset laptop

S-Ray reads a room it has never seen off eight photographs. A NeRF is one multi-layer perceptron for one
scene, from a point and a viewing direction to density and colour, trained on that scene's own views until it
reproduces them. Semantic-NeRF (Zhi et al., ICCV 2021) adds a head for class logits. 06 renders both.

    x (R, S, 3), d (R, 3)   ->   sigma (R, S), colour (R, S, 3), logits (R, S, L)
    gamma(p) = (p, sin(2^0 p), cos(2^0 p), ..., sin(2^(F-1) p), cos(2^(F-1) p))    F = 10 for x, 4 for d

Semantics and density do not see the viewing direction, colour does: a chair stays a chair from every side,
its highlights move. Settings are NeRF's, and Semantic-NeRF's weight of the semantic loss, 0.04. Positions are
divided by the scene's size, so that they lie in about [-1, 1], and not multiplied by NeRF's pi. `--lambda1 0`
is NeRF. The training views are the protocol's 8 source and 8 fine-tuning views, never its 4 test views.

Dimension key: R rays, S samples, F octaves, L classes.     Test: pytest tests/test_09_semantic_nerf.py
"""
import argparse
import math
import sys
import time
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from support import evaluating, machine, runs, settings
from support.files import DataError, run_script, write_json
from support.settings import setting

data = import_module("01_data")                    # Scene, protocol, rays
geometry = import_module("06_geometry_render")     # samples, volume rendering
training = import_module("07_train")               # losses, render_image, generator_of
evaluation = import_module("08_eval")              # evaluate, print_table


@dataclass
class Config:
    """Every setting. Defaults: NeRF's and Semantic-NeRF's."""
    height: int = setting(240, "image height", least=1)
    width: int = setting(320, "image width", least=1)
    layers: int = setting(8, "hidden layers; the input enters again after the middle one", least=1, most=64)
    hidden: int = setting(256, "their width", least=1, most=8192)
    frequencies: int = setting(10, "octaves of the positional encoding of x", least=0, most=64)
    direction_frequencies: int = setting(4, "and of the direction", least=0, most=64)
    rays: int = setting(1024, "R, rays a step, from all training views", least=1, most=10 ** 6)
    coarse: int = setting(64, "coarse samples a ray", least=1, most=4096)
    fine: int = setting(128, "fine samples a ray; the fine network sees both", least=1, most=4096)
    near: float = setting(0.3, "nearest sample, metres along z")
    far: float = setting(8.0, "farthest sample, metres along z")
    lambda1: float = setting(0.04, "weight of the semantic loss (0: a NeRF)")
    lambda2: float = setting(1.0, "weight of the photometric loss")
    steps: int = setting(200_000, "training steps", least=1)
    lr: float = setting(5e-4, "Adam's first learning rate")
    lr_final: float = setting(5e-5, "and its last (exponential in between)")
    seed: int = setting(0, "seed of weights and of every random draw")


PRESETS = {   # what differs from the originals' sizes
    "paper": {},
    "laptop": dict(height=96, width=128, layers=6, hidden=128, rays=256, coarse=32, fine=32, steps=2000,
                   lr=2e-3, lr_final=2e-4),
    "smoke": dict(height=48, width=64, layers=4, hidden=32, rays=64, coarse=8, fine=8, steps=20),
}


# ---------------------------------------------------------------------------------------------- the field
def positional_encoding(x: Tensor, frequencies: int) -> Tensor:  # exercise: gamma(p)
    """gamma(x): (..., 3) -> (..., 3 + 6 F): x itself, then sin and cos of 2^i x for each octave i."""
    octaves = 2.0 ** torch.arange(frequencies, device=x.device, dtype=x.dtype)                 # (F,)
    angle = x[..., None, :] * octaves[:, None]                                # (..., F, 3)
    return torch.cat([x, torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(-2)], dim=-1)


class Field(nn.Module):
    """One multi-layer perceptron."""

    def __init__(self, config: Config):
        super().__init__()
        self.config, L = config, len(data.CLASSES)
        x, d, width = 3 + 6 * config.frequencies, 3 + 6 * config.direction_frequencies, config.hidden
        self.skip = config.layers // 2                                        # sees the input again
        sizes = [x if i == 0 else width + x * (i == self.skip) for i in range(config.layers)]
        self.layers = nn.ModuleList(nn.Linear(size, width) for size in sizes)
        self.sigma = nn.Linear(width, 1)
        self.semantic = nn.Sequential(nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, L))
        self.feature = nn.Linear(width, width)
        self.colour = nn.Sequential(nn.Linear(width + d, width // 2), nn.ReLU(), nn.Linear(width // 2, 3))

    def forward(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Points (R, S, 3) in about [-1, 1], unit directions (R, 3) -> sigma (R, S), colour (R, S, 3), logits
        (R, S, L)."""
        c, S = self.config, points.shape[1]
        encoded = h = positional_encoding(points, c.frequencies)              # (R, S, 3 + 6 F)
        for i, layer in enumerate(self.layers):
            h = F.relu(layer(torch.cat([h, encoded], dim=-1) if i == self.skip else h))       # (R, S, hidden)
        direction = positional_encoding(directions, c.direction_frequencies)  # (R, 3 + 6 F)
        h_and_direction = torch.cat([self.feature(h), direction[:, None].expand(-1, S, -1)], dim=-1)
        colour = self.colour(h_and_direction).sigmoid()                       # (R, S, 3)
        return F.softplus(self.sigma(h)).squeeze(-1), colour, self.semantic(h)    # semantics: no direction


class SemanticNeRF(nn.Module):
    """A coarse and a fine field of one scene. centre (3,) and scale, in metres, map it to about [-1, 1]."""

    def __init__(self, config: Config, centre: Tensor, scale: float):
        super().__init__()
        self.config, self.classes = config, data.SCANNET
        self.coarse, self.fine = Field(config), Field(config)
        self.register_buffer("centre", centre.clone())
        self.register_buffer("scale", torch.tensor(float(scale)))

    def rays(self, origins: Tensor, directions: Tensor, jitter: Tensor | None = None) -> dict[str, dict]:
        """origins (R, 3), directions (R, 3) one long along z -> "coarse" and "fine": logits (R, L), colour
        (R, 3), depth (R,); z, weights (R, S). jitter (R, coarse + fine) in [0, 1) moves the samples."""
        c, length = self.config, directions.norm(dim=-1)
        first, second = (None, None) if jitter is None else jitter.split([c.coarse, c.fine], dim=1)
        z = geometry.coarse_samples(c.near, c.far, len(origins), c.coarse, first, origins.device)
        result = {}
        for name, field in (("coarse", self.coarse), ("fine", self.fine)):
            points = origins[:, None] + z[..., None] * directions[:, None]    # (R, S, 3)
            sigma, colour, logits = field((points - self.centre) / self.scale, directions / length[:, None])
            weights = geometry.rendering_weights(sigma, geometry.sample_lengths(z, c.far, length))
            result[name] = {"z": z, "weights": weights, "colour": geometry.render(weights, colour),
                            "logits": geometry.render(weights, logits),
                            "depth": (weights * z).sum(1) / weights.sum(1).clamp(min=1e-6)}
            if name == "coarse":
                extra = geometry.fine_samples(z, weights, c.fine, second)
                z = torch.cat([z, extra], dim=1).sort(dim=1).values           # (R, coarse + fine)
        return result

    def encode(self, views: "data.Views") -> None:
        """There is nothing to encode: what it knows of the scene is in its weights. (08 asks every model.)"""

    def forward(self, sources: None, pixels: Tensor, K: Tensor, c2w: Tensor, fine_only: bool = False) -> dict:
        """Pixels (R, 2) of one camera, called as S-Ray is -> rays()."""
        origin, directions = data.rays(pixels, K, c2w)
        return self.rays(origin.expand(len(pixels), 3), directions)

    render_image = training.SRay.render_image


# ----------------------------------------------------------------------------------------------- training
def training_rays(views: "data.Views") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The unmasked pixels of all views: origins (N, 3), directions (N, 3), colours (N, 3), labels (N,)."""
    grid = data.pixel_grid(*views.images.shape[-2:])
    origins, directions = zip(*(data.rays(grid, K, c2w) for K, c2w in zip(views.K, views.c2w)))
    rays = (torch.stack(origins).repeat_interleave(len(grid), 0), torch.cat(directions),
            views.images.permute(0, 2, 3, 1).reshape(-1, 3), views.labels.flatten())
    return rays if views.mask is None else tuple(x[views.mask.flatten()] for x in rays)


def new_model(views: "data.Views", config: Config) -> SemanticNeRF:
    """A model whose [-1, 1] holds what these cameras can see: their centre, and far beyond the outermost."""
    torch.manual_seed(config.seed)
    positions = views.c2w[:, :3, 3]
    centre = (positions.amin(0) + positions.amax(0)) / 2
    return SemanticNeRF(config, centre, float((positions - centre).norm(dim=-1).max()) + config.far)


def load(path: str | Path) -> SemanticNeRF:
    """A model from the checkpoint of a run. DataError if it is none."""
    state = runs.load_state(Path(path), "Semantic-NeRF")
    try:
        model = SemanticNeRF(settings.read_settings(Config, state["config"], {}, {}), torch.zeros(3), 1.0)
        model.load_state_dict(state["model"])                                 # centre and scale, too
    except Exception as error:                # of another model
        raise runs.not_a_checkpoint(path, error, "Semantic-NeRF") from None
    return model


def train(model: SemanticNeRF, views: "data.Views", optimiser, first_step: int, steps: int) -> None:
    """Train on all pixels of these views, from first_step to steps. lr falls over all of config.steps."""
    c, device = model.train().config, model.centre.device
    origins, directions, colours, labels = (x.to(device) for x in training_rays(views))
    bar = tqdm(range(first_step, steps), total=steps, initial=first_step, unit="step", desc="Semantic-NeRF",
               dynamic_ncols=True, mininterval=0.5 if sys.stderr.isatty() else 15)
    for step in bar:
        generator = training.generator_of(c.seed, step)
        pick = torch.randint(len(origins), (c.rays,), generator=generator).to(device)         # (R,)
        jitter = torch.rand(c.rays, c.coarse + c.fine, generator=generator).to(device)        # (R, S)
        for group in optimiser.param_groups:
            group["lr"] = c.lr * (c.lr_final / c.lr) ** (step / c.steps)
        result = model.rays(origins[pick], directions[pick], jitter)
        semantic, photometric = training.losses(result, colours[pick], labels[pick])
        loss = c.lambda1 * semantic + c.lambda2 * photometric
        optimiser.zero_grad()
        loss.backward()
        if not math.isfinite(loss.item()):
            raise DataError(f"step {step}: the loss is {loss.item()}; train again with a lower --lr")
        optimiser.step()
        bar.set_postfix(semantic=semantic.item(), photometric=photometric.item(), refresh=False)


def parse_arguments() -> argparse.Namespace:
    """The command line: what to train on and where to write, the machine, one flag for each setting."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--scene", required=True, help="folder of one scene in the ScanNet layout")
    add("--preset", choices=PRESETS, default="laptop", help="[laptop]")
    add("--out", help="folder for weights, metrics and pictures [runs/nerf-SCENE]")
    add("--cache", default="cache", help="folder for decoded frames [cache]")
    add("--crop", type=int, default=0, metavar="N", help="pixels taken off every side of the photographs [0]")
    add("--labels", metavar="FOLDER", help="train on FOLDER/SCENE/FRAME.png, not on the scene's own labels")
    add("--evaluate-at", default="", metavar="A,B,C", help="also evaluate after so many steps (Table 13)")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="[auto]")
    add("--chunk", type=int, default=0, help="rays rendered together [0: some 16,384 samples' worth]")
    settings.add_settings(parser, Config)
    args = parser.parse_args()
    evaluating.check_least(args, chunk=0, crop=0)
    return args


def main() -> None:
    args = parse_arguments()
    config = Config(**{**PRESETS[args.preset], **settings.given(args, Config)})
    settings.check(config)
    machine.prepare_cpu()
    scene, labelled = (data.Scene(Path(args.scene), config.height, config.width, Path(args.cache),
                                  labels=labels, crop=args.crop) for labels in (None, args.labels))
    out, lock = runs.free_folder(args.out, f"nerf-{scene.name}")              # ours while `lock` is open
    source, tune, test = data.protocol(scene)
    assert not set(source + tune) & set(test), "a test view among the training views"
    if scene.has_labels and scene.classes != data.SCANNET:
        raise DataError(f"{scene.folder}: labelled with {len(scene.classes.names)} classes of its own "
                        "(classes.csv); this baseline knows ScanNet's 20")
    views = labelled.views(sorted(source + tune))
    model = new_model(views, config).to(machine.pick_device(args.device))
    print(f"{scene.name}: trained on {len(views.K)} views of {config.width}x{config.height}, evaluated on "
          f"{len(test)} others; {config.layers} layers of {config.hidden}, {config.rays} rays, "
          f"{config.coarse}+{config.fine} samples, {config.steps} steps, "
          f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    optimiser = torch.optim.Adam(model.parameters())
    history, seconds, step = [], 0.0, 0
    early = {int(x) for x in args.evaluate_at.split(",") if x and int(x) < config.steps}
    for stop in sorted({config.steps, *early}):
        start = time.time()
        train(model, views, optimiser, step, stop)
        seconds, step = seconds + time.time() - start, stop
        metrics = evaluation.evaluate(model, [scene], out, f"Semantic-NeRF, step {step}", chunk=args.chunk)
        kept = ("miou", "total_acc", "avg_acc", "psnr", "ssim", "depth_abs_rel")
        history.append({"steps": step, "train_seconds": seconds, **{key: metrics[key] for key in kept}})
        miou = "" if metrics["miou"] is None else f"{metrics['miou']:.2f} mIoU, "
        print(f"step {step}: {miou}{metrics['psnr']:.2f} dB after {seconds:.0f} s of training", flush=True)
    metrics |= {"data": scene.name, "steps": step, "train_seconds": seconds, "history": history,
                "config": asdict(config), "command": evaluating.command_line()}
    write_json(out / "metrics.json", metrics)
    state = {"model": model.state_dict(), "config": asdict(config), "step": step}
    runs.write_state(out / "checkpoint.pt", state)                            # last: it is complete
    evaluation.print_table(metrics, "Semantic-NeRF")
    print(f"\n{step} steps in {seconds:.0f} s; weights, metrics.json and the picture in {out}")


if __name__ == "__main__":
    run_script(main)
