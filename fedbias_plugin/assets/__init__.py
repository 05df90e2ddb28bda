"""The bundled tiny model and mini data."""

from pathlib import Path

ASSETS = Path(__file__).resolve().parent
TINY = "tiny"  # what --model_name_or_path calls it
TINY_ANYWHERE = "fedbias_plugin/tiny"  # what an adapter on it calls it, which may be loaded on another machine
TINY_MODEL = ASSETS / "tiny_llama"
MINI_DATA = ASSETS / "mini"
