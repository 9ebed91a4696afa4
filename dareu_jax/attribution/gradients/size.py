"""What a kernel keeps of gradients, by the size of the model."""

from dareu_jax.attribution.gradients.bilinear import Features, exact, projected
from dareu_jax.attribution.kernel import Setup
from dareu_jax.models import parameters

LARGE = 50_000_000
"""Parameters above which gradients of all of them are projected, unless told."""


def by_size(setup: Setup) -> Features:
    """Return `exact`, or `projected` where the model is large and nothing is said.

    ``attribution.whole_gradients`` says it. Of a model with adapters, which alone are
    attributed, gradients are small and stay whole.
    """
    whole = setup.cfg.whole_gradients
    if whole is None:
        whole = setup.model.cfg.lora_alpha > 0 or parameters(setup.model.cfg) <= LARGE
    return exact() if whole else projected(setup.cfg.projection_size)


def note_on(name: str, setup: Setup) -> str:
    """Return the sentence that says that gradients are projected because of the size.

    It is empty where they are whole, or where the configuration says what they are.
    """
    if setup.cfg.whole_gradients is not None or by_size(setup) == exact():
        return ""
    k, count = setup.cfg.projection_size, parameters(setup.model.cfg) / 1e6
    return (
        f"kernel {name}: gradients of {count:.0f} M parameters are projected to {k} x "
        f"{k} numbers a matrix; attribution.whole_gradients=true keeps them whole"
    )
