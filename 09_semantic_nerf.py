"""NeRF and Semantic-NeRF: the per-scene baseline the paper compares with (Tables 5 and 13, Figure 4).

    python 09_semantic_nerf.py --scene PATH_OF_ONE_SCENE --preset laptop

S-Ray reads a room it has never seen off eight photographs. A NeRF knows nothing of any other room: it is one multi-layer
perceptron for one scene, from a point and a viewing direction to density and colour, trained on that scene's own views until it
reproduces them. Semantic-NeRF (Zhi et al., ICCV 2021) adds a head for class logits. Both are rendered by the integral of
`06_geometry_render.py`, with coarse samples that place finer ones.

    x (R, S, 3), d (R, 3)   ->   sigma (R, S), colour (R, S, 3), logits (R, S, L)

    gamma(p) = (p, sin(2^0 p), cos(2^0 p), ..., sin(2^(F-1) p), cos(2^(F-1) p))          positional encoding, F = 10 for x, 4 for d

Semantics and density do not see the viewing direction, colour does: a chair stays a chair from every side, its highlights move. Sizes
and settings are those of NeRF (8 layers of 256, skip into the fifth, 64 coarse + 128 fine samples, both given to the fine network,
Adam 5e-4) and Semantic-NeRF (semantic loss weighted by 0.04); positions are divided by the scene's size so that they lie in
about [-1, 1] (times pi in the encoding would only shift its frequencies). `--lambda1 0` is NeRF.

It is trained on the 16 source and fine-tuning views of the protocol, the ones S-Ray may use, and never sees the 4 test views.

Dimension key: R rays, S samples, L classes.     Test: pytest tests/test_09_semantic_nerf.py
"""
import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

data = import_module("01_data")                    # Scene, protocol, rays
geometry = import_module("06_geometry_render")     # samples, volume rendering
training = import_module("07_train")               # setting, losses, render_image, generator_of, prepare_cpu
evaluation = import_module("08_eval")              # evaluate, print_table

setting = training.setting


@dataclass
class Config:
    """Every setting. Defaults: NeRF's and Semantic-NeRF's."""
    height: int = setting(240, "image height")
    width: int = setting(320, "image width")
    layers: int = setting(8, "hidden layers of the perceptron; the input enters again after the middle one")
    hidden: int = setting(256, "their width")
    frequencies: int = setting(10, "octaves of the positional encoding of x")
    direction_frequencies: int = setting(4, "and of the direction")
    rays: int = setting(1024, "R, rays a step, from all training views")
    coarse: int = setting(64, "coarse samples a ray")
    fine: int = setting(128, "fine samples a ray; the fine network sees them and the coarse ones")
    near: float = setting(0.3, "nearest sample, metres along z")
    far: float = setting(8.0, "farthest sample, metres along z")
    lambda1: float = setting(0.04, "weight of the semantic loss (0: a NeRF)")
    lambda2: float = setting(1.0, "weight of the photometric loss")
    steps: int = setting(200_000, "training steps")
    lr: float = setting(5e-4, "Adam's first learning rate")
    lr_final: float = setting(5e-5, "and its last (exponential in between)")
    chunk: int = setting(1024, "rays rendered at a time in evaluation")
    keep: int = setting(0, "unused here: labels always come from all samples")
    seed: int = setting(0, "seed of weights and of every random draw")
    device: str = setting("auto", "auto | cpu | cuda")
    workers: int = setting(0, "threads that share an image's chunks and the CPU's cores [0: as many as help]")
    coarse_stride = 1                         # no setting here: the coarse level places every ray's samples


PRESETS = {   # what differs from the originals' sizes
    "paper": {},
    "laptop": dict(height=96, width=128, layers=6, hidden=128, rays=256, coarse=32, fine=32, steps=2000, lr=2e-3, lr_final=2e-4,
                   chunk=512),
    "smoke": dict(height=48, width=64, layers=4, hidden=32, rays=64, coarse=8, fine=8, steps=20),
}


# ---------------------------------------------------------------------------------------------------- the field

def positional_encoding(x: Tensor, frequencies: int) -> Tensor:
    """gamma(x): (..., 3) -> (..., 3 + 6 F): x itself, then sin and cos of 2^i x for each octave i."""
    octaves = 2.0 ** torch.arange(frequencies, device=x.device, dtype=x.dtype)                   # (F,)
    angle = x[..., None, :] * octaves[:, None]                                # (..., F, 3)
    return torch.cat([x, torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(-2)], dim=-1)


