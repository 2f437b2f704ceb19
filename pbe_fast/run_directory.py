"""A run directory: everything about a run, written so that a stop at any moment loses little.

``config.yaml`` is the configuration as resolved; ``state.safetensors`` is where an unfinished
run stands; ``metrics.jsonl`` has a line a step of progress, cut back to the saved state when a
run goes on. ``metrics.json`` is written last, so a run that has it is finished.
"""

import json
import logging
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pbe_fast._files import write_bytes, write_text
from pbe_fast.config import dump_config
from pbe_fast.errors import RunDirectoryError

__all__ = ["RunDirectory", "versions"]

_STATE_KEY = "pbe_fast_state"


class RunDirectory:
    """One run's folder, opened for a new run or to go on with the same one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events = 0
        self.logger = logging.getLogger(f"pbe_fast.run.{path.name}")

    @classmethod
    def open(cls, path: Path, config: BaseModel) -> "RunDirectory":
        """Create the folder, or take it up again.

        Raises:
            RunDirectoryError: it holds a run with another configuration, or something else.
        """
        run = cls(path)
        if path.is_dir() and any(path.iterdir()) and not run.config_path.exists():
            raise RunDirectoryError(
                f"{path}: the folder is not empty and holds no run. Choose another --out."
            )
        path.mkdir(parents=True, exist_ok=True)
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
            content = yaml.safe_load(self.config_path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise RunDirectoryError(f"{self.config_path}: cannot be read ({error}).") from error
        if not isinstance(content, dict):
            raise RunDirectoryError(f"{self.config_path}: is no configuration.")
        return content

    def write_config(self, config: BaseModel) -> None:
        """Keep the configuration as resolved."""
        write_text(self.config_path, dump_config(config))

    def finished(self) -> dict[str, Any] | None:
        """The metrics of a finished run; None for one that is not."""
        if not self.metrics_path.exists():
            return None
        content: dict[str, Any] = json.loads(self.metrics_path.read_text(encoding="utf-8"))
        return content

    def finish(self, metrics: Mapping[str, object]) -> None:
        """Write ``metrics.json``, the mark of a finished run, and drop the state."""
        write_text(self.metrics_path, json.dumps(metrics, indent=2) + "\n")
        self.state_path.unlink(missing_ok=True)

    def event(self, record: Mapping[str, object]) -> None:
        """Append a line to ``metrics.jsonl``."""
        with self.events_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self.events += 1

    def save_state(self, tensors: Mapping[str, Tensor], header: Mapping[str, object]) -> None:
        """Keep where the run stands, whole or not at all."""
        metadata = {_STATE_KEY: json.dumps({**header, "events": self.events})}
        content = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
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
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise RunDirectoryError(
                f"{self.state_path}: the saved state is damaged ({error}). Delete it to begin "
                "this run again, or choose another --out."
            ) from error
        self._cut_events(int(header["events"]))
        return tensors, header

    def _cut_events(self, count: int) -> None:
        """Forget the lines that were written after the state was."""
        self.events = count
        if self.events_path.exists():
            lines = self.events_path.read_text(encoding="utf-8").splitlines(keepends=True)
            write_text(self.events_path, "".join(lines[:count]))


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    names = ("torch", "torchvision", "timm", "numpy", "pbe-fast")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def _differences(before: Any, now: Any, where: str = "") -> list[str]:
    """Dotted keys with other values; ``auto`` now agrees with whatever it became before."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        return [
            line
            for key in keys
            for line in _differences(
                before.get(key), now.get(key), f"{where}.{key}" if where else str(key)
            )
        ]
    if before == now or now == "auto":
        return []
    return [f"{where} was {before!r}, now {now!r}"]
