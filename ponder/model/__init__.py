"""Models: the parts of an encoder that learns when to stop, and the one loop that runs them."""
