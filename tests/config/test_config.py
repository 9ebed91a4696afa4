"""Loading, overriding, validating and writing the configuration."""

import pytest
import yaml
from pydantic import ValidationError, create_model

from dareu_jax.config import (
    Section,
    all_keys,
    build_config,
    completed,
    dump_config,
    load_config,
    with_overrides,
)
from dareu_jax.config.load import _corpus_config
from dareu_jax.data.sources.arxiv import ArxivOptions
from dareu_jax.data.sources.jsonl import JsonlOptions
from dareu_jax.data.sources.tofu import TofuOptions
from dareu_jax.errors import UserError
from dareu_jax.unlearning import method_config


@pytest.fixture
def load(tmp_path):
    path = tmp_path / "config.yaml"

    def write_and_load(text="", *overrides):
        path.write_text(text, encoding="utf-8")
        return load_config(path, overrides)

    return write_and_load


def message_of(call, *args):
    with pytest.raises(UserError) as error:
        call(*args)
    message = str(error.value)
    assert len(message.splitlines()) <= 2
    return message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dareu.kl_coef", 0.1),
        ("dareu.value_coef", 0.2),
        ("dareu.clip", 0.2),
        ("dareu.temperature", 0.8),
        ("dareu.lambda_dis", 2.0),
        ("dareu.updates_per_batch", 20),
        ("dareu.batch_size", 32),
        ("dareu.learning_rate", 1.5e-4),
        ("dareu.data_epochs", 1),
        ("reward.slices", 15),
        ("reward.c_seg", 1.05),
        ("finetune.batch_size", 16),
        ("finetune.learning_rate", 1.5e-4),
        ("finetune.epochs", 5),
        ("classifier.learning_rate", 1e-4),
    ],
)
def test_the_paper_preset_has_the_numbers_of_the_papers_tables(key, value):
    section, name = key.split(".")
    cfg = method_config(build_config({}), "dareu_paper")
    assert getattr(getattr(cfg, section), name) == value


def test_an_empty_file_gives_the_defaults(load):
    assert load("") == build_config({})


def test_values_in_the_file_win_over_the_defaults(load):
    cfg = load("seeds: [41, 42]\ndareu:\n  clip: 0.3\n")
    assert cfg.seeds == (41, 42) and cfg.dareu.clip == 0.3
    assert cfg.dareu.value_coef == 0.2


def test_overrides_win_over_the_file(load):
    cfg = load("dareu:\n  clip: 0.3\n", "dareu.clip=0.4", "corpus.source=tofu")
    assert cfg.dareu.clip == 0.4 and cfg.corpus.source == "tofu"


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "0.0001", "1.0e-4", " 1e-4"])
def test_numbers_on_the_command_line_become_floats(load, text):
    value = load("", f"dareu.learning_rate={text}").dareu.learning_rate
    assert isinstance(value, float) and value == 1e-4


def test_exponents_without_a_dot_in_the_file_become_floats(load):
    assert load("dareu: {learning_rate: 3e-5}").dareu.learning_rate == 3e-5


def test_lists_booleans_and_nulls_are_read_from_overrides(load):
    cfg = load("", "seeds=[1, 2]", "dareu.whiten=false", "guards.utility_floor=null")
    assert cfg.seeds == (1, 2)
    assert cfg.dareu.whiten is False and cfg.guards.utility_floor is None


def test_an_override_value_may_hold_an_equals_sign(load):
    assert load("", "scale=a=b").scale == "a=b"


@pytest.mark.parametrize(
    ("text", "key", "value", "nearest"),
    [
        ("daru: {clip: 0.1}", "'daru'", "0.1", "'dareu'"),
        (
            "dareu: {learningrate: 7}",
            "'dareu.learningrate'",
            "7",
            "dareu.learning_rate",
        ),
        ("lambda_dis: 2", "'lambda_dis'", "2", "'dareu.lambda_dis'"),
        (
            "prior: {model: {layrs: 3}}",
            "'prior.model.layrs'",
            "3",
            "prior.model.layers",
        ),
    ],
)
def test_an_unknown_key_names_key_value_and_nearest(load, text, key, value, nearest):
    message = message_of(load, text)
    assert "unknown key" in message and "config.yaml" in message
    assert key in message and value in message
    assert "did you mean" in message and nearest in message


