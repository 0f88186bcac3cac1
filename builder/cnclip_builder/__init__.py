"""From a Chinese-CLIP checkpoint to a Triton model repository, in stages that can each be run alone.

arch -> checkpoint -> onnx -> (tensorrt) -> repository -> verify; `build.build_repository` walks them all.
Heavy libraries (torch, onnx, onnxruntime) are imported by the stage that uses them, not by this package.
"""
