"""On a GPU: what a CPU computes. Where there is none, nothing here runs, and tests/test_elsewhere.py stands
in for it."""
import os
import subprocess
import sys
from argparse import Namespace
from copy import deepcopy
from importlib import import_module
from pathlib import Path

import pytest
import torch

import fast

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

data, training = import_module("01_data"), import_module("07_train")
cra = import_module("04_cra")
ROOT = Path(__file__).parents[1]
DEVICE, H, W, V, R = "cuda", 96, 128, 5, 64
PLAIN = Namespace(fast="false", bf16=False, compile=False, workers=1, keep=0, coarse_stride=1)


@pytest.fixture(autouse=True)
def whole_numbers(monkeypatch):
    """Convolutions in float32: of its own PyTorch rounds their factors to 10 bits on a GPU."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def ways(**changes):
    """What 07's and 08's command lines ask of fast/."""
    return Namespace(**{**vars(PLAIN), "fast": "true", **changes})


def pair(**changes):
    """A model on the CPU, the same on the GPU, and a batch for each."""
    config = training.Config(height=H, width=W, views=V, rays=R, coarse=12, fine=12, source_loss=1.0,
                             extra_views=1, **changes)
    torch.manual_seed(0)
    model = training.SRay(config)
    views = data.example_views(H, W, V + 1)
    flat = torch.randint(H * W, (R,))
    target = views[-1]
    batch = training.Batch(views[:V], target.K, target.c2w, data.pixel_grid(H, W)[flat],
                           target.images.flatten(1)[:, flat].T, target.labels.flatten()[flat],
                           views.images[V:], views.labels[V:])
    return model, deepcopy(model).to(DEVICE), batch, training.Batch(*(x.to(DEVICE) for x in batch))


@pytest.mark.parametrize("mode", cra.MODES)
@pytest.mark.parametrize("how", [PLAIN, ways()], ids=["plain", "fast"])
def test_a_step_has_the_gradients_of_the_cpu(mode, how):
    model, there, batch, batch_there = pair(cra=mode)
    there, step = fast.faster(there, training.training_step, how)
    parts = training.training_step(model, [batch], 0)
    parts_there = step(there, [batch_there], 0, 24)
    assert parts_there == pytest.approx(parts, rel=1e-3)
    largest = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
    for ours, theirs in zip(there.parameters(), model.parameters()):
        assert (ours.grad is None) == (theirs.grad is None)
        if theirs.grad is not None:
            assert float((ours.grad.cpu() - theirs.grad).abs().max()) <= 5e-3 * largest


@pytest.mark.parametrize("how", [PLAIN, ways(), ways(keep=4, coarse_stride=2)],
                         ids=["plain", "fast", "with what weighs most alone"])
def test_an_image_is_that_of_the_cpu(how):
    model, there, batch, batch_there = pair()
    model.eval(), there.eval()
    with torch.no_grad():
        sources, sources_there = model.encode(batch.sources), there.encode(batch_there.sources)
    camera, camera_there = (batch.K, batch.c2w, H, W), (batch_there.K, batch_there.c2w, H, W)
    image = fast.renderer(model, how).render_image(sources, *camera)
    image_there = fast.renderer(there, how).render_image(sources_there, *camera_there)
    for key in ("colour", "depth", "logits"):
        off = (image_there[key].cpu() - image[key]).abs() > 0.01 * image[key].abs().max()
        # a sample on an image's edge, or a bin's, may fall to either side
        assert image_there[key].is_cuda and off.float().mean() < 0.002, key


@pytest.mark.parametrize("how", [ways(bf16=True), ways(compile=True), ways(bf16=True, compile=True)],
                         ids=["bfloat16", "compiled", "both"])
def test_bfloat16_and_compiled_steps_are_the_eager_float32_step_to_their_digits(how):
    _, there, _, batch = pair()
    other, step = fast.faster(deepcopy(there), training.training_step, how)
    parts, parts_other = training.training_step(there, [batch], 0), step(other, [batch], 0)
    assert parts_other == pytest.approx(parts, rel=0.02 if how.bf16 else 1e-3)
    ours, theirs = (torch.cat([p.grad.flatten() for p in m.parameters() if p.grad is not None])
                    for m in (other, there))
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > (0.98 if how.bf16 else 0.9999)


def test_training_resuming_and_evaluating_run_on_it(tmp_path):
    def run(script, *words):
        done = subprocess.run([sys.executable, str(ROOT / script), *words], cwd=tmp_path, env=os.environ,
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout
    sizes = ["--scene", "rooms", "--data", "rooms", "--preset", "smoke", "--no-eval", "--device", DEVICE]
    run("07_train.py", *sizes, "--out", "run", "--steps", "4")
    run("07_train.py", *sizes, "--out", "bf16", "--steps", "4", "--bf16", "true")
    run("07_train.py", "--resume", "--out", "run", "--device", DEVICE, "--no-eval")
    for words in ([], ["--keep", "2", "--coarse-stride", "2"], ["--fast", "false"]):
        run("08_eval.py", "--checkpoint", "run/checkpoint.pt", "--device", DEVICE, "--out", "eval", *words)
    assert (tmp_path / "eval" / "metrics.json").exists()
