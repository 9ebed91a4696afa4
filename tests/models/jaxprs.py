"""What a traced program computes."""

import jax
import numpy as np


def sizes_in(jaxpr):
    """Yields the number of elements of every value a program computes."""
    for equation in jaxpr.eqns:
        for out in equation.outvars:
            yield int(np.prod(out.aval.shape))
        for inner in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"),
        ):
            if hasattr(inner, "jaxpr"):
                inner = inner.jaxpr
            if hasattr(inner, "eqns"):
                yield from sizes_in(inner)
