"""Print the lowest declared versions as constraints for pip: `make lowest` installs them and runs the tests with them.

Left out are torch, whose lowest version has no build without CUDA among the packages of PyPI, and the extras whose programs
the tests do not need (openslide, spatialdata, docs, dev).
"""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
for requirement in [*project["dependencies"], *extras["lora"], *extras["leiden"]]:
    name, version = re.match(r"([\w-]+)>=([\w.]+)", requirement).groups()
    if name != "torch":
        print(f"{name}=={version}")
# The program `hf` of such a Hub client imports click, which a later typer does not bring.
print("typer<0.26")
