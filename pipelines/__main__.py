"""``python -m pipelines`` is ``pbe-fast``, where the code is not installed as a command."""

from pipelines.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
