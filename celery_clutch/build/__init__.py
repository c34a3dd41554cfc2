"""Composing clutches."""
