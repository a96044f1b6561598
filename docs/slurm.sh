#!/bin/bash
# UniIR's large CLIP-SF on M-BEIR: sbatch docs/slurm.sh ROOT OUT [further settings]
# One task per GPU; srun starts them all, Lightning reads rank and address from Slurm.
#SBATCH --job-name=clip_sf_large
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=400G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
root=$1 out=$2
shift 2

# A job that was stopped and queued again goes on in the middle of the epoch.
resume=()
if [ -f "$out/checkpoints/latest.ckpt" ]; then
  resume=(--ckpt_path="$out/checkpoints/latest.ckpt")
fi
srun python -m retrievers fit --config clip_sf_large --data.root="$root" --out="$out" \
  --trainer.num_nodes="$SLURM_NNODES" --trainer.devices="$SLURM_NTASKS_PER_NODE" \
  "${resume[@]}" "$@"
