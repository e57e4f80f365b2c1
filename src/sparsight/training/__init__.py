"""Learning a predictor: reading text, showing it to the frozen model, distilling what its attention looks at."""

from .adaptive import calibrate_adaptive
from .loop import TrainingConfig, TrainingRun, train
from .predictor import train_predictor
from .text import Document, hash_documents, overlap, read_documents, shingles, split_held_out, token_stream

__all__ = [
    "Document",
    "TrainingConfig",
    "TrainingRun",
    "calibrate_adaptive",
    "hash_documents",
    "overlap",
    "read_documents",
    "shingles",
    "split_held_out",
    "token_stream",
    "train",
    "train_predictor",
]
