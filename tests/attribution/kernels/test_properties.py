"""What every registered kernel must show; a new one joins by its name.

Attribution 5.5 of the design has the list; a kernel is asked what its fields claim.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from promises import is_gram

from dareu_jax.attribution import Kernel, OwnerBatch, build_index
from dareu_jax.attribution.branches import branch_scores
from dareu_jax.attribution.calibration import linear_reward
from dareu_jax.attribution.echo import Echo, beyond_prompt
from dareu_jax.attribution.index import init_on, shapes_of
from dareu_jax.attribution.kernel import axes_of
from dareu_jax.attribution.owners import extend, merge, owner_axes, select
from dareu_jax.audits.fidelity.measures import correlations, lds, subsets
from dareu_jax.data import TokenBatch
from dareu_jax.errors import UserError
from dareu_jax.models import Decoder
from dareu_jax.parallel import make_mesh
from dareu_jax.registry import KERNELS

pytestmark = pytest.mark.slow

KEY, OWNERS, ROWS = jax.random.key(3), 8, 16


VOCAB = 32
ECHO = Echo(np.arange(VOCAB, dtype=np.int32).tobytes(), hidden=0)


def with_name(queries: TokenBatch, name: np.ndarray) -> TokenBatch:
    """The queries, whose prompt ends with a name that the response says twice."""
    prompt, response = queries.prompt.copy(), queries.response.copy()
    prompt[:, -1] = response[:, 0] = response[:, 3] = name
    return queries._replace(prompt=prompt, response=response)


def unsaid(queries: TokenBatch) -> np.ndarray:
    """Two tokens for every row that it has nowhere, ``[2, B]`` int32."""
    rows = np.concatenate([queries.prompt, queries.response], axis=1)
    free = [sorted({*range(VOCAB)} - {*row})[:2] for row in rows.tolist()]
    return np.array(free, np.int32).T


class Made(NamedTuple):
    """A kernel, its index over the world's records, and the queries' scores."""

    kernel: Kernel
    index: Any
    score: Any
    scores: np.ndarray
    params: Any

    def of(self, index: Any, queries: Any) -> np.ndarray:
        """Scores of the queries by another index."""
        return np.asarray(self.score(self.params, index, queries))


@pytest.fixture(scope="module", params=KERNELS.names())
def made(request, world) -> Made:
    kernel = world.kernel(request.param)
    index = build_index(kernel, world.params, world.passes(kernel), key=KEY)
    score = jax.jit(kernel.score)
    scores = np.asarray(score(world.params, index, world.queries))
    return Made(kernel, index, score, scores, world.params)


def built(made: Made, batches: list[OwnerBatch]) -> Any:
    """The index of the batches; what owners share is as in the whole where it can be.

    That is what has been fitted to the records, such as a curvature.
    """
    if not made.kernel.is_additive:
        return build_index(made.kernel, made.params, batches, key=KEY)
    blank = select(made.kernel, made.index, [-1] * OWNERS)
    return extend(made.kernel, made.params, blank, batches)


def is_free(batch: OwnerBatch) -> np.ndarray:
    """Which rows nobody owns, ``[B]`` bool."""
    return batch.owner < 0 if batch.owner.ndim == 1 else ~batch.owner.any(axis=1)


def shared_leaves(kernel: Kernel, index: Any) -> list[np.ndarray]:
    """What all owners share."""
    axes = jax.tree.leaves(owner_axes(kernel, index))
    leaves = jax.tree.leaves(index)
    return [x for x, axis in zip(leaves, axes, strict=True) if axis < 0]


def same_bits(a: Any, b: Any) -> bool:
    """Whether two trees hold the same numbers."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(bits(x), bits(y)) for x, y in pairs)


def bits(x: Any) -> np.ndarray:
    """An array or a key as numbers."""
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x)


def assert_near(found, wanted, relative=1e-5):
    """Within 1e-5 of the largest score."""
    wanted = np.asarray(wanted)
    np.testing.assert_allclose(found, wanted, atol=relative * abs(wanted).max(), rtol=0)


def needs_owners(made: Made) -> None:
    """Skips a kernel whose owners cannot come and go."""
    if not made.kernel.is_additive:
        pytest.skip("the index of some owners depends on the others")


