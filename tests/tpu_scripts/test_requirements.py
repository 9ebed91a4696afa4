import re
import tomllib
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


def requirements() -> list[str]:
    lines = (REPO / "requirements-tpu.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def plain(name: str) -> str:
    return re.split(r"[\[><=! ]", name, maxsplit=1)[0].replace("_", "-").lower()


def test_every_requirement_has_one_exact_version():
    for line in requirements():
        assert re.fullmatch(r"[\w.-]+(\[[\w, ]+\])?==[\w.]+", line), line
    names = [plain(line) for line in requirements()]
    assert len(names) == len(set(names))


def test_requirements_have_the_tpu_and_every_dependency():
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    names = {plain(line) for line in requirements()}
    assert {plain(x) for x in project["dependencies"]} <= names
    assert any(line.startswith("jax[tpu]==") for line in requirements())


NOTE = """#!/usr/bin/env bash
[[ $* != --version ]] || {{ echo "{version}"; exit; }}
echo "${{0##*/}} $*" >>"$FAKE/noted"
"""


def test_setup_keeps_the_pinned_versions_and_mounts_without_caches(sandbox):
    sandbox.play_workers(1)
    uv_version = re.search(
        r"uv_version=(\S+)", (sandbox.scripts / "worker/setup.sh").read_text()
    )[1]
    home = sandbox.worker(0)
    python = NOTE.format(version="Python 3.12.13")
    sandbox.program("fake/worker-0/dareu/venv/bin/python", python)
    uv = NOTE.format(version=f"uv {uv_version} (x86_64)")
    sandbox.program("fake/worker-0/dareu/bin/uv", uv)
    sandbox.program("bin/gcsfuse", NOTE.format(version="gcsfuse version 3"))
    sandbox.program("bin/sudo", NOTE.format(version=""))
    sandbox.program("bin/findmnt", "#!/bin/sh\nexit 1\n")
    done = sandbox.run("worker/setup.sh", "my-bucket", "3.12", HOME=str(home))
    assert done.returncode == 0, done.stderr
    repository, mount = home / "dareu/repository", sandbox.root / "mnt"
    noted = (sandbox.fake / "noted").read_text().splitlines()
    assert [line for line in noted if not line.startswith("sudo")] == [
        f"uv pip install --quiet --requirements {repository}/requirements-tpu.txt",
        f"uv pip install --quiet --no-deps --editable {repository}",
        "uv pip check --quiet",
        "gcsfuse --implicit-dirs --rename-dir-limit=200000 --metadata-cache-ttl-secs=0 "
        f"--metadata-cache-negative-ttl-secs=0 my-bucket {mount}",
    ]
    assert "Python 3.12.13" in done.stdout
