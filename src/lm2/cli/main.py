"""Entry point of the `lm2` command: the list of verbs, and one way to report what the user can fix."""

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import lm2
from lm2.cli.data import data
from lm2.cli.demo import demo
from lm2.cli.eval import evaluate
from lm2.cli.export_hub import export_hub
from lm2.cli.generate import generate
from lm2.cli.params import params
from lm2.cli.reproduce import reproduce
from lm2.cli.score import score
from lm2.cli.tables import tables
from lm2.cli.train import train


class _Verbs(TyperGroup):
    """Turns a verb's ValueError or OSError, which users can fix, into a message on stderr and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, OSError) as error:
            if ctx.params.get("debug"):
                raise
            print(f"lm2 {ctx.invoked_subcommand}: {error}", file=sys.stderr)
            raise typer.Exit(code=2) from error


app = typer.Typer(
    name="lm2",
    cls=_Verbs,
    help="Large Memory Models: a Llama-style language model that reads any length with a bounded memory.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
app.command("params")(params)
app.command("export-hub")(export_hub)
app.add_typer(data, name="data")
app.command("train")(train)
app.command("reproduce")(reproduce)
app.add_typer(evaluate, name="eval")
app.command("generate")(generate)
app.command("demo")(demo)
app.command("score")(score)
app.add_typer(tables, name="tables")


def _print_version(requested: bool) -> None:
    if requested:
        print(f"lm2 {lm2.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    pass


if __name__ == "__main__":
    app()
