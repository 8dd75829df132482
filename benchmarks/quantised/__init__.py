"""The distance of encoders in 8 bits from those in fp32, kinds of quantisation side by side."""
