"""The life of a served catalogue: items come, change and go, and each state is a version that can be had back."""
