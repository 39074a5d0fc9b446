"""Print what the package and some of its extras need, so that an image's layer of libraries outlives our own changes.

python requirements_of.py EXTRA,EXTRA reads the pyproject.toml in the working directory, and prints one a line.
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
for requirement in (*project["dependencies"], *(each for extra in sys.argv[1].split(",") for each in extras[extra])):
    print(requirement)
