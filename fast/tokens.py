"""The valid tokens of a tensor (R, S, V): packed into a list, and back."""
from typing import NamedTuple

from torch import Tensor


class Tokens(NamedTuple):
    """The T valid tokens of (R, S, V), ray by ray, sample by sample, view by view."""
    mask: Tensor      # (R, S, V)
    place: Tensor     # (T,) of the R S V
    sample: Tensor    # (T,) of the R S

    @staticmethod
    def of(mask: Tensor) -> "Tokens":
        """The tokens where mask (R, S, V) is true."""
        place = mask.flatten().nonzero()[:, 0]
        return Tokens(mask, place, place // mask.shape[2])

    def sum_over_views(self, x: Tensor) -> Tensor:
        """x (T, C) -> (R, S, C)"""
        R, S, _ = self.mask.shape
        return x.new_zeros(R * S, x.shape[1]).index_add_(0, self.sample, x).view(R, S, -1)

    def unpack(self, x: Tensor) -> Tensor:
        """x (T,) -> (R, S, V): in its place, 0 where the mask is false."""
        return x.new_zeros(self.mask.numel()).index_copy_(0, self.place, x).view(self.mask.shape)

    def pack(self, x: Tensor) -> Tensor:
        """x (R, S, V) -> (T,)"""
        return x.flatten().index_select(0, self.place)
