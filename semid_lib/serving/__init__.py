"""A trained recommender in use: predict, HTTP service, Hub, Modal (chapter 08)."""
