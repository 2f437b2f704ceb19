"""The cache of byte ranges: what is in it is right, whatever happens to its files."""

import contextlib
import logging
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbe_fast.data import _cache_file as cache_file
from pbe_fast.data import cache as module
from pbe_fast.data.cache import Part, RangeCache, default_folder, shard_key

TOTAL = 1_000_003
CONTENT = random.Random(1).randbytes(TOTAL)
KEY = shard_key("s3://bucket/a.tar", "0" * 64, TOTAL)


def part(start: int, end: int, key: str = KEY) -> Part:
    return Part(key, TOTAL, start, CONTENT[start:end])


def get(cache: RangeCache, start: int, end: int, key: str = KEY) -> bytes | None:
    return cache.get(key, TOTAL, start, end - start)


def keys(count: int) -> list[str]:
    return [shard_key(f"s3://bucket/{i}.tar", "0" * 64, TOTAL) for i in range(count)]


@pytest.fixture
def cache(tmp_path: Path) -> RangeCache:
    return RangeCache(tmp_path / "cache", 10**9)


def file_of(cache: RangeCache, key: str = KEY) -> Path:
    (found,) = cache.folder.glob(f"{key}*")
    return found


def test_what_was_put_comes_back_and_nothing_else(cache: RangeCache) -> None:
    assert get(cache, 0, 1) is None
    assert not cache.folder.exists()
    cache.put([part(1000, 2000), part(5000, 5001)])
    assert get(cache, 1000, 2000) == CONTENT[1000:2000]
    assert get(cache, 1500, 1600) == CONTENT[1500:1600]
    assert get(cache, 5000, 5001) == CONTENT[5000:5001]
    for start, end in [(999, 1001), (1999, 2001), (0, 10), (4999, 5001), (1000, 5001)]:
        assert get(cache, start, end) is None
    cache.put([part(1900, 5000)])  # fills the hole, and overlaps
    assert get(cache, 1000, 5001) == CONTENT[1000:5001]
    assert cache.used() < 40_000  # of a megabyte


def test_other_contents_under_the_same_name_never_meet(cache: RangeCache) -> None:
    cache.put([part(0, 100)])
    for other in (
        shard_key("s3://bucket/a.tar", "1" * 64, TOTAL),
        shard_key("s3://bucket/b.tar", "0" * 64, TOTAL),
        shard_key("s3://bucket/a.tar", "0" * 64, TOTAL + 1),
    ):
        assert get(cache, 0, 100, other) is None
    assert get(RangeCache(cache.folder, 10**9), 0, 100) == CONTENT[:100]


Spans = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 90)), max_size=12)


@settings(deadline=None, max_examples=60)
@given(puts=Spans, gets=Spans)
def test_intervals(
    tmp_path_factory: pytest.TempPathFactory,
    puts: list[tuple[int, int]],
    gets: list[tuple[int, int]],
) -> None:
    """Against a set of the bytes that were put, in two caches on one folder."""
    cache = RangeCache(tmp_path_factory.mktemp("intervals"), 10**9)
    other = RangeCache(cache.folder, 10**9)
    there: set[int] = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_file, "_LARGEST", 32)
        for i, (start, size) in enumerate(puts):
            (cache, other)[i % 2].put([part(start, start + size)])
            there |= set(range(start, start + size))
            for begin, length in gets:
                wanted = range(begin, begin + length)
                expected = CONTENT[begin : begin + length] if there.issuperset(wanted) else None
                assert get(cache, begin, begin + length) == expected
                assert get(other, begin, begin + length) == expected


@pytest.mark.parametrize("cut", range(1, 20))
def test_half_a_record_is_not_believed_and_not_in_the_way(cache: RangeCache, cut: int) -> None:
    cache.put([part(0, 100)])
    cache.put([part(200, 300)])
    file = file_of(cache)
    os.truncate(file, file.stat().st_size - cut)
    fresh = RangeCache(cache.folder, 10**9)
    assert get(fresh, 0, 100) == CONTENT[:100]
    assert get(fresh, 200, 300) is None
    fresh.put([part(200, 300), part(400, 500)])
    for reader in (fresh, cache, RangeCache(cache.folder, 10**9)):
        assert get(reader, 200, 300) == CONTENT[200:300]
        assert get(reader, 400, 500) == CONTENT[400:500]


