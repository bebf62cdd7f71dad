"""Whole runs with Ray, vLLM and DeepSpeed, as a user starts them."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from selfloop.workflows.store.folder import RunFolder
from tests.models import random_qwen2
from tests.unit.flows import rows_of

pytestmark = pytest.mark.real
SELFLOOP = str(Path(sys.executable).with_name("selfloop"))
SHARED = Path(__file__).parents[3] / "shared" / "data" / "gsm8k_test.jsonl"
SMALL = ["iterations=1", "prompts.per_iteration=32", "prompts.heldout=32", "evaluation.samples=2", "settings.epochs=1",
         "evaluation.bootstrap=100"]  # fmt: skip


def selfloop(*arguments: str, seconds: float = 400) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, without a terminal."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    return subprocess.run(
        [SELFLOOP, *arguments], capture_output=True, text=True, timeout=seconds, env=env, check=False
    )


def questions(folder: Path) -> Path:
    """GSM8K's test questions, or as many made up in its format."""
    path = folder / "questions.jsonl"
    if SHARED.exists():
        lines = SHARED.read_text(encoding="utf-8").splitlines()[:60]
    else:
        lines = [json.dumps({"question": f"Ann has {k} figs and buys {k + 3} more. How many has she?",
                             "answer": f"She has {k} + {k + 3} figs.\n#### {2 * k + 3}"}) for k in range(60)]  # fmt: skip
    long = json.dumps({"question": "How long is this? " * 400, "answer": "#### 7200"})
    path.write_text("\n".join([*lines, long, long]) + "\n", encoding="utf-8")
    return path


def test_two_ranks_with_sharded_weights_train_measure_and_publish(tmp_path: Path) -> None:
    more = ["trainer.ranks=2", "trainer.zero=3", "generator.replicas=1"]
    done = selfloop("run", "configs/quickstart.yaml", *SMALL, *more, "--run-dir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stdout + done.stderr
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert (
        last["sync_logprob_gap"] <= 1e-3 and abs(last["kl_to_initial"]) > 1e-5
    )  # the weights changed and arrived


def test_real_questions_on_a_random_model(tmp_path: Path) -> None:
    """Two iterations; prompts that are too long become failed rows; what is shown can be read."""
    run, config = tmp_path / "run", gsm8k_config(tmp_path, "expert-iteration", "{samples: 4, epochs: 1}")
    done = selfloop("run", str(config), "judge=tests.models:even_length", "--run-dir", str(run))
    assert done.returncode == 0, done.stdout + done.stderr
    assert RunFolder(run).completed() == 2
    rows = rows_of(run, 1, "sample") + rows_of(run, 2, "sample")
    assert {row["status"] for row in rows} == {"ok", "failed"}
    for row in rows:
        assert (row["status"] == "failed") == (len(row["prompt"][0]["content"]) > 4000) == bool(row["error"])
    shown = selfloop("show", str(run))
    assert shown.returncode == 0 and "failed" in shown.stdout


def test_a_judge_that_cannot_be_read_is_no_zero(tmp_path: Path) -> None:
    """A random model's judgements abstain, no pair is left, and the run says that it has nothing to learn from."""
    run, config = tmp_path / "run", gsm8k_config(tmp_path, "self-rewarding", "{samples: 2, votes: 1}")
    done = selfloop("run", str(config), "--run-dir", str(run))
    assert done.returncode == 1 and "nothing to train" in " ".join(done.stderr.split()), (
        done.stdout + done.stderr
    )
    assert "Traceback" not in done.stderr
    judged = [row for row in rows_of(run, 1, "judge") if row["status"] == "ok"]
    assert {row["score_state"] for row in judged} == {"abstain"} and {row["score"] for row in judged} == {
        None
    }


def gsm8k_config(folder: Path, recipe: str, settings: str) -> Path:
    config = folder / "gsm8k.yaml"
    config.write_text(f"""
recipe: {recipe}
settings: {settings}
model: {random_qwen2(folder / "model")}
prompts: {{source: {questions(folder)}, columns: {{prompt: question, answer: answer}}, heldout: 8, per_iteration: 26}}
judge: number
iterations: 2
max_failed_rows: 0.5
generator: {{max_tokens: 24, max_model_len: 4096, memory: 0.5}}
evaluation: {{samples: 2, bootstrap: 100}}
trainer: {{lr: 1.0e-4}}
""")
    return config


def test_a_submitted_job_succeeds(tmp_path: Path) -> None:
    env = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "OMP_NUM_THREADS": "1",
    }
    ray = str(Path(sys.executable).with_name("ray"))

    def call(*arguments: str, seconds: float = 400) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ray, *arguments], capture_output=True, text=True, timeout=seconds, env=env, check=False
        )

    head = call(
        "start",
        "--head",
        "--num-cpus=2",
        "--port=6399",
        "--dashboard-port=8299",
        "--dashboard-agent-listen-port=8298",
    )
    assert head.returncode == 0, head.stdout + head.stderr
    try:
        job = call("job", "submit", "--address", "http://127.0.0.1:8299", "--", SELFLOOP, "run",
                   str(Path("configs/quickstart.yaml").absolute()), *SMALL, "--run-dir", str(tmp_path / "run"))  # fmt: skip
    finally:
        call("stop", "--force")
    text = re.sub(r"\x1b\[[0-9;]*m", "", job.stdout)
    assert job.returncode == 0 and "succeeded" in text, text + job.stderr
    assert "Traceback" not in text and "held-out prompts are right" in text
    assert RunFolder(tmp_path / "run").completed() == 1
