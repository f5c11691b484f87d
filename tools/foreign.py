"""A folder of scenes that we did not make: ours beside a copied photograph and a sweep without learning.

    python -m tools.foreign FOLDER --checkpoint weights/sray_rooms.pt
    python -m tools.foreign FOLDER --preview 4                   every fourth row and column, 16 times as fast

08's protocol and metrics: four test views a scene, each from 8 source views. mIoU is of all pixels of a row
together. PSNR and depth are means over views. Depth error is 08's, the mean of |d - d*| / d* over the pixels
of a view; beside it stands their median. The sweep follows a pixel's ray over D depths and takes the one at
which the source views' patches agree best, as in notebook 01: geometry before anything is learned. With
--features the encoder's 32 channels of a point must agree instead: is what was learned fit for finding depth?

Dimension key: R rays, D depths, V source views, P = 49 pixels of a patch.
Test: pytest tests/test_tool_foreign.py
"""
import argparse
import statistics
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import fast
from fast.lookup import lookup
from support import evaluating, machine
from support.datasets import list_scenes
from support.files import DataError, run_script, shown, write_json

data = import_module("01_data")                    # Scene, rays, project
encoder = import_module("02_encoder")              # STRIDE
reprojection = import_module("03_reprojection")    # in_view
training = import_module("07_train")               # load_checkpoint, depth_range
evaluation = import_module("08_eval")              # render_views, label_metrics, source_views, test_views

DEPTHS = 96                 # D, evenly from near to far
HALF, LEAST = 3, 3          # patches of 7x7 pixels; a depth counts where so many views have it in their image
RAYS, POINTS = 512, 1024    # together; 49 colours of 1024 points in 8 views are 5 MB


# -------------------------------------------------------------------------------------------------- the sweep

def patches(images: Tensor) -> Tensor:
    """images (V, 3, H, W) -> (V, 3 P, H, W): each pixel's neighbours as further channels."""
    H, W = images.shape[-2:]
    wide = F.pad(images, [HALF] * 4, mode="replicate")
    side = range(2 * HALF + 1)
    return torch.cat([wide[..., i:i + H, j:j + W] for i in side for j in side], dim=1)


def disagreement(colours: Tensor, seen: Tensor) -> Tensor:
    """Colours of patches (N, V, 3 P), seen (N, V) -> (N,) spread of colour over the views that see them: root
    of the mean variance of a pixel of the patch, as in notebook 01; inf where fewer than LEAST do."""
    count = seen.sum(1, keepdim=True)                                         # (N, 1)
    mean = torch.einsum("nvp,nv->np", colours, seen.float()) / count.clamp(min=1)
    # the variance as mean square of what is left: no difference of large numbers
    square = torch.einsum("nvp,nv->n", (colours - mean[:, None]).square(), seen.float()) / count[:, 0]
    return (square / (2 * HALF + 1) ** 2).sqrt().masked_fill(count[:, 0] < LEAST, torch.inf)


