import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

REPO = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((REPO / "tpu_scripts").rglob("*.sh"))
WHERE = ["--zone=us-west4-a", "--project=my-project"]
SSH = ["compute", "tpus", "tpu-vm", "ssh", "my-tpu", *WHERE, "--worker=all"]
VERBS = {
    ("create.sh",): "queued-resources create my-tpu --node-id=my-tpu",
    ("setup.sh",): "worker/setup.sh my-bucket 3.12",
    ("run.sh",): "dareu run experiments/quickstart/config.yaml",
    ("resume_loop.sh",): "dareu run experiments/quickstart/config.yaml",
    ("logs.sh", "1"): "tail -n 100 -F dareu/state/tofu/worker-1.log",
    ("kill.sh",): "worker/kill.sh tofu TERM",
    ("delete.sh",): "queued-resources delete my-tpu",
    ("profile.sh", "10:13"): "--profile 10:13",
    ("profile.sh", "fetch"): "storage rsync gs://my-bucket/runs/tofu/profile",
}


def created(sandbox) -> int:
    return len(sandbox.calls("queued-resources\tcreate"))


def started(sandbox) -> int:
    return len(sandbox.calls("worker/run.sh"))


def test_every_script_is_bash_and_short():
    for script in SCRIPTS:
        subprocess.run(["bash", "-n", script], check=True)
        assert len(script.read_text().splitlines()) < 100, script


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck on PATH")
def test_shellcheck_finds_nothing():
    subprocess.run(["shellcheck", "-x", *SCRIPTS], check=True, cwd=REPO)


def test_nothing_is_killed_by_pattern():
    for script in SCRIPTS:
        assert not re.search(r"pkill|killall|pgrep", script.read_text()), script


def test_the_example_has_every_setting_that_is_needed():
    example = (REPO / "tpu_scripts/env.example.sh").read_text()
    text = "".join(script.read_text() for script in SCRIPTS)
    needed = {
        x for line in re.findall(r"^ *need (.+)$", text, re.M) for x in line.split()
    }
    assert needed and all(f"{name}=${{{name}:-" in example for name in needed)


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_dry_run_prints_whole_commands_and_executes_none(sandbox, verb):
    done = sandbox.run(*verb, DRY_RUN="1")
    assert done.returncode == 0, done.stderr
    assert not sandbox.calls() and not (sandbox.root / "profiles").exists()
    printed = [x for x in done.stderr.splitlines() if x.startswith("+ gcloud ")]
    assert any(VERBS[verb] in line for line in printed), done.stderr


@pytest.mark.parametrize("spot", ["0", "1"])
@pytest.mark.parametrize(
    ("accelerator", "runtime"),
    [
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v6e-8", "v2-alpha-tpuv6e"),
    ],
)
def test_create_asks_for_the_accelerator_with_its_image(
    sandbox, accelerator, runtime, spot
):
    sandbox.answer(queue=["NONE", "ACTIVE"])
    done = sandbox.run("create.sh", ACCELERATOR_TYPE=accelerator, SPOT=spot)
    assert done.returncode == 0, done.stderr
    options = [f"--accelerator-type={accelerator}", f"--runtime-version={runtime}"]
    asked = ["compute", "tpus", "queued-resources", "create", "my-tpu"]
    asked += ["--node-id=my-tpu", *WHERE, *options, *["--spot"] * int(spot)]
    assert sandbox.calls("create") == [asked]


def test_create_waits_until_active(sandbox):
    waiting = ["ACCEPTED", "WAITING_FOR_RESOURCES", "BROKEN", "PROVISIONING"]
    sandbox.answer(queue=["NONE", *waiting, "ACTIVE"], node=["CREATING", "READY"])
    done = sandbox.run("create.sh")
    assert done.returncode == 0 and created(sandbox) == 1
    said = [
        done.stderr.index(word) for word in ("ACCEPTED", "PROVISIONING", "CREATING")
    ]
    assert said == sorted(said) and done.stderr.endswith("my-tpu is ACTIVE\n")


def test_create_keeps_what_is_there(sandbox):
    assert sandbox.run("create.sh").returncode == 0
    assert not created(sandbox)


