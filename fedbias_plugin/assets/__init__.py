"""The bundled tiny model and mini data."""

from pathlib import Path

ASSETS = Path(__file__).resolve().parent
TINY = "tiny"  # what --model_name_or_path calls it
TINY_MODEL = ASSETS / "tiny_llama"
MINI_DATA = ASSETS / "mini"
