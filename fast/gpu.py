"""What a GPU gains from: the fused attention kernel, bfloat16, torch.compile. Nothing of the lessons changes
but how their modules are run.

04's fused_attention never stores the scores: on one NVIDIA H100 dense attention (Table 9's last row) at 1024
rays, 64 samples and 8 views does not fit without it. `python -m tools.benchmark --device cuda` times a step
eager, in bfloat16 (1.0 to 1.2 times as fast) and compiled (docs/speed.md).
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


def run_in_bfloat16(module: nn.Module) -> None:
    """The module's layers compute in bfloat16, its output is float32."""
    forward = module.forward

    def cast(*inputs):
        with torch.autocast(inputs[0].device.type, torch.bfloat16):
            return forward(*inputs).float()
    module.forward = cast


def use_bfloat16(model: nn.Module) -> None:
    """The encoder, CRA and the heads' MLPs in bfloat16. Between them are cameras, lookups and sums over the
    views, after them rendering and losses: these need float32."""
    run_in_bfloat16(model.encoder)
    for level in (model.coarse, model.fine):
        for module in (*level.geometry.children(), level.cra, *level.weights.children(), level.head):
            run_in_bfloat16(module)


def use_compiler(model: nn.Module) -> None:
    """torch.compile the levels' modules: a minute or more at the first step; on a CPU it needs a C++
    compiler."""
    for level in (model.coarse, model.fine):
        for module in (level.reprojection, level.geometry, level.cra, level.weights):
            module.compile()
