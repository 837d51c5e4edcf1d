#!/usr/bin/env bash
# Create a TPU VM with one host, train on it, and delete it: `bash tpu_vm.sh`.
set -euo pipefail

NAME=${NAME:-align} ZONE=${ZONE:-us-east5-b} TYPE=${TYPE:-v6e-8}
BUCKET=${BUCKET:?an address such as gs://bucket}

gcloud compute tpus tpu-vm create "$NAME" --zone "$ZONE" \
    --accelerator-type "$TYPE" --version v2-alpha-tpuv6e
trap 'gcloud compute tpus tpu-vm delete "$NAME" --zone "$ZONE" --quiet' EXIT

# Current TPUs need JAX. If you run this again, training resumes from the bucket.
gcloud compute tpus tpu-vm ssh "$NAME" --zone "$ZONE" --command "
pip install 'align-keras[jax,stores]' 'jax[tpu]'
export KERAS_BACKEND=jax
align-keras train --preset align_b7_bert_base --recipe align \
    --data '$BUCKET/packed/*.tfrecord' --workdir '$BUCKET/run' \
    --vocabulary '$BUCKET/vocabulary.txt'
"
