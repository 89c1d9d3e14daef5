"""Kills, signals, damaged files and full disks: does a run survive, and does the resumed run end in the straight one's
bits? The entry is __main__.py; how it is used stands there."""
