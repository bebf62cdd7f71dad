"""The `selfloop` command with every node ended before the next one starts: python -m tests.faults.barrier run CONFIG …"""

from __future__ import annotations

from selfloop.workflows.cli import main
from selfloop.workflows.executor.schedule import Executor

if __name__ == "__main__":
    Executor.streaming = False
    main()
