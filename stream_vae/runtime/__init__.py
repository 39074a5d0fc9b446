"""What runs the pipeline: the worker's loop, its health."""
