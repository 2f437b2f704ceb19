"""Reading bytes over http from a server that misbehaves. S3: test_s3.py."""

import os
import random
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pbe_fast._location import redacted
from pbe_fast.data.storage import (
    MissingError,
    NoRangesError,
    Patience,
    Request,
    Storage,
    close_connections,
)
from pbe_fast.errors import ConfigError, ShardError

QUICK = Patience(connect_seconds=1, stall_seconds=0.4, tries=4, first_wait=0.01, longest_wait=0.3)
CONTENT = random.Random(0).randbytes(300_000)


@pytest.fixture
def place(server: Any) -> str:
    (server.folder / "a b.bin").write_bytes(CONTENT)
    return f"{server.url}/a%20b.bin"


@pytest.fixture(autouse=True)
def unquoted(server: Any) -> None:
    """The test server looks for files by the path as it was sent."""
    (server.folder / "a%20b.bin").symlink_to(server.folder / "a b.bin")


def test_the_bytes_that_were_asked_for_and_no_more(server: Any, place: str) -> None:
    storage = Storage(QUICK)
    assert storage.size(place) == len(CONTENT)
    server.reset()
    assert storage.read(place, 1000, 50) == CONTENT[1000:1050]
    assert storage.read(place, len(CONTENT) - 7, 7, len(CONTENT)) == CONTENT[-7:]
    assert storage.read(place, 5, 0) == b""
    assert server.sent.total() == 57
    assert storage.read_object(place) == CONTENT


def test_many_requests_come_in_order_and_together(server: Any, place: str) -> None:
    server.slow = 0.05
    requests = [Request(place, i * 1000, 10 + i) for i in range(24)]
    found = list(Storage(QUICK, parallel=8).read_each(requests))
    assert found == [CONTENT[r.offset : r.offset + r.size] for r in requests]
    assert 4 <= server.busiest <= 8


def test_no_more_is_asked_for_than_is_taken(server: Any, place: str) -> None:
    reading = Storage(QUICK, parallel=2).read_each(Request(place, i, 1) for i in range(1000))
    assert next(reading) == CONTENT[:1]
    del reading
    time.sleep(0.1)
    assert len(server.requests) < 20


@pytest.mark.parametrize(
    "fault", ["503", "500", "429", "reset", "stall", "truncate", "early", "late", "short"]
)
def test_a_passing_fault_changes_nothing(server: Any, place: str, fault: str) -> None:
    server.fault = lambda number, _: fault if number < 3 else None
    assert Storage(QUICK).read(place, 10, 1000, len(CONTENT)) == CONTENT[10:1010]
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("503", "the server said '503 Service Unavailable', 4 tries"),
        ("stall", "in time, 4 tries|Timeout.*4 tries"),
        ("reset", "4 tries"),
        ("truncate", "4 tries"),
        ("early", "other bytes than it was asked for, 4 tries"),
        ("late", "other bytes than it was asked for, 4 tries"),
        ("short", "the answer has 999 of 1000 bytes, 4 tries"),
    ],
)
def test_a_lasting_fault_is_one_error_in_time(
    server: Any, place: str, fault: str, said: str
) -> None:
    server.fault = lambda number, _: fault
    began = time.monotonic()
    with pytest.raises(ShardError, match=said) as caught:
        Storage(QUICK).read(place, 10, 1000)
    assert str(caught.value).startswith(place)
    assert "same command again" in str(caught.value)
    # aiohttp asks once more by itself where a connection is closed without an answer.
    assert len(server.requests) == (8 if fault == "reset" else 4)
    assert time.monotonic() - began < 4 * QUICK.stall_seconds + 1


def test_a_trickle_counts_as_a_stall(server: Any, place: str) -> None:
    server.fault = lambda number, _: "drip" if number == 0 else None
    hasty = Patience(0.1, 0.2, bytes_per_second=1e6, tries=2, first_wait=0.01)
    began = time.monotonic()
    assert Storage(hasty).read(place, 0, 1000) == CONTENT[:1000]
    assert time.monotonic() - began < 2  # to its end it takes 50 seconds


@pytest.mark.parametrize(
    ("fault", "said", "kind"),
    [
        ("404", "Check the address", MissingError),
        ("410", "Check the address", MissingError),
        ("403", "rights or the credentials", ShardError),
        ("401", "rights or the credentials", ShardError),
        ("400", "Check the address", ShardError),
    ],
)
def test_what_cannot_get_better_is_not_tried_again(
    server: Any, place: str, fault: str, said: str, kind: type[ShardError]
) -> None:
    server.fault = lambda number, _: fault
    with pytest.raises(kind, match=f"'{fault} .*{said}"):
        Storage(QUICK).read(place, 10, 1000)
    assert len(server.requests) == 1


@pytest.mark.parametrize(("offset", "size"), [(len(CONTENT) - 5, 10), (len(CONTENT) + 5, 10)])
def test_a_shorter_object_is_no_fault_of_the_network(
    server: Any, place: str, offset: int, size: int
) -> None:
    with pytest.raises(ShardError, match=rf"{len(CONTENT)} bytes instead of"):
        Storage(QUICK).read(place, offset, size)
    assert len(server.requests) == 1


def test_an_object_of_another_size_is_found_by_any_read(server: Any, place: str) -> None:
    with pytest.raises(ShardError, match="is not the one that the manifest was made from"):
        Storage(QUICK).read(place, 0, 10, len(CONTENT) + 1)


