"""Finds the packages; all else stands in setup.cfg.

`presets` lies beside the package, where people look for it, and is installed
inside it. `packages = find:` cannot say that.
"""

from setuptools import find_packages
from setuptools import setup

setup(
    packages=[*find_packages(include=["align_keras*"]), "align_keras.presets"]
)
