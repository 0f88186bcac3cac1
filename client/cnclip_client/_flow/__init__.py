"""How many items go through a connection: made into bytes, cut into requests, several of them under way, in order."""
