"""One adapter a model, and what they share: checkpoints, action tokens, the registry."""
