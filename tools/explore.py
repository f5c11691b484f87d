"""One ray through the whole method, on one page that opens from disk in any browser, without a network.

    python -m tools.explore --checkpoint weights/sray_rooms.pt --scenes room9000_00 --out explorer.html

The page shows a test view, its source views, and for a grid of its rays what each stage computes: samples in
the source views, density and rendering weights, both attentions, view weights, answer. All figures are the
lessons'. The page itself has two of the lessons' formulas, because it computes them anew: 01's projection,
for the dots, and 05's projection onto C(tau), for its slider. The tests hold both equal to the lessons.

What the slider does to the answer follows from M'', since the head is linear. With another tau's view weights

    logits(tau) = logits + sum_s W_s sum_v (w_sv(tau) - w_sv) D_svl          W: rendering weights

where D is by how much a view's logits differ from the mean of the sample's views. (w(tau) - w sums to 0, so
what all views share changes nothing.) D is most of the page, a byte a number: the grid of rays is as fine as
8 MB allow.

Dimension key: R rays, S samples per ray, V source views, L classes.
Test: pytest tests/test_tool_explore.py
"""
import argparse
import base64
import copy
import io
import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import imageio.v3 as iio
import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from support import evaluating, machine, pictures
from support.files import DataError, run_script, write_atomically

rooms = import_module("00_rooms")                  # make_rooms, where there is no dataset
data = import_module("01_data")                    # rays, project, unproject, pixel_grid
reprojection = import_module("03_reprojection")    # in_view
training = import_module("07_train")               # load_checkpoint, depth_range
evaluation = import_module("08_eval")              # render_views, source_views, test_views

HERE = Path(__file__).parent
OUTSIDE, SEEN, HIDDEN, UNKNOWN = range(4)          # what a source view has of a ray's surface point
BUDGET = 6_900_000                                 # bytes of text that the rays may take


# ------------------------------------------------------------------------------------ what the model computes
def free_weights(level, context: tuple) -> Tensor:
    """Table 10's scores divided by their sum, (R, S, V): the weights in C(tau) for a tau so small that every
    distribution is in it, and the projection changes nothing."""
    M, differences, mask, visibility = context
    network = copy.copy(level.weights)
    network.tau = 1e-9
    return network(M, differences, visibility, mask)


def differences_of_views(level, refined: Tensor, mask: Tensor) -> Tensor:
    """M'' (R, S, V, C) -> D (R, S, V, L): a view's logits less the mean over the sample's valid views."""
    logits = F.linear(refined, level.head.weight) * mask[..., None]           # (R, S, V, L), without the bias
    mean = logits.sum(2, keepdim=True) / mask.sum(2)[..., None, None].clamp(min=1)        # (R, S, 1, L)
    return (logits - mean) * mask[..., None]


@torch.no_grad()
def follow(model, sources, view, pixels: Tensor) -> dict[str, Tensor]:
    """Rays of a target view at pixels (R, 2) -> what each stage computes of them. The attentions (mean of the
    heads) are those of the sample at the surface, the one of largest rendering weight."""
    origin, directions = data.rays(pixels, view.K, view.c2w)
    levels = model(sources, pixels, view.K, view.c2w, fine_only=True)
    coarse, fine, level = levels["coarse"], levels["fine"], model.fine
    rays = origin, directions
    _, coarse_sigma, _ = model.coarse.context_and_density(*rays, coarse["z"], sources, colour=False)
    context, sigma, _ = level.context_and_density(*rays, fine["z"], sources, colour=False)
    M, _, mask, _ = context
    intra, cross = level.cra.maps(M, mask)                    # (R, V, A, S, S), (R, S, A, V, V)
    ray, surface = torch.arange(len(pixels), device=pixels.device), fine["weights"].argmax(1)
    return {"coarse_z": coarse["z"], "coarse_sigma": coarse_sigma, "coarse_weights": coarse["weights"],
            "z": fine["z"], "sigma": sigma, "weights": fine["weights"], "surface": surface,
            "depth": fine["depth"], "colour": fine["colour"], "logits": fine["logits"], "mask": mask,
            "intra": intra[ray, :, :, surface].mean(2) * mask.transpose(1, 2),            # (R, V, S)
            "cross": cross[ray, surface].mean(1) * mask[ray, surface][:, None],           # (R, V, V)
            "w": fine["w"][ray, surface], "scores": free_weights(level, context),         # (R, V), (R, S, V)
            "differences": differences_of_views(level, level.cra(M, mask), mask)}  # (R, S, V, L)


