"""Table 8, L1-L19: the semantic feature extraction network, a residual U-Net run once per source view.

    images (V, 3, H, W), values in [0, 1]   ->   features (V, 32, ceil(H/4), ceil(W/4))

Every later stage reads these 32 channels and nothing else of the image (but its colours). The features depend
on the source view alone, never on the target camera: compute them once per source set and render as many
targets as you like.

Where is a feature? A convolution of odd size k, stride s and padding k//2 centres its i-th output on input
pixel s*i. So all strides here keep pixel 0 on pixel 0: the feature at (i, j) of the quarter-resolution map is
centred on image pixel (4i, 4j), and `03_reprojection.py` finds the feature of pixel u at u / 4. Upsampling
must keep that: output i reads input i / 2. The usual half-pixel upsampling would shift the map by half an
input cell each time (tests/test_02_encoder.py measures it).

Departures from Table 8: none in layers, sizes and order. The table lists no activation for L11-L18; an ELU
there gains 1.2 mIoU (docs/choices.md; two seeds differ by 1.1). Convolutions carry no bias: the instance norm
after each subtracts the mean, and so would cancel it. Its affine shift takes the bias's place.

Dimension key: V source views, C channels, H, W image size, h, w a map's. H/2, H/4 ... are rounded up.
Run: python 02_encoder.py     Test: pytest tests/test_02_encoder.py
"""
import time
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support.files import run_script, save_picture

STRIDE = 4        # image pixels from one feature to the next: L1 and L2 halve, the rest comes back to 1/4
CHANNELS = 32     # C, the width of the features and of the 3D contextual space


def conv_norm(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    """Convolution and affine instance norm (group norm with one channel a group).

    (V, inputs, h, w) -> (V, outputs, ceil(h/stride), ceil(w/stride))
    """
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False),
        nn.GroupNorm(outputs, outputs))


