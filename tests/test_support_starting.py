"""support/starting.py: how a training starts, and how it refuses to; 07 as a user types it."""
import csv
import shutil
import subprocess
import sys
from argparse import Namespace
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from support import ranges, runs, starting
from support.files import DataError
from support.labels import SCANNET, Classes

rooms, data, training = (import_module(name) for name in ("00_rooms", "01_data", "07_train"))
SMALL = training.Config(height=48, width=64, views=3, rays=8, coarse=3, fine=2, steps=20)


@pytest.fixture
def parse(monkeypatch):
    """A command line of 07 -> its arguments."""
    def parsed(*words):
        monkeypatch.setattr(sys, "argv", ["07_train.py", *map(str, words)])
        return starting.parse_arguments("what it does", training.Config, training.PRESETS)
    return parsed


def begin(args):
    """starting_point with 07's settings -> settings, checkpoint, name."""
    return starting.starting_point(args, training.Config, training.PRESETS, training.REPLICA,
                                   training.load_checkpoint)


def checkpoint(out: Path, config=SMALL, classes=SCANNET, **run) -> Path:
    """A run's checkpoint of random weights after 7 steps."""
    model = training.SRay(config, classes)
    optimiser, progress = torch.optim.Adam(model.parameters()), Namespace(seconds=lambda: 1.0)
    runs.save(out, model, optimiser, {"train": ["a"], "test": [], **run}, progress, 0, 0, 7)
    return out / "checkpoint.pt"


# ------------------------------------------------------------------------------------------- the command line

def test_a_command_line_has_a_flag_for_each_setting_and_for_each_thing_of_the_machine(parse, capsys):
    args = vars(parse())
    assert asdict(training.Config()).keys() <= args.keys()
    assert all(args[name] is None for name in asdict(training.Config()))
    others = {"device": "auto", "fast": "auto", "piece": 0, "workers": 0, "bf16": False, "compile": False,
              "scene": "scannet", "cache": "cache", "save_every": 1000, "keep_every": 0, "validation": 0}
    assert {name: args[name] for name in others} == others
    with pytest.raises(SystemExit) as end:
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0 and "what it does" in text and "after a warm-up over 1% of the steps" in text


@pytest.mark.parametrize("words, message", [
    (["--varied-rooms", -1], "--varied-rooms -1"), (["--varied-rooms", 4001], "--varied-rooms 4001"),
    (["--validation", -1], "--validation -1"), (["--save-every", 0], "--save-every 0: must be at least 1"),
    (["--keep-every", -2], "--keep-every -2"), (["--piece", -1], "--piece -1"),
    (["--workers", -1], "--workers -1")])
def test_a_number_that_no_run_could_use_is_named(parse, words, message):
    with pytest.raises(DataError, match=message):
        parse(*words)


@pytest.mark.parametrize("words", [
    ["--scen", "x"], ["--fast", "perhaps"], ["--export", "x"], ["--preset", "large"]])
def test_a_flag_cut_short_and_one_that_is_gone_are_wrong(parse, words, capsys):
    with pytest.raises(SystemExit) as end:
        parse(*words)
    assert end.value.code == 2 and words[0] in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------- settings

@pytest.mark.parametrize("words, cuda, scannet, name", [
    ([], False, False, "laptop"), ([], True, False, "laptop"), ([], False, True, "laptop"),
    ([], True, True, "paper"), (["--scene", "rooms"], True, True, "laptop"),
    (["--scene", "x"], True, False, "paper"), (["--data", "x"], True, False, "paper"),
    (["--preset", "smoke"], True, True, "smoke")])
