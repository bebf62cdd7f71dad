"""Engines that sample."""
