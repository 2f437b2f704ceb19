"""The documents say what the code and the kept results say."""

import re
import tomllib
from pathlib import Path

import pytest

from bench.docs import DOCUMENTS, ROOT, refreshed


@pytest.mark.parametrize("name", DOCUMENTS)
def test_generated_blocks_are_up_to_date(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert refreshed(text) == text, f"{name} is out of date: run python -m bench.docs"
    assert "<!-- begin" in text


def test_a_stale_table_is_noticed() -> None:
    text = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    stale = re.sub(r"`0\.001`", "`0.002`", text)
    assert stale != text
    assert refreshed(stale) == text


def test_tables_of_keys_leave_out_what_is_refused_and_name_the_values() -> None:
    text = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"<!-- begin ([a-z]+)-keys -->(.*?)<!-- end -->", text, re.DOTALL))
    for name, block in blocks.items():
        assert ("`data.clean`" in block) == (name in {"purify", "train", "features"}), name
        assert ("`adversary.random_start`" in block) == (name in {"purify", "mine"}), name
    assert "| badnets, blend, sig, wanet, input_aware |" in blocks["poison"]
    assert "| auto, aft, pbe, sieve; auto: aft where" in blocks["purify"]


def test_links_between_documents_lead_somewhere() -> None:
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_links_to_headings_lead_somewhere() -> None:
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        for name, heading in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", text):
            target = (path.parent / name) if name else path
            assert heading in _anchors(target.read_text(encoding="utf-8")), (path.name, heading)


def _anchors(text: str) -> set[str]:
    """The names that GitHub gives headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_constraints_name_versions_and_no_addresses() -> None:
    lines = Path(ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    for line in lines:
        assert line.startswith("#") or re.fullmatch(r"[\w.-]+==[\w.+!-]+", line), line
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["dev"] + extras["bench"]
    for requirement in wanted:
        assert re.split(r"[>=<\[; ]", requirement)[0].lower() in pinned, requirement
