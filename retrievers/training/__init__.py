"""What fits an encoder: losses, joint batches, steps, callbacks."""
