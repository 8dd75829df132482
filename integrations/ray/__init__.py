"""Ray: the service on Ray Serve, and bulk answers in Ray Data (needs `pip install 'ponder-torch[ray]'`)."""

from ponder.integrations.ray.deployment import deployment
from ponder.integrations.ray.predictor import Predictor

__all__ = ["Predictor", "deployment"]
