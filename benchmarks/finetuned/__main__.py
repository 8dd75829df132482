"""`python -m benchmarks.finetuned`."""

from benchmarks.command_line import run_app
from benchmarks.finetuned.cli import app

run_app(app)
