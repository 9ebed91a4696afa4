"""Names, their entries, and what is said about unknown ones."""

import pytest

from dareu_jax.errors import UserError, did_you_mean
from dareu_jax.registry import MODELS, Registry


@pytest.fixture
def fruit() -> Registry:
    registry: Registry = Registry("fruit", "json")  # any importable package
    registry.register("pear", "green")("PEAR")
    registry.register("apple", "red")("APPLE")
    return registry


def test_a_registered_entry_is_returned_unchanged(fruit):
    assert fruit.get("pear") == "PEAR"

    def plum():
        return 1

    assert fruit.register("plum", "blue")(plum) is plum
    assert fruit.get("plum") is plum


def test_names_and_descriptions_are_listed_in_alphabetical_order(fruit):
    assert fruit.names() == ("apple", "pear")
    assert list(fruit.items()) == [("apple", "red"), ("pear", "green")]


def test_an_unknown_name_lists_the_known_ones_and_the_nearest(fruit):
    with pytest.raises(UserError) as error:
        fruit.get("aple")
    message = str(error.value)
    assert message == (
        "unknown fruit 'aple' (did you mean 'apple'?); known: apple, pear"
    )


def test_a_name_like_no_other_gets_no_suggestion(fruit):
    with pytest.raises(UserError) as error:
        fruit.get("zzzz")
    assert "did you mean" not in str(error.value)
    assert "known: apple, pear" in str(error.value)


def test_a_second_entry_of_one_name_is_refused_and_the_first_stays(fruit):
    with pytest.raises(ValueError, match="fruit 'pear' is registered twice"):
        fruit.register("pear", "again")("OTHER")
    assert fruit.get("pear") == "PEAR"
    assert dict(fruit.items())["pear"] == "green"


def test_registries_do_not_share_entries(fruit):
    other: Registry = Registry("fruit", "json")
    assert other.names() == ()


def test_looking_up_imports_the_package_that_registers():
    assert "decoder-40k" in MODELS.names()
    assert MODELS.get("decoder-40k")["layers"] == 1


def test_every_built_in_model_has_a_description():
    assert all(about.strip() for _, about in MODELS.items())


def test_did_you_mean_returns_an_empty_string_without_a_near_name():
    assert did_you_mean("kernle", ["kernel", "metric"]) == " (did you mean 'kernel'?)"
    assert did_you_mean("xyz", ["kernel"]) == ""
