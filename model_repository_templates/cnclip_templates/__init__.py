"""What Triton serves: for every served model its `config.pbtxt.j2` and `model.py`, laid out as they are served.

The modules named `cnclip_*` hold the work of the Python models. They are copied beside each `model.py`, so they
import only what a server has: the standard library, numpy, Pillow and tokenizers.
"""
