"""Side-by-side measurements of encoders, of what is around them, and of what is served.

All compared things are measured in turns within one run: on a shared machine only their ratios mean something.
"""
