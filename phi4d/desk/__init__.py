"""The desk: takes what people order of the daemon, and answers.

`desk` has a handler for each order and looks after what it needs of the house; `again` is what is
to be done again. It changes the store and tells others; it never waits for a worker, a file or a
device.
"""

from __future__ import annotations