def test_the_papers_settings_are_for_real_data_and_a_gpu(
        parse, monkeypatch, tmp_path, capsys, words, cuda, scannet, name):
    monkeypatch.chdir(tmp_path)
    if scannet:
        (tmp_path / "data/scannet").mkdir(parents=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    config, state, found = begin(parse(*words, "--tau", 0.5))
    assert (state, found) == (None, name)
    assert config == training.Config(**{**training.PRESETS[name], "tau": 0.5})
    said = capsys.readouterr().out
    assert said.startswith(f"preset {name}: ") and f"{config.width}x{config.height}" in said


def test_replica_changes_the_papers_size_and_steps_and_no_other_presets(parse):
    config, *_ = begin(parse("--scene", "replica", "--preset", "paper"))
    assert (config.height, config.width, config.steps, config.views) == (480, 640, 100_000, 8)
    config, *_ = begin(parse("--scene", "replica", "--preset", "laptop"))
    assert config == training.Config(**training.PRESETS["laptop"])


def test_fine_tuning_takes_the_checkpoints_settings_2000_steps_and_one_target(parse, tmp_path):
    path = checkpoint(tmp_path, replace(SMALL, targets=2, extra_views=3, lambda2=0.3))
    config, state, name = begin(parse("--finetune", path, "--lr", 1e-4))
    assert (state["step"], name) == (7, "finetune")
    assert config == replace(SMALL, steps=2000, lr=1e-4, lambda2=0.3)
    config, *_ = begin(parse("--finetune", path))
    assert config.lr == 5e-4


def test_a_resumed_run_goes_on_with_its_own_settings(parse, tmp_path):
    checkpoint(tmp_path)
    config, state, _ = begin(parse("--resume", "--out", tmp_path))
    assert config == SMALL and state["step"] == 7
    config, *_ = begin(parse("--resume", "--out", tmp_path, "--steps", 30))
    assert config == replace(SMALL, steps=30)
    del state["optimiser"]
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(DataError, match="weights only, without an optimiser; .*--finetune"):
        begin(parse("--resume", "--out", tmp_path))


@pytest.mark.parametrize("words, message", [
    (["--tau", 1.5], "--tau 1.5"), (["--tau", 0], "--tau 0"), (["--tau", "nan"], "--tau nan"),
    (["--height", 20], "--height 20: must be at least 32"),
    (["--near", 3, "--far", 2], "--near 3.0 --far 2.0"), (["--near", "nan"], "--near nan"),
    (["--height", 10 ** 6, "--width", 10 ** 6], "more than 33,554,432 pixels"),
    (["--cra", "sparse"], "--cra sparse: one of none, intra, cross, full, dense"),
    (["--views", 0], "--views 0"), (["--colour-jitter", -1], "--colour-jitter -1")])
def test_settings_that_no_run_could_use_are_named(parse, words, message):
    with pytest.raises(DataError, match=message):
        begin(parse("--preset", "smoke", *words))


def test_flags_that_do_not_go_together_are_named(parse, tmp_path, monkeypatch):
    path, smoke = checkpoint(tmp_path / "run"), ["--preset", "smoke"]
    for words, message in (
            ([*smoke, "--encoder", path, "--init", path], "--init: is for new trainings"),
            (["--finetune", path, "--encoder", path], "--encoder: is for new trainings"),
            (["--finetune", path, "--init", path], "--init: is for new trainings"),
            ([*smoke, "--out", tmp_path / "run"], "holds a run already; --resume")):
        with pytest.raises(DataError, match=message):
            begin(parse(*words))
    monkeypatch.setattr(starting, "rank_and_world", lambda: (0, 9))
    with pytest.raises(DataError, match="--rays 8: fewer than the 9 processes"):
        begin(parse(*smoke, "--rays", 8))


# ------------------------------------------------------------------------------------------------- the frames

@pytest.fixture(scope="module")
def scene(root):
    return data.Scene(root / "scene0001_00", 48, 64)


def test_test_views_stay_out_of_training_where_they_are_evaluated_or_validated_on(scene):
    source, tune, test = data.protocol(scene)
    everything = list(range(len(scene)))
    another = {"train": [scene.name, "another"], "test": ["unseen"], "finetuned": False}

    def frames(**run):
        return starting.training_frames(scene, {**another, **run}, 3, data.protocol)
    assert frames() == frames(validation=0) == everything
    assert sorted(frames(validation=1) + test) == everything
    assert frames(validation=1, train=["another", scene.name]) == everything              # not the first one
    assert sorted(frames(test=[scene.name]) + test) == everything
    assert frames(test=[scene.name], finetuned=True) == sorted(source + tune)


def test_too_few_frames_are_named(scene):
    run = {"train": [scene.name], "test": ["unseen"], "finetuned": False}
    with pytest.raises(DataError, match="scene0001_00: 25 usable frames, but 25 source views and a target"):
        starting.training_frames(scene, run, 25, data.protocol)


def test_a_training_says_in_one_line_that_frames_are_less_than_2_cm_apart(
        parse, root, box_copy, tmp_path, capsys):
    def begun(path):
        """What a training on the scene says before its first step."""
        args = parse("--scene", path, "--preset", "smoke", "--cache", tmp_path / "cache")
        starting.load_data(args, begin(args)[0], None, "smoke", data, rooms)
        return capsys.readouterr().out.splitlines()
    assert not any("--every" in line for line in begun(root))
    for path in (box_copy / "pose").iterdir():
        pose = np.loadtxt(path)
        pose[:3, 3] /= 20
        np.savetxt(path, pose)
    line, = [line for line in begun(box_copy) if "--every" in line]
    assert "scene0001_00" in line and "less than 2 cm apart" in line


def test_a_training_measures_its_scenes_if_near_and_far_are_to_follow_them(
        parse, root, tmp_path, monkeypatch):
    monkeypatch.setattr(ranges, "typical_depth", lambda images, K, c2w: 6.0)
    for typical, expected in ((0, None), (3, (0.6, 16.0))):
        args = parse("--scene", root, "--preset", "smoke", "--cache", tmp_path, "--typical", typical)
        _, scenes, frames, _, _ = starting.load_data(args, begin(args)[0], None, "smoke", data, rooms)
        assert [scene.range for scene in scenes] == [expected] * len(scenes) and len(frames) == len(scenes)


def test_the_label_set_is_the_checkpoints_and_scenes_with_labels_must_share_it(scene):
    other = Classes(("cat", "dog"), ((0, 0, 0), (9, 9, 9)))
    assert starting.classes_of([scene], None, "root") == SCANNET
    assert starting.classes_of([scene], {"classes": SCANNET._asdict()}, "root") == SCANNET
    assert starting.classes_of([scene], {}, "root") == SCANNET                # a checkpoint of the first days
    with pytest.raises(DataError, match="root: .*start without these weights"):
        starting.classes_of([scene], {"classes": other._asdict()}, "root")
    unlabelled = Namespace(classes=SCANNET, has_labels=False)
    assert starting.classes_of([unlabelled], {"classes": other._asdict()}, "root") == other


# ------------------------------------------------------------------------------------------ the first weights

def weights_of(model):
    return {name: x.clone() for name, x in model.state_dict().items()}


def begun(args, state=None, config=SMALL, classes=SCANNET):
    """A new model's weights before and after load_weights."""
    model = training.SRay(config, classes)
    before = weights_of(model)
    starting.load_weights(model, args, state)
    return before, weights_of(model)


def test_an_encoder_or_all_weights_can_be_taken_from_another_run(parse, tmp_path):
    path = checkpoint(tmp_path)
    there = training.load_checkpoint(path)[0].state_dict()
    before, after = begun(parse("--init", path), config=replace(SMALL, height=96, seed=3))
    assert all(torch.equal(after[name], there[name]) for name in there)
    before, after = begun(parse("--encoder", path), config=replace(SMALL, cra="none"))
    for name in after:
        taken = name.startswith(("encoder.", "source_head."))
        assert torch.equal(after[name], there[name] if taken else before[name])
    before, after = begun(parse())
    assert all(torch.equal(after[name], before[name]) for name in after)
    state = {"model": {name: x.half() for name, x in there.items()}}          # of a fine-tuned or resumed run
    before, after = begun(parse("--finetune", path), state)
    assert all(torch.equal(after[name], there[name].half().float()) for name in there)


def test_weights_of_another_model_are_refused(parse, tmp_path):
    path, other = checkpoint(tmp_path), Classes(("cat", "dog"), ((0, 0, 0), (9, 9, 9)))
    with pytest.raises(DataError, match="checkpoint.pt: weights of another model .*drop the flag"):
        begun(parse("--init", path), config=replace(SMALL, cra="none"))
    with pytest.raises(DataError, match="checkpoint.pt: for 20 classes, the scenes have 2"):
        begun(parse("--encoder", path), classes=other)
    with pytest.raises(DataError, match="nowhere.pt: no such checkpoint"):
        begun(parse("--encoder", "nowhere.pt"))


# ------------------------------------------------------------------------------------------------ how it ends

def test_the_command_that_continues_a_run_names_its_folder_and_what_no_checkpoint_holds(parse, monkeypatch):
    def command(*words):
        return starting.resume_command(parse(*words), Path("run"))
    assert command("--cache", "elsewhere") == "python 07_train.py --resume --out run --cache elsewhere"
    assert command() == "python 07_train.py --resume --out run"
    assert command("--steps", "9", "--bf16", "true", "--save-every", "7", "--no-eval") == (
        "python 07_train.py --resume --out run --save-every 7 --bf16 True --no-eval")
    monkeypatch.setattr(starting, "rank_and_world", lambda: (0, 4))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert command() == "torchrun --nproc-per-node 2 07_train.py --resume --out run"


@pytest.mark.slow
def test_a_finished_run_is_evaluated_with_the_status_of_the_evaluation(parse, tmp_path, monkeypatch):
    script = tmp_path / "08.py"
    script.write_text("import os, sys; open('asked', 'w').write(' '.join(sys.argv[1:]))\nsys.exit(7)")
    monkeypatch.chdir(tmp_path)
    starting.evaluate(script, Path("run"), parse("--no-eval"))
    assert not (tmp_path / "asked").exists()
    with pytest.raises(SystemExit) as end:
        starting.evaluate(script, Path("run"), parse("--cache", "kept"))
    assert end.value.code == 7
    assert (tmp_path / "asked").read_text() == "--checkpoint run/checkpoint.pt --out run/eval --cache kept"


# ------------------------------------------------------------------------------------- 07 as a user types it

SMOKE = ["--preset", "smoke", "--rays", 8, "--coarse", 2, "--fine", 2, "--device", "cpu", "--no-eval"]


def decoded(cache: Path, name: str) -> set[int]:
    """The numbers of a scene's frames in a cache."""
    return {int(path.name.split("_")[0]) for path in cache.glob(f"{name}*/*.npy")}


@pytest.fixture
def forks():
    """What starts processes, where the system can fork."""
    return pytest.importorskip("forks", reason="POSIX only", exc_type=ImportError)


@pytest.mark.slow
def test_a_30_step_run_lowers_the_loss_on_data_read_from_disk(forks, root, tmp_path):
    said = forks.finished("--scene", root, "--preset", "smoke", "--steps", 30, "--out", "run", "--no-eval",
                          "--keep-every", 15, cwd=tmp_path)
    assert "waiting for data" in said and "2,075,284 parameters; run folder run" in said
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "checkpoint.pt", "checkpoint_15.pt", "checkpoint_30.pt", "log.csv", "curves.png", ".lock"}
    assert training.load_checkpoint(tmp_path / "run/checkpoint_15.pt")[1]["step"] == 15
    rows = list(csv.DictReader(open(tmp_path / "run/log.csv")))
    first, last = ({key: float(value) for key, value in row.items()} for row in (rows[0], rows[-1]))
    assert last["step"] == 30
    assert last["semantic"] < first["semantic"] - 0.1 and last["source"] < first["source"] - 0.1
    state = training.load_checkpoint(tmp_path / "run/checkpoint.pt")[1]
    assert state["step"] == 30 and state["run"]["command"].startswith("python 07_train.py --scene")
    assert (state["run"]["train"], state["run"]["test"]) == (["scene0001_00"], ["scene0002_00"])


