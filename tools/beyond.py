"""What the paper leaves out: S-Ray beside 2D labels averaged over views, at true depth, and its consistency.

`python -m tools.tables beyond` runs it. Dimension key: R rays, S samples, V source views, L classes.
Test: pytest tests/test_tool_tables.py
"""
import json
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from support.files import write_json
from support.ranges import follow
from tools.experiments import Bench, paired, spread, unseen_root
from tools.pseudo_labels import segment

data = import_module("01_data")                # Scene, Views, protocol, cameras
encoder = import_module("02_encoder")          # STRIDE
reprojection = import_module("03_reprojection")    # lookup, in_view
geometry = import_module("06_geometry_render")     # render
training = import_module("07_train")           # load_checkpoint
evaluation = import_module("08_eval")          # confusion_matrix, label_metrics, psnr


def average_2d(maps: Tensor, points: Tensor, sources) -> Tensor:
    """2D logits maps (V, L, h, w) of the source views at points (R, S, 3), averaged over the views that have
    the point in their image: (R, S, L). No attention, no view weights, no notion of occlusion."""
    H, W = sources.images.shape[-2:]
    uv, z = data.project(points, sources.K, sources.c2w)                      # (R, S, V, 2), (R, S, V)
    seen = reprojection.in_view(uv, z, H, W)                                  # (R, S, V)
    logits = reprojection.lookup(maps, uv.masked_fill(~seen[..., None], 0), encoder.STRIDE)   # (R, S, V, L)
    # average[r,s,l] = sum_v seen[r,s,v] logits[r,s,v,l] / sum_v seen[r,s,v]
    return torch.einsum("rsv,rsvl->rsl", seen.float(), logits) / seen.sum(-1, keepdim=True).clamp(min=1)


def both_ways(model, sources, maps: dict[str, Tensor], pixels: Tensor, K: Tensor, c2w: Tensor,
              depth: Tensor) -> dict[str, Tensor]:
    """Some rays as S-Ray renders them and as averaged 2D logits, by the model's own density and at the true
    depth (R,): logits (R, L) of each way, and "colour", "colour at true depth" (R, 3). maps: name ->
    (V, L, h, w)."""
    result = model(sources, pixels, K, c2w, fine_only=True)["fine"]
    origin, directions = data.rays(pixels, K, c2w)
    z, weights = result["z"], result["weights"]                               # (R, S)
    found = {"S-Ray": result["logits"], "colour": result["colour"]}
    along = origin + z[..., None] * directions[:, None]                       # (R, S, 3)
    at_depth = origin + depth[:, None, None] * directions[:, None]            # (R, 1, 3)
    for name, logits in maps.items():
        found[name] = geometry.render(weights, average_2d(logits, along, sources))
        found[f"{name}, true depth"] = average_2d(logits, at_depth, sources)[:, 0]
    # the sample nearest the true depth moves onto it and is all that is rendered; the others are still there
    # to attend to
    nearest = (z - depth[:, None]).abs().argmin(1, keepdim=True)              # (R, 1)
    z = z.scatter(1, nearest, depth[:, None].clamp(min=model.config.near))
    context, _, colours = model.fine.context_and_density(origin, directions, z, sources)
    logits, _ = model.fine.semantics(context)                                 # (R, S, L)
    found["S-Ray, true depth"], found["colour at true depth"] = (
        x.take_along_dim(nearest[..., None], 1)[:, 0] for x in (logits, colours))
    return found


def consistency(labels: list[Tensor], views) -> tuple[int, int]:
    """Label maps (H, W) of views in order: each view's pixels carried to the next by their true depth -> how
    many land on the same label, of how many. A pixel counts if the next view sees its point: in the image,
    and its own depth there within 2%."""
    H, W = labels[0].shape
    agree = total = 0
    for a in range(len(labels) - 1):
        one, two = views[a], views[a + 1]
        known = (one.depth > 0).flatten()
        points = data.unproject(data.pixel_grid(H, W)[known], one.depth.flatten()[known], one.K, one.c2w)
        uv, z = data.project(points, two.K[None], two.c2w[None])              # (N, 1, 2), (N, 1)
        u, v, z = uv[:, 0, 0].round().long(), uv[:, 0, 1].round().long(), z[:, 0]
        inside = (z > 0) & (u >= 0) & (u < W) & (v >= 0) & (v < H)
        u, v = u.clamp(0, W - 1), v.clamp(0, H - 1)
        seen = inside & ((two.depth[v, u] - z).abs() < 0.02 * z)
        agree += int((labels[a].flatten()[known] == labels[a + 1][v, u])[seen].sum())
        total += int(seen.sum())
    return agree, total


def segmented(model, segmenter, sources, truth) -> tuple[dict, dict]:
    """2D logits of the source views by name, (V, L, h, w), and 2D labels of the true pictures, (N, H, W): by
    the segmenter, if it knows this size, and by the model's own encoder, if its head was trained."""
    maps, labels, c = {}, {}, model.config
    if (segmenter.config.height, segmenter.config.width) == (c.height, c.width):
        maps["2D average, the segmenter's"] = segmenter.source_head(segmenter.encoder(sources.images))
        labels["the segmenter on the true picture"] = segment(segmenter, truth.images).argmax(1)
    if c.source_loss:
        maps["2D average, own encoder's"] = model.source_head(sources.features)
        labels["own encoder on the true picture"] = segment(model, truth.images).argmax(1)
    return maps, labels


