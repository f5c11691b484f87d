"""The numbers of tools/attention.py: what is on disk, differences paired by room and seed, power, the table.

Test: pytest tests/test_tool_attention.py
"""
import math
import statistics
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from support.files import DataError, read_json, write_atomically
from tools.variants import ROWS, Variant

training = import_module("07_train")           # Config

CONTROL = "mlp"         # what every row is compared with
NOTE = """mIoU in percent, of each room's 4 test views in one confusion matrix; mean over rooms, ± standard
deviation over seeds. The difference is the mean over pairs of one room and one seed. [95% interval] takes the
pairs as independent; the ± behind it is half of the 95% interval when a seed, its mean over rooms, is one
observation. Parameters: of one level, between M and M''."""


# ------------------------------------------------------------------------------------------------- statistics

def t_quantile(p: float, df: int) -> float:
    """Student's t with df degrees of freedom at probability p in (0.5, 1): Abramowitz and Stegun, 26.7.3-4,
    inverted by bisection."""
    def inside(t: float) -> float:
        """P(|T| < t)"""
        angle = math.atan(t / math.sqrt(df))
        odd = df % 2
        total = term = math.cos(angle) if odd else 1.0
        for i in range(2 + odd, df, 2):
            term *= (i - 1) / i * math.cos(angle) ** 2
            total += term
        total *= math.sin(angle)
        return 2 / math.pi * (angle + (total if df > 1 else 0.0)) if odd else total
    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < 2 * p - 1 else (low, middle)
    return (low + high) / 2


