#!/usr/bin/env bash
# Trains nano on, on one GPU with about 16 CPU cores, parts beside one another: from the weights of PARTS to components in OUT/export.
#
#   examples/nano/train.sh PARTS OUT [MINUTES]
#
# PARTS holds a pipeline (model_cards/baton-nano), a `tokenizer` and a `planner_tokenizer`, and may hold a `pool` of coded clips
# (coded_clips.py). MINUTES is about the time of the whole (7 by default); 0.1 is a rehearsal.
set -u
PARTS=$1 OUT=$2 MINUTES=${3:-7}
PYTHON=${PYTHON:-python3} CLIPS=${CLIPS:-16384} SHARD=${SHARD:-512} WORKERS=${WORKERS:-9} BATCH=${BATCH:-128} PRECISION=${PRECISION:-no}
HERE=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$OUT/logs" "$OUT/export"
# Matrix products in TF32: nano is bound by the launch of kernels, and the casts of bfloat16 would add some.
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false NVIDIA_TF32_OVERRIDE=1
share() { "$PYTHON" -c "print(max(0.03, $1 * $MINUTES))"; }
start=$(date +%s)
log() { echo "[$(($(date +%s) - start)) s] $*" | tee -a "$OUT/logs/train.log"; }
run() { # name, command...
  local name=$1; shift
  log "$name starts"
  "$@" > "$OUT/logs/$name.log" 2>&1 && log "$name is done" || log "$name FAILED: $(tail -c 400 "$OUT/logs/$name.log" | tr '\n\r' '  ')"
}
pool() { [ -d "$PARTS/pool" ] && echo "pool=$PARTS/pool" || echo "pool=null"; }
common="trainer.checkpoint_every=1000000 trainer.checkpoint_minutes=null trainer.steps=10000000 trainer.trackers=[]"

# 1. Features of many clips, by many processes on one GPU
features() {
  local pids=() i
  for i in $(seq 0 $((WORKERS - 1))); do
    "$PYTHON" "$HERE/../cache_features.py" --parts "$PARTS" --output "$OUT/features" --clips "$CLIPS" --clips-per-shard "$SHARD" --seed 3 \
      --verb-shares hit=0.35 --worker "$i" --num-workers "$WORKERS" > "$OUT/logs/features-$i.log" 2>&1 &
    pids+=($!)
  done
  wait "${pids[@]}"
  test -f "$OUT/features/manifest.json"
}
run features features & features_pid=$!

# 2. Beside it: the reader, and codecs that hear and see the real world
run reading "$PYTHON" "$HERE/reading.py" "$HERE/reading.yaml" $common tokenizer="$PARTS/tokenizer" output="$OUT/export" initial="$PARTS" \
  trainer.optimizer=muon trainer.learning_rate=2e-3 position_learning_rate=0.006 trainer.warmup_steps=50 trainer.decay_fraction=0.6 \
  trainer.run_dir="$OUT/reading" trainer.batch_size=64 trainer.num_workers=4 evaluation_scenes=200 \
  trainer.max_minutes=$(share 0.25) & reading_pid=$!
run audio_vae "$PYTHON" "$HERE/robust_codecs.py" audio "$HERE/robust_audio.yaml" $common audio_vae="$PARTS/audio_vae" \
  vocoder="$PARTS/vocoder" export="$OUT/export/audio_vae" "$(pool)" trainer.run_dir="$OUT/audio_vae" trainer.batch_size=32 \
  trainer.num_workers=2 trainer.optimizer=muon trainer.learning_rate=2e-3 trainer.max_minutes=$(share 0.5) train_decoder=true \
  "model={channel_multipliers: [1, 2, 2], hidden_channels: 64, hop_length: 256, latent_channels: 16, layers_per_block: 1, mel_bins: 64, n_fft: 1024, sample_rate: 16000}" \
  "verb_shares={bounce: 0.25, ring: 0.35}" & audio_pid=$!
