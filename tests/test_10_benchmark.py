"""10_benchmark.py: what it counts is what it says; its figures are made by the real command, small."""
import argparse
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

benchmark = import_module("10_benchmark")
cra = import_module("04_cra")
SCRIPT = Path(benchmark.__file__)
SMALL = argparse.Namespace(device="cpu", rays=8, samples=6, views=3, height=48, width=64, repeats=1)
FLAGS = [x for flag in ("rays", "samples", "views", "height", "width", "repeats") for x in (f"--{flag}", str(getattr(SMALL, flag)))]


def run(*arguments, cwd):
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, cwd=cwd)


def test_operations_of_the_tensor_equal_the_formula_by_either_way_of_computing(monkeypatch):
    """Forward, 2 FLOP per multiply-add: four C x C projections a token, and two products of length-N sequences."""
    monkeypatch.setattr(cra, "EINSUM_UP_TO", cra.EINSUM_UP_TO)                # measure_tensor sets it for its own process
    R, S, V, C = 4, 6, 3, 32
    projections = 4 * 2 * C * C * R * S * V
    expected = {"intra": projections + 4 * R * V * S * S * C, "cross": projections + 4 * R * S * V * V * C,
                "dense": projections + 4 * R * (S * V) ** 2 * C}
    expected["full"] = expected["intra"] + expected["cross"]
    for mode, flop in expected.items():
        for kind in ("einsum", "fused", "pieces"):
            found = benchmark.measure_tensor(SMALL, mode, kind, R, S, V)
            assert found["gflop"] == pytest.approx(flop / 1e9, rel=1e-9), (mode, kind)
            assert found["gflop_both"] == pytest.approx(3 * flop / 1e9, rel=0.02)


def test_the_paper_sizes_stay_within_the_operations_promised():
    """36 GFLOP forward for 512 rays, 64+64 samples, 8 views of 320x240; counted on 1/64 of the rays and the whole encoder. So many
    with all tokens; with the valid ones alone (a half to three quarters of them here) that share of what is not the encoder."""
    job = benchmark.Job(argparse.Namespace(**{**vars(SMALL), "rays": 8, "samples": 64, "views": 8, "height": 240, "width": 320}))
    found = {}
    with torch.no_grad():
        encoding = benchmark.count_flops(lambda: job.model.encode(job.sources))
        sources = job.model.encode(job.sources)
        for packed in (False, True):
            job.config.packed = packed
            found[packed] = 64 * benchmark.count_flops(lambda: job.model(sources, job.pixels, job.target.K, job.target.c2w))
    assert 30 < encoding + found[False] < 36 and 0.5 < found[True] / found[False] < 0.75


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="forgetting a peak is Linux's")
def test_a_fresh_process_sees_the_memory_its_work_takes():
    """Memory held for a moment is seen, the more that was held before is forgotten."""
    code = ("from importlib import import_module as i; b = i('10_benchmark'); import torch\n"
            "for mb in (300, 100, 0): print(b.peak_of(lambda: torch.ones(mb * 2 ** 18).sum(), 'cpu'))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=SCRIPT.parent)
    for held, mb in zip(done.stdout.split(), (300, 100, 0), strict=True):
        assert mb - 5 < float(held) < mb + 40, done


def test_the_real_command_measures_in_fresh_processes_and_writes_json(tmp_path):
    done = run(*FLAGS, "--only", "whole", "--json", "b.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["machine"]["U"] > 0 and found["machine"]["copy_gbs"] > 0
    assert found["whole"]["step"]["U"] == pytest.approx(found["whole"]["step"]["user"] / found["whole"]["step"]["unit"])
    assert set(found["whole"]) == {"step", "image_keep_0", "image_keep_8", "image_keep_8_stride_4", "step_in_one_piece"}
    assert found["whole"]["step"]["peak"] > 100
    for name in ("training step, 8 rays", "image 64x48, in full"):
        assert name in done.stdout


@pytest.fixture
def in_this_process(monkeypatch):
    """Every figure measured here instead of in a process of its own: peaks mean little, everything else is the same."""
    monkeypatch.setattr(cra, "EINSUM_UP_TO", cra.EINSUM_UP_TO)                # measure_tensor sets it for its own process
    monkeypatch.setattr(benchmark, "fresh", lambda args, name, *values: getattr(benchmark, f"measure_{name}")(args, *values))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def test_every_stage_and_every_attention_is_measured_forward_and_backward(in_this_process, capsys):
    machine, stages, tensor = {"matrix_gflops": 100.0, "copy_gbs": 10.0}, {}, {}
    benchmark.report_stages(SMALL, machine, stages)
    for name in benchmark.STAGES[1:]:
        forward, both = (stages[name][way] for way in ("forward", "both"))
        assert forward["seconds"] > 0 and forward["floor"] == max(forward["gflop"] / 100, forward["bytes"] / 1e10), name
        assert both["gflop"] >= 2 * forward["gflop"] and both["bytes"] == 3 * forward["bytes"]
    assert stages["decode"]["forward"]["seconds"] > stages["decode"]["forward"]["cached_seconds"]
    benchmark.report_tensor(SMALL, machine, tensor)
    assert set(tensor) == {"none"} | {f"{mode}, {kind}" for mode in ("intra", "cross", "full", "dense")
                                      for kind in ("einsum", "fused", "pieces of 128 rays")}
    assert tensor["none"]["gflop"] == tensor["none"]["gflop_both"] == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*benchmark.STAGES, "dense, fused"))


