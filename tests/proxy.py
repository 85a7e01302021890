"""A TCP proxy on loopback that breaks on demand: cut, delay, black-hole, or cut at the bytes that a test names.

`FaultProxy(host, port)` listens on a port of its own and carries every connection on to the real one. Faults
hold for connections that are open and for those to come, until `heal()`:

    with FaultProxy("127.0.0.1", 5432) as proxy:
        proxy.cut_when(b"COMMIT", Way.TO_SERVER)            # it never arrives; both sides lose the connection
        proxy.cut_when(b"COMMIT", Way.TO_SERVER, deliver=True)   # it arrives, and the answer doesn't
        proxy.delay(0.05)  proxy.black_hole()  proxy.cut()  proxy.refuse()  proxy.heal()
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from enum import Enum
from typing import Self
from urllib.parse import urlencode, urlsplit, urlunsplit

__all__ = ["FaultProxy", "Way"]

_CHUNK_BYTES = 65_536
_ANSWER_SECONDS_MAX = 10.0


class Way(Enum):
    """Which way bytes go."""

    TO_SERVER = "to server"
    TO_CLIENT = "to client"


class _Trap:
    """Cut once these bytes pass, `skip` times not; `deliver` says whether the bytes still arrive."""

    def __init__(self, needle: bytes, way: Way, deliver: bool, skip: int, then: Callable[[], object] | None) -> None:
        self.needle, self.way, self.deliver, self.skip, self.then = needle, way, deliver, skip, then
        self.sprung = threading.Event()


class _Link:
    """One connection: the client's socket, the server's, and a thread that carries between them."""

    def __init__(self, proxy: FaultProxy, number: int, client: socket.socket, server: socket.socket) -> None:
        self.proxy, self.number, self.client, self.server = proxy, number, client, server
        self.thread = threading.Thread(target=self._carry, name="proxy-link", daemon=True)
        self.open = True
        self.thread.start()

    def _carry(self) -> None:
        ways = {self.client: (Way.TO_SERVER, self.server), self.server: (Way.TO_CLIENT, self.client)}
        with contextlib.suppress(OSError, ValueError), selectors.DefaultSelector() as selector:
            for end in ways:
                selector.register(end, selectors.EVENT_READ)
            while self.open:
                for key, _ in selector.select(0.05):
                    way, target = ways[key.fileobj]
                    if self.proxy.holds(way, self.number):
                        time.sleep(0.01)  # black hole: what comes stays in the kernel, unread
                        continue
                    content = key.fileobj.recv(_CHUNK_BYTES)
                    if not content or not self._pass_on(content, way, target):
                        self.cut()
                        return
        self.cut()

    def _pass_on(self, content: bytes, way: Way, target: socket.socket) -> bool:
        time.sleep(self.proxy.delay_seconds[way])
        trap = self.proxy.sprung_by(content, way)
        if trap is None:
            target.sendall(content)
            return True
        if trap.deliver:
            target.sendall(content)
            _drop_answer(target)
        return False

    def cut(self, *, reset: bool = True) -> None:
        """Both sides lose the connection, with RST unless said otherwise."""
        self.open = False
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                if reset and end is self.client:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.close()


def _drop_answer(server: socket.socket) -> None:
    """The server has answered, so it has done what it was told, before the connection goes."""
    with selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        if selector.select(_ANSWER_SECONDS_MAX):
            server.recv(_CHUNK_BYTES)


class FaultProxy:
    """Listens on 127.0.0.1, on `port`; carries to (host, server_port)."""

    def __init__(self, host: str, server_port: int) -> None:
        self._target = (host, server_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.delay_seconds = dict.fromkeys(Way, 0.0)
        self.connections = 0
        self._held: set[Way] = set()
        self._held_links: int | None = None  # the number of the last one held; None holds them all
        self._refusing = False
        self._traps: list[_Trap] = []
        self._links: list[_Link] = []
        self._lock = threading.Lock()
        self._closed = False
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def url_of(self, url: str, **query: str) -> str:
        """The same URL by way of this proxy; `query` takes the place of its query."""
        parts = urlsplit(url)
        user, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user}{at}127.0.0.1:{self.port}", query=urlencode(query)))

    # Faults.

    def cut(self, *, reset: bool = True) -> int:
        """Cut every open connection, once; how many there were."""
        with self._lock:
            links, self._links = self._links, []
        for link in links:
            link.cut(reset=reset)
        return sum(1 for link in links)

    def cut_when(
        self,
        needle: bytes,
        way: Way = Way.TO_SERVER,
        *,
        deliver: bool = False,
        skip: int = 0,
        then: Callable[[], object] | None = None,
    ) -> threading.Event:
        """Cut the next connection over which `needle` passes this way; the event says that it happened.

        With `deliver`, which is for the server, the bytes still arrive: it has answered before the cut, and only the
        answer is lost. `skip` lets as many pass before. `then` is called as it happens, before the cut.
        """
        assert way is Way.TO_SERVER or not deliver, "nobody answers what goes to the client"
        trap = _Trap(needle, way, deliver, skip, then)
        with self._lock:
            self._traps.append(trap)
        return trap.sprung

    def delay(self, seconds: float, *ways: Way) -> None:
        """Each piece of data is this late, either way or both."""
        self.delay_seconds |= dict.fromkeys(ways or Way, seconds)

    def black_hole(self, *ways: Way, new_too: bool = True) -> None:
        """Data vanishes without a word, either way or both; connections stay open, and new ones are accepted.

        Without `new_too` those that come after this work as ever.
        """
        self._held, self._held_links = set(ways or Way), self.connections if not new_too else None

    def refuse(self) -> None:
        """Cut every connection, and each new one as it comes."""
        self._refusing = True
        self.cut()

    def heal(self) -> None:
        """No more faults. What a black hole held back is carried on."""
        self._refusing = False
        self._held = set()
        self.delay_seconds = dict.fromkeys(Way, 0.0)
        with self._lock:
            self._traps = []

    def close(self) -> None:
        """Cut everything and stop listening."""
        self._closed = True
        self._listener.close()
        self.cut()

    # For its links.

    def holds(self, way: Way, number: int) -> bool:
        return way in self._held and (self._held_links is None or number <= self._held_links)

    def sprung_by(self, content: bytes, way: Way) -> _Trap | None:
        """The trap that these bytes spring; a needle is looked for in each piece by itself."""
        with self._lock:
            for trap in self._traps:
                if trap.way is way and trap.needle in content:
                    if trap.skip:
                        trap.skip -= 1
                        continue
                    self._traps.remove(trap)
                    break
            else:
                return None
        if trap.then:
            trap.then()
        trap.sprung.set()
        return trap

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            if self._refusing:
                client.close()
                continue
            try:
                server = socket.create_connection(self._target, 5)
            except OSError:
                client.close()
                continue
            for end in (client, server):
                end.settimeout(None)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._links = [link for link in self._links if link.open]
                self._links.append(_Link(self, self.connections, client, server))