@settings(deadline=None, max_examples=40)
@given(
    damage=st.lists(
        st.tuples(st.integers(0, 6 * 20 - 1), st.integers(1, 255)), min_size=1, max_size=4
    )
)
def test_damaged_records_are_misses(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, int]]
) -> None:
    cache = RangeCache(tmp_path_factory.mktemp("damaged"), 10**9)
    cache.put([part(i * 1000, i * 1000 + 500) for i in range(6)])
    file = file_of(cache)
    records = file.stat().st_size - 6 * 20
    with file.open("r+b") as stream:
        for at, flip in damage:
            stream.seek(records + at)
            (byte,) = stream.read(1)
            stream.seek(records + at)
            stream.write(bytes([byte ^ flip]))
    fresh = RangeCache(cache.folder, 10**9)
    for i in range(6):
        assert get(fresh, i * 1000, i * 1000 + 500) in (None, CONTENT[i * 1000 : i * 1000 + 500])


def test_a_record_with_a_wrong_checksum_is_not_believed(cache: RangeCache) -> None:
    cache.put([part(0, 100), part(200, 300)])
    file = file_of(cache)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    fresh = RangeCache(cache.folder, 10**9)
    assert get(fresh, 0, 100) == CONTENT[:100]
    assert get(fresh, 200, 300) is None


def test_damaged_bytes_are_misses_and_are_mended(cache: RangeCache) -> None:
    cache.put([part(0, 300_000)])
    with file_of(cache).open("r+b") as stream:
        stream.seek(150_000)
        stream.write(b"\0\0\0\0")
    for reader in (cache, RangeCache(cache.folder, 10**9)):
        assert get(reader, 149_999, 150_001) is None
        assert get(reader, 0, 100) == CONTENT[:100]
    cache.put([part(140_000, 160_000)])
    assert get(cache, 149_999, 150_001) == CONTENT[149_999:150_001]


def test_a_foreign_file_of_that_name_is_a_miss(cache: RangeCache) -> None:
    cache.put([part(0, 100)])
    file_of(cache).write_bytes(random.Random(2).randbytes(2_000_000))
    fresh = RangeCache(cache.folder, 10**9)
    assert get(fresh, 0, 100) is None
    fresh.put([part(0, 100)])
    assert get(fresh, 0, 100) == CONTENT[:100]


def test_the_shard_that_was_not_read_for_longest_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_file, "_TOUCH_SECONDS", 0)
    cache = RangeCache(tmp_path, 400_000)
    one, two, three, four = keys(4)
    for key in (one, two, three):
        cache.put([part(0, 100_000, key)])
        time.sleep(0.01)
    assert get(cache, 0, 10, one) is not None
    time.sleep(0.01)
    cache.put([part(0, 100_000, four)])
    assert cache.used() <= 400_000
    there = [get(cache, 0, 10, key) is not None for key in (one, two, three, four)]
    assert there == [True, False, True, True]


def test_the_limit_holds_whatever_is_put(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 300_000)
    draw = random.Random(3)
    for _ in range(60):
        start = draw.randrange(800_000)
        cache.put([part(start, start + draw.randrange(1, 90_000), draw.choice(keys(6)))])
        assert cache.used() <= 300_000
    cache.put([part(0, 100, keys(1)[0])])
    cache.put([part(0, 400_000)])  # more than ever fits
    assert get(cache, 0, 400_000) is None
    assert get(cache, 0, 100, keys(1)[0]) == CONTENT[:100]


def test_who_has_an_evicted_shard_open_goes_on(tmp_path: Path) -> None:
    reader, writer = RangeCache(tmp_path, 200_000), RangeCache(tmp_path, 200_000)
    one, two = keys(2)
    reader.put([part(0, 100_000, one)])
    assert get(reader, 0, 100, one) == CONTENT[:100]
    (held,) = reader._open.values()
    writer.put([part(0, 120_000, two)])
    assert os.fstat(held.fd).st_blocks == 0  # else its space would be taken, and not counted
    assert get(reader, 0, 100, one) is None
    reader.put([part(0, 50_000, one)])
    assert get(reader, 0, 100, one) == CONTENT[:100]
    assert get(writer, 0, 100, one) == CONTENT[:100]
    assert reader.used() <= 200_000
    writer.drop(one)
    assert get(reader, 0, 100, one) is None


def _work(folder: Path, limit: int, seed: int, rounds: int) -> None:
    """Read and put at random; raises on wrong bytes, or if nothing is ever found."""
    cache, draw, hits = RangeCache(folder, limit), random.Random(seed), 0
    for _ in range(rounds):
        start, key = draw.randrange(900_000), draw.choice(keys(5))
        end = start + draw.randrange(1, 60_000)
        found = get(cache, start, end, key)
        if found is None:
            cache.put([part(start, end, key)])
        else:
            hits += 1
            assert found == CONTENT[start:end]
    assert hits