class ResBlock(nn.Module):
    """Table 8's "ResBlock 3x3  a, b, c", b = c in every row: two 3x3 convolutions a -> c -> c, the first of
    them strided, and a shortcut past both.

    (V, a, h, w) -> (V, c, ceil(h/stride), ceil(w/stride)). The shortcut is the identity where the shape does
    not change, else a strided 1x1 convolution; the table does not list it.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.conv1 = conv_norm(inputs, outputs, 3, stride)
        self.conv2 = conv_norm(outputs, outputs, 3)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv_norm(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


def upsample_onto(x: Tensor, skip: Tensor) -> Tensor:
    """Bilinear 2x upsampling to the size of a skip: x (V, C, h, w), skip (V, c, n, m) -> (V, C, n, m).

    Output row i reads input row i / 2. A stride-2 layer made h = ceil(n / 2) rows of n, so n is 2h - 1 or
    2h. Rows 0, 1/2, 1, ... h - 1 are 2h - 1 of them; if n is 2h, the last one is repeated. Columns likewise.
    """
    h, w = x.shape[-2:]
    x = F.interpolate(x, size=(2 * h - 1, 2 * w - 1), mode="bilinear", align_corners=True)    # steps of 1/2
    rows, columns = skip.shape[-2] - (2 * h - 1), skip.shape[-1] - (2 * w - 1)    # n odd: 0, n even: 1
    return F.pad(x, (0, columns, 0, rows), mode="replicate")


class Encoder(nn.Module):
    """Table 8, L1-L19. images (V, 3, H, W) in [0, 1] -> features (V, 32, ceil(H/4), ceil(W/4)); H, W >= 32.

    activation: "elu" after L11, L14, L15 and L18, or "none", as the table lists.
    """

    def __init__(self, activation: str = "elu"):
        super().__init__()
        self.activation = {"none": nn.Identity(), "elu": nn.ELU()}[activation]
        self.L1 = conv_norm(3, 16, 7, 2)            # 1/2
        self.L2 = ResBlock(16, 32, 2)               # 1/4
        self.L3 = ResBlock(32, 64, 2)               # 1/8
        self.L4 = ResBlock(64, 64)
        self.L5 = ResBlock(64, 128, 2)              # 1/16
        self.L6 = ResBlock(128, 128)
        self.L7 = ResBlock(128, 128)
        self.L8 = ResBlock(128, 128)
        self.L9 = ResBlock(128, 128)
        self.L10 = ResBlock(128, 128)
        self.L11 = conv_norm(128, 64, 3)
        self.L14 = conv_norm(128, 64, 3)            # after L12 up-sample, L13 concat with L4: 1/8
        self.L15 = conv_norm(64, 32, 3)
        self.L18 = conv_norm(64, 32, 3)             # after L16 up-sample, L17 concat with L2: 1/4
        self.L19 = conv_norm(32, 32, 1)

    def forward(self, images: Tensor) -> Tensor:
        act = self.activation
        L1 = F.relu(self.L1(2 * images - 1))                                  # (V, 16, H/2, W/2)
        L2 = self.L2(L1)                                                      # (V, 32, H/4, W/4)
        L4 = self.L4(self.L3(L2))                                             # (V, 64, H/8, W/8)
        L10 = self.L10(self.L9(self.L8(self.L7(self.L6(self.L5(L4))))))       # (V, 128, H/16, W/16)
        L11 = act(self.L11(L10))                                              # (V, 64, H/16, W/16)
        L13 = torch.cat([upsample_onto(L11, L4), L4], dim=1)                  # L12, L13: (V, 128, H/8, W/8)
        L15 = act(self.L15(act(self.L14(L13))))                               # (V, 32, H/8, W/8)
        L17 = torch.cat([upsample_onto(L15, L2), L2], dim=1)                  # L16, L17: (V, 64, H/4, W/4)
        return self.L19(act(self.L18(L17)))                                   # (V, 32, H/4, W/4)


def parameter_counts(encoder: Encoder) -> dict[str, int]:
    """Weights by kind: "listed" (Table 8's convolutions), "shortcut" (of ResBlocks), "norm" (affine)."""
    counts = {"listed": 0, "shortcut": 0, "norm": 0}
    for name, weight in encoder.named_parameters():
        kind = "shortcut" if "shortcut" in name else "listed"
        counts["norm" if weight.dim() == 1 else kind] += weight.numel()
    return counts


def pca_picture(features: Tensor) -> Tensor:
    """The three main directions of features (V, C, h, w) as red, green, blue: (V, h, w, 3) in [0, 1]."""
    V, C, h, w = features.shape
    x = features.permute(0, 2, 3, 1).reshape(-1, C)                           # (V*h*w, C)
    x = x - x.mean(0)
    x = x @ torch.linalg.svd(x, full_matrices=False).Vh[:3].T                 # (V*h*w, 3)
    low, high = x.quantile(0.02, dim=0), x.quantile(0.98, dim=0)
    return ((x - low) / (high - low)).clamp(0, 1).view(V, h, w, 3)


RES = "ResBlock 3x3   "
TABLE_8 = {   # row: what the supplement prints for it
    "L1": "Conv 7x7       3, 16", "L2": RES + "16, 32, 32", "L3": RES + "32, 64, 64",
    "L4": RES + "64, 64, 64", "L5": RES + "64, 128, 128",
    **{f"L{i}": RES + "128, 128, 128" for i in range(6, 11)},
    "L11": "Conv 3x3       128, 64", "L12": "Up-sample 2x", "L13": "Concat (L12, L4)",
    "L14": "Conv 3x3       128, 64", "L15": "Conv 3x3       64, 32", "L16": "Up-sample 2x",
    "L17": "Concat (L16, L2)", "L18": "Conv 3x3       64, 32", "L19": "Conv 1x1       32, 32"}


@torch.no_grad()
def layer_shapes(encoder: Encoder, images: Tensor) -> dict[str, tuple[int, ...]]:
    """The output shape of every row of Table 8 for these images: {"L1": (V, 16, H/2, W/2), ...}."""
    shapes: dict[str, tuple[int, ...]] = {}

    def keep(row: str):
        """A hook that keeps the shape of what the row's module makes."""
        return lambda module, inputs, output: shapes.update({row: tuple(output.shape)})
    rows = [(name, module) for name, module in encoder.named_children() if name in TABLE_8]
    hooks = [module.register_forward_hook(keep(name)) for name, module in rows]
    encoder(images)
    for hook in hooks:
        hook.remove()
    for up, concat, below, skip in (("L12", "L13", "L11", "L4"), ("L16", "L17", "L15", "L2")):
        (V, C, h, w), channels = shapes[skip], shapes[below][1]
        shapes[up], shapes[concat] = (V, channels, h, w), (V, channels + C, h, w)
    return shapes


def main() -> None:
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    data = import_module("01_data")            # example_views: a furnished room, seen from nine places
    torch.manual_seed(0)
    images = data.example_views().images[:8]   # the ninth is the target
    encoder = Encoder()
    shapes = layer_shapes(encoder, images)
    print(f"Table 8, L1-L19, on {tuple(images.shape)}: eight source views of one room\n")
    print(f"{'row':4} {'the supplement':30} {'our output (V, C, h, w)':24} parameters")
    for row, text in TABLE_8.items():
        module = getattr(encoder, row, nn.Identity())
        print(f"{row:4} {text:30} {str(shapes[row]):24} {sum(p.numel() for p in module.parameters()):,}")
    print("\nweights:", ", ".join(f"{kind} {n:,}" for kind, n in parameter_counts(encoder).items()))

    with torch.no_grad():
        start = time.perf_counter()
        features = encoder(images)
        seconds = time.perf_counter() - start
    print(f"One fact: the eight views take {seconds:.2f} s once. A hundred targets that asked again would "
          f"take {100 * seconds:.0f} s.")

    figure, axes = plt.subplots(2, 4, figsize=(12, 5), layout="constrained")
    for v, picture in enumerate(pca_picture(features)[:4]):
        axes[0, v].imshow(images[v].permute(1, 2, 0))
        axes[0, v].set_title(f"source view {v}")
        axes[1, v].imshow(picture)
        axes[1, v].set_title("untrained features, PCA")
    for axis in axes.flat:
        axis.set_axis_off()
    figure.suptitle("Table 8: (V, 3, 240, 320) → (V, 32, 60, 80), main directions as RGB")
    save_picture(figure, "outputs/02_encoder.png", 110)


if __name__ == "__main__":
    run_script(main)
