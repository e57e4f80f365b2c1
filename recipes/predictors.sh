#!/usr/bin/env bash
# Makes the shipped predictors of SmolLM2-135M again, from the text that ships with the package. About 25 minutes on
# 2 cores; run it again after an interruption and it goes on where it was.
set -euo pipefail
out="${1:-src/sparsight/predictors}"
for method in lowrank foresight butler; do
  sparsight train --model smollm2-135m --method "$method" --seed 0 --resume --out "$out/smollm2-135m-$method"
done
