"""Checks a wheel and a sdist as a user meets them: `python .ci/check_wheel.py DIST`, with the interpreter whose packages they may use.

What must be in them, what must not; that the sdist builds the same wheel; that the wheel works in a fresh environment, outside the checkout.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
NEEDED = (
    "sparsight/py.typed", "sparsight/_native.", "sparsight/predictors/smollm2-135m-foresight/model.safetensors",
    "sparsight/predictors/smollm2-135m-foresight/README.md", "sparsight/demo/document.txt", "sparsight/demo/ATTRIBUTION.md",
    "sparsight/training/data/text.jsonl.xz", "sparsight/training/data/SOURCE.md", "sparsight/serve/page/page.html",
    "sparsight/serve/page/page.js", "sparsight/serve/page/page.css", "licenses/LICENSE", "licenses/NOTICE", "licenses/licenses/nanobind.txt",
    "licenses/licenses/PSF-2.0.txt", "licenses/licenses/robin-map.txt",
)  # fmt: skip
UNWANTED = ("tests/", "benchmarks/", "build/", "__pycache__", ".pyc", ".o", ".cpp", ".tmp", ".partial")
SDIST_UNWANTED = ("tests/", "benchmarks/", "build/", "__pycache__", ".pyc", ".so", "dist/", ".venv", ".git/")
CODE = """
import torch, sparsight
from sparsight.models.random_shapes import SHAPES, random_model
from sparsight.runtime import Decoder
assert sparsight.__file__.startswith({site!r}), sparsight.__file__
SHAPES["tiny"] = {{**SHAPES["1b"], "num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 512, "max_position_embeddings": 512}}
loaded = random_model("random:tiny", torch.float32)
decoder = Decoder(loaded, threads=1)
sequence = decoder.new_sequence()
token, made = int(decoder.prefill(sequence, list(range(1, 200))).argmax()), []
for _ in range(8):
    made.append(token)
    token = decoder.step([sequence], [token]).best[0]
with torch.no_grad():
    dense = loaded.model.generate(torch.arange(1, 200)[None], max_new_tokens=8, do_sample=False, pad_token_id=0)[0, 199:].tolist()
assert made == dense, (made, dense)
print("decoded as transformers does:", made)
"""


def main(dist: Path) -> None:
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    names = check_wheel(wheel)
    check_sdist(sdist)
    with tempfile.TemporaryDirectory() as folder:
        again = build(sdist, Path(folder))
        difference = names ^ set(zipfile.ZipFile(again).namelist())
        expect(not difference, f"the wheel built from the sdist differs from that of the checkout: {sorted(difference)}")
    with tempfile.TemporaryDirectory() as folder:
        check_installed(wheel.resolve(), Path(folder))
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, {len(names)} files; {sdist.name}: {sdist.stat().st_size / 1e6:.1f} MB")


def check_wheel(wheel: Path) -> set[str]:
    names = set(zipfile.ZipFile(wheel).namelist())
    for part in NEEDED:
        expect(any(part in name for name in names), f"{wheel.name} lacks {part}")
    tops = {name.partition("/")[0] for name in names}
    expect(len(tops) == 2 and "sparsight" in tops, f"{wheel.name} installs more than the package: {sorted(tops)}")
    for name in names:
        expect(not any(name.startswith(bad) or name.endswith(bad) or f"/{bad}" in name for bad in UNWANTED), f"{wheel.name} holds {name}")
    tracked = {name.removeprefix("src/") for name in git("ls-files", "src/sparsight")}
    expect(tracked <= names, f"{wheel.name} lacks {sorted(tracked - names)}")
    return names


def check_sdist(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for part in ("pyproject.toml", "CMakeLists.txt", "native/module.cpp", "src/sparsight/py.typed", "LICENSE", "README.md", "PKG-INFO"):
        expect(part in names, f"{sdist.name} lacks {part}")
    for name in names:
        expect(not any(name.startswith(bad) or name.endswith(bad) for bad in SDIST_UNWANTED), f"{sdist.name} holds {name}")


def build(sdist: Path, folder: Path) -> Path:
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-cache-dir", "-w", folder, sdist)
    return next(folder.glob("*.whl"))


def check_installed(wheel: Path, folder: Path) -> None:
    """In an environment that has the wheel, and everything else from this interpreter's packages."""
    run(sys.executable, "-m", "venv", "--without-pip", folder / "env")
    python = folder / "env" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-cache-dir", wheel)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('platlib'))").strip()
    # Appended, not `site.addsitedir`: the .pth files there would put the checkout in the place of the wheel.
    (Path(site) / "rest.pth").write_text("".join(f"{place}\n" for place in sys.path if place.endswith("site-packages")))
    place = {"cwd": folder, "env": {**os.environ, "HF_HUB_OFFLINE": "1", "SPARSIGHT_CACHE": str(folder / "cache"), "PYTHONPATH": ""}}
    command = folder / "env" / "bin" / "sparsight"
    expect(run(command, "--version", **place).startswith("sparsight "), "no version")
    found = json.loads(run(command, "doctor", "--json", "-", **place))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    expect(found["usable"] and found["kernels"]["present"], f"the doctor says {found['problems']}")
    expect(found["sparsight"] == project["version"] and len(found["packages"]) == len(project["dependencies"]), "the metadata differ")
    expect([extra["name"] for extra in found["extras"]] == sorted(project["optional-dependencies"]), "the extras differ")
    print(run(python, "-c", CODE.format(site=site), **place).strip())


def git(*arguments: str) -> list[str]:
    return run("git", "-C", ROOT, *arguments).splitlines()


def run(*command: object, **options: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    if done.returncode:
        sys.exit(f"error: {' '.join(map(str, command))[:300]}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


def expect(true: bool, otherwise: str) -> None:
    if not true:
        sys.exit(f"error: {otherwise}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
