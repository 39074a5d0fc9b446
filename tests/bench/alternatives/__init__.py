"""Other ways to do what the alert path does, each measured beside the way that was chosen.

    PYTHONPATH=tests:tests/bench python -m alternatives [inflate precision walk workers counts] [--rounds 15]

Extra packages: isal and zlib-ng (inflate), cython and setuptools with a C compiler (walk); onnx and scikit-learn
(precision) come with `stream-vae[train]`. A part whose packages are missing says so and is skipped.
"""
