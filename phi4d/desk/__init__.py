"""The desk: takes what people order of the daemon, and answers.

`desk` has a handler for each order; `again` is what is to be done again, `cancelling` what is
wanted no more, `holding` which inboxes are paused, `telling` how everything is. It changes the
store and tells others; it never waits for a worker, a file or a device.
"""

from __future__ import annotations
