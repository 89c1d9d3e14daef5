"""What every folder may use: text, files, the device. Imports nothing of this package but errors."""