def ways_to_label(model, segmenter, scene, stride: int, bar) -> tuple:
    """A scene's 4 test views (every stride-th row and column) -> label maps (h, w) of each way, the PSNR of
    S-Ray's pictures, and the true views at that stride."""
    c = model.config
    source_ids, _, test_ids = data.protocol(scene)
    truth, sources = scene.views(test_ids), model.encode(scene.views(source_ids))
    grid = data.pixel_grid(c.height, c.width).view(c.height, c.width, 2)[::stride, ::stride]      # (h, w, 2)
    chunk = max(1, 2 ** 14 // max(c.coarse, c.fine))
    maps, flat = segmented(model, segmenter, sources, truth)
    labels = {way: list(x[:, ::stride, ::stride]) for way, x in (flat | {"truth": truth.labels}).items()}
    truth.images, truth.labels, truth.depth = (
        x[..., ::stride, ::stride] for x in (truth.images, truth.labels, truth.depth))
    psnr = {"S-Ray": [], "S-Ray, true depth": []}
    for view in (truth[i] for i in range(len(test_ids))):
        pieces = zip(grid.reshape(-1, 2).split(chunk), view.depth.flatten().split(chunk))
        parts = [both_ways(model, sources, maps, pixels, view.K, view.c2w, z) for pixels, z in pieces]
        whole = {way: torch.cat([part[way] for part in parts]).unflatten(0, grid.shape[:2])
                 for way in parts[0]}
        for way, colour in zip(psnr, ("colour", "colour at true depth")):
            psnr[way].append(evaluation.psnr(whole.pop(colour), view.images.permute(1, 2, 0)))
        for way, logits in whole.items():
            labels.setdefault(way, []).append(logits.argmax(-1))
        bar.update()
    return labels, psnr, truth


def measure_beyond(checkpoint: Path, segmenter: Path, stride: int = 1) -> dict[str, dict]:
    """The rows of `beyond` for one training: name -> label metrics, psnr (None without colour), consistency
    in percent. stride n: every n-th row and column of each view alone, and no consistency."""
    model, state = training.load_checkpoint(checkpoint)
    alone, _ = training.load_checkpoint(segmenter)
    model.eval(), alone.eval()
    c, run = model.config, state["run"]
    counts, psnr, same = {}, {}, {}             # of each way: confusion matrix; list; (agreeing, all)
    with torch.no_grad(), tqdm(total=4 * len(run["test"]), desc="beyond", unit="view", mininterval=15) as bar:
        for name in run["test"]:
            scene, = follow([data.Scene(unseen_root(run) / name, c.height, c.width)], c, data.protocol)
            labels, dB, truth = ways_to_label(model, alone, scene, stride, bar)
            for way, values in dB.items():
                psnr.setdefault(way, []).extend(values)
            for way, maps in labels.items():
                n = evaluation.confusion_matrix(torch.stack(maps).flatten(), truth.labels.flatten(),
                                                len(model.classes.names))
                counts[way] = counts.get(way, 0) + n
                agree, total = consistency(maps, truth) if stride == 1 else (0, 0)
                same[way] = same.get(way, 0) + torch.tensor([agree, total])
    rows = {}
    for way, n in counts.items():
        agree, total = same[way].tolist()
        found = evaluation.label_metrics(n, model.classes.names)
        rows[way] = {**{key: found[key] for key in ("miou", "total_acc", "avg_acc")},
                     "psnr": sum(psnr[way]) / len(psnr[way]) if way in psnr else None,
                     "consistency": 100 * agree / total if total else None}
    return rows


def beyond(bench: Bench) -> tuple[list, list]:
    """What the paper leaves out. S-Ray's labels against a 2D segmenter's logits of the source views, looked
    up at the same samples, averaged over the views that have them in their image, and rendered with the same
    density: what attention and view weights add. "True depth": only the sample at the true depth is rendered:
    how much of the error is geometry, how much semantics. "The true picture": a 2D segmenter on the very
    photograph that all others have to do without. The segmenter's rows are left out where it was trained at
    another image size than S-Ray. Consistency: pixels of one test view carried to the next by true depth that
    land on the label they left with; the truth's own rate is what rounding and edges allow."""
    runs, stride = [], bench.args.preview
    for seed in range(bench.args.seeds):
        folder, segmenter = bench.trained(**({"seed": seed} if seed else {})), bench.segmenter()
        path = folder / f"beyond{f'-{stride}' * (stride > 1)}.json"
        if not path.exists():
            found = measure_beyond(folder / "checkpoint.pt", segmenter / "checkpoint.pt", stride)
            write_json(path, found)
        runs.append(json.loads(path.read_text()))
    order = ["S-Ray", "2D average, own encoder's", "2D average, the segmenter's"]
    order += [f"{name}, true depth" for name in order]
    order += ["the segmenter on the true picture", "own encoder on the true picture", "truth"]
    rows, base = [], [run["S-Ray"] for run in runs]
    for name in (name for name in order if name in runs[0]):
        some = [run[name] for run in runs]
        rows.append([name, *spread(some, "miou", "total_acc", "avg_acc", "psnr", "consistency"),
                     "" if name in ("S-Ray", "truth") else paired(some, base)])
    return ["labels from", "mIoU", "total acc", "avg acc", "PSNR", "consistency %", "mIoU less S-Ray's"], rows
