"""The whole road in one command: text, tokenizer, pretraining, SFT, DPO, distillation, GRPO, report, chat."""
