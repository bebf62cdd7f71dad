"""TRL's GRPOTrainer on the work that run.py names. Runs in the peer's own environment."""

from __future__ import annotations

import tempfile

from trl import GRPOConfig, GRPOTrainer
from trl_common import Clock, arguments, load, reward_of


def main() -> None:
    given = arguments()
    model, tokenizer, rows = load(given)
    whole = given.prompts_per_step * given.samples
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(prefix="trl-"), use_cpu=True, bf16=False, gradient_checkpointing=False,
        per_device_train_batch_size=given.micro, gradient_accumulation_steps=whole // given.micro,
        num_generations=given.samples, max_completion_length=given.tokens, temperature=1.0, top_p=1.0, top_k=0,
        beta=0.0, num_iterations=1, loss_type="dr_grpo", scale_rewards="none", learning_rate=given.lr,
        lr_scheduler_type="constant", max_steps=given.steps, save_strategy="no", logging_strategy="no", report_to=[],
        disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    GRPOTrainer(
        model=model, reward_funcs=reward_of(given.reward), args=config, train_dataset=rows, processing_class=tokenizer,
        callbacks=[Clock()],
    ).train()  # fmt: skip


if __name__ == "__main__":
    main()
