"""Evaluation: the protocol, the metrics, the pictures.

    python 08_eval.py --checkpoint runs/rooms-laptop/checkpoint.pt                    the scenes the run kept unseen
    python 08_eval.py --checkpoint CKPT --scene scannet --data ROOT --scenes a,b,c    any others

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
import json
import platform
import sys
import time
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

data = import_module("01_data")            # Scene, protocol, nearest_views, CLASSES, PALETTE
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
    """Up to four test views (columns): colour, labels and depth, ours above the truth where there is one, with a legend.
    semantic: our labels are worth a look where there are no true ones (the model was trained on labels)."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    shots = shots[:4]
    has_depth = any((s["true_depth"] > 0).any() for s in shots)
    rows = [(name, who) for name, known in (("colour", True), ("labels", has_labels), ("depth", has_depth))
            for who in ["ours"] * (known or name != "labels" or semantic) + ["truth"] * known]
    h, w = shots[0]["truth"].shape[:2]
    figure, axes = plt.subplots(len(rows), len(shots), squeeze=False, layout="constrained",
                                figsize=(3.2 * len(shots) + 1.2, len(rows) * 3.2 * h / w + 1.6))
    far = max(1e-3, *(float(s["true_depth" if has_depth else "depth"].max()) for s in shots))    # one scale, as there is one colour bar
    for column, shot in enumerate(shots):
        pictures = {"colour": (shot["colour"].clamp(0, 1), shot["truth"], {}),
                    "labels": (colour_labels(shot["labels"], classes), colour_labels(shot["true_labels"], classes), {}),
                    "depth": (shot["depth"], shot["true_depth"], dict(cmap="viridis", vmin=0, vmax=far))}
        for axis, (name, who) in zip(axes[:, column], rows):
            ours, truth, options = pictures[name]
            image = axis.imshow(ours if who == "ours" else truth, **options)
            axis.set(xticks=[], yticks=[])
            if column == 0:
                axis.set_ylabel(f"{name}\n{who}")
            if name == "depth" and column == len(shots) - 1:
                figure.colorbar(image, ax=axis, label="m" if has_depth else "scene units", shrink=0.8)
        axes[0, column].set_title(f"test view {shot['frame']}: {shot['psnr']:.1f} dB"
                                  + (f", {shot['miou']:.0f} mIoU" if shot["miou"] is not None else ""), fontsize=9)
    shown = ["labels", "true_labels"] if ("labels", "ours") in rows else []
    seen = {int(l) for s in shots for x in shown for l in s[x].unique() if l >= 0}
    figure.legend(handles=[Patch(color=np.array(classes.colours[l]) / 255, label=classes.names[l]) for l in sorted(seen)],
                  loc="outside lower center", ncols=7, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


# ---------------------------------------------------------------------------------------------------- evaluation

def source_views(scene, count: int) -> list[int]:
    """`count` source views of the protocol: its 8, spread evenly among them if fewer are asked for, and if more, some of the
    8 fine-tuning views too (Table 7)."""
    source, tune, _ = data.protocol(scene)
    if count > 8:
        return sorted(source + spread(tune, count - 8))
    return spread(source, count)


def spread(items: list[int], count: int) -> list[int]:
    """`count` of the items, evenly spaced."""
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def evaluate(model, scenes: list, device, out: Path, title: str, views: int = 8) -> dict:
    """Render the 4 test views of each scene from its source views (8 of them) -> metrics; writes one sheet a scene into out."""
    classes, config = model.classes, model.config
    L = len(classes.names)
    model.to(device).eval()
    pool = training.core_pool(config, device, jobs=config.height * config.width // config.chunk)
    pooled, copied = torch.zeros(L, L + 1, dtype=torch.int64), torch.zeros(L, L + 1, dtype=torch.int64)
    images: list[dict] = []
    with torch.no_grad(), tqdm(total=4 * len(scenes), desc="evaluating", unit="view", dynamic_ncols=True,
                               mininterval=0.5 if sys.stderr.isatty() else 15) as bar:
        for scene in scenes:
            source_ids, (_, _, test_ids) = source_views(scene, views), data.protocol(scene)
            assert not set(source_ids) & set(test_ids), "a test view among the sources"
            sources, shots = scene.views(source_ids), []
            comparable = scene.has_labels and scene.classes.names == classes.names
            encoded = model.encode(sources.to(device))                        # once per source set
            for index in test_ids:
                truth = scene.views([index])[0]
                if not comparable:                                            # other classes: main() has said so
                    truth.labels.fill_(data.IGNORE)
                start = time.perf_counter()
                got = model.render_image(encoded, truth.K.to(device), truth.c2w.to(device), config.height, config.width, pool)
                got = {key: value.cpu() for key, value in got.items()}
                seconds = time.perf_counter() - start
                nearest = data.nearest_views(truth.c2w, sources.c2w, 1, data.unit(scene))[0]
                near = sources[nearest]                                       # the baseline: copy the nearest source
                labels, target = got["logits"].argmax(-1), truth.images.permute(1, 2, 0)
                n = confusion_matrix(labels.flatten(), truth.labels.flatten(), L)
                pooled += n
                copied += confusion_matrix(near.labels.flatten(), truth.labels.flatten(), L)
                shots.append({"scene": scene.name, "frame": scene.frames[index], "miou": label_metrics(n, classes.names)["miou"],
                              "psnr": psnr(got["colour"], target), "ssim": ssim(got["colour"], target),
                              "depth_abs_rel": depth_abs_rel(got["depth"], truth.depth), "seconds": seconds,
                              "copy_psnr": psnr(near.images.permute(1, 2, 0), target),
                              "colour": got["colour"], "depth": got["depth"], "labels": labels, "truth": target,
                              "true_depth": truth.depth, "true_labels": truth.labels})
                bar.update()
            evaluation_sheet(out / f"{scene.name}.png", f"{scene.name} ({title})", shots, comparable, classes,
                             config.lambda1 > 0)
            images += [{k: v for k, v in s.items() if not isinstance(v, Tensor)} for s in shots]

    def mean(key: str) -> float | None:
        """Over the images that have it."""
        values = [image[key] for image in images if image[key] is not None]
        return sum(values) / len(values) if values else None
    return {**label_metrics(pooled, classes.names), "miou_per_image": mean("miou"), "psnr": mean("psnr"), "ssim": mean("ssim"),
            "depth_abs_rel": mean("depth_abs_rel"), "seconds_per_image": mean("seconds"),
            "baseline_copy_nearest": {"psnr": mean("copy_psnr"), "miou": label_metrics(copied, classes.names)["miou"]},
            "confusion": pooled.tolist(), "images": images}


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
    parser.add_argument("--views", type=int, default=8, help="source views, 1 to 16; beyond 8 they borrow the fine-tuning views")
    args = parser.parse_args()

    if not 1 <= args.views <= 16:
        raise data.DataError(f"--views {args.views}: the protocol has 8 source and 8 fine-tuning views; give 1 to 16")
    start = time.time()
    training.prepare_cpu()
    model, state = training.load_checkpoint(args.checkpoint)
    config, run, names = model.config, state["run"], args.scenes.split(",") if args.scenes else None
    if args.scene is None and args.data is None:
        kind, root, scenes = run["data"], Path(run["root"]), names or run["test"]
    else:
        dataset = data.find_dataset(args.scene or "scannet", args.data, 0, config.test_rooms, names, args.split)
        kind, root = dataset.kind, dataset.root
        scenes = names or dataset.test or dataset.train                       # one space alone has no split
    for name in scenes:
        if not (root / name / "color").is_dir():
            raise data.DataError(f"{root / name}: no such scene; check --data and --scenes")
    out = Path(args.out) if args.out else Path(args.checkpoint).parent / "eval"
    loaded = [data.Scene(root / name, config.height, config.width, Path(args.cache), config.every) for name in scenes]
    with tqdm(loaded, desc="reading views", unit="scene", leave=False) as bar:
        for scene in bar:
            _, _, test_ids = data.protocol(scene)
            scene.views(source_views(scene, args.views) + test_ids)           # complain of bad files before rendering
    seen = sorted({data.space(n) for n in run["train"]} & {data.space(n) for n in scenes}) if Path(run["root"]) == root else []
    print(f"{args.checkpoint}, step {state['step']}, on {kind} in {root}: {', '.join(scenes)}")
    print(f"seen in training (their test views were not): {', '.join(seen)}" if seen else "none of these was seen in training")
    for scene in loaded:
        if scene.near_far:
            print(f"{scene.name}: samples from {scene.near_far[0]:g} to {scene.near_far[1]:g} (its near_far.txt)")
    strange = [scene for scene in loaded if scene.has_labels and scene.classes.names != model.classes.names]
    if strange:
        print(f"LABELS ARE NOT COMPARED: {data.other_classes(model.classes, strange[0].classes)}; colour and depth are")
    title = f"{kind}, {config.width}x{config.height}, step {state['step']}"
    metrics = evaluate(model, loaded, training.pick_device(args.device), out, title, args.views)
    metrics |= {"classes": model.classes.names, "data": kind,
                "views": {"source": args.views, "test": 4, "images": len(metrics["images"])},
                "scenes": scenes, "scenes_seen_in_training": seen, "lpips": None, "steps": state["step"],
                "train_seconds": run["seconds"], "seconds": time.time() - start, "config": asdict(config),
                "train_command": run["command"], "command": " ".join(["python", *sys.argv]),
                "hardware": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch "
                            f"{torch.__version__}, {torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'}"}
    out.mkdir(parents=True, exist_ok=True)
    data.write_atomically(out / "metrics.json", lambda file: file.write(json.dumps(metrics, indent=1).encode()))
    print_table(metrics)
    print(f"\n{len(metrics['images'])} images of {config.width}x{config.height}, {metrics['seconds_per_image']:.2f} s each; "
          f"pictures and metrics.json in {out}")


if __name__ == "__main__":
    data.run_script(main)
