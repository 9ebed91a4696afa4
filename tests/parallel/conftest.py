"""What tests of several processes share."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def free_port():
    """Gives a port of this machine that nobody listens at."""

    def found() -> int:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            return sock.getsockname()[1]

    return found


@pytest.fixture(scope="session")
def two_processes(free_port):
    """Runs code twice at once, with its rank, a port and a folder; gives its output."""

    def run(code: str, folder: Path, limit_s: float) -> list[str]:
        port = str(free_port())
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(rank), port, str(folder)],
                cwd=REPO,
                env=os.environ | {"JAX_PLATFORMS": "cpu"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            results = [worker.communicate(timeout=limit_s) for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
        for worker, (_, error) in zip(workers, results):
            assert worker.returncode == 0, error[-4000:]
        return [out for out, _ in results]

    return run