@pytest.mark.slow
def test_fine_tuning_never_touches_the_test_views(forks, root, tmp_path):
    path = checkpoint(tmp_path / "base")
    forks.finished("--finetune", path, "--scene", root, "--scenes", "scene0002_00", "--steps", 40,
                   "--out", "tuned", "--no-eval", cwd=tmp_path)
    scene = data.Scene(root / "scene0002_00", 48, 64)
    source, tune, _ = data.protocol(scene)
    assert decoded(tmp_path / "cache", "scene0002_00") == {scene.frames[i] for i in source + tune}
    state = training.load_checkpoint(tmp_path / "tuned/checkpoint.pt")[1]
    assert state["run"]["test"] == ["scene0002_00"] and state["step"] == 40
    assert state["run"]["finetuned"] is True


@pytest.mark.slow
def test_a_scene_alone_keeps_its_test_views_out_of_training(forks, root, tmp_path):
    forks.finished("--scene", root / "scene0001_00", *SMOKE, "--steps", 3, "--out", "run", cwd=tmp_path)
    scene = data.Scene(root / "scene0001_00", 48, 64)
    test = {scene.frames[i] for i in data.protocol(scene)[2]}
    found = decoded(tmp_path / "cache", "scene0001_00")
    assert len(found) == 21 and not found & test


