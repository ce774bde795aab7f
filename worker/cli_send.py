"""`riskstream send`: vitals unless `imaging` is said."""

from typing import TYPE_CHECKING

import typer
from typer.core import TyperGroup

from worker import cli_send_imaging, cli_stream

if TYPE_CHECKING:
    from typer._click import Context

VITALS = "vitals"


class _VitalsUnlessSaid(TyperGroup):
    """`send SOURCE` is `send vitals SOURCE`."""

    def parse_args(self, ctx: "Context", args: list[str]) -> list[str]:
        """Put the command in where none is named."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [VITALS, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_VitalsUnlessSaid,
    no_args_is_help=True,
    help="Publish recorded, simulated or stored records: `send SOURCE` for vitals, `send imaging SOURCE`.",
)
app.command(name=VITALS)(cli_stream.send)
app.command(name="imaging")(cli_send_imaging.imaging)
