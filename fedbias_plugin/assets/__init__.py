"""The bundled tiny model and mini data."""

from pathlib import Path

ASSETS = Path(__file__).resolve().parent
TINY_MODEL = ASSETS / "tiny_llama"
MINI_DATA = ASSETS / "mini"
