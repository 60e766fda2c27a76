#!/usr/bin/env bash
# The main job on the embedded data: pretrain with and without the equivariant task, evaluate both, print the table. Minutes on two CPU cores.
# Usage: bash scripts/quickstart.sh [OUTPUT_DIR]. An interrupted run goes on where it was.
set -euo pipefail
output=$(realpath -m "${1:-outputs/quickstart}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_venv.sh train
export HF_HUB_OFFLINE=1 # nothing here needs the network
started=$SECONDS

echo "1/3  Pretraining with the equivariant task (rotation)"
.venv/bin/python scripts/pretrain.py \
  --output_dir "$output/equivariant" --resume_from_checkpoint latest
echo "2/3  The same without it (reconstruction weight 0), to compare"
.venv/bin/python scripts/pretrain.py \
  --output_dir "$output/baseline" --recon_weight 0 --resume_from_checkpoint latest
echo "3/3  What do the features know? R2 of the rotation angle (1 is perfect, 0 is guessing), and nearest neighbours' accuracy"
.venv/bin/python scripts/evaluate.py --model "$output/equivariant/model" "$output/baseline/model" --task r2 knn --pooling cls_mean --head mlp \
  --max_samples 2048 --max_test_samples 1024 \
  --output "$output/results.json"

cat <<MSG

paper:  the rotated image shows empty corners.   strict: real pixels fill them, nothing but the content tells the angle.
Done in $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s.
Reconstructions: $output/equivariant/samples/     Report: $output/results.html     Model: $output/equivariant/model
MSG
