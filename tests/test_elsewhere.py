"""Our code on a device without numbers (tools/elsewhere.py): there every forgotten device=, every silent
.cpu() and all else that a GPU could not do, or that the CPU would wait for, raises."""
import gc
import inspect
import sys
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from torch import nn

from fast import choice, gpu
from fast.step import StepOnCores
from support import machine, starting
from support.files import DataError
from tools import memory
from tools.elsewhere import DEVICE, Elsewhere, Stray

data = import_module("01_data")
reprojection = import_module("03_reprojection")
cra = import_module("04_cra")
geometry = import_module("06_geometry_render")
training = import_module("07_train")
evaluation = import_module("08_eval")

V, H, W, R = 3, 32, 48, 5
STEPS = training.training_step, StepOnCores(training)                         # plain, fast
CONFIG = training.Config(height=H, width=W, views=V, rays=R, coarse=6, fine=4, source_loss=1.0, extra_views=1)


def make_model(fast=False, bf16=False, **changes):
    """A model elsewhere; fast: its attention fused, as on a GPU."""
    model = training.SRay(replace(CONFIG, **changes)).to(DEVICE)
    if fast:
        model.coarse, model.fine = choice.fused(model.coarse), choice.fused(model.fine)
    gpu.run_in(model, bf16, False)
    return model


def views_elsewhere(count, own=False):
    """Views elsewhere; own: with a range and masks of their own."""
    views = data.Views(torch.rand(count, 3, H, W), torch.eye(3).repeat(count, 1, 1),
                       torch.eye(4).repeat(count, 1, 1), torch.zeros(count, H, W, dtype=torch.long),
                       torch.rand(count, H, W), torch.rand(count, 2) if own else None,
                       torch.rand(count, H, W) < 0.5 if own else None)
    return views.to(DEVICE)


def make_batch(own=False):
    views, extra = views_elsewhere(V, own), views_elsewhere(2)
    rays = (torch.rand(R, 2), torch.rand(R, 3), torch.zeros(R, dtype=torch.long))
    return training.Batch(views, views.K[0], views.c2w[0], *(x.to(DEVICE) for x in rays), extra.images,
                          extra.labels)


