"""Every exercise against its tests. The bodies of a stage's marked functions go out: its tests fail, and each
function by its name. They are put back: all pass. And wrong solutions of the usual kind go in, one at a time:
for each there is a test whose name says what is wrong, and it fails.

    python tests/exercises.py             every stage, in some minutes; exit status 1 where one is wrong
    python tests/exercises.py 04 05       these

Tests marked slow do not run. POSIX only.
"""
import argparse
import multiprocessing
import os
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

exercise = import_module("tools.exercise")


class Wrong(NamedTuple):
    """A wrong solution: a piece of the stage's file, what a student writes for it, the test that fails."""
    right: str
    wrong: str
    test: str


WRONG = {
    "01": {
        "off by half a pixel": Wrong(
            "(K[..., axis, 2] + 0.5) * f - 0.5", "K[..., axis, 2] * f",
            "test_resizing_moves_a_pixel_centre_by_its_axis_factor_about_the_image_corner"),
        "axes swapped": Wrong(
            "((0, new[1] / old[1]), (1, new[0] / old[0]))", "((0, new[0] / old[0]), (1, new[1] / old[1]))",
            "test_intrinsics_are_scaled_per_axis_from_the_images_real_size"),
        "missing transpose": Wrong(
            "KR = K @ R.transpose(1, 2)", "KR = K @ R",
            "test_a_camera_turns_points_by_the_transpose_of_its_rotation"),
        "u and v swapped": Wrong(
            "return uvz[..., :2] / safe", "return uvz[..., :2].flip(-1) / safe",
            "test_u_runs_to_the_right_and_v_runs_down"),
        "depth along the ray": Wrong(
            "depth[:, None] * directions", "depth[:, None] * F.normalize(directions, dim=-1)",
            "test_depth_is_along_z_and_not_along_the_ray"),
        "angle ignored": Wrong(
            "torch.argsort(distance + angle_weight * angle,", "torch.argsort(distance,",
            "test_nearest_views_are_sorted_by_distance_plus_angle")},
    "03": {
        "axes swapped": Wrong(
            "u, v = (2 * pixels / stride)", "v, u = (2 * pixels / stride)",
            "test_a_lookup_reads_column_u_of_row_v"),
        "off by half a pixel": Wrong(
            "align_corners=True", "align_corners=False", "test_the_lookup_is_exact_at_pixel_centres"),
        "zeros beyond the border": Wrong(
            'padding_mode="border"', 'padding_mode="zeros"',
            "test_the_lookup_equals_a_bilinear_loop_and_holds_the_border"),
        "query minus source": Wrong(
            "[source - query, cosine]", "[query - source, cosine]",
            "test_the_difference_is_the_sources_direction_minus_the_querys_each_of_length_one"),
        "directions not of length one": Wrong(
            "source = F.normalize(points[:, :, None] - source_origins, dim=-1)",
            "source = points[:, :, None] - source_origins",
            "test_the_difference_is_the_sources_direction_minus_the_querys_each_of_length_one")},
    "04": {
        "mask on queries": Wrong(
            "key_bias(mask, score.dtype)[:, None, None])", "key_bias(mask, score.dtype)[:, None, :, None])",
            "test_valid_tokens_do_not_read_a_masked_token"),
        "no root of D": Wrong(
            "q, k) / math.sqrt(q.shape[-1])", "q, k)",
            "test_scores_are_divided_by_the_root_of_the_head_dimension"),
        "missing transpose": Wrong(
            "return L4.view(R, V, S, C).transpose(1, 2)", "return L4.view(R, S, V, C)",
            "test_intra_view_attention_does_not_mix_views_and_joins_all_samples_of_one"),
        "mask not transposed": Wrong(
            "self.L4(L3.flatten(0, 1), mask.transpose(1, 2).flatten(0, 1))",
            "self.L4(L3.flatten(0, 1), mask.reshape(R * V, S))", "test_masking_a_view_equals_removing_it"),
        "across samples": Wrong(
            "L6 = self.L6(M.flatten(0, 1), mask.flatten(0, 1))",
            "L6 = self.L6(M.flatten(1, 2), mask.flatten(1))",
            "test_cross_view_attention_does_not_mix_samples_and_joins_all_views_of_one"),
        "no position": Wrong(
            "self.dense(L3.flatten(1, 2),", "self.dense(M.transpose(1, 2).flatten(1, 2),",
            "test_the_order_of_samples_matters_wherever_attention_runs_along_the_ray")},
    "05": {
        "tau ignored": Wrong(
            "low, high = tau / m, 1 / (tau * m)", "low, high = 0 * m, 1 + 0 * m",
            "test_the_projection_sums_to_one_within_the_bounds_and_is_zero_where_masked"),
        "bounds of all views, not of the valid ones": Wrong(
            "m = valid.sum(-1, keepdim=True).clamp(min=1)",
            "m = torch.full_like(valid[..., :1], mask.shape[-1])",
            "test_masking_a_view_equals_removing_it"),
        "clamped and divided, not projected": Wrong(
            "return torch.where(free, (scores - shift).clamp(low, high), bound)",
            "w = scores.clamp(low, high) * mask\n    return w / w.sum(-1, keepdim=True)",
            "test_no_feasible_point_is_nearer_than_the_projection"),
        "weights ignored": Wrong(
            'return torch.einsum("rsv,rsvc->rsc", w, refined)', "return refined.mean(2)",
            "test_the_semantic_ray_is_the_weighted_sum_over_views")},
    "06": {
        "variance unbiased": Wrong(
            "(L4.square().sum(2) / valid - L5.square()).clamp(min=0)",
            "((L4.square().sum(2) - valid * L5.square()) / (valid - 1).clamp(min=1)).clamp(min=0)",
            "test_the_variance_over_the_views_is_the_biased_one"),
        "mean over all views": Wrong(
            "valid = mask.sum(2)[..., None].clamp(min=1)", "valid = mask.shape[2]",
            "test_the_cross_view_mean_and_variance_run_over_the_valid_views_only"),
        "jitter ignored": Wrong(
            "inside = torch.full((R, count), 0.5, device=z.device) if jitter is None else jitter",
            "inside = torch.full((R, count), 0.5, device=z.device)",
            "test_jitter_moves_a_fine_sample_within_its_stratum"),
        "gradient through the samples": Wrong(
            "z, weights = z.detach(), weights.detach()", "", "test_fine_samples_carry_no_gradient"),
        "a sample hides itself": Wrong(
            "before = F.pad(thickness[:, :-1].cumsum(1), (1, 0))", "before = thickness.cumsum(1)",
            "test_an_opaque_sample_renders_exactly_itself"),
        "lengths ignored": Wrong(
            "thickness = sigma * delta", "thickness = sigma",
            "test_constant_density_matches_the_closed_form")},
    "07": {
        "unlabelled is a class": Wrong(
            'F.cross_entropy(logits, labels, ignore_index=data.IGNORE, reduction="sum")',
            'F.cross_entropy(logits, labels.clamp(min=0), reduction="sum")',
            "test_unlabelled_pixels_are_ignored"),
        "mean over all rays": Wrong(
            "total / (labels != data.IGNORE).sum().clamp(min=1)", "total / len(labels)",
            "test_the_mean_runs_over_the_labelled_rays_alone"),
        "0 / 0": Wrong(
            "(labels != data.IGNORE).sum().clamp(min=1)", "(labels != data.IGNORE).sum()",
            "test_a_batch_without_labels_has_a_finite_loss"),
        "fine level alone": Wrong(
            'sum(cross_entropy(level["logits"], labels) for level in result.values())',
            'cross_entropy(result["fine"]["logits"], labels)', "test_both_levels_count_in_both_losses")},
    "08": {
        "rows and columns swapped": Wrong(
            "cells = truth[labelled] * (classes + 1) + answers[labelled]",
            "cells = answers[labelled] * (classes + 1) + truth[labelled]",
            "test_the_rows_of_a_confusion_matrix_are_the_truth"),
        "unlabelled counted": Wrong(
            "labelled = truth != data.IGNORE", "labelled, truth = truth >= -1, truth.clamp(min=0)",
            "test_unlabelled_truth_is_left_out_and_an_unlabelled_answer_is_wrong"),
        "intersection counted twice": Wrong(
            "(truth + answered - hit)", "(truth + answered)", "test_the_union_counts_a_right_pixel_once"),
        "mean over all classes": Wrong(
            "iou[present].mean()", "iou.mean()",
            "test_a_class_that_the_truth_has_none_of_is_not_in_the_mean"),
        "absolute error": Wrong(
            "torch.log10(F.mse_loss(image, truth)", "torch.log10(F.l1_loss(image, truth)",
            "test_psnr_of_a_known_error"),
        "mean not subtracted": Wrong(
            "xx - mx * mx, yy - my * my, xy - mx * my", "xx, yy, xy",
            "test_ssim_equals_a_loop_over_windows")},
    "09": {
        "position left out": Wrong(
            "torch.cat([x, torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(-2)], dim=-1)",
            "torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(-2)",
            "test_the_encoding_begins_with_the_position_itself"),
        "frequencies even, not doubled": Wrong(
            "octaves = 2.0 ** torch.arange(", "octaves = 1 + torch.arange(",
            "test_each_octave_is_twice_as_fast_as_the_one_before"),
        "sine and cosine swapped": Wrong(
            "[angle.sin(), angle.cos()]", "[angle.cos(), angle.sin()]",
            "test_the_sines_of_an_octave_come_before_its_cosines")},
}


