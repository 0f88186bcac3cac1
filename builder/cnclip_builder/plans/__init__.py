"""From ONNX to TensorRT plans, made and proved here or on another machine.

Modules whose docstrings say so travel to that machine and run on Python 3.8; so does this one.
"""
