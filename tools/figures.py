"""The supplement's Figures 1 to 4: `python -m tools.tables figure1`.

Each function returns a figure and a sentence of what it measures. Dimension key: R rays, S samples, V source
views. Test: pytest tests/test_tool_tables.py
"""
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from support.files import figure_text
from support.pictures import colour_labels
from support.ranges import follow
from tools.experiments import UNIT, Bench, per_scene, per_scene_nerf, steps_of, unseen_root
from tools.variants import looking, rank_agreement

data = import_module("01_data")                # Scene, Views, protocol, cameras
encoder = import_module("02_encoder")          # pca_picture
training = import_module("07_train")           # load_checkpoint
evaluation = import_module("08_eval")          # metrics
nerf = import_module("09_semantic_nerf")       # load

ORANGE, GREEN = "#d55e00", "#007a4d"


class Shown(NamedTuple):
    """A trained model before an unseen scene: sources encoded from its 8 source views, and its 4 test
    views."""
    model: "training.SRay"
    name: str
    scene: "data.Scene"
    sources: "training.Sources"
    source_views: "data.Views"
    targets: "data.Views"


def unseen(checkpoint: Path) -> Shown:
    """The model of a checkpoint and the first scene that its run kept for testing."""
    model, state = training.load_checkpoint(checkpoint)
    c, name = model.eval().config, state["run"]["test"][0]
    scene, = follow([data.Scene(unseen_root(state["run"]) / name, c.height, c.width)], c, data.protocol)
    source_ids, _, test_ids = data.protocol(scene)
    views = scene.views(source_ids)
    return Shown(model, name, scene, model.encode(views), views, scene.views(test_ids))


def truly_visible(points: Tensor, views, tolerance: float = 1.05) -> Tensor:
    """Points (..., 3) -> (..., V) bool: in a view's image and not behind what its true depth shows there (by
    5%)."""
    V, H, W = views.depth.shape
    uv, z = data.project(points, views.K, views.c2w)                          # (..., V, 2), (..., V)
    u, v = uv.round().long().unbind(-1)
    inside = (z > 0) & (u >= 0) & (u < W) & (v >= 0) & (v < H)
    depth = views.depth[torch.arange(V), v.clamp(0, H - 1), u.clamp(0, W - 1)]
    return inside & (z < tolerance * depth)


# ----------------------------------------------------------------------------------------------- Figure 1

