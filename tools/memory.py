"""How much memory a GPU needs at the paper's sizes, without one.

    python -m tools.memory                 a step and an image, 320x240 and 640x480, float32 and bfloat16
    python -m tools.memory --cra dense     with another attention

Everything runs on a device without numbers (tools/elsewhere.py), which counts the bytes of live tensors: weights,
gradients, Adam's moments, source views, and what forward keeps for backward. Not counted, so RESERVE is left free:
CUDA itself, its libraries' workspaces, gaps between tensors, a desktop. No GPU has confirmed these figures.

Test: pytest tests/test_elsewhere.py
"""
import argparse
from dataclasses import replace
from importlib import import_module

import torch
from torch import nn
from tqdm import tqdm

import fast
from support.evaluating import check_least
from support.files import run_script
from tools.elsewhere import DEVICE, Elsewhere
from tools.workloads import options

data = import_module("01_data")                # Views, rays
cra = import_module("04_cra")                  # MODES
training = import_module("07_train")           # SRay, Config, training_step

CARDS = 8, 12, 16, 24                          # GiB
RESERVE = 1.5                                  # GiB of a card that are not ours
SIZES = (240, 320), (480, 640)
LARGEST = 2 ** 16                              # rays of an image that are tried together, at most


def job(config, bf16: bool):
    """A model as 07 trains it on a GPU, its step, and a batch: all elsewhere."""
    V, H, W, R = config.views, config.height, config.width, config.rays
    model = training.SRay(config)
    model, take_step = fast.faster(model.to(DEVICE), training.training_step,
                                   options(argparse.Namespace(device="cuda"), "true", bf16=bf16))
    views = data.Views(torch.zeros(V, 3, H, W), torch.eye(3).repeat(V, 1, 1), torch.eye(4).repeat(V, 1, 1),
                       torch.zeros(V, H, W, dtype=torch.long), torch.zeros(V, H, W)).to(DEVICE)
    rays = torch.zeros(R, 2), torch.zeros(R, 3), torch.zeros(R, dtype=torch.long)
    batch = training.Batch(views, views.K[0], views.c2w[0], *(x.to(DEVICE) for x in rays), views.images[:0],
                           views.labels[:0])
    return model, take_step, batch