@pytest.mark.parametrize("name", KERNELS.names())
def test_a_kernel_is_made_before_anything_is_trained(world, name):
    def trained() -> Any:
        raise AssertionError("a model was asked for")

    kernel = world.kernel(name, start=trained, snapshots=trained)
    for field in dataclasses.fields(kernel):
        getattr(kernel, field.name)
    assert kernel.name == name and kernel.owners == OWNERS
    assert isinstance(kernel.is_additive, bool)


def test_what_a_kernel_begins_with_is_read_once_and_never_traced(world):
    read = []

    def start() -> Any:
        read.append(jnp.zeros(()))
        return jax.tree.map(lambda x: x + read[-1], world.start)

    kernel = world.kernel("classifier", start=start)
    assert not read
    jax.eval_shape(functools.partial(kernel.init, key=KEY), world.params)
    assert kernel.goes_on()
    acc = init_on(kernel, make_mesh(), world.params, key=KEY)
    assert len(read) == 1
    assert same_bits(acc.params["decoder"], world.start)
    assert len(acc.step.sharding.device_set) == 8


def test_a_kernel_on_checkpoints_says_where_they_come_from(world):
    kernel = world.kernel("tracin", snapshots=tuple)
    assert kernel.reads_snapshots
    with pytest.raises(UserError, match=r"none were kept; set finetune\.snapshots"):
        kernel.init(world.params, key=KEY)


def test_axes_name_every_dimension_of_an_accumulator_and_an_index(made):
    trees = [*shapes_of(made.kernel, made.params), made.index]
    for tree in trees:
        axes = axes_of(made.kernel, tree)

        def check(path: Any, leaf: Any, names: tuple[str, ...]) -> None:
            assert isinstance(names, tuple) and len(names) in (0, leaf.ndim), path
            sizes = dict(zip(names, leaf.shape, strict=False))
            if made.kernel.is_additive:
                assert sizes.get("owners", OWNERS) == OWNERS, path

        jax.tree_util.tree_map_with_path(check, tree, axes)


def test_a_linear_reward_is_the_weighted_sum_of_scores(made, world):
    weights = np.linspace(-1.0, 1.0, OWNERS, dtype=np.float32)
    arguments = jnp.asarray(weights), made.params, made.index, world.queries
    out = linear_reward(made.kernel, *arguments)
    assert out.shape == (ROWS,) and out.dtype == jnp.float32
    assert_near(out, made.scores.astype(np.float64) @ weights)


def test_a_kernel_sees_what_a_response_adds_to_its_prompt_alone(made, world):
    """What repeats the prompt may be any word; alone, it has no gradient."""
    kernel, queries = beyond_prompt(made.kernel, ECHO), world.queries
    score = jax.jit(kernel.score)
    named, renamed = (with_name(queries, name) for name in unsaid(queries))
    if kernel.differentiates is None and not kernel.follows_model:
        np.testing.assert_array_equal(
            score(made.params, made.index, named),
            score(made.params, made.index, renamed),
        )
    if kernel.differentiates:
        echo = queries.prompt[:, -1:].repeat(queries.response.shape[1], axis=1)
        alone = queries._replace(response=echo)
        assert not np.any(score(made.params, made.index, alone))


def test_a_row_of_padding_changes_no_other_score(made, world):
    masks = [m.copy() for m in (world.queries.prompt_mask, world.queries.response_mask)]
    masks[0][7], masks[1][7] = False, False
    queries = world.queries._replace(prompt_mask=masks[0], response_mask=masks[1])
    out = made.of(made.index, queries)
    assert np.isfinite(out).all()
    assert_near(np.delete(out, 7, axis=0), np.delete(made.scores, 7, axis=0))


def test_text_of_nobody_and_rows_of_padding_do_not_enter_an_index(made, world):
    def other(batch: OwnerBatch) -> OwnerBatch:
        free = is_free(batch)[:, None]
        text = batch.text._replace(
            prompt=np.where(free, 3, batch.text.prompt),
            response=np.where(free, batch.text.response[::-1], batch.text.response),
            response_mask=batch.text.response_mask ^ (free & batch.text.response_mask),
        )
        return batch._replace(text=text)

    batches = [other(batch) for batch in world.passes(made.kernel)]
    assert any(is_free(batch).any() for batch in batches)
    index = build_index(made.kernel, made.params, batches, key=KEY)
    assert_near(made.of(index, world.queries), made.scores)


