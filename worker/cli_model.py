"""`riskstream model ...`: one module for each group of its commands."""

import typer

from worker import cli_evaluate, cli_repository, cli_train

app = typer.Typer(help="Train, evaluate and list models.", no_args_is_help=True)
app.command()(cli_train.train)
app.command()(cli_evaluate.evaluate)
app.command()(cli_evaluate.report)
app.command(name="list")(cli_repository.list_)