@pytest.mark.parametrize(
    ("queue", "node", "state"),
    [
        (["NONE", "PROVISIONING", "FAILED"], "READY", "FAILED"),
        (["SUSPENDING", "SUSPENDED"], "READY", "SUSPENDED"),
        (["ACTIVE"], "PREEMPTED", "PREEMPTED"),
        (["ACTIVE"], "NONE", "GONE"),
    ],
)
def test_create_says_what_will_not_become_active(sandbox, queue, node, state):
    sandbox.answer(queue=queue, node=[node])
    done = sandbox.run("create.sh")
    assert done.returncode == 1
    assert f"my-tpu is {state}; run delete.sh" in done.stderr


@pytest.mark.parametrize("script", ["create.sh", "resume_loop.sh"])
def test_a_silent_google_is_no_absent_tpu(sandbox, script):
    sandbox.answer(queue=["BROKEN"])
    done = sandbox.run(script)
    assert done.returncode == 1 and not created(sandbox)
    assert "the network is down" in done.stderr


def test_setup_brings_all_workers_to_the_revision_then_counts_devices(sandbox):
    assert sandbox.run("setup.sh").returncode == 0
    asked = sandbox.calls("tpu-vm\tssh")
    assert [call[:-1] for call in asked] == [SSH] * 3
    prepare, devices = (call[-1] for call in asked[1:])
    assert "--depth=1 https://example.com/dareu.git v1 &&" in prepare
    assert prepare.endswith("worker/setup.sh my-bucket 3.12")
    assert devices.endswith("worker/devices.py /mnt/dareu")


@pytest.mark.parametrize("script", ["setup.sh", "profile.sh"])
def test_a_living_run_is_left_alone(sandbox, script):
    sandbox.answer(run=["alive, alive"])
    done = sandbox.run(script, "1:2")
    assert done.returncode == 1 and "kill.sh first" in done.stderr
    assert len(sandbox.calls("tpu-vm\tssh")) == 1


def test_run_gives_all_workers_one_command(sandbox):
    sandbox.overrides("'methods=[dareu, npo]' finetune.epochs=1")
    assert sandbox.run("run.sh", "--profile", "10:13").returncode == 0
    command = (
        "--command=bash dareu/repository/tpu_scripts/worker/run.sh tofu "
        "dareu run experiments/quickstart/config.yaml 'methods=[dareu, npo]' "
        "finetune.epochs=1 --out /mnt/dareu/runs/tofu --distributed --profile 10:13"
    )
    assert sandbox.calls("worker/run.sh") == [[*SSH, command]]


@pytest.mark.parametrize(
    ("state", "status", "said"),
    [
        ("alive, alive", 0, "already alive"),
        ("alive, ended 1", 1, "alive on some workers alone"),
        ("BROKEN", 1, "do not answer"),
    ],
)
def test_run_does_not_start_twice(sandbox, state, status, said):
    sandbox.answer(run=[state])
    done = sandbox.run("run.sh")
    assert done.returncode == status and said in done.stderr
    assert not started(sandbox)


@pytest.mark.parametrize(("args", "signal"), [((), "TERM"), (("--force",), "KILL")])
def test_kill_sends_a_signal_to_all_workers(sandbox, args, signal):
    assert sandbox.run("kill.sh", *args).returncode == 0
    command = "--command=bash dareu/repository/tpu_scripts/worker/kill.sh tofu"
    assert sandbox.calls() == [[*SSH, f"{command} {signal}"]]


def test_delete_asks_unless_told(sandbox):
    done = sandbox.run("delete.sh")
    assert done.returncode == 1 and not sandbox.calls("delete")
    assert sandbox.run("delete.sh", "--yes").returncode == 0
    asked = ["compute", "tpus", "queued-resources", "delete", "my-tpu", *WHERE]
    assert sandbox.calls("delete") == [[*asked, "--force", "--quiet"]]


def test_delete_of_nothing_is_no_failure(sandbox):
    sandbox.answer(queue=["NONE"])
    assert sandbox.run("delete.sh", "--yes").returncode == 0
    assert not sandbox.calls("delete")


