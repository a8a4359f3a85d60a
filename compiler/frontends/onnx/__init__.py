"""ONNX files and protobufs into the IR and back, by way of onnx-graphsurgeon."""
