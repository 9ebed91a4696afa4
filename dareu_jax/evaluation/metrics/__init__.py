"""The metrics, one a file; importing them registers them."""

from dareu_jax.evaluation.metrics import attribution as attribution
from dareu_jax.evaluation.metrics import forget_quality as forget_quality
from dareu_jax.evaluation.metrics import memorisation as memorisation
from dareu_jax.evaluation.metrics import metric as metric
from dareu_jax.evaluation.metrics import mia as mia
from dareu_jax.evaluation.metrics import probability as probability
from dareu_jax.evaluation.metrics import rouge as rouge
from dareu_jax.evaluation.metrics import text_quality as text_quality
from dareu_jax.evaluation.metrics import truth_ratio as truth_ratio
from dareu_jax.evaluation.metrics import utility as utility
