"""The proxy that other tests break connections with."""

from __future__ import annotations

import socket
import threading
import time

from tests.proxy import FaultProxy, Way


def test_what_is_delivered_is_done_before_the_cut_however_slow_the_server_is():
    done = threading.Event()

    def answer_late(listener):
        connection, _ = listener.accept()
        with connection:
            connection.recv(100)
            time.sleep(0.4)
            done.set()
            connection.sendall(b"done")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=answer_late, args=(listener,))
        server.start()
        with FaultProxy("127.0.0.1", listener.getsockname()[1]) as proxy:
            proxy.cut_when(b"COMMIT", Way.TO_SERVER, deliver=True)
            with socket.create_connection(("127.0.0.1", proxy.port), 10) as client:
                client.sendall(b"COMMIT")
                try:
                    answer = client.recv(100)
                except ConnectionResetError:
                    answer = b""
                assert done.is_set()
                assert not answer
        server.join()