@pytest.mark.slow
def test_without_scannet_it_says_so_and_calls_the_data_rooms(forks, tmp_path):
    said = forks.finished(*SMOKE, "--scene", "scannet", "--steps", 2, "--out", "run", cwd=tmp_path)
    assert sum("NO SCANNET" in line for line in said.splitlines()) == 1
    assert training.load_checkpoint(tmp_path / "run/checkpoint.pt")[1]["run"]["data"] == "rooms"


@pytest.mark.slow
def test_pseudo_labels_are_trained_on_in_the_place_of_the_scenes_own(forks, root, tmp_path):
    shutil.copytree(root / "scene0001_00/label-filt", tmp_path / "labels/scene0001_00")
    for path in (tmp_path / "labels/scene0001_00").iterdir():
        iio.imwrite(path, np.ones((48, 64), np.uint16))                       # everything is wall
    forks.finished("--scene", root / "scene0001_00", "--preset", "smoke", "--steps", 30, "--out", "run",
                   "--no-eval", "--labels", "labels", cwd=tmp_path)
    model = training.load_checkpoint(tmp_path / "run/checkpoint.pt")[0].eval()
    scene = data.Scene(root / "scene0001_00", 48, 64, tmp_path / "cache")
    views, target = scene.views([9, 10, 12]), scene.views([11])[0]
    with torch.no_grad():
        out = model.render_image(model.encode(views), target.K, target.c2w, 48, 64, stride=4)
    assert (out["logits"].argmax(-1) == 0).float().mean() > 0.7               # no wall is in these pictures


