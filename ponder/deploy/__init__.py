"""Deployment: export to ONNX, the runtime without PyTorch, the service and its audits."""
