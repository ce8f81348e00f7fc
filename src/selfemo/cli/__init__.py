"""The `selfemo` command: one file a command group, thin over the packages below.

Only typer is imported at the top of these files, so that --help answers at once.
"""

from selfemo.cli.main import app, run

__all__ = ["app", "run"]
