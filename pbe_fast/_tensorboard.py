"""The numbers of ``metrics.jsonl`` as TensorBoard scalars, where tensorboardX is installed."""

from collections.abc import Callable, Mapping
from pathlib import Path

__all__ = ["scalars"]

_SHOWN = ("loss", "accuracy", "images_per_second", "acc", "asr")


def scalars(folder: Path) -> Callable[[int, Mapping[str, object]], None]:
    """What takes a line's number and the line; it does nothing without tensorboardX.

    A run that goes on after a stop adds a file; TensorBoard shows the newest value of a number.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return lambda number, record: None
    writer = SummaryWriter(str(folder))

    def write(number: int, record: Mapping[str, object]) -> None:
        kind = record.get("event")
        for name in _SHOWN:
            value = record.get(name)
            if isinstance(value, int | float):
                writer.add_scalar(f"{kind}/{name}", value, number)
        writer.flush()

    return write
