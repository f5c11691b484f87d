"""A plane sweep: how far away is what the photographs show, told by the photographs themselves.

A ray of one view is followed from near to far. At each depth the neighbouring views say which colour they see
there. Where it is the surface's depth they agree; elsewhere they see different things. Only rays on which one
depth agrees far better than all others count: a blank wall says nothing.

Lengths are in the capture's own unit. Dimension key: R rays, D depths, V neighbours, P pixels of a patch.
Test: pytest tests/test_support_sweep.py
"""
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

VIEWS, RAYS, NEIGHBOURS, DEPTHS, SIDE = 10, 300, 8, 160, 160
LEAST = 20              # clear pixels that outweigh all others
# around a ray's pixel; patches are told apart where single pixels are not
PATCH = torch.tensor([(0, 0), (3, 0), (-3, 0), (0, 3), (0, -3), (2, 2), (-2, 2), (2, -2), (-2, -2)])


def measured_depths(images: list[np.ndarray], K: np.ndarray, c2w: np.ndarray) -> np.ndarray:
    """N images (H, W, 3) uint8 of one camera K (3, 3), poses c2w (N, 4, 4) -> depths of the rays on which the
    views agree, of at most VIEWS views (M,). Few or none where there is no texture or no parallax."""
    c2w = torch.from_numpy(c2w).float()
    radius = float((c2w[:, :3, 3] - c2w[:, :3, 3].mean(0)).norm(dim=1).max())
    if len(images) < 5 or radius < 1e-6:
        return np.zeros(0)
    small, K = reduced(images, torch.from_numpy(K).float())                  # (N, 3, h, w)
    depths = torch.from_numpy(np.geomspace(0.03 * radius, 60 * radius, DEPTHS)).float()       # (D,)
    generator, found = torch.Generator().manual_seed(0), []
    for view in np.unique(np.linspace(0, len(images) - 1, VIEWS).round().astype(int)).tolist():
        h, w = small.shape[-2:]
        pixels = torch.rand(RAYS, 2, generator=generator) * torch.tensor([w - 9.0, h - 9.0]) + 4
        found.append(depths[agreeing(view, pixels, depths, small, K, c2w)])
    return torch.cat(found).numpy()


