"""`hf-recipes tune`: settings tried in pairs on this machine, and those kept that make training faster."""