@pytest.mark.slow
@pytest.mark.parametrize("arguments, words", [
    (["--scene", "nowhere"], ["nowhere", "no such folder"]),
    (["--scene", "scannet", "--data", "nowhere"], ["nowhere", "no such folder"]),
    (["--scene", "ROOT", "--scenes", "scene0001_00,scene7777_00"], ["scene7777_00", "no such scene"]),
    (["--scene", "ROOT", "--views", "30"], ["scene0001_00", "25 usable frames", "30 source views"]),
    (["--scene", "ROOT", "--tau", "1.5"], ["--tau 1.5"]),
    (["--scene", "ROOT", "--finetune", "nothing.pt"], ["nothing.pt", "no such checkpoint"])])
def test_bad_input_ends_with_one_clear_line_and_status_2(forks, root, tmp_path, arguments, words):
    arguments = [str(root) if a == "ROOT" else a for a in arguments]
    smoke = [] if "--finetune" in arguments else ["--preset", "smoke"]
    forks.refused(forks.start(*arguments, *smoke, "--out", "run", cwd=tmp_path), tmp_path, *words)
    assert not (tmp_path / "run").exists()                                    # nothing half-written


TABLE = "scannetv2-labels.combined.tsv"


@pytest.mark.slow
@pytest.mark.parametrize("damage, words", [
    (lambda scene: (scene / "color/6.jpg").write_bytes(b"\xff\xd8\xff rubbish"), ["color/6.jpg"]),
    (lambda scene: [path.write_bytes(b"") for path in (scene / "label-filt").iterdir()], ["label-filt"]),
    (lambda scene: (scene.parent / TABLE).unlink(), [TABLE]),
    (lambda scene: (scene / "intrinsic/intrinsic_color.txt").write_text("1 0 0 0"), ["intrinsic_color.txt"]),
    (lambda scene: [path.write_text("-inf " * 16) for path in (scene / "pose").iterdir()], ["pose"])])