def run_pytest(arguments: list[str], folder: Path) -> None:
    """What a forked process does; its output is folder/output.txt."""
    os.chdir(REPO)
    log = os.open(folder / "output.txt", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1), os.dup2(log, 2)
    raise SystemExit(pytest.main(arguments))


def outcomes(name: str, text: str, folder: Path, tests: str = "") -> dict[str, list[str]]:
    """A stage's tests, or this one alone, on a student's file of this text -> each function's failures."""
    folder.mkdir()
    (folder / f"{name}.py").write_text(text)
    arguments = [f"tests/test_{name}.py", "--mine", f"--exercises={folder}", f"--junitxml={folder / 'xml'}",
                 "-m", "not slow", "-q", "-p", "no:cacheprovider", f"--basetemp={folder / 'temp'}",
                 *(["-k", tests] if tests else [])]
    process = multiprocessing.get_context("forkserver").Process(target=run_pytest, args=[arguments, folder])
    process.start()
    process.join()
    assert (folder / "xml").exists(), (folder / "output.txt").read_text()
    found: dict[str, list[str]] = {}
    for case in ElementTree.parse(folder / "xml").iter("testcase"):
        bad = [str(part.get("message")) + str(part.text) for part in case if part.tag in ("failure", "error")]
        found.setdefault(case.get("name").split("[")[0], []).extend(bad)
    assert found, (folder / "output.txt").read_text()
    return found


