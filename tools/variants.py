"""The rows of tools/attention.py: S-Ray's level with another attention, and what a diagnostic adds to it.

A row is a subclass of 07's Level. It differs in what turns M into M'', and in nothing else: 07 trains it, 08
evaluates it. A diagnostic tells the level what no photograph tells (true visibility, true depth), or what the
public reference tells it (mean and variance over the views): what is missing where attention sits?

Dimension key: R rays, S samples, V source views, C channels, A heads, D head dim; B sequences of N tokens.
Test: pytest tests/test_tool_attention.py
"""
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fast.packed import PackedLevel
from fast.tokens import Tokens
from support.files import DataError

data = import_module("01_data")                    # project
encoder = import_module("02_encoder")              # CHANNELS
reprojection = import_module("03_reprojection")    # in_view
cra = import_module("04_cra")                      # key_bias
weighting = import_module("05_weighting")          # semantic_ray
geometry = import_module("06_geometry_render")     # pool_views
training = import_module("07_train")               # Config, Level, SRay, load_checkpoint

SURFACE = 0.05          # a sample is at a surface, a source view sees a point: depths agree within 5%
JOINED = {"": 0, "moments": 2 * encoder.CHANNELS, "visibility": 1}        # what is joined to M: its channels


# ---------------------------------------------------------------------------------------------- the controls

class TokenBlock(nn.Module):
    """What MultiHeadAttention is without attention: x (B, N, C) -> (B, N, C), each token by itself. Residual,
    LayerNorm, ReLU and, to 1%, the number of parameters are the attention's."""

    def __init__(self, channels: int = encoder.CHANNELS, relu: bool = True):
        super().__init__()
        self.relu, self.hidden = relu, nn.Linear(channels, 2 * channels)
        self.out, self.norm = nn.Linear(2 * channels, channels), nn.LayerNorm(channels)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """mask: as the attention takes it; nobody reads another token here."""
        read = self.out(F.relu(self.hidden(x)))                               # (B, N, C)
        return self.norm(x + (F.relu(read) if self.relu else read))           # (B, N, C)


