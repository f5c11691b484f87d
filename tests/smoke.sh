#!/usr/bin/env bash
# The real commands at smoke size, as a user types them: training, evaluation, film, every table and figure.
#     bash tests/smoke.sh [PYTHON]
set -euo pipefail
repo=$(cd "$(dirname "$0")/.." && pwd)
python=${1:-python}
[[ $python == */* ]] && python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export PYTHONPATH=$repo

"$python" "$repo/07_train.py" --scene rooms --data rooms --preset smoke --out run --no-eval
"$python" "$repo/08_eval.py" --checkpoint run/checkpoint.pt --out eval
"$python" - <<'PY'
import json
metrics = json.load(open("eval/metrics.json"))
assert metrics["data"] == "rooms" and metrics["steps"] == 30 and len(metrics["images"]) == 4, metrics.keys()
PY
echo "tiny training and evaluation: passed"

# each table's and figure's recipe through the real commands; they share one folder of trainings
"$python" -m tools.tables all --preset smoke >tables.log 2>&1 || { tail -30 tables.log; exit 1; }
for table in 01 02 03 04 05 06 07 12 13; do test -s "results/table_$table.md"; done
for figure in 01 02 03 04; do test -s "results/figure_$figure.png"; done
test -s results/beyond.md
echo "tables and figures at smoke size: passed"

# the weights that come with the project, and a film
"$python" "$repo/08_eval.py" --checkpoint "$repo/weights/sray_rooms.pt" --scenes room9000_00 --preview 2 --out given
"$python" "$repo/08_eval.py" --checkpoint "$repo/weights/sray_rooms.pt" --scenes room9000_00 --video out.mp4 --frames 2
test -s out.mp4
"$python" -m tools.explore --checkpoint "$repo/weights/sray_rooms.pt" --scenes room9000_00 --out explorer.html
test -s explorer.html && test "$(wc -c <explorer.html)" -le 8000000
echo "weights, film and ray explorer: passed"
