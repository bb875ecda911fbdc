"""Physics: pure, batched, differentiable functions of tensors; no files, no hidden randomness."""
