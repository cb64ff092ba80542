"""The hook room: what an inbox wants run, or told, when a job of it has ended.

`runner` takes what is due from the store and sees to it in threads of its own, `ending` is what a
hook is told, `command` runs a program, `webhook` posts signed JSON. A hook that fails is said and
counted; its job has ended as it did. It never touches a sidecar or a source file.
"""

from __future__ import annotations

from phi4d.hooks.runner import Hooks

__all__ = ["Hooks"]
