"""Evaluation: the protocol, the metrics, a checkpoint's figures and pictures.

    python 08_eval.py --checkpoint runs/rooms-laptop/checkpoint.pt     the scenes that the run kept unseen
    python 08_eval.py --checkpoint CKPT --scene scannet --data ROOT --scenes a,b,c              any others
    torchrun --nproc-per-node 4 08_eval.py --checkpoint CKPT         the views shared among four processes
    python 08_eval.py --checkpoint CKPT --scene PATH --video out.mp4             a fly-through, or out.gif

A scene gives 20 nearby views: 8 source, 8 for fine-tuning, 4 test (section 1 of the supplement). Every test
view is rendered from the source views alone. All test pixels of all scenes make one confusion matrix n:

    IoU_l = n_ll / (sum_k n_lk + sum_k n_kl - n_ll)     mIoU = mean over classes present in the truth
    total accuracy = sum_l n_ll / sum n                 average accuracy = mean_l n_ll / sum_k n_lk

The mean of each image's own mIoU is reported too, because others compute theirs so. Unlabelled pixels are
left out. Every other pixel counts, and the model cannot answer "unlabelled". PSNR, SSIM and depth error are
means over images. Beside every result stands a baseline: the nearest source view copied, with its labels.

Dimension key: L classes, V source views, H, W image size.     Test: pytest tests/test_08_eval.py
"""
import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")    # read when torch starts its threads: do not spin

import sys
import time
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from support import evaluating, films, machine, pictures, processes
from support.files import DataError, run_script, write_json

rooms = import_module("00_rooms")          # make_rooms, where there is no dataset
data = import_module("01_data")            # Scene, protocol, nearest_views
training = import_module("07_train")       # SRay, load_checkpoint


# ------------------------------------------------------------------------------------------- the protocol
def source_views(scene, count: int = 8) -> list[int]:
    """`count` source views of the protocol: its 8, some of them evenly spread, or more by some of the 8
    fine-tuning views (Table 7). A frame that cannot be read is left out, and no other takes its place."""
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


# -------------------------------------------------------------------------------------------- the metrics
def confusion_matrix(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:  # exercise: n[l, k]
    """n[l, k]: how many pixels of true class l were called k, (L, L + 1) int64. IGNORE in truth is left out.
    IGNORE in predicted (the copied baseline) is a wrong answer, counted in the extra column."""
    labelled = truth != data.IGNORE
    answers = predicted.masked_fill(predicted == data.IGNORE, classes)
    cells = truth[labelled] * (classes + 1) + answers[labelled]
    return torch.bincount(cells, minlength=classes * (classes + 1)).view(classes, classes + 1)


def label_metrics(n: Tensor, names: list[str] = data.CLASSES) -> dict:  # exercise: IoU_l, mIoU, accuracies
    """Confusion matrix (L, L + 1), names -> miou, total_acc, avg_acc and per_class_iou in percent; None where
    the truth has none of it."""
    n = n.double()
    hit, truth, answered = n.diagonal(), n.sum(1), n[:, :-1].sum(0)           # (L,) each
    present = truth > 0
    iou = hit / (truth + answered - hit).clamp(min=1)                         # (L,)
    if not present.any():
        return {"miou": None, "total_acc": None, "avg_acc": None, "per_class_iou": None}
    by_class = [100 * iou[i].item() if present[i] else None for i in range(len(names))]
    return {"miou": 100 * iou[present].mean().item(),
            "total_acc": 100 * (hit.sum() / truth.sum()).item(),
            "avg_acc": 100 * (hit / truth.clamp(min=1))[present].mean().item(),
            "per_class_iou": dict(zip(names, by_class))}


def psnr(image: Tensor, truth: Tensor) -> float:  # exercise: -10 log10(MSE)
    """Peak signal-to-noise ratio in dB of images in [0, 1] of one shape, over all pixels; 100 dB at most."""
    return float(-10 * torch.log10(F.mse_loss(image, truth).clamp(min=1e-10)))


def ssim(image: Tensor, truth: Tensor) -> float:  # exercise: Wang et al. 2004
    """Structural similarity (Wang et al. 2004) of images (H, W, 3) in [0, 1]: 11x11 Gaussian window, sigma
    1.5, windows inside the image only, constants 0.01^2 and 0.03^2, mean over pixels and channels."""
    g = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5 ** 2))           # (11,)
    window = (torch.outer(g, g) / g.sum() ** 2)[None, None]                   # (1, 1, 11, 11)
    x, y = (a.double().permute(2, 0, 1)[:, None] for a in (image, truth))     # (3, 1, H, W)
    mx, my, xx, yy, xy = (F.conv2d(a, window) for a in (x, y, x * x, y * y, x * y))
    vx, vy, cov = xx - mx * mx, yy - my * my, xy - mx * my
    value = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx * mx + my * my + 1e-4) * (vx + vy + 9e-4))
    return float(value.mean())


