r"""The product beside torch, transformers and TRL: time, memory, programs; one machine.

    python -m venv peers
    peers/bin/pip install torch==2.13.0 transformers==5.24.0 trl==1.16.0 peft==0.21.2 \
        accelerate==1.15.0 gguf==0.19.0
    python experiments/speed/compare.py SmolLM2-135M-Instruct.Q4_1.gguf TOFU_FOLDER \
        --torch peers/bin/python --work WORK --out results.json
    python experiments/speed/compare.py --table results.json

Each side is a process of its own on one core; both get ready, then they are measured in
turn, ours first, and wait meanwhile. What is in the results already is left out: the
same command goes on where it was stopped. ``--only ROW ...`` takes rows by name, those
of `rows.py`; ``--again`` measures them anew.
"""

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rows import COMMANDS, ROWS, Row

HERE = Path(__file__).parent
SCRIPTS = {"ours": "ours.py", "torch": "theirs.py", "trl": "grpo.py"}
LIMIT_MIB = 14 * 1024
"""A process that gets larger than this is ended."""
HUGE = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
THREADS = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "2", "TOKENIZERS_PARALLELISM": "false"}
COMPILED = re.compile(r"Finished XLA compilation of .* in ([\d.]+) sec")
"""What JAX says, where it is asked to, when a program is compiled."""


class Ended(Exception):
    """A process that ended before it had measured, with its exit status."""


class Side:
    """A process that waits to be told to measure."""

    def __init__(self, name, row, given):
        python = sys.executable if name == "ours" else given.torch
        script, settings = str(HERE / SCRIPTS[name]), json.dumps(row.settings)
        self.command = [str(python), script, str(given.work), row.name, settings]
        huge = HUGE if given.huge_pages in (name, "all") else {}
        self.process = subprocess.Popen(
            [*pinned(given.core), *self.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **THREADS, **QUIET, **huge},
            text=True,
        )

    def end(self):
        self.process.kill()
        self.process.wait()

    def answer(self):
        """The next line that it writes, as numbers."""
        line = self.process.stdout.readline()
        if not line:
            raise Ended(f"{' '.join(self.command)}: {self.process.wait()}")
        return json.loads(line)

    def measure(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.answer()


def pinned(core):
    return ["taskset", "-c", str(core)] if shutil.which("taskset") else []


def rounds_of(row, given):
    """The numbers of every round, by side; each side is ready before the first."""
    names = [name for name in ("ours", *row.peers) if name in given.sides]
    sides, found = {}, {name: [] for name in names}
    try:
        for name in names:
            sides[name] = Side(name, row, given)
            sides[name].answer()
        for _ in range(given.rounds):
            for name, side in sides.items():
                found[name].append(side.measure())
    finally:
        for side in sides.values():
            side.end()
    commands = {name: side.command for name, side in sides.items()}
    return {"settings": row.settings, "commands": commands, "rounds": found}


def cost(rounds, clock, unit):
    """Median over rounds of seconds, for each ``unit`` of work if there is one."""
    return statistics.median(one[clock] / (one[unit] if unit else 1) for one in rounds)


def ratios(row, rounds):
    """Product over peer, process time and wall."""
    return {
        name: {
            clock: round(
                cost(rounds["ours"], clock, row.unit)
                / cost(rounds[name], clock, row.unit),
                3,
            )
            for clock in ("cpu_s", "wall_s")
        }
        for name in row.peers
        if row.target and rounds.get("ours") and rounds.get(name)
    }


def family(pid):
    """A process and those that it started."""
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(one for child in listed for one in family(int(child)))]


def peak_mib(pid):
    """Most resident memory that the largest of a process and its children had."""
    most = 0
    for one in family(pid):
        try:
            lines = Path(f"/proc/{one}/status").read_text().splitlines()
        except OSError:
            continue
        most = max([most, *(int(x.split()[1]) for x in lines if x.startswith("VmHWM"))])
    return most // 1024


def run_once(command, given, name):
    """Run a command with an empty cache: seconds, programs, peak memory."""
    out, log = given.work / "once" / name, given.work / f"{name}.log"
    shutil.rmtree(out, ignore_errors=True)
    places = {"{work}": str(given.work), "{out}": str(out / "out")}
    words = list(command.words)
    for place, path in places.items():
        words = [word.replace(place, path) for word in words]
    cold = {"XDG_CACHE_HOME": str(out / "cache"), "JAX_LOG_COMPILES": "1"}
    start, begun = os.times(), time.perf_counter()
    with open(log, "w", encoding="utf-8") as said:
        process = subprocess.Popen(
            [
                *(pinned(given.core) if command.is_pinned else []),
                sys.executable,
                *words,
            ],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
            env={**os.environ, **QUIET, **cold},
            text=True,
        )
        process.stdin.write("go\n")
        process.stdin.close()
        peak = watched(process)
    wall, end = time.perf_counter() - begun, os.times()
    cpu = end.children_user + end.children_system
    cpu -= start.children_user + start.children_system
    compiled = COMPILED.findall(log.read_text(encoding="utf-8"))
    found = {
        "command": words,
        "wall_s": round(wall, 2),
        "cpu_s": round(cpu, 2),
        "peak_MiB": peak,
        "programs": len(compiled),
        "compiling_s": round(sum(map(float, compiled)), 2),
        "targets": command.targets,
    }
    made = out / "out" / "scaling.json"
    return found | (json.loads(made.read_text()) if made.exists() else {})


