"""tools/benchmark.py: what it counts is what it says; its figures are made by the real command, small."""
import argparse
import json
import os
import subprocess
import sys
from importlib import import_module

import pytest
import torch

from support.runs import write_state
from tools import benchmark, measuring, tried, workloads

rooms = import_module("00_rooms")
cra = import_module("04_cra")
training = import_module("07_train")
SMALL = argparse.Namespace(device="cpu", rays=8, samples=6, views=3, height=48, width=64, repeats=1)


def changed(**sizes):
    """SMALL with other sizes."""
    return argparse.Namespace(**{**vars(SMALL), **sizes})


def run(*arguments, cwd):
    command = [sys.executable, "-m", "tools.benchmark", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def test_operations_of_the_tensor_equal_the_formula_by_every_way_of_computing():
    """Forward, 2 FLOP per multiply-add: four C x C projections a token, and two products of length-N
    sequences. Packed sequences of up to 8 tokens have no matrix products for their scores."""
    R, S, V, C = 4, 12, 3, 32
    projections = 4 * 2 * C * C * R * S * V
    intra, cross = 4 * R * V * S * S * C, 4 * R * S * V * V * C
    expected = {"none": 0, "intra": projections + intra, "cross": projections + cross,
                "full": 2 * projections + intra + cross, "dense": projections + 4 * R * (S * V) ** 2 * C}
    for mode, flop in expected.items():
        for kind in ("einsum", "fused", "pieces"):
            found = workloads.measure_tensor(changed(samples=S, views=V), mode, kind, R)
            assert found["gflop"] == pytest.approx(flop / 1e9, rel=1e-9), (mode, kind)
            assert found["gflop_both"] == pytest.approx(3 * flop / 1e9, rel=0.02)


def test_packed_attention_of_the_tensor_is_the_same_attention():
    torch.manual_seed(0)
    plain = workloads.attention_module("full", "einsum")
    torch.manual_seed(0)
    packed = workloads.attention_module("full", "packed")
    M, mask = torch.randn(2, 5, 3, 32), torch.ones(2, 5, 3, dtype=torch.bool)
    torch.testing.assert_close(packed(M, mask), plain(M, mask))


def test_the_paper_sizes_stay_within_the_operations_promised():
    """36 GFLOP forward for 512 rays, 64 + 64 samples, 8 views of 320x240, by the plain path; counted on 1/64
    of the rays and the whole encoder."""
    job = workloads.Job(changed(samples=64, views=8, height=240, width=320))
    encoding = measuring.count_flops(job.encoded)
    sources = job.encoded()
    with torch.no_grad():
        rays = measuring.count_flops(lambda: job.model(sources, job.pixels, *job.camera))
    assert 30 < encoding + 64 * rays < 36


@pytest.mark.slow
def test_the_fast_path_computes_valid_tokens_alone():
    sizes = changed(rays=64, samples=16, views=8)
    plain, fast = (workloads.measure_step(sizes, how) for how in ("false", "true"))
    for key in ("gflop", "gflop_both"):                                       # most are the encoder's here
        assert fast[key] < 0.9 * plain[key]


@pytest.mark.slow
def test_an_image_that_skips_takes_fewer_operations():
    small = changed(samples=16)
    whole, kept, strided = (workloads.measure_image(small, **skipping)["gflop"]
                            for skipping in ({}, {"keep": 2}, {"keep": 2, "coarse_stride": 2}))
    assert strided < kept < whole


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="forgetting a peak is Linux's")
def test_a_fresh_process_sees_the_memory_its_work_takes(tmp_path):
    """Memory held for a moment is seen, the more that was held before is forgotten."""
    code = ("from tools.measuring import peak_of; import torch\n"
            "for mb in (300, 100, 0): print(peak_of(lambda: torch.ones(mb * 2 ** 18).sum(), 'cpu'))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    for held, mb in zip(done.stdout.split(), (300, 100, 0), strict=True):
        assert mb - 5 < float(held) < mb + 40, done


@pytest.mark.slow
def test_a_figure_from_a_fresh_process_has_u_and_the_copy_rate_beside_it():
    step = benchmark.fresh(SMALL, "step")
    assert step["U"] == pytest.approx(step["user"] / step["unit"]) and step["peak"] > 100
    assert step["copy_gbs"] > 0.1 and step["rays_per_second"] == pytest.approx(8 / step["seconds"])


@pytest.fixture
def in_this_process(monkeypatch):
    """Every figure measured here instead of in a process of its own: peaks mean little, the rest is the
    same."""
    def measured(args, name, **values):
        return benchmark.MEASURES[name](args, **values)
    monkeypatch.setattr(benchmark, "fresh", measured)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


@pytest.mark.slow
def test_the_command_prints_its_figures_and_writes_them(in_this_process, tmp_path, monkeypatch, capsys):
    flags = [str(x) for name in benchmark.SIZES for x in (f"--{name}", getattr(SMALL, name))]
    path = tmp_path / "b.json"
    monkeypatch.setattr(sys, "argv", ["benchmark", *flags, "--only", "whole", "--json", str(path)])
    benchmark.main()
    found, printed = json.loads(path.read_text()), capsys.readouterr().out
    assert found["machine"]["U"] > 0 and found["machine"]["copy_gbs"] > 0
    assert set(found["whole"]) == {"step_fast", "step_plain", "image_fast", "image_plain", "image_keep_8",
                                   "image_keep_8_stride_4", "step_in_one_piece"}
    assert "step, 8 rays, fast" in printed and "image 64x48, in full, plain" in printed


def test_the_copy_rate_stands_beside_u(capsys):
    figures = {"gflop": 1.0, "seconds": 2.0, "user": 3.0, "U": 150.0, "copy_gbs": 17.9, "peak": 9.0}
    benchmark.report_row("step", figures, {"matrix_gflops": 5.0})
    names, cells = benchmark.HEAD.split(), capsys.readouterr().out.split()
    assert names[names.index("U") + 1] == "copy"
    assert cells[cells.index("150") + 1] == "17.9" and cells[-1] == "10%"


@pytest.mark.slow
def test_every_stage_and_every_attention_is_measured_forward_and_backward(in_this_process, capsys):
    machine = {"matrix_gflops": 100.0, "copy_gbs": 10.0}
    stages = benchmark.report_stages(SMALL, machine)
    for name in benchmark.STAGES:
        forward, both = (stages[name][way] for way in ("forward", "both"))
        assert forward["seconds"] > 0
        assert forward["floor"] == max(forward["gflop"] / 100, forward["bytes"] / 1e10), name
        assert both["gflop"] >= 2 * forward["gflop"] and both["bytes"] == 3 * forward["bytes"]
    assert stages["decoding"]["seconds"] > stages["decoding"]["cached_seconds"]
    tensor = benchmark.report_tensor(SMALL, machine)
    assert set(tensor) == {"none"} | {f"{mode}, {kind}" for mode in ("intra", "cross", "full", "dense")
                                      for kind in workloads.KINDS.values()}
    assert tensor["none"]["gflop"] == tensor["none"]["gflop_both"] == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*benchmark.STAGES, "dense, fused"))


