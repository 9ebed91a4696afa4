"""A process that never comes: who is waited for, how long, one line at the end."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dareu_jax.parallel.waiting import Member, answers, missing, peers

REPO = Path(__file__).resolve().parents[2]
PROCESS = """
from dareu_jax.cli.main import main
from dareu_jax.parallel import connect
main(connect)
"""


def started(address, count, process):
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    own = dict(zip(names, (address, str(count), str(process)), strict=True))
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS],
        cwd=REPO,
        env=os.environ | own | {"JAX_PLATFORMS": "cpu", "DAREU_WAIT_S": "8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_process_that_never_starts_is_told(free_port):
    """Two of three processes start, and one whose process 0 never does."""
    there, nowhere = (f"127.0.0.1:{free_port()}" for _ in range(2))
    asked = [(there, 3, 0), (there, 3, 1), (nowhere, 2, 1)]
    processes = [started(*one) for one in asked]
    try:
        said = [process.communicate(timeout=100)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [2, 2, 2], said
    first, second, alone = ([x for x in text.splitlines() if x] for text in said)
    waits = f"process 0 of 3 waits for 1 of processes 1 to 2 at {there}"
    assert first[0] == f"dareu: {waits}; waits up to 4 s more"
    ended = "dareu: --distributed: after 8 s process 0 of 3 waits for "
    assert first[1].startswith(ended) and "; start every process" in first[1]
    waits = f"process 1 of 3 waits for another process; process 0 at {there} answers"
    assert second[0] == f"dareu: {waits}; waits up to 4 s more"
    waits = f"process 1 of 2 waits for process 0 at {nowhere}, which does not answer"
    assert alone[0] == f"dareu: {waits}; waits up to 4 s more"
    assert [len(lines) for lines in (first, second, alone)] == [2, 2, 2], said


def test_connections_to_a_port_are_counted(free_port):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        address = f"127.0.0.1:{port}"
        assert peers(port) == [] and answers(address)
        assert missing(Member(address, 0, 2)).endswith(f"for process 1 at {address}")
        own = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        try:
            assert "for 1 of processes 1 to 3" in missing(Member(address, 0, 4))
        finally:
            for one in own:
                one.close()
    assert not answers(f"127.0.0.1:{free_port()}") and not answers("nowhere")


def test_a_cluster_that_says_nothing_is_told():
    assert missing(Member(None, 0, 1)).startswith("the cluster has not said")
