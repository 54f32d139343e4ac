"""The quickstart's assets: a generator of triage notes and the folder of a tiny pre-trained encoder."""

from pathlib import Path

MODEL_DIR = Path(__file__).resolve().parent / "model"