class Field(nn.Module):
    """One perceptron: points (R, S, 3) in about [-1, 1] and unit directions (R, 3) -> sigma (R, S), colour (R, S, 3),
    logits (R, S, L)."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        inputs, directions, width = 3 + 6 * config.frequencies, 3 + 6 * config.direction_frequencies, config.hidden
        self.skip = config.layers // 2                                        # the layer that sees the input again
        self.layers = nn.ModuleList(nn.Linear(inputs if i == 0 else width + inputs * (i == self.skip), width)
                                    for i in range(config.layers))
        self.sigma = nn.Linear(width, 1)
        self.semantic = nn.Sequential(nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, len(data.CLASSES)))
        self.feature = nn.Linear(width, width)
        self.colour = nn.Sequential(nn.Linear(width + directions, width // 2), nn.ReLU(), nn.Linear(width // 2, 3))

    def forward(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        R, S, _ = points.shape
        encoded = h = positional_encoding(points, self.config.frequencies)    # (R, S, 3 + 6 F)
        for i, layer in enumerate(self.layers):
            h = F.relu(layer(torch.cat([h, encoded], dim=-1) if i == self.skip else h))           # (R, S, hidden)
        seen_from = positional_encoding(directions, self.config.direction_frequencies)[:, None].expand(-1, S, -1)
        colour = self.colour(torch.cat([self.feature(h), seen_from], dim=-1)).sigmoid()           # (R, S, 3)
        return F.softplus(self.sigma(h)).squeeze(-1), colour, self.semantic(h)                    # semantics: no direction


class SemanticNeRF(nn.Module):
    """A coarse and a fine field of one scene. centre (3,) and scale in metres map its world to about [-1, 1]."""

    def __init__(self, config: Config, centre: Tensor, scale: float):
        super().__init__()
        self.config, self.classes = config, data.SCANNET
        self.coarse, self.fine = Field(config), Field(config)
        self.register_buffer("centre", centre.clone())
        self.register_buffer("scale", torch.tensor(float(scale)))

    def rays(self, origins: Tensor, directions: Tensor, jitter: Tensor | None = None) -> dict[str, dict[str, Tensor]]:
        """origins (R, 3), directions (R, 3) of unit length along z -> {"coarse": ..., "fine": ...} with pixel values logits (R, L),
        colour (R, 3), depth (R,), and per sample z, weights (R, S). jitter (R, coarse + fine) in [0, 1) moves the samples."""
        c, length = self.config, directions.norm(dim=-1)
        first, second = (None, None) if jitter is None else jitter.split([c.coarse, c.fine], dim=1)
        z = geometry.coarse_samples(c.near, c.far, len(origins), c.coarse, "linear", first, origins.device)
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
        """There is nothing to encode: what it knows of the scene is in its weights. (So that `08_eval.py` can evaluate it.)"""

    def forward(self, sources: None, pixels: Tensor, K: Tensor, c2w: Tensor, fine_only: bool = False, keep: int = 0) -> dict:
        """Pixels (R, 2) of one camera, called as S-Ray is -> rays()."""
        origin, directions = data.rays(pixels, K, c2w)
        return self.rays(origin.expand(len(pixels), 3), directions)

    render_image = training.SRay.render_image


# ---------------------------------------------------------------------------------------------------- training

def training_rays(views: "data.Views") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All pixels of all views: origins (N, 3), directions (N, 3), colours (N, 3), labels (N,)."""
    grid = data.pixel_grid(*views.images.shape[-2:])
    pairs = [data.rays(grid, K, c2w) for K, c2w in zip(views.K, views.c2w)]
    return (torch.cat([origin.expand(len(grid), 3) for origin, _ in pairs]), torch.cat([d for _, d in pairs]),
            views.images.permute(0, 2, 3, 1).reshape(-1, 3), views.labels.flatten())


def new_model(views: "data.Views", config: Config) -> SemanticNeRF:
    """A model whose [-1, 1] holds what these cameras can see: their centre, and far beyond the outermost."""
    torch.manual_seed(config.seed)
    positions = views.c2w[:, :3, 3]
    centre = (positions.amin(0) + positions.amax(0)) / 2
    return SemanticNeRF(config, centre, float((positions - centre).norm(dim=-1).max()) + config.far)