def _in_a_process(folder: Path, limit: int, seed: int, rounds: int) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _work(folder, limit, seed, rounds)
            status = 0
        finally:
            os._exit(status)
    return child


def test_two_processes_at_once(tmp_path: Path) -> None:
    running = {_in_a_process(tmp_path, 1_500_000, seed, 250) for seed in (1, 2)}
    largest = 0
    while running:
        largest = max(largest, RangeCache(tmp_path).used())
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            assert status == 0
            running.remove(child)
        time.sleep(0.005)
    assert 1_000_000 < largest <= 1_500_000


def test_killed_while_writing(tmp_path: Path) -> None:
    for seed in range(8):
        child = _in_a_process(tmp_path, 10**9, seed, 10**9)
        time.sleep(0.01 + 0.01 * seed)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
    cache = RangeCache(tmp_path, 10**9)
    found = 0
    for key in keys(5):
        for start in range(0, TOTAL - 500, 500):
            content = get(cache, start, start + 500, key)
            assert content in (None, CONTENT[start : start + 500])
            found += content is not None
    assert found > 0
    cache.put([part(0, 1000)])  # no lock is left behind
    assert get(cache, 0, 1000) == CONTENT[:1000]


def test_a_record_comes_after_its_bytes(cache: RangeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped before any single write, no reader is told what is not there."""
    pwrite = os.pwrite
    for stop in range(6):
        left = iter(range(stop))

        def stopping(fd: int, data: bytes, offset: int, left: Iterator[int] = left) -> int:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return pwrite(fd, data, offset)

        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(os, "pwrite", stopping)
            cache.put([part(i * 1000, i * 1000 + 700) for i in range(3)])
        fresh = RangeCache(cache.folder, 10**9)
        for i in range(3):
            expected = CONTENT[i * 1000 : i * 1000 + 700] if stop >= 2 * i + 2 else None
            assert get(fresh, i * 1000, i * 1000 + 700) == expected
        cache.drop(KEY)


def test_threads_and_a_fork(cache: RangeCache) -> None:
    wrong: list[object] = []

    def work(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(60):
            start = draw.randrange(900_000)
            cache.put([part(start, start + 1000)])
            if (found := get(cache, start, start + 1000)) != CONTENT[start : start + 1000]:
                wrong.append((start, found))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            cache.put([part(950_000, 950_100)])
            status = int(get(cache, 950_000, 950_100) != CONTENT[950_000:950_100])
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    for thread in threads:
        thread.join()
    assert wrong == []
    assert get(cache, 950_000, 950_100) == CONTENT[950_000:950_100]


def test_a_process_forked_in_a_turn_does_not_keep_the_lock(
    cache: RangeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.put([part(0, 100)])
    monkeypatch.setattr(module, "_LOCK_SECONDS", 0.05)
    with cache._locked():
        child = os.fork()
        if child == 0:
            time.sleep(10)
            os._exit(0)
    with cache._locked() as held:
        assert held
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_somebody_sits_on_the_lock(cache: RangeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.put([part(0, 100)])
    monkeypatch.setattr(module, "_LOCK_SECONDS", 0.05)
    with cache._locked() as held:
        assert held
        cache.put([part(200, 300)])  # left out, not waited for
    assert get(cache, 200, 300) is None
    assert get(cache, 0, 100) == CONTENT[:100]


def test_a_cache_that_fails_is_given_up_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    cache = RangeCache(tmp_path / "file" / "cache", 10**9)
    full = RangeCache(tmp_path / "full", 10**9)

    def no_space(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            cache.put([part(0, 100)])
            assert get(cache, 0, 100) is None
        monkeypatch.setattr(os, "pwrite", no_space)
        full.put([part(0, 100)])
    assert get(full, 0, 100) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "No space left" in caplog.text


def test_few_files_stay_open(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 10**9, max_open=3)
    before = len(os.listdir("/proc/self/fd"))
    for key in keys(20):
        cache.put([part(0, 10, key)])
    assert len(os.listdir("/proc/self/fd")) <= before + 3
    assert all(get(cache, 0, 10, key) == CONTENT[:10] for key in keys(20))


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_bytes(b"x" * 500_000)
    cache = RangeCache(tmp_path, 100_000)
    for key in keys(5):
        cache.put([part(0, 50_000, key)])
    assert (tmp_path / "diary.txt").stat().st_size == 500_000
    assert cache.used() <= 100_000


def test_where_it_lies_and_how_large_it_gets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "pbe-fast"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert default_folder() == Path("/home/somebody/.cache/pbe-fast")
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    limit = RangeCache(tmp_path).limit
    assert limit <= 50 * 10**9
    assert limit == 50 * 10**9 or abs(limit - free / 2) < 10**9
