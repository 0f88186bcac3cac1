"""From ONNX in FP32 to INT8 for CPUs, measured for what it loses and gains."""
