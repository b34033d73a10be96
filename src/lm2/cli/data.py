"""`lm2 data`: make bAbI stories, BABILong samples, and the tokenizer."""

import typer

from lm2.cli.data_babi import babi
from lm2.cli.data_babilong import babilong
from lm2.cli.data_tokenizer import tokenizer

data = typer.Typer(help="Make the benchmark's data.", no_args_is_help=True)
data.command("babi")(babi)
data.command("babilong")(babilong)
data.command("tokenizer")(tokenizer)
