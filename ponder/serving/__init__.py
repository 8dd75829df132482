"""A service: a model behind HTTP, whose rows leave where they may (needs `pip install 'ponder-torch[serve]'`)."""

from ponder.serving.app import create_app
from ponder.serving.auditing import AuditPlan
from ponder.serving.batcher import Batcher
from ponder.serving.limits import Limits
from ponder.serving.model import ServedModel, Text, Tokens
from ponder.serving.service import Service
from ponder.serving.window import WindowBatcher

__all__ = ["AuditPlan", "Batcher", "Limits", "ServedModel", "Service", "Text", "Tokens", "WindowBatcher", "create_app"]
