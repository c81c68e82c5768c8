"""Encoder networks in PyTorch."""