def test_a_damaged_scene_is_named_and_leaves_nothing_behind(forks, box_copy, tmp_path, damage, words):
    damage(box_copy)
    flags = ["--scene", box_copy, *SMOKE, "--steps", 200, "--out", "run"]
    forks.refused(forks.start(*flags, cwd=tmp_path), tmp_path, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_output_folder_with_a_run_in_it_is_not_overwritten(forks, root, tmp_path):
    flags = ["--scene", root, *SMOKE, "--steps", 2, "--out", "run"]
    forks.finished(*flags, cwd=tmp_path)
    before = (tmp_path / "run/checkpoint.pt").read_bytes()
    forks.refused(forks.start(*flags, cwd=tmp_path), tmp_path, "run", "--resume")
    assert (tmp_path / "run/checkpoint.pt").read_bytes() == before


@pytest.mark.slow
def test_after_huge_steps_training_ends_in_one_line_and_keeps_the_good_checkpoint(forks, root, tmp_path):
    forks.finished("--scene", root, *SMOKE, "--steps", 3, "--out", "run", cwd=tmp_path)
    good = (tmp_path / "run/checkpoint.pt").read_bytes()
    # the loss at step 3 is still finite, the weights after it are useless, and must not replace the good ones
    huge = ["--resume", "--out", "run", "--steps", 9, "--save-every", 1, "--lr", 1e30, "--lr-final", 1e30]
    forks.refused(forks.start(*huge, "--no-eval", cwd=tmp_path), tmp_path, "step 4", "run/checkpoint.pt")
    assert (tmp_path / "run/checkpoint.pt").read_bytes() == good


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_scenes(root, tmp_path):
    """3 scenes against 60: the frames of 57 more would be 105 MB in memory; the process grows by less."""
    pytest.importorskip("resource", reason="POSIX only")
    (tmp_path / TABLE).symlink_to(root / TABLE)
    for i in range(60):
        (tmp_path / f"scene{i:04d}_00").symlink_to(root / "scene0001_00")
    code = """
import resource, sys
from importlib import import_module
from pathlib import Path
from support.frames import decode_all
t, folder = import_module('07_train'), Path(sys.argv[1])
paths = sorted(folder.glob('scene*'))[:int(sys.argv[2])]
scenes = [t.data.Scene(path, 96, 128, folder / 'cache') for path in paths]
frames = decode_all(scenes, [list(range(len(s))) for s in scenes])
for step in range(100):
    t.draw_batches(scenes, frames, t.Config(height=96, width=128, views=4, rays=32), step)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"""
    few, many = (float(subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(count)], cwd=Path(__file__).parents[1], text=True,
        capture_output=True, check=True).stdout.split()[-1]) for count in (3, 60))
    assert many < few + 40, (few, many)