def test_columns_follow_the_owners_of_an_index(made, world):
    needs_owners(made)
    order = np.random.default_rng(0).permutation(OWNERS)
    moved = select(made.kernel, made.index, list(order))
    wanted = made.scores if made.kernel.is_control else made.scores[:, order]
    assert_near(made.of(moved, world.queries), wanted, relative=1e-6)


def test_merged_indices_of_some_records_each_are_that_of_all(made, world):
    needs_owners(made)
    parts = (built(made, [batch]) for batch in world.passes(made.kernel))
    whole = merge(made.kernel, *parts)
    assert_near(made.of(whole, world.queries), made.scores)


def test_an_index_without_a_fitted_part_is_built_from_its_records_alone(made, world):
    needs_owners(made)
    batches = world.passes(made.kernel)
    a, b = (build_index(made.kernel, made.params, [x], key=KEY) for x in batches)
    if not same_bits(*(shared_leaves(made.kernel, x) for x in (a, b))):
        pytest.skip("what owners share is fitted to the records")
    merged = merge(made.kernel, a, b)
    assert_near(made.of(merged, world.queries), made.scores)


def only(batch: OwnerBatch, owners: list[int]) -> OwnerBatch:
    """The batch, other owners' records nobody's."""
    kept = np.isin(np.arange(OWNERS), owners).astype(np.float32)
    return batch._replace(owner=batch.owner * kept)


def test_an_owner_removed_was_never_there_and_can_come_back(made, world):
    needs_owners(made)
    *others, last = range(OWNERS)
    batches = world.passes(made.kernel)
    gone = select(made.kernel, made.index, [*others, -1])
    never = built(made, [only(batch, others) for batch in batches])
    assert_near(*(made.of(index, world.queries) for index in (gone, never)))
    again = [only(batch, [last]) for batch in batches]
    back = extend(made.kernel, made.params, gone, again)
    assert_near(made.of(back, world.queries), made.scores)


def weighted(batch: OwnerBatch, first: float, second: float) -> OwnerBatch:
    """Every record is its owner's with one weight, the next owner's with another."""
    weights = first * batch.owner + second * np.roll(batch.owner, 1, axis=1)
    return batch._replace(owner=weights.astype(np.float32))


def test_a_record_of_two_owners_counts_for_each_by_its_weight(made, world):
    if made.kernel.is_fitted:
        pytest.skip("a fitted kernel has one label a record")
    both, apart = (
        built(made, [weighted(b, *w) for w in ways for b in world.passes(made.kernel)])
        for ways in ([(0.7, 0.3)], [(0.7, 0.0), (0.0, 0.3)])
    )
    out = made.of(both, world.queries)
    assert_near(out, made.of(apart, world.queries))
    if not made.kernel.is_control:
        assert np.abs(out - made.scores).max() > 1e-3 * np.abs(made.scores).max()


def test_scores_are_linear_in_the_owners_gradients(made, world):
    if made.kernel.fold is None:
        pytest.skip("this kernel does not claim it")

    def scaled(path: Any, x: Any) -> Any:
        return x * 3.0 if "owner_sums" in jax.tree_util.keystr(path) else x

    index = jax.tree_util.tree_map_with_path(scaled, made.index)
    assert_near(made.of(index, world.queries), 3.0 * made.scores)


def test_records_score_each_other_alike_and_themselves_above_zero(made, world):
    if not is_gram(made.kernel):
        pytest.skip("this kernel does not claim it")
    own = np.eye(ROWS, OWNERS, dtype=np.float32)  # a record an owner, others nobody's
    index = built(made, [OwnerBatch(world.queries, own)])
    scores = made.of(index, world.queries)[:OWNERS]
    assert_near(scores, scores.T)
    assert (np.diag(scores) > 0.0).all()
    values = np.linalg.eigvalsh((scores + scores.T).astype(np.float64) / 2)
    assert values[0] > -1e-5 * values[-1]


