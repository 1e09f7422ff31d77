"""Train PyTorch models over links too slow for their gradients."""
