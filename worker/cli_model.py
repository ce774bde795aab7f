"""`riskstream model ...`: one module for each group of its commands."""

import typer

from worker import (
    cli_compare,
    cli_drift,
    cli_engine,
    cli_evaluate,
    cli_model_bench,
    cli_repository,
    cli_train,
    cli_versions,
)

app = typer.Typer(help="Train, evaluate, build, compare, measure and list models.", no_args_is_help=True)
app.command()(cli_train.train)
app.command()(cli_evaluate.evaluate)
app.command()(cli_evaluate.report)
app.command()(cli_engine.build)
app.command()(cli_engine.inspect)
app.command()(cli_compare.compare)
app.command()(cli_model_bench.bench)
app.command(name="list")(cli_repository.list_)
app.command()(cli_repository.check)
app.command()(cli_repository.add)
app.command()(cli_versions.versions)
app.command()(cli_versions.serve)
app.command()(cli_versions.rollback)
app.command()(cli_drift.reference)
