"""`phi4d unit`: what the configuration wants beyond systemd/phi4d.service, as a drop-in.

`needs` are what the configuration asks of its surroundings, `memory` how much of it; `host` is
what this machine has; `dropin` puts them into systemd's words, `syntax` knows how those are
written, and `installed` reads what is in force. Nothing is changed but the drop-in, if it is to be
put in place, and no torch is loaded.
"""

from phi4d.unit.dropin import DROP_IN, Setting, for_user, read_again, render, settings, write
from phi4d.unit.installed import Service

__all__ = ["DROP_IN", "Service", "Setting", "for_user", "read_again", "render", "settings", "write"]
