"""Text to image in one shot on discrete image tokens.

    import vqgen
    pipe = vqgen.Pipeline.from_pretrained("avatars-hour")
    pipe("a person with a green mohawk and sunglasses")      # a list with one PIL picture

Here are the names to begin with; each is loaded when it is first asked for, so `import vqgen` takes no time.
"""
from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Pipeline", "VQVAE", "load_config", "load_data", "train"]

if TYPE_CHECKING:
    from .config import load_config
    from .data.datasets import load_data
    from .pipeline import Pipeline
    from .training.loop import train
    from .vqvae.model import VQVAE

_MODULES = {"Pipeline": "pipeline", "VQVAE": "vqvae.model", "load_config": "config",
            "load_data": "data.datasets", "train": "training.loop"}


def __getattr__(name):
    if name not in _MODULES: raise AttributeError(f"module 'vqgen' has no attribute {name!r}")
    return getattr(import_module(f"vqgen.{_MODULES[name]}"), name)


def __dir__(): return sorted({*globals(), *__all__})
