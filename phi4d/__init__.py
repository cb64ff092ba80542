"""phi4d keeps Phi-4-multimodal resident and turns dropped files into sidecar files."""

__version__ = "0.1.0"
