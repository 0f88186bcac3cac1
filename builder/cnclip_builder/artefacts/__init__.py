"""All that a repository is built from: ONNX encoders in every precision, made, proved, kept and found again."""
