"""TRL's experimental OnlineDPOTrainer on the work that run.py names. Runs in the peer's own environment."""

from __future__ import annotations

import copy
import os
import tempfile

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer
from trl_common import Clock, arguments, load, reward_of


def main() -> None:
    given = arguments()
    assert given.samples == 2, "this trainer draws two completions a prompt"
    model, tokenizer, rows = load(given)
    config = OnlineDPOConfig(
        output_dir=tempfile.mkdtemp(prefix="trl-"), use_cpu=True, bf16=False, gradient_checkpointing=False,
        per_device_train_batch_size=given.micro // 2, max_length=2048,
        gradient_accumulation_steps=2 * given.prompts_per_step // given.micro, max_new_tokens=given.tokens,
        temperature=1.0, top_p=1.0, top_k=0, beta=[0.1], learning_rate=given.lr, lr_scheduler_type="constant",
        max_steps=given.steps, save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    OnlineDPOTrainer(
        model=model, ref_model=copy.deepcopy(model), reward_funcs=reward_of(given.reward), args=config,
        train_dataset=rows, processing_class=tokenizer, callbacks=[Clock()],
    ).train()  # fmt: skip


if __name__ == "__main__":
    main()
