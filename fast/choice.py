"""Which way computes: fast/, where it has the lessons' values and gradients, else the lessons themselves.

An edit to a lesson must take effect. So before anything runs, 16 rays go both ways by the model's own
weights, in float64 on the CPU, where rounding is no difference. That takes less than a second.

Test: pytest tests/test_fast_choice.py
"""
import copy
import sys
from importlib import import_module

import torch
from torch import Tensor, nn

from support.files import DataError, reason

data = import_module("01_data")      # Views, rays


# ------------------------------------------------------------------------------------------- the faster forms

def adopt(twin: nn.Module, module: nn.Module) -> nn.Module:
    """twin with the module's own children, and so its parameters."""
    for name, child in module.named_children():
        setattr(twin, name, child)
    return twin.train(module.training)


def packed(level: nn.Module) -> nn.Module:
    """A PackedLevel of a level's own modules; a level that is not 07's own may name another in `packed`."""
    from fast.packed import PackedLevel, elu
    with torch.random.fork_rng(devices=[]):                                   # its weights are thrown away
        kind = getattr(level, "packed", PackedLevel)
        twin = adopt(kind(level.config, level.head.out_features), level)
    for module in twin.modules():
        if isinstance(module, nn.ELU):
            module.forward = elu
    return twin


def fused(level: nn.Module) -> nn.Module:
    """The level itself, its attention by the fused kernel."""
    from fast import gpu
    return gpu.fused(level)


def imaging(model: nn.Module) -> nn.Module:
    """A FastSRay of a model's own modules."""
    from fast.render import FastSRay
    with torch.random.fork_rng(devices=[]):
        return adopt(FastSRay(model.config, model.classes), model)


# ------------------------------------------------------------------------------------------- the comparison

def example(own: bool) -> tuple:
    """Random, in float64: 5 source Views of 64x48 and their features, and of a target pixels (16, 2), K, c2w.

    One view looks away and one ray leaves all images; own: the scene has a range of its own and masks.
    """
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)
    V, H, W = 5, 48, 64
    K = torch.tensor([[50.0, 0, 31], [0, 50, 23], [0, 0, 1]], dtype=torch.float64).repeat(V + 1, 1, 1)
    c2w = torch.eye(4, dtype=torch.float64).repeat(V + 1, 1, 1)
    c2w[:, :3, 3] = uniform(V + 1, 3) - 0.5
    c2w[1, 0, 0] = c2w[1, 2, 2] = -1                                          # turned round
    pixels = uniform(16, 2) * torch.tensor([W, H]) - 0.5
    pixels[0] = 999
    own_range = torch.tensor([[0.2, 5.0]], dtype=torch.float64).repeat(V, 1)
    labels = torch.zeros(V, H, W, dtype=torch.long)
    views = data.Views(uniform(V, 3, H, W), K[1:], c2w[1:], labels, uniform(V, H, W),
                       own_range if own else None, uniform(V, H, W) < 0.8 if own else None)
    return views, uniform(V, 32, H // 4, W // 4) - 0.5, pixels, K[0], c2w[0]


def near(plain: list, fast: list, scale: float = 0) -> bool:
    """Whether tensors are equal to 1e-4 of their largest number, or of scale; None only where None is."""
    def same(a: Tensor | None, b: Tensor | None) -> bool:
        if a is None or b is None:
            return a is b
        return a.shape == b.shape and bool((a - b).abs().max() <= 1e-4 * (scale or a.abs().max()) + 1e-9)
    return len(plain) == len(fast) and all(map(same, plain, fast))


def outputs_and_gradients(level: nn.Module, sources, pixels: Tensor, K: Tensor, c2w: Tensor) -> list[Tensor]:
    """A level's density, colour, logits and view weights, and the gradients of a random sum of them."""
    generator = torch.Generator().manual_seed(1)
    z = (0.1 + 5 * torch.rand(16, 20, generator=generator, dtype=torch.float64)).sort(dim=1).values
    sources = sources._replace(features=sources.features.clone().requires_grad_())
    context, *outputs = level.context_and_density(*data.rays(pixels, K, c2w), z, sources)
    outputs = [*outputs, *level.semantics(context)]
    loss = sum((x * torch.rand(x.shape, generator=generator, dtype=x.dtype)).sum() for x in outputs)
    inputs = [sources.features, *level.parameters()]
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
    return outputs + [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, gradients)]