def load(path: str | Path) -> SemanticNeRF:
    """A model from the checkpoint of a run. DataError if it is none."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model = SemanticNeRF(Config(**state["config"]), torch.zeros(3), 1.0)  # centre and scale come with the weights
        model.load_state_dict(state["model"])
    except Exception as error:                # missing, damaged, foreign
        raise data.DataError(f"{path}: not a Semantic-NeRF ({str(error).splitlines()[0][:120]}); train it again") from None
    return model


def train(model: SemanticNeRF, views: "data.Views", steps: int, device: torch.device, optimiser=None, first_step: int = 0,
          budget: float | None = None):
    """Train on all pixels of these views from first_step to steps (the learning rate follows config.steps), or until `budget`
    seconds are over -> the optimiser, to go on with, and the steps done."""
    config = model.config
    model.to(device).train()
    origins, directions, colours, labels = (x.to(device) for x in training_rays(views))
    optimiser = optimiser or torch.optim.Adam(model.parameters(), lr=config.lr)
    start, done = time.time(), first_step
    with tqdm(total=steps, initial=first_step, unit="step", desc="Semantic-NeRF", dynamic_ncols=True,
              mininterval=0.5 if sys.stderr.isatty() else 15) as bar:
        for step in range(first_step, steps):
            if budget is not None and time.time() - start > budget:
                break
            generator = training.generator_of(config.seed, step)
            pick = torch.randint(len(origins), (config.rays,), generator=generator).to(device)
            jitter = torch.rand(config.rays, config.coarse + config.fine, generator=generator).to(device)
            for group in optimiser.param_groups:
                group["lr"] = config.lr * (config.lr_final / config.lr) ** (step / max(1, config.steps))
            result = model.rays(origins[pick], directions[pick], jitter)
            semantic, photometric = training.losses(result, colours[pick], labels[pick])
            loss = config.lambda1 * semantic + config.lambda2 * photometric
            optimiser.zero_grad()
            loss.backward()
            if not math.isfinite(loss.item()):
                raise data.DataError(f"step {step}: the loss is {loss.item()}; train again with a lower --lr")
            optimiser.step()
            done = step + 1
            bar.update()
            if done % 50 == 0:
                bar.set_postfix(semantic=f"{semantic.item():.3f}", photometric=f"{photometric.item():.4f}", refresh=False)
    return optimiser, done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--scene", required=True, help="folder of one scene in the ScanNet layout")
    parser.add_argument("--preset", choices=PRESETS, default="laptop", help="[laptop]")
    parser.add_argument("--out", default=None, help="folder for weights, metrics and pictures [runs/nerf-SCENE]")
    parser.add_argument("--cache", default="cache", help="folder for decoded frames")
    parser.add_argument("--labels", metavar="FOLDER", help="train on the labels in FOLDER/SCENE/FRAME.png instead of the scene's own")
    parser.add_argument("--evaluate-at", default="", metavar="A,B,C", help="also evaluate after so many steps (Table 13)")
    training.add_settings(parser, Config)
    args = parser.parse_args()
    given = {f.name: getattr(args, f.name) for f in fields(Config) if getattr(args, f.name) is not None}
    config = Config(**{**PRESETS[args.preset], **given})
    for name in ("height", "width", "layers", "hidden", "rays", "coarse", "fine", "steps", "chunk"):
        if getattr(config, name) < 1:
            raise data.DataError(f"--{name} {getattr(config, name)}: must be at least 1")
    training.prepare_cpu()
    device = training.pick_device(config.device)
    scene = data.Scene(Path(args.scene), config.height, config.width, Path(args.cache))
    out, lock = training.free_folder(args.out, f"nerf-{scene.name}")           # ours while `lock` is open
    source, tune, test = data.protocol(scene)
    assert not set(source + tune) & set(test), "a test view among the training views"
    if scene.has_labels and scene.classes != data.SCANNET:
        raise data.DataError(f"{scene.folder}: labelled with {len(scene.classes.names)} classes of its own (classes.csv); this "
                             "baseline knows ScanNet's 20")
    views = data.Scene(Path(args.scene), config.height, config.width, Path(args.cache), labels=args.labels).views(sorted(source + tune))
    model = new_model(views, config)
    print(f"{scene.name}: trained on {len(views.K)} views of {config.width}x{config.height}, evaluated on {len(test)} others; "
          f"{config.layers} layers of {config.hidden}, {config.rays} rays, {config.coarse}+{config.fine} samples, {config.steps} steps, "
          f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    history, optimiser, seconds, steps = [], None, 0.0, 0
    out.mkdir(parents=True, exist_ok=True)
    for stop in sorted({config.steps, *(int(x) for x in args.evaluate_at.split(",") if x and int(x) < config.steps)}):
        start = time.time()
        optimiser, steps = train(model, views, stop, device, optimiser, steps)
        seconds += time.time() - start
        metrics = evaluation.evaluate(model, [scene], device, out, f"Semantic-NeRF, step {steps}")
        history.append({"steps": steps, "train_seconds": seconds,
                        **{key: metrics[key] for key in ("miou", "total_acc", "avg_acc", "psnr", "ssim", "depth_abs_rel")}})
        print(f"step {steps}: {metrics['miou']:.2f} mIoU, {metrics['psnr']:.2f} dB after {seconds:.0f} s of training", flush=True)
    metrics |= {"data": scene.name, "steps": steps, "train_seconds": seconds, "history": history, "config": asdict(config),
                "command": " ".join(["python", *sys.argv])}
    data.write_atomically(out / "metrics.json", lambda file: file.write(json.dumps(metrics, indent=1).encode()))
    state = {"model": model.state_dict(), "config": asdict(config), "step": steps}
    data.write_atomically(out / "checkpoint.pt", lambda file: torch.save(state, file))            # last: the run is complete
    evaluation.print_table(metrics, "Semantic-NeRF")
    print(f"\n{steps} steps in {seconds:.0f} s; weights, metrics.json and the picture in {out}")


if __name__ == "__main__":
    data.run_script(main)
