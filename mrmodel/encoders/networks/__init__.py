"""Networks of encoders, in PyTorch."""
