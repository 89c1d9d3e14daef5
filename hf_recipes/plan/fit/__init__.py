"""Does it fit, and what would?"""
