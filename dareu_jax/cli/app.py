"""The commands of `dareu`, in the order of its help."""

import typer

from dareu_jax.cli.attribute import attribute
from dareu_jax.cli.audit import doctor, fidelity, stress
from dareu_jax.cli.convert import export, import_model
from dareu_jax.cli.estimate import estimate
from dareu_jax.cli.evaluate import evaluate
from dareu_jax.cli.listing import list_entries
from dareu_jax.cli.run import run
from dareu_jax.cli.score_logs import score_logs

app = typer.Typer(
    help="De-attribute to forget: LLM unlearning with data attribution as the reward.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.command()(run)
app.command("import")(import_model)
app.command()(export)
app.command()(estimate)
app.command()(evaluate)
app.command()(attribute)
app.command()(fidelity)
app.command()(stress)
app.command()(doctor)
app.command("score-logs")(score_logs)
app.command("list")(list_entries)
