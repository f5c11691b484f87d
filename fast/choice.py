"""Which level computes: the lesson's or a faster one, after comparing the two."""
import copy
import sys
from importlib import import_module

import torch
from torch import nn

from support.files import DataError

DIFFERENT = "02-06 and fast/ differ: running the plain path"


def packed(level: nn.Module) -> nn.Module:
    """A PackedLevel of a level's own modules."""
    from fast.packed import PackedLevel
    with torch.random.fork_rng(devices=[]):  # its first weights are thrown away
        twin = PackedLevel(level.config, level.head.out_features)
    for name, module in level.named_children():
        setattr(twin, name, module)
    for module in twin.modules():
        if isinstance(module, nn.ELU):
            module.inplace = True                                             # nobody else reads its input
    return twin.train(level.training)


def fused(level: nn.Module) -> nn.Module:
    """The level itself, its attention by the fused kernel."""
    from fast.gpu import fuse
    return fuse(level)


def random_rays(config, generator: torch.Generator) -> tuple:
    """16 rays and 5 source views in float64: origin, directions, z, sources (07's Sources without near_far).
    One view looks away, one ray leaves all images, the nearest samples lie beside some."""
    V, C, H, W = 5, 32, 48, 64
    def rand(*shape) -> torch.Tensor:
        """Uniform numbers, float64."""
        return torch.rand(*shape, generator=generator, dtype=torch.float64)
    c2w = torch.eye(4, dtype=torch.float64).repeat(V, 1, 1)
    c2w[:, :3, 3] = rand(V, 3) - 0.5
    c2w[-1, 0, 0] = c2w[-1, 2, 2] = -1  # turned round: it sees none of the rays
    K = torch.tensor([[50.0, 0, 31], [0, 50, 23], [0, 0, 1]], dtype=torch.float64).repeat(V, 1, 1)
    directions = torch.cat([1.4 * rand(16, 2) - 0.7, torch.ones(16, 1, dtype=torch.float64)], dim=1)
    directions[0] = torch.tensor([9.0, 9.0, 1.0])                             # seen by nobody
    z = (0.2 + 5 * rand(16, 24)).sort(dim=1).values
    return rand(3) - 0.5, directions, z, rand(V, C, H // 4, W // 4) - 0.5, rand(V, 3, H, W), K, c2w


def outputs_and_gradients(level: nn.Module, origin, directions, z, features, images, K, c2w, near_far):
    """A level's four outputs, and the gradient of a random sum of them."""
    sources = import_module("07_train").Sources(features.clone().requires_grad_(), images, K, c2w, near_far)
    level = level.double()
    context, sigma, colour = level.context_and_density(origin, directions, z, sources)
    outputs = [sigma, colour, *level.semantics(context)]
    generator = torch.Generator().manual_seed(1)
    loss = sum((x * torch.rand(x.shape, generator=generator, dtype=x.dtype)).sum() for x in outputs)
    inputs = [sources.features, *level.parameters()]
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
    return outputs + [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, gradients)]


def agree(level: nn.Module, make) -> bool:
    """Whether make's form of the level has its outputs and gradients, to 1e-4 of the largest."""
    level = copy.deepcopy(level).cpu()
    rays = random_rays(level.config, torch.Generator().manual_seed(0))
    own = torch.tensor([[0.3, 6.0]] * 5, dtype=torch.float64)
    for near_far in (None, own):
        pairs = zip(outputs_and_gradients(copy.deepcopy(level), *rays, near_far),
                    outputs_and_gradients(make(copy.deepcopy(level)), *rays, near_far))
        if not all((a - b).abs().max() <= 1e-4 * a.abs().max() + 1e-9 for a, b in pairs):
            return False
    return True


def pick(model: nn.Module, how: str, bf16: bool, compile: bool):
    """The form of level to take, None for the lesson's own. DataError where "true" cannot be had."""
    cpu = next(model.parameters()).device.type == "cpu"
    make = packed if cpu and not (bf16 or compile) else fused
    if how == "false":
        return None
    if agree(model.coarse, make) and agree(model.fine, make):
        return make
    return differ(how)


def differ(how: str) -> None:
    """Say that the fast form is not the lesson's; DataError if it was demanded."""
    if how == "true":
        raise DataError(f"--fast true: {DIFFERENT.split(':')[0]}")
    print(DIFFERENT, flush=True)


def same_step(model: nn.Module, step, fast_step) -> bool:
    """Whether the two steps set the same gradients and return the same parts: two batches of 16 rays in
    float64."""
    lesson = sys.modules[step.__module__]
    model = copy.deepcopy(model).cpu().double()
    origin, directions, _, _, images, K, c2w = random_rays(model.config, torch.Generator().manual_seed(2))
    labels = torch.zeros(len(K), *images.shape[-2:], dtype=torch.long)
    views = lesson.data.Views(images, K, c2w, labels, labels)
    pixels = directions[:, :2] @ K[0, :2, :2].T + K[0, :2, 2]
    batch = lesson.Batch(views, K[0], c2w[0], pixels, images[0, :, 0, :16].T, labels[0, 0, :16],
                         images[:1], labels[:1])
    parts, gradients = [], []
    for take in (step, fast_step):
        parts.append(take(model, [batch, batch], 0, 5))
        gradients.append([p.grad for p in model.parameters()])
    largest = max(float(g.abs().max()) for g in gradients[0] if g is not None)
    near = all(abs(parts[1][key] - value) <= 1e-4 * (1 + abs(value)) for key, value in parts[0].items())
    same = [a is b is None or a is not None and b is not None and float((a - b).abs().max()) <= 1e-4 * largest
            for a, b in zip(*gradients)]
    return near and all(same)


def faster(model: nn.Module, step, args) -> tuple:
    """See fast.faster."""
    from fast.step import StepOnCores
    lesson = sys.modules[step.__module__]
    make = pick(model, args.fast, args.bf16, args.compile)
    if make and not same_step(model, step, StepOnCores(lesson, 1)):
        make = differ(args.fast)
    if make:
        model.coarse, model.fine = make(model.coarse), make(model.fine)
        step = StepOnCores(lesson, args.workers)
    if args.bf16 or args.compile:
        from fast.gpu import on_gpu
        on_gpu(model, args.bf16, args.compile)
    return model, step


def renderer(model: nn.Module, args) -> nn.Module:
    """See fast.renderer."""
    from fast.render import FastSRay
    make = pick(model, args.fast, getattr(args, "bf16", False), getattr(args, "compile", False))
    if make:
        model.coarse, model.fine = make(model.coarse), make(model.fine)
    model.__class__ = FastSRay
    model.keep, model.coarse_stride, model.workers = args.keep, args.coarse_stride, args.workers
    return model
