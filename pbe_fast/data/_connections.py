"""The loop that requests run on, in a thread of its own, and its connections: one a process."""

import asyncio
import atexit
import os
import threading

from pbe_fast.data._protocols import S3, Http

__all__ = ["Connections", "close_connections", "connections"]


class Connections:
    """A loop in a thread, and what was connected from it."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="storage", daemon=True)
        self.thread.start()
        self._http: Http | None = None
        self._s3: S3 | None = None

    def protocol(self, place: str) -> Http | S3:
        """What reads an address; call on the loop's thread."""
        if place.startswith("s3:"):
            return self.s3()
        if self._http is None:
            self._http = Http(self.loop)
        return self._http

    def s3(self) -> S3:
        """What reads S3; call on the loop's thread."""
        if self._s3 is None:
            self._s3 = S3(self.loop)
        return self._s3

    async def _disconnect(self) -> None:
        for protocol in (self._http, self._s3):
            if protocol is not None:
                await protocol.close()

    def close(self) -> None:
        """End the connections and the thread."""
        if self.pid != os.getpid() or self.loop.is_closed():
            return
        try:
            asyncio.run_coroutine_threadsafe(self._disconnect(), self.loop).result(5)
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(5)
            if not self.thread.is_alive():
                self.loop.close()


_lock = threading.Lock()
_current: Connections | None = None
# A fork copies the loop without its thread. Ending the copy would take the sockets off the
# parent's poll, which is shared, so it is kept and never touched again.
_left_behind: list[object] = []


def connections() -> Connections:
    """Those of this process."""
    global _current
    current = _current
    if current is not None and current.pid == os.getpid() and not current.loop.is_closed():
        return current
    with _lock:
        if _current is None or _current.pid != os.getpid() or _current.loop.is_closed():
            _left_behind.append(_current)
            _current = Connections()
        return _current


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # another thread may have held it


def close_connections() -> None:
    """Close what this process has open; a later read opens it again."""
    with _lock:
        if _current is not None:
            _current.close()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(close_connections)
