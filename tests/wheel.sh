#!/usr/bin/env bash
# The built wheel, installed alone in an empty environment outside the checkout, makes texts, trains
# on them and tests. usage: bash tests/wheel.sh PYTHON (of an environment that has the toolkit)
set -euo pipefail
python=$1
home=$(cd "$(dirname "$0")/.." && pwd)
[[ $python == /* ]] || python=$home/$python
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$home"

"$python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$work" .
rm -rf build
"$python" -m benchmarks.flagland --out "$work/root" --countries 200 --seed 3
"$python" -m venv "$work/venv"
# The locked versions, of what the wheel itself asks for.
sed -E 's/ *\\$//; /^ +--hash/d' requirements.lock > "$work/versions.txt"
"$work/venv/bin/python" -m pip install --quiet uv || true
if [ -x "$work/venv/bin/uv" ]; then install=("$work/venv/bin/uv" pip install --python "$work/venv/bin/python")
else install=("$work/venv/bin/python" -m pip install); fi
"${install[@]}" --quiet -c "$work/versions.txt" "$work"/*.whl

cd "$work"
unset PYTHONPATH
run=("$work/venv/bin/python" -m)
"${run[@]}" augment.corpus --root root --store texts --model flagland-vlm
"${run[@]}" augment.queries --root root --store texts --model flagland-vlm
views=(--data.query.view=replace --data.query.store=texts
       --data.corpus.view=append --data.corpus.store=texts)
"${run[@]}" retrievers fit --config flagland --data.root=root "${views[@]}" --out=run \
  --trainer.max_steps=4 --data.batch_size=16 --trainer.enable_progress_bar=false
"${run[@]}" retrievers test --config flagland --data.root=root "${views[@]}" --out=tested \
  --ckpt_path=run/checkpoints/last.ckpt --trainer.enable_progress_bar=false
test -s tested/metrics.json
echo "the wheel alone enriched, trained and tested"
