"""What pyproject.toml cannot say: recipes/ is the package avssl.recipes, beside the packages that are found."""

import sys

from setuptools import find_packages, setup

PACKAGES = find_packages(include=["avssl*", "data_prep*"])
if "editable_wheel" in sys.argv:
    # The checkout's path, where avssl/__init__.py finds the recipes. With a mapped package setuptools would install an
    # import hook that comes after the search along the path: a folder `avssl` where Python starts would hide ours.
    setup(packages=PACKAGES, package_dir={"": "."})
else:
    setup(packages=[*PACKAGES, "avssl.recipes"], package_dir={"avssl.recipes": "recipes"})
