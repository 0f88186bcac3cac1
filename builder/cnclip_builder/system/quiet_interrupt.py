"""Has a process end at Ctrl-C without a word, from its import on.

The process that stages are forked from imports this first. A terminal's Ctrl-C goes to it as well, and until it has
imported torch it would print a traceback of that; the build's own process tells of the interrupt.
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)
