"""Every test of plan traces in its own process, unless it asks for `real_child`."""

from tests.support.tiny_recipes import real_child, traces_in_this_process  # noqa: F401
