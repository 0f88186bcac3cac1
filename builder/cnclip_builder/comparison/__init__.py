"""Features of two models on a user's own images and texts: what to see before one replaces the other."""