def test_what_memory_does_not_hold_is_not_run(monkeypatch):
    monkeypatch.setattr(benchmark, "available", lambda: 1.0)
    found = benchmark.attention_cost(changed(samples=64, views=8), "dense", "einsum", 1024)
    assert found == {"failed": "not run: needs about 28 GiB"}


@pytest.mark.slow
def test_each_means_of_speed_has_a_pair(in_this_process):
    for name in tried.TRIED:
        if name != "torch.compile":                                           # a minute, and a compiler
            found = tried.measure_tried(SMALL, name)
            assert found["without"] > 0 and found["with"] > 0, name


@pytest.mark.slow
def test_skipping_is_compared_with_the_whole_computation(tmp_path):
    rooms.make_rooms(tmp_path, [9000, 9001], frames=24, width=64, height=48, workers=1)
    model = training.SRay(training.Config(height=48, width=64, coarse=8, fine=17, views=4))
    run = {"train": [], "test": ["room9000_00", "room9001_00"], "root": str(tmp_path), "data": "rooms"}
    write_state(tmp_path / "some.pt", {"model": model.state_dict(), "config": vars(model.config), "step": 7,
                                       "run": run})
    rows = benchmark.skipping(changed(scenes=1), str(tmp_path / "some.pt"))
    whole, kept, strided = (rows[f"keep {keep}, coarse stride {n}"] for keep, n in ((0, 1), (8, 1), (8, 4)))
    assert whole["changed"] == whole["colour"] == whole["depth"] == 0
    assert whole["psnr"] > 5 and 0 <= whole["accuracy"] <= 100
    assert kept["colour"] == kept["depth"] == 0 and kept["psnr"] == whole["psnr"]
    assert strided["colour"] > 0 and strided["depth"] > 0 and all(row["seconds"] > 0 for row in rows.values())


def test_the_curves_are_drawn_from_measurements(in_this_process, tmp_path):
    benchmark.curves(SMALL, tmp_path / "c.png")
    found = json.loads((tmp_path / "c.json").read_text())
    growth = {name: rows[-1]["gflop"] / rows[0]["gflop"] for name, rows in found.items() if "against" in name}
    assert growth["full against rays"] == growth["dense against rays"] == pytest.approx(4)
    assert growth["dense against views"] > 1.1 * growth["full against views"]
    assert (tmp_path / "c.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_one_line_and_status_2(tmp_path):
    done = run("--device", "cuda", cwd=tmp_path)
    assert done.returncode == 2 and "no GPU" in done.stderr and "Traceback" not in done.stderr