run vae "$PYTHON" "$HERE/robust_codecs.py" video "$HERE/robust_video.yaml" $common vae="$PARTS/vae" export="$OUT/export/vae" \
  "$(pool)" trainer.run_dir="$OUT/vae" trainer.batch_size=16 trainer.num_workers=1 trainer.max_minutes=$(share 0.4) &

# 3. The transformer under the planner's plans, reading with the new encoder; beside it the planner
wait $features_pid $reading_pid
run transformer "$PYTHON" "$HERE/../train_transformer.py" "$HERE/../configs/nano/transformer_stage3.yaml" $common features="$OUT/features" data_seed=3 \
  "verb_shares={hit: 0.35}" initial="$PARTS" initial_text_encoder="$OUT/export/text_encoder" train_text_encoder=false tokenizer="$PARTS/tokenizer" \
  planner="$PARTS/planner" planner_tokenizer="$PARTS/planner_tokenizer" vae="$PARTS/vae" audio_vae="$PARTS/audio_vae" \
  transformer.ffn_dim=440 transformer.audio_ffn_dim=440 \
  trainer.optimizer=muon trainer.learning_rate=7e-4 trainer.warmup_steps=30 trainer.decay_fraction=0.7 trainer.ema_decay=0.998 motion_weight=5 given_share=0.2 \
  plan_dropout=0.1 joint_dropout=0.08 cue_dropout=0.15 independent_timesteps=0.15 reference_share=0.1 \
  "task_weights={joint: 0.6, a2v: 0.07, v2a: 0.21, t2v: 0.03, t2a: 0.03, mute: 0.03, static: 0.03}" \
  trainer.run_dir="$OUT/transformer" trainer.batch_size=$BATCH trainer.num_workers=6 trainer.mixed_precision=$PRECISION \
  trainer.compile=false trainer.max_minutes=$(share 0.66) & transformer_pid=$!
run planner "$PYTHON" "$HERE/../train_planner.py" "$HERE/../configs/nano/planner.yaml" $common initial="$PARTS/planner" tokenizer="$PARTS/planner_tokenizer" \
  video_semantic_encoder="$PARTS/video_semantic_encoder" audio_semantic_encoder="$PARTS/audio_semantic_encoder" \
  features="$OUT/features" data_seed=3 "verb_shares={hit: 0.35}" output="$OUT/export/planner" trainer.run_dir="$OUT/planner" \
  trainer.batch_size=32 cue_texts=256 "cue_tier_weights={simple: 1, medium: 2, complex: 5}" trainer.optimizer=muon \
  trainer.learning_rate=1.5e-3 trainer.warmup_steps=50 trainer.decay_fraction=0.6 evaluation_scenes=0 trainer.num_workers=5 \
  trainer.mixed_precision=$PRECISION trainer.max_minutes=$(share 0.6) & planner_pid=$!

run plan_decoders "$PYTHON" "$HERE/plan_decoders.py" "$HERE/../configs/nano/plan_decoders.yaml" $common features="$OUT/features" data_seed=3 \
  "verb_shares={hit: 0.35}" audio_vae="$PARTS/audio_vae" planner="$PARTS/planner" planner_tokenizer="$PARTS/planner_tokenizer" \
  output="$OUT/export" trainer.run_dir="$OUT/plan_decoders" trainer.batch_size=32 trainer.num_workers=3 \
  trainer.max_minutes=$(share 0.4) &

# 4. The vocoder, on the new decoder's spectrograms
wait $audio_pid
run vocoder "$PYTHON" "$HERE/train_codecs.py" vocoder "$HERE/../configs/nano/vocoder.yaml" $common initial="$PARTS/vocoder" audio_vae="$OUT/export/audio_vae" \
  export="$OUT/export/vocoder" trainer.run_dir="$OUT/vocoder" trainer.batch_size=16 trainer.num_workers=2 \
  "verb_shares={ring: 0.45}" trainer.max_minutes=$(share 0.3) &
wait
log "all is done"
