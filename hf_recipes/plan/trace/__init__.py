"""What a training step allocates, traced on meta tensors."""
