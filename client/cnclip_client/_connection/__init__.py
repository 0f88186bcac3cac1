"""How the servers are reached: gRPC, several addresses, errors made this package's, and what a served model is."""
