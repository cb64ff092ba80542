"""The prepared room: media made ready for the model, up to where its device takes over.

A picture becomes the samples that the vision tower sees, on its grid of crops (`tiles`); a stretch
of sound becomes mel features (`clip`), by settings (`mel`). A `preparation` is both as one engine
wants them. Decode processes work with it, so it must not import torch; the engine works with it
where it is given media as they were decoded. `cutting` tells what media ask of a device, and cuts
sound.
"""