def what_views_have(points: Tensor, known: Tensor, views) -> Tensor:
    """Points (R, 3), known (R,) -> OUTSIDE, SEEN, HIDDEN or UNKNOWN in each view (R, V). Seen: no more than
    5% behind what the view's true depth shows there. Hidden: more than 10%. Between them lie edges."""
    V, H, W = views.depth.shape
    uv, z = data.project(points, views.K, views.c2w)                          # (R, V, 2), (R, V)
    inside = reprojection.in_view(uv, z, H, W)                                # (R, V)
    u, v = uv.round().long().unbind(-1)
    shown = views.depth[torch.arange(V), v.clamp(0, H - 1), u.clamp(0, W - 1)]            # (R, V)
    has = torch.full_like(u, UNKNOWN)
    has[(z <= 1.05 * shown) & (shown > 0)] = SEEN
    has[(z > 1.1 * shown) & (shown > 0)] = HIDDEN
    has[~inside] = OUTSIDE
    has[~known] = UNKNOWN
    return has


def surroundings(view, reach: int) -> tuple[Tensor, Tensor, Tensor]:
    """Around each pixel, up to `reach` away: the largest true depth over the smallest (1 where unknown), the
    spread of the photograph's colour, and whether all labels are one: (H, W) each."""
    def largest(x: Tensor) -> Tensor:
        return F.max_pool2d(x[None, None].float(), 2 * reach + 1, stride=1, padding=reach)[0, 0]

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2 * reach + 1, stride=1, padding=reach, count_include_pad=False)
    known = view.depth > 0
    nearest = -largest(torch.where(known, -view.depth, -torch.inf))
    jump = torch.where(known, largest(view.depth) / nearest, 1)
    spread = (mean(view.images.square()) - mean(view.images).square()).clamp(min=0).sum(0).sqrt()
    return jump, spread, largest(view.labels) == -largest(-view.labels)


def most_hidden(scene, views: int) -> int:
    """Which of the scene's test views has most surface points hidden from source views."""
    source_views, hidden = scene.views(evaluation.source_views(scene, views)), []
    for view in map(scene.views, ([index] for index in evaluation.test_views(scene))):
        depth = view.depth[0].flatten()[::50]
        points = data.unproject(data.pixel_grid(*view.depth.shape[1:])[::50], depth, view.K[0], view.c2w[0])
        hidden.append(int((what_views_have(points, depth > 0, source_views) == HIDDEN).sum()))
    return hidden.index(max(hidden))


