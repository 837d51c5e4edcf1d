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
# Status 75: a worker has died, or all were stopped by SIGTERM, and all restart
# from the last checkpoint. They do not after status 2, an error that is printed, such as a wrong argument or a missing file. If only
# one worker has such an error, the others end with 75: hence the limit.
if ((${status:=0} == 0 || status == 2 || ${SLURM_RESTART_COUNT:-0} >= 20)); then
    exit "$status"
fi
scontrol requeue "$SLURM_JOB_ID"
