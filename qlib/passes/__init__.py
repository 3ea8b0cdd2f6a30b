"""The passes: each takes a graph and returns a new one, and none of them knows another's or which mode it runs in."""
