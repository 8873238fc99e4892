#!/bin/bash
# One run on several machines under SLURM: sbatch launch/slurm.sh RECIPE [KEY=VALUE]...
# When the time is up, or a machine fails, the same command resumes from the last checkpoint.
#SBATCH --job-name=expunge
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@300  # torchrun hands it on: the run saves after its step and stops
#SBATCH --requeue
#SBATCH --output=%x-%j.log

set -euo pipefail

# Every machine must see the same files: recipe, rows, runs and cache lie in a shared folder.
export EXPUNGE_CACHE="${EXPUNGE_CACHE:-$SLURM_SUBMIT_DIR/cache}"
export HF_HOME="${HF_HOME:-$SLURM_SUBMIT_DIR/huggingface}"
# Compute nodes often have no internet: fetch the model beforehand, `hf download ORG/MODEL`, where there is some.
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_JOB_NUM_NODES" \
  --nproc_per_node "${SLURM_GPUS_ON_NODE:-8}" \
  --rdzv_id "$SLURM_JOB_ID" \
  --rdzv_backend c10d \
  --rdzv_endpoint "$first:29500" \
  -m expunge.cli.main unlearn "$@"