def test_an_unknown_key_in_an_override_is_reported_alike(load):
    message = message_of(load, "", "reward.shap=paper")
    assert "'reward.shap' = 'paper'" in message and "'reward.shape'" in message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("dareu: {batch_size: many}", ("dareu.batch_size = 'many'", "integer")),
        ("dareu: {batch_size: 1.5}", ("dareu.batch_size = 1.5", "integer")),
        ("dareu: {clip: [1]}", ("dareu.clip = [1]", "number")),
        ("dareu: 3", ("dareu = 3", "dictionary")),
        ("reward: {shape: papr}", ("reward.shape = 'papr'", "'paper'", "'token'")),
        ("1: 2", ("1 = 1", "string")),
    ],
)
def test_a_wrong_type_names_key_value_and_what_was_expected(load, text, parts):
    message = message_of(load, text)
    assert "config.yaml" in message
    assert all(part in message for part in parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("dareu: {clip: 1.0}", ("dareu.clip = 1.0", "less than 1")),
        (
            "finetune: {batch_size: 8, microbatch_size: 3}",
            ("finetune.microbatch_size = 3", "must divide batch_size = 8"),
        ),
        (
            "npo: {batch_size: 8, microbatch_size: 5}",
            ("npo.microbatch_size = 5", "must divide batch_size = 8"),
        ),
        (
            "dareu: {batch_size: 8, samples_per_prompt: 2, minibatch_size: 3}",
            ("dareu.minibatch_size = 3", "batch_size x samples_per_prompt = 16"),
        ),
        (
            "dareu: {batch_size: 8, minibatch_size: 4, microbatch_size: 8}",
            ("dareu.microbatch_size = 8", "must divide minibatch_size = 4"),
        ),
        (
            "dareu: {batch_size: 0}",
            ("dareu.batch_size = 0", "greater than or equal to 1"),
        ),
        ("dareu: {gamma: 0}", ("dareu.gamma = 0", "greater than 0")),
        ("dareu: {learning_rate: .nan}", ("dareu.learning_rate = nan",)),
        ("seeds: []", ("seeds = []", "at least 1")),
        ("corpus: {owners: 1}", ("corpus.owners = 1", "greater than or equal to 2")),
    ],
)
def test_a_value_out_of_range_names_key_value_and_bound(load, text, parts):
    message = message_of(load, text)
    assert all(part in message for part in parts)


def test_further_errors_are_counted(load):
    assert "(and 1 more)" in message_of(load, "dareu: {clip: 2, gamma: 2}")


def test_a_missing_file_is_named(tmp_path):
    message = message_of(load_config, tmp_path / "nowhere.yaml")
    assert "no such config file" in message and "nowhere.yaml" in message


@pytest.mark.parametrize("text", ["dareu: {clip: 0.1", "a: b: c", "\t- x"])
def test_bad_yaml_names_the_file_and_the_line(load, text):
    message = message_of(load, text)
    assert "config.yaml is not valid YAML" in message and "line" in message


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"scale: \xff\xfe\n")
    assert "config.yaml is not valid YAML" in message_of(load_config, path)


def test_a_file_that_is_not_a_mapping_is_refused(load):
    assert "key: value" in message_of(load, "- dareu\n- npo\n")


def test_an_override_without_an_equals_sign_is_refused(load):
    message = message_of(load, "", "dareu.clip")
    assert "'dareu.clip'" in message and "key=value" in message


def test_an_override_that_is_not_yaml_is_refused(load):
    message = message_of(load, "", "seeds=[1, 2")
    assert "seeds=[1, 2" in message and "YAML" in message


def test_an_override_below_a_plain_value_is_refused(load):
    message = message_of(load, "dareu: {clip: 0.3}", "dareu.clip.low=0.1")
    assert "'dareu.clip.low'" in message and "0.3" in message


def test_a_key_of_a_nested_section_leaves_its_siblings_at_their_default(load):
    cfg = load("dareu: {clip: 0.3}", "dareu.gamma=0.9")
    assert cfg.dareu.clip == 0.3 and cfg.dareu.gamma == 0.9


@pytest.mark.parametrize(
    ("override", "section"),
    [
        ("classifier.model.remat=true", "classifier"),
        ("prior.model.remat=true", "prior"),
        ("evaluation.judge.epochs=3", "evaluation.judge"),
        ("evaluation.judge.model.remat=true", "evaluation.judge"),
    ],
)
def test_one_key_of_a_nested_model_keeps_that_sections_own_default(
    load, override, section
):
    before, after = build_config({}), load("", override)
    for name in section.split("."):
        before, after = getattr(before, name), getattr(after, name)
    shape = ("preset", "layers", "embed")
    assert [getattr(after.model, k) for k in shape] == [
        getattr(before.model, k) for k in shape
    ]


def test_changes_for_a_method_are_applied_on_top(load):
    cfg = load(
        "overrides:\n  dareu_paper: {reward.shape: paper, dareu.whiten: false}\n"
    )
    paper = with_overrides(cfg, cfg.overrides["dareu_paper"])
    assert paper.reward.shape == "paper" and paper.dareu.whiten is False
    assert cfg.reward.shape == "potential" and cfg.dareu.clip == 0.2
    assert paper.dareu.clip == cfg.dareu.clip and paper.overrides == {}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ("reward.shpe: paper", ("reward.shpe", "'paper'", "reward.shape")),
        ("dareu.clip: 2", ("dareu.clip = 2", "less than 1")),
        ("seeds.x: 2", ("seeds.x", "not a section")),
    ],
)
def test_changes_for_a_method_are_validated_at_load(load, change, parts):
    message = message_of(load, f"overrides:\n  prior_only: {{{change}}}\n")
    assert all(part in message for part in parts)


