"""Evaluation: the protocol, the metrics, the pictures.

    python 08_eval.py --checkpoint runs/rooms-laptop/checkpoint.pt                    the scenes the run kept unseen
    python 08_eval.py --checkpoint CKPT --scene scannet --data ROOT --scenes a,b,c    any others
    torchrun --nproc-per-node 4 08_eval.py --checkpoint CKPT                          the same, the views shared among 4 GPUs
    python 08_eval.py --checkpoint CKPT --scene PATH --video out.mp4                  a fly-through instead (or out.gif)

Per scene 20 nearby views: 8 source, 8 for fine-tuning, 4 test (section 1 of the supplement). Every test view is rendered from
the source views alone. Labels: one confusion matrix over all test pixels of all scenes ("pooled"), from which

    IoU_l = n_ll / (sum_k n_lk + sum_k n_kl - n_ll)     mIoU = mean over classes present in the truth
    total accuracy = sum_l n_ll / sum n                 average accuracy = mean_l n_ll / sum_k n_lk

and, because other figures are computed so, the mean of each image's own mIoU. Unlabelled pixels are left out; every other pixel
counts, and the model cannot answer "unlabelled". Colour: PSNR and SSIM (11x11 Gaussian window, sigma 1.5,
valid windows only, mean over RGB), per image over all its pixels, then averaged. Depth: mean |d - d*| / d* where the sensor has
a value. Beside every result stands a baseline: the nearest source view copied, its pixels and its true labels, unchanged.

Dimension key: L classes, H, W image size.     Test: pytest tests/test_08_eval.py
"""
import argparse
import importlib.util
import io
import json
import platform
import sys
import time
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image                      # imageio's own: it reads and writes pictures with it
from torch import Tensor
from tqdm import tqdm

data = import_module("01_data")            # Scene, protocol, nearest_views, Classes
training = import_module("07_train")       # SRay, load_checkpoint


# ---------------------------------------------------------------------------------------------------- metrics

