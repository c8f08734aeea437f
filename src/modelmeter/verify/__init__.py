"""Comparison with PyTorch and the real model classes; its modules import torch, this package does not."""
