#!/usr/bin/env python3
"""Pack the folder that wikipedia_text.py writes into the compressed form that ships with the package.

    python recipes/wikipedia_text.py --out text
    python recipes/pack_text.py text src/sparsight/training/data
"""

from __future__ import annotations

import argparse
import json
import lzma
import shutil
from pathlib import Path


def pack(folder: Path) -> bytes:
    """The ``.txt`` files of a folder as xz-compressed JSON lines, sorted by name."""
    documents = [{"name": p.stem, "text": p.read_text(encoding="utf-8")} for p in sorted(folder.glob("*.txt"))]
    lines = "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
    return lzma.compress(lines.encode("utf-8"), preset=9 | lzma.PRESET_EXTREME)


def main() -> None:
    """Write ``text.jsonl.xz`` and ``SOURCE.md`` into the second folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    args.target.mkdir(parents=True, exist_ok=True)
    (args.target / "text.jsonl.xz").write_bytes(pack(args.source))
    shutil.copyfile(args.source / "SOURCE.md", args.target / "SOURCE.md")


if __name__ == "__main__":
    main()
