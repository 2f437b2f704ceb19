"""Measurements: what the method achieves and how fast it runs. Results are kept as JSON."""

__all__: list[str] = []
