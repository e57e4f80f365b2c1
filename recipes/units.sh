#!/usr/bin/env bash
# The artifacts of heads and neurons for SmolLM2-135M: those that ship with the package, and those that benchmarks/contextual_sparsity compares them
# with. All are made from the text that ships; half an hour.    bash recipes/units.sh DIR
set -euo pipefail
out=${1:?give a folder to write to}
mkdir -p "$out"
train() { [ -e "$out/$1/config.json" ] || sparsight train --out "$out/$1" --method "${@:2}"; }

# One thread: small matrices are computed no faster with two.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
sparsight trace --criterion l2 griffin --examples 768 --out "$out/trace" --resume
sparsight trace --criterion plainact --examples 256 --out "$out/trace-plainact" --resume
train static static --trace "$out/trace"
train static-plainact static --trace "$out/trace-plainact"
train gated gated
train gated-up-0 gated --set rank=0
train gated-gate-24 gated --set first=gate
train gated-gate-0 gated --set first=gate rank=0
train shadow-prompt shadow --trace "$out/trace" --set mode=prompt
train dejavu-prompt dejavu --trace "$out/trace" --set mode=prompt
train dejavu-token dejavu --trace "$out/trace" --steps 250
train shadow-token shadow --trace "$out/trace" --steps 250
