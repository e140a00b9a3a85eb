"""A core install, imitated: Python processes in which no library of an extra can be found, however they are started."""

import os

HIDES = """
import sys
from importlib.machinery import PathFinder

HIDDEN = {"torch", "transformers", "tokenizers", "safetensors", "maze_dataset", "muutils", "ray", "pyarrow", "triton",
          "ctranslate2"}

class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
"""


def hide_extras(folder, monkeypatch):
    """From now on, processes that are started find none of them."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(HIDES)
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    monkeypatch.setenv("PYTHONPATH", path)
