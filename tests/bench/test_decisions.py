"""The benchmark of Sieve's decisions, on a small set."""

import pytest

from bench import decisions


@pytest.mark.parametrize(("mode", "apart"), [("all_to_one", 1), ("all_to_all", 12)])
def test_what_is_timed_finds_the_poison(
    mode: str, apart: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decisions, "PER_CLASS", 100)
    monkeypatch.setattr(decisions, "COLUMNS", 64)
    row = decisions.run_one(12, mode)
    assert row["samples"] == 1200
    assert row["apart"] == apart
    assert row["precision"] > 0.85
    assert row["recall"] > 0.95
    assert row["seconds"].keys() == {"split", "round 0", "round 1", "round 2"}
