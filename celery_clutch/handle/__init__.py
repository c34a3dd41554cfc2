"""A run as its caller sees it: the handle, and the tree of its jobs."""