def watched(process):
    """Wait for the end of a process; return its peak. Too large, it is ended."""
    peak = 0
    while process.poll() is None:
        peak = max(peak, peak_mib(process.pid))
        if peak > LIMIT_MIB:
            process.kill()
        time.sleep(0.05)
    if process.returncode and peak <= LIMIT_MIB:
        raise Ended(f"{' '.join(process.args)}: {process.returncode}")
    return peak


def prepare(given):
    """Make in the folder of `--work` what both sides read, unless it is there."""
    work = given.work
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "model").exists():
        words = ["-m", "dareu_jax", "import", given.model, "--out", work / "model"]
        subprocess.run([sys.executable, *words], check=True)
    if not (work / "ids.json").exists():
        words = [HERE / "ours.py", "prepare", work, given.tofu]
        subprocess.run([sys.executable, *words], check=True)
    if "torch" in given.sides and not (work / "hf").exists():
        words = [HERE / "theirs.py", "convert", given.model, work / "hf"]
        subprocess.run([given.torch, *words], check=True)


def machine(given):
    """What the numbers depend on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [x.split(":")[1].strip() for x in lines if x.startswith("model name")]
    facts = rounds_of(
        Row("facts", {}), argparse.Namespace(**{**vars(given), "rounds": 1})
    )
    versions = {k: v for side in facts["rounds"].values() for k, v in side[0].items()}
    versions.pop("peak_MiB")
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
        "huge pages": given.huge_pages,
    }


def measured(name, given):
    """One row: its rounds with the ratios of their medians, or a command's numbers."""
    if name in COMMANDS:
        return run_once(COMMANDS[name], given, name)
    row = ROWS[name]
    found = rounds_of(row, given)
    return {**found, "ratios": ratios(row, found["rounds"]), "target": row.target}


def compare(given):
    """Measure what is asked for; write what is known after every row."""
    prepare(given)
    known = json.loads(given.out.read_text()) if given.out.exists() else {}
    known.setdefault("machine", machine(given))
    results = known.setdefault("rows", {})
    defaults = [name for name, row in ROWS.items() if row.is_default]
    for name in given.only or [*defaults, *COMMANDS]:
        if name in results and not given.again:
            continue
        try:
            results[name] = measured(name, given)
        except (Ended, BrokenPipeError) as error:
            print(f"{name}: ended, {error}", file=sys.stderr, flush=True)
            continue
        given.out.write_text(json.dumps(known, indent=1) + "\n")
        print("\n".join(lines_of(name, results[name])), flush=True)


def lines_of(name, row):
    """A row's lines of the table in Markdown."""
    for peer, ratio in row.get("ratios", {}).items():
        found = row["rounds"]
        unit = ROWS[name].unit
        each = [cost(found[side], "cpu_s", unit) for side in ("ours", peer)]
        per = "ms/token" if unit else "s"
        seconds = [f"{x * 1000:.3g}" if unit else f"{x:.3g}" for x in each]
        yield (
            f"| {name} / {peer} | {seconds[0]} {per} | {seconds[1]} {per} "
            f"| {ratio['cpu_s']:.2f} | {ratio['wall_s']:.2f} | {row['target']} |"
        )
    for what, target in row.get("targets", {}).items():
        yield f"| {name}: {what} | {row[what]:.0f} | | | | {target} |"
    if "used" in row.get("rounds", {}).get("ours", [{}])[0]:
        for side, found in row["rounds"].items():
            shapes = f"{found[0]['used']:.2f}, {found[0]['shapes']} shapes"
            yield f"| {name}: {side} | {shapes} | | | | 0.65, 5 |"
    for what, slope in row.get("slopes", {}).items():
        yield f"| cost against {what}: exponent | {slope:.2f} | | | | 1 |"


HEADER = """| row | product | peer | CPU time | wall | target |
|---|---|---|---|---|---|"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="a GGUF file or a Hugging Face folder")
    parser.add_argument("tofu", nargs="?", help="the folder of TOFU's files")
    parser.add_argument("--torch", help="an interpreter with torch and TRL")
    parser.add_argument("--work", type=Path, help="a folder for what is made once")
    parser.add_argument("--out", type=Path, default=Path("results.json"))
    parser.add_argument("--only", nargs="+", choices=[*ROWS, *COMMANDS])
    parser.add_argument("--again", action="store_true", help="measure known rows anew")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--core", type=int, default=0, help="that all are pinned to")
    parser.add_argument(
        "--huge-pages",
        choices=("none", "ours", "all"),
        default="ours",
        help="who has them: dareu asks for them by itself on a CPU, torch does not",
    )
    parser.add_argument("--sides", nargs="+", choices=SCRIPTS, default=[*SCRIPTS])
    parser.add_argument("--table", type=Path, help="only print the table of results")
    given = parser.parse_args()
    if given.table:
        print(HEADER)
        for name, row in json.loads(given.table.read_text())["rows"].items():
            print("\n".join(lines_of(name, row)))
        return
    compare(given)


if __name__ == "__main__":
    main()
