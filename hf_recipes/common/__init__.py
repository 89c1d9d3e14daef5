"""What every folder may use: text, files, the device. Imports nothing else of this package except errors."""
