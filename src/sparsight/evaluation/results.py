"""Result files that can be repeated and resumed: a finished one of the same configuration is reused, a partial one goes on."""

from __future__ import annotations

import glob
import hashlib
import json
from pathlib import Path
from typing import Any

from ..artifacts.files import read_bytes, write_atomically
from ..errors import ConfigError, StorageError


def configuration_hash(configuration: dict[str, Any]) -> str:
    """sha256 of a configuration's canonical JSON."""
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()


def checked_shard(shard: tuple[int, int] | None, result: str | Path | None) -> tuple[int, int]:
    """Number and count of a shard, (0, 1) without one.

    Raises
    ------
    ConfigError
    """
    number, shards = shard or (0, 1)
    if not 0 <= number < shards:
        raise ConfigError(f"shard {number} of {shards} does not exist; shards count from 0")
    if shards > 1 and result is None:
        raise ConfigError("processes share their work through a result file; give one")
    return number, shards


class ResultFile:
    """`OUT` for the finished result, `OUT.partial` with the configuration in its first line and a JSON line for each chunk done.

    Parameters
    ----------
    path : str, Path or None
        Nothing is kept without one.
    configuration : dict
        Everything the numbers depend on.
    shard : int, optional
        Of several processes that share the work: it writes to `OUT.partial.SHARD`, and all read what all have done.
    """

    def __init__(self, path: str | Path | None, configuration: dict[str, Any], shard: int | None = None) -> None:
        self.path, self.shard = Path(path) if path is not None else None, shard
        self.configuration = configuration
        self.hash = configuration_hash(configuration)

    @property
    def partial(self) -> Path:
        """Where this process writes."""
        return self.path.with_name(self.path.name + ".partial" + ("" if self.shard is None else f".{self.shard}"))

    def partials(self) -> list[Path]:
        """What all processes have written."""
        whole = self.path.with_name(self.path.name + ".partial")
        return [path for path in (whole, *sorted(whole.parent.glob(f"{glob.escape(whole.name)}.*"))) if path.exists()]

    def finished(self) -> dict[str, Any] | None:
        """The result, if a complete one of this configuration is there.

        Raises
        ------
        ConfigError
            If the file holds something else.
        """
        if self.path is None or not self.path.exists():
            return None
        try:
            result = json.loads(read_bytes(self.path))
            known = result["configuration_hash"]
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{self.path} is not a result file of sparsight; choose another --json") from None
        if known != self.hash:
            changed = [k for k, v in self.configuration.items() if result.get("configuration", {}).get(k) != v]
            raise ConfigError(
                f"{self.path} holds results of another configuration ({', '.join(changed) or 'older format'}); "
                "choose another --json or delete it"
            )
        return result

    def chunks_done(self) -> dict[int, dict[str, Any]]:
        """Chunks of an interrupted run of this configuration; a torn last line is dropped."""
        if self.path is None:
            return {}
        done: dict[int, dict[str, Any]] = {}
        for line in (line for path in self.partials() for line in read_bytes(path).decode("utf-8", errors="replace").splitlines()):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and row.get("hash") == self.hash and "chunk" in row:
                done[row["chunk"]] = row
        return done

    def add(self, chunk: int, row: dict[str, Any]) -> None:
        """Keep one chunk's figures."""
        if self.path is None:
            return
        try:
            self.partial.parent.mkdir(parents=True, exist_ok=True)
            with self.partial.open("a", encoding="utf-8") as file:
                if file.tell() == 0:
                    # For those who look at a run that is not finished; a file that an older version began goes on without.
                    file.write(json.dumps({"hash": self.hash, "configuration": self.configuration}) + "\n")
                # A newline before and after: a line torn by a kill must not take the next one with it.
                file.write("\n" + json.dumps({"hash": self.hash, "chunk": chunk, **row}) + "\n")
        except OSError as error:
            raise StorageError(
                f"cannot write {self.partial}: {error.strerror}; free some space or choose another --json"
            ) from None

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Write the result and drop the partial files."""
        result = {"configuration_hash": self.hash, "configuration": self.configuration, **result}
        if self.path is not None:
            write_atomically(self.path, json.dumps(result, indent=1) + "\n")
            for path in self.partials():
                path.unlink(missing_ok=True)
        return result
