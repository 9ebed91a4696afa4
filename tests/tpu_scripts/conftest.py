import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
SETTINGS = {
    "PROJECT": "my-project",
    "ZONE": "us-west4-a",
    "TPU_NAME": "my-tpu",
    "ACCELERATOR_TYPE": "v5litepod-16",
    "BUCKET": "my-bucket",
    "RUN_NAME": "tofu",
    "CONFIG": "experiments/quickstart/config.yaml",
    "REPOSITORY": "https://example.com/dareu.git",
    "REVISION": "v1",
    "POLL_SECONDS": "0",
}
ANSWERS = {"queue": "ACTIVE", "node": "READY", "results": "NONE", "run": "absent"}
TMUX = """#!/usr/bin/env bash
setsid "${@:5}" >/dev/null 2>&1 </dev/null &
"""
DAREU = """#!/usr/bin/env bash
printf '%s\\n' "$@" >"$HOME/argv"
trap 'echo saved; exit 0' TERM
while [[ ! -e $FAKE/finish ]]; do sleep 0.05; done
exit "$(<"$FAKE/finish")"
"""


class Sandbox:
    """The scripts, copied, in a world whose `gcloud` answers from lists."""

    def __init__(self, root: Path):
        self.root, self.fake, self.bin = root, root / "fake", root / "bin"
        self.scripts = root / "tpu_scripts"
        for folder in (self.fake, self.bin, root / "mnt"):
            folder.mkdir()
        ours = shutil.ignore_patterns("env.sh")
        shutil.copytree(REPO / "tpu_scripts", self.scripts, ignore=ours)
        fake = Path(__file__).with_name("fake_gcloud.sh").read_text()
        self.program("bin/gcloud", fake)
        self.answer()

    def program(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def answer(self, **lists: list[str]) -> None:
        """Sets what `gcloud` says next; the last word of a list stays."""
        for name, word in ANSWERS.items():
            words = lists.get(name, [word])
            (self.fake / name).write_text("".join(f"{each}\n" for each in words))

    def overrides(self, text: str) -> None:
        (self.scripts / "env.sh").write_text(f"OVERRIDES=({text})\n")

    def play_workers(self, count: int) -> None:
        """From now on `gcloud ... ssh` runs its command here, once per worker."""
        self.program("bin/curl", '#!/bin/sh\necho "$WORKER"\n')
        self.program("bin/mountpoint", "#!/bin/sh\n")
        self.program("bin/tmux", TMUX)
        for number in range(count):
            self.program(f"fake/worker-{number}/dareu/venv/bin/dareu", DAREU)
            (self.worker(number) / "dareu/repository").symlink_to(self.root)

    def worker(self, number: int) -> Path:
        return self.fake / f"worker-{number}"

    def run(self, script: str, *args: str, **settings: str):
        env = {
            **SETTINGS,
            "HOME": str(self.root),
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "FAKE": str(self.fake),
            "DAREU_MOUNT": str(self.root / "mnt"),
            **settings,
        }
        command = ["bash", str(self.scripts / script), *args]
        return subprocess.run(
            command, env=env, cwd=self.root, capture_output=True, text=True, timeout=60
        )

    def calls(self, having: str = "") -> list[list[str]]:
        """What `gcloud` was asked, as argument lists."""
        path = self.fake / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split("\t") for line in lines if having in line]


@pytest.fixture
def sandbox(tmp_path):
    made = Sandbox(tmp_path)
    yield made
    (made.fake / "finish").write_text("0\n")
