"""The decode loop: prefill, analyse, detect, refine."""