class Paired(NamedTuple):
    """Differences between two rows, paired by room and seed."""
    count: int           # pairs
    mean: float
    deviation: float     # standard deviation of the pairs
    half: float          # of the 95% interval, pairs taken as independent
    seeds: int
    half_of_seeds: float     # of the 95% interval when a seed, its mean over rooms, is one observation


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95% interval; NaN of fewer than two values."""
    n = len(values)
    half = t_quantile(0.975, n - 1) * statistics.stdev(values) / math.sqrt(n) if n > 1 else math.nan
    return statistics.mean(values), half


def paired(one: dict, other: dict) -> Paired | None:
    """{(room, seed): mIoU} of two rows -> their difference over the pairs that both have; None without any.

    Rooms of one seed share a training, so pairs are not independent; the interval over seeds is the one to
    believe where the two differ."""
    pairs = {key: one[key] - other[key] for key in one if key in other}
    if not pairs:
        return None
    seeds = sorted({seed for _, seed in pairs})
    by_seed = [statistics.mean(x for (_, seed), x in pairs.items() if seed == s) for s in seeds]
    mean, half = interval([*pairs.values()])
    deviation = statistics.stdev(pairs.values()) if len(pairs) > 1 else math.nan
    return Paired(len(pairs), mean, deviation, half, len(seeds), interval(by_seed)[1])


def smallest(deviation: float, count: int, power: float = 0.8) -> float:
    """The smallest true difference that `count` pairs of this standard deviation find at 95% in `power` of
    all experiments."""
    return (t_quantile(0.975, count - 1) + t_quantile(power, count - 1)) * deviation / math.sqrt(count)


def null_deviation(scores: dict) -> float:
    """{(room, seed): mIoU} of one row -> the standard deviation of a difference between two of its trainings
    in one room, where nothing differs but the seed. What a pair of rows can have by chance, said before."""
    rooms = {room for room, _ in scores}
    by_room = [[x for (room, _), x in scores.items() if room == name] for name in rooms]
    variances = [statistics.variance(values) for values in by_room if len(values) > 1]
    return math.sqrt(2 * statistics.mean(variances)) if variances else math.nan


# -------------------------------------------------------------------------------------------------- the table

class Results(NamedTuple):
    """All runs on disk: of a setting ("generalise", "finetune") and a variant {(room, seed): metrics}; what
    the other commands recorded, by name."""
    runs: dict[tuple[str, Variant], dict]
    others: dict[str, dict]


def read_results(out: Path) -> Results:
    """results/attention/*.json. DataError where runs of one setting differ in more than row, tau and seed."""
    found, others, alike = {}, {}, {}
    for path in sorted(out.glob("*.json")):
        kind, run = path.stem.split("-")[0], read_json(path)
        if kind in ("generalise", "finetune"):
            variant = Variant(run["row"], run["join"], run["true_depth"], run["tau"])
            shared = {k: v for k, v in run["settings"].items() if k not in ("cra", "tau", "seed")}
            first, settings = alike.setdefault(kind, (path.name, shared))
            if shared != settings:
                raise DataError(f"{path}: other settings than in {first}; give it an --out of its own")
            rows = found.setdefault((kind, variant), {})
            rows.update({(room, run["seed"]): metrics | {"seconds": run["train_seconds"]}
                         for room, metrics in run["rooms"].items()})
        elif kind in ("probe", "look"):
            others[path.stem] = run
    return Results(found, others)


def scores(results: Results, kind: str, variant: Variant, key: str = "miou") -> dict:
    """{(room, seed): mIoU}"""
    rows = results.runs.get((kind, variant), {})
    return {where: metrics[key] for where, metrics in rows.items() if metrics[key] is not None}


def over_seeds(values: dict) -> str:
    """Mean ± standard deviation over seeds of the mean over rooms."""
    seeds = sorted({seed for _, seed in values})
    means = [statistics.mean(x for (_, seed), x in values.items() if seed == s) for s in seeds]
    if not means:
        return "not run"
    return f"{statistics.mean(means):.2f}" + (f" ± {statistics.stdev(means):.2f}" if len(means) > 1 else "")


def control_of(results: Results, kind: str, variant: Variant) -> Variant:
    """What a row is compared with: of another tau the same row at the usual one; of a diagnostic the control
    with the same diagnostic, where that has been run; else the control."""
    if variant.tau != Variant.tau:
        return replace(variant, tau=Variant.tau)
    told = replace(variant, row=CONTROL)
    return told if scores(results, kind, told) else Variant(CONTROL)


def difference(results: Results, kind: str, variant: Variant) -> str:
    """mIoU less the control's: mean, 95% interval of the pairs, and with seeds as observations."""
    control = control_of(results, kind, variant)
    if variant == control:
        return "control"
    found = paired(scores(results, kind, variant), scores(results, kind, control))
    if not found:
        return "-"
    beside = f" against {control.label}" * (control != Variant(CONTROL))
    seeds = "one seed" if found.seeds == 1 else f"± {found.half_of_seeds:.2f}, {found.seeds} seeds"
    return (f"{found.mean:+.2f}{beside} [{found.mean - found.half:+.2f}, {found.mean + found.half:+.2f}], "
            f"{found.count} pairs; {seeds}")


def variants_in(results: Results) -> list[Variant]:
    """The rows of the table: every plain one, run or not, then the diagnostics that were run."""
    plain = [Variant(row) for row in ROWS]
    return plain + sorted({v for _, v in results.runs} - set(plain), key=lambda v: v.label)


def parameters(variant: Variant) -> int:
    """How many a level has between M and M''."""
    level = variant.level(None)(training.Config(cra=ROWS[variant.row][1]), 20)
    parts = [level.cra] + ([level.join] if variant.join else [])
    return sum(p.numel() for part in parts for p in part.parameters())


def table(out: Path) -> None:
    """Write and print OUT/table.md."""
    results, lines = read_results(out), []
    less = f"mIoU less {CONTROL}'s"
    head = ["row", "parameters", "generalisation: mIoU", "total acc", less,
            "fine-tuned: mIoU", "total acc", less]
    for variant in variants_in(results):
        cells = [ROWS[variant.row][0] + variant.label.removeprefix(variant.row), f"{parameters(variant):,}"]
        for kind in ("generalise", "finetune"):
            cells += [over_seeds(scores(results, kind, variant, key)) for key in ("miou", "total_acc")]
            cells.append(difference(results, kind, variant))
        lines.append(cells)
    text = "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *lines])
    parts = filter(None, [text, NOTE, probes(results), looks(results)])
    content = "\n\n".join(parts) + "\n"
    write_atomically(out / "table.md", lambda file: file.write(content.encode()))
    print(content)


def probes(results: Results) -> str:
    """What tau and uniform scores change in trained weights: mIoU, and the difference to tau as trained."""
    changed: dict[str, dict] = {}
    for name, run in results.others.items():
        for what, found in run.get("changed", {}).items():
            row = changed.setdefault(name.split("-seed")[0].removeprefix("probe-"), {}).setdefault(what, {})
            row.update({(room, run["seed"]): metrics["miou"] for room, metrics in found.items()})
    lines = ["| trained | changed at evaluation | mIoU | less tau 0.7's |", "|---|---|---|---|"]
    for row, ways in changed.items():
        for what, values in ways.items():
            found = paired(values, ways["tau 0.7"])
            lines.append(f"| {row} | {what} | {over_seeds(values)} | {found.mean:+.2f} ± {found.half:.2f} |")
    return "\n".join(lines) if changed else ""


def looks(results: Results) -> str:
    """Figure 1's numbers."""
    found: dict[tuple, dict] = {}
    for name, run in results.others.items():
        for room, scored in run.get("looking", {}).items():
            for what, ranks in scored.items():
                for of, value in ranks.items():
                    row = found.setdefault((name.split("-seed")[0].removeprefix("look-"), what), {})
                    if value is not None:
                        row.setdefault(of, {})[room, run["seed"]] = value
    lines = [f"| {row} | {what} | {over_seeds(of.get('surface', {}))} | {over_seeds(of.get('visible', {}))} |"
             for (row, what), of in found.items()]
    head = ["| trained | score | finds the surface, % of pairs | tells who sees it from whom it is hidden |",
            "|---|---|---|---|"]
    return "\n".join([*head, *lines]) if lines else ""


def power(out: Path, pairs: dict[str, int]) -> dict:
    """Say how small a difference so many pairs of a setting show: from the control's own seeds, before any
    other row is looked at; and from the pairs that there are. DataError where there is nothing to say."""
    results, said = read_results(out), {}
    for kind, count in pairs.items():
        control = scores(results, kind, Variant(CONTROL))
        deviation = null_deviation(control)
        if deviation == deviation:
            least = smallest(deviation, count)
            said[kind] = {"pairs": count, "deviation between seeds of the control": deviation,
                          "smallest difference": least}
            print(f"{kind}: two seeds of the control differ by {deviation:.2f} mIoU in a room; {count} pairs "
                  f"show differences from {least:.2f} on (power 0.8)")
        for variant in (v for v in variants_in(results) if v.row != CONTROL):
            found = paired(scores(results, kind, variant), control)
            if found and found.count > 1:
                least = smallest(found.deviation, found.count)
                said.setdefault(kind, {})[variant.label] = {
                    "pairs": found.count, "deviation": found.deviation, "smallest difference": least}
                print(f"{kind}: {variant.label}: {found.count} pairs of deviation {found.deviation:.2f} show "
                      f"differences from {least:.2f} on")
    if not said:
        raise DataError(f"{out}: no two seeds of {CONTROL} yet")
    return said
