"""Learning a predictor: reading text, showing it to the frozen model, distilling what its attention looks at."""

from .loop import TrainingConfig, TrainingRun, train
from .predictor import train_predictor
from .text import Document, hash_documents, overlap, read_documents, shingles, split_held_out, token_stream
from .thresholds import calibrate_thresholds

__all__ = [
    "Document",
    "TrainingConfig",
    "TrainingRun",
    "calibrate_thresholds",
    "hash_documents",
    "overlap",
    "read_documents",
    "shingles",
    "split_held_out",
    "token_stream",
    "train",
    "train_predictor",
]
