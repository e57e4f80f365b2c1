"""Calibrate `lowrank` on a text of yours and generate with it: `python calibrate.py FILE FOLDER`."""

import sys
from pathlib import Path

import sparsight
from sparsight.training import TrainingConfig


def main(file: str, folder: str) -> None:
    loaded = sparsight.load("smollm2-135m")
    # Far too little text, for a quick look; leave the config out for a real predictor.
    config = TrainingConfig(lengths=(96,), tokens=192)
    selector = sparsight.train_predictor(loaded, "lowrank", folder, [file], config)
    plan = sparsight.Plan(selector, sparsight.Budget.parse("1/2"))
    print(sparsight.generate(loaded, Path(file).read_text(encoding="utf-8"), plan, max_new_tokens=8).text)


if __name__ == "__main__":
    main(*sys.argv[1:])
