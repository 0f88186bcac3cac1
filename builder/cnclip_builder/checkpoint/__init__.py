"""From a name, a path or a hub to a checked checkpoint, and to its two encoders in PyTorch."""
