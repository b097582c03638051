"""Classifiers: networks of the papers, by torchvision, by timm, and our own."""
