"""Pocket worlds: fictitious people to forget and to keep, made for unlearning, from a seed."""

from expunge.data.worlds.build import World, build_world
from expunge.data.worlds.files import read_world, write_world

__all__ = ["World", "build_world", "read_world", "write_world"]