def mean_of_keys(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """04's `attention` with all scores equal: q, k, v (B, A, N, D), mask (B, N) -> the mean of the values
    that may be read, (B, A, N, D)."""
    share = cra.key_bias(mask, v.dtype).softmax(dim=-1)                       # (B, t)
    # out[b,a,s,d] = sum_t share[b,t] v[b,a,t,d]
    return torch.einsum("bt,batd->bad", share, v)[:, :, None].expand_as(q)


# ------------------------------------------------------------------------------------------------- the levels

class Plain(training.Level):
    """07's Level. join: what stands beside M where attention reads it; one linear layer brings both back to
    C channels, and begins as M alone. View weights, density and colour read M as ever."""

    def __init__(self, config, classes: int, join: str = "", truth: "TrueDepth | None" = None):
        super().__init__(config, classes)
        self.joined, self.truth = join, truth
        if join:
            self.join = nn.Linear(encoder.CHANNELS + JOINED[join], encoder.CHANNELS)
            nn.init.eye_(self.join.weight)                                    # [identity, 0]
            nn.init.zeros_(self.join.bias)

    def context_and_density(self, origin: Tensor, directions: Tensor, z: Tensor, sources,
                            colour: bool = True) -> tuple:
        """Level's; the context has one thing more, what is joined to M: (R, S, V, JOINED)."""
        context, sigma, blended = super().context_and_density(origin, directions, z, sources, colour)
        M, _, mask, _ = context
        beside = None
        if self.joined == "moments":
            moments = torch.cat(geometry.pool_views(M, mask), dim=-1)         # (R, S, 2C)
            beside = moments[:, :, None].expand(-1, -1, M.shape[2], -1)       # (R, S, V, 2C)
        if self.joined == "visibility":
            points = origin + z[..., None] * directions[:, None]              # (R, S, 3)
            depth = torch.stack([self.truth.of(c2w) for c2w in sources.c2w])  # (V, H, W)
            beside = sees(points, sources.K, sources.c2w, depth)[..., None].to(M.dtype)      # (R, S, V, 1)
        return (*context, beside), sigma, blended

    def semantics(self, context: tuple) -> tuple[Tensor, Tensor]:
        """Level's."""
        M, differences, mask, visibility, beside = context
        tokens = M
        if beside is not None:
            tokens = self.join(torch.cat([M, beside], dim=-1)) * mask[..., None]      # (R, S, V, C)
        refined = self.cra(tokens, mask)                                      # M'': (R, S, V, C)
        w = self.weights(M, differences, visibility, mask)                    # (R, S, V)
        return self.head(weighting.semantic_ray(w, refined)), w


class PackedMLP(PackedLevel):
    """TokenMLP of valid tokens alone."""

    def refine(self, M: Tensor, tokens: Tokens, kept: Tensor | None) -> Tensor:
        """PackedLevel's."""
        M = self.cra.L4(with_positions(self.cra, M, tokens), None)            # (T, C)
        M = self.cra.L6(M, None)                                              # (T, C)
        return M if kept is None else M[kept]


class PackedUniform(PackedLevel):
    """Uniform of valid tokens alone."""

    def refine(self, M: Tensor, tokens: Tokens, kept: Tensor | None) -> Tensor:
        """PackedLevel's."""
        R, S, V = tokens.mask.shape
        M = with_positions(self.cra, M, tokens)                               # (T, C)
        M = read_the_mean(self.cra.L4, M, tokens.sample // S * V + tokens.place % V, R * V)
        M = read_the_mean(self.cra.L6, M, tokens.sample, R * S)
        return M if kept is None else M[kept]


def with_positions(module: nn.Module, M: Tensor, tokens: Tokens) -> Tensor:
    """L1-L3 of 04's CRA, of valid tokens M (T, C)."""
    S = tokens.mask.shape[1]
    L2 = cra.sample_positions(S, M.shape[1], module.places)                   # (S, C)
    return M + L2[tokens.sample % S]


def read_the_mean(module: nn.Module, x: Tensor, group: Tensor, groups: int) -> Tensor:
    """04's MultiHeadAttention where each token of x (T, C) reads the mean value of its group (T,)."""
    many = group.bincount(minlength=groups).clamp(min=1)[:, None]             # (groups, 1)
    mean = x.new_zeros(groups, x.shape[1]).index_add(0, group, module.value(x)) / many
    read = module.out(mean)[group]                                            # (T, C)
    return module.norm(x + (F.relu(read) if module.relu else read))


class TokenMLP(Plain):
    """none + MLP: full CRA with a TokenBlock in the place of each attention. No token reads another one."""

    packed = PackedMLP

    def __init__(self, config, classes: int, **more):
        super().__init__(config, classes, **more)
        self.cra.L4, self.cra.L6 = (TokenBlock(relu=config.cra_relu) for _ in range(2))


class Uniform(Plain):
    """Full CRA that cannot choose: every token reads the mean of the values."""

    packed = PackedUniform

    def __init__(self, config, classes: int, **more):
        super().__init__(config, classes, **more)
        self.cra.L4.attend = self.cra.L6.attend = mean_of_keys


class Average2D(Plain):
    """Labels of the source images, averaged: the encoder's 1x1 head (07's source_head) on the features at the
    reprojected pixels, mean over the valid views. No direction, no view weight, no attention."""

    source_head: tuple = ()      # (07's head,), put here by `build`: shared, so no module of this level

    def semantics(self, context: tuple) -> tuple[Tensor, Tensor]:
        """Level's."""
        M, differences, mask = context[:3]
        L20 = (M - self.reprojection.L21(differences)) * mask[..., None]      # (R, S, V, C) features alone
        mean = L20.sum(2) / mask.sum(2)[..., None].clamp(min=1)               # (R, S, C)
        w = mask / mask.sum(2, keepdim=True).clamp(min=1)                     # (R, S, V)
        head, = self.source_head
        return F.linear(mean, head.weight.flatten(1), head.bias), w           # (R, S, L)


ROWS = {  # name: its title, the setting `cra`, its level
    "none": ("none", "none", Plain),
    "mlp": ("none + MLP", "full", TokenMLP),
    "uniform": ("uniform scores", "full", Uniform),
    "full": ("full CRA", "full", Plain),
    "intra": ("only intra-view", "intra", Plain),
    "cross": ("only cross-view", "cross", Plain),
    "dense": ("dense attention", "dense", Plain),
    "average": ("2D average", "none", Average2D),
}


# ------------------------------------------------------------------------------------------- what is true

class TrueDepth:
    """Depth maps of the cameras of some scenes, found by the camera's pose. For diagnostics alone."""

    def __init__(self):
        self.where: dict[bytes, tuple] = {}
        self.maps: dict[bytes, Tensor] = {}

    def add(self, scenes: list) -> None:
        """Know these scenes' cameras too. DataError where two scenes share a pose."""
        for scene in scenes:
            for i, pose in enumerate(scene.c2w):
                other, _ = self.where.setdefault(pose.numpy().tobytes(), (scene, i))
                if other.folder != scene.folder:
                    raise DataError(f"{scene.folder} and {other.folder} have a camera of the same pose: "
                                    "whose depth is meant cannot be told")

    def of(self, c2w: Tensor) -> Tensor:
        """The depth map (H, W) of a camera of pose c2w (4, 4), 0 where unknown."""
        key = c2w.cpu().numpy().tobytes()
        if key not in self.maps:
            scene, i = self.where[key]
            self.maps[key] = scene.views([i]).depth[0]
        return self.maps[key].to(c2w.device)


def depths_there(points: Tensor, K: Tensor, c2w: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
    """Points (..., 3), V source views with true depth maps (V, H, W) -> each view's z of the point, and its
    true depth at the point's pixel, 0 where unknown or outside the image: (..., V) each."""
    V, H, W = depth.shape
    uv, z = data.project(points, K, c2w)                                      # (..., V, 2), (..., V)
    inside = reprojection.in_view(uv, z, H, W)                                # (..., V)
    u, v = uv.masked_fill(~inside[..., None], 0).round().long().unbind(-1)    # (..., V) each
    there = depth[torch.arange(V, device=depth.device), v.clamp(0, H - 1), u.clamp(0, W - 1)]
    return z, there * inside


def sees(points: Tensor, K: Tensor, c2w: Tensor, depth: Tensor, tolerance: float = SURFACE) -> Tensor:
    """depths_there's points and views -> (..., V) bool: the view's depth at the point's pixel is the point's
    own. False for what is hidden from it, for free space, and where its depth is unknown."""
    z, there = depths_there(points, K, c2w, depth)
    return (z - there).abs() < tolerance * there                              # (..., V)


def at_surface(z: Tensor, surface: Tensor, reach: float = 0.02) -> Tensor:
    """Depths z (R, S) -> S depths evenly within 2% of the true surface (R,); z where that is unknown (0)."""
    S = z.shape[1]
    steps = 2 * (torch.arange(S, device=z.device) + 0.5) / S - 1              # (S,) in (-1, 1)
    return torch.where(surface[:, None] > 0, surface[:, None] * (1 + reach * steps), z)


class AtSurface(training.SRay):
    """S-Ray whose fine samples stand at the true surface, in training and evaluation."""

    truth: TrueDepth
    surface: Tensor              # (R,) of the rays that are on their way

    def forward(self, sources, pixels: Tensor, K: Tensor, c2w: Tensor, *more, **flags) -> dict:
        """SRay's."""
        u, v = pixels.round().long().unbind(-1)
        self.surface = self.truth.of(c2w)[v, u]                               # (R,)
        return super().forward(sources, pixels, K, c2w, *more, **flags)

    def render_level(self, level: nn.Module, origin: Tensor, directions: Tensor, z: Tensor, *more) -> dict:
        """SRay's."""
        z = at_surface(z, self.surface) if level is self.fine else z
        return super().render_level(level, origin, directions, z, *more)


# ---------------------------------------------------------------------------------------------- a whole model

@dataclass(frozen=True)
class Variant:
    """A row of the table: which attention, and which diagnostics."""
    row: str
    join: str = ""
    true_depth: bool = False
    tau: float = training.Config.tau

    @property
    def label(self) -> str:
        """A name for files: "full", "mlp+visibility", "full+true_depth", "full-tau_1"."""
        more = f"+{self.join}" * bool(self.join) + "+true_depth" * self.true_depth
        return self.row + more + f"-tau_{self.tau:g}" * (self.tau != training.Config.tau)

    @property
    def told(self) -> bool:
        """Does it need true depth maps?"""
        return self.true_depth or self.join == "visibility"

    def level(self, truth: TrueDepth | None):
        """What makes one of its levels of 07's config and a number of classes."""
        return partial(ROWS[self.row][2], join=self.join, truth=truth)


def build(variant: Variant, config, classes, truth: TrueDepth | None = None) -> "training.SRay":
    """The model of a variant, at random weights. config.cra and tau are the variant's."""
    config = replace(config, cra=ROWS[variant.row][1], tau=variant.tau)
    kind = AtSurface if variant.true_depth else training.SRay
    model = kind(config, classes, variant.level(truth))
    if variant.true_depth:
        model.truth = truth
    if variant.row == "average":
        for level in (model.coarse, model.fine):
            level.source_head = (model.source_head,)
    return model


def initial(variant: Variant, config, classes, truth: TrueDepth | None, weights: dict) -> "training.SRay":
    """A variant to be trained. Whatever it shares with `none` begins alike in all variants of one seed; some
    weights, by name, begin as given (a trained encoder's)."""
    torch.manual_seed(config.seed)
    shared = training.SRay(replace(config, cra="none"), classes).state_dict()
    model = build(variant, config, classes, truth)
    model.load_state_dict(model.state_dict() | shared | weights)
    return model


def load(variant: Variant, path: Path, truth: TrueDepth | None = None) -> tuple:
    """A checkpoint of a variant -> model, and the whole dictionary. DataError if it is none."""
    plain, state = training.load_checkpoint(path, variant.level(truth))
    if state["run"].get("variant", variant.label) != variant.label:
        raise DataError(f"{path}: a training of {state['run']['variant']}, not of {variant.label}")
    model = build(variant, plain.config, plain.classes, truth)
    model.load_state_dict(state["model"])
    return model, state


# ----------------------------------------------------------------- where attention looks, at the true surface

def rank_agreement(score: Tensor, truth: Tensor) -> float:
    """How often a true one of scores (N,) is above a false one, in percent, ties counted half (the area under
    the ROC curve); 50 is chance. NaN where all are true or none is."""
    _, where, counts = score.unique(return_inverse=True, return_counts=True)
    rank = (counts.cumsum(0) - (counts - 1) / 2)[where].double()              # (N,) from 1, ties share theirs
    positive = truth.sum().item()
    pairs = positive * (len(truth) - positive)
    return 100 * (rank[truth].sum().item() - positive * (positive + 1) / 2) / pairs if pairs else float("nan")


def attention_received(level: nn.Module, context: tuple) -> tuple[Tensor, Tensor]:
    """How much each token is read along its ray, and across the views: (R, S, V) each, mean over heads and
    valid readers, times the number of valid keys: 1 is what uniform attention gives."""
    M, _, mask = context[:3]
    intra, cross = level.cra.maps(M, mask)                # (R, V, A, S, S), (R, S, A, V, V)
    valid = mask.to(M.dtype)                                                  # (R, S, V)
    # along[r,t,v] = sum_s valid[r,s,v] intra[r,v,s,t]    across[r,s,v] = sum_u valid[r,s,u] cross[r,s,u,v]
    along = torch.einsum("rsv,rvst->rtv", valid, intra.mean(2))
    across = torch.einsum("rsu,rsuv->rsv", valid, cross.mean(2))
    return along, across     # as many readers as keys: the mean times their number is the sum


@torch.no_grad()
def looked_at(model, sources, depths: Tensor, view, pixels: Tensor) -> dict[str, Tensor]:
    """Rays of a test view at pixels (R, 2), at the fine level's samples -> for each valid token (T,) what is
    true of it, and scores. depths (V, H, W): the source views' true ones.

    near: the sample is within 5% of the ray's true surface. seen, hidden: the view sees that surface (its own
    depth there agrees within 5%), or something stands before it (by 20%, so that no edge's pixel counts).
    contested: of a ray that some views see and from some is hidden."""
    fine = model(sources, pixels, view.K, view.c2w, fine_only=True)["fine"]
    z, (origin, directions) = fine["z"], data.rays(pixels, view.K, view.c2w)
    context, _, _ = model.fine.context_and_density(origin, directions, z, sources, colour=False)
    mask, shape = context[2], context[2].shape                                # (R, S, V)
    u, v = pixels.long().unbind(-1)
    surface = view.depth[v, u][:, None]                                       # (R, 1)
    points = origin + surface * directions                                    # (R, 3)
    own, there = depths_there(points, sources.K, sources.c2w, depths)         # (R, V)
    seen = (own - there).abs() < SURFACE * there                              # (R, V)
    hidden = (there > 0) & (own > 1.2 * there)                                # (R, V)
    contested = (seen.any(1) & hidden.any(1))[:, None]                        # (R, 1)
    along, across = attention_received(model.fine, context)
    near = (z - surface).abs() < SURFACE * surface                            # (R, S)
    found = {"near": near[:, :, None], "seen": seen[:, None], "hidden": hidden[:, None],
             "contested": contested[:, None], "intra-view attention": along, "cross-view attention": across,
             "view weight (eq. 3)": fine["w"] * mask.sum(-1, keepdim=True),
             "baseline: sample index": -torch.arange(shape[1]).float()[:, None],
             "baseline: rendering weight": fine["weights"][..., None]}
    known = mask & (surface > 0)[..., None]                                   # (R, S, V)
    return {name: x.expand(shape)[known] for name, x in found.items()}


def looking(model, scene, views: int, rays: int = 500) -> dict[str, dict[str, float]]:
    """Does attention look at the surface, and at views that see it? For every score rank_agreement, mean over
    a scene's test views. "surface": of the views that see a ray's surface, samples at it before the others;
    "visible": at the surface of contested rays, views that see it before those from which it is hidden."""
    if model.config.cra != "full":
        raise DataError(f"attention {model.config.cra}: only full CRA has both attention maps")
    evaluation = import_module("08_eval")
    source_views = scene.views(evaluation.source_views(scene, views))
    with torch.no_grad():
        sources = model.eval().encode(source_views)
    H, W = source_views.depth.shape[1:]
    pixels = data.pixel_grid(H, W)[::max(1, H * W // rays)]
    found: dict[str, dict[str, list]] = {}
    for view in (scene.views([i])[0] for i in evaluation.test_views(scene)):
        tokens = looked_at(model, sources, source_views.depth, view, pixels)
        near, seen, hidden, contested = (tokens.pop(name) for name in ("near", "seen", "hidden", "contested"))
        there = near & contested & (seen | hidden)
        for name, score in tokens.items():
            one = found.setdefault(name, {"surface": [], "visible": []})
            one["surface"].append(rank_agreement(score[seen], near[seen]))
            one["visible"].append(rank_agreement(score[there], seen[there]))
    return {name: {of: torch.tensor(values).nanmean().item() for of, values in one.items()}
            for name, one in found.items()}