def lpips_metric(device):
    """LPIPS (Zhang et al. 2018, with VGG, as in NeRF's tables) as a function of two images (H, W, 3) in
    [0, 1]. Its weights are not ours to ship: DataError that says what to install if they are not there."""
    try:
        network = import_module("lpips").LPIPS(net="vgg", verbose=False).to(device).eval()
    except Exception as error:                # no package; or no weights, and no way to fetch them
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"
        raise DataError(f"--lpips: not available ({reason}); pip install -r requirements-lpips.txt, which "
                        "fetches VGG's weights once from the network, or leave the flag out") from None

    @torch.no_grad()
    def metric(image: Tensor, truth: Tensor) -> float:
        """The perceptual distance; images go in as (1, 3, H, W) in [-1, 1]."""
        pair = (2 * a.clamp(0, 1).permute(2, 0, 1)[None].to(device) - 1 for a in (image, truth))
        return float(network(*pair))
    return metric


def depth_abs_rel(depth: Tensor, truth: Tensor) -> float | None:
    """Mean |d - d*| / d* over pixels with a true depth; None if there are none."""
    known = truth > 0
    return float(((depth - truth).abs() / truth)[known].mean()) if known.any() else None


# ----------------------------------------------------------------------------------------- the evaluation
@torch.no_grad()
def render_views(model, scene, indices: list[int], views: int = 8, chunk: int = 0, stride: int = 1,
                 lpips=None):
    """Yield for each of these test views its rendering from the `views` source views, the truth and the
    figures, without masked pixels. stride n: every n-th row and column alone, and no SSIM (of windows)."""
    classes, config, source_ids = model.classes, model.config, source_views(scene, views)
    L, device = len(classes.names), next(model.parameters()).device
    assert not set(source_ids) & set(indices), "a test view among the sources"
    sources = scene.views(source_ids)
    encoded = model.encode(sources.to(device))                                # once per source set
    for index in indices:
        truth = scene.views([index])[0]
        if not evaluating.comparable(scene, classes):
            truth.labels.fill_(data.IGNORE)
        start = time.perf_counter()
        K, c2w = truth.K.to(device), truth.c2w.to(device)
        got = model.render_image(encoded, K, c2w, config.height, config.width, chunk, stride)
        colour, logits, depth = (got[key].cpu() for key in ("colour", "logits", "depth"))
        seconds = time.perf_counter() - start
        near = sources[data.nearest_views(truth.c2w, sources.c2w, 1, data.unit(scene))[0]]
        near, truth = (evaluating.thinned(view, stride) for view in (near, truth))    # images (H, W, 3)
        shown, whole = truth.mask, bool(truth.mask.all())                     # (H, W) false: no truth
        labels = logits.argmax(-1)                                            # (H, W)
        n, copied = (confusion_matrix(answer.flatten(), truth.labels.flatten(), L)
                     for answer in (labels, near.labels))
        yield {"scene": scene.name, "frame": scene.frames[index],
               "miou": label_metrics(n, classes.names)["miou"], "seconds": seconds,
               "psnr": psnr(colour[shown], truth.images[shown]),
               "ssim": ssim(colour, truth.images) if whole and stride == 1 else None,
               "lpips": lpips(colour, truth.images) if whole and lpips else None,
               "depth_abs_rel": depth_abs_rel(depth, truth.depth),
               "copy_psnr": psnr(near.images[shown], truth.images[shown]), "n": n, "copied": copied,
               "colour": colour, "labels": labels, "depth": depth,
               "truth": truth.images, "true_labels": truth.labels, "true_depth": truth.depth}