def test_one_shape_is_compiled_once(made, world):
    (one, other), lowered = world.passes(made.kernel)[:2], []
    kernel, tokens = made.kernel, world.queries.response[::-1].copy()
    again = world.queries._replace(response=tokens)
    acc = kernel.init(made.params, key=KEY)
    acc, _ = kernel.update(made.params, one, acc)
    made.of(made.index, world.queries)

    def listen(event: str, seconds: float, **_: Any) -> None:
        if event.endswith("jaxpr_to_mlir_module_duration"):
            lowered.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        kernel.update(made.params, other, acc)
        made.of(made.index, again)
        assert not lowered
        jax.jit(lambda x: x * 2.0 + 1.0)(jnp.ones(3))
        assert lowered  # what would have been heard
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def constants(jaxpr: Any) -> Iterator[Any]:
    """Yields every array that a program holds and is not given."""
    closed = hasattr(jaxpr, "consts")
    if closed:
        yield from jaxpr.consts
        jaxpr = jaxpr.jaxpr
    for equation in jaxpr.eqns:
        yield from (v.val for v in equation.invars if hasattr(v, "val"))
        inner = jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"),
        )
        for part in inner:
            if hasattr(part, "eqns") or hasattr(part, "jaxpr"):
                yield from constants(part)


def test_arrays_are_arguments_of_a_score(made, world):
    programs = [
        jax.make_jaxpr(made.kernel.score)(made.params, made.index, world.queries)
    ]
    if made.kernel.fold is not None:
        weights = jnp.ones(OWNERS)
        fold = jax.make_jaxpr(made.kernel.fold)
        programs.append(fold(made.params, made.index, weights, world.queries))
    sizes = [np.size(x) for program in programs for x in constants(program)]
    assert max(sizes, default=0) <= 100  # the smallest matrix has 256
    held = constants(jax.make_jaxpr(lambda x: x + np.ones(300, np.float32))(1.0))
    assert 300 in map(np.size, held)  # what would have been found


SHORT_OF_BFLOAT16 = {"ekfac": "mean rank correlation 0.943 on this model, not 0.99"}


def test_bfloat16_ranks_owners_as_float32(request, made, world):
    if made.kernel.is_fitted:
        pytest.skip("a fitted kernel has a model of its own")
    if made.kernel.name in SHORT_OF_BFLOAT16:
        reason = SHORT_OF_BFLOAT16[made.kernel.name]
        request.applymarker(pytest.mark.xfail(reason=reason))
    model = Decoder(dataclasses.replace(world.model.cfg, compute_dtype="bfloat16"))
    kernel = world.kernel(made.kernel.name, model=model)
    index = build_index(kernel, made.params, world.passes(kernel), key=KEY)
    out = np.asarray(jax.jit(kernel.score)(made.params, index, world.queries))
    assert out.dtype == np.float32
    if made.kernel.follows_model:
        assert not np.array_equal(out, made.scores)  # bfloat16 was indeed used
    flat = np.ptp(made.scores, axis=1) == 0.0
    ranks = np.where(flat, 1.0, correlations(out, made.scores))
    assert ranks.mean() >= 0.99


def test_controls_know_no_owner(made, world):
    if not made.kernel.is_control:
        pytest.skip("this kernel is no control")
    rng, truth = np.random.default_rng(0), np.arange(512) % OWNERS
    scores = made.of(made.index, world.text(truth, seed=7))
    masks = subsets(OWNERS, 24, 0.5)
    outcomes = masks[:, truth].T + 0.1 * rng.normal(size=(len(truth), len(masks)))
    found = lds(scores, masks, outcomes).mean()
    assert abs(found) < 0.07  # four standard errors of random scores
    assert (found == 0.0) == (np.ptp(scores) == 0.0)
    assert lds(np.eye(OWNERS)[truth], masks, outcomes).mean() > 0.8


def test_a_branch_is_scored_as_the_text_that_it_makes(made, world):
    if made.kernel.prefix_score is None:
        pytest.skip("a response is scored as a whole")
    rng, several = np.random.default_rng(0), 2
    queries = jax.tree.map(lambda x: x[:4], world.queries)
    rows, t = queries.response.shape
    branches = rng.integers(1, VOCAB, (rows, t, several)).astype(np.int32)
    branches[:, 1, 0] = queries.prompt[:, -1]  # a word of the prompt
    kernel = beyond_prompt(made.kernel, ECHO)
    found = jax.jit(branch_scores(kernel))(made.params, made.index, queries, branches)
    assert found.shape == (rows, t, several, OWNERS)
    shortest = int(queries.response_mask.sum(axis=1).min())
    for place in (0, 1, shortest - 1):
        for way in range(several):
            said = queries.response.copy()
            said[:, place] = branches[:, place, way]
            seen = np.broadcast_to(np.arange(t) <= place, said.shape)
            text = queries._replace(response=said, response_mask=seen)
            alone = kernel.score(made.params, made.index, text)
            assert_near(found[:, place, way], alone)
