"""Does it matter where a threshold is centred? A feed-forward part without a gate, whose activations lie near the least value of GELU.

    python -m benchmarks.activation_sparsity.gelu

No trained model of this shape can be had from a package index, so a small one is trained first: OPT's shape with GELU, 3 layers of 128 channels
and 512 neurons, on the bytes of the text that comes with the package, once, in minutes. SCAP cuts the inputs of `down` around zero, their
median and the peak of their density. Scored on `wikitext-2/test.raw.txt`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from sparsight.errors import TextError
from sparsight.evaluation.activations import evaluate_activations
from sparsight.evaluation.units import UnitProtocol
from sparsight.models import load
from sparsight.report.activation_table import activation_table
from sparsight.training import read_documents
from sparsight.training.activations import ActivationCalibration, calibrate_activations
from sparsight.training.shipped_text import shipped_documents
from sparsight.training.text import token_stream

from .__main__ import RESULTS, TEXT

LENGTH, BATCH, STEPS, RATE = 128, 16, 3000, 2e-3
SHARES = (0.3, 0.5, 0.7)


def main() -> int:
    """Train the model if it is not there, and score what can be cut."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", type=Path, default=Path("build/gelu-opt"), help="folder of the trained model (default: %(default)s)")
    args = parser.parse_args()
    if not (args.model / "config.json").exists():
        train(args.model)
    if not (args.data / TEXT).exists():
        raise TextError(f"{args.data / TEXT} is missing; give the folder that holds {TEXT} with --data")
    loaded = load(args.model, dtype=torch.float32)
    methods = {}
    for share in SHARES:
        for name, settings in variants().items():
            config = ActivationCalibration(share, windows=32, length=LENGTH)
            methods[f"{name} {share:g}"] = calibrate_activations(loaded, "scap", config=config, settings=settings)
    result = evaluate_activations(
        loaded, methods, read_documents([args.data / TEXT]), UnitProtocol(LENGTH, 96), result=RESULTS / "gelu.json",
        progress=lambda done, total, note: print(f"{done}/{total}", file=sys.stderr, flush=True),
    )  # fmt: skip
    Console(width=120).print(activation_table(result["rows"]))
    return 0


def variants() -> dict[str, dict[str, str]]:
    """SCAP's centres, on `down` alone."""
    return {f"scap {centre}": {"centre": centre, "matrices": "down"} for centre in ("zero", "median", "mode")}


def train(folder: Path) -> None:
    """A small language model of bytes."""
    torch.manual_seed(0)
    vocabulary = {letter: i + 2 for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))} | {"<s>": 0, "</s>": 1}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    config = OPTConfig(
        vocab_size=len(vocabulary), hidden_size=128, num_hidden_layers=3, ffn_dim=512, num_attention_heads=4, max_position_embeddings=512,
        activation_function="gelu", word_embed_proj_dim=128, dropout=0.0, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    model = OPTForCausalLM(config)
    stream = torch.from_numpy(token_stream(shipped_documents()[::8], wrapped)[0])
    optimiser = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, STEPS, pct_start=0.1)
    started = time.monotonic()
    for step in range(STEPS):
        at = torch.randint(len(stream) - LENGTH - 1, (BATCH,))
        ids = torch.stack([stream[a : a + LENGTH] for a in at])
        loss = model(ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step(), schedule.step(), optimiser.zero_grad()
        if step % 50 == 0:
            print(f"step {step}: loss {loss:.3f}, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    model.eval().save_pretrained(folder)
    wrapped.save_pretrained(folder)


if __name__ == "__main__":
    sys.exit(main())