def evaluate(model, scenes: list, out: Path, title: str, views: int = 8, chunk: int = 0, stride: int = 1,
             lpips=None) -> dict | None:
    """The test views of each scene, rendered by render_views -> metrics; a sheet a scene goes into `out`.
    N processes (torchrun) take N scenes at a time and every N-th of their test views each. Rank 0 collects
    them in the order that one process would have, writes and returns; the others return None."""
    (rank, world), classes = processes.rank_and_world(), model.eval().classes
    n, copied, images = 0, 0, []              # of all scenes so far: the matrices (L, L + 1), the figures
    with tqdm(total=sum(len(test_views(scene)) for scene in scenes), desc="evaluating", unit="view",
              dynamic_ncols=True, disable=rank > 0, mininterval=0.5 if sys.stderr.isatty() else 15) as bar:
        for group in (scenes[first:first + world] for first in range(0, len(scenes), world)):
            jobs, shots = [(scene, index) for scene in group for index in test_views(scene)], []
            for scene in group:
                mine = [index for other, index in jobs[rank::world] if other is scene]
                for shot in render_views(model, scene, mine, views, chunk, stride, lpips) if mine else []:
                    shots.append(shot)
                    bar.update()
            bar.update(len(jobs) - len(shots))                                # the other processes' work
            shots = processes.gather_on_first(shots)
            for scene in group if rank == 0 else []:
                own = sorted((shot for shot in shots if shot["scene"] == scene.name),
                             key=lambda shot: shot["frame"])
                of_scene = sum(shot["n"] for shot in own)                     # (L, L + 1)
                n, copied = n + of_scene, copied + sum(shot["copied"] for shot in own)
                known, scores = evaluating.comparable(scene, classes), label_metrics(of_scene, classes.names)
                pictures.evaluation_sheet(out / f"{scene.name}.png", f"{scene.name} ({title})", own, known,
                                          scores, classes, semantic=model.config.lambda1 > 0)
                images += [{k: v for k, v in shot.items() if not isinstance(v, Tensor)} for shot in own]
    return None if rank else summary(images, n, copied, classes.names)


def summary(images: list[dict], n: Tensor, copied: Tensor, names: list[str]) -> dict:
    """All figures of an evaluation: label metrics of the pooled matrices, ours (n) and the copied baseline's,
    and the mean of every other figure over the images that have it."""
    values = {key: [image[key] for image in images if image[key] is not None] for key in images[0]}
    mean = {key: sum(values[key]) / len(values[key]) if values[key] else None
            for key in ("miou", "psnr", "ssim", "lpips", "depth_abs_rel", "seconds", "copy_psnr")}
    baseline = {"psnr": mean.pop("copy_psnr"), "miou": label_metrics(copied, names)["miou"]}
    return {**label_metrics(n, names), "miou_per_image": mean.pop("miou"),
            "seconds_per_image": mean.pop("seconds"), **mean, "baseline_copy_nearest": baseline,
            "confusion": n.tolist(), "images": images}


def print_table(metrics: dict, who: str = "S-Ray") -> None:
    """The result on screen: per-class IoU, then the summary beside the copied baseline."""
    if metrics["per_class_iou"]:
        present = [(name, iou) for name, iou in metrics["per_class_iou"].items() if iou is not None]
        print("\nIoU by class, %")
        for i in range(0, len(present), 4):
            print("  " + "".join(f"{name:>15} {iou:5.1f}" for name, iou in present[i:i + 4]))
    else:
        print("\nno labels to compare with: colour (and depth, where there is some) only")
    columns = {"mIoU": ("miou", 2), "total acc": ("total_acc", 2), "avg acc": ("avg_acc", 2),
               "mIoU/image": ("miou_per_image", 2), "PSNR": ("psnr", 2), "SSIM": ("ssim", 4),
               "depth rel": ("depth_abs_rel", 4)}
    print(f"\n{'':24}" + "".join(f"{name:>11}" for name in columns))
    for title, row in ((f"{who} on {metrics['data']}", metrics),
                       ("nearest source, copied", metrics["baseline_copy_nearest"])):
        text = {key: "-" if row[key] is None else f"{row[key]:.{digits}f}"
                for key, digits in columns.values() if key in row}
        print(f"{title:24}" + "".join(f"{text.get(key, ''):>11}" for key, _ in columns.values()))


