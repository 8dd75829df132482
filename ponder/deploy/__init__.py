"""Deployment: export to ONNX, the runtime without PyTorch, the service, and the audit of a promise."""
