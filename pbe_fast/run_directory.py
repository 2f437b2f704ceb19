"""A run directory: everything about a run, written so that a stop at any moment loses little.

``config.yaml`` is the configuration as resolved; ``state.safetensors`` is where an unfinished
run stands; ``metrics.jsonl`` has a line a step of progress, cut back to the saved state when a
run goes on. ``metrics.json`` is written last, so a run that has it is finished.
"""

import json
import logging
import math
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pbe_fast._files import write_bytes, write_text
from pbe_fast._yaml import YAML_ERRORS, parse_yaml
from pbe_fast.config import dump_config
from pbe_fast.errors import RunDirectoryError

__all__ = ["RunDirectory", "versions"]

_STATE_KEY = "pbe_fast_state"
_LOG_NAME = "log.txt"
_RESOLVED = (
    "device",
    "precision",
    "memory_format",
)  # keys whose "auto" is replaced when a run begins


class RunDirectory:
    """One run's folder, opened for a new run or to go on with the same one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events = 0
        self.logger = logging.getLogger(f"pbe_fast.run.{path.name}")

    @classmethod
    def open(cls, path: Path, config: BaseModel) -> "RunDirectory":
        """Create the folder, or take it up again.

        A folder that holds nothing but a log is a run that failed before it began, and is taken.

        Raises:
            RunDirectoryError: it holds a run with another configuration, or something else; or
                it cannot be made.
        """
        run = cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            foreign = sorted(p.name for p in path.iterdir() if not _own(p.name))
        except OSError as error:
            raise RunDirectoryError(
                f"{path}: cannot be used as a run directory ({error.strerror}). Choose another "
                "--out."
            ) from error
        if foreign and not run.config_path.exists():
            raise RunDirectoryError(
                f"{path}: the folder holds no run, but other things ({', '.join(foreign[:3])}). "
                "Choose another --out."
            )
        before = run.read_config()
        if before is not None:
            differences = _differences(before, config.model_dump(mode="json"))
            if differences:
                raise RunDirectoryError(
                    f"{path}: holds a run with another configuration: {'; '.join(differences)}. "
                    "Give the same command to go on with it, or choose another --out."
                )
        return run

    @property
    def config_path(self) -> Path:
        """``config.yaml``."""
        return self.path / "config.yaml"

    @property
    def metrics_path(self) -> Path:
        """``metrics.json``."""
        return self.path / "metrics.json"

    @property
    def state_path(self) -> Path:
        """``state.safetensors``."""
        return self.path / "state.safetensors"

    @property
    def events_path(self) -> Path:
        """``metrics.jsonl``."""
        return self.path / "metrics.jsonl"

    def read_config(self) -> dict[str, Any] | None:
        """The resolved configuration of a run that was begun; None for a new one."""
        if not self.config_path.exists():
            return None
        try:
            content = parse_yaml(self.config_path.read_text(encoding="utf-8"))
        except (OSError, *YAML_ERRORS) as error:
            raise RunDirectoryError(f"{self.config_path}: cannot be read ({error}).") from error
        if not isinstance(content, dict):
            raise RunDirectoryError(f"{self.config_path}: is no configuration.")
        return content

    def write_config(self, config: BaseModel) -> None:
        """Keep the configuration as resolved."""
        write_text(self.config_path, dump_config(config))

    def finished(self) -> dict[str, Any] | None:
        """The metrics of a finished run; None for one that is not.

        Raises:
            RunDirectoryError: the file is damaged.
        """
        if not self.metrics_path.exists():
            return None
        try:
            content = json.loads(self.metrics_path.read_bytes())
            if not isinstance(content, dict):
                raise ValueError("not an object")
        except (OSError, ValueError, RecursionError) as error:
            raise RunDirectoryError(
                f"{self.metrics_path}: is damaged ({error}). Delete it to do the run again, or "
                "choose another --out."
            ) from error
        return content

    def finish(self, metrics: Mapping[str, object]) -> None:
        """Write ``metrics.json``, the mark of a finished run, and drop the state."""
        write_text(self.metrics_path, json.dumps(_finite(metrics), indent=2) + "\n")
        self.state_path.unlink(missing_ok=True)

    def event(self, record: Mapping[str, object]) -> None:
        """Append a line to ``metrics.jsonl``; a loss that is no number any more is null."""
        with self.events_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(record)) + "\n")
        self.events += 1

    def save_state(self, tensors: Mapping[str, Tensor], header: Mapping[str, object]) -> None:
        """Keep where the run stands, whole or not at all."""
        if self.events_path.exists():
            with self.events_path.open("rb") as file:
                os.fsync(file.fileno())  # a state must not outlive the lines that it counts
        metadata = {_STATE_KEY: json.dumps({**header, "events": self.events})}
        content = {name: _own_copy(value) for name, value in tensors.items()}
        write_bytes(self.state_path, save(content, metadata=metadata))

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What :meth:`save_state` kept; None for a run that kept nothing yet.

        Raises:
            RunDirectoryError: the file is damaged.
        """
        if not self.state_path.exists():
            self._cut_events(0)
            return None
        try:
            with safe_open(self.state_path, framework="pt") as file:
                header = json.loads((file.metadata() or {})[_STATE_KEY])
                events = int(header["events"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise self.damaged(str(error)) from error
        self._cut_events(events)
        return tensors, header

    def damaged(self, why: str) -> RunDirectoryError:
        """The error of a saved state that cannot be gone on from."""
        return RunDirectoryError(
            f"{self.state_path}: the saved state is damaged ({why}). Delete it to begin this run "
            "again, or choose another --out."
        )

    def _cut_events(self, count: int) -> None:
        """Forget the lines that were written after the state was."""
        self.events = 0
        if self.events_path.exists():
            lines = self.events_path.read_bytes().splitlines(keepends=True)[:count]
            self.events = len(lines)
            write_bytes(self.events_path, b"".join(lines))


def _own_copy(value: Tensor) -> Tensor:
    """On the CPU in memory of its own: tied weights share theirs, which safetensors refuses."""
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    names = ("torch", "torchvision", "timm", "numpy", "pbe-fast")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a checkout that is not installed
            found[name] = "unknown"
    return found


def _own(name: str) -> bool:
    """Whether a run writes such a file before its configuration."""
    return name == _LOG_NAME or (name.startswith(".") and name.endswith(".partial"))


def _finite(value: Any) -> Any:
    """The value with null for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _differences(before: Any, now: Any, where: str = "") -> list[str]:
    """Dotted keys with other values; an ``auto`` that was resolved agrees with what it became."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        return [
            line
            for key in keys
            for line in _differences(
                before.get(key), now.get(key), f"{where}.{key}" if where else str(key)
            )
        ]
    if before == now or (now == "auto" and where in _RESOLVED):
        return []
    return [f"{where} was {before!r}, now {now!r}"]
