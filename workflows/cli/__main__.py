"""`python -m selfloop.workflows.cli`."""

from __future__ import annotations

from selfloop.workflows.cli import main

if __name__ == "__main__":
    main()
