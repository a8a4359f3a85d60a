"""ONNX Runtime: lowers the IR to an ONNX model and runs it."""
