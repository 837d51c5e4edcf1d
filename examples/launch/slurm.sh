#!/usr/bin/env bash
# One worker per node, with all its GPUs; submit with `sbatch slurm.sh`.
#SBATCH --job-name=align
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
# Send SIGTERM two minutes before the time limit, to save a checkpoint.
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail

# DATA, WORKDIR and VOCABULARY are on a disk that all nodes share.
export DATA=${DATA:-/shared/packed} WORKDIR=${WORKDIR:-/shared/run}
export VOCABULARY=${VOCABULARY:-/shared/vocabulary.txt}
WORKERS=$(scontrol show hostnames "$SLURM_JOB_NODELIST" |
    sed 's/.*/"&:12345"/' | paste -sd, -)
export WORKERS

srun bash -c '
export TF_CONFIG="{\"cluster\": {\"worker\": [$WORKERS]},
    \"task\": {\"type\": \"worker\", \"index\": $SLURM_PROCID}}"
exec align-keras train --preset align_b7_bert_base --recipe align \
    --data "$DATA" --workdir "$WORKDIR" --vocabulary "$VOCABULARY" \
    --strategy multi-worker
' || status=$?
# If a worker dies, all restart from the last checkpoint. Status 2 means that the
# command was wrong, so it would fail again.
case ${status:=0} in
0 | 2) exit "$status" ;;
*) scontrol requeue "$SLURM_JOB_ID" ;;
esac
