"""The command line. The command `selfloop` is `main`."""

from __future__ import annotations

from selfloop.workflows.cli.commands import app, main

__all__ = ["app", "main"]
