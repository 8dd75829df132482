"""The distance of encoders in int8 from those in fp32, by kind of quantisation."""