def same_level(model: nn.Module, make) -> bool:
    """Whether make's form of both levels has their outputs and gradients."""
    for level, own in ((model.coarse, False), (model.fine, True)):
        views, features, *target = example(own)
        sources = model.encode(views, features)
        values = outputs_and_gradients(level, sources, *target)
        twin = make(copy.deepcopy(level))
        if not near(values, outputs_and_gradients(twin, sources, *target)):
            return False
    return True


def same_step(model: nn.Module, step, fast_step) -> bool:
    """Whether the two steps set the same gradients and return the same parts of the loss."""
    lesson, own = sys.modules[step.__module__], model.config.typical > 0
    views, _, pixels, K, c2w = example(own)
    batch = lesson.Batch(views, K, c2w, pixels, views.images[0, :, 0, :16].T, views.labels[0, 0, :16],
                         views.images[:1], views.labels[:1])
    parts, gradients = [], []
    for take in (step, fast_step):
        parts.append([torch.tensor(x) for x in take(model, [batch, batch], 0, 5).values()])
        gradients.append([p.grad for p in model.parameters()])
    largest = max(float(g.abs().max()) for g in gradients[0] if g is not None)
    return near(*parts) and near(*gradients, largest)


def same_image(model: nn.Module) -> bool:
    """Whether the pixels of FastSRay, with nothing left out, are those of the model's forward."""
    views, features, *target = example(True)
    sources, quick = model.encode(views, features), imaging(model)
    with torch.no_grad():
        plain = model(sources, *target, fine_only=True)["fine"]
        fast = quick.fine_values(sources, *target, quick.coarse_weights(sources, *target))
    return near(*([values[key] for key in ("colour", "logits", "depth")] for values in (plain, fast)))


@torch.enable_grad()
def agree(model: nn.Module, how: str, *comparisons) -> bool:
    """Whether all comparisons of a copy of the model come out equal; else say so. DataError if how is
    "true"."""
    plain = copy.deepcopy(model).cpu().double().requires_grad_()
    try:
        if all(compare(plain) for compare in comparisons):
            return True
    except Exception as error:                                                # moved what fast/ relies on
        if how == "true":
            raise DataError(f"--fast true: 02-06 and fast/ differ ({reason(error)})") from None
    if how == "true":
        raise DataError("--fast true: 02-06 and fast/ differ; leave the flag out for the plain path")
    print("02-06 and fast/ differ: running the plain path", flush=True)
    return False


# ------------------------------------------------------------------------------------------- for 07 and 08

def form_for(model: nn.Module, args):
    """The form of level: packed on a CPU, fused on other devices, in bfloat16 and compiled."""
    other = getattr(args, "bf16", False) or getattr(args, "compile", False)
    return fused if other or next(model.parameters()).device.type != "cpu" else packed


def faster(model: nn.Module, step, args) -> tuple:
    """See fast.faster."""
    from fast.step import StepOnCores
    lesson, make = sys.modules[step.__module__], form_for(model, args)
    if args.fast != "false" and agree(model, args.fast, lambda m: same_level(m, make),
                                      lambda m: same_step(m, step, StepOnCores(lesson, 1))):
        model.coarse, model.fine = make(model.coarse), make(model.fine)
        step = StepOnCores(lesson, args.workers)
    if args.bf16 or args.compile:
        from fast import gpu
        gpu.run_in(model, args.bf16, args.compile)
    return model, step


def renderer(model: nn.Module, args) -> nn.Module:
    """See fast.renderer."""
    make = form_for(model, args)
    if args.fast != "false":
        if not agree(model, args.fast, lambda m: same_level(m, make), same_image):
            if args.keep or args.coarse_stride > 1:
                print("it has no --keep and --coarse-stride: nothing is left out", flush=True)
            return model
        model.coarse, model.fine = make(model.coarse), make(model.fine)
    quick = imaging(model)
    quick.keep, quick.coarse_stride, quick.workers = args.keep, args.coarse_stride, args.workers
    if args.fast != "false" and make is fused:
        quick.together = 2 ** 18                                              # a GPU has room
    return quick