def fly_through(model, scene, path: Path, title: str, frames: int, views: int = 8, chunk: int = 0) -> None:
    """Write a film of `frames` views on a smooth path along the scene's source cameras. The path starts and
    ends at a source camera and passes the others: it stays among what they see."""
    c, device, ids = model.eval().config, next(model.parameters()).device, source_views(scene, views)
    if len(ids) < 2:
        raise DataError(f"--views {views}: a path needs two source views")
    shots, K = [], scene.K.to(device)
    with torch.no_grad():
        sources = model.encode(scene.views(ids).to(device))
    for c2w in tqdm(films.camera_path(scene.c2w[ids], frames), desc="rendering the fly-through", unit="frame",
                    dynamic_ncols=True, mininterval=0.5 if sys.stderr.isatty() else 15):
        got = model.render_image(sources, K, c2w.to(device), c.height, c.width, chunk)
        shots.append({"colour": got["colour"].cpu(), "labels": got["logits"].argmax(-1).cpu(),
                      "depth": got["depth"].cpu()})
    films.write_film(path, shots, title, model.classes)


def main() -> None:
    args, start = evaluating.parse_arguments(__doc__.split("\n")[0], training.Config), time.time()
    machine.prepare_cpu()
    rank, _ = processes.join_processes()
    model, state = training.load_checkpoint(args.checkpoint)
    evaluating.resize(model.config, args)     # every part of the model holds this one config
    c, run, device = model.config, state["run"], machine.pick_device(args.device)
    with processes.first_on_this_machine():
        kind, root, names = evaluating.choose_scenes(args, c, run, rooms.make_rooms)
        names = names[:1] if args.video else names
        scenes = evaluating.open_scenes([root / name for name in names], data, c, args,
                                        lambda scene: (source_views(scene, args.views), test_views(scene)))
    trained_on = evaluating.introduce(args.checkpoint, state, kind, root, names)
    evaluating.warn(scenes, model.classes)
    part = f", every {args.preview}th row and column" if args.preview > 1 else ""
    title = f"{kind}, {c.width}x{c.height}{part}, step {state['step']}"
    model = import_module("fast").renderer(model.to(device), args)
    if args.video:
        fly_through(model, scenes[0], Path(args.video), f"{names[0]} ({title})", args.frames, args.views,
                    args.chunk)
        return
    out = evaluating.out_folder(args)
    metrics = evaluate(model, scenes, out, title, args.views, args.chunk, args.preview,
                       lpips_metric(device) if args.lpips else None)
    processes.leave_processes()
    if rank:
        return
    metrics |= {"classes": model.classes.names, "data": kind,
                "views": {"source": args.views, "test": 4, "images": len(metrics["images"])},
                "preview": args.preview, "keep": args.keep, "coarse_stride": args.coarse_stride,
                "scenes": names, "scenes_seen_in_training": trained_on, "steps": state["step"],
                "config": asdict(c), "train_seconds": run["seconds"], "seconds": time.time() - start,
                "train_command": run["command"], "command": evaluating.command_line(),
                "hardware": evaluating.hardware()}
    write_json(out / "metrics.json", metrics)
    print_table(metrics)
    print(f"LPIPS (VGG): {metrics['lpips']:.4f}" if args.lpips
          else "LPIPS: not run (--lpips; needs requirements-lpips.txt)")
    print(f"\n{len(metrics['images'])} images of {c.width}x{c.height}{part}, "
          f"{metrics['seconds_per_image']:.2f} s each; pictures and metrics.json in {out}")


if __name__ == "__main__":
    run_script(main)