def test_a_server_without_ranges(server: Any, place: str) -> None:
    server.ranges = False
    storage = Storage(QUICK)
    with pytest.raises(NoRangesError):
        storage.read(place, 10, 100)
    assert server.sent.total() <= len(CONTENT)
    assert storage.size(place) == len(CONTENT)
    assert storage.read_object(place) == CONTENT
    with pytest.raises(ShardError, match=r"changed|instead of"):
        storage.read(place, 0, len(CONTENT) - 1, len(CONTENT) - 1)


def test_large_objects_come_in_pieces(
    server: Any, place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pbe_fast.data.storage.PIECE", 70_000)
    storage = Storage(QUICK)
    assert [len(piece) for piece in storage.pieces(place, len(CONTENT))] == [70_000] * 4 + [20_000]
    with (tmp_path / "copy").open("w+b") as file:
        assert storage.download(place, file) == len(CONTENT)
    assert (tmp_path / "copy").read_bytes() == CONTENT
    server.ranges = False
    assert b"".join(storage.pieces(place, len(CONTENT))) == CONTENT


def test_an_object_that_grows_while_it_is_read(server: Any, place: str) -> None:
    def grow(number: int, _: str) -> None:
        with (server.folder / "a b.bin").open("ab") as file:
            file.write(b"x")

    server.fault = grow
    with pytest.raises(ShardError, match=r"changes while|instead of"):
        Storage(QUICK).read_object(place)


def test_sizes_of_many_with_errors_in_their_places(server: Any, place: str) -> None:
    sizes = list(Storage(QUICK).sizes([place, f"{server.url}/none", place]))
    assert sizes[::2] == [len(CONTENT)] * 2
    assert isinstance(sizes[1], MissingError)
    (server.folder / "empty").write_bytes(b"")
    assert Storage(QUICK).size(f"{server.url}/empty") == 0
    assert Storage(QUICK).read_object(f"{server.url}/empty") == b""


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(ShardError, match=r"onnect.*4 tries"):
            Storage(QUICK).read(f"http://127.0.0.1:{taken.getsockname()[1]}/x", 0, 1)
    close_connections()


def test_secrets_of_a_redirect_stay_out_of_the_error(server: Any, place: str) -> None:
    host = server.url.removeprefix("http://")
    server.fault = lambda number, _: f"to http://user:hush@{host}/x?Signature=secret{number}"
    with pytest.raises(ShardError, match="TooManyRedirects") as caught:
        Storage(QUICK).read(place, 0, 1)
    assert not re.search("hush|secret", str(caught.value))


def test_what_is_taken_out_of_a_message() -> None:
    said = "GET 'https://a:b@host:1/x?y=z' and (http://h/p?q) of s3://bucket/k?y@z, us@example.com?"
    assert redacted(said) == (
        "GET 'https://host:1/x' and (http://h/p of s3://bucket/k?y@z, us@example.com?"
    )
    began = time.monotonic()
    for text in ("x" * 10**6, "://" * 10**6, "http://a@" * 10**5, "?@" * 10**6):
        redacted(text)
    assert time.monotonic() - began < 2


def test_waits_double_and_repeat() -> None:
    patience = Patience()
    waits = [patience.wait("s3://b/k", 5, attempt) for attempt in range(1, 8)]
    assert waits == [patience.wait("s3://b/k", 5, attempt) for attempt in range(1, 8)]
    assert all(0.75 <= wait / (0.5 * 2**i) <= 1.25 for i, wait in enumerate(waits))
    assert len({patience.wait("s3://b/k", offset, 1) for offset in range(50)}) > 45
    assert patience.wait("s3://b/k", 5, 30) <= 40


def test_the_wait_that_the_server_asks_for_is_kept_within_bounds(
    server: Any, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(handler: Any, path: str, wanted: str | None, fault: str | None) -> None:
        if fault:
            return type(server)._headers(handler, 503, 0, {"Retry-After": "900"})
        return plain(handler, path, wanted, None)

    plain = server._answer
    monkeypatch.setattr(server, "_answer", answer)
    server.fault = lambda number, _: "503" if number == 0 else None
    began = time.monotonic()
    assert Storage(QUICK).read(place, 0, 1) == CONTENT[:1]
    assert QUICK.longest_wait <= time.monotonic() - began < 2


def test_a_forked_process_reads_for_itself(server: Any, place: str) -> None:
    storage = Storage(QUICK)
    assert storage.read(place, 0, 10) == CONTENT[:10]
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = int(storage.read(place, 10, 10) != CONTENT[10:20])
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert storage.read(place, 20, 10) == CONTENT[20:30]


def test_http_cannot_list() -> None:
    with pytest.raises(ShardError, match="range in braces"):
        Storage(QUICK).find("http://host.invalid/*.tar")


@pytest.mark.parametrize(
    ("module", "place", "call"),
    [
        ("s3fs", "s3://bucket/key", lambda storage, place: storage.read(place, 0, 1)),
        ("aiohttp", "http://host.invalid/x", lambda storage, place: storage.size(place)),
    ],
)
def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, module: str, place: str, call: Callable[[Storage, str], object]
) -> None:
    close_connections()
    for name in (module, "fsspec.implementations.http"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(ConfigError, match="pip install"):
        call(Storage(QUICK), place)
    close_connections()
