"""Has gRPC leave forks alone; imported before anything that imports gRPC, which looks then and never again.

Ray and PySpark fork the process that starts them. gRPC's handlers at a fork, on by default, now and then abort the
child of a process that has a channel, or leave it hanging: clusters that do not start. Without them a child that only
runs another program is well, and one that itself goes on with gRPC is as before: not supported unless asked for, by the
same variable, which is left as the user has set it.
"""

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
