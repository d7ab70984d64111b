"""The models Mickle trains, and the door to every other transformers folder."""
