"""llama.cpp as an engine to time, through the low-level interface of llama-cpp-python: one sequence, an F16 cache."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections import Counter, deque
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import ConfigError, ModelError
from ..models.gguf_read import check_magic, open_gguf

PIECE = 512
"""Tokens prefilled at once; llama.cpp's own default for one pass through its graph."""
FOUR_BITS = ("Q4_", "IQ4_", "MXFP4", "NVFP4")
"""Beginnings of the names of GGUF types of four bits an element, scales aside."""

_ERROR = 4  # of enum ggml_log_level
_errors: deque[str] = deque(maxlen=4)
_callback: Any = None


def import_llama_cpp() -> ModuleType:
    """The module `llama_cpp`, with its log turned off for the whole process; the last errors are kept for ours.

    Raises
    ------
    ConfigError
        If llama-cpp-python is not installed or cannot be loaded.
    """
    global _callback
    try:
        import llama_cpp
    except ImportError as error:
        raise ConfigError(
            "comparing with llama.cpp needs llama-cpp-python, which is not installed; run: pip install 'sparsight[llama-cpp]'"
        ) from error
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"llama-cpp-python cannot be loaded ({error}); build it again on this machine") from error
    if _callback is None:
        _callback = llama_cpp.llama_log_callback(_keep_errors)  # llama.cpp holds only the address
        llama_cpp.llama_log_set(_callback, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
    return llama_cpp


def _keep_errors(level: int, text: bytes, _: Any) -> None:
    if level == _ERROR and text.strip():
        _errors.append(text.decode("utf-8", "replace").strip())


def _failed(what: str, advice: str) -> ModelError:
    reason = f" ({'; '.join(_errors)})" if _errors else ""
    return ModelError(f"llama.cpp cannot {what}{reason}; {advice}")


class LlamaCpp:
    """See `sparsight.evaluation.rivals.Engine`.

    Parameters
    ----------
    llama : module
        From `import_llama_cpp`.
    path : Path
        The GGUF file.
    weights : str
        "int4", "int8" or "bf16", see `sparsight.evaluation.rivals.llama_cpp_rival`.
    threads, context : int
    flash_attention : bool

    Raises
    ------
    ModelError
        If llama.cpp cannot read or requantise the file.
    """

    def __init__(
        self, llama: ModuleType, path: Path, weights: str, threads: int, context: int, flash_attention: bool
    ) -> None:
        self._llama = llama
        self._ids: list[int] = []
        self._held = 0
        _errors.clear()
        with ExitStack() as stack:
            check_magic(path)
            tensors = _tensors(path)
            source = now = _layer_type(path, tensors)
            stored = self._requantise(stack, path, source, weights, threads)
            if stored != path:
                tensors = _tensors(stored)
                now = _layer_type(stored, tensors)
            self._open(stack, stored, threads, context, flash_attention)
            self._close = stack.pop_all()
        by_type = _bytes_read(tensors)
        self.weight_bytes = sum(by_type.values())
        self.details = {
            "llama_cpp_python": llama.__version__,
            "system": llama.llama_print_system_info().decode().strip(" |\n"),
            "threads": threads,
            "flash_attention": flash_attention,
            "file": path.name,
            "weights": f"{now}, as in the file" if stored == path else f"requantised from {source} to {now}",
            "stored": by_type,
            "kv": "F16",
        }

    def prepare(self, ids: list[int]) -> None:
        self._cut(0)
        self._ids = ids
        self.hold(len(ids))

    def hold(self, length: int) -> None:
        # The cache of a sliding window keeps only what the longest context needed.
        self._cut(0 if self._windowed and length < self._held else length)
        for start in range(self._held, length, PIECE):
            piece = self._ids[start : min(start + PIECE, length)]
            self._fill(self._many, piece, start)
            self._decode(self._many)
            self._held = start + len(piece)
        # The token of a step changes with the context only, so its batch is written here, outside what is timed.
        self._fill(self._one, self._ids[length : length + 1], length)

    def running(self) -> AbstractContextManager[None]:
        return nullcontext()

    def decode(self, token: int) -> None:
        self._one.token[0] = token
        self._decode(self._one)
        self._llama.llama_synchronize(self._context)

    def put_back(self) -> None:
        self._llama.llama_memory_seq_rm(self._memory, 0, self._held, -1)

    def logits(self) -> np.ndarray:
        found = self._llama.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(found, (self._vocab_size,)).astype(np.float32)

    def close(self) -> None:
        self._close.close()

    def _requantise(self, stack: ExitStack, path: Path, source: str, weights: str, threads: int) -> Path:
        """The file to run: `path`, or another made of it that is gone when `stack` is closed."""
        if weights == "int4" and source.startswith(FOUR_BITS):
            return path
        llama = self._llama
        wanted = {"int4": "Q4_1", "int8": "Q8_0", "bf16": "BF16"}[weights]
        params = llama.llama_model_quantize_default_params()
        params.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{wanted}")
        params.nthread, params.allow_requantize = threads, True
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sparsight-llama-cpp-"))
        made = Path(folder) / f"{path.stem}.{wanted}.gguf"
        if llama.llama_model_quantize(os.fsencode(path), os.fsencode(made), ctypes.byref(params)):
            raise _failed(f"make {wanted} of '{path.name}' in '{folder}'", "free some space there or set TMPDIR")
        return made

    def _open(self, stack: ExitStack, path: Path, threads: int, context: int, flash_attention: bool) -> None:
        llama = self._llama
        params = llama.llama_model_default_params()
        params.load_mode, params.n_gpu_layers = llama.LLAMA_LOAD_MODE_MMAP, 0
        model = llama.llama_model_load_from_file(os.fsencode(path), params)
        if not model:
            raise _failed(f"load '{path.name}'", "it may not support this architecture: leave llama.cpp out")
        stack.callback(llama.llama_model_free, model)
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = context, PIECE, PIECE, 1
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = llama.GGML_TYPE_F16
        # Off, a layer with a sliding window keeps and reads its window alone.
        params.swa_full = False
        params.flash_attn_type = (
            llama.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash_attention else llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        self._context = llama.llama_init_from_model(model, params)
        if not self._context:
            raise _failed(f"make a context of {context} tokens", "use a shorter one or free some memory")
        stack.callback(llama.llama_free, self._context)
        self._memory = llama.llama_get_memory(self._context)
        self._windowed = llama.llama_model_n_swa(model) > 0
        self._vocab_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        self._one, self._many = llama.llama_batch_init(1, 0, 1), llama.llama_batch_init(PIECE, 0, 1)
        stack.callback(llama.llama_batch_free, self._one)
        stack.callback(llama.llama_batch_free, self._many)

    def _cut(self, length: int) -> None:
        self._llama.llama_memory_seq_rm(self._memory, 0, length, -1)
        self._held = min(self._held, length)

    @staticmethod
    def _fill(batch: Any, ids: list[int], start: int) -> None:
        """Write tokens into a batch, of which the last gives logits."""
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.logits[i] = token, start + i, i == len(ids) - 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0

    def _decode(self, batch: Any) -> None:
        code = self._llama.llama_decode(self._context, batch)
        if code:
            raise _failed(f"decode, code {code}", "use a shorter context or leave llama.cpp out")


def _tensors(path: Path) -> list[tuple[str, str, int, int, int]]:
    """Of each tensor in a GGUF file: name, type, elements, bytes and rows. Takes seconds, because of the vocabulary."""
    return [
        (t.name, t.tensor_type.name, int(t.n_elements), int(t.n_bytes), int(t.n_elements) // int(t.shape[0]))
        for t in open_gguf(path).tensors
    ]


def _layer_type(path: Path, tensors: list[tuple[str, str, int, int, int]]) -> str:
    """The GGUF type that most weights of the layers have."""
    counts: Counter[str] = Counter()
    for name, kind, elements, _, _ in tensors:
        if name.startswith("blk."):
            counts[kind] += elements
    if not counts:
        raise ModelError(f"GGUF file '{path}' has no layers; give one of a language model")
    return counts.most_common(1)[0][0]


def _bytes_read(tensors: list[tuple[str, str, int, int, int]]) -> dict[str, float]:
    """Bytes of weights that a step reads, by GGUF type: all, but of the table of embeddings one row, and once more if it is the head."""
    tied = not any(name == "output.weight" for name, *_ in tensors)
    read: dict[str, float] = {}
    for name, kind, _, size, rows in tensors:
        if name == "token_embd.weight":
            size = size / rows + size * tied
        read[kind] = read.get(kind, 0.0) + size
    return read
