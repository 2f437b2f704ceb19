"""Broken copies of a kernel, to see that its test notices."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Mutant = Callable[[ModuleType, str, str, str], Callable[..., object]]


@pytest.fixture
def mutant(tmp_path: Path) -> Mutant:
    """A function of a module whose source has one piece replaced."""

    def make(module: ModuleType, name: str, old: str, new: str) -> Callable[..., object]:
        assert module.__file__ is not None
        source = Path(module.__file__).read_text(encoding="utf-8")
        start = source.index(f"def {name}(")
        position = source.find(old, start)
        assert position > 0, f"{name} has no {old!r} any more; bring this list up to date"
        broken = tmp_path / f"broken_{name}.py"
        broken.write_text(source[:position] + new + source[position + len(old) :])
        spec = importlib.util.spec_from_file_location(broken.stem, broken)
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        function: Callable[..., object] = getattr(loaded, name)
        return function

    return make
