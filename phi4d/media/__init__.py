"""The media room: probe and decode images and audio, in processes that hold no model.

`probe` tells a file's kind from its name, `pool` is what the rest of phi4d calls, and everything
else runs in the decode processes that `pool` keeps:

    pool ──wire── decoder ── images
                          └─ audio (readers, speech)

It must not import torch, and it never writes a file.
"""