def attention_received(shown: Shown, target: int, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rays of a test view at pixels (R, 2) -> intra-view attention maps (R, V, S, S), mean of the heads; the
    mask (R, S, V); true visibility (R, S, V); the depths (R, S). At the fine level's samples."""
    level, view = shown.model.fine, shown.targets[target]
    z = shown.model(shown.sources, pixels, view.K, view.c2w, fine_only=True)["fine"]["z"]
    origin, directions = data.rays(pixels, view.K, view.c2w)
    context, _, _ = level.context_and_density(origin, directions, z, shown.sources, colour=False)
    M, _, mask, _ = context
    intra, _ = level.cra.maps(M, mask)                                        # (R, V, A, S, S)
    points = origin + z[..., None] * directions[:, None]                      # (R, S, 3)
    return intra.mean(2), mask, truly_visible(points, shown.source_views), z


def draw_attention(axis, attention: Tensor, visible: Tensor) -> None:
    """A map (S, S); below it the mean over its readers, and in green where the sample is visible (S,)."""
    S = len(attention)
    picture = axis.imshow(attention, cmap="cividis", vmin=0)
    right = S - 0.5
    axis.imshow(attention.mean(0)[None], cmap="cividis", vmin=0, extent=(-0.5, right, S + 2.5, S + 0.5))
    green = torch.where(visible[:, None], torch.tensor([0.0, 0.62, 0.45]), torch.tensor(0.9))     # (S, 3)
    axis.imshow(green[None], extent=(-0.5, right, S + 5.5, S + 3.5))
    axis.set(title="intra-view attention", xlabel="sample that is read, near to far", xlim=(-0.5, right),
             ylim=(S + 5.5, -0.5), aspect="equal")
    axis.set_yticks([0, S // 2, S - 1, S + 1.5, S + 4.5], [0, S // 2, S - 1, "mean", "visible"])
    axis.figure.colorbar(picture, ax=axis, shrink=0.7)


def figure_1(bench: Bench, plt) -> tuple:
    """The encoder's features as pictures, and intra-view attention along a query ray beside true visibility.
    A column of a map is a sample that is read, a row one that reads; the strip below is the mean over the
    readers, and below it, in green, where the source view truly sees the sample."""
    shown = unseen(bench.trained() / "checkpoint.pt")
    H, W = shown.targets.depth.shape[1:]
    pixels = data.pixel_grid(H, W)[::max(1, H * W // 500)]
    # the ray, and the three views, in which most samples are partly seen and partly hidden
    _, mask, visible, _ = attention_received(shown, 1, pixels)
    mixed = 0.5 - ((visible & mask).float().mean(1) - 0.5).abs()              # (R, V)
    ray = mixed.topk(min(3, mixed.shape[1]), dim=1).values.sum(1).argmax()
    maps, mask, visible, z = attention_received(shown, 1, pixels[ray][None])
    picture = encoder.pca_picture(shown.sources.features)
    figure, axes = plt.subplots(3, 3, figsize=(11, 9.6), layout="constrained", height_ratios=[1, 1, 1.5])
    for column, v in zip(axes.T, mixed[ray].topk(3).indices.tolist()):
        column[0].imshow(shown.source_views.images[v].permute(1, 2, 0))
        column[0].set_title(f"source view {v}")
        column[1].imshow(picture[v])
        column[1].set_title("its features, three main directions")
        draw_attention(column[2], maps[0, v], visible[0, :, v] & mask[0, :, v])
    axes[2, 0].set_ylabel("sample that reads, near to far")
    for axis in axes[:2].flat:
        axis.set_axis_off()
    figure.suptitle(f"{figure_text(shown.name)}: one query ray in three source views (samples {z.min():.1f} "
                    f"to "
                    f"{z.max():.1f} m)")
    found = looking(shown.model, shown.scene, len(shown.source_views.K), len(pixels))
    rows = [f"| {name} | {one['surface']:.0f} | {one['visible']:.0f} |" for name, one in found.items()]
    note = (f"Of pairs of samples on {len(pixels)} rays of each of 4 test views, what share (%) a score puts "
            "in order; 50 is chance. Surface: of the views that see a ray's surface, samples within 5% of it "
            "before the others. Visible: at the surface, views that see it before those from which it is "
            "hidden, on rays that have both.\n\n")
    note += "\n".join(["| | surface | visible |", "|---|---|---|", *rows])
    return figure, note


# ----------------------------------------------------------------------------------------------- Figure 2

class Sight(NamedTuple):
    """Where each pixel's surface point of a test view falls in each source view, and what is true there."""
    view: "data.Views"
    uv: Tensor         # (H*W, V, 2)
    inside: Tensor     # (H*W, V)
    visible: Tensor    # (H*W, V)
    hidden: Tensor     # (H*W, V) something is in front of it by a fifth of the depth or more: no edge's pixel
    known: Tensor      # (H*W,) seen by some, hidden from some


def sight(shown: Shown, target: int) -> Sight:
    """See Sight."""
    view, (H, W) = shown.targets[target], shown.targets.depth.shape[1:]
    depth = view.depth.flatten()
    points = data.unproject(data.pixel_grid(H, W), depth, view.K, view.c2w)   # (H*W, 3)
    uv, z = data.project(points, shown.source_views.K, shown.source_views.c2w)
    inside = (z > 0) & (uv >= 0).all(-1) & (uv[..., 0] <= W - 1) & (uv[..., 1] <= H - 1)
    visible = truly_visible(points, shown.source_views)
    hidden = inside & ~truly_visible(points, shown.source_views, tolerance=1.2) & (depth > 0)[:, None]
    return Sight(view, uv, inside, visible, hidden, hidden.any(1) & visible.any(1))


def query_rays(s: Sight, grid: Tensor, apart: float) -> list[int]:
    """Three pixels of grid (H*W, 2), `apart` pixels apart, that are hidden from most views."""
    picks, score = [], s.hidden.sum(1) * s.known + 1e-3 * s.visible.sum(1)    # (H*W,)
    for _ in range(3):
        picks.append(int(score.argmax()))
        score = score * ((grid - grid[picks[-1]]).norm(dim=1) > apart)
    return picks


def figure_2(bench: Bench, plt) -> tuple:
    """View weights beside the source views they weigh, for three query rays: each number is a view's weight
    averaged over the samples by rendering weight. A cross marks where the surface point (true depth) falls;
    the title is green where the view truly sees it."""
    shown = unseen(bench.trained() / "checkpoint.pt")
    (H, W), V = shown.targets.depth.shape[1:], len(shown.source_views.K)
    grid = data.pixel_grid(H, W)
    s = max((sight(shown, i) for i in range(len(shown.targets.K))), key=lambda s: int(s.known.sum()))
    parts = [shown.model(shown.sources, pixels, s.view.K, s.view.c2w, fine_only=True)["fine"]
             for pixels in grid.split(512)]
    w, weights = (torch.cat([p[key] for p in parts]) for key in ("w", "weights"))
    w = torch.einsum("rs,rsv->rv", weights, w) / weights.sum(1, keepdim=True).clamp(min=1e-6)     # (H*W, V)
    figure, axes = plt.subplots(3, V + 1, figsize=(1.9 * (V + 1), 5.4), layout="constrained")
    cross = dict(marker="x", color=ORANGE, ms=9, mew=2.5)
    for row, i in zip(axes, query_rays(s, grid, W / 5)):
        row[0].imshow(s.view.images.permute(1, 2, 0))
        row[0].plot(*grid[i], **cross)
        row[0].set_title("query ray", fontsize=9)
        for v, axis in enumerate(row[1:]):
            axis.imshow(shown.source_views.images[v].permute(1, 2, 0))
            if s.inside[i, v]:
                axis.plot(*s.uv[i, v], **cross)
            state = "hidden" if s.inside[i, v] else "outside"
            state, colour = ("seen", GREEN) if s.visible[i, v] else (state, "#777777")
            axis.set_title(f"{w[i, v]:.3f} {state}", fontsize=9, color=colour)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.suptitle(f"{figure_text(shown.name)}: view weights w of three query rays (eq. 3, τ = "
                    f"{shown.model.config.tau})")
    seen, hidden = w[s.known][s.visible[s.known]], w[s.known][s.hidden[s.known]]
    order = rank_agreement(torch.cat([seen, hidden]), torch.arange(len(seen) + len(hidden)) < len(seen))
    note = (f"Over the {int(s.known.sum())} pixels of this view that some source views see and from some "
            f"something hides (by 20% of the depth or more): mean weight {seen.mean():.4f} where the view "
            f"sees the point, {hidden.mean():.4f} where it is hidden; a weight of the first kind is above "
            f"one of the second in {order:.1f}% of pairs (50 is chance).")
    return figure, note


# -------------------------------------------------------------------------------------------- Figures 3 and 4

def renderings(model, scene) -> list[dict]:
    """A model's pictures of a scene's 4 test views."""
    source_ids, _, test_ids = data.protocol(scene)
    sources, targets = model.eval().encode(scene.views(source_ids)), scene.views(test_ids)
    size = scene.height, scene.width
    return [model.render_image(sources, K, c2w, *size) for K, c2w in zip(targets.K, targets.c2w)]


def compared(bench: Bench, colour: bool) -> tuple:
    """The scene, its test views, and title -> pictures of them: the per-scene method at its end, S-Ray
    without and with fine-tuning."""
    base, tuned, baseline, name = per_scene(bench)
    method, end, last = "Semantic-NeRF", steps_of("100k", bench), steps_of("60k", bench)
    if colour:                                                                # a NeRF has no semantic loss
        method, key = "NeRF", f"nerf-colour-{name}-{UNIT[bench.args.size]}"
        baseline = per_scene_nerf(bench, base, key, "--lambda1", 0)
    model, state = training.load_checkpoint(base / "checkpoint.pt")
    models = {f"{method}, {end} steps": nerf.load(baseline / "checkpoint.pt"),
              "S-Ray, never trained here": model,
              f"S-Ray, fine-tuned {last} steps": training.load_checkpoint(tuned / "checkpoint.pt")[0]}
    c = model.config
    scene, = follow([data.Scene(unseen_root(state["run"]) / name, c.height, c.width)], c, data.protocol)
    pictures = {title: renderings(model, scene) for title, model in models.items()}
    return scene, scene.views(data.protocol(scene)[2]), pictures


def comparison(bench: Bench, plt, colour: bool) -> tuple:
    """Rows: the 4 test views of one unseen scene. Columns: the truth, then `compared`."""
    scene, targets, pictures = compared(bench, colour)
    rows, (H, W) = len(targets.K), targets.depth.shape[1:]
    figure, axes = plt.subplots(rows, 4, figsize=(12, 3 * rows * H / W + 1.2), layout="constrained")
    used = set(targets.labels.unique().tolist())
    for i, row in enumerate(axes):
        truth, true_labels = targets.images[i].permute(1, 2, 0), targets.labels[i]
        row[0].imshow(truth if colour else colour_labels(true_labels, scene.classes))
        row[0].set_ylabel(f"test view {i + 1}")
        for axis, shots in zip(row[1:], pictures.values()):
            labels = shots[i]["logits"].argmax(-1)
            if colour:
                axis.imshow(shots[i]["colour"].clamp(0, 1))
                axis.set_title(f"{evaluation.psnr(shots[i]['colour'], truth):.1f} dB", fontsize=9)
                continue
            used |= set(labels.unique().tolist())
            axis.imshow(colour_labels(labels, scene.classes))
            n = evaluation.confusion_matrix(labels.flatten(), true_labels.flatten(), len(scene.classes.names))
            miou = evaluation.label_metrics(n, scene.classes.names)["miou"]
            axis.set_title("" if miou is None else f"{miou:.0f} mIoU", fontsize=9)
    for axis, title in zip(axes[0], ["truth", *pictures]):
        axis.set_title(f"{title}\n{axis.get_title()}".strip(), fontsize=9)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    if not colour:
        legend(figure, plt, scene.classes, sorted(used - {-1}))
    figure.suptitle(f"{figure_text(scene.name)}: {'colour' if colour else 'labels'} of views that no "
                    f"training or "
                    "fine-tuning saw")
    return figure, ""


def legend(figure, plt, classes, labels: list[int]) -> None:
    """The colours of these classes."""
    patches = [plt.matplotlib.patches.Patch(color=[x / 255 for x in classes.colours[label]],
                                            label=figure_text(classes.names[label])) for label in labels]
    figure.legend(handles=patches, loc="outside lower center", ncols=8, fontsize=8, frameon=False)


def figure_3(bench: Bench, plt) -> tuple:
    """Labels of one unseen scene: Semantic-NeRF trained on it, S-Ray without and with fine-tuning on the same
    views."""
    return comparison(bench, plt, colour=False)


def figure_4(bench: Bench, plt) -> tuple:
    """Colour of one unseen scene: NeRF trained on it, S-Ray without and with fine-tuning on the same views.
    (The paper's third method, NeuRay, is not here.)"""
    return comparison(bench, plt, colour=True)
