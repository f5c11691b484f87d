"""How much of a scene must be doubted: which share of its pixels some source view has in its image and does
not see, and how many source views a pixel has. Of every scene in a folder, by 01's protocol (8 source views,
4 test views) and the scenes' depth maps.

    python -m tools.occlusion data/doubted

Test: pytest tests/test_tool_occlusion.py
"""
import argparse
from importlib import import_module
from pathlib import Path

from support.datasets import list_scenes
from support.files import DataError, run_script
from support.rooms.occlusion import Shares, shares

data = import_module("01_data")                # Scene, protocol


def scene_shares(scene) -> Shares:
    """Shares of a 01 Scene under 01's protocol. DataError where it has no depth."""
    sources, _, targets = data.protocol(scene)
    views = scene.views([*sources, *targets])
    if not views.depth[len(sources):].any():
        raise DataError(f"{scene.folder}: no depth maps; what a view does not see is measured by depth")
    order = range(len(sources) + len(targets))
    return shares(views.depth.double().numpy(), views.K[0].double().numpy(), views.c2w.double().numpy(),
                  order[:len(sources)], order[len(sources):])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("root", type=Path, metavar="FOLDER", help="folder that holds the scene folders")
    parser.add_argument("--scenes", help="a,b,c: these scenes alone [all]")
    parser.add_argument("--height", type=int, default=240, help="rows of the images [240]")
    parser.add_argument("--width", type=int, default=320, help="columns [320]")
    parser.add_argument("--cache", default="cache", help="folder for decoded frames [cache]")
    args = parser.parse_args()
    names = args.scenes.split(",") if args.scenes else list_scenes(args.root)
    print(f"{'scene':20s} pixels with an occluded view   views to a pixel")
    rows = []
    for name in names:
        rows.append(scene_shares(data.Scene(args.root / name, args.height, args.width, args.cache)))
        print(f"{name:20s} {rows[-1].occluded:29.1%} {rows[-1].views:18.2f}", flush=True)
    occluded, views = (sum(column) / len(rows) for column in zip(*rows))
    print(f"{f'mean of {len(rows)}':20s} {occluded:29.1%} {views:18.2f}")


if __name__ == "__main__":
    run_script(main)
