"""What tests of several processes share."""

import socket

import pytest


@pytest.fixture(scope="session")
def free_port():
    """Gives a port of this machine that nobody listens at."""

    def found() -> int:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            return sock.getsockname()[1]

    return found
