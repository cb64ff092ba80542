"""The metrics room: what the daemon does, for Prometheus to read. Only importer of its library.

`families` says what each metric is, `live` asks meter, store and threads for the numbers without
ever waiting for any of them, `scrape` puts both together, `server` serves it. Nothing here changes
anything, and nothing that a client does or leaves undone holds the daemon up.
"""

from __future__ import annotations

from phi4d.metrics.families import FAMILIES, Family
from phi4d.metrics.live import Live
from phi4d.metrics.scrape import registry
from phi4d.metrics.server import Server

__all__ = ["FAMILIES", "Family", "Live", "Server", "registry"]
