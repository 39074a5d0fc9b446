"""A convolutional VAE for transient candidates, as a streaming plug-in for alert brokers.

Read ``pipeline.py`` first: it shows the way of an alert on one screen.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("stream-vae")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
