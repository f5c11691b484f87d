"""How a GPU runs the lessons' modules: the fused attention kernel, bfloat16, torch.compile.

04's fused_attention never stores the scores. Dense attention at 1024 rays, 64 samples and 8 views has 4 GiB
of them. `python -m tools.benchmark --device cuda` times a step eager, in bfloat16 and compiled. No GPU has
run this file in its present form.
"""
from importlib import import_module

import torch
from torch import nn

cra = import_module("04_cra")      # MultiHeadAttention, fused_attention


def fused(level: nn.Module) -> nn.Module:
    """The level itself, all its attention by PyTorch's fused kernel."""
    for module in level.modules():
        if isinstance(module, cra.MultiHeadAttention):
            module.attend = cra.fused_attention
    return level


def in_bfloat16(module: nn.Module) -> None:
    """The module's layers compute in bfloat16, its output is float32."""
    forward = module.forward

    def cast(*inputs):
        with torch.autocast(inputs[0].device.type, torch.bfloat16):
            return forward(*inputs).float()
    module.forward = cast


def run_in(model: nn.Module, bf16: bool, compiled: bool) -> None:
    """bf16: the encoder, CRA and the heads' MLPs in bfloat16. Between them are cameras, lookups and sums over
    the views, after them rendering and losses: these need float32. compiled: torch.compile the levels'
    modules, a minute or more at the first step."""
    if bf16:
        in_bfloat16(model.encoder)
    for level in (model.coarse, model.fine):
        for module in (level.reprojection, level.geometry, level.cra, level.weights) if compiled else ():
            module.compile()
        for module in (*level.geometry.children(), level.cra, *level.weights.children(), level.head):
            if bf16:
                in_bfloat16(module)
