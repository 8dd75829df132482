"""How far 8 bits move the hidden states of encoders: kinds of quantisation side by side."""
