"""Configuration: defaults < TOML (or the old script's JSON) < ``PHI4_*`` < command line.

Each key is declared once, as a field of `Config` or `Inbox`. Loading either returns a valid
configuration or raises one `ConfigError` that names every fault at once; it never exits and never
touches the folders that it names.
"""

from phi4d.config.keys import BESIDE, Config, Inbox
from phi4d.config.listen import Listen
from phi4d.config.loading import SYSTEM_FILE, load, user_file

__all__ = ["BESIDE", "SYSTEM_FILE", "Config", "Inbox", "Listen", "load", "user_file"]
