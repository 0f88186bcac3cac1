"""From artefacts and plans to a Triton model repository: written, checked, published and pruned."""
