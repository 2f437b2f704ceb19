"""Looking into a network while it runs: what its modules are given and what they return."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn

__all__ = ["watched"]

SeenT = TypeVar("SeenT")


@contextmanager
def watched(
    model: nn.Module,
    names: Collection[str] | None,
    take: Callable[[tuple[Any, ...], Any], SeenT | None],
) -> Iterator[list[tuple[str, SeenT]]]:
    """What is taken of modules while the block runs, in the order in which they finish.

    A module that is called more than once is there as often.

    Args:
        names: of the modules; None: of all but the model itself.
        take: of a module's inputs and its output, at the moment it returns, as a later operation
            may work in place; None leaves the call out.

    Yields:
        names and what was taken; it grows while the model runs.
    """
    found: list[tuple[str, SeenT]] = []

    def keep(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            seen = take(inputs, output)
            if seen is not None:
                found.append((name, seen))

        return hook

    hooks = [
        module.register_forward_hook(keep(name))
        for name, module in model.named_modules()
        if name and (names is None or name in names)
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