def truths(view, source_views, pixels: Tensor) -> dict[str, Tensor]:
    """What is true of these rays (R, ...), and what surrounds them."""
    u, v = pixels.long().unbind(-1)
    depth, H = view.depth[v, u], view.depth.shape[0]
    points = data.unproject(pixels, depth, view.K, view.c2w)                  # (R, 3)
    jump, contrast, one_label = (x[v, u] for x in surroundings(view, max(2, H // 40)))
    return {"pixels": pixels, "true_depth": depth, "true_label": view.labels[v, u],
            "true_colour": view.images[:, v, u].T, "views": what_views_have(points, depth > 0, source_views),
            "jump": jump, "contrast": contrast, "one_label": one_label}


# -------------------------------------------------------------------------------------- six rays for a lesson
def judged(rays: dict) -> SimpleNamespace:
    """Measures of each ray (R,) that choose the tour's rays and stand in its sentences."""
    r = SimpleNamespace(**rays, V=rays["views"].shape[1])
    r.count, r.hidden = (r.views == SEEN).sum(1), (r.views == HIDDEN).sum(1)
    total = r.weights.sum(1).clamp(min=1e-6)
    r.spread = ((r.weights * (r.z - r.depth[:, None]).square()).sum(1) / total).sqrt()    # metres
    r.close = (r.weights * ((r.z - r.depth[:, None]).abs() < 0.1)).sum(1)
    r.share, r.answer = r.logits.softmax(-1).max(-1)
    r.known, r.smooth = r.true_depth > 0, r.jump < 1.15
    r.error = (r.depth - r.true_depth).abs()
    r.labelled = r.true_label >= 0
    r.right = r.labelled & (r.answer == r.true_label)
    r.w_seen, r.w_hidden = (((r.w * (r.views == has)).sum(1) / (r.views == has).sum(1).clamp(min=1))
                            for has in (SEEN, HIDDEN))
    return r


def clear_surface(r, names) -> tuple:
    """Many views see it, the label is right, the weight is in one place, there is something to see."""
    able = r.right & r.smooth & r.one_label & (r.error < 0.03 * r.true_depth) & (r.hidden == 0)
    return able, r.count + 8 * r.close + 4 * r.contrast, lambda i: (
        f"{r.count[i]} of {r.V} views see this point ({names[r.answer[i]]}), and from none is it "
        "hidden.",
        f"So {r.close[i]:.0%} of the ray's weight lies within 10 cm of {r.depth[i]:.2f} m; the truth is "
        f"{r.true_depth[i]:.2f} m.")


def edge(r, names) -> tuple:
    """The true depth jumps beside the ray, and the ray cannot decide."""
    return r.known & (r.jump > 1.2), r.spread, lambda i: (
        f"Beside this ray another surface begins: the true depth changes by a factor of {r.jump[i]:.1f} "
        "within a few pixels.",
        f"The weight spreads over ±{r.spread[i]:.2f} m, and its mean, the depth, is {r.depth[i]:.2f} m; "
        f"{r.true_depth[i]:.2f} m is true.")


def occluded(r, names) -> tuple:
    """Some views look at something else, and their weights say so."""
    return r.smooth & (r.hidden > 0) & (r.count > 1), r.w_seen - r.w_hidden, lambda i: (
        f"Something stands before this point in {r.hidden[i]} of {r.V} views, and nobody tells the "
        "model.",
        f"A view that sees the point has the weight {r.w_seen[i]:.3f} on average, one from which it is "
        f"hidden {r.w_hidden[i]:.3f}.")


def blank_wall(r, names) -> tuple:
    """Nothing to compare: the blankest tenth of the picture, where the weight spreads most."""
    able = r.smooth & r.known & (r.contrast <= r.contrast.quantile(0.1)) & (r.count > 1)
    if "wall" in names and (able & (r.true_label == names.index("wall"))).any():
        able = able & (r.true_label == names.index("wall"))
    return able, r.spread, lambda i: (
        f"{r.count[i]} views see this point, but all around it has the same colour: other depths look the "
        "same.",
        f"The weight spreads over ±{r.spread[i]:.2f} m, and the depth is wrong by {r.error[i]:.2f} m.")


def few_views(r, names) -> tuple:
    """As few as there are, but one."""
    return r.smooth & (r.count > 0), -r.count.float() + r.error / 100, lambda i: (
        f"{r.count[i]} of {r.V} views {'sees' if r.count[i] == 1 else 'see'} this point: there is "
        "little to compare.",
        f"The depth is {r.depth[i]:.2f} m where {r.true_depth[i]:.2f} m is true; the answer is "
        f"{names[r.answer[i]]}.")


def wrong_label(r, names) -> tuple:
    """Surely wrong; inside a thing if there is such a ray."""
    wrong = r.labelled & ~r.right
    inside = wrong & r.one_label
    return inside if inside.any() else wrong, r.share, lambda i: (
        f"The model answers {names[r.answer[i]]} with a probability of {r.share[i]:.2f}; the truth is "
        f"{names[r.true_label[i]]}.",
        f"The depth is {r.depth[i]:.2f} m where {r.true_depth[i]:.2f} m is true: was it the place that went "
        "wrong, or the name?")


STOPS = {"a clear surface": clear_surface, "an edge": edge, "an occluded view": occluded,
         "a blank wall": blank_wall, "few views": few_views, "a wrong label": wrong_label}


def tour(rays: dict, names: list[str], apart: float) -> list[dict]:
    """For each stop the ray that fits it best, `apart` pixels from the others. A stop that no ray fits is
    left out, as are all in a scene without truths."""
    r, stops = judged(rays), []
    free = torch.ones(len(r.pixels), dtype=torch.bool)
    for title, stop in STOPS.items():
        able, score, text = stop(r, names)
        if (able & free).any():
            ray = int(torch.where(able & free, score.float(), -torch.inf).argmax())
            free &= (r.pixels - r.pixels[ray]).norm(dim=1) > apart
            stops.append({"title": title, "ray": ray, "text": list(text(ray))})
    return stops


# -------------------------------------------------------------------------------------- what the page carries
def packed(x: Tensor, kind: str) -> dict:
    """An array as text: "f4" as it is, "u1" and "u2" whole numbers, "share" numbers in [0, 1] in 16 bits,
    "byte" numbers in 8 bits, on a scale of each ray's own."""
    x, scale = x.cpu().numpy(), None
    if kind == "share":
        content = np.round(x * 65535).astype("<u2")
    elif kind == "byte":
        scale = np.abs(x).reshape(len(x), -1).max(1).astype("<f4").clip(min=1e-9) / 127
        content = np.round(x / scale.reshape(-1, *[1] * (x.ndim - 1))).astype("i1")
    else:
        content = x.astype("<" + kind)
    got = {"kind": kind, "shape": list(x.shape), "text": base64.b64encode(content.tobytes()).decode()}
    return got if scale is None else {**got, "scale": base64.b64encode(scale.tobytes()).decode()}


KINDS = {"coarse_sigma": "f4", "coarse_weights": "f4", "z": "f4", "sigma": "f4", "weights": "f4",
         "depth": "f4", "colour": "f4", "logits": "f4", "true_depth": "f4", "true_colour": "f4",
         "pixels": "u2",
         "surface": "u1", "true_label": "u1", "views": "u1", "mask": "u2", "intra": "share", "cross": "share",
         "scores": "share", "differences": "byte"}


def stride_that_fits(config, classes: int, views: int, height: int, width: int) -> int:
    """The finest grid, in pixels, whose rays take no more than BUDGET bytes of text."""
    S, V, L = config.fine, views, classes
    ray = S * V * (L + 2) + 2 * V * (S + V) + 14 * S + 8 * config.coarse + V + 4 * L + 60
    rays = {n: -(-height // n) * -(-width // n) for n in range(1, max(height, width) + 1)}
    return next(n for n in rays if rays[n] * ray * 4 / 3 <= BUDGET)


def image_text(image, quality: int = 0) -> str:
    """An image (H, W, 3), in [0, 1] or uint8, as an address that holds it: a png, or a jpg of a quality."""
    image = np.asarray(image)
    image = image if image.dtype == np.uint8 else (image.clip(0, 1) * 255).round().astype(np.uint8)
    file = io.BytesIO()
    if quality:
        iio.imwrite(file, image, extension=".jpg", quality=quality)
    else:
        iio.imwrite(file, image, extension=".png")
    return f"data:image/{'jpeg' if quality else 'png'};base64,{base64.b64encode(file.getvalue()).decode()}"


def picture(shown, options: dict) -> np.ndarray:
    """What imshow(shown, **options) would draw: (H, W, 3) in [0, 1] or uint8."""
    shown = np.asarray(shown)
    if shown.ndim == 3:
        return shown
    scaled = (shown - options["vmin"]) / (options["vmax"] - options["vmin"])
    colours = matplotlib.colormaps[options["cmap"]](np.nan_to_num(scaled))[..., :3]
    return np.where(np.isnan(shown)[..., None], 1, colours)


def layers(shot: dict, classes, has_labels: bool) -> dict:
    """The target's pictures by subject and version: {"colour": {"truth": {"image", "scale"} ...} ...}. They
    are those of an evaluation's sheet."""
    has_depth = bool((shot["true_depth"] > 0).any())
    far = max(1e-3, float(shot["true_depth" if has_depth else "depth"].max()))
    groups = {"colour": pictures.colour_panels(shot),
              "labels": pictures.label_panels(shot, classes, has_labels, semantic=True),
              "depth": pictures.depth_panels(shot, has_depth, far)}
    got = {}
    for subject, panels in groups.items():
        versions = ("truth", "ours", "error") if len(panels) == 3 else ("ours",)
        got[subject] = {version: {
            "image": image_text(picture(shown, options), 92 if subject == "colour" and not options else 0),
            "scale": [options["cmap"], options["vmin"], options["vmax"]] if options else None}
            for version, (_, shown, options) in zip(versions, panels)}
    return got


def camera(view) -> dict:
    """K (3, 3) and c2w (4, 4) as lists."""
    return {"K": view.K.tolist(), "c2w": view.c2w.tolist()}


def colour_map(name: str) -> list:
    """A colour map as 33 colours (r, g, b), to be interpolated."""
    return (matplotlib.colormaps[name](np.linspace(0, 1, 33))[:, :3] * 255).round().astype(int).tolist()


def payload(model, scene, test_view: int, views: int = 8, stride: int = 0) -> dict:
    """All that the page shows of a scene's test view (0 to 3), with the rays of every stride-th row and
    column (0: as many as fit)."""
    c, classes = model.config, model.classes
    source_ids, index = evaluation.source_views(scene, views), evaluation.test_views(scene)[test_view]
    source_views, view = scene.views(source_ids), scene.views([index])[0]
    known = evaluating.comparable(scene, classes)
    if not known:
        view.labels.fill_(data.IGNORE)
    V, (H, W), device = len(source_ids), view.depth.shape, next(model.parameters()).device
    fits = stride_that_fits(c, len(classes.names), V, H, W)
    if 0 < stride < fits:
        raise DataError(f"--stride {stride}: the page would have more than 8 MB; give {fits} or more")
    stride = stride or fits
    grid = data.pixel_grid(H, W).view(H, W, 2)[stride // 2::stride, stride // 2::stride]
    pixels = grid.flatten(0, 1)                                               # (R, 2)
    on_device = replace(view, K=view.K.to(device), c2w=view.c2w.to(device))
    with torch.no_grad():
        sources = model.eval().encode(source_views.to(device))
    parts = [follow(model, sources, on_device, some.to(device)) for some in pixels.split(128)]
    rays = {key: torch.cat([part[key] for part in parts]).cpu() for key in parts[0]}
    rays |= truths(view, source_views, pixels)
    stops = tour(rays, classes.names, apart=W / 12)
    bits = (rays["mask"] * 2 ** torch.arange(V)).sum(-1)                      # (R, S): view v is bit v
    rays |= {"mask": bits, "true_label": rays["true_label"] % 256}            # IGNORE becomes 255
    fast = SimpleNamespace(fast="auto", keep=0, coarse_stride=1, workers=0)
    renderer = import_module("fast").renderer(copy.deepcopy(model), fast)
    shot = next(evaluation.render_views(renderer, scene, [index], views))
    near, far = (float(x) for x in training.depth_range(c, sources))
    return {"scene": scene.name, "frame": scene.frames[index], "size": [H, W], "stride": stride,
            "grid": list(grid.shape[:2]), "near": near, "far": far, "tau": c.tau,
            "unit": "" if scene.near_far else "m",
            "miou": shot["miou"], "psnr": shot["psnr"], "classes": classes._asdict(),
            "target": camera(view), "layers": layers(shot, classes, known), "tour": stops,
            "sources": [{**camera(v), "image": image_text(v.images.permute(1, 2, 0), 90)}
                        for v in map(source_views.__getitem__, range(V))],
            "coarse_z": rays["coarse_z"][0].tolist(),
            "maps": {name: colour_map(name) for name in ("viridis", "cividis")},
            "arrays": {key: packed(rays[key], kind) for key, kind in KINDS.items()}}


def page(content: dict) -> str:
    """The page: the template with style, program and content put in."""
    parts = {"STYLE": (HERE / "explorer.css").read_text(), "PROGRAM": (HERE / "explorer.js").read_text(),
             "TITLE": f"{content['scene']}, frame {content['frame']}",
             "CONTENT": json.dumps(content).replace("</", "<\\/")}
    text = (HERE / "explorer.html").read_text()
    for name, part in parts.items():
        text = text.replace(f"<!--{name}-->", part)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    evaluating.add_scene_flags(parser)
    add = parser.add_argument
    add("--out", default="explorer.html", metavar="FILE", help="[explorer.html]")
    add("--view", type=int, default=0, choices=range(5), metavar="N",
        help="which of the scene's test views, 1 to 4 [that with most points hidden from source views]")
    add("--views", type=int, default=8, help="source views, 1 to 16 [8]")
    add("--stride", type=int, default=0, metavar="N",
        help="rays of every N-th row and column [0: as 8 MB allow]")
    args = parser.parse_args()
    if not 1 <= args.views <= 16:
        raise DataError(f"--views {args.views}: give 1 to 16")
    evaluating.check_least(args, stride=0)
    machine.prepare_cpu()
    model, state = training.load_checkpoint(args.checkpoint)
    if model.config.cra != "full":
        raise DataError(f"{args.checkpoint}: its attention is '{model.config.cra}', and the page shows both "
                        "of 'full'; name another checkpoint")
    kind, root, names = evaluating.choose_scenes(args, model.config, state["run"], rooms.make_rooms)
    scene, = evaluating.open_scenes([root / names[0]], data, model.config, args, lambda scene: (
        evaluation.source_views(scene, args.views), evaluation.test_views(scene)))
    evaluating.introduce(args.checkpoint, state, kind, root, names[:1])
    count = len(evaluation.test_views(scene))
    if args.view > count:
        raise DataError(f"--view {args.view}: {scene.name} has {count} readable test views")
    view = args.view - 1 if args.view else most_hidden(scene, args.views)
    model = model.to(machine.pick_device(args.device))
    content = payload(model, scene, view, args.views, args.stride)
    text = page(content).encode()
    write_atomically(Path(args.out), lambda file: file.write(text))
    print(f"{args.out}: {len(text) / 1e6:.1f} MB, {content['grid'][0] * content['grid'][1]} rays, tour: "
          f"{', '.join(stop['title'] for stop in content['tour'])}; open it in a browser")


if __name__ == "__main__":
    run_script(main)