def confusion_matrix(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """n[l, k]: how many pixels of true class l were called k, (L, L) int64. truth may hold IGNORE; predicted may too (the
    copied baseline): an unlabelled answer counts against its true class, in an extra column (L, L + 1)."""
    labelled = truth != data.IGNORE
    t, p = truth[labelled], predicted[labelled]
    p = torch.where(p == data.IGNORE, torch.full_like(p, classes), p)
    return torch.bincount(t * (classes + 1) + p, minlength=classes * (classes + 1)).view(classes, classes + 1)


def label_metrics(n: Tensor, names: list[str] = data.CLASSES) -> dict:
    """Confusion matrix (L, L + 1), names -> miou, total_acc, avg_acc in percent and per_class_iou (None where absent in the truth)."""
    n = n.double()
    hit, truth, answered = n.diagonal(), n.sum(1), n[:, :-1].sum(0)
    present = truth > 0
    iou = hit / (truth + answered - hit).clamp(min=1)
    if not present.any():
        return {"miou": None, "total_acc": None, "avg_acc": None, "per_class_iou": None}
    return {"miou": 100 * iou[present].mean().item(), "total_acc": 100 * (hit.sum() / truth.sum()).item(),
            "avg_acc": 100 * (hit / truth.clamp(min=1))[present].mean().item(),
            "per_class_iou": {name: 100 * iou[l].item() if present[l] else None for l, name in enumerate(names)}}


def psnr(image: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [0, 1] of one shape; 100 dB at most."""
    return float(-10 * torch.log10(F.mse_loss(image, truth).clamp(min=1e-10)))


def ssim(image: Tensor, truth: Tensor) -> float:
    """Structural similarity (Wang et al. 2004) of images (H, W, 3) in [0, 1]: 11x11 Gaussian window, sigma 1.5, windows
    inside the image only, constants (0.01)^2 and (0.03)^2, mean over pixels and channels."""
    g = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5 ** 2))
    window = (torch.outer(g, g) / g.sum() ** 2)[None, None]
    x, y = (a.double().permute(2, 0, 1)[:, None] for a in (image, truth))     # (3, 1, H, W)
    blur = lambda a: F.conv2d(a, window)
    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    value = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx * mx + my * my + 1e-4) * (vx + vy + 9e-4))
    return float(value.mean())


def lpips_metric(device):
    """LPIPS (Zhang et al. 2018, the VGG network, as NeRF's tables have it) as a function of two images (H, W, 3) in [0, 1]. Its weights
    are not ours to ship: DataError that says what to install if the optional package or its weights are not there."""
    try:
        network = import_module("lpips").LPIPS(net="vgg", verbose=False).to(device).eval()
    except Exception as error:                # no package; or no weights, and no way to fetch them
        raise data.DataError(f"--lpips: not available ({type(error).__name__}: {str(error).splitlines()[0][:90]}); pip install -r "
                             "requirements-lpips.txt, which fetches VGG's weights once from the network, or leave the flag out") from None

    def metric(image: Tensor, truth: Tensor) -> float:
        """The perceptual distance; images go in as (1, 3, H, W) in [-1, 1]."""
        with torch.no_grad():
            return float(network(*(2 * a.clamp(0, 1).permute(2, 0, 1)[None].to(device) - 1 for a in (image, truth))))
    return metric


def depth_abs_rel(depth: Tensor, truth: Tensor) -> float | None:
    """Mean |d - d*| / d* over pixels with a true depth; None if there are none."""
    known = truth > 0
    return float(((depth - truth).abs() / truth)[known].mean()) if known.any() else None


# ---------------------------------------------------------------------------------------------------- pictures

def colour_labels(labels: Tensor, classes: "data.Classes" = data.SCANNET) -> np.ndarray:
    """Labels (H, W) -> their colours (H, W, 3) uint8, black where unlabelled."""
    palette = np.array([*classes.colours, [0, 0, 0]], np.uint8)               # IGNORE = -1 is the last row
    return palette[labels.cpu().numpy()]


def evaluation_sheet(path: Path, title: str, shots: list[dict], has_labels: bool, classes: "data.Classes" = data.SCANNET,
                     semantic: bool = True) -> None:
    """Up to four test views, one a row: colour, labels and depth, each truth, ours and the error, or ours alone where there is no
    truth (labels only if the model is `semantic`: trained on some); beside them the scene's IoU by class, over all its test
    views, in the classes' colours: the legend."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    pooled = sum(confusion_matrix(s["labels"].flatten(), s["true_labels"].flatten(), len(classes.names)) for s in shots)
    has_depth = any((s["true_depth"] > 0).any() for s in shots)
    shots = shots[:4]
    far = max(1e-3, *(float(s["true_depth" if has_depth else "depth"].max()) for s in shots))
    h, w = shots[0]["truth"].shape[:2]
    columns = 3 + (3 if has_labels else semantic) + (3 if has_depth else 1)
    figure = plt.figure(layout="constrained", figsize=(1.9 * columns + 3.2, len(shots) * 1.9 * h / w + 1.5))
    left, right = figure.subfigures(1, 2, width_ratios=[1.9 * columns, 3.2]) if has_labels or semantic else (figure, None)
    axes = left.subplots(len(shots) + 1, columns, squeeze=False, height_ratios=[1] * len(shots) + [0.07])    # last: colour bars
    for row, shot in enumerate(shots):
        ours, truth, wrong = shot["colour"].clamp(0, 1), shot["truth"], shot["labels"] != shot["true_labels"]
        pictures = [("colour: truth", truth, {}), ("ours", ours, {}),
                    ("error, mean of RGB", (ours - truth).abs().mean(-1), dict(cmap="cividis", vmin=0, vmax=0.3))]
        if has_labels:
            grey = 0.6 + 0.4 * truth.mean(-1, keepdim=True).expand(-1, -1, 3)                     # (H, W, 3) the room, faintly
            marked = torch.where(wrong[..., None], torch.tensor([0.84, 0.37, 0.0]), grey)
            marked[shot["true_labels"] == data.IGNORE] = 0
            pictures += [("labels: truth", colour_labels(shot["true_labels"], classes), {}), ("ours", colour_labels(shot["labels"], classes), {}),
                         ("wrong: orange", marked, {})]
        elif semantic:
            pictures += [("labels: ours", colour_labels(shot["labels"], classes), {})]
        if has_depth:
            depth = torch.where(shot["true_depth"] > 0, shot["true_depth"], torch.nan)            # white where none is known
            pictures += [("depth: truth", depth, dict(cmap="viridis", vmin=0, vmax=far)),
                         ("ours", shot["depth"], dict(cmap="viridis", vmin=0, vmax=far)),
                         ("error", (shot["depth"] - depth).abs(), dict(cmap="cividis", vmin=0, vmax=1))]
        else:
            pictures += [("depth: ours", shot["depth"], dict(cmap="viridis", vmin=0, vmax=far))]
        for column, (name, picture, options) in enumerate(pictures):
            image = axes[row, column].imshow(np.asarray(picture), **options)
            axes[row, column].set(xticks=[], yticks=[])
            if row == 0:
                axes[row, column].set_title(name, fontsize=10)
            if row == 0 and options:
                left.colorbar(image, cax=axes[-1, column], orientation="horizontal",
                              label="of full scale" if column == 2 else "m" if has_depth else "scene units")
            elif row == 0:
                axes[-1, column].set_axis_off()
        axes[row, 0].set_ylabel(f"view {shot['frame']}\n{shot['psnr']:.1f} dB"
                                + (f"\n{shot['miou']:.0f} mIoU" if shot["miou"] is not None else ""), fontsize=9)
    if right:
        found = label_metrics(pooled, classes.names)
        there = [l for l in range(len(classes.names)) if pooled[l].any() or pooled[:, l].any()]    # in the truth, or answered
        there = there or sorted({int(l) for s in shots for l in s["labels"].unique()})
        palette, bars = np.array(classes.colours) / 255, right.subplots()
        iou = [(found["per_class_iou"] or {}).get(classes.names[l]) for l in there]
        bars.barh(range(len(there)), [x or 0 for x in iou], color=palette[there], edgecolor="black", lw=0.5)
        for i, x in enumerate(iou):
            bars.text((x or 0) + 2, i, ("not there" if has_labels else "answered") if x is None else f"{x:.0f}", va="center", fontsize=8)
        for i, l in enumerate(there):         # a square of the class's colour, for bars too short to show it
            bars.plot(-7, i, "s", ms=8, mfc=palette[l], mec="black", mew=0.5, clip_on=False)
        bars.set_yticks(range(len(there)), [classes.names[l] for l in there])
        bars.tick_params(axis="y", length=0, pad=14, labelsize=9)
        bars.set(xlim=(0, 112), xlabel="IoU, %")
        bars.set_title("all test views" + (f": {found['miou']:.1f} mIoU" if found["miou"] is not None else ""), fontsize=10)
        bars.invert_yaxis()
        bars.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=12)
    data.write_atomically(path, lambda file: figure.savefig(file, dpi=100, format="png"))
    plt.close(figure)


# ---------------------------------------------------------------------------------------------------- evaluation

def source_views(scene, count: int) -> list[int]:
    """`count` source views of the protocol: its 8, spread evenly among them if fewer are asked for, and if more, some of the
    8 fine-tuning views too (Table 7). A frame that cannot be read is left out, and no other takes its place."""
    source, tune, _ = data.protocol(scene)
    if count > 8:
        return scene.readable(sorted(source + spread(tune, count - 8)))
    return scene.readable(spread(source, count))


def test_views(scene) -> list[int]:
    """The protocol's 4 test views, without those that cannot be read."""
    return scene.readable(data.protocol(scene)[2])


def spread(items: list[int], count: int) -> list[int]:
    """`count` of the items, evenly spaced."""
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def render_views(model, scene, indices: list[int], device, views: int, pool, bar, lpips=None, stride: int = 1) -> list[dict]:
    """These test views of one scene, rendered from its source views: for each the pictures, the truth and the figures. stride n:
    of every n-th row and column alone; no SSIM then, whose windows are of neighbouring pixels."""
    classes, config, source_ids = model.classes, model.config, source_views(scene, views)
    comparable = scene.has_labels and scene.classes.names == classes.names
    L = len(classes.names)
    assert not set(source_ids) & set(indices), "a test view among the sources"
    sources, shots = scene.views(source_ids), []
    encoded = model.encode(sources.to(device))                                # once per source set
    for index in indices:
        truth = scene.views([index])[0]
        if not comparable:                                                    # other classes: main() has said so
            truth.labels.fill_(data.IGNORE)
        start = time.perf_counter()
        got = model.render_image(encoded, truth.K.to(device), truth.c2w.to(device), config.height, config.width, pool, stride)
        got = {key: value.cpu() for key, value in got.items()}
        seconds = time.perf_counter() - start
        nearest = data.nearest_views(truth.c2w, sources.c2w, 1, data.unit(scene))[0]
        near, truth = (replace(view, images=view.images[..., ::stride, ::stride], labels=view.labels[..., ::stride, ::stride],
                               depth=view.depth[..., ::stride, ::stride])
                       for view in (sources[nearest], truth))                 # near, the baseline: copy the nearest source
        labels, target = got["logits"].argmax(-1), truth.images.permute(1, 2, 0)
        n = confusion_matrix(labels.flatten(), truth.labels.flatten(), L)
        shots.append({"scene": scene.name, "frame": scene.frames[index], "miou": label_metrics(n, classes.names)["miou"],
                      "psnr": psnr(got["colour"], target), "ssim": ssim(got["colour"], target) if stride == 1 else None,
                      "lpips": lpips(got["colour"], target) if lpips else None,
                      "depth_abs_rel": depth_abs_rel(got["depth"], truth.depth), "seconds": seconds,
                      "copy_psnr": psnr(near.images.permute(1, 2, 0), target),
                      "colour": got["colour"], "depth": got["depth"], "labels": labels, "truth": target,
                      "true_depth": truth.depth, "true_labels": truth.labels, "n": n,
                      "copied": confusion_matrix(near.labels.flatten(), truth.labels.flatten(), L)})
        bar.update()
    return shots


def evaluate(model, scenes: list, device, out: Path, title: str, views: int = 8, lpips=None, stride: int = 1) -> dict | None:
    """Render the 4 test views of each scene from its source views (8 of them) -> metrics; writes one sheet a scene into out. lpips:
    lpips_metric's function, or None to leave it out. stride: render_views.

    N processes (torchrun) take N scenes at a time and every N-th of their test views each; rank 0 collects them in the order
    one process would have, writes, and returns the metrics; the others return None.
    """
    classes, config, (rank, world) = model.classes, model.config, training.rank_and_world()
    L = len(classes.names)
    model.to(device).eval()
    pool = training.image_pool(config, device)
    pooled, copied = torch.zeros(L, L + 1, dtype=torch.int64), torch.zeros(L, L + 1, dtype=torch.int64)
    images: list[dict] = []
    total = sum(len(test_views(scene)) for scene in scenes)
    with torch.no_grad(), tqdm(total=total, desc="evaluating", unit="view", dynamic_ncols=True, disable=rank > 0,
                               mininterval=0.5 if sys.stderr.isatty() else 15) as bar:
        for first in range(0, len(scenes), world):
            group, shots = scenes[first:first + world], []
            jobs = [(scene, index) for scene in group for index in test_views(scene)][rank::world]
            for scene in group:
                mine = [index for other, index in jobs if other is scene]
                shots += render_views(model, scene, mine, device, views, pool, bar, lpips, stride) if mine else []
            if world > 1:
                everyone = [None] * world if rank == 0 else None
                torch.distributed.gather_object(shots, everyone)
                shots = [shot for part in everyone or [] for shot in part]
            for scene in group if rank == 0 else []:
                own = sorted((shot for shot in shots if shot["scene"] == scene.name), key=lambda shot: shot["frame"])
                pooled += sum(shot["n"] for shot in own)
                copied += sum(shot["copied"] for shot in own)
                comparable = scene.has_labels and scene.classes.names == classes.names
                evaluation_sheet(out / f"{scene.name}.png", f"{scene.name} ({title})", own, comparable, classes, config.lambda1 > 0)
                images += [{k: v for k, v in shot.items() if not isinstance(v, Tensor)} for shot in own]
            bar.update(sum(len(test_views(scene)) for scene in group) - len(jobs))                # the other processes' work
    if rank:
        return None

    def mean(key: str) -> float | None:
        """Over the images that have it."""
        values = [image[key] for image in images if image[key] is not None]
        return sum(values) / len(values) if values else None
    return {**label_metrics(pooled, classes.names), "miou_per_image": mean("miou"), "psnr": mean("psnr"), "ssim": mean("ssim"),
            "lpips": mean("lpips"),
            "depth_abs_rel": mean("depth_abs_rel"), "seconds_per_image": mean("seconds"),
            "baseline_copy_nearest": {"psnr": mean("copy_psnr"), "miou": label_metrics(copied, classes.names)["miou"]},
            "confusion": pooled.tolist(), "images": images}


def write_pseudo_labels(model, scenes: list, device, out: Path) -> dict:
    """The 2D segmenter's labels of each scene's source and fine-tuning views -> out/SCENE/FRAME.png in raw ids and at the size of
    the colour image, as label-filt; and its label metrics on those views, against the scenes' own labels."""
    L = len(model.classes.names)
    n = torch.zeros(L, L + 1, dtype=torch.int64)
    model.to(device).eval()
    for scene in scenes:
        if scene.classes.names != model.classes.names:
            raise data.DataError(f"{scene.folder}: {data.other_classes(model.classes, scene.classes)}; no pseudo labels for it")
        source, tune, _ = data.protocol(scene)
        for index in tqdm(scene.readable(sorted(source + tune)), desc=f"segmenting {scene.name}", unit="view", leave=False):
            view = scene.views([index])
            with torch.no_grad():
                labels = model.segment(view.images.to(device)).argmax(1).cpu()[0]                 # (H, W)
            n += confusion_matrix(labels.flatten(), view.labels.flatten(), L)
            h, w = data.read_image(scene.files(scene.frames[index])[0]).shape[:2]
            raw = scene.raw_ids[labels.numpy()][data.nearest_pixels(h, labels.shape[0])[:, None], data.nearest_pixels(w, labels.shape[1])]
            data.write_atomically(out / scene.name / f"{scene.frames[index]}.png", lambda file: iio.imwrite(file, raw, extension=".png"))
    return label_metrics(n, model.classes.names)


def print_table(metrics: dict, who: str = "S-Ray") -> None:
    """The result on screen: per-class IoU, then the summary beside the copied baseline."""
    show = lambda x, digits=2: "-" if x is None else f"{x:.{digits}f}"
    if metrics["per_class_iou"]:
        present = [(name, iou) for name, iou in metrics["per_class_iou"].items() if iou is not None]
        print("\nIoU by class, %")
        for i in range(0, len(present), 4):
            print("  " + "".join(f"{name:>15} {iou:5.1f}" for name, iou in present[i:i + 4]))
    else:
        print("\nno labels to compare with: colour (and depth, where there is some) only")
    columns = {"mIoU": "miou", "total acc": "total_acc", "avg acc": "avg_acc", "mIoU/image": "miou_per_image", "PSNR": "psnr",
               "SSIM": "ssim", "depth rel": "depth_abs_rel"}
    print(f"\n{'':24}" + "".join(f"{name:>11}" for name in columns))
    print(f"{who + ' on ' + metrics['data']:24}"
          + "".join(f"{show(metrics[key], 4 if key in ('ssim', 'depth_abs_rel') else 2):>11}" for key in columns.values()))
    copy = metrics["baseline_copy_nearest"]
    print(f"{'nearest source, copied':24}" + "".join(f"{show(copy[key]) if key in copy else '':>11}" for key in columns.values()))


# ---------------------------------------------------------------------------------------------------- fly-through

def turn(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Spherical interpolation of rotations a, b (3, 3): a at t = 0, b at t = 1, at constant speed about one axis between."""
    r = a.T @ b
    angle = torch.arccos(((r.trace() - 1) / 2).clamp(-1, 1))
    axis = (r - r.T) / 2 if angle < 1e-4 else angle / (2 * angle.sin()) * (r - r.T)               # (3, 3) logarithm of r
    return a @ torch.linalg.matrix_exp(t * axis)


def camera_path(c2w: Tensor, frames: int) -> Tensor:
    """A smooth way along the poses (N, 4, 4), N >= 2, in their order -> (frames, 4, 4): positions on a Catmull-Rom spline through
    them, rotations `turn`ed from each to the next. From the first pose to the last, in even steps of time."""
    p = c2w[:, :3, 3].double()
    p = torch.cat([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])             # (N + 2, 3): one more at each end, straight on
    path = torch.eye(4).repeat(frames, 1, 1)
    for i, u in enumerate(torch.linspace(0, len(c2w) - 1, frames).tolist()):
        n = min(int(u), len(c2w) - 2)         # between poses n and n + 1
        t, (a, b, c, d) = u - n, p[n:n + 4]
        path[i, :3, 3] = (b + t / 2 * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))).float()
        path[i, :3, :3] = turn(c2w[n, :3, :3].double(), c2w[n + 1, :3, :3].double(), t).float()
    return path


def film(shots: list[dict], title: str, panel: int, classes: "data.Classes" = data.SCANNET) -> list[np.ndarray]:
    """Rendered views, dicts of colour (H, W, 3), labels (H, W), depth (H, W) -> pictures (h, w, 3) uint8, h and w multiples of 16
    (video codecs want that): the three side by side, `panel` pixels wide each, one depth scale and one legend for all."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    H, W = shots[0]["labels"].shape
    seen = sorted({int(l) for shot in shots for l in shot["labels"].unique()})
    high, font = panel * H / W, 9 * panel / 320
    rows = -(-len(seen) // 7)
    width = -(-(3 * panel + 0.22 * panel) // 16) * 16                         # three panels and the depth scale
    height = -(-(high + (58 + 18 * rows) * panel / 320) // 16) * 16
    figure = plt.figure(figsize=(width / 100, height / 100), dpi=100)
    top = 1 - (46 * panel / 320 + high) / height
    panels, far = [], float(np.quantile(torch.stack([shot["depth"] for shot in shots]).numpy(), 0.995))      # not one stray pixel's
    for i, (name, options) in enumerate((("colour", {}), ("labels", {}), ("depth", dict(cmap="viridis", vmin=0, vmax=far)))):
        axis = figure.add_axes(((i + 0.02) * panel / width, top, 0.96 * panel / width, high / height))
        axis.set_title(name, fontsize=font, pad=3)
        axis.set_axis_off()
        panels.append(axis.imshow(np.zeros((H, W) if options else (H, W, 3), np.float32), **options))
    bar = figure.add_axes(((3.02 * panel) / width, top + 0.03, 0.04 * panel / width, high / height - 0.06))
    figure.colorbar(panels[2], cax=bar).set_label("m", fontsize=font)
    bar.tick_params(labelsize=0.85 * font)
    figure.legend(handles=[Patch(facecolor=np.array(classes.colours[l]) / 255, edgecolor="black", lw=0.5, label=classes.names[l])
                           for l in seen],
                  loc="lower center", ncols=7, fontsize=font, frameon=False, columnspacing=1.2, handlelength=1.2, borderaxespad=0.1)
    figure.suptitle(title, fontsize=1.1 * font, y=1 - 8 * panel / 320 / height)
    pictures = []
    for shot in shots:
        for image, picture in zip(panels, (shot["colour"].clamp(0, 1).numpy(), colour_labels(shot["labels"], classes),
                                           shot["depth"].numpy())):
            image.set_data(picture)
        figure.canvas.draw()
        pictures.append(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())
    plt.close(figure)
    return pictures


def gif(pictures: list[np.ndarray], rate: float) -> bytes:
    """Pictures (h, w, 3) uint8, `rate` a second -> the bytes of a looping gif. One palette of 256 colours for all frames, in which every
    class keeps its own: with a palette a frame, the legend's colours of classes out of sight would go to others."""
    h, w = pictures[0].shape[:2]
    classes = data.PALETTE[np.arange(h) * len(data.PALETTE) // h][:, None].repeat(h, axis=1)      # (h, h, 3) a stripe each
    some = np.concatenate([classes, *pictures[::max(1, len(pictures) // 8)]], axis=1)
    palette = Image.fromarray(some).quantize(256)
    frames = [Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    written = io.BytesIO()
    frames[0].save(written, "gif", save_all=True, append_images=frames[1:], duration=1000 / rate, loop=0)
    return written.getvalue()


def check_video(path: Path) -> None:
    """DataError unless a film can be written there: a .gif always, an .mp4 with imageio's ffmpeg."""
    if path.suffix not in (".mp4", ".gif"):
        raise data.DataError(f"--video {path}: name it .mp4 or .gif")
    if path.suffix == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise data.DataError(f"--video {path}: imageio has no ffmpeg here; pip install 'imageio[ffmpeg]', or name a .gif")


def fly_through(model, scene, device, path: Path, title: str, frames: int, views: int = 8, rate: int = 12) -> None:
    """Write a film of `frames` views on a smooth path along the scene's source cameras, `rate` a second. The path starts and ends
    at a source camera and passes the others: it stays among what they see."""
    config = model.config
    model.to(device).eval()
    ids = source_views(scene, views)
    if len(ids) < 2:
        raise data.DataError(f"--views {views}: a path needs two source views")
    pool = training.image_pool(config, device)
    shots = []
    with torch.no_grad():
        sources = model.encode(scene.views(ids).to(device))
        for c2w in tqdm(camera_path(scene.c2w[ids], frames), desc="rendering the fly-through", unit="frame", dynamic_ncols=True,
                        mininterval=0.5 if sys.stderr.isatty() else 15):
            got = model.render_image(sources, scene.K.to(device), c2w.to(device), config.height, config.width, pool)
            shots.append({"colour": got["colour"].cpu(), "labels": got["logits"].argmax(-1).cpu(), "depth": got["depth"].cpu()})
    pictures = film(shots, title, panel=320 if path.suffix == ".mp4" else 224, classes=model.classes)
    if path.suffix == ".mp4":
        written = iio.imwrite("<bytes>", pictures, extension=".mp4", plugin="FFMPEG", fps=rate)
    else:
        written = gif(pictures, rate)
    data.write_atomically(path, lambda file: file.write(written))
    h, w = pictures[0].shape[:2]
    print(f"{path}: {frames} frames of {w}x{h}, {rate} a second, {len(written) / 1e6:.1f} MB")


RESIZED = ("height", "width", "coarse", "fine", "keep", "coarse_stride", "chunk")    # what an evaluation may choose for itself


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="written by 07_train.py")
    parser.add_argument("--scene", default=None, help="rooms | scannet | replica | PATH [what the run kept for testing]")
    parser.add_argument("--data", default=None, help="folder that holds the scene folders")
    parser.add_argument("--scenes", default=None, help="a,b,c: evaluate on these")
    parser.add_argument("--split", default=None, help="file of lines 'train NAME', 'test NAME'")
    parser.add_argument("--out", default=None, help="folder for metrics.json and pictures [eval beside the checkpoint]")
    parser.add_argument("--cache", default="cache", help="folder for decoded frames")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda")
    for name in RESIZED:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=None, help=f"{training.Config.__dataclass_fields__[name].metadata['help']} [the run's]")
    parser.add_argument("--lpips", action="store_true", help="LPIPS too: needs requirements-lpips.txt, and VGG's weights from the network")
    parser.add_argument("--views", type=int, default=8, help="source views, 1 to 16; beyond 8 they borrow the fine-tuning views")
    parser.add_argument("--preview", type=int, default=1, metavar="N", help="every N-th row and column of each view alone: figures and "
                        "pictures of a sample, N x N times as fast, no SSIM")
    parser.add_argument("--pseudo-labels", metavar="FOLDER", default=None, help="instead: write the 2D segmenter's labels of the source "
                        "and fine-tuning views to FOLDER/SCENE/FRAME.png, for 07 and 09 --labels")
    parser.add_argument("--video", default=None, metavar="FILE",
                        help="instead of evaluating: a fly-through of the first scene, .mp4 or .gif")
    parser.add_argument("--frames", type=int, default=60, help="of --video, 12 a second")
    args = parser.parse_args()

    if args.video:
        check_video(Path(args.video))
    if args.frames < 2:
        raise data.DataError(f"--frames {args.frames}: a fly-through has at least 2")
    if args.preview < 1 or args.preview > 1 and args.lpips:
        raise data.DataError(f"--preview {args.preview}: must be 1 or more, and 1 with --lpips")
    if not 1 <= args.views <= 16:
        raise data.DataError(f"--views {args.views}: the protocol has 8 source and 8 fine-tuning views; give 1 to 16")
    start = time.time()
    training.prepare_cpu()
    rank, world = training.join_processes()
    model, state = training.load_checkpoint(args.checkpoint)
    for name in RESIZED:                      # every part of the model holds this one config
        if getattr(args, name) is not None:
            setattr(model.config, name, getattr(args, name))
    training.check(model.config)
    config, run, names = model.config, state["run"], args.scenes.split(",") if args.scenes else None
    if args.scene is None and args.data is None:
        kind, root, scenes = run["data"], Path(run["root"]), names or run["test"]
        if kind == "rooms" and not all((root / name / "color").is_dir() for name in scenes):      # weights trained elsewhere
            root = data.find_dataset("rooms", str(root) if root.is_dir() else None, 0, config.test_rooms).root
    else:
        with training.first_on_this_machine():                                # it may have to make rooms
            dataset = data.find_dataset(args.scene or "scannet", args.data, 0, config.test_rooms, names, args.split)
        kind, root = dataset.kind, dataset.root
        scenes = names or dataset.test or dataset.train                       # one space alone has no split
    data.check_names(scenes, "--scenes" if names else args.checkpoint)
    scenes = scenes[:1] if args.video else scenes
    for name in scenes:
        if not (root / name / "color").is_dir():
            raise data.DataError(f"{root / name}: no such scene; check --data and --scenes")
    out = Path(args.out) if args.out else Path(args.checkpoint).parent / "eval"
    with training.first_on_this_machine():
        loaded = [data.Scene(root / name, config.height, config.width, Path(args.cache), config.every) for name in scenes]
        with tqdm(loaded, desc="reading views", unit="scene", leave=False, disable=rank > 0) as bar:
            for scene in bar:                                                 # complain of bad files before rendering
                training.decode_all([scene], [source_views(scene, args.views) + test_views(scene)], quiet=True)
                if not source_views(scene, args.views) or not test_views(scene):
                    raise data.DataError(f"{scene.folder}: no source view or no test view can be read; export them again")
    seen = sorted({data.space(n) for n in run["train"]} & {data.space(n) for n in scenes}) if Path(run["root"]) == root else []
    print(f"{args.checkpoint}, step {state['step']}, on {kind} in {root}: {', '.join(scenes)}")
    print(f"seen in training (their test views were not): {', '.join(seen)}" if seen else "none of these was seen in training")
    if args.pseudo_labels:
        found = write_pseudo_labels(model, loaded, training.pick_device(args.device), Path(args.pseudo_labels))
        data.write_atomically(Path(args.pseudo_labels) / "metrics.json", lambda file: file.write(json.dumps(found, indent=1).encode()))
        truth = "no labels to compare with" if found["miou"] is None else f"mIoU {found['miou']:.2f}, total accuracy {found['total_acc']:.2f}"
        print(f"pseudo labels in {args.pseudo_labels}; on these views: {truth}")
        return
    for scene in loaded:
        if scene.near_far:
            print(f"{scene.name}: samples from {scene.near_far[0]:g} to {scene.near_far[1]:g} (its near_far.txt)")
    strange = [scene for scene in loaded if scene.has_labels and scene.classes.names != model.classes.names]
    if strange:
        print(f"LABELS ARE NOT COMPARED: {data.other_classes(model.classes, strange[0].classes)}; colour and depth are")
    part = f", every {args.preview}th row and column" if args.preview > 1 else ""
    title = f"{kind}, {config.width}x{config.height}{part}, step {state['step']}"
    device = training.pick_device(args.device)
    if args.video:
        fly_through(model, loaded[0], device, Path(args.video), f"{scenes[0]} ({title})", args.frames, args.views)
        return
    metrics = evaluate(model, loaded, device, out, title, args.views, lpips_metric(device) if args.lpips else None, args.preview)
    if world > 1:
        torch.distributed.destroy_process_group()
    if rank:
        return
    metrics |= {"classes": model.classes.names, "data": kind,
                "views": {"source": args.views, "test": 4, "images": len(metrics["images"])}, "preview": args.preview,
                "scenes": scenes, "scenes_seen_in_training": seen, "steps": state["step"],
                "train_seconds": run["seconds"], "seconds": time.time() - start, "config": asdict(config),
                "train_command": run["command"], "command": " ".join(["python", *sys.argv]),
                "hardware": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch "
                            f"{torch.__version__}, {torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'}"}
    data.write_atomically(out / "metrics.json", lambda file: file.write(json.dumps(metrics, indent=1).encode()))
    print_table(metrics)
    print(f"LPIPS (VGG): {metrics['lpips']:.4f}" if args.lpips else "LPIPS: not run (--lpips; needs requirements-lpips.txt)")
    print(f"\n{len(metrics['images'])} images of {config.width}x{config.height}{part}, {metrics['seconds_per_image']:.2f} s each; "
          f"pictures and metrics.json in {out}")


if __name__ == "__main__":
    data.run_script(main)