def swept_depth(sources, maps: Tensor, pixels: Tensor, K: Tensor, c2w: Tensor, depths: Tensor) -> Tensor:
    """Pixels (R, 2) of a camera, maps (V, C, h, w) of the source views, patches or features, depths (D,) ->
    (R,) the depth at which the views agree best; the middle one where no depth is seen by enough views."""
    (V, C, h, _), (H, W), D = maps.shape, sources.images.shape[-2:], len(depths)
    step = 1 if h == H else encoder.STRIDE                                    # pixels an entry
    origin, directions = data.rays(pixels, K, c2w)
    points = (origin + depths[:, None] * directions[:, None]).view(-1, 3)     # (R D, 3)
    uv, z = data.project(points, sources.K, sources.c2w)                      # (R D, V, 2), (R D, V)
    seen = reprojection.in_view(uv, z, H, W)                                  # (R D, V)
    if sources.mask is not None:
        uv0 = uv[:, None].masked_fill(~seen[:, None, :, None], 0)
        seen = seen & reprojection.unmasked(sources.mask, uv0)[:, 0]
    cost = torch.full((len(points),), torch.inf, device=pixels.device)        # (R D,)
    enough = (seen.sum(1) >= LEAST).nonzero()[:, 0]
    view = torch.arange(V, device=pixels.device)
    for part in enough.split(POINTS):
        uv0 = uv[part].masked_fill(~seen[part, :, None], 0)                   # (N, V, 2)
        colours = lookup(maps, uv0.flatten(0, 1), view.repeat(len(part)), step)       # (N V, C)
        cost[part] = disagreement(colours.view(-1, V, C), seen[part])
    cost = cost.view(-1, D)
    best = cost.argmin(1)                                                     # (R,)
    return depths[torch.where(cost.isfinite().any(1), best, D // 2)]


@torch.no_grad()
def sweep(sources, maps: Tensor, target, depths: Tensor, stride: int, bar) -> Tensor:
    """A target view's depth (h, w) by the sweep over the source views: every stride-th row and column."""
    H, W = target.depth.shape
    grid, parts = data.pixel_grid(H, W).view(H, W, 2)[::stride, ::stride], []     # (h, w, 2)
    for pixels in grid.flatten(0, 1).to(maps.device).split(RAYS):
        parts.append(swept_depth(sources, maps, pixels, target.K, target.c2w, depths))
        bar.update(len(pixels) / grid[..., 0].numel())
    return torch.cat(parts).view(grid.shape[:2]).cpu()


# -------------------------------------------------------------------------------------------------- the table

def depth_errors(depth: Tensor, truth: Tensor) -> tuple[float | None, float | None]:
    """08's depth error, the mean over pixels with a true depth, and the median; None where there is none."""
    known = truth > 0
    if not known.any():
        return None, None
    return evaluation.depth_abs_rel(depth, truth), float(((depth - truth).abs() / truth)[known].median())


def measure(model, scene, args, bar) -> list[dict]:
    """The figures of each test view of a scene; "n" and "copied" are matrices (L, L + 1)."""
    c, device, ids, rows = model.config, next(model.parameters()).device, evaluation.test_views(scene), []
    sources = scene.views(evaluation.source_views(scene, args.views)).to(device)
    with torch.no_grad():
        maps = model.encoder(sources.images) if args.features else patches(sources.images)    # (V, C, h, w)
    maps = maps.contiguous(memory_format=torch.channels_last)
    near, far = scene.range or (c.near, c.far)
    depths = near + (far - near) * torch.linspace(0, 1, DEPTHS, device=device)
    shots = evaluation.render_views(model, scene, ids, args.views, stride=args.preview)
    for target, shot in zip((scene.views([i]).to(device)[0] for i in ids), shots):
        bar.update()
        swept, truth = sweep(sources, maps, target, depths, args.preview, bar), shot["true_depth"]
        ours, theirs = depth_errors(shot["depth"], truth), depth_errors(swept, truth)
        rows.append({**{key: shot[key] for key in ("psnr", "copy_psnr", "n", "copied")},
                     **dict(zip(("depth", "depth_median", "sweep", "sweep_median"), ours + theirs))})
    return rows


def summary(rows: list[dict], names: list[str]) -> dict:
    """The figures of some views together."""
    found = {}
    for key in ("psnr", "copy_psnr", "depth", "depth_median", "sweep", "sweep_median"):
        values = [row[key] for row in rows if row[key] is not None]
        found[key] = statistics.fmean(values) if values else None
    for key, name in (("n", "miou"), ("copied", "copy_miou")):
        found[name] = evaluation.label_metrics(sum(row[key] for row in rows), names)["miou"]
    return found


COLUMNS = {"mIoU": ("miou", 1), "PSNR": ("psnr", 2), "depth": ("depth", 3), "median": ("depth_median", 3),
           "mIoU ": ("copy_miou", 1), "PSNR ": ("copy_psnr", 2),
           "depth ": ("sweep", 3), "median ": ("sweep_median", 3)}


def head() -> str:
    """The first two lines of the table."""
    return (f"{'':24}{'ours':^36}{'copied':^18}{'plane sweep':^18}\n{'':24}"
            + "".join(f"{name.strip():>9}" for name in COLUMNS))


def line(name: str, found: dict) -> str:
    """A line of the table; - where there is nothing to compare with."""
    cells = ("-" if found[key] is None else f"{found[key]:.{digits}f}" for key, digits in COLUMNS.values())
    return f"{shown(name)[:23]:24}" + "".join(f"{cell:>9}" for cell in cells)


# ------------------------------------------------------------------------------------------- the command line

def parse_arguments() -> argparse.Namespace:
    """The command line. DataError for what cannot be measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("folder", help="of scenes in ScanNet's layout")
    add("--checkpoint", default="weights/sray_rooms.pt", help="[weights/sray_rooms.pt]")
    add("--height", type=int, default=240, help="[240]")
    add("--width", type=int, default=320, help="[320]")
    add("--views", type=int, default=8, help="source views, 1 to 16 [8]")
    add("--preview", type=int, default=1, metavar="N", help="every N-th row and column alone [1]")
    add("--typical", type=float, metavar="METRES",
        help="near and far are scaled until a scene's median depth is so many metres [the run's]")
    add("--keep", type=int, default=0, metavar="N", help="labels from a ray's N heaviest samples [0: all]")
    add("--features", action="store_true", help="the sweep compares the encoder's channels, not colours")
    add("--cache", default="cache", help="folder for decoded frames [cache]")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="[auto]")
    add("--json", metavar="FILE", help="write all figures there")
    args = parser.parse_args()
    if not 1 <= args.views <= 16:
        raise DataError(f"--views {args.views}: the protocol has 16; give 1 to 16")
    evaluating.check_least(args, height=32, width=32, preview=1, keep=0)
    return argparse.Namespace(**vars(args), coarse=None, fine=None, fast="auto", coarse_stride=1, workers=0,
                              crop=0)


def open_folder(args, config) -> list:
    """The scenes of the folder, or the folder itself where it is one, checked and decoded."""
    root = Path(args.folder)
    folders = [root] if (root / "color").is_dir() else [root / name for name in list_scenes(root)]
    return evaluating.open_scenes(folders, data, config, args, lambda scene: (
        evaluation.source_views(scene, args.views), evaluation.test_views(scene)))


def main() -> None:
    args = parse_arguments()
    machine.prepare_cpu()
    model, _ = training.load_checkpoint(args.checkpoint)
    evaluating.resize(model.config, args)
    scenes = open_folder(args, model.config)
    evaluating.warn(scenes, model.classes)
    model = fast.renderer(model.to(machine.pick_device(args.device)).eval(), args)
    names, rows, found = model.classes.names, [], {}
    views = sum(len(evaluation.test_views(scene)) for scene in scenes)
    bar_format = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"
    with tqdm(total=2 * views, desc="measuring", bar_format=bar_format, dynamic_ncols=True) as bar:
        bar.write(head())
        for scene in scenes:
            own = measure(model, scene, args, bar)
            rows += own
            found[scene.name] = summary(own, names)
            bar.write(line(scene.name, found[scene.name]))
    found["all"] = summary(rows, names)
    print(line(f"all, {len(rows)} views", found["all"]))
    if args.json:
        write_json(Path(args.json), found | {"command": evaluating.command_line()})


if __name__ == "__main__":
    run_script(main)