def test_each_means_of_speed_has_a_pair(in_this_process):
    for name in benchmark.TRIED:
        if name != "torch.compile":                                           # a minute, and a compiler
            found = benchmark.measure_tried(SMALL, name)
            assert found["without"] > 0 and found["with"] > 0, name


def test_skipping_is_compared_with_the_whole_computation(tmp_path):
    training = benchmark.training
    benchmark.data.rooms.make_rooms(tmp_path, [9000, 9001], frames=24, width=64, height=48, workers=1)
    model = training.SRay(training.Config(height=48, width=64, coarse=8, fine=17, views=4))
    run = {"train": [], "test": ["room9000_00", "room9001_00"], "root": str(tmp_path), "data": "rooms", "seconds": 1.0}
    training.save_checkpoint(tmp_path / "some.pt", model, torch.optim.Adam(model.parameters()), 7, run)
    rows = benchmark.skipping(argparse.Namespace(device="cpu", scenes=1), str(tmp_path / "some.pt"))
    whole, kept, strided = (rows[f"keep {keep}, coarse stride {n}"] for keep, n in ((0, 1), (8, 1), (8, 4)))
    assert whole["changed"] == whole["colour"] == whole["depth"] == 0 and whole["psnr"] > 5 and 0 <= whole["accuracy"] <= 100
    assert kept["colour"] == kept["depth"] == 0 and kept["psnr"] == whole["psnr"]
    assert strided["colour"] > 0 and strided["depth"] > 0 and all(row["seconds"] > 0 for row in rows.values())


def test_an_image_whose_coarse_level_is_strided_takes_fewer_operations(in_this_process):
    whole, strided = (benchmark.measure_image(SMALL, 2, stride)["gflop"] for stride in (1, 2))
    job = benchmark.Job(SMALL, keep=2)
    with torch.no_grad():
        sources = job.model.encode(job.sources)
        coarse = benchmark.count_flops(lambda: job.model.coarse_weights(sources, job.pixels[:64], job.target.K, job.target.c2w))
    assert whole - strided == pytest.approx(0.75 * coarse * 48 * 64 / len(job.pixels[:64]), rel=1e-6)


def test_the_curves_are_drawn_from_measurements(in_this_process, tmp_path):
    benchmark.curves(SMALL, tmp_path / "c.png")
    found = json.loads((tmp_path / "c.json").read_text())
    growth = lambda name: found[name][-1]["gflop"] / found[name][0]["gflop"]
    assert growth("full against rays") == growth("dense against rays") == pytest.approx(4)
    assert growth("dense against views") > 1.1 * growth("full against views")
    assert (tmp_path / "c.png").stat().st_size > 10_000


def test_no_gpu_is_one_line_and_status_2(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = run("--device", "cuda", cwd=tmp_path)
    assert done.returncode == 2 and "no GPU" in done.stderr and "Traceback" not in done.stderr
