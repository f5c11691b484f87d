"""Labels from the 2D segmenter that --source-loss trains, the encoder and a 1x1 head, to fine-tune on.

    python -m tools.pseudo_labels --checkpoint CKPT --scenes A,B --out FOLDER
    python 07_train.py --finetune CKPT --scenes A --labels FOLDER                      (09 has --labels too)

They stand where the paper uses DeepLabV3+ (Table 5, "p"). FOLDER/SCENE/FRAME.png holds the labels of a
scene's source and fine-tuning views, never of its test views; FOLDER/metrics.json compares them with the
scenes' own.

Test: pytest tests/test_08_eval.py
"""
import argparse
from importlib import import_module
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from support import evaluating, machine
from support.files import DataError, read_image, run_script, write_atomically, write_json
from support.labels import other_classes

rooms = import_module("00_rooms")          # make_rooms, where there is no dataset
data = import_module("01_data")            # Scene, protocol, nearest_pixels
encoder = import_module("02_encoder")      # upsample_onto
training = import_module("07_train")       # load_checkpoint
evaluation = import_module("08_eval")      # source_views, test_views, confusion_matrix, label_metrics


def segment(model, images: Tensor) -> Tensor:
    """The 2D segmenter: images (V, 3, H, W) -> logits (V, L, H, W)."""
    logits = model.source_head(model.encoder(images))                   # (V, L, h, w), every fourth pixel
    return encoder.upsample_onto(encoder.upsample_onto(logits, images[..., ::2, ::2]), images)


@torch.no_grad()
def write_pseudo_labels(model, scenes: list, out: Path) -> dict:
    """Each scene's source and fine-tuning views -> out/SCENE/FRAME.png in raw ids and at the size of the
    colour image, like label-filt; and the label metrics on those views, against the scenes' own labels."""
    L, device = len(model.classes.names), next(model.parameters()).device
    n = torch.zeros(L, L + 1, dtype=torch.int64)
    model.eval()
    for scene in scenes:
        if scene.classes.names != model.classes.names:
            reason = other_classes(model.classes, scene.classes)
            raise DataError(f"{scene.folder}: {reason}; no pseudo labels for it")
        source, tune, _ = data.protocol(scene)
        for index in tqdm(scene.readable(sorted(source + tune)), desc=f"segmenting {scene.name}", unit="view",
                          leave=False):
            view, frame = scene.views([index]), scene.frames[index]
            labels = segment(model, view.images.to(device)).argmax(1).cpu()[0]                # (H, W)
            n += evaluation.confusion_matrix(labels.flatten(), view.labels.flatten(), L)
            h, w = (side - 2 * scene.crop for side in read_image(scene.files(frame)[0]).shape[:2])
            rows, columns = (data.nearest_pixels(new, old) for new, old in zip((h, w), labels.shape))
            raw = scene.raw_ids[labels.numpy()][rows[:, None], columns]                       # (h, w) uint16
            write_labels(out / scene.name / f"{frame}.png", np.pad(raw, scene.crop))          # cropped: 0
    return evaluation.label_metrics(n, model.classes.names)


def write_labels(path: Path, raw: np.ndarray) -> None:
    """Raw ids (h, w) uint16 as a png."""
    write_atomically(path, lambda file: iio.imwrite(file, raw, extension=".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    evaluating.add_scene_flags(parser)
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder for the labels")
    args = parser.parse_args()
    machine.prepare_cpu()
    model, state = training.load_checkpoint(args.checkpoint)
    kind, root, names = evaluating.choose_scenes(args, model.config, state["run"], rooms.make_rooms)
    folders = [root / name for name in names]
    scenes = evaluating.open_scenes(folders, data, model.config, args, lambda scene: (
        evaluation.source_views(scene), evaluation.test_views(scene)))
    evaluating.introduce(args.checkpoint, state, kind, root, names)
    metrics = write_pseudo_labels(model.to(machine.pick_device(args.device)), scenes, Path(args.out))
    write_json(Path(args.out) / "metrics.json", metrics)
    truth = "no labels to compare with"
    if metrics["miou"] is not None:
        truth = f"mIoU {metrics['miou']:.2f}, total accuracy {metrics['total_acc']:.2f}"
    print(f"pseudo labels in {args.out}; on these views: {truth}")


if __name__ == "__main__":
    run_script(main)
