"""Read robot actions off video models: pixel-aligned robot actions (PARA)."""
