"""`phi4d unit`: what the configuration wants beyond systemd/phi4d.service, as a drop-in.

`needs` are what the configuration asks of its surroundings, `memory` how much of it; `host` is
what this machine has; `dropin` puts them into systemd's words, `syntax` knows how those are
written. Nothing is changed, and no torch is loaded.
"""

from phi4d.unit.dropin import DROP_IN, Setting, for_user, render, settings

__all__ = ["DROP_IN", "Setting", "for_user", "render", "settings"]
