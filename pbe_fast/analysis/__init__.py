"""The paper's appendix, to be run: A in :mod:`.linear`, C in :mod:`.features`."""

__all__: list[str] = []
