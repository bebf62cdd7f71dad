"""Every `selfloop` command of README.md, as a new user runs it, but with one small iteration."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.flows import rows_of

pytestmark = pytest.mark.real
ROOT = Path(__file__).parents[2]
SELFLOOP = str(Path(sys.executable).with_name("selfloop"))
SMALL = ["iterations=1", "prompts.per_iteration=32", "prompts.heldout=16", "evaluation.samples=1", "settings.epochs=1",
         "evaluation.bootstrap=100"]  # fmt: skip

SHORT = ["generator.max_tokens=16", "generator.max_model_len=512"]  # what the pocket model can take


def commands() -> list[str]:
    """What a reader would type: fenced lines, and inline code, that start with selfloop."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    spans = re.findall(r"`(selfloop [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    found = [
        line.removeprefix(".venv/bin/") for line in [*lines, *(" ".join(span.split()) for span in spans)]
    ]
    return list(dict.fromkeys(line for line in found if line.startswith("selfloop ")))


def test_every_command_of_the_readme_works(tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    questions = [{"question": f"What is {k} and {k}?", "answer": f"#### {2 * k}"} for k in range(96)]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}

    def go(line: str, *more: str) -> str:
        done = subprocess.run([SELFLOOP, *shlex.split(line)[1:], *more], cwd=tmp_path, env=env, text=True, check=False,
                              capture_output=True, timeout=400, input="sort 3 1 2\n")  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout

    assert "runs/quickstart" in go("selfloop run configs/quickstart.yaml", *SMALL).splitlines()[0]
    metrics = [
        json.loads(line) for line in (tmp_path / "runs/quickstart/metrics.jsonl").read_text().splitlines()
    ]
    assert [line["iteration"] for line in metrics] == [0, 1]
    assert all(line["sync_logprob_gap"] <= 1e-3 for line in metrics)
    row = rows_of(tmp_path / "runs/quickstart", 1, "sample")[0]["prompt_id"]
    stand_ins = {
        "CONFIG": "configs/spin.yaml",
        "NAME": "best-of-n",
        "ROW": row,
        "3": "1",
        "RUN": "runs/quickstart",
        "model=MODEL": "model=pocket",
    }
    typed = commands()
    assert len(typed) >= 6
    for line in typed:
        words = [stand_ins.get(word, word) for word in line.split()]
        small = [one for one in SMALL if "per_iteration" not in one] if words[1] == "run" else []
        small += SHORT if "model=MODEL" in line else []
        said = go(" ".join(words), *small)
        assert said.strip(), line
    assert "finished" in go("selfloop resume runs/quickstart")
