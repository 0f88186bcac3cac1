"""`cnclip-bench gpu-report`: what a GPU does with an architecture, on one page.

`steps` lists what is done and in which order, `run` bounds each step and keeps it in a process of its own, `findings`
and `page` write down what they found (`rows`). The other modules are the steps, and what they share.
"""
