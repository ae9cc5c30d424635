"""What pyproject.toml cannot say: recipes/ is the package avssl.recipes, beside the packages that are found."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["avssl*", "data_prep*"]), "avssl.recipes"],
    package_dir={"avssl.recipes": "recipes"},
)