@pytest.mark.slow
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("mode", cra.MODES)
def test_a_step_stays_elsewhere(mode, fast):
    model, batch = make_model(fast, cra=mode), make_batch()
    with Elsewhere():
        parts = STEPS[fast](model, [batch], 0, 3)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 10)
        torch.optim.Adam(model.parameters(), lr=1e-3, fused=True).step()
    assert list(parts) == list(training.PARTS) and norm.device == DEVICE
    assert all(p.grad.device == DEVICE for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("changes", [dict(places=9), dict(density="relu")])
def test_scenes_with_a_range_and_masks_of_their_own_stay_elsewhere(changes, fast):
    model, batch = make_model(fast, **changes), make_batch(own=True)
    with Elsewhere():
        parts = STEPS[fast](model, [batch], 0, 0)
    assert list(parts) == list(training.PARTS)
    assert all(p.grad.device == DEVICE for p in model.parameters())


@pytest.mark.parametrize("fast", [False, True])
def test_bfloat16_stays_elsewhere_and_its_layers_are_in_it(fast):
    model, batch, dtypes = make_model(fast, bf16=True), make_batch(), []
    model.fine.cra.L4.out.register_forward_hook(lambda module, x, y: dtypes.append(y.dtype))
    with Elsewhere():
        STEPS[fast](model, [batch], 0, 0)
    assert dtypes == [torch.bfloat16] and all(p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("mode", cra.MODES)
@pytest.mark.parametrize("own", [False, True])
def test_images_stay_elsewhere(mode, own):
    """By the lesson, and with --keep and --coarse-stride."""
    model, views = make_model(cra=mode).eval(), views_elsewhere(V, own)
    quick = choice.imaging(make_model(fast=True, cra=mode)).eval()
    quick.keep, quick.coarse_stride = 2, 3
    for renderer in (model, quick):
        with Elsewhere(), torch.no_grad():
            image = renderer.render_image(renderer.encode(views), views.K[0], views.c2w[0], H, W, 700, 2)
        assert {key: tuple(x.shape) for key, x in image.items()} == {
            "colour": (H // 2, W // 2, 3), "logits": (H // 2, W // 2, 20), "depth": (H // 2, W // 2)}
        assert all(x.device == DEVICE for x in image.values())


@pytest.fixture
def no_choice(monkeypatch):
    """--device means the one elsewhere."""
    for module in (machine, starting):
        monkeypatch.setattr(module, "pick_device", lambda name: DEVICE)


@pytest.mark.slow
def test_training_resuming_and_evaluation_run_elsewhere_from_their_command_lines(root, tmp_path, monkeypatch,
                                                                                no_choice, capsys):
    run = tmp_path / "run"

    def call(script, *flags):
        monkeypatch.setattr(sys, "argv", [script, "--cache", str(tmp_path), *map(str, flags)])
        with Elsewhere():
            import_module(script).main()
    size = ["--height", 32, "--width", 48, "--coarse", 6, "--fine", 4, "--views", 3, "--rays", 5]
    call("07_train", "--scene", root, "--preset", "smoke", *size, "--out", run, "--steps", 3, "--no-eval",
         "--bf16", "true", "--save-every", 2, "--fast", "true")
    call("07_train", "--resume", "--out", run, "--steps", 5, "--no-eval")
    printed = capsys.readouterr().out
    assert "trained 3 steps" in printed and "trained 2 steps" in printed and "differ" not in printed
    call("08_eval", "--checkpoint", run / "checkpoint.pt", "--keep", 2, "--coarse-stride", 2, "--preview", 4)
    call("08_eval", "--checkpoint", run / "checkpoint.pt", "--fast", "false", "--preview", 8,
         "--out", tmp_path / "plain")
    call("08_eval", "--checkpoint", run / "checkpoint.pt", "--video", tmp_path / "film.gif", "--frames", 2)
    assert (tmp_path / "film.gif").exists()
    assert (run / "eval/metrics.json").exists() and "differ" not in capsys.readouterr().out


# --------------------------------------------------------------------------------- that it sees what is wrong

BREAKS = {   # what is broken, and what is said
    "a device left out": (geometry.fine_samples, "(count, device=z.device)", "(count)",
                          "fine_samples, line {}: add of tensors on the CPU and elsewhere"),
    "a silent .cpu()": (geometry.render, "(\"rs,rsk->rk\", weights", "(\"rs,rsk->rk\", weights.cpu()",
                        r"render, line {}: \.cpu\(\) waits"),
    "a number asked for": (geometry.pool_views, ".clamp(min=1)", ".clamp(min=int(mask.any()))",
                           r"pool_views, line {}: \.__int__\(\) waits"),
    "an index by a mask": (geometry.pool_views, "L4.sum(2)", "L4[mask].sum() + L4.sum(2)",
                           "pool_views, line {}: index waits"),
    "numbers uploaded": (geometry.pool_views, "L4.sum(2) /", "L4.new_tensor([0.0]) + L4.sum(2) /",
                         "pool_views, line {}: new_tensor"),
    "a tensor uploaded": (geometry.pool_views, "L4.sum(2) /", "torch.zeros(1).to(L4.device) + L4.sum(2) /",
                          r"pool_views, line {}: \.to\(device\) uploads"),
    "a generator of the CPU": (geometry.pool_views, "L4.sum(2) /",
                               "torch.rand(1, generator=torch.Generator(), device=L4.device) + L4.sum(2) /",
                               "pool_views, line {}: rand elsewhere with a generator"),
    "a check that waits": (geometry.pool_views, "L4.sum(2) /",
                           "torch.linalg.inv(torch.eye(3, device=L4.device))[0, 0] * L4.sum(2) /",
                           "pool_views, line {}: _linalg_check_errors waits"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_line_is_named(name, monkeypatch):
    function, old, new, words = BREAKS[name]
    module, (lines, first) = sys.modules[function.__module__], inspect.getsourcelines(function)
    source = "".join(lines)
    assert old in source
    scope = dict(vars(module))
    exec(compile("\n" * (first - 1) + source.replace(old, new), module.__file__, "exec"), scope)
    monkeypatch.setattr(module, function.__name__, scope[function.__name__])
    line = first + next(i for i, text in enumerate(lines) if old in text)
    model, batch = make_model(), make_batch()
    with Elsewhere(), pytest.raises(Stray, match=f"^{module.__name__}." + words.format(line)):
        training.training_step(model, [batch], 0, 0)


# -------------------------------------------------------------------------------------------------- its bytes

def test_bytes_are_those_of_tensors_that_live():
    with Elsewhere() as elsewhere:
        x = torch.zeros(1000, 4, device=DEVICE, requires_grad=True)           # 16,000 bytes: 32 times 512
        assert elsewhere.watch.live == elsewhere.watch.peak == 16384
        y = x.view(-1)[:10].exp()                                             # a view has none of its own
        assert elsewhere.watch.live == 16384 + 512
        z = x.exp().exp()                                                     # backward needs both
        assert elsewhere.watch.live == 3 * 16384 + 512
        del y, z
        gc.collect()
        assert elsewhere.watch.live == 16384 and elsewhere.watch.peak == 3 * 16384 + 512


def test_fused_attention_stores_no_scores():
    n, peaks = 512, {}
    mask = torch.ones(1, n, dtype=torch.bool).to(DEVICE)
    for attend in (cra.attention, cra.fused_attention):
        with Elsewhere() as elsewhere:
            q, k, v = (torch.zeros(1, 4, n, 8, device=DEVICE, requires_grad=True) for _ in range(3))
            attend(q, k, v, mask).sum().backward()
            peaks[attend] = elsewhere.watch.peak
    scores, tokens = 4 * n * n * 4, 4 * n * 8 * 4
    assert peaks[cra.attention] > 2 * scores and peaks[cra.fused_attention] < 12 * tokens < scores


@pytest.mark.slow
def test_a_steps_peak_is_its_weights_four_times_and_what_grows_with_a_piece():
    config = replace(CONFIG, rays=512, coarse=32, fine=32)
    peak = {(bf16, piece): memory.step_peak(config, True, bf16, piece)
            for bf16 in (False, True) for piece in (512, 256, 128)}
    weights = sum(4 * p.numel() for p in make_model().parameters())
    assert 4 * weights < peak[False, 128]                                     # gradients, Adam's two moments
    growth = peak[False, 512] - peak[False, 256]
    assert growth == pytest.approx(2 * (peak[False, 256] - peak[False, 128]), rel=0.1)
    assert 0.4 * growth < peak[True, 512] - peak[True, 256] < growth


@pytest.mark.slow
def test_the_table_names_what_fits_each_card(capsys, monkeypatch):
    gb = {1024: 15e9, 512: 8e9, 256: 6.6e9, 128: 6.5e9}
    assert memory.row("a step", gb).split()[2:] == ["15.00", "8.00", "6.60", "6.50", "128", "512", "512",
                                                    "1024"]
    assert memory.row("a step", {64: 10e9}).split()[3:] == ["none", "64", "64", "64"]
    monkeypatch.setattr(memory, "CHUNKS", (256,))
    small = "--rays 8 --samples 4 --views 2 --sizes 40x32"
    monkeypatch.setattr(sys, "argv", ["memory", *small.split()])
    memory.main()
    printed = capsys.readouterr().out
    assert "40x32, bfloat16" in printed and "none" not in printed and printed.count("40x32, float32") == 2
    for wrong in ("40", "40x8", "8x40", "axb", "100000x40"):
        monkeypatch.setattr(sys, "argv", ["memory", "--sizes", wrong])
        with pytest.raises(DataError, match=f"--sizes {wrong}: must be"):
            memory.main()
