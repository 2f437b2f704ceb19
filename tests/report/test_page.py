"""The page of a run: true words, whole content, and nothing that a hostile run can reach."""

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pbe_fast.errors import RunDirectoryError
from pbe_fast.report import REPORT_NAME, write_report
from pbe_fast.report._svg import clean_text

VOID = {"meta", "link", "br", "img", "input", "hr"}
PAYLOADS = [
    "<script>alert(1)</script>",
    "</style><script>alert(2)</script>",
    '"><img src=x onerror=alert(3)>',
    "' onmouseover='alert(4)",
    "{{ 7 * 7 }}{% raw %}",
    "</pre></details><h1>owned</h1>",
    "&lt;b&gt;",
    "<!-- --><svg onload=alert(5)>",
]


class Page(HTMLParser):
    """The page as a browser would take it apart: elements, their attributes and the text."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.pieces: list[tuple[str, str]] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.pieces.append((self.open[-1] if self.open else "", data))

    def texts(self, tag: str) -> list[str]:
        return [data for inside, data in self.pieces if inside == tag]

    @property
    def text(self) -> str:
        words = " ".join(data for inside, data in self.pieces if inside != "style")
        return " ".join(words.split())


def read(run: Path) -> Page:
    path = write_report(run)
    assert path == run / REPORT_NAME
    return Page(path.read_text("utf-8"))


def change(run: Path, **updates: Any) -> None:
    path = run / "metrics.json"
    metrics = json.loads(path.read_text()) | updates
    path.write_text(json.dumps({k: v for k, v in metrics.items() if v is not ...}))


def assert_harmless(page: Page) -> None:
    for tag, attributes in page.elements:
        assert tag not in {"script", "iframe", "object", "embed", "form", "base", "a"}
        if tag == "img":  # of ours alone
            assert re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/]+=*", attributes["src"] or "")
            assert attributes["alt"]
            continue
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"href", "src", "xlink:href"}:
                assert value is not None
                assert value == "data:," or value.startswith("#")
            if name == "style":
                assert not re.search(r"url\((?!#)", value or "")
    assert page.open == []
    assert not re.search(r"@import|url\(", "".join(page.texts("style")))


def test_page_needs_nothing_from_outside(any_run: Path) -> None:
    page = read(any_run)
    assert_harmless(page)
    policy = [
        a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert len(policy) == 1
    directives = {d.strip() for d in (policy[0] or "").split(";")}
    assert {"default-src 'none'", "style-src 'unsafe-inline'", "img-src data:"} <= directives


def test_page_is_accessible(any_run: Path) -> None:
    page = read(any_run)
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert headings.count(1) == 1
    assert headings[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(headings))
    assert all("scope" in a for tag, a in page.elements if tag == "th")
    for tag, attributes in page.elements:
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]
        if attributes.get("class") == "scroll":  # can be scrolled by keyboard, and says what it is
            assert attributes["tabindex"] == "0"
            assert attributes["role"] == "region"
    assert ("html", {"lang": "en"}) in page.elements
    styles = "".join(page.texts("style"))
    assert "prefers-color-scheme: dark" in styles
    assert "tabular-nums" in styles


def test_same_run_same_bytes(any_run: Path) -> None:
    first = write_report(any_run).read_bytes()
    assert write_report(any_run).read_bytes() == first
    assert sorted(p.name for p in any_run.iterdir() if p.name.startswith(".")) == []


def test_pbe_page_shows_everything(pbe_run: Path) -> None:
    page = read(pbe_run)
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    h1 = page.texts("h1")[0].replace("\N{NO-BREAK SPACE}", " ")
    assert h1 == "ASR fell from 100.0 % to 0.1 %, ACC from 97.1 % to 96.4 %."
    assert "Trigger removed" in text
    for piece in (
        "−99.9",
        "−0.7",
        "0.941",
        "91.2 % of the 400 most suspicious images are poisoned",
        "11 h 27 min",
        "41,220.5",
        "12,840",
        'blend (mode {"kind": "all-to-one", "target": 1})',
        "builtin:preact_resnet18 (width 16, 43 classes)",
        "finetune adversarial",
        "3 images that could not be decoded",
        "torch 2.11.0",
        "The 50 most suspicious images",
        "eps_255: 6",
    ):
        assert piece in text, piece
    assert sum(tag == "svg" for tag, _ in page.elements) == 3
    assert page.texts("span").count("yes") >= 45


def test_worst_suspects_come_in_order_and_without_quarantined_ones(pbe_run: Path) -> None:
    table = pq.read_table(pbe_run / "suspects.parquet").to_pylist()
    ranked = sorted((row for row in table if row["score"] == row["score"]), key=lambda r: r["rank"])
    page = read(pbe_run)
    keys = [data for data in page.texts("th") if re.fullmatch(r"\d{5}/\d{5}_\d{5}", data)]
    assert keys == [row["key"] for row in ranked[:50]]


def test_aft_page_does_not_claim_what_was_not_measured(aft_run: Path) -> None:
    page = read(aft_run)
    h1 = page.texts("h1")[0]
    assert "not known" in h1
    assert "Trigger removed" not in page.text
    assert page.text.count("not measured") >= 2
    assert "A low score is a reason to look at an image, not a proof." in page.text
    assert "Poisoned" not in page.texts("th")
    assert "ACC after each evaluated epoch" in page.text
    assert "1,333 images" in page.text
    assert "Rounds" not in page.texts("h3")


def test_train_page(train_run: Path) -> None:
    page = read(train_run)
    h1 = page.texts("h1")[0].replace("\N{NO-BREAK SPACE}", " ")
    assert h1 == "The trained model has ACC 97.1 % and ASR 100.0 % on the test set."
    assert "Infected" in page.text
    assert "Purified" not in page.texts("th")
    assert "Suspects" not in page.texts("h2")


def test_worse_than_chance_is_said(pbe_run: Path) -> None:
    change(pbe_run, suspects={"count": 4000, "auroc": 0.09})
    assert "worse than chance" in read(pbe_run).text


def test_how_many_images_are_suspect_and_undecided_is_said(pbe_run: Path) -> None:
    told = {"count": 4000, "suspect": 512, "undecided": 34}
    change(pbe_run, method="sieve", suspects=told)
    said = read(pbe_run).text
    assert "Suspect 512 " in said
    assert "Undecided 34: not trained with their labels" in said
    assert "Score: by the loss of an image’s label" in said
    change(pbe_run, suspects=told | {"undecided": 0, "precision": 0.75, "recall": 0.5})
    said = read(pbe_run).text
    assert "512: 75.0 % of them are poisoned, and 50.0 % of the poisoned" in said
    assert "Undecided" not in said
    change(pbe_run, method="pbe", suspects={"count": 4000})
    said = read(pbe_run).text
    assert "Score: cosine between the logits" in said
    assert "Suspect 512" not in said


def test_a_purification_without_a_test_set_claims_nothing(aft_run: Path) -> None:
    change(aft_run, infected=..., purified=...)
    (aft_run / "metrics.jsonl").unlink()
    page = read(aft_run)
    assert page.texts("h1") == ["A purified model was written, but it was not tested."]
    assert "Before and after" not in page.texts("h2")
    assert "Suspects" in page.texts("h2")
    assert_harmless(page)


def test_curve_and_table_may_differ_and_it_is_said(pbe_run: Path) -> None:
    note = "measured on a sample of the test images"
    assert note not in read(pbe_run).text
    change(pbe_run, purified={"acc": 0.97, "asr": 0.0011})
    assert note in read(pbe_run).text


def test_least_run_directory(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    assert_harmless(read(tmp_path))


def test_hostile_content_is_text(tmp_path: Path, pbe_run: Path) -> None:
    payload = " ".join(PAYLOADS)
    change(
        pbe_run,
        method=payload,
        device=payload,
        precision=payload,
        attack={"name": payload, payload: payload},
        versions={payload: payload},
        seconds={payload: 1.0},
        images_per_second={payload: 2.0},
    )
    (pbe_run / "config.yaml").write_text("\n".join(PAYLOADS) + "\x00\x1b[31m")
    pq.write_table(
        pa.table(
            {
                "key": PAYLOADS,
                "shard": PAYLOADS,
                "label": pa.array(range(len(PAYLOADS)), pa.int32()),
                "score": [0.1 * i for i in range(len(PAYLOADS))],
                "rank": list(range(len(PAYLOADS))),
            }
        ),
        pbe_run / "suspects.parquet",
    )
    hostile = pbe_run.rename(tmp_path / '"><script>alert(9)<&')
    page = read(hostile)
    assert_harmless(page)
    assert page.texts("h1") == read(hostile).texts("h1")
    assert len(page.texts("h1")) == 1
    for text in PAYLOADS:
        assert text in page.texts("th")
        assert text in page.texts("td")
        assert text in "".join(page.texts("pre"))
    assert "49" not in page.texts("td")
    assert payload in "".join(page.texts("dd"))
    assert '"><script>alert(9)<&' in page.texts("bdi")
    source = (hostile / REPORT_NAME).read_text("utf-8")
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f]", source)


@given(text=st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=60))
@settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_text_is_shown_as_it_is(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps({"test": {"acc": 0.5}, "device": text}))
    source = write_report(tmp_path).read_bytes().decode()
    page = Page(source)
    assert_harmless(page)
    assert clean_text(text) in "".join(page.texts("dd"))


def test_a_lone_surrogate_does_not_stop_the_report(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text('{"test": {"acc": 0.5}, "device": "a\\ud800b"}')
    assert "a\ufffdb" in read(tmp_path).text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("\udcff", "cannot be read as JSON"),
        ("[1, 2]", "holds a list"),
        ('{"purified": {"acc": 96.4}}', "purified.acc"),
        ('{"purified": {"acc": "high"}}', "purified.acc"),
        ('{"seconds": {"finetune": -1}}', "seconds.finetune"),
        ('{"rounds": [{"subset": 3}]}', "rounds.0.round"),
        ("[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_damaged_metrics_are_refused_with_advice(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "metrics.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    (tmp_path / REPORT_NAME).write_text("the earlier report")
    with pytest.raises(RunDirectoryError, match=re.escape(message)) as caught:
        write_report(tmp_path)
    assert str(tmp_path / "metrics.json") in str(caught.value)
    assert "again" in str(caught.value)
    assert (tmp_path / REPORT_NAME).read_text() == "the earlier report"


def test_missing_directory_and_metrics_are_said(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="no such run directory"):
        write_report(tmp_path / "absent")
    with pytest.raises(RunDirectoryError, match="has not finished"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nan_counts_as_not_measured(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text('{"purified": {"acc": 0.9, "asr": NaN}}')
    assert "not known" in read(tmp_path).texts("h1")[0]


def test_damaged_suspects_are_refused(pbe_run: Path) -> None:
    path = pbe_run / "suspects.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["rank"]), path)
    with pytest.raises(RunDirectoryError, match="column 'rank' is missing"):
        write_report(pbe_run)
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(RunDirectoryError, match="is not a list of suspects"):
        write_report(pbe_run)


def test_quarantined_images_are_no_suspects(pbe_run: Path) -> None:
    path = pbe_run / "suspects.parquet"
    table = pq.read_table(path).slice(0, 8)  # of these the first three have no score
    pq.write_table(table, path)
    page = read(pbe_run)
    assert "The 5 most suspicious images" in page.texts("h3")
    assert "nan" not in page.text


def test_all_images_quarantined(pbe_run: Path) -> None:
    path = pbe_run / "suspects.parquet"
    table = pq.read_table(path)
    nothing = pa.array([float("nan")] * len(table), pa.float32())
    pq.write_table(table.set_column(3, "score", nothing), path)
    page = read(pbe_run)
    assert "most suspicious images" not in page.texts("h3")
    assert sum(tag == "svg" for tag, _ in page.elements) == 2


def test_rounds_stand_in_where_no_epochs_were_recorded(pbe_run: Path) -> None:
    (pbe_run / "metrics.jsonl").unlink()
    page = read(pbe_run)
    assert "rounds finished" in page.texts("text")
    assert sum(tag == "svg" for tag, _ in page.elements) == 2