def check(number: str, folder: Path) -> list[str]:
    """Everything about a stage -> what is not as it should be, a line each."""
    path, problems = exercise.stages()[number], []
    name, text = path.stem, path.read_text()
    empty = outcomes(name, exercise.without_bodies(text, f"tests/test_{name}.py"), folder / "empty")
    for function in exercise.exercises(text):
        if not any(f"NotImplementedError: {function.name}: " in message
                   for messages in empty.values() for message in messages):
            problems.append(f"{name}: no test fails where {function.name} has no body")
    full = outcomes(name, text, folder / "full")
    problems += [f"{name}: {test} fails with the bodies back: {bad[0][-300:]}"
                 for test, bad in full.items() if bad]
    for i, (what, (right, wrong, test)) in enumerate(WRONG[number].items()):
        assert text.count(right) == 1, f"{name}: {text.count(right)} times {right}"
        if not outcomes(name, text.replace(right, wrong), folder / f"wrong{i}", test)[test]:
            problems.append(f"{name}: {what}: {test} passes")
    failed = [sum(map(bool, found.values())) for found in (empty, full)]
    print(f"{name}: {failed[0]} of {len(empty)} tests fail without the bodies, {failed[1]} with them; "
          f"{len(WRONG[number])} wrong solutions; {len(problems)} problems", flush=True)
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stages", nargs="*", help="numbers of stages [all]")
    stages = parser.parse_args().stages or list(exercise.stages())
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(REPO), str(REPO / "tests")])}
    multiprocessing.get_context("forkserver").set_forkserver_preload(["forks", "08_eval", "pytest"])
    with tempfile.TemporaryDirectory() as work, ThreadPoolExecutor(2) as pool:
        for stage in stages:
            (Path(work) / stage).mkdir()
        problems = sum(pool.map(check, stages, [Path(work) / stage for stage in stages]), [])
    print("\n".join(problems))
    raise SystemExit(bool(problems))


if __name__ == "__main__":
    main()
