"""What speeds S-Ray up on a GPU: the fused attention kernel, bfloat16, torch.compile."""
from importlib import import_module

import torch
from torch import nn

cra = import_module("04_cra")


def fuse(module: nn.Module) -> nn.Module:
    """Every MultiHeadAttention in the module by PyTorch's fused kernel, which never stores the scores."""
    for part in module.modules():
        if isinstance(part, cra.MultiHeadAttention):
            part.attend = cra.fused_attention
    return module


def in_bfloat16(module: nn.Module) -> None:
    """The module's layers in bfloat16, its output in float32."""
    forward = module.forward

    def cast(*inputs):
        with torch.autocast(inputs[0].device.type, torch.bfloat16):
            return forward(*inputs).float()
    module.forward = cast


def networks(level: nn.Module) -> list[nn.Module]:
    """A level's attentions and MLPs. Between them are cameras and sums over views, which need float32."""
    g = level.geometry
    return [g.L1, g.L2, g.L8, g.L9, g.L10, g.L11, g.blend, level.cra, level.weights.L2, level.head]


def on_gpu(model: nn.Module, bf16: bool = False, compile: bool = False) -> nn.Module:
    """The model itself, its two levels and its encoder set to compute so."""
    for level in (model.coarse, model.fine):
        fuse(level)
        for part in networks(level) if bf16 else []:
            in_bfloat16(part)
        for part in (level.reprojection, level.geometry, level.cra, level.weights) if compile else []:
            part.compile()                                                    # a minute or more at the start
    if bf16:
        in_bfloat16(model.encoder)
    return model
