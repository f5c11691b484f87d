"""What training changes of its pictures.     Test: pytest tests/test_07_train.py"""
import torch
from torch import Tensor

from support.files import DataError


def unmasked(flat: Tensor, mask: Tensor | None) -> Tensor:
    """Pixels drawn at random (R,), row by row -> the same, those where mask (H, W) is false moved to others
    where it is true. DataError if it is false everywhere."""
    if mask is None:
        return flat
    allowed = mask.flatten().nonzero()[:, 0]
    if not len(allowed):
        raise DataError("a training view is masked altogether; leave out the frames whose image in mask/ is "
                        "black")
    return torch.where(mask.flatten()[flat], flat, allowed[flat % len(allowed)])


def relight(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """images (..., 3, H, W) in [0, 1] as another lamp and exposure would show them: a random gamma and a
    random gain of each channel, within a factor of 1 + amount. The same for all images, so that they still
    agree."""
    if not amount:
        return images
    change = (1 + amount) ** (2 * torch.rand(4, generator=generator) - 1)  # in 1 / (1 + amount) .. 1 + amount
    return (images ** change[0] * change[1:, None, None]).clamp(max=1)
