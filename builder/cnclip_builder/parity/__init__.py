"""What features are compared on, how far they are from PyTorch's, and how far they may be."""
