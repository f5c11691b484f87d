"""Which way computes: fast/, if it has the lessons' values and gradients, else the lessons themselves.

An edit to a lesson must take effect. So before anything runs, 16 rays go both ways, by the model's own
weights, in float64 on the CPU, where rounding is no difference: half a second.
"""
import copy
from importlib import import_module

import torch
from torch import Tensor, nn

from support.files import DataError

data = import_module("01_data")      # Views, rays


def adopt(twin: nn.Module, module: nn.Module) -> nn.Module:
    """twin with the module's children, and so its parameters."""
    for name, child in module.named_children():
        setattr(twin, name, child)
    return twin.train(module.training)


def packed(level: nn.Module) -> nn.Module:
    """A PackedLevel of a level's own modules."""
    from fast.packed import PackedLevel
    with torch.random.fork_rng(devices=[]):  # its first weights are thrown away
        return adopt(PackedLevel(level.config, level.head.out_features), level)


def fused(level: nn.Module) -> nn.Module:
    """The level itself, attention by the fused kernel."""
    from fast import gpu
    return gpu.fused(level)


def imaging(model: nn.Module) -> nn.Module:
    """A FastSRay of a model's own modules."""
    from fast.render import FastSRay
    with torch.random.fork_rng(devices=[]):
        return adopt(FastSRay(model.config, model.classes), model)


def example(model: nn.Module, own_range: bool) -> tuple:
    """Random sources (5 views of 64x48) and a target, float64: Sources, pixels (16, 2), K, c2w. One view
    looks away; one ray leaves all images; most are masked somewhere. own_range: the scene has a
    near_far.txt."""
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)
    V, H, W = 5, 48, 64
    K = torch.tensor([[50.0, 0, 31], [0, 50, 23], [0, 0, 1]], dtype=torch.float64).repeat(V + 1, 1, 1)
    c2w = torch.eye(4, dtype=torch.float64).repeat(V + 1, 1, 1)
    c2w[:, :3, 3] = uniform(V + 1, 3) - 0.5
    c2w[1, 0, 0] = c2w[1, 2, 2] = -1                                          # turned round
    pixels = uniform(16, 2) * torch.tensor([W, H]) - 0.5
    pixels[0] = 999                                                           # far outside
    near_far = torch.tensor([[0.2, 5.0]], dtype=torch.float64).repeat(V, 1) if own_range else None
    views = data.Views(uniform(V, 3, H, W), K[1:], c2w[1:], None, None, near_far)
    return model.encode(views, uniform(V, 32, H // 4, W // 4) - 0.5), pixels, K[0], c2w[0]


def outputs_and_gradients(level: nn.Module, sources, pixels: Tensor, K: Tensor, c2w: Tensor) -> list[Tensor]:
    """A level's density, colour, logits and view weights, and the gradients of a random sum of them."""
    generator = torch.Generator().manual_seed(1)
    features = sources.features.clone().requires_grad_()
    z = (0.1 + 5 * torch.rand(16, 24, generator=generator, dtype=torch.float64)).sort(dim=1).values
    sources = sources._replace(features=features)
    context, *outputs = level.context_and_density(*data.rays(pixels, K, c2w), z, sources)
    outputs = [*outputs, *level.semantics(context)]
    loss = sum((x * torch.rand(x.shape, generator=generator, dtype=x.dtype)).sum() for x in outputs)
    inputs = [features, *level.parameters()]
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
    return outputs + [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, gradients)]


def close(plain: list[Tensor], fast: list[Tensor]) -> bool:
    """To 1e-4 of each one's largest number."""
    return all(a.shape == b.shape and bool((a - b).abs().max() <= 1e-4 * a.abs().max() + 1e-9)
               for a, b in zip(plain, fast, strict=True))


def levels_agree(model: nn.Module, make) -> bool:
    """Whether make's form of both levels has their outputs and gradients."""
    for level, own_range in ((model.coarse, False), (model.fine, True)):
        plain, rays = copy.deepcopy(level).cpu().double(), example(model, own_range)
        wanted = outputs_and_gradients(plain, *rays)
        try:
            if not close(wanted, outputs_and_gradients(make(copy.deepcopy(plain)), *rays)):
                return False
        except Exception:  # an edit has moved what fast/ relies on
            return False
    return True


def images_agree(model: nn.Module) -> bool:
    """Whether the pixels of FastSRay, with nothing left out, are those of the model's forward."""
    plain, rays = copy.deepcopy(model).cpu().double(), example(model, True)
    keys = "colour", "logits", "depth"
    with torch.no_grad():
        wanted = plain(*rays, fine_only=True)["fine"]
        try:
            quick = imaging(plain)
            got = quick.fine_values(*rays, quick.coarse_weights(*rays))
            return close([wanted[key] for key in keys], [got[key] for key in keys])
        except Exception:
            return False


def differs(what: str, how: str) -> None:
    """Say that the plain path runs; where that was ruled out, DataError."""
    if how == "true":
        raise DataError(f"--fast true: {what} differ; leave the flag out to run the plain path")
    print(f"{what} differ: running the plain path", flush=True)


def faster(model: nn.Module, args) -> nn.Module:
    """fast.faster"""
    bf16, compiled = getattr(args, "bf16", False), getattr(args, "compile", False)
    make = packed if next(model.parameters()).device.type == "cpu" and not (bf16 or compiled) else fused
    if args.fast != "false":
        if levels_agree(model, make):
            model.coarse, model.fine = make(model.coarse), make(model.fine)
        else:
            differs("02-06 and fast/", args.fast)
    if bf16 or compiled:
        from fast import gpu
        if bf16:
            gpu.use_bfloat16(model)
        if compiled:
            gpu.use_compiler(model)
    return model


def renderer(model: nn.Module, args) -> nn.Module:
    """fast.renderer"""
    if args.fast != "false" and not images_agree(model):
        differs("07 and fast/render.py", args.fast)
        return model
    quick = imaging(faster(model, args))
    quick.keep, quick.coarse_stride, quick.workers = args.keep, args.coarse_stride, args.workers
    if next(quick.parameters()).device.type == "cuda" and args.fast != "false":
        quick.together = 2 ** 18
    return quick
