"""Everything is declared in pyproject.toml; what is left is to ship the model cards, baton-nano's weights among them, in the wheel."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithModelCards(build_py):
    """Copies model_cards into the built package, where `baton_diffusers` looks first."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            folder = Path("model_cards")
            shutil.copytree(folder, Path(self.build_lib, "baton_diffusers", folder), dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithModelCards})
