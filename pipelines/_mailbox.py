"""What the ranks of one attempt and the driver say to each other.

Nothing heavy is imported here, so that the mailbox is there at once; what it carries stays packed.
"""

from typing import Any

from ray import cloudpickle

__all__ = ["Mailbox", "pack", "run_rank", "unpack"]


class Mailbox:
    """An actor beside the driver: messages one way, the wish to stop the other."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.stopping = False

    def post(self, message: bytes) -> bool:
        """From a rank; whether it shall stop."""
        self.messages.append(message)
        return self.stopping

    def take(self, stop: bool) -> list[bytes]:
        """By the driver: what has come since the last time, in order."""
        self.stopping = self.stopping or stop
        messages, self.messages = self.messages, []
        return messages


def pack(kind: str, value: Any) -> bytes:
    """A message; both ends are processes of the same run."""
    return bytes(cloudpickle.dumps((kind, value)))  # type: ignore[no-untyped-call]  # Ray's stub


def unpack(message: bytes) -> tuple[str, Any]:
    """Kind and value of :func:`pack`."""
    kind, value = cloudpickle.loads(message)
    return str(kind), value


def run_rank(settings: dict[str, Any]) -> None:
    """What every rank runs; by itself cheap to load, as Ray Train's controller loads it too."""
    from pipelines._ranks import rank

    rank(settings)
