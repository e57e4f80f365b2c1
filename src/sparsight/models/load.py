"""Loading a language model from an alias, a folder, a GGUF file or the Hub, always from safetensors."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from sparsight.errors import ConfigError, ModelError
from sparsight.models.anatomy import Anatomy
from sparsight.models.families import check_family
from sparsight.models.fingerprint import fingerprint
from sparsight.models.gguf import plain_folder
from sparsight.models.packaged import ALIASES, packaged_folder
from sparsight.models.quantised import BLOCKS

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A frozen causal language model with what is needed to use and to name it.

    Attributes
    ----------
    model : PreTrainedModel
        In eval mode, no parameter requires a gradient, `sdpa` attention.
    tokenizer : PreTrainedTokenizerBase
        Its tokenizer.
    name : str
        The name it was asked for by.
    fingerprint : str
        See `sparsight.models.fingerprint.fingerprint`.
    anatomy : Anatomy
        See `sparsight.models.anatomy.Anatomy`.
    blocks : Path or None
        If it comes from a GGUF file with quantised matrices that are kept as they are: the file that holds them, for
        `sparsight.models.quantised.read_blocks`.
    kept : dict
        What runtimes keep for this model, by key; it goes with the model.
    """

    model: PreTrainedModel
    tokenizer: Any
    name: str
    fingerprint: str
    anatomy: Anatomy
    blocks: Path | None = None
    kept: dict[Any, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def start_tokens(self) -> tuple[int, ...]:
        """Ids that the tokenizer puts in front of every text by itself; empty if it adds none, or there is no tokenizer."""
        if self.tokenizer is None:
            return ()
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = self.tokenizer("a")["input_ids"]
        starts = (i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare)
        return tuple(whole[: next(starts, 0)])


def load(name: str | Path, dtype: torch.dtype = torch.bfloat16, device: str | torch.device = "cpu") -> LoadedModel:
    """Load a model for inference; pickled weights are never read and no code of the model is run.

    Parameters
    ----------
    name : str or Path
        A key of `ALIASES`, a Hugging Face folder, a `.gguf` file (see `sparsight.models.gguf.plain_folder`), or else
        an id on the Hugging Face Hub.
    dtype : torch.dtype
        float32, bfloat16 or float16, of all weights and activations.
    device : str or torch.device
        Where the model goes.

    Raises
    ------
    ModelError
        If there is no such model, it has no safetensors weights, its weights do not fit its configuration, or its
        architecture is not supported.
    ConfigError
        If `dtype` or `device` cannot be used.
    StorageError
        If a converted GGUF file cannot be kept in the cache.
    """
    if dtype not in _DTYPES:
        known = ", ".join(str(kind).removeprefix("torch.") for kind in _DTYPES)
        raise ConfigError(f"dtype must be one of {known}, got {dtype}; use bfloat16 if unsure")
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device {device!r} is not known to torch; use cpu or cuda") from error
    source = _locate(name)
    with _quiet():
        model, tokenizer = _read(source, str(name), dtype)
    try:
        model = model.to(device).eval().requires_grad_(False)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"cannot put '{name}' on device '{device}': {_first_line(error)}; use cpu") from error
    blocks = Path(source).absolute() / BLOCKS
    return LoadedModel(
        model, tokenizer, str(name), fingerprint(model), Anatomy.of(model), blocks if blocks.is_file() else None
    )


def _locate(name: str | Path) -> str:
    """The folder to read, as a string, or a Hub id."""
    if isinstance(name, str) and name in ALIASES:
        return str(packaged_folder(name))
    path = Path(name).expanduser()
    if str(name) and path.is_dir():
        _check_folder(path)
        return str(path)
    if path.suffix.lower() == ".gguf":
        return str(plain_folder(path))
    if path.is_file():
        raise ModelError(f"'{name}' is neither a model folder nor a .gguf file; give a Hugging Face folder")
    if isinstance(name, Path) or not _HUB_ID.fullmatch(name):
        raise ModelError(
            f"no model at '{name}'; expected an existing folder, a .gguf file, a Hub id such as 'owner/model', "
            f"or one of {', '.join(ALIASES)}"
        )
    return name


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(f"model folder '{folder}' has no config.json; give a Hugging Face model folder")
    if (folder / "adapter_config.json").exists():
        raise ModelError(f"model folder '{folder}' holds an adapter; merge it into its base model and give that folder")
    if any(file.name != BLOCKS for file in folder.glob("*.safetensors")):
        return
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
    if pickles:
        raise ModelError(
            f"model folder '{folder}' has only pickled weights ({pickles[0]}); pickle is never read, because it can "
            "run code; convert the weights to safetensors"
        )
    raise ModelError(f"model folder '{folder}' has no *.safetensors file; give a folder with weights")


def _read(source: str, name: str, dtype: torch.dtype) -> tuple[PreTrainedModel, Any]:
    try:
        config, _ = PreTrainedConfig.get_config_dict(source)
        check_family(config.get("model_type"), name)
        if config.get("quantization_config"):
            raise ModelError(f"'{name}' holds quantised weights, which are not supported; give a plain or a GGUF copy")
        model, info = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation="sdpa",
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with the name of the tensor
        )
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except SafetensorError as error:
        raise ModelError(f"the weights of '{name}' are damaged ({_first_line(error)}); get the files again") from error
    except ModelError:
        raise
    except Exception as error:  # transformers reports a bad file or a failed download by errors of many classes
        hint = (
            "check the folder"
            if Path(source).is_dir()
            else "no such folder or file here, so it was taken for a Hub id: check the spelling, the network and "
            "HF_HUB_OFFLINE, and that it has safetensors weights"
        )
        raise ModelError(f"cannot load '{name}': {_first_line(error)}; {hint}") from error
    _check_weights(name, info)
    return model, tokenizer


def _check_weights(name: str, info: dict[str, Any]) -> None:
    # transformers only warns here, and fills what is missing with random numbers.
    unexpected = [key for key in info["unexpected_keys"] if not key.endswith("rotary_emb.inv_freq")]
    for what, keys in (
        ("lack", info["missing_keys"]),
        ("have another shape than config.json says in", info["mismatched_keys"]),
        ("hold, but config.json has no place for,", unexpected),
    ):
        if keys:
            first = min(key if isinstance(key, str) else key[0] for key in keys)
            raise ModelError(
                f"the weights of '{name}' {what} '{first}' ({len(keys)} such); config.json and the weights must "
                "belong together: get the files again"
            )


def _first_line(error: BaseException) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line.rstrip(".:;")


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the progress bars, log lines and warnings of transformers, and then restore them."""
    logger = logging.getLogger("transformers")
    level, bars = logger.level, transformers_logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
