"""Images decoded on a GPU, compared with those that are decoded exactly."""