@pytest.mark.parametrize(("section", "name"), [("", "seeds"), ("dareu", "clip")])
def test_a_configuration_cannot_be_changed(section, name):
    cfg = build_config({})
    target = getattr(cfg, section) if section else cfg
    with pytest.raises(ValidationError):
        setattr(target, name, getattr(target, name))


def test_what_is_written_reads_back_equal(load):
    cfg = load(
        "model:\n"
        "  preset: decoder-40k\n"
        "  rope_scaling: {type: linear, factor: 4.0}\n"
        "overrides:\n"
        "  prior_only: {reward.prior: sequence, dareu.learning_rate: 1.0e-3}\n",
        "dareu.learning_rate=1e-5",
        "seeds=[3]",
        "corpus.forget=[a, b]",
    )
    written = dump_config(cfg)
    assert load(written) == cfg
    assert dump_config(load(written)) == written


def test_the_default_configuration_reads_back_equal(load):
    assert load(dump_config(build_config({}))) == build_config({})


def test_every_key_of_the_defaults_is_a_known_key():
    known = set(all_keys())

    def walk(tree, prefix=""):
        for name, value in tree.items():
            assert prefix + name in known
            if isinstance(value, dict):
                walk(value, f"{prefix}{name}.")

    walk(build_config({}).model_dump())


def test_a_mapping_is_validated_without_a_file():
    assert build_config({"dareu": {"clip": 0.1}}).dareu.clip == 0.1
    assert "unknown key 'x' = 1" in message_of(build_config, {"x": 1})


def test_an_override_of_a_section_keeps_its_other_keys(load):
    cfg = load("dareu: {clip: 0.1, gamma: 0.5}\n", "dareu={clip: 0.3}")
    assert (cfg.dareu.clip, cfg.dareu.gamma) == (0.3, 0.5)
    row = with_overrides(cfg, {"dareu": {"gamma": 0.9}})
    assert (row.dareu.clip, row.dareu.gamma) == (0.3, 0.9)


# ---- the options of corpus sources ----


def test_corpus_has_the_options_of_its_source_and_no_others(load):
    cfg = load("corpus: {source: tofu, last_authors: 40, forget: [a]}\n")
    assert cfg.corpus.options() == TofuOptions(last_authors=40)
    assert "owners" not in cfg.corpus.model_dump()
    assert load(dump_config(cfg)) == cfg


@pytest.mark.parametrize(
    ("corpus", "parts"),
    [
        (
            "prompt_words: 5",
            (
                "corpus.prompt_words is no option of source fictitious",
                "arxiv",
                "it has",
            ),
        ),
        (
            "source: tofu, general_facts: 4",
            ("no option of source tofu", "did you mean 'general_knowledge'"),
        ),
        ("onwers: 3", ("unknown key 'corpus.onwers' = 3", "'corpus.owners'")),
        ("owners: 1", ("corpus.owners = 1", "greater than or equal to 2")),
        ("source: tfou", ("unknown source 'tfou'", "did you mean 'tofu'")),
        ("source: 3", ("corpus.source = 3", "string")),
        ("source: [a]", ("corpus.source = ['a']", "string")),
    ],
)
def test_a_key_that_the_source_does_not_know_is_refused(load, corpus, parts):
    message = message_of(load, f"corpus: {{{corpus}}}")
    assert all(part in message for part in parts), message


def test_a_source_given_on_the_command_line_replaces_the_options_of_the_files(load):
    text = "corpus: {owners: 3, seed: 5, general_facts: 8, forget: [a]}\n"
    cfg = load(text, "corpus.path=x.jsonl", "corpus.source=jsonl")
    assert cfg.corpus.options() == JsonlOptions(path="x.jsonl")
    cfg = load(text, "corpus.source=arxiv")
    assert cfg.corpus.options() == ArxivOptions(owners=3)
    assert with_overrides(cfg, {"corpus.source": "tofu"}).corpus.source == "tofu"
    message = message_of(load, text, "corpus.source=jsonl", "corpus.owners=3")
    assert "corpus.owners is no option of source jsonl" in message


def test_a_file_with_the_options_of_all_sources_reads_as_it_did(load):
    """What a run wrote before sources had options of their own."""
    tree = build_config({"corpus": {"owners": 3}}).model_dump(mode="json")
    tree["corpus"] |= {"path": None, "authors_per_owner": 1, "last_authors": None}
    tree["corpus"] |= {"general_knowledge": False, "prompt_words": 40}
    assert load(yaml.safe_dump(tree)) == build_config({"corpus": {"owners": 3}})
    assert completed(tree) == build_config({"corpus": {"owners": 3}}).model_dump(
        mode="json"
    )


@pytest.mark.parametrize("option", ["forget", "options"])
def test_an_option_cannot_take_the_name_of_a_key_of_corpus(option):
    taken = create_model("Taken", __base__=Section, **{option: (int, 0)})
    with pytest.raises(UserError, match=f"'mine': its option '{option}' is a key"):
        _corpus_config("mine", taken)
