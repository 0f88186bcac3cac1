"""From PyTorch to ONNX: FP32, FP16 and the encoders that Triton serves, each proved against PyTorch."""
