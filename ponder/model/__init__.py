"""Models: the parts of an encoder that learns when to stop.

`capture` and `read_encoder` are loaded when they are first used: a model of steps needs neither.
"""

from typing import TYPE_CHECKING

from ponder._utils.lazy import lazy_names

if TYPE_CHECKING:
    from ponder.model import capture as capture
    from ponder.model.encoder import read_encoder

__all__ = ["capture", "read_encoder"]

if not TYPE_CHECKING:
    __getattr__ = lazy_names(__name__, ("capture", "encoder:read_encoder"))
