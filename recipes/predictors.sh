#!/usr/bin/env bash
# Makes the shipped predictors of SmolLM2-135M again, from the text that ships with the package. Less than an hour on
# 2 cores; run it again after an interruption and it goes on where it was.
set -euo pipefail
out="${1:-src/sparsight/predictors}"
for method in lowrank foresight butler; do
  sparsight train --model smollm2-135m --method "$method" --seed 0 --resume --out "$out/smollm2-135m-$method"
done
# Its loss is over all tokens, the recent ones included; rates compared on WikiText-2 valid.
sparsight train --model smollm2-135m --method butler-v1 --learning-rate 0.003 --window 1 --set rope_theta=100000 \
  --seed 0 --resume --out "$out/smollm2-135m-butler-v1"
