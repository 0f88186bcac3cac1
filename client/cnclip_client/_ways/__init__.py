"""The ways from items to features: sent as they are, prepared here, or by whichever of the two is faster."""
