"""A trained model in use: predictions, evaluation on other data, chat, and merging an adapter."""
