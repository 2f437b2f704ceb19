"""The jobs that a user starts: the command line."""

__all__: list[str] = []
