"""Where kernels run in tests, cases of a PGD step, and broken copies of the package."""

import dataclasses
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
import triton
from torch import Tensor

PACKAGE = Path(__file__).parents[2] / "kernels"
Mutant = Callable[[str, str, str, str], ModuleType]


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the kernel runs: Triton's interpreter on the CPU, or a GPU."""
    interpreted = triton.knobs.runtime.interpret
    if request.param == "cuda":
        if interpreted or not torch.cuda.is_available():
            pytest.skip("needs a CUDA device and TRITON_INTERPRET=0")
        return torch.device("cuda")
    if not interpreted:
        pytest.skip("needs TRITON_INTERPRET=1")
    return torch.device("cpu")


@pytest.fixture
def mutant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mutant]:
    """A function that breaks a copy of the package: it gives one operation's module there.

    Its arguments are the module, the place of the piece as ``file.function``, the piece, and what
    takes its place.
    """
    if not triton.knobs.runtime.interpret:
        pytest.skip("needs TRITON_INTERPRET=1")
    name = f"broken_{next(_NUMBERS)}"
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(module: str, place: str, old: str, new: str) -> ModuleType:
        copy = tmp_path / name
        copy.mkdir()
        (copy / "__init__.py").touch()
        file, function = place.split(".")
        for path in PACKAGE.glob("[_a-z]*.py"):
            if path.stem == "__init__":
                continue
            source = path.read_text(encoding="utf-8")
            if path.stem == file:
                source = _replaced(source, function, old, new)
            source = source.replace("from kernels.", f"from {name}.").replace("pbe::", f"{name}::")
            (copy / path.name).write_text(source, encoding="utf-8")
        return import_module(f"{name}.{module}")

    # What torch.empty gives then holds NaN, so that what is not written shows.
    torch.use_deterministic_algorithms(True)
    yield make
    torch.use_deterministic_algorithms(False)
    for loaded in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
        del sys.modules[loaded]


_NUMBERS = itertools.count()


def _replaced(source: str, function: str, old: str, new: str) -> str:
    """The source with the first such piece of one function replaced."""
    start = source.index(f"def {function}(")
    after = re.compile(r"\n(?:    )?(?:@|def |class )|\n\w+ = ").search(source, start)
    end = after.start() if after else len(source)
    position = source.find(old, start, end)
    assert position > 0, f"{function} has no {old!r} any more; bring this list up to date"
    return source[:position] + new + source[position + len(old) :]


@dataclasses.dataclass(frozen=True)
class StepCase:
    """Arguments of a PGD step."""

    clean: Tensor
    perturbation: Tensor
    gradient: Tensor
    eps: float
    step: float
    rows: Tensor | None = None
    following: Tensor | None = None
    mean: tuple[float, float, float] = (0.48, 0.46, 0.41)
    std: tuple[float, float, float] = (0.23, 0.31, 0.27)

    @classmethod
    def make(
        cls,
        shape: tuple[int, int, int, int],
        eps: float,
        step: float,
        *,
        last: bool = False,
        clean: torch.dtype = torch.float32,
        perturbation: torch.dtype = torch.float32,
        gradient: torch.dtype = torch.float32,
        indexed: bool = False,
        size: float | None = None,
        seed: int = 0,
    ) -> "StepCase":
        """Pixels at 0 and 1, d up to ``size`` (eps), a gradient with NaN, infinities and zeros."""
        random = torch.Generator().manual_seed(seed)
        count = shape[0]
        pool = (count + 3, *shape[1:]) if indexed else shape

        def draw(*size: int) -> Tensor:
            return torch.rand(size, generator=random)

        x, g = draw(*pool), torch.randn(shape, generator=random)
        x[draw(*pool) < 0.2] = 0.0
        x[draw(*pool) < 0.2] = 1.0
        if clean == torch.uint8:
            x = (x * 255).round()
        unit = x / 255 if clean == torch.uint8 else x
        d = ((2 * draw(*pool) - 1) * (eps if size is None else size) + unit).clamp(0, 1) - unit
        g[draw(*shape) < 0.1] = 0.0
        if g.numel() > 20:
            odd = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 1e-30, -3.0])
            g.view(-1)[:18] = odd.repeat(3)
        layout = torch.channels_last if last else torch.contiguous_format
        rows = following = None
        if indexed:
            # Slots in another order than the pool, one that steps nobody, one that is exchanged
            # for a sample that nobody steps, one that is left empty.
            rows, following = torch.arange(count).flip(0) + 1, torch.arange(count).flip(0) + 1
            if count:
                following[0] = 0
            if count > 1:
                following[1] = -1
            if count > 2:
                rows[2], following[2] = -1, count + 2
        return cls(
            x.to(clean).contiguous(memory_format=layout),
            d.to(perturbation).contiguous(memory_format=layout),
            g.to(gradient).contiguous(memory_format=layout),
            eps,
            step,
            rows,
            following,
        )

    def arguments(self, device: torch.device | str = "cpu") -> list[object]:
        """For an operation, in its order; d is a copy, as it is changed in place."""
        out = [self.clean, self.perturbation.clone(), self.gradient, self.eps, self.step]
        out += [self.mean, self.std, self.rows, self.following]
        return [a.to(device) if isinstance(a, Tensor) else a for a in out]

    def run(
        self, function: Callable[..., Tensor], device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor]:
        """z and d after the step."""
        arguments = self.arguments(device)
        z = function(*arguments)
        d = arguments[1]
        assert isinstance(d, Tensor)
        return z.cpu(), d.cpu()

    def shown(self) -> Tensor:
        """Which slots' z means something: those that somebody follows in."""
        slots = len(self.gradient)
        if self.following is None:
            return torch.ones(slots, dtype=torch.bool)
        return self.following >= 0


@pytest.fixture(scope="session")
def step_case() -> Callable[..., StepCase]:
    """:meth:`StepCase.make`."""
    return StepCase.make
