"""The model and its releases; only `release` is needed to serve one."""