@pytest.mark.parametrize(
    ("script", "setting"),
    [
        ("create.sh", "PROJECT"),
        ("create.sh", "ACCELERATOR_TYPE"),
        ("setup.sh", "BUCKET"),
        ("setup.sh", "REVISION"),
        ("run.sh", "CONFIG"),
        ("resume_loop.sh", "REPOSITORY"),
        ("logs.sh", "RUN_NAME"),
        ("kill.sh", "ZONE"),
        ("delete.sh", "TPU_NAME"),
    ],
)
def test_a_missing_setting_is_named(sandbox, script, setting):
    done = sandbox.run(script, **{setting: ""})
    assert done.returncode == 2 and f"{setting} is not set" in done.stderr
    assert not sandbox.calls() and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        (["create.sh"], {"ACCELERATOR_TYPE": "v2-8"}),
        (["create.sh"], {"SPOT": "maybe"}),
        (["run.sh"], {"RUN_NAME": "a.b"}),
        (["run.sh"], {"BUCKET": "a/b"}),
        (["resume_loop.sh", "--max-restarts", "many"], {}),
        (["resume_loop.sh", "--forever"], {}),
        (["profile.sh", "13:10"], {}),
        (["logs.sh", "first"], {}),
        (["kill.sh", "--all"], {}),
        (["delete.sh", "--no"], {}),
    ],
)
def test_a_wrong_value_is_refused(sandbox, command, settings):
    done = sandbox.run(*command, **settings)
    assert done.returncode == 2 and not sandbox.calls()
    wrong = (*settings.values(), *command[1:])[-1]
    assert wrong in done.stderr or "usage" in done.stderr


def test_the_loop_recreates_what_is_preempted_until_there_are_results(sandbox):
    looks = ["NONE", "NONE", "ACTIVE"]  # the loop's, create.sh's before and after
    lost = ["SUSPENDED", "SUSPENDED", "NONE", "ACTIVE"]  # the loop's, delete.sh's, ...
    alive = ["ACTIVE"] * 2
    sandbox.answer(
        queue=[*looks, *alive, *lost, *alive, *lost, "ACTIVE"],
        run=["absent", "absent", "alive", "alive"] * 3,
        results=["NONE"] * 7 + ["gs://my-bucket/runs/tofu/results.json"],
    )
    done = sandbox.run("resume_loop.sh", "--max-restarts", "2")
    assert done.returncode == 0, done.stderr
    assert created(sandbox) == started(sandbox) == 3
    assert len(sandbox.calls("queued-resources\tdelete")) == 2
    assert "tofu is finished" in done.stderr


def test_the_loop_recreates_a_preempted_node(sandbox):
    sandbox.answer(
        queue=["ACTIVE", "ACTIVE", "NONE", "ACTIVE"],
        node=["PREEMPTED", "PREEMPTED", "READY"],
        results=["NONE", "gs://my-bucket/runs/tofu/results.json"],
    )
    assert sandbox.run("resume_loop.sh").returncode == 0
    assert created(sandbox) == started(sandbox) == 1


@pytest.mark.parametrize("restarts", [0, 1])
def test_the_loop_gives_up_after_so_many_restarts(sandbox, restarts):
    sandbox.answer(run=["ended 1, ended 1"])
    done = sandbox.run("resume_loop.sh", "--max-restarts", str(restarts))
    assert done.returncode == 1
    assert f"was restarted {restarts} times and is not finished" in done.stderr
    assert started(sandbox) == 1 + restarts


def test_the_loop_stops_at_bad_input(sandbox):
    sandbox.answer(run=["ended 2, ended 1"])
    done = sandbox.run("resume_loop.sh")
    assert done.returncode == 1 and "bad input" in done.stderr
    assert sandbox.calls("tail -n 20") and not started(sandbox)


def test_the_loop_continues_a_run_that_saved_and_ended(sandbox):
    finished = "gs://my-bucket/runs/tofu/results.json"
    sandbox.answer(
        run=["alive, alive", "ended 0, ended 0", "absent"],
        results=["NONE", "NONE", finished],
    )
    assert sandbox.run("resume_loop.sh").returncode == 0
    assert started(sandbox) == 1 and not created(sandbox)


def test_the_loop_ends_a_run_that_lost_some_of_its_workers(sandbox):
    finished = "gs://my-bucket/runs/tofu/results.json"
    sandbox.answer(run=["alive, ended 1"], results=["NONE"] * 6 + [finished])
    assert sandbox.run("resume_loop.sh").returncode == 0
    assert len(sandbox.calls("worker/kill.sh tofu KILL")) == 1


