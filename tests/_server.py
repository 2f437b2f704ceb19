"""A web server on this machine that can be told to fail."""

import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Server:
    """Serves a folder with ranges, and misbehaves as it is told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ranges = True
        self.slow = 0.0  # seconds before every answer
        # For each request to come: its number (from 0) and path to how it goes wrong, if at all.
        self.fault: Callable[[int, str], str | None] = lambda number, path: None
        self.lock = threading.Lock()
        self.reset()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.stopping = threading.Event()
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def reset(self) -> None:
        """Count from zero."""
        self.requests: list[tuple[str, str | None]] = []  # path and range
        self.sent: Counter[str] = Counter()  # bytes of bodies, by path
        self.busy = self.busiest = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def stop(self) -> None:
        self.stopping.set()
        self.http.shutdown()
        self.http.server_close()

    def answer(self, handler: Any) -> None:
        path, wanted = handler.path, handler.headers.get("Range")
        with self.lock:
            number = len(self.requests)
            self.requests.append((path, wanted))
            self.busy += 1
            self.busiest = max(self.busiest, self.busy)
        try:
            self.stopping.wait(self.slow)
            self._answer(handler, path, wanted, self.fault(number, path))
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with self.lock:
                self.busy -= 1

    def _answer(self, handler: Any, path: str, wanted: str | None, fault: str | None) -> None:
        if fault == "reset":
            handler.close_connection = True
            return None
        if fault == "stall":
            self.stopping.wait(5)
            handler.close_connection = True
            return None
        if fault is not None and fault.isdigit():
            return self._headers(handler, int(fault), 0, {"Retry-After": "0"})
        if fault is not None and fault.startswith("to "):
            return self._headers(handler, 302, 0, {"Location": fault[3:]})
        file = self.folder / path.lstrip("/")
        if not file.is_file():
            return self._headers(handler, 404, 0)
        content = file.read_bytes()
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted or "")
        if match is None or not self.ranges:
            body, status, more = content, 200, {}
        else:
            first, last = int(match[1]), min(int(match[2]), len(content) - 1)
            if first >= len(content):
                more = {"Content-Range": f"bytes */{len(content)}"}
                return self._headers(handler, 416, 0, more)
            body, status = content[first : last + 1], 206
            more = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
            if fault in ("early", "late"):
                shift = -1 if fault == "early" else 1
                more = {"Content-Range": f"bytes {first + shift}-{last + shift}/{len(content)}"}
            if fault == "short":
                more = {"Content-Range": f"bytes {first}-{last - 1}/{len(content)}"}
                body = body[:-1]
        self._headers(handler, status, len(body), more)
        if fault == "truncate":
            body = body[: len(body) // 2]
            handler.close_connection = True
        with self.lock:
            self.sent[path] += len(body)
        if fault == "drip":
            for byte in body:
                handler.wfile.write(bytes([byte]))
                time.sleep(0.05)
        handler.wfile.write(body)
        return None

    @staticmethod
    def _headers(
        handler: Any, status: int, length: int, more: dict[str, str] | None = None
    ) -> None:
        handler.send_response(status)
        for name, value in (more or {}).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(length))
        handler.end_headers()
