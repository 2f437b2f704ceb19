"""Tables of Markdown, as the documents have them."""

from collections.abc import Iterable, Sequence

__all__ = ["table"]


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; the column of a head that begins with ``>`` is set to the right, as numbers are."""
    marks = ["---:" if head.startswith(">") else "---" for head in heads]
    lines = [[head.removeprefix(">") for head in heads], marks, *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)
