"""A service under load: throughput and latency against the plain model, and what is lost when much goes wrong."""
