"""A run directory: everything about a run, written so that a stop at any moment loses little.

``config.yaml`` is the configuration as resolved; ``state.safetensors`` is where an unfinished
run stands, and ``state.previous.safetensors`` where it stood before, should the newer one be
damaged; ``metrics.jsonl`` has a line a step of progress, cut back to the saved state when a
run goes on. ``metrics.json`` is written last, so a run that has it is finished. ``.lock`` is held
and names its holder while a process works here.
"""

import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import platform
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pbe_fast._files import atomic_path, write_bytes, write_text
from pbe_fast._yaml import YAML_ERRORS, parse_yaml
from pbe_fast.config import dump_config
from pbe_fast.errors import RunDirectoryError

__all__ = ["CONVERTED_NAME", "RunDirectory", "tensors_digest", "versions"]

_STATE_KEY = "pbe_fast_state"
_DIGEST_KEY = "pbe_fast_sha256"
_LOCK_NAME = ".lock"
CONVERTED_NAME = "backdoorbench"  # what 'purify --backdoorbench' makes before the run begins
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
        self.changes: list[str] = []  # of the configuration, that were accepted
        # Is handed every line of metrics.jsonl, with its number.
        self.mirror: Callable[[int, Mapping[str, object]], None] = lambda number, record: None
        self.logger = logging.getLogger(f"pbe_fast.run.{path.name}")

    @classmethod
    def open(
        cls, path: Path, config: BaseModel, accept_changes: bool | None = None
    ) -> "RunDirectory":
        """Create the folder, or take it up again.

        A folder that holds nothing but a log is a run that failed before it began, and is taken.

        Args:
            accept_changes: go on with another configuration, and keep the differences; None
                where the job's command has no such option.

        Raises:
            RunDirectoryError: it holds a run with another configuration, or something else; or
                it cannot be made.
        """
        run = cls(path)
        run.require_usable()
        before = run.read_config()
        if before is not None:
            differences = _differences(before, config.model_dump(mode="json"))
            if differences and not accept_changes:
                choices = ["Give the same command to go on with it", "choose another --out"]
                if accept_changes is not None:
                    choices.append("give --accept-changes to go on with the new one")
                raise RunDirectoryError(
                    f"{path}: holds a run with another configuration: {'; '.join(differences)}. "
                    f"{', '.join(choices[:-1])}, or {choices[-1]}."
                )
            run.changes = differences
        return run

    def require_usable(self) -> None:
        """Make the folder; refuse one that holds something else than a run.

        Raises:
            RunDirectoryError: it does, or cannot be made.
        """
        path = self.path
        try:
            path.mkdir(parents=True, exist_ok=True)
            foreign = sorted(p.name for p in path.iterdir() if not _own(p.name))
        except OSError as error:
            raise RunDirectoryError(
                f"{path}: cannot be used as a run directory ({error.strerror}). Choose another "
                "--out."
            ) from error
        if foreign and not self.config_path.exists():
            raise RunDirectoryError(
                f"{path}: the folder holds no run, but other things ({', '.join(foreign[:3])}). "
                "Choose another --out."
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process out for as long as the block runs.

        The lock is the operating system's, so it ends with its holder, however that ends.

        Raises:
            RunDirectoryError: another process works here; says which.
        """
        path = self.path / _LOCK_NAME
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                holder = os.pread(fd, 500, 0).decode(errors="replace").strip()
                raise RunDirectoryError(
                    f"{self.path}: another run works here ({holder or 'unknown'}). Wait for it to "
                    "end, stop it, or choose another --out."
                ) from None
            since = datetime.now(UTC).isoformat(timespec="seconds")
            text = f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode()
            os.ftruncate(fd, 0)
            os.pwrite(fd, text, 0)
            yield
            os.ftruncate(fd, 0)
        finally:
            os.close(fd)

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
    def previous_path(self) -> Path:
        """``state.previous.safetensors``."""
        return self.path / "state.previous.safetensors"

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

    def finish(self, metrics: Mapping[str, object]) -> dict[str, Any]:
        """Write ``metrics.json``, the mark of a finished run, and drop the state.

        Returns:
            what is read back from it, now and by :meth:`finished` later.
        """
        text = json.dumps(_finite(metrics), indent=2)
        write_text(self.metrics_path, text + "\n")
        self.state_path.unlink(missing_ok=True)
        self.previous_path.unlink(missing_ok=True)
        content: dict[str, Any] = json.loads(text)
        return content

    def event(self, record: Mapping[str, object]) -> None:
        """Append a line to ``metrics.jsonl``; a loss that is no number any more is null."""
        with self.events_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(record)) + "\n")
        self.events += 1
        self.mirror(self.events, record)

    def save_state(self, tensors: Mapping[str, Tensor], header: Mapping[str, object]) -> None:
        """Keep where the run stands, whole or not at all."""
        if self.events_path.exists():
            with self.events_path.open("rb") as file:
                os.fsync(file.fileno())  # a state must not outlive the lines that it counts
        content = {name: _own_copy(value) for name, value in tensors.items()}
        text = json.dumps({**header, "events": self.events})
        metadata = {_STATE_KEY: text, _DIGEST_KEY: tensors_digest(content, text)}
        with atomic_path(self.state_path) as temporary:
            temporary.write_bytes(save(content, metadata=metadata))
            if self.state_path.exists():  # after a kill here the previous one is the newest
                os.replace(self.state_path, self.previous_path)

    def load_state(
        self, say: Callable[[str], None] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What :meth:`save_state` kept; None for a run that kept nothing yet.

        Args:
            say: told if the newest state is damaged and the one before it is taken.

        Raises:
            RunDirectoryError: there are states, and all of them are damaged.
        """
        wrong: RunDirectoryError | None = None
        for path in (self.state_path, self.previous_path):
            if not path.exists():
                continue
            try:
                tensors, header, events = _read_state(path)
            except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
                wrong = wrong or self.damaged(str(error))
                continue
            if wrong is not None:
                text = f"WARNING: {wrong} Going on from the state before it, {path.name}."
                self.logger.warning(text)
                if say is not None:
                    say(text)
            self._cut_events(events)
            return tensors, header
        if wrong is not None:
            raise wrong
        self._cut_events(0)
        return None

    def rewind(self, events: int) -> None:
        """Forget the lines of ``metrics.jsonl`` after the first ``events``."""
        self._cut_events(events)

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


def _read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], int]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        text = metadata[_STATE_KEY]
        header = json.loads(text)
        events = int(header["events"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if metadata[_DIGEST_KEY] != tensors_digest(tensors, text):
        raise ValueError("its digest is another")
    return tensors, header, events


def tensors_digest(tensors: Mapping[str, Tensor], header: str = "") -> str:
    """SHA-256 of tensors, their names, dtypes and shapes, and a text."""
    sha = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        value = tensors[name]
        sha.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        sha.update(
            value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return sha.hexdigest()


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
    return name in (_LOG_NAME, _LOCK_NAME, CONVERTED_NAME) or (
        name.startswith(".") and name.endswith(".partial")
    )


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
