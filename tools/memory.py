"""How much memory a GPU needs at the paper's sizes, told without one.

    python -m tools.memory                 a step and an image of 320x240 and 640x480, float32 and bfloat16
    python -m tools.memory --cra dense     with another attention
    python -m tools.memory --fast false    by the lessons, whose attention stores its scores

Everything runs on a device without numbers (tools/elsewhere.py), which counts the bytes of live tensors:
weights, gradients, Adam's moments, source views, what forward keeps for backward, what operations make. Not
counted are CUDA itself, its libraries' workspaces, gaps between tensors and a desktop: RESERVE of a card is
left for them. No GPU has confirmed these figures.

Test: pytest tests/test_elsewhere.py
"""
import argparse
import re
from importlib import import_module

import torch
from tqdm import tqdm

from fast import choice, gpu
from fast.step import StepOnCores
from support.evaluating import check_least
from support.files import DataError, run_script
from tools.elsewhere import DEVICE, Elsewhere

data = import_module("01_data")                # Views
cra = import_module("04_cra")                  # MODES
training = import_module("07_train")           # SRay, Config, training_step

CARDS = 8, 12, 16, 24                          # GB
RESERVE = 1.5                                  # GB of them
PIECES = 1024, 512, 256, 128, 64               # --piece: rays of a step that go together
CHUNKS = 4096, 2048, 1024, 512, 256            # --chunk: of an image; the first is 08's own


def job(config, fast: bool, bf16: bool = False) -> tuple:
    """A model and a batch elsewhere; fast: the model as 07 and 08 run it on a GPU."""
    V, H, W, R = config.views, config.height, config.width, config.rays
    model = training.SRay(config).to(DEVICE)
    if fast:
        model.coarse, model.fine = choice.fused(model.coarse), choice.fused(model.fine)
    gpu.run_in(model, bf16, False)
    views = data.Views(torch.zeros(V, 3, H, W), torch.eye(3).repeat(V, 1, 1), torch.eye(4).repeat(V, 1, 1),
                       torch.zeros(V, H, W, dtype=torch.long), torch.zeros(V, H, W)).to(DEVICE)
    rays = torch.zeros(R, 2), torch.zeros(R, 3), torch.zeros(R, dtype=torch.long)
    return model, training.Batch(views, views.K[0], views.c2w[0], *(x.to(DEVICE) for x in rays),
                                 views.images[:0], views.labels[:0])


def step_peak(config, fast: bool, bf16: bool, piece: int) -> int:
    """Bytes at the peak of a training's second step: the first left its gradients and Adam's moments."""
    with Elsewhere() as elsewhere:
        model, batch = job(config, fast, bf16)
        take_step = StepOnCores(training) if fast else training.training_step
        optimiser = torch.optim.Adam(model.parameters(), fused=True)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimiser.step()
        take_step(model, [batch], 1, piece)
        optimiser.step()
        return elsewhere.watch.peak


def image_peak(config, fast: bool, chunk: int) -> int:
    """Bytes at the peak of an image, in full; two chunks of its rays tell it."""
    with Elsewhere() as elsewhere, torch.no_grad():
        model, batch = job(config, fast)
        model = choice.imaging(model).eval()
        sources, rows = model.encode(batch.sources), -(-2 * chunk // config.width)
        model.render_image(sources, batch.K, batch.c2w, min(rows, config.height), config.width, chunk)
        return elsewhere.watch.peak


def row(name: str, peaks: dict[int, int]) -> str:
    """GB at each size, and the largest size that fits each card."""
    gb = {size: peak / 1e9 for size, peak in peaks.items()}
    fits = [next((size for size, peak in gb.items() if peak <= card - RESERVE), None) for card in CARDS]
    return f"{name:24}" + "".join(f"{x:8.2f}" for x in gb.values()) + "   " + "".join(
        f"{size or 'none':>8}" for size in fits)


def head(title: str, flag: str, sizes: tuple) -> str:
    """The lines above a table."""
    return (f"\n{title}\n{'GB with ' + flag:24}" + "".join(f"{size:8}" for size in sizes) + "   "
            + "".join(f"{card:5} GB" for card in CARDS))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add, own = parser.add_argument, training.Config()
    add("--rays", type=int, default=own.rays, help="of a step")
    add("--samples", type=int, default=own.coarse, help="coarse, and as many fine ones")
    add("--views", type=int, default=own.views, help="source views")
    add("--cra", default=own.cra, choices=cra.MODES, help="attention")
    add("--fast", default="true", choices=("true", "false"), help="compute by fast/, as 07 and 08 do")
    add("--sizes", nargs="+", default=["320x240", "640x480"], help="of images, WxH")
    args = parser.parse_args()
    check_least(args, rays=1, samples=2, views=1)
    for size in args.sizes:
        if not re.fullmatch(r"\d{2,4}x\d{2,4}", size) or min(map(int, size.split("x"))) < 32:
            raise DataError(f"--sizes {size}: must be WxH, from 32x32 to 9999x9999")
    return args


def main() -> None:
    args = parse_arguments()
    fast, configs = args.fast == "true", {}
    for size in args.sizes:
        width, height = map(int, size.split("x"))
        configs[size] = training.Config(height=height, width=width, rays=args.rays, coarse=args.samples,
                                        fine=args.samples, views=args.views, cra=args.cra)
    pieces = (args.rays, *(piece for piece in PIECES if piece < args.rays))
    total = len(configs) * (2 * len(pieces) + len(CHUNKS))
    with tqdm(total=total, desc="counting", dynamic_ncols=True) as bar:
        def counted(peak: int) -> int:
            """peak, and the bar moves."""
            bar.update()
            return peak
        samples = f"{args.samples} + {args.samples} samples, {args.views} views, attention {args.cra}"
        bar.write(head(f"a step, {args.rays} rays, {samples}", "--piece", pieces))
        for size, config in configs.items():
            for kind, bf16 in (("float32", False), ("bfloat16", True)):
                bar.write(row(f"{size}, {kind}", {
                    piece: counted(step_peak(config, fast, bf16, piece)) for piece in pieces}))
        bar.write(head(f"an image, {samples}", "--chunk", CHUNKS))
        for size, config in configs.items():
            bar.write(row(f"{size}, float32", {
                chunk: counted(image_peak(config, fast, chunk)) for chunk in CHUNKS}))


if __name__ == "__main__":
    run_script(main)
