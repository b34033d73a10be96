"""`lm2 eval`: measure a model on BABILong, on texts, on the tasks of lm-evaluation-harness, and what it costs."""

import typer

from lm2.cli.eval_babilong import babilong
from lm2.cli.eval_cost import cost
from lm2.cli.eval_harness import harness
from lm2.cli.eval_perplexity import perplexity
from lm2.cli.eval_retention import retention

evaluate = typer.Typer(help="Measure a model.", no_args_is_help=True)
evaluate.command("babilong")(babilong)
evaluate.command("perplexity")(perplexity)
evaluate.command("harness")(harness)
evaluate.command("retention")(retention)
evaluate.command("cost")(cost)
