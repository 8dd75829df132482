"""The parts of `ponder.training`: parameters, models, epochs, and what is reported of them."""