def test_the_loop_waits_while_google_or_the_workers_are_silent(sandbox):
    finished = "gs://my-bucket/runs/tofu/results.json"
    sandbox.answer(
        queue=["ACTIVE", "BROKEN", "SUSPENDING", "ACTIVE"],
        run=["alive, alive", "BROKEN"],
        results=["NONE", "NONE", "NONE", "BROKEN", finished],
    )
    assert sandbox.run("resume_loop.sh").returncode == 0
    assert not created(sandbox) and not started(sandbox)


def wait_for(path):
    for _ in range(200):
        if path.exists() and path.read_text().strip():
            return path.read_text()
        time.sleep(0.02)
    raise AssertionError(f"{path} is not there")


def test_words_reach_dareu_on_every_worker_as_they_were_given(sandbox):
    sandbox.play_workers(2)
    odd = [
        "methods=[dareu, npo]",
        'scale=it\'s $HOME; "two"  spaces',
        "corpus.forget=[]",
    ]
    sandbox.overrides(" ".join("'" + x.replace("'", "'\\''") + "'" for x in odd))
    done = sandbox.run("run.sh", "--profile", "10:13")
    assert done.returncode == 0, done.stderr
    options = ["--out", "/mnt/dareu/runs/tofu", "--distributed", "--profile", "10:13"]
    wanted = ["run", "experiments/quickstart/config.yaml", *odd, *options]
    for number in range(2):
        assert wait_for(sandbox.worker(number) / "argv").splitlines() == wanted


def test_a_run_is_started_once_saved_by_kill_and_continued(sandbox):
    sandbox.play_workers(2)
    states = [sandbox.worker(number) / "dareu/state/tofu" for number in range(2)]
    assert sandbox.run("run.sh").returncode == 0
    pids = [wait_for(state / "pid") for state in states]
    again = sandbox.run("run.sh")
    assert again.returncode == 0 and "already alive" in again.stderr
    assert [(state / "pid").read_text() for state in states] == pids

    assert sandbox.run("kill.sh").returncode == 0
    assert [wait_for(state / "exit_status") for state in states] == ["0\n", "0\n"]
    for number in range(2):
        log = wait_for(sandbox.root / f"mnt/logs/tofu/worker-{number}.log")
        assert "saved" in log and "exit status 0" in log

    (sandbox.fake / "finish").write_text("2\n")
    assert sandbox.run("run.sh").returncode == 0
    assert [wait_for(state / "exit_status") for state in states] == ["2\n", "2\n"]
    stopped = sandbox.run("resume_loop.sh")
    assert (
        stopped.returncode == 1 and "exit status 2" in stopped.stdout + stopped.stderr
    )


def test_a_shutdown_of_the_machine_reaches_dareu(sandbox):
    sandbox.play_workers(1)
    state = sandbox.worker(0) / "dareu/state/tofu"
    assert sandbox.run("run.sh").returncode == 0
    wait_for(sandbox.worker(0) / "argv")
    pid = wait_for(state / "pid").strip()
    supervisor = Path(f"/proc/{pid}/stat").read_text().split(") ")[1].split()[1]
    os.kill(int(supervisor), signal.SIGHUP)
    os.kill(int(supervisor), signal.SIGTERM)
    assert wait_for(state / "exit_status") == "0\n"


def test_a_machine_that_was_restarted_has_no_living_run(sandbox):
    sandbox.play_workers(1)
    state = sandbox.worker(0) / "dareu/state/tofu"
    state.mkdir(parents=True)
    (state / "pid").write_text("999999999\n")
    assert sandbox.run("run.sh").returncode == 0
    assert wait_for(state / "pid") != "999999999\n"


def test_a_recorded_pid_that_is_another_process_is_let_be(sandbox):
    sandbox.play_workers(1)
    state = sandbox.worker(0) / "dareu/state/tofu"
    state.mkdir(parents=True)
    other = subprocess.Popen(["sleep", "60"])
    (state / "pid").write_text(f"{other.pid}\n")
    done = sandbox.run("kill.sh")
    assert "tofu is not alive" in done.stdout and other.poll() is None
    other.kill()
    other.wait()


def test_pages_promise_nothing_that_cannot_be_kept():
    for page in (REPO / "tpu_scripts").glob("*.md"):
        assert not re.search(r"\b(erased|certified)\b", page.read_text(), re.IGNORECASE)
