"""Huge pages: asked for once, before anything else, where they help and are wanted."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from dareu_jax.cli import start

OFFERED, ALWAYS, NEVER = (
    "always [madvise] never\n",
    "[always] madvise never\n",
    "always madvise [never]\n",
)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with a new glibc, no accelerator, and huge pages as they are said."""

    def make(pages=OFFERED, version="glibc 2.36", devices=()):
        (tmp_path / "enabled").write_text(pages)
        monkeypatch.setattr(start, "ENABLED", tmp_path / "enabled")
        monkeypatch.setattr(start.os, "confstr", lambda name: version)
        monkeypatch.setattr(start, "ACCELERATORS", devices)
        return tmp_path

    return make


def test_huge_pages_are_asked_for_beside_the_users_own_tunables(machine):
    machine()
    added = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "DAREU_HUGE_PAGES": "set"}
    assert start.with_huge_pages({"HOME": "/x"}) == {"HOME": "/x", **added}
    own = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}
    both = "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"
    assert start.with_huge_pages(own)["GLIBC_TUNABLES"] == both


@pytest.mark.parametrize(
    "there",
    [
        {"DAREU_HUGE_PAGES": "0"},
        {"DAREU_HUGE_PAGES": "set"},
        {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"},
        {"JAX_PLATFORMS": "cuda"},
        {"JAX_PLATFORMS": "tpu,cpu"},
    ],
)
def test_they_are_left_where_the_user_says_so_or_computes_elsewhere(machine, there):
    machine()
    assert start.with_huge_pages(there) is None


@pytest.mark.parametrize(
    "how",
    [
        {"pages": ALWAYS},  # given without being asked for
        {"pages": NEVER},
        {"version": "glibc 2.34"},
        {"version": None},  # another C library
    ],
)
def test_they_are_left_where_linux_or_the_library_has_none(machine, how):
    machine(**how)
    assert start.with_huge_pages({}) is None


def test_a_machine_with_an_accelerator_is_left_unless_the_cpu_is_asked_for(machine):
    place = machine()
    (place / "accel0").write_text("")
    machine(devices=(str(place / "accel[0-9]*"),))
    assert start.with_huge_pages({}) is None
    assert start.with_huge_pages({"JAX_PLATFORMS": "cpu"}) is not None


PROGRAM = """
    import json, os, signal, sys, types
    from pathlib import Path
    from dareu_jax.cli import start

    def tell():
        told = {"pid": os.getpid(), "said": sys.argv[1:], "jax": "jax" in sys.modules}
        told |= {"tunables": os.environ.get("GLIBC_TUNABLES"), "read": sys.stdin.read()}
        print(json.dumps(told), flush=True)
        os.kill(os.getpid(), signal.SIGTERM) if "end" in sys.argv else sys.exit(7)

    with open("starts", "a") as starts:
        starts.write("once\\n")
    if "forgetful" in sys.argv:
        os.environ.pop("GLIBC_TUNABLES", None)
    start.ENABLED = Path("enabled")
    start.has_tunable = lambda: True
    sys.modules["dareu_jax.cli.main"] = types.SimpleNamespace(main=tell)
    start.start()
"""
"""`dareu` with a command that tells what it was given, on a machine with huge pages."""


@pytest.fixture
def started(tmp_path):
    """Starts the program; returns its status, what it told, and how often it began."""
    (tmp_path / "enabled").write_text(OFFERED)
    (tmp_path / "dareu").write_text(textwrap.dedent(PROGRAM))

    def call(*words, command=None, **more):
        there = os.environ | {"JAX_PLATFORMS": "cpu"}
        own = ("DAREU_HUGE_PAGES", "GLIBC_TUNABLES")
        there = {k: x for k, x in there.items() if k not in own} | more
        process = subprocess.Popen(
            [sys.executable, *(command or ("dareu", *words))],
            cwd=tmp_path,
            env=there,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        told = json.loads(process.communicate("a question\n")[0])
        assert told["pid"] == process.pid and told["read"] == "a question\n"
        assert told["said"] == list(words) and not told["jax"]
        begun = (tmp_path / "starts").read_text().count("once")
        (tmp_path / "starts").unlink()
        return process.returncode, told, begun

    return call


def test_the_process_begins_anew_once_and_is_the_same_to_who_started_it(started):
    status, told, begun = started("run", "a b", GLIBC_TUNABLES="glibc.malloc.perturb=0")
    assert (status, begun) == (7, 2)
    assert told["tunables"] == "glibc.malloc.perturb=0:glibc.malloc.hugetlb=1"
    status, _, begun = started("forgetful")  # as a wrapper that drops what was set
    assert (status, begun) == (7, 2)
    status, _, begun = started("end")
    assert (status, begun) == (-signal.SIGTERM, 2)
    status, told, begun = started("run", DAREU_HUGE_PAGES="0")
    assert (status, told["tunables"], begun) == (7, None, 1)


def test_a_program_that_runs_the_command_inside_itself_goes_on(started):
    inside = "import runpy, sys; sys.argv = ['dareu', 'run']; runpy.run_path('dareu')"
    status, told, begun = started("run", command=("-c", inside, "of-a-notebook"))
    assert (status, told["tunables"], begun) == (7, None, 1)
