"""Tests run on 8 CPU devices, with strict dtype promotion and without a network."""

import gc
import itertools
import os
import socket
import sys
import tempfile
from pathlib import Path

CACHE = os.environ.get(
    "DAREU_TEST_CACHE", os.path.join(tempfile.gettempdir(), "dareu_jax_test_cache")
)
PATIENT = (
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=120 "
    "--xla_cpu_collective_call_terminate_timeout_seconds=900"
)
"""Eight devices on two busy cores wait for each other longer than XLA's 40 seconds."""
COMPILED_SOON = (
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
"""Half the work for the compiler, which is most of the work of these tests."""
os.environ.update(
    JAX_PLATFORMS="cpu",
    PJRT_NPROC="32",  # devices that wait hold a thread each; some are left for the work
    HF_HUB_OFFLINE="1",
    XLA_FLAGS=f"{os.environ.get('XLA_FLAGS', '')} {PATIENT} {COMPILED_SOON}",
    JAX_COMPILATION_CACHE_DIR=CACHE,
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    JAX_DISABLE_MOST_OPTIMIZATIONS="1",  # a program here runs for milliseconds
)

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
# programs in flight together can wait for each other's devices for ever on few cores
jax.config.update("jax_cpu_enable_async_dispatch", False)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

REPO = Path(__file__).resolve().parent.parent
MAPS, MOST_MAPS, TESTS = Path("/proc/self/maps"), 25_000, itertools.count()
LOCAL = ("127.", "localhost", "::1", "0.0.0.0")


def _only_local(connect):
    def guarded(self, address):
        if self.family != socket.AF_UNIX and not str(address[0]).startswith(LOCAL):
            raise OSError(f"a test tried to reach {address}; tests use no network")
        return connect(self, address)

    return guarded


socket.socket.connect = _only_local(socket.socket.connect)
socket.socket.connect_ex = _only_local(socket.socket.connect_ex)


def pytest_collection_modifyitems(items):
    """Files with slow tests first, so that no process is left alone with them."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _few_programs():
    """Every compiled program takes memory maps, of which Linux gives 65,530."""
    yield
    if next(TESTS) % 10 or not MAPS.exists():
        return
    if MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="module")
def optimised():
    """What is compiled here is optimised as for users: its cost is what is tested."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module")
def kernels_kept():
    """The registry of kernels; what a module's tests add is taken out at its end."""
    from dareu_jax.registry import KERNELS

    KERNELS.names()
    tables = (KERNELS._entries, KERNELS._about, KERNELS._options)
    KERNELS._entries, KERNELS._about, KERNELS._options = map(dict, tables)
    yield KERNELS
    KERNELS._entries, KERNELS._about, KERNELS._options = tables


@pytest.fixture
def dareu(monkeypatch, capsys):
    """Runs `dareu ...` here; returns its status, output and complaint."""
    from dareu_jax.cli import main

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["dareu", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main.main()
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return call


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets, if this machine has one."""
    folder = Path(os.environ.get("DAREU_DATA", REPO.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no data at {folder}; set DAREU_DATA to the folder that has it")
    return folder


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A seed of tests/tiny.yaml: its corpus, tokens and model; nothing is trained."""
    from dareu_jax.config import load_config
    from dareu_jax.runs.inputs import Inputs

    folder = tmp_path_factory.mktemp("tiny_run")
    return Inputs(load_config(REPO / "tests" / "tiny.yaml"), 0, folder)


@pytest.fixture(scope="session")
def tiny_inputs(tiny_run):
    """What a method may read: fresh models and a classifier after a few steps."""
    import jax.numpy as jnp

    from dareu_jax.attribution import OwnerBatch, Setup, build_index
    from dareu_jax.data import NOBODY, owner_labels
    from dareu_jax.models import Decoder, decoder_config, init_decoder
    from dareu_jax.registry import KERNELS
    from dareu_jax.unlearning import MethodInputs, Prior, RewardIndex

    cfg, owners = tiny_run.cfg, tiny_run.corpus.owners
    vocab = tiny_run.tokenizer.vocab_size
    prior = Decoder(decoder_config(cfg.prior.model, vocab))
    start = jax.jit(lambda key: init_decoder(tiny_run.model, key=key))
    owned = tuple(r for r in tiny_run.corpus.train if r.owner != NOBODY)
    batch = OwnerBatch(tiny_run.tokens(owned), owner_labels(owned, owners))
    make = KERNELS.get("classifier")
    kernel = make(
        Setup(
            model=tiny_run.model,
            owners=len(owners),
            cfg=cfg.attribution,
            classifier=cfg.classifier,
            steps=10,
            backbone=tiny_run.decoder("classifier"),
        )
    )
    forget = tiny_run.split.forget
    index = build_index(kernel, None, [batch] * 10, key=jax.random.key(1))
    reward = RewardIndex(kernel, index, rebuild=lambda params: index)
    return MethodInputs(
        model=tiny_run.model,
        reference=start(jax.random.key(0)),
        forget_columns=tuple(owners.index(o) for o in cfg.corpus.forget),
        forget_owner=jnp.asarray(owner_labels(forget, owners)),
        response_tokens=12,
        stop_ids=tiny_run.tokenizer.stop_ids,
        gold_length=10.0,
        stages={
            "reward": reward,
            "reward_shuffled": reward,
            "reward_echo": reward,
            "reward_noise_0.51": reward,
            "base": Prior(tiny_run.model, start(jax.random.key(3))),
            "prior": Prior(prior, start(jax.random.key(2))),
        },
    )


@pytest.fixture(scope="module")
def run_page():
    """Runs the Python blocks of a page and returns them; registries are kept as is."""
    import re

    from dareu_jax.registry import REGISTRIES

    registries = REGISTRIES.values()
    for registry in registries:
        registry.names()
    tables = [{k: v for k, v in vars(r).items() if type(v) is dict} for r in registries]
    before = [{k: dict(v) for k, v in each.items()} for each in tables]

    def run(page: Path) -> list[str]:
        blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
        for block in blocks:
            exec(compile(block, str(page), "exec"), {"__name__": "page"})
        return blocks

    yield run
    for registry, kept in zip(registries, before, strict=True):
        vars(registry).update(kept)
