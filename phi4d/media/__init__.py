"""The media room: probe and decode images and audio, in processes that hold no model."""
