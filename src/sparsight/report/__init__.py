"""Results for the eye: tables in the terminal, pictures in a file."""

from .reading_map import ReadingRecorder, draw_reading_map, require_matplotlib
from .tables import evaluation_table, human_bytes

__all__ = ["ReadingRecorder", "draw_reading_map", "evaluation_table", "human_bytes", "require_matplotlib"]
