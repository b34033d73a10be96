"""`lm2 tables`: results as tables and pictures, beside published ones."""

import typer

from lm2.cli.tables_babilong import babilong
from lm2.cli.tables_mmlu import mmlu

tables = typer.Typer(help="Results as tables, beside published ones.", no_args_is_help=True)
tables.command("babilong")(babilong)
tables.command("mmlu")(mmlu)