def typical_depth(images: Tensor, K: Tensor, c2w: Tensor) -> float | None:
    """Images (N, 3, h, w) as reduced() makes them, K (3, 3), c2w (N, 4, 4) -> the median depth of what they
    show. A pixel has a say if other views see it at 30% of the depths, and if its best depth is a fifth
    better than all that lie a fifth away; with fewer than LEAST such pixels all have one. On 18 rooms, by a
    script that is not kept, the median is 0.97 ± 0.04 of the true one, all pixels' 0.81 ± 0.13. None for
    fewer than 4 views, or where no two see the same."""
    radius = float((c2w[:, :3, 3] - c2w[:, :3, 3].mean(0)).norm(dim=1).max())
    if len(images) < 4 or radius < 1e-6:
        return None
    depths = torch.from_numpy(np.geomspace(0.3 * radius, 60 * radius, DEPTHS // 2)).float()       # (D,)
    generator, found, clear = torch.Generator().manual_seed(0), [], []
    for view in np.unique(np.linspace(0, len(images) - 1, VIEWS).round().astype(int)).tolist():
        h, w = images.shape[-2:]
        pixels = torch.rand(RAYS, 2, generator=generator) * torch.tensor([w - 9.0, h - 9.0]) + 4
        others = [i for i in range(len(c2w)) if i != view]
        cost = costs(view, others, pixels, depths, images, K, c2w, least=2)                       # (R, D)
        best, index, other = best_and_next(cost, depths)
        inner = (index > 0) & (index < len(depths) - 1) & best.isfinite()
        found.append(depths[index[inner]])
        tells = inner & (cost.isfinite().sum(1) > 0.3 * len(depths)) & (other + 1 > 1.2 * (best + 1))
        clear.append(depths[index[tells & other.isfinite()]])
    found, clear = torch.cat(found), torch.cat(clear)
    found = clear if len(clear) >= LEAST else found
    return float(found.median()) if len(found) else None


def best_and_next(cost: Tensor, depths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Costs (R, D) -> the least one, where it is, and the least of all depths a fifth away from it: (R,)
    each."""
    best, index = cost.min(1)                                                 # (R,)
    far_off = (depths[None] / depths[index][:, None]).log().abs() > 0.2       # (R, D)
    return best, index, torch.where(far_off, cost, torch.inf).min(1).values   # the best of all other depths


def reduced(images: list[np.ndarray], K: Tensor) -> tuple[Tensor, Tensor]:
    """The images at most SIDE pixels wide or high, (N, 3, h, w) in 0 .. 255, and their K."""
    h, w = images[0].shape[:2]
    f = min(1.0, SIDE / max(h, w))
    new = round(f * h), round(f * w)
    stack = [F.interpolate(torch.from_numpy(image).permute(2, 0, 1)[None].float(), size=new, mode="bilinear",
                           antialias=True, align_corners=False) for image in images]
    K = K.clone()
    for axis, factor in ((0, new[1] / w), (1, new[0] / h)):
        K[axis, :2] *= factor
        K[axis, 2] = (K[axis, 2] + 0.5) * factor - 0.5
    return torch.cat(stack), K


def neighbours(view: int, c2w: Tensor) -> list[int]:
    """Views that look the same way from elsewhere: NEIGHBOURS of the nearest, spread over twice as many."""
    distance = (c2w[:, :3, 3] - c2w[view, :3, 3]).norm(dim=1)
    cosine = c2w[:, :3, 2] @ c2w[view, :3, 2]
    apart = distance > 0.01 * distance.max()
    order = torch.argsort(distance + (1 - cosine) * distance.max())
    near = [i for i in order.tolist() if apart[i] and cosine[i] > 0.5][:2 * NEIGHBOURS]
    return near[::2] if len(near) >= 2 * NEIGHBOURS else near[:NEIGHBOURS]


def agreeing(view: int, pixels: Tensor, depths: Tensor, images: Tensor, K: Tensor, c2w: Tensor) -> Tensor:
    """Rays of a view, pixels (R, 2) -> for those whose depth is told, its index in depths (D,)."""
    others = neighbours(view, c2w)
    if len(others) < 3:
        return torch.zeros(0, dtype=torch.long)
    cost = costs(view, others, pixels, depths, images, K, c2w, least=3)       # (R, D)
    best, index, other = best_and_next(cost, depths)                          # (R,) each
    inner = (index > 1) & (index < len(depths) - 2)
    return index[inner & (best < 12) & (other > 1.6 * best + 4) & (cost.isfinite().sum(1) > 20)]


def costs(view: int, others: list[int], pixels: Tensor, depths: Tensor, images: Tensor, K: Tensor,
          c2w: Tensor, least: int) -> Tensor:
    """How much the other views differ, (R, D), from what rays of a view, pixels (R, 2), show at depths (D,):
    the mean of the half that differs least (the rest may be hidden); inf where fewer than `least` see it."""
    patch = pixels[:, None] + PATCH                                           # (R, P, 2)
    own = sampled(images[view], patch.flatten(0, 1)).view(3, *patch.shape[:2])                # (3, R, P)
    each = torch.stack([difference(patch, own, depths, images[i], K, c2w[view], c2w[i]) for i in others])
    seen = each.isfinite().sum(0)                                             # (V, R, D) -> (R, D)
    half = each.sort(0).values[:max(least, len(others) // 2)]                 # (V', R, D)
    mean = torch.where(half.isfinite(), half, 0).sum(0) / half.isfinite().sum(0).clamp(min=1)
    return torch.where(seen >= least, mean, torch.inf)


def difference(patch: Tensor, own: Tensor, depths: Tensor, image: Tensor, K: Tensor, view: Tensor,
               other: Tensor) -> Tensor:
    """Patches (R, P, 2) of a view with colours own (3, R, P), seen at depths (D,) by another: mean absolute
    difference of colour (R, D); inf where a patch is outside its image."""
    (R, P, _), D, (h, w) = patch.shape, len(depths), image.shape[-2:]
    rays = torch.cat([patch, torch.ones(R, P, 1)], 2) @ (view[:3, :3] @ torch.linalg.inv(K)).T
    points = view[:3, 3] + depths[None, :, None, None] * rays[:, None]        # (R, D, P, 3)
    uvz = (points - other[:3, 3]) @ other[:3, :3] @ K.T
    z = uvz[..., 2]
    uv = uvz[..., :2] / z.clamp(min=1e-6)[..., None]                          # (R, D, P, 2)
    inside = (z > 1e-6) & (uv >= 0).all(-1) & (uv[..., 0] <= w - 1) & (uv[..., 1] <= h - 1)
    there = sampled(image, uv.reshape(-1, 2)).view(3, R, D, P)
    cost = (there - own[:, :, None]).abs().mean((0, 3))                       # (R, D)
    return torch.where(inside.all(-1), cost, torch.inf)


def sampled(image: Tensor, pixels: Tensor) -> Tensor:
    """Bilinear colours of image (3, h, w) at pixels (M, 2) -> (3, M)."""
    h, w = image.shape[-2:]
    grid = 2 * pixels / torch.tensor([w - 1.0, h - 1.0]) - 1
    return F.grid_sample(image[None], grid[None, None], align_corners=True)[0, :, 0]
