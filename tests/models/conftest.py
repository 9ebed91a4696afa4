import pytest


@pytest.fixture(scope="session")
def hf():
    """The module that makes tiny Hugging Face folders and their golden arrays."""
    import make_golden

    return make_golden
