"""Networks as ONNX graphs, run by ONNX Runtime without torch."""
