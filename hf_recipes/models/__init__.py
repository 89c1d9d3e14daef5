"""Config, tokenizer and model, from a checkpoint or from scratch."""
