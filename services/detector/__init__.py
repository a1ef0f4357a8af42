"""Detector: books of one coin on several exchanges in; opportunities and rejections, each with its numbers, out."""
