"""Replica as rendered for Semantic-NeRF, and for vMAP in imap/00: rgb/, depth/, semantic_class/,
traj_w_c.txt; a camera 90° wide."""
import colorsys
from pathlib import Path

import numpy as np

from support.files import DataError, read_text, reason
from support.layouts import Camera, Capture, Photo, checked_pose, image_size, inside

# classes 1 .. 101 (Replica's info_semantic.json); 0 is void: unlabelled
CLASSES = """
backpack base-cabinet basket bathtub beam beanbag bed bench bike bin blanket blinds book bottle box bowl
camera cabinet candle chair chopping-board clock cloth clothing coaster comforter computer-keyboard cup
cushion curtain ceiling cooktop countertop desk desk-organizer desktop-computer door exercise-ball faucet
floor handbag hair-dryer handrail indoor-plant knife-block kitchen-utensil lamp laptop major-appliance mat
microwave monitor mouse nightstand pan panel paper-towel phone picture pillar pillow pipe plant-stand
plate pot rack refrigerator remote-control scarf sculpture shelf shoe shower-stall sink small-appliance
sofa stair stool switch table table-runner tablet tissue-paper toilet toothbrush towel tv-screen tv-stand
umbrella utensil-holder vase vent wall wall-cabinet wall-plug wardrobe window rug logo bag set-of-clothing
""".split()


def read(folder: Path) -> Capture:
    """One sequence -> its frames, numbered as they are."""
    path = folder / "traj_w_c.txt"
    lines = read_text(path, 2 ** 26).splitlines()
    try:
        poses = [np.array([float(x) for x in line.split()]) for line in lines if line.strip()]
    except ValueError as error:
        raise DataError(f"{path}: cannot be read as lines of 16 numbers ({reason(error)}); copy it "
                        "again") from None
    if not poses or any(len(p) != 16 for p in poses):
        raise DataError(f"{path}: not 16 numbers on every line; copy it again")
    there = len([*(folder / "rgb").glob("rgb_*.png")])
    if there != len(poses):
        raise DataError(f"{folder}: {there} images rgb/rgb_<i>.png for {len(poses)} poses in traj_w_c.txt; "
                        "copy it again")
    photos, kinds = [], [kind for kind in ("depth", "semantic_class") if (folder / kind).is_dir()]
    for i in range(len(poses)):
        files = {kind: inside(folder, f"{kind}/{kind}_{i}.png", str(path)) for kind in ("rgb", *kinds)}
        h, w = image_size(files["rgb"])
        camera = Camera(w / 2, w / 2, (w - 1) / 2, (h - 1) / 2)  # 320, 320, 319.5, 239.5 at 640x480
        pose = checked_pose(poses[i].reshape(4, 4), f"{path}, line {i + 1}")
        photos.append(Photo(i, files["rgb"], pose, camera, depth=files.get("depth"),
                            label=files.get("semantic_class")))
    return Capture(photos, ["camera taken to be 90 degrees wide, as Semantic-NeRF renders it"])


def class_list() -> str:
    """classes.csv of the 101 classes: 93,wall,#... Colours are ours: hues a golden section apart."""
    lines = ["id,name,colour"]
    for i, name in enumerate(CLASSES, 1):
        rgb = colorsys.hsv_to_rgb(0.618034 * i % 1, 0.45 + 0.5 * (i % 3) / 2, 0.95 - 0.4 * (i % 4) / 3)
        lines.append(f"{i},{name},#" + "".join(f"{round(255 * x):02x}" for x in rgb))
    return "\n".join([*lines, ""])
