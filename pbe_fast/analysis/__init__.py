"""The paper's appendix, to be run: A in :mod:`.linear`, B in :mod:`.answers` and
:mod:`.predictions`, C in :mod:`.features`."""

__all__: list[str] = []
