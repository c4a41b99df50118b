#!/usr/bin/env bash
# Distils nano's students on one GPU with about 16 CPU cores, beside one another: from the pipeline in MODEL to adapters in OUT/turbo-4, ...
#
#   examples/nano/turbo.sh MODEL OUT [MINUTES] [key=value ...]
#
# With `method=flow_map` and STUDENTS=4, one student of any number of steps, 4 by default.
# MINUTES are the training's (4 by default). Features are made in OUT/features first, in about half a minute, unless they are there.
set -u
MODEL=$1 OUT=$2 MINUTES=${3:-4}
PYTHON=${PYTHON:-python3} STUDENTS=${STUDENTS:-4 2 1} CLIPS=${CLIPS:-8192} SHARD=${SHARD:-512} WORKERS=${WORKERS:-11}
BATCH=${BATCH:-256} RATE=${RATE:-0.003}
HERE=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$OUT/logs"
# Matrix products in TF32: nano is bound by the launch of kernels, and the casts of bfloat16 would add some.
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false NVIDIA_TF32_OVERRIDE=1

if [ ! -f "$OUT/features/manifest.json" ]; then
  for i in $(seq 0 $((WORKERS - 1))); do
    "$PYTHON" "$HERE/../cache_features.py" --parts "$MODEL" --output "$OUT/features" --clips "$CLIPS" --clips-per-shard "$SHARD" --seed 3 \
      --verb-shares hit=0.35 --worker "$i" --num-workers "$WORKERS" > "$OUT/logs/features-$i.log" 2>&1 &
  done
  wait
fi
for steps in $STUDENTS; do
  "$PYTHON" "$HERE/../train_distillation.py" "$HERE/../configs/nano/distillation.yaml" model="$MODEL" features="$OUT/features" \
    output="$OUT/turbo-$steps" student_steps="$steps" trainer.run_dir="$OUT/distillation-$steps" trainer.max_minutes="$MINUTES" \
    trainer.batch_size="$BATCH" trainer.learning_rate="$RATE" trainer.num_workers=4 trainer.log_every=20 \
    trainer.checkpoint_minutes=null trainer.checkpoint_every=100000 "trainer.trackers=[]" "${@:4}" > "$OUT/logs/turbo-$steps.log" 2>&1 &
done
wait
tail -n 2 "$OUT"/logs/turbo-*.log
