"""The method: pure functions on tensors. It knows no model and applies nothing."""
